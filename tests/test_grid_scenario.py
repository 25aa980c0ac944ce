"""Scenarios of the network-constrained market: calibration, tables of partners, everything that is refused."""

import copy
import pickle
import re

import numpy as np
import pytest

from p2penv.core import scenarios
from p2penv.grid import Feeder, Scenario, load_scenario, profiles, rules, scenario_names

CHAIN = Feeder.from_lines("chain", "s", [("s", "1"), ("1", "2")], [0.01, 0.01], [0.02, 0.02])


def fields(**changed):
    return {
        "feeder": CHAIN,
        "bus": [1, 2, 2],
        "demand": np.full((3, 3), 4.0),
        "edges": [(0, 1), (1, 2)],
        "passive_active": np.tile([0.0, 10.0, 5.0], (3, 1)),
        "passive_reactive": 0.0,
    } | changed


def test_the_default_has_the_papers_parameters():
    scenario = load_scenario("ieee37", prosumers=40, scale="paper", density=0.6)
    assert scenario_names() == ["ieee37"]
    assert (scenario.size, scenario.hours, scenario.feeder.size) == (40, 24, 36)
    assert scenario.pairs == round(0.6 * 40 * 39 / 2)
    assert (scenario.tariff, scenario.import_min, scenario.voltage_min, scenario.voltage_max) == (0.01, 0.0, 0.95, 1.05)
    assert scenario.angle_limit == pytest.approx(np.radians(15.0))
    for name, value in (("trade_cost", 0.08), ("trade_max", 30.0), ("dispatch_linear", 0.045), ("storage_cost", 1e-4),
                        ("dispatch_quadratic", 0.002)):  # fmt: skip
        assert (getattr(scenario, name) == value).all()
    owner = scenario.storage_power > 0.0
    assert owner.sum() in (19, 20, 21)
    for name, value in (
        ("storage_power", 5.0),
        ("storage_min", 20.0),
        ("storage_max", 100.0),
        ("initial_charge", 50.0),
    ):
        np.testing.assert_array_equal(getattr(scenario, name), np.where(owner, value, 0.0))
    dispatchable = scenario.dispatch_max > 0.0
    assert dispatchable.sum() in (9, 10, 11)
    assert 20.0 <= scenario.dispatch_max[dispatchable].min() <= scenario.dispatch_max.max() <= 720.0
    peak = scenario.demand.max(axis=0)
    assert 10.0 <= peak.min() <= peak.max() <= 60.0
    np.testing.assert_allclose(scenario.grid_slope * scenario.passive_total, 0.1624)
    assert scenario.passive_total[:-1].max() == pytest.approx(0.6 * 2457.0)
    # Everything there is can flow through a line at once, and a quarter more.
    first = 1.25 * (0.6 * np.hypot(2457.0, 1201.0) + peak.sum())
    assert scenario.line_limit.max() == pytest.approx(first)
    assert scenario.import_max == pytest.approx(1.25 * (0.6 * 2457.0 + peak.sum()))
    np.testing.assert_array_equal(scenario.demand[-1], scenario.demand[0])


@pytest.mark.parametrize("prosumers", [12, 50, 200, 1000])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_households_are_feasible_without_trading(prosumers, seed):
    scenario = load_scenario(prosumers=prosumers, seed=seed)
    scenario.check_passive()
    # Who buys what the sun does not give keeps every limit, so there is a feasible day.
    state = rules.state_of(scenario, np.maximum(scenario.demand - scenario.solar, 0.0)[:-1])
    for excess in (state.line_excess, state.voltage_excess, state.angle_excess, state.import_excess):
        assert (excess == 0.0).all()
    shares = [(getattr(scenario, name) > 0.0).mean() for name in ("dispatch_max", "storage_power")]
    shares.append((scenario.solar.max(axis=0) > 0.0).mean())
    np.testing.assert_allclose(shares, [0.25, 0.5, 0.5], atol=1.0 / 12.0 + 1e-9)
    assert 0.3 < scenario.demand.max(axis=0).mean() < 3.0


@pytest.mark.parametrize("seed", range(5))
def test_fifty_businesses_are_feasible_without_trading(seed):
    scenario = load_scenario(prosumers=50, seed=seed, scale="paper")
    state = rules.state_of(scenario, np.maximum(scenario.demand - scenario.solar, 0.0)[:-1])
    for excess in (state.line_excess, state.voltage_excess, state.angle_excess, state.import_excess):
        assert (excess == 0.0).all()


def test_homes_are_businesses_in_small():
    """Equipment and costs scale with the peak load: a home's marginal costs are those of a business."""
    home = load_scenario(prosumers=30, seed=4)
    size = home.demand.max(axis=0) / profiles.MEAN_PEAK
    business = load_scenario(prosumers=30, seed=4, scale="paper")
    np.testing.assert_allclose(home.dispatch_max, size * business.dispatch_max)
    np.testing.assert_allclose(home.dispatch_quadratic * size, business.dispatch_quadratic)
    np.testing.assert_allclose(home.storage_max, size * business.storage_max)
    np.testing.assert_allclose(home.storage_power, size * business.storage_power)
    np.testing.assert_allclose(home.trade_max, 30.0 * size[home.edges].max(axis=1))
    np.testing.assert_array_equal(home.edges, business.edges)


def test_small_communities_begin_large_ones():
    small, large = (load_scenario(prosumers=n, seed=7) for n in (12, 60))
    for name in ("bus", "dispatch_max", "storage_max"):
        np.testing.assert_array_equal(getattr(small, name), getattr(large, name)[:12])
    np.testing.assert_array_equal(small.demand, large.demand[:, :12])
    np.testing.assert_array_equal(small.solar, large.solar[:, :12])
    again = load_scenario(prosumers=12, seed=7)
    for name, value in again.params._asdict().items():
        np.testing.assert_array_equal(value, getattr(small.params, name))
    assert (load_scenario(prosumers=12, seed=8).demand != small.demand).any()


@pytest.mark.parametrize(
    ("options", "slots"), [({"partners": 2}, 2), ({}, 4), ({"partners": 6}, 6), ({"density": 1.0}, 29)]
)
def test_partners(options, slots):
    scenario = load_scenario(prosumers=30, seed=1, **options)
    assert scenario.slots == slots
    partner, reverse, pair = scenario.partner, scenario.reverse, scenario.pair
    for i in range(30):
        known = set()
        for k in range(slots):
            j = partner[i, k]
            if j < 0:
                assert reverse[i, k] == pair[i, k] == 0
                continue
            known.add(j)
            assert partner[j, reverse[i, k]] == i
            assert pair[j, reverse[i, k]] == pair[i, k]
            assert sorted((i, j)) == scenario.edges[pair[i, k]].tolist()
            assert scenario.params.mirror[i * slots + k] == j * slots + reverse[i, k]
        assert known == set(scenario.edges[(scenario.edges == i).any(axis=1)].ravel()) - {i}
    # Everybody can reach everybody.
    reached, edge = {0}, [set(pair) for pair in scenario.edges.tolist()]
    for _ in range(30):
        reached |= set().union(*(each for each in edge if each & reached))
    assert len(reached) == 30


def test_options_of_the_community_and_fields():
    scenario = load_scenario(prosumers=5, day="2016-07-25", dispatch_share=1.0, storage_power=2.0, trade_cost=0.0,
                             tariff=0.05, storage_share=1.0, power_factor=0.9, passive_level=0.3)  # fmt: skip
    size = scenario.demand.max(axis=0) / profiles.MEAN_PEAK
    assert (scenario.dispatch_max > 0.0).all()
    np.testing.assert_allclose(scenario.storage_power, 2.0 * size)
    assert (scenario.trade_cost == 0.0).all()
    assert scenario.tariff == 0.05
    assert scenario.passive_total.max() == pytest.approx(0.3 * 2457.0)
    np.testing.assert_allclose(scenario.reactive_demand, np.tan(np.arccos(0.9)) * scenario.demand)
    plain = scenario.replace(reactive=False)
    assert not plain.params.reactive_demand.any()
    assert not plain.params.passive_reactive.any()
    # Arrays replace what the community made.
    mine = load_scenario(prosumers=3, storage_power=[1.0, 2.0, 3.0], storage_share=1.0)
    np.testing.assert_array_equal(mine.storage_power, [1.0, 2.0, 3.0])


def test_files_of_ones_own(tmp_path):
    folder = scenarios.folder("grid")
    text = (folder / "ieee37.toml").read_text(encoding="utf-8")
    for name in ("ieee37.csv", "simbench-business-2016.csv"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    path = tmp_path / "mine.toml"
    path.write_text(text.replace("prosumers = 12", "prosumers = 7").replace("tariff = 0.01", "tariff = 0.02"), "utf-8")
    mine = load_scenario(path)
    assert (mine.size, mine.tariff) == (7, 0.02)
    np.testing.assert_array_equal(mine.demand, load_scenario(prosumers=7).demand)
    for change, error, message in (
        (("partners = 4", "friends = 4"), TypeError, "unknown keys of [community]"),
        (("partners = 4", ""), ValueError, "[community] in scenario"),
        (("tariff =", "tarif ="), TypeError, "unknown fields in scenario"),
        (("[community]", "[people]"), ValueError, "lacks a table [community]"),
        (("0.56, 0.52,", "0.56,"), ValueError, "passive_shape must be 24 values >= 0"),
        (("0.56, 0.52,", "0.56, -1.0,"), ValueError, "passive_shape must be 24 values >= 0"),
        (("0.56, 0.52,", "0.56, 0.0,"), ValueError, "passive load of hour 1 must be > 0"),
    ):
        path.write_text(text.replace(*change), encoding="utf-8")
        with pytest.raises(error, match=re.escape(message)):
            load_scenario(path)


def test_businesses_are_read_as_they_are(tmp_path):
    day = profiles.business_day("2016-10-13")
    assert day.shape == (24, 13)
    assert (day >= 0.0).all()
    assert (day <= 1.0).all()
    text = (scenarios.folder("grid") / "simbench-business-2016.csv").read_text(encoding="utf-8")
    path = tmp_path / "b.csv"
    path.write_text(text.replace("G0-A", "G9-A"), encoding="utf-8")
    with pytest.raises(ValueError, match=r"b\.csv: columns must be time, G0-A"):
        profiles.business_day("2016-10-13", path)
    with pytest.raises(ValueError, match=r"day must be one of '2016-01-08', .*; got '2016-10-14'"):
        profiles.business_day("2016-10-14")
    notice = (scenarios.folder("grid") / "README.md").read_text(encoding="utf-8")
    for words in ("Open Database License", "Database Contents License", "opendatacommons.org/licenses/odbl/1.0",
                  "Copyright (c) 2019-2021 by University of Kassel", "simbench` 1.6.1", "Kersting"):  # fmt: skip
        assert words in notice
    simbench = pytest.importorskip("simbench")
    load = simbench.get_all_simbench_profiles(0)["load"]
    rows = load["time"].str.startswith("13.10.2016").to_numpy()
    year = load.loc[rows, [f"{name}_pload" for name in profiles.BUSINESSES]].to_numpy()
    np.testing.assert_allclose(day, year.reshape(24, 4, -1).mean(axis=1), atol=5.1e-5)


def test_copies_stay_read_only_and_equal():
    scenario = load_scenario(prosumers=6)
    for other in (copy.deepcopy(scenario), pickle.loads(pickle.dumps(scenario)), scenario.replace(name="x")):
        np.testing.assert_array_equal(other.demand, scenario.demand)
        with pytest.raises(ValueError, match="read-only"):
            other.demand[0, 0] = 1.0
        with pytest.raises(ValueError, match="read-only"):
            other.params.demand[0, 0] = 1.0
    with pytest.raises(TypeError, match=r"unknown scenario field 'tarif'; allowed: .*tariff"):
        scenario.replace(tarif=1.0)


def test_scenarios_built_in_code():
    scenario = Scenario(**fields(bus=["1", "2", "2"], trade_cost=[[0.1, 0.2], [0.3, 0.4]], trade_max=[1.0, 2.0]))
    np.testing.assert_array_equal(scenario.bus, [1, 2, 2])
    np.testing.assert_allclose(scenario.grid_slope, 0.1624 / 15.0)
    assert scenario.agents == ["prosumer_0", "prosumer_1", "prosumer_2"]
    np.testing.assert_array_equal(scenario.params.trade_max, [[1.0, 0.0], [1.0, 2.0], [2.0, 0.0]])
    given = Scenario(**fields(passive_active=0.0, grid_slope=[0.1, 0.2, 0.3]))
    np.testing.assert_array_equal(given.grid_slope, [0.1, 0.2, 0.3])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"demand": np.ones((3, 1))}, "demand must have shape (H + 1, N)"),
        ({"demand": np.ones(3)}, "demand must have shape (H + 1, N)"),
        ({"demand": np.where(np.eye(3), np.nan, 1.0)}, "demand must be finite and >= 0, got nan (hour 0, prosumer_0)"),
        ({"demand": np.where(np.eye(3)[::-1], -1.0, 1.0)}, "got -1.0 (hour 0, prosumer_2)"),
        ({"solar": np.ones((2, 3))}, "solar must have shape (3, 3), got (2, 3)"),
        ({"solar": -1.0}, "solar must be finite and >= 0, got -1.0 (hour 0, prosumer_0)"),
        ({"bus": [1, 2, 9]}, "bus[2] must be a bus of feeder 'chain' other than the source, in [0, 2] without 0"),
        ({"bus": [1, 0, 2]}, "bus[1] must be a bus of feeder 'chain' other than the source"),
        ({"bus": ["1", "2", "x"]}, "bus must be one of 's', '1', '2'; got 'x'"),
        ({"bus": [1, 2]}, "bus must have shape (3,), one for each prosumer, got (2,)"),
        ({"passive_active": np.ones((3, 2))}, "passive_active must have shape (3, 3), got (3, 2)"),
        ({"passive_reactive": np.inf}, "passive_reactive must be finite, got inf (hour 0, bus_0)"),
        ({"passive_active": np.tile([0.0, 1.0, -1.0], (3, 1))}, "passive load of hour 0 must be > 0"),
        ({"passive_active": -1.0}, "passive load of hour 0 must be > 0 for the grid's price 0.1624/b, got -3.0 kW"),
        ({"grid_slope": [0.1, 0.0, 0.1]}, "grid_slope must be finite and > 0, got 0.0 (hour_1)"),
        ({"grid_slope": [0.1, 0.1]}, "grid_slope must be a scalar or of shape (3,), one for each hour, got (2,)"),
        ({"edges": [(1, 0)]}, "edges[0] must be two prosumers i < j in [0, 2], got (1, 0)"),
        ({"edges": [(0, 3)]}, "edges[0] must be two prosumers i < j in [0, 2], got (0, 3)"),
        ({"edges": [(0, 1), (0, 1)]}, "edges[1] = (0, 1) is there twice"),
        ({"edges": []}, "edges must be whole numbers of shape (M, 2) with M >= 1"),
        ({"trade_cost": [0.1, 0.2, 0.3]}, "trade_cost must be a scalar or of shape (2,) or (2, 2), got (3,)"),
        ({"trade_cost": [0.1, -0.2]}, "trade_cost must be finite and >= 0, got -0.2 (pair 1, side_0)"),
        ({"trade_max": [0.0, 1.0]}, "trade_max must be finite and > 0, got 0.0 (pair_0)"),
        ({"dispatch_max": [1.0, np.nan, 1.0]}, "dispatch_max[1] must be finite and >= 0, got nan (agent 1)"),
        ({"dispatch_quadratic": [1.0, 1.0]}, "dispatch_quadratic must be a scalar or of shape (3,), got shape (2,)"),
        ({"storage_max": 5.0, "initial_charge": 6.0}, "initial_charge[0] = 6 exceeds storage_max[0] = 5"),
        ({"storage_max": 5.0, "storage_min": 2.0, "initial_charge": 1.0}, "storage_min[0] = 2 exceeds initial"),
        ({"charge_efficiency": 0.0}, "charge_efficiency[0] must be in (0, 1], got 0.0"),
        ({"leakage": 1.1}, "leakage[0] must be in (0, 1], got 1.1"),
        ({"leakage": 0.5, "storage_min": 9.0, "initial_charge": 9.0, "storage_max": 9.0, "storage_power": 1.0},
         "storage_power[0] cannot make up for what leaks at storage_min (prosumer_0)"),
        ({"tariff": -0.1}, "tariff must be finite and >= 0, got -0.1"),
        ({"lost_load": np.nan}, "lost_load must be finite and >= 0, got nan"),
        ({"angle_limit": 0.0}, "angle_limit must be finite and > 0, got 0.0"),
        ({"step_hours": 0.0}, "step_hours must be finite and > 0, got 0.0"),
        ({"power_factor": 0.0}, "power_factor must be in (0, 1], got 0.0"),
        ({"import_min": 5.0, "import_max": 4.0}, "import_max must be at least import_min = 5, got 4.0"),
        ({"import_max": np.nan}, "import_max must be at least import_min = 0, got nan"),
        ({"line_limit": [1.0, 0.0]}, "line_limit of line 1-2 must be > 0, got 0.0"),
        ({"line_limit": [1.0, np.nan]}, "line_limit of line 1-2 must be > 0, got nan"),
        ({"line_limit": [1.0]}, "line_limit must be a scalar or of shape (2,), got (1,)"),
        ({"voltage_min": 1.02}, "voltage_min in (0, 1) and voltage_max > 1"),
        ({"voltage_max": 0.99}, "voltage_min in (0, 1) and voltage_max > 1"),
    ],
)  # fmt: skip
def test_bad_fields_are_refused(change, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        Scenario(**fields(**change))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"feeder": "ieee37"}, "feeder must be a Feeder, got str"),
        ({"bus": [1.0, 2.0, 2.0]}, "bus must hold indices or names of buses"),
        ({"reactive": 1}, "reactive must be True or False, got 1"),
        ({"export": "no"}, "export must be True or False, got 'no'"),
        ({"tariff": "x"}, "tariff must be a number, got 'x'"),
        ({"demand": "x"}, "demand must hold numbers, got 'x'"),
    ],
)
def test_wrong_kinds_are_refused(change, message):
    with pytest.raises(TypeError, match=re.escape(message)):
        Scenario(**fields(**change))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"name": "ieee13"}, ValueError, "scenario must be one of 'ieee37'; got 'ieee13'"),
        ({"prosumers": 1}, ValueError, "prosumers must be at least 2, got 1"),
        ({"prosumers": 2.5}, ValueError, "prosumers must be a whole number >= 1, got 2.5"),
        ({"seed": -1}, ValueError, "seed must be a whole number >= 0, got -1"),
        ({"scale": "towns"}, ValueError, "scale must be one of 'households', 'paper'; got 'towns'"),
        ({"partners": 1}, ValueError, "partners must be at least 2"),
        ({"density": 0.0}, ValueError, "density must be in (0, 1], got 0.0"),
        ({"density": 0.5, "partners": 3}, ValueError, "partners and density exclude each other"),
        ({"day": "2016-10-14"}, ValueError, "got '2016-10-14'"),
        ({"solar_share": 1.5}, ValueError, "solar_share must be in [0, 1], got 1.5"),
        ({"peak": (60.0, 10.0)}, ValueError, "peak must be two values 0 < low <= high, got (60.0, 10.0)"),
        ({"passive_level": 0.0}, ValueError, "passive_level must be finite and > 0, got 0.0"),
        ({"line_margin": -1.0}, ValueError, "line_margin must be finite and > 0, got -1.0"),
        ({"price_level": np.nan}, ValueError, "price_level must be finite and > 0, got nan"),
        ({"storage_power": -1.0}, ValueError, "storage_power must be finite and >= 0, got -1.0"),
        ({"dispatch_quadratic": np.nan}, ValueError, "dispatch_quadratic must be finite and >= 0, got nan"),
        ({"tarif": 1.0}, TypeError, "unknown scenario field 'tarif'"),
    ],
)
def test_bad_options_are_refused(options, error, message):
    with pytest.raises(error, match=re.escape(message)):
        load_scenario(**options)


def test_passive_loads_that_are_too_much():
    scenario = load_scenario(prosumers=4, passive_level=1.4)
    with pytest.raises(
        ValueError, match=r"the passive loads alone exceed a limit: voltage of bus 740 by 0\.0077\d* p\.u\."
    ):
        scenario.check_passive()
    with pytest.raises(ValueError, match="exceed a limit: line 799-701 by"):
        load_scenario(prosumers=4).replace(line_limit=500.0).check_passive()
    with pytest.raises(ValueError, match="exceed a limit: import at 799 by"):
        load_scenario(prosumers=4, import_max=300.0).check_passive()


def test_reactive_power_of_prosumers_is_no_passive_load():
    """It turns angles back, so that a feeder may carry prosumers' demand and not be left without."""
    scenario = load_scenario(prosumers=20, scale="paper", power_factor=0.5)
    alone = rules.passive_state(scenario, slice(None))
    with_theirs = rules.state_of(scenario, np.zeros((25, 20)), slice(None))
    between = 0.5 * float(np.abs(alone.angle).max() + np.abs(with_theirs.angle).max())
    assert np.abs(with_theirs.angle).max() < between
    with pytest.raises(ValueError, match="the passive loads alone exceed a limit: angle of bus"):
        scenario.replace(angle_limit=between).check_passive()
    assert alone.grid_reactive.max() == pytest.approx(0.6 * 1201.0)
