"""Scenarios of the private energy market: what is refused and how it is said, the shipped day, random days."""

import copy
import dataclasses
import pickle
import re
import sys
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2penv.core import quarters as measured
from p2penv.core import scenarios
from p2penv.pem import PEM, rules
from p2penv.pem import scenario as scenario_module
from p2penv.pem.scenario import Scenario, load_scenario, preferences, scenario_names

NAN, INF = float("nan"), float("inf")
PAIR = {"generation": [[0.0, 2.0], [1.0, 0.0]], "load": [[0.5, 0.4], [0.3, 0.2]]}


def truthful(case):
    """Market of each window if every home tells the truth and no battery runs."""
    g, load, k = case.generation[:-1], case.load[:-1], case.preference[:-1]
    net = g - load
    most = np.where(net > 0, g - (1 - case.flexibility) * load, 0.0)
    offers, demand = rules.Offers(k, g + 1, most), np.maximum(-net, 0).sum(axis=1)
    return offers, demand, rules.exact_price(offers, demand, case.prices)


def shares(case):
    """Shares of windows without a market, general, extreme, and with a price strictly between the limits."""
    market = truthful(case)[2]
    inside = (market.case == rules.GENERAL) & (market.price > case.low + 1e-9) & (market.price < case.high - 1e-9)
    return [float((market.case == kind).mean()) for kind in (rules.NO_MARKET, rules.GENERAL, rules.EXTREME)] + [
        float(inside.mean())
    ]


def test_defaults():
    case = Scenario(**PAIR)
    assert (case.size, case.windows, case.hours, case.name) == (2, 1, 1 / 60, "custom")
    assert case.agents == ["home_0", "home_1"]
    assert case.prices == rules.Prices(80.0, 90.0, 110.0, 120.0)
    assert (case.charge_value, case.start) == (80.0, 7.0)
    c = case.preference / (80 * (1 + case.load))
    np.testing.assert_allclose(c[0], c[1])
    assert (c >= 1).all()
    assert (c <= 1.3).all()
    assert len(np.unique(c[0])) == 2
    for name in ("loss", "battery_capacity", "charge_efficiency", "flexibility", "initial_charge"):
        assert getattr(case, name).shape == (2,)


def test_the_load_as_it_is_is_best_at_the_content_price():
    """At c = 1 and a price of 80: U' = k/(1 + l) − 80 = 0 at the base load."""
    load = np.array([[0.4, 2.0]])
    k = preferences(np.ones(2), load)
    np.testing.assert_allclose(k / (1 + load) - 80.0, 0.0, atol=1e-12)


def test_preference_may_be_given_for_homes():
    np.testing.assert_array_equal(Scenario(**PAIR, preference=[90, 100]).preference, [[90, 100], [90, 100]])
    np.testing.assert_array_equal(Scenario(**PAIR, preference=90).preference, np.full((2, 2), 90.0))
    case = Scenario(**PAIR, preference=[[90, 100], [95, 105]])
    np.testing.assert_array_equal(case.preference, [[90, 100], [95, 105]])
    louder = case.replace(load=2 * case.load)
    np.testing.assert_array_equal(louder.preference, case.preference)
    anew = case.replace(load=2 * case.load, preference=None)
    np.testing.assert_allclose(anew.preference[:, 0] / (1 + anew.load[:, 0]), 80 * 1.15)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"load": [[0.5, 0.4], [NAN, 0.2]]}, "load[1, 0] must be finite and >= 0, got nan (window 1, home_0)"),
        ({"load": [[0.5, -0.4], [0.3, 0.2]]}, "load[0, 1] must be finite and >= 0, got -0.4 (window 0, home_1)"),
        (
            {"load": [[0.5, 0.4]]},
            "load must have shape (T + 1, n), a row for each of T >= 1 windows and one for the end",
        ),
        ({"load": [[0.5], [0.4]]}, "of n >= 2 homes; got shape (2, 1)"),
        ({"load": [0.5, 0.4]}, "got shape (2,)"),
        ({"generation": [[0.0, 1.0]]}, "generation must have shape (2, 2), as load has, got (1, 2)"),
        (
            {"generation": [[0.0, -1.0], [0, 0]]},
            "generation[0, 1] must be finite and >= 0, got -1.0 (window 0, home_1)",
        ),
        ({"preference": [90.0, 0.0]}, "preference[0, 1] must be finite and > 0, got 0.0 (window 0, home_1)"),
        ({"preference": [90.0, 80.0, 70.0]}, "preference must have shape (2, 2), as load has, got (3,)"),
        ({"loss": [0.1, 0.0]}, "loss[1] must be in (0, 1], got 0.0 (agent 1)"),
        ({"loss": [0.1, 1.0]}, "loss[1] must be below 1, got 1.0 (home_1)"),
        ({"battery_capacity": [-1.0, 0.0]}, "battery_capacity[0] must be finite and >= 0, got -1.0 (agent 0)"),
        ({"battery_power": [1.0, INF]}, "battery_power[1] must be finite and >= 0, got inf (agent 1)"),
        ({"charge_efficiency": 1.1}, "charge_efficiency[0] must be in (0, 1], got 1.1 (agent 0)"),
        ({"discharge_efficiency": 0.0}, "discharge_efficiency[0] must be in (0, 1], got 0.0 (agent 0)"),
        ({"initial_charge": [0.5, 1.5]}, "initial_charge[1] must be in [0, 1], got 1.5 (agent 1)"),
        ({"flexibility": [0.5, 1.0]}, "flexibility[1] must be below 1, got 1.0 (home_1)"),
        ({"flexibility": [0.5, 0.5, 0.5]}, "flexibility must be a scalar or of shape (2,), got shape (3,)"),
        ({"low": 80.0}, "prices out of order: buyback 80 < low 80 <= high 110 < retail 120 cents/kWh must hold"),
        ({"low": 111.0}, "prices out of order: buyback 80 < low 111 <= high 110 < retail 120 cents/kWh must hold"),
        ({"high": 120.0}, "prices out of order"),
        ({"buyback": -1.0}, "buyback must be finite and >= 0, got -1.0"),
        ({"charge_value": NAN}, "charge_value must be finite and >= 0, got nan"),
        ({"minutes": 0.0}, "minutes must be finite and > 0, got 0.0"),
        ({"start": 24.0}, "start must be an hour in [0, 24), got 24.0"),
    ],
)
def test_bad_values_are_refused(fields, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        Scenario(**(PAIR | fields))


def test_unknown_fields_are_refused():
    with pytest.raises(TypeError, match="unknown scenario field 'loads'; allowed: battery_capacity"):
        Scenario(**PAIR).replace(loads=1)
    with pytest.raises(TypeError, match="unknown scenario field 'prices'"):
        load_scenario(homes=2, windows=1, prices=1)
    with pytest.raises(TypeError, match="load must hold numbers"):
        Scenario(**(PAIR | {"load": [["a", "b"], ["c", "d"]]}))


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda case: pickle.loads(pickle.dumps(case))])
def test_copies_stay_read_only(copied):
    given_load = np.array(PAIR["load"])
    case = copied(Scenario(**(PAIR | {"load": given_load})))
    given_load[:] = 9.0
    np.testing.assert_array_equal(case.load, PAIR["load"])
    for each in dataclasses.fields(case):
        value = getattr(case, each.name)
        if isinstance(value, np.ndarray):
            with pytest.raises(ValueError, match="read-only"):
                value[...] = 0.0
    with pytest.raises(dataclasses.FrozenInstanceError):
        case.low = 1.0


# The shipped day


def test_the_shipped_day():
    case = load_scenario()
    assert scenario_names() == ["day300"]
    assert (case.size, case.windows, case.minutes, case.start, case.name) == (300, 720, 1, 7.0, "day300")
    owners = case.generation.any(axis=0)
    assert owners.sum() == 120
    assert 0 < (case.battery_capacity > 0).sum() < 300
    assert 0.2 < case.load.mean() < 1.0
    c = case.preference / (80 * (1 + case.load))
    np.testing.assert_allclose(c, np.broadcast_to(c[0], c.shape))
    assert c.min() >= 1
    assert c.max() <= 1.3


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_all_cases_occur_on_the_shipped_day(seed):
    case = load_scenario(seed=seed)
    none, general, extreme, inside = shares(case)
    assert none > 0.03
    assert general > 0.3
    assert extreme > 0.3
    assert 0.11 <= inside <= 0.25
    # Cases by their definition, from the supply (11) at the lowest price written out.
    offers, demand, market = truthful(case)
    supply = np.clip(offers.capacity - offers.preference / case.low, 0.0, offers.most).sum(axis=1)
    np.testing.assert_array_equal(market.case == rules.EXTREME, supply >= demand)
    # Sellers come with the sun and go with it, a block of windows at either end of the day.
    silent = np.flatnonzero(market.case == rules.NO_MARKET)
    assert (np.diff(silent) > 1).sum() <= 3
    assert silent.min() < 60 or silent.max() > 660


def test_fewer_homes_are_the_first_of_more():
    day, few = load_scenario(), load_scenario(homes=12, windows=100)
    np.testing.assert_allclose(few.load, day.load[:101, :12], rtol=1e-12)
    np.testing.assert_allclose(few.flexibility, day.flexibility[:12], rtol=1e-12)
    assert load_scenario(homes=310, windows=1).size == 310
    owners = few.generation.any(axis=0).sum()
    assert 3 <= owners <= 6


def test_windows_of_the_shipped_day():
    day = load_scenario(homes=2)
    quarter = load_scenario(homes=2, windows=48, minutes=15)
    np.testing.assert_allclose(quarter.load[:48], day.load[:720].reshape(48, 15, 2).mean(axis=1))
    assert quarter.hours == 0.25
    longer = load_scenario(homes=2, windows=1019)
    np.testing.assert_array_equal(longer.load[:721], day.load)
    later = load_scenario(homes=2, windows=100, start=12.0)
    np.testing.assert_array_equal(later.load, day.load[300:401])
    assert later.start == 12.0
    with pytest.raises(ValueError, match="windows missing in the data: 1020 of 1 minutes from 7 h on"):
        load_scenario(homes=2, windows=1020)
    with pytest.raises(ValueError, match="windows missing in the data"):
        load_scenario(homes=2, minutes=2)
    with pytest.raises(ValueError, match=re.escape("minutes must be a whole number >= 1, got 0.5")):
        load_scenario(homes=2, minutes=0.5)


def test_days_and_overrides():
    summer = load_scenario(homes=5, windows=60, day="2016-07-25", loss=0.2, low=85)
    assert summer.low == 85.0
    np.testing.assert_array_equal(summer.loss, 0.2)
    with pytest.raises(ValueError, match="day must be one of '2016-01-08'"):
        load_scenario(day="2016-02-30")
    with pytest.raises(ValueError, match="scenario must be one of 'day300'; got 'day'"):
        load_scenario("day")
    for wrong in (1, 0, 2.5, True):
        with pytest.raises(ValueError, match=re.escape(f"homes must be a whole number >= 2, got {wrong!r}")):
            load_scenario(homes=wrong, windows=1)
    for start in (24.0, 25):
        with pytest.raises(ValueError, match=re.escape(f"start must be an hour in [0, 24), got {start!r}")):
            load_scenario(homes=2, windows=1, start=start)


def test_profiles_are_looked_for_where_their_name_was_given(tmp_path, monkeypatch):
    """An argument from the working directory, even under the name of a shipped file; in a TOML, beside it."""
    shipped = (scenarios.folder("pem") / "simbench-2016.csv").read_text(encoding="utf-8").splitlines()
    doubled = [
        ",".join([cells[0], *(str(2.0 * float(cell)) for cell in cells[1:6]), *cells[6:]])
        for cells in (line.split(",") for line in shipped[1:])
    ]
    work, files = tmp_path / "work", tmp_path / "files"
    work.mkdir(), files.mkdir()
    (work / "mine.csv").write_text("\n".join([shipped[0], *doubled]), encoding="utf-8")
    monkeypatch.chdir(work)
    few = {"homes": 3, "windows": 5}
    usual = load_scenario(**few)
    for path in ("mine.csv", "../work/mine.csv", work / "mine.csv"):
        mine = load_scenario(profiles=path, **few)
        np.testing.assert_allclose(mine.load, 2.0 * usual.load, rtol=1e-12)
        np.testing.assert_array_equal(mine.generation, usual.generation)
        assert PEM(profiles=path, **few).scenario.load[0, 0] == mine.load[0, 0]
    with pytest.raises(ValueError, match=re.escape(f"no data file '{work / 'simbench-2016.csv'}'")):
        load_scenario(profiles="simbench-2016.csv", **few)
    (work / "simbench-2016.csv").write_text("garbage\n1\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"simbench-2016.csv: columns must be time"):
        load_scenario(profiles="simbench-2016.csv", **few)
    (files / "mine.csv").write_text("\n".join(shipped), encoding="utf-8")
    (files / "own.toml").write_text(
        '[community]\nprofiles = "mine.csv"\nday = "2016-10-13"\nhomes = 3\nwindows = 5\n', encoding="utf-8"
    )
    beside = load_scenario(files / "own.toml")
    np.testing.assert_array_equal(beside.load, load_scenario(profiles=files / "mine.csv", **few).load)
    np.testing.assert_array_equal(load_scenario("../files/own.toml").load, beside.load)
    given = load_scenario(files / "own.toml", profiles="mine.csv")
    np.testing.assert_allclose(given.load, 2.0 * beside.load, rtol=1e-12)


def test_the_whole_year_and_clear_skies(monkeypatch):
    """Another source of profiles under the same name: the same homes on other days; measured or computed PV."""
    day = load_scenario(homes=6, windows=30)
    year = measured.shipped()
    monkeypatch.setattr(scenario_module, "simbench_year", lambda: year)
    same = load_scenario(homes=6, windows=30, profiles="simbench")
    np.testing.assert_array_equal(same.load, day.load)
    pytest.importorskip("pvlib")
    sky = load_scenario(homes=6, pv="clear_sky")
    np.testing.assert_array_equal(sky.load, load_scenario(homes=6).load)
    hours = 7.0 + np.arange(721) / 60.0
    mean = (sky.generation.sum(axis=1) * hours).sum() / sky.generation.sum()
    # Solar noon of 13 October at 9.5 degrees east in summer time: 14 h - 38 min - 14 min.
    assert mean == pytest.approx(14 - 38 / 60 - 14 / 60, abs=0.6)
    assert 0.2 < sky.generation.sum() / load_scenario(homes=6).generation.sum() < 2.0
    assert PEM(homes=4, windows=3, pv="clear_sky", profiles="simbench").horizon == 3
    with pytest.raises(ValueError, match="pv must be one of 'measured', 'clear_sky'; got 'lunar'"):
        load_scenario(homes=6, pv="lunar")


def test_missing_packages_are_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "simbench", None)
    monkeypatch.setitem(sys.modules, "pvlib", None)
    with pytest.raises(ImportError, match=r"pip install 'p2penv\[simbench\]'"):
        load_scenario(homes=3, profiles="simbench")
    with pytest.raises(ImportError, match=r"pip install 'p2penv\[clearsky\]'"):
        load_scenario(homes=3, pv="clear_sky")


# Scenario files


def test_a_file_with_csvs(tmp_path):
    (tmp_path / "load.csv").write_text("a,b,c\n" + "0.5,0.6,0.7\n" * 4, encoding="utf-8")
    (tmp_path / "pv.csv").write_text("0,1,2\n" * 4, encoding="utf-8")
    path = tmp_path / "mine.toml"
    path.write_text(
        'load = "load.csv"\ngeneration = "pv.csv"\npreference = [100, 110, 120]\nminutes = 5\nloss = [0.1, 0.2, 0.3]\n',
        encoding="utf-8",
    )
    case = load_scenario(path)
    assert (case.size, case.windows, case.minutes) == (3, 3, 5.0)
    np.testing.assert_array_equal(case.generation[0], [0, 1, 2])
    some = load_scenario(path, homes=2, windows=2, seed=1)
    assert some.load.shape == (3, 2)
    # The same homes in every field.
    np.testing.assert_allclose(some.loss, 0.1 * (1 + some.generation[0]))
    np.testing.assert_allclose(some.preference[0], 100 + 10 * some.generation[0])
    for fields, message in (
        ({"windows": 4}, "windows missing in the data: 4 asked for, scenario 'custom' has 3"),
        ({"homes": 4}, "homes must be at most the 3 of scenario 'custom', got 4"),
        ({"day": "2016-07-25"}, "day '2016-07-25' cannot be chosen"),
        ({"profiles": "simbench"}, "profiles 'simbench' cannot be chosen"),
        ({"pv": "clear_sky"}, "pv 'clear_sky' cannot be chosen"),
        ({"seed": 9}, "seed belongs to a choice of homes and would do nothing here; leave it out, got 9"),
        ({"seed": 9, "windows": 2}, "seed belongs to a choice of homes and would do nothing here"),
        ({"homes": 2, "seed": -1}, "seed must be a whole number >= 0, got -1"),
        ({"homes": 1}, "homes must be a whole number >= 2, got 1"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            load_scenario(path, **fields)
        # A scenario object is chosen from like a file.
        with pytest.raises(ValueError, match=re.escape(message)):
            PEM(case, **fields)
    (tmp_path / "load.csv").write_text("a,b,c\n" + "500,600,700\n" * 4, encoding="utf-8")
    with pytest.raises(ValueError, match=r"load.csv: half of all readings of a above 0.1 kW are at least 500 kW"):
        load_scenario(path)
    path.write_text('load = "none.csv"\ngeneration = "pv.csv"\n', encoding="utf-8")
    with pytest.raises(ValueError, match="no data file"):
        load_scenario(path)


def test_choices_are_nested():
    case = Scenario.random(8, 3, 0).replace(loss=np.arange(1, 9) / 10)
    chosen = [set(case.select(homes, seed=3).loss.tolist()) for homes in range(2, 9)]
    assert all(small < large for small, large in pairwise(chosen))
    assert case.select() is case
    assert set(case.select(3, seed=4).loss) != set(case.select(3, seed=5).loss)


@pytest.mark.parametrize(
    ("text", "kind", "message"),
    [
        ("[community]\nhomes = 3\n", ValueError, "lacks day, profiles, windows"),
        (
            '[community]\nprofiles="p.csv"\nday="d"\nhomes=3\nwindows=1\nsize=1\n',
            TypeError,
            "unknown keys of [community]",
        ),
        ('[community]\nprofiles="p.csv"\nday="d"\nhomes=3\nwindows=1\n', ValueError, "no data file"),
        (
            '[community]\nprofiles="p.csv"\nday="2016-10-13"\nhomes=3\nwindows=1\npv="clear_sky"\nzone="UTC"\n',
            ValueError,
            "lacks latitude, longitude for pv 'clear_sky'",
        ),
        ("generation = [[1.0, 1.0]]\n", ValueError, "lacks load"),
        ("load = [[1.0, 1.0]]\nloads = 1\n", TypeError, "unknown fields in scenario"),
    ],
)
def test_bad_files_are_refused(tmp_path, text, kind, message):
    path = tmp_path / "bad.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(kind, match=re.escape(message)):
        load_scenario(path)


# Random days


@settings(max_examples=40, deadline=None)
@given(homes=st.integers(2, 20), windows=st.integers(1, 60), seed=st.integers(0, 2**32 - 1))
def test_random_days_of_any_size(homes, windows, seed):
    case = Scenario.random(homes, windows, seed)
    assert (case.size, case.windows) == (homes, windows)
    assert case.minutes * windows == pytest.approx(720)
    batteries = (case.battery_capacity > 0).sum()
    assert 1 <= batteries < homes
    assert (case.generation == 0).all(axis=0).any()
    np.testing.assert_array_equal(Scenario.random(homes, windows, seed).load, case.load)


def test_random_days_have_all_cases():
    found = np.mean([shares(Scenario.random(40, 72, seed)) for seed in range(10)], axis=0)
    none, general, extreme, inside = found
    assert none > 0.05
    assert general > 0.2
    assert extreme > 0.2
    assert inside > 0.05


def test_random_needs_two_homes():
    with pytest.raises(ValueError, match="homes must be a whole number >= 2, got 1"):
        Scenario.random(1, 5)
    with pytest.raises(ValueError, match="windows must be a whole number >= 1, got 0"):
        Scenario.random(2, 0)
