"""The regenerated figures of the private energy market's paper against hand-derived figures and identities."""

from __future__ import annotations

import csv
from functools import partial

import numpy as np
import pytest
from typer.testing import CliRunner

import p2penv
from p2penv.faces.runner import Runner
from p2penv.pem import load_scenario
from training import reproduce_pem
from training.cli import app

HOMES, MINUTES = 30, 12
WINDOWS = 720 // MINUTES


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    out = tmp_path_factory.mktemp("figures") / "new"
    names: list[str] = []
    paths = reproduce_pem.pem(out, names.append, homes=HOMES, minutes=MINUTES)
    return out, paths, names


def community(homes=HOMES):
    return load_scenario("day300", homes=homes, windows=WINDOWS, minutes=MINUTES)


def rows(written, name, **chosen):
    with (written[0] / f"{name}.csv").open(encoding="utf-8", newline="") as file:
        found = list(csv.DictReader(file))
    return [row for row in found if all(row[key] == value for key, value in chosen.items())]


def column(found, name):
    return np.array([float(row[name]) for row in found])


def claim(written, start):
    (found,) = (row for row in rows(written, "claims") if row["claim"].startswith(start))
    return found


def numbers(text):
    return [float(number) for number in text.split(", ")]


def nominal(scenario):
    """Net power ``(T, n)`` at base loads."""
    return scenario.generation[:-1] - scenario.load[:-1]


def test_everything_has_picture_and_table(written):
    out, paths, names = written
    assert len(paths) == len(set(paths)) == 11
    assert sorted(out.iterdir()) == sorted(paths)
    assert names == list(reproduce_pem.PARTS) == ["Figure 4", "Figure 6a", "Figure 6b", "Figure 6c", "Figure 6d"]
    for path in paths:
        start = path.read_bytes()[:8]
        assert start == b"\x89PNG\r\n\x1a\n" if path.suffix == ".png" else path.suffix == ".csv"
    left_out = claim(written, "run time")
    assert left_out["figure"] == "Figure 5, Table I"
    assert "left out" in left_out["note"]


def test_coalitions_are_the_signs_of_net_power(written):
    found, net = rows(written, "figure4-coalitions"), nominal(community())
    np.testing.assert_array_equal(column(found, "sellers"), (net > 0).sum(axis=1))
    np.testing.assert_array_equal(column(found, "buyers"), (net < 0).sum(axis=1))
    np.testing.assert_array_equal(column(found, "off_market"), (net == 0).sum(axis=1))
    np.testing.assert_allclose(column(found, "hour"), 7.0 + np.arange(WINDOWS) * MINUTES / 60.0)


def test_prices_by_the_formula_and_window_by_window(written):
    scenario, found = community(), rows(written, "figure6a-price")
    net = nominal(scenario)
    sells, supply, demand = net > 0, np.maximum(net, 0).sum(axis=1), np.maximum(-net, 0).sum(axis=1)
    k = np.where(sells, scenario.preference[:-1], 0).sum(axis=1)
    capacity = np.where(sells, scenario.generation[:-1] + 1.0, 0).sum(axis=1)
    by_hand = np.clip(np.sqrt(120.0 * k / np.maximum(capacity, 1e-9)), 90.0, 110.0)
    by_hand = np.where(supply >= demand, 90.0, by_hand)
    by_hand = np.where(supply == 0.0, 120.0, by_hand)
    np.testing.assert_allclose(column(found, "price_paper"), by_hand)
    # All windows at once are what stepping through the day gives.
    for key in ("paper", "exact"):
        env = p2penv.make_functional("pem_v0", scenario=scenario, pricing=key)
        runner = Runner(env)
        runner.reset(0)
        prices, fed = [], []
        for _ in range(WINDOWS):
            step = runner.step(np.zeros(runner.shape))
            prices.append(step.info["price"][0])
            fed.append(abs(step.info["grid_energy"][0]))
        np.testing.assert_allclose(column(found, f"price_{key}"), prices, rtol=1e-12)
        # The shorter side is traded in full: with the grid there is only what is over.
        exchange = column(rows(written, "figure6d-grid-exchange"), f"exchange_{key}")
        np.testing.assert_allclose(exchange, fed, rtol=0, atol=1e-9)
    assert (column(found, "price_exact")[supply > 0] <= 110.0).all()
    ends, first, last = claim(written, "price is ps in the first windows"), sells[0].sum(), sells[-1].sum()
    assert ends["holds"] == str(first == last == 0)
    assert f"; {first} homes sell in the first window, {last} in the last" in ends["note"]
    # The shipped PV is ahead of the sun; by the sun nobody sells before it has risen, 07:42.
    pytest.importorskip("pvlib")
    sunny = load_scenario("day300", homes=HOMES, windows=WINDOWS, minutes=MINUTES, pv="clear_sky")
    by_sun = (nominal(sunny) > 0).sum(axis=1)
    minute = 7 * 60 + MINUTES * int(np.flatnonzero(by_sun)[0])
    assert minute > 7 * 60 + 42
    text = f"ahead of the sun, by the sun under a clear sky 0 do, the first at {minute // 60:02d}:{minute % 60:02d}"
    assert text in ends["note"]
    low = claim(written, "price is p_l")
    assert float(low["ours_paper_rule"]) == pytest.approx((by_hand == 90.0).mean(), abs=5e-4)
    assert low["holds"] == "True"


def test_utility_of_the_longest_sellers(written):
    scenario = community()
    net = nominal(scenario)
    longest = np.sort((net > 0).sum(axis=0))[-2:]
    found = rows(written, "figure6b-utility")
    homes = {int(row["home"]) for row in found}
    assert sorted((net[:, home] > 0).sum() for home in homes) == longest.tolist()
    assert numbers(claim(written, "two homes")["ours_paper_rule"]) == longest[::-1].tolist()
    assert claim(written, "two homes")["holds"] == "False"
    added = {}
    for k in (20.0, 40.0):
        part = rows(written, "figure6b-utility", case=f"k = {k:g}")
        home, window = (column(part, name).astype(int) for name in ("home", "window"))
        # Loads are at their least at any price there is: k/p − 1 < 0.
        least = (1.0 - scenario.flexibility[home]) * scenario.load[window, home]
        generation = scenario.generation[window, home]
        alone = k * np.log1p(least) + 80.0 * (generation - least)
        np.testing.assert_allclose(column(part, "without"), alone, rtol=1e-12)
        for key in ("paper", "exact"):
            added[k, key] = column(part, key) - alone
            # At p_l at best for all of it.
            assert (added[k, key] >= -1e-9).all()
            assert (added[k, key] <= 10.0 * (generation - least) + 1e-9).all()
    for i, key in enumerate(("ours_paper_rule", "ours_exact_price")):
        name = ("paper", "exact")[i]
        np.testing.assert_allclose(added[20.0, name], added[40.0, name], rtol=0, atol=1e-9)
        text = numbers(claim(written, "the improvement")[key])
        assert text == pytest.approx([added[20.0, name].mean()] * 2, abs=1e-4)
    assert claim(written, "the improvement")["holds"] == "False"
    for key in ("paper", "exact"):
        assert (column(found, key) >= column(found, "without") - 1e-9).all()
    assert claim(written, "sellers' utility")["holds"] == "True"


def test_preferences_of_the_paper_have_no_price_of_their_own(written):
    scenario = community()
    sells, capacity = nominal(scenario) > 0, scenario.generation[:-1] + 1.0
    count, total = sells.sum(axis=1), np.where(sells, capacity, 0).sum(axis=1)
    highest = []
    for k in (20.0, 40.0):
        by_hand = np.sqrt(120.0 * k * count[count > 0] / total[count > 0])
        found = reproduce_pem.unclipped_price(scenario.replace(preference=k))
        np.testing.assert_allclose(found[count > 0], by_hand)
        assert (found[count == 0] == 0.0).all()
        assert by_hand.max() <= np.sqrt(120.0 * k)
        highest.append(by_hand.max())
        prices = reproduce_pem.play(scenario.replace(preference=k)).paper.price
        assert set(prices[count > 0]) == {90.0}
    assert numbers(claim(written, "k = 20, 40")["ours_paper_rule"]) == pytest.approx(highest, abs=0.005)
    assert "69.3" in claim(written, "k = 20, 40")["note"]
    assert float(claim(written, "loads of (15)")["ours_paper_rule"]) == pytest.approx(40.0 / 90.0 - 1.0, abs=5e-4)
    # With loads free to be negative the improvement from pb to p_l falls in k: derivative −log(p_l/pb).
    added = [k * np.log(80.0 / 90.0) + 10.0 * 5.0 for k in (20.0, 40.0)]
    assert added[1] < added[0]


def test_buyers_save_no_more_than_a_quarter(written):
    found = rows(written, "figure6c-buyer-cost")
    means = {}
    for key in ("paper", "exact"):
        assert (column(found, f"cut_{key}") <= 0.25 + 1e-12).all()
        assert (column(found, f"cut_{key}") >= -1e-12).all()
        means[key] = []
    for homes in (10, 20):
        scenario = community(homes)
        part = rows(written, "figure6c-buyer-cost", homes=str(homes))
        net = nominal(scenario)
        bill = 120.0 * np.maximum(-net, 0).sum(axis=1) * scenario.hours
        np.testing.assert_allclose(column(part, "cost_without"), bill, rtol=1e-12)
        for key in means:
            cut = column(part, f"cut_{key}")
            np.testing.assert_allclose(column(part, f"cost_{key}"), bill * (1.0 - cut), rtol=1e-12)
            assert (cut[(net <= 0).all(axis=1)] == 0.0).all()
            means[key].append(cut.mean())
            # The settlement's own identity: what buyers save is what the market says it saves.
            env = p2penv.make_functional("pem_v0", scenario=scenario, pricing=key)
            state = env.initial(env.params, {}, WINDOWS)._replace(time=np.arange(WINDOWS, dtype=np.int32))
            info = env.step(env.params, state, np.zeros((WINDOWS, homes, 5)), {}).info
            np.testing.assert_allclose(bill * cut, info["saving"], rtol=0, atol=1e-9)
            if key == "exact":
                np.testing.assert_allclose(cut[info["case"] == 2], 0.25, rtol=1e-12)
                assert (info["case"] == 2).any()
    lower = claim(written, "cost is 25.3%")
    for key, name in (("paper", "ours_paper_rule"), ("exact", "ours_exact_price")):
        assert numbers(lower[name]) == pytest.approx(means[key], abs=1e-4)
    assert (lower["paper"], lower["holds"]) == ("0.253", "False")
    assert "25%" in lower["note"]
    assert claim(written, "cost is lower in all")["holds"] == "False"


def test_exchange_without_a_market_is_all_net_power(written):
    scenario, found = community(), rows(written, "figure6d-grid-exchange")
    net, base = nominal(scenario), scenario.load[:-1]
    # Sellers' loads answer 80 cents/kWh, from their least to all they have.
    load = scenario.preference[:-1] / 80.0 - 1.0
    load = np.clip(load, (1.0 - scenario.flexibility) * base, scenario.generation[:-1])
    alone = np.where(net > 0, scenario.generation[:-1] - load, net)
    without = column(found, "exchange_without")
    np.testing.assert_allclose(without, np.abs(alone).sum(axis=1) * scenario.hours, rtol=1e-12)
    for i, key in enumerate(("ours_paper_rule", "ours_exact_price")):
        exchange = column(found, f"exchange_{('paper', 'exact')[i]}")
        less = 1.0 - exchange.sum() / without.sum()
        assert float(claim(written, "exchange")[key]) == pytest.approx(less, abs=5e-4)
        assert less > 0.1


def test_bad_settings_are_refused(tmp_path):
    with pytest.raises(ValueError, match="homes must be at least 6"):
        reproduce_pem.pem(tmp_path, homes=5)
    with pytest.raises(ValueError, match="minutes must divide 720, got 7"):
        reproduce_pem.pem(tmp_path, minutes=7)
    assert not list(tmp_path.iterdir())


def test_cli_regenerates(written, tmp_path, monkeypatch):
    """The figures themselves, of a small community to save time."""
    monkeypatch.setattr(reproduce_pem, "pem", partial(reproduce_pem.pem, homes=HOMES, minutes=MINUTES))
    result = CliRunner().invoke(app, ["reproduce", "pem", "--out", str(tmp_path)])
    assert result.exit_code == 0, result.output
    for path in written[1]:
        assert path.name in result.output.replace("\n", "")
        assert (tmp_path / path.name).is_file()
        if path.suffix == ".csv":
            assert (tmp_path / path.name).read_bytes() == path.read_bytes()
    (tmp_path / "taken").write_text("")
    refused = CliRunner().invoke(app, ["reproduce", "pem", "--out", str(tmp_path / "taken")])
    assert refused.exit_code == 2
    assert "--out: cannot write" in refused.output
