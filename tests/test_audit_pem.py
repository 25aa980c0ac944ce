"""The audit of truthfulness in the private energy market: figures by hand, scans through the environment."""

from __future__ import annotations

import json

import numpy as np
import pytest
from typer.testing import CliRunner

import p2penv
from p2penv.pem import Scenario
from training import truthfulness_pem as checks
from training.cli import app

P0 = float(np.sqrt(120.0 * 84.0))  # (13) at k = 84 S
FIRST, SECOND, THIRD, BUYER, SELLER, STEEP, STEEP_LOW = (each.name for each in checks.deviations())


@pytest.fixture(scope="module")
def worked():
    return {(each.case, each.pricing): each for each in checks.worked()}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


# Worked deviations.


def value(ratio, price):
    """Of the best load of a seller with S = 5, k = ratio·S: k·log(k/p) + p·S − k."""
    return 5.0 * (ratio * np.log(5.0 * ratio / price) + price - ratio)


@pytest.mark.parametrize(
    ("case", "ratio", "others", "percent", "best"),
    [(FIRST, 84.0, 1.19, 11.08, 11.765), (SECOND, 60.0, 1.99, 26.53, 26.533)],
)
def test_sellers_that_overstate_their_preference(worked, case, ratio, others, percent, best):
    found = worked[case, "paper"]
    before = max(np.sqrt(120.0 * ratio), 90.0)
    after = min(np.sqrt(120.0 * ratio * others), 110.0)
    assert (found.price, found.price_told) == (pytest.approx(before), pytest.approx(after))
    sales = before * 5.0 * (1.0 - ratio / before)
    assert found.gain == pytest.approx((value(ratio, after) - value(ratio, before)) / sales, rel=1e-9)
    assert 100.0 * found.gain == pytest.approx(percent, abs=0.005)
    # At best the price is at its upper end.
    assert found.best == pytest.approx((value(ratio, 110.0) - value(ratio, before)) / sales, rel=1e-6)
    assert 100.0 * found.bound == pytest.approx(best, abs=2e-3)
    # The exact price leaves out who asks for more than anybody pays; bound delivery takes the sales away, too.
    for pricing, most in (("exact", 0.1), ("exact_bound", 0.0025)):
        assert worked[case, pricing].price_told == pytest.approx(before)
        assert 100.0 * worked[case, pricing].bound < most
    assert abs(worked[case, "exact"].gain) < 1e-9
    grid = value(ratio, max(80.0, ratio))  # nothing sold, or to the grid alone
    assert worked[case, "exact_bound"].gain == pytest.approx((grid - value(ratio, before)) / sales, rel=1e-9)


def test_buyer_that_overstates_its_demand(worked):
    fill = 30.0 / (99.0 + 1.0 / 0.3)
    bill = 120.0 - 0.3 * (120.0 - P0)
    gain = (120.0 - P0) * (fill / 0.3 - 0.3) / bill
    best = (120.0 - P0) * 0.7 / bill  # all it needs
    for pricing in checks.PRICINGS:  # binding sellers' delivery does not bind buyers
        found = worked[THIRD, pricing]
        assert found.gain == pytest.approx(gain, rel=1e-9)
        assert found.best == pytest.approx(best, rel=1e-6)
        assert found.bound == pytest.approx(best, rel=1e-4)
    assert 100.0 * gain == pytest.approx(11.63, abs=0.005)


def test_pivotal_homes_flip_the_case(worked):
    buyer, seller = worked[BUYER, "paper"], worked[SELLER, "paper"]
    assert (buyer.price, buyer.price_told) == (pytest.approx(P0), 90.0)
    assert (seller.price, seller.price_told) == (90.0, pytest.approx(P0))
    bill = 0.99 * P0 + 0.01 * 120.0
    assert buyer.gain == pytest.approx((bill - 0.9 * 90.0 - 0.1 * 120.0) / bill, rel=1e-6)
    assert seller.gain == pytest.approx((0.9 * P0 + 0.1 * 80.0 - 90.0) / 90.0, rel=1e-6)
    assert (100.0 * buyer.gain, 100.0 * seller.gain) == (pytest.approx(7.6, abs=0.06), pytest.approx(9.3, abs=0.05))
    for case in (BUYER, SELLER):
        for pricing in ("exact", "exact_bound"):  # the price is that of short supply already
            assert worked[case, pricing].gain < 0.0
            assert worked[case, pricing].bound < worked[case, "paper"].bound


@pytest.mark.parametrize(
    ("case", "ratio", "k", "capacity", "percent"),
    [(STEEP, 84.0, 25.5, 21.14, 1.87), (STEEP_LOW, 60.0, 61.0, 40.64, 0.92)],
)
def test_what_bound_delivery_leaves(worked, case, ratio, k, capacity, percent):
    found = worked[case, "exact_bound"]
    before, after = found.price, found.price_told
    assert after > before + 0.5
    # It owes Ŝ − k̂/p, consumes the rest of S.
    due = 5.0 * capacity - 5.0 * ratio * k / after
    told = 5.0 * ratio * np.log(5.0 - due) + after * due
    sales = before * (5.0 - 5.0 * ratio / before)
    assert found.gain == pytest.approx((told - value(ratio, before)) / sales, rel=1e-6)
    assert 100.0 * found.gain == pytest.approx(percent, abs=0.01)
    assert (found.best, found.bound) == (None, None)  # searched for on request


def test_gains_are_in_order_and_searched_together_on_request(worked, monkeypatch):
    assert len(worked) == 5 * 3 + 2
    for each in worked.values():
        assert each.certified is (None if each.best is None else True)
        if each.best is not None:
            assert each.gain - 1e-12 <= each.best <= each.bound + 1e-12
            assert each.best >= -1e-12
        assert each.row()["claim"] == 0.0
    slow = checks.deviations()[-2]
    homes = checks.identical(4, 1, 84.0, 1.0, 80.0)
    small = slow._replace(homes=homes, cap=0.5, scales={"preference": 1.2, "capacity": 1.1})
    monkeypatch.setattr(checks, "deviations", lambda: [small])
    names: list[str] = []
    (found,) = checks.worked(joint=True, report=names.append)
    assert names == [slow.name]
    assert found.gain <= found.best <= found.bound


# Regret on a scenario.


@pytest.mark.parametrize("pricing", checks.PRICINGS)
@pytest.mark.parametrize("response", ["best", "agent"])
def test_regret_is_that_of_a_scan_through_the_environment(pricing, response):
    scenario = Scenario.random(6, 12, seed=4)
    env = p2penv.make_functional(
        "pem_v0", scenario=scenario, pricing=pricing, response=response, preference_cap=1.0, capacity_cap=0.7,
        demand_cap=1.5, charge_value=0.0,
    )  # fmt: skip
    found = checks.audit(env, 4, seed=1, pricings=(pricing,))
    marks = np.linspace(-1.0, 1.0, 2001)
    state = env.initial(env.params, {}, marks.size)
    seen = set()
    for c, window in enumerate(found.windows):
        state = state._replace(time=np.full(marks.size, window, np.int32))
        for agent in range(6):
            best = 0.0
            for field in (2, 3) if found.role[c, agent] > 0.0 else (4,):
                actions = np.zeros((marks.size, 6, 5))
                actions[:, agent, field] = marks
                reward = env.step(env.params, state, actions, {}).reward[:, agent] / scenario.hours
                best = max(best, reward.max() - reward[marks.size // 2])
            assert best <= found.bound[0, c, agent] + 1e-9
            # Neighbouring reports are a thousandth apart: what the search finds beyond them is little.
            assert found.gain[0, c, agent] == pytest.approx(best, abs=0.25)
            assert found.gain[0, c, agent] >= best - checks.TOLERANCE
            assert found.bound[0, c, agent] <= found.gain[0, c, agent] + checks.TOLERANCE + 1e-9
            seen.add(found.role[c, agent])
    assert {1.0, -1.0} <= seen
    assert found.gain.max() > 0.1


def test_payments_and_shares():
    scenario = Scenario.random(5, 12, seed=2)
    env = p2penv.make_functional("pem_v0", scenario=scenario, demand_cap=1.0)
    found = checks.audit(env, 12, pricings=("exact",))
    assert found.windows.tolist() == list(range(12))
    info = env.step(
        env.params,
        env.initial(env.params, {}, 12)._replace(time=np.arange(12, dtype=np.int32)),
        np.zeros((12, 5, 5)),
        {},
    ).info
    np.testing.assert_allclose(found.payment[0], info["payment"] / scenario.hours, rtol=1e-12, atol=1e-12)
    np.testing.assert_array_equal(found.role, info["role"])
    # Sellers' reports have no cap.
    assert (found.gain[0][found.role > 0] == 0.0).all()
    (total,) = found.totals()
    buys = found.role < 0
    bill = found.payment[0][buys].sum()
    assert total["buyers_gain"] == pytest.approx(found.gain[0][buys].sum() / bill)
    assert total["sellers_gain"] == total["sellers_certificate"] == 0.0
    rows = found.rows()
    np.testing.assert_allclose([row["regret_exact"] for row in rows], found.gain[0].mean(axis=0))
    half = 1.96 * np.std(found.gain[0, :, 1], ddof=1) / np.sqrt(12)
    assert rows[1]["interval_95_exact"] == pytest.approx(half)
    assert (checks.audit(env, 1, pricings=("exact",)).interval == 0.0).all()


def test_windows_are_sampled_by_the_seed():
    env = p2penv.make_functional("pem_v0", scenario=Scenario.random(3, 300, seed=0))
    first, again, other = (checks.audit(env, 30, seed).windows for seed in (0, 0, 1))
    assert first.tolist() == again.tolist() != other.tolist()
    assert len(set(first.tolist())) == 30
    assert ((first >= 0) & (first < 300)).all()
    assert len(checks.audit(env).windows) == checks.WINDOWS


def test_fields_together_gain_no_less():
    env = p2penv.make_functional(
        "pem_v0", scenario=Scenario.random(4, 6, seed=7), pricing="paper", preference_cap=0.5, capacity_cap=0.5
    )
    single, joint = (checks.audit(env, 3, pricings=("paper",), joint=joint) for joint in (False, True))
    assert (joint.bound >= single.gain - 1e-9).all()
    assert (joint.gain >= single.gain - checks.JOINT_TOLERANCE).all()
    assert joint.gain.max() > 0.0


# Command line.


def run_cli(*arguments):
    return CliRunner().invoke(app, ["audit", "truthfulness", *arguments])


def test_cli(folder):
    options = ("-o", "homes=6", "-o", "windows=30", "-o", "minutes=24", "--contexts", "3")
    result = run_cli("pem", *options, "--json", "found.json")
    assert result.exit_code == 0, result.output
    text = " ".join(result.output.split())
    assert "the paper claims 0" in text
    assert "seller reports 20 k, paper 100.40 109.52 +11.08 11.765 11.765" in text
    assert max(map(len, result.output.splitlines())) <= 80
    assert "…" not in text
    assert "cents/h" in text
    stored = json.loads((folder / "found.json").read_text())
    assert stored["market"] == "pem_v0"
    assert stored["options"]["preference_cap"] == 3.0
    assert [row["pricing"] for row in stored["rules"]] == list(checks.PRICINGS)
    assert len(stored["worked"]) == 17
    assert len(stored["agents"]) == 6
    assert len(stored["windows"]) == 3
    assert all(row[f"certificate_{p}"] >= row[f"regret_{p}"] for row in stored["agents"] for p in checks.PRICINGS)
    result = run_cli("pem", *options, "-o", "pricing=exact", "-o", "demand_cap=0", "--json", "one.json")
    assert result.exit_code == 0, result.output
    stored = json.loads((folder / "one.json").read_text())
    (total,) = stored["rules"]
    assert (total["pricing"], total["buyers_gain"]) == ("exact", 0.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("pem", "--learn"), "--learn is there for dpvcg; not for pem"),
        (("dpvcg", "--joint"), "--joint is there for pem; not for dpvcg"),
        (("communication",), "audit truthfulness is there for dpvcg, pem; not for communication"),
        (("pem", "-o", "leader=agent"), "leader must be 'rule'"),
        (("pem", "-o", "windows=4", "--contexts", "5"), "windows must be at most the 4 of scenario 'day300', got 5"),
        (("pem", "--contexts", "0"), "windows must be a whole number >= 1"),
        (("pem", "--seed", "-1"), "seed must be"),
        (("pem", "-o", "pricing=best"), "pricing must be one of"),
        (("pem", "-o", "homes=1000000000", "-o", "colour=1"), "unknown option 'colour'"),
        (("pem", "--steps", "3"), "give --learn too"),
    ],
)
def test_cli_refuses_with_one_clear_line(arguments, message):
    result = run_cli(*arguments)
    assert result.exit_code == 2
    assert message in " ".join(result.output.replace("│", " ").split())
