"""What misreports gain: closed forms and certified searches against dense grids and a generic optimiser."""

from functools import cache

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize

from p2penv.dpvcg import mechanisms, rules
from p2penv.dpvcg.equilibrium import (
    best_misreport,
    efficient_allocation,
    exploitability,
    gains,
    regret,
    vcg_payments,
)
from p2penv.dpvcg.mechanisms import ExponentialMechanism, LaplaceMechanism, VCGMechanism
from p2penv.dpvcg.rules import Bids
from p2penv.dpvcg.scenario import Scenario, load_scenario
from p2penv.dpvcg.typespace import TypeSpace, with_report

CASE = load_scenario()
SPACES = {"coefficients": TypeSpace.group(CASE), "scale": TypeSpace.scalings(CASE)}


@cache
def made(name, kind="coefficients"):
    space = SPACES[kind]
    if name == "vcg":
        return VCGMechanism(CASE, space=space)
    if name == "laplace":
        return LaplaceMechanism(CASE, 2.0, space=space, samples=64)
    drawn = {"range_size": 40} if name == "finite" else {}
    return ExponentialMechanism(CASE, 3.0, name, space=space, **drawn)


def profile(space, seed, shape=()):
    """Report parameters anywhere in the box."""
    return np.random.default_rng(seed).uniform(space.low, space.high, (*shape, *space.low.shape))


def deviations(space, parameters, agent, points):
    """Profiles in which one agent reports the points ``(m, k)``."""
    many = np.tile(parameters, (len(points), 1, 1))
    many[:, agent] = points
    return rules.report_bids(space.scenario.bids, many)


def grid(space, agent, size):
    axes = [np.linspace(*ends, size) for ends in zip(space.low[agent], space.high[agent], strict=True)]
    return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, space.statistics)


def payoff(mechanism, kind, bids, true, agent):
    """What the agent gets, from allocation and payments."""
    if isinstance(mechanism, ExponentialMechanism):
        law = mechanism.law_of(bids, true)
        return (law.true_value - mechanisms.payments(law, kind))[..., agent]
    found = rules.pivots(bids, CASE.bounds)
    return (rules.value(true, found.clearing.allocation) - found.payment)[..., agent]


CASES = [
    ("vcg", "vcg"),
    ("continuous", "entropy"),
    ("continuous", "algorithm3"),
    ("finite", "entropy"),
    ("finite", "algorithm3"),
]


def row(bids, index):
    return Bids(*(field[index] for field in bids))


@pytest.mark.parametrize("kind", ["scale", "coefficients"])
@pytest.mark.parametrize(("name", "payments"), CASES)
def test_gains_against_dense_search(name, payments, kind):
    """The others report anything, and types are anything in the box: grid, then a generic optimiser from its best."""
    mechanism, space = made(name, kind), SPACES[kind]
    reports, types = profile(space, 1), profile(space, 2)
    bids, true = (rules.report_bids(CASE.bids, p) for p in (reports, types))
    agents = [0, 2, 4] if name == "continuous" else range(6)
    found = gains(mechanism, bids, true, payments)
    for agent in agents:
        now = payoff(mechanism, payments, bids, true, agent)
        points = np.concatenate([grid(space, agent, {"scale": 101, "coefficients": 12}[kind]), types[None, agent]])
        values = payoff(mechanism, payments, deviations(space, reports, agent, points), true, agent) - now

        def loss(point, agent=agent, now=now):
            return now - payoff(mechanism, payments, row(deviations(space, reports, agent, [point]), 0), true, agent)

        start = points[values.argmax()]
        limits = list(zip(space.low[agent], space.high[agent], strict=True))
        unit = space.high[agent] - space.low[agent]
        refined = minimize(
            lambda x, start=start, unit=unit, loss=loss: loss(start + x * unit),
            np.zeros(len(start)),
            method="L-BFGS-B",
            bounds=[((low - s) / u, (high - s) / u) for (low, high), s, u in zip(limits, start, unit, strict=True)],
            options={"maxfun": 60},
        )
        best = max(values.max(), -refined.fun, 0.0)
        assert best <= found.gain[agent] + 1e-9
        assert found.gain[agent] <= best + 1e-6
        assert found.gain[agent] <= found.bound[agent] <= found.gain[agent] + 1.0001e-8
        # The report found is in the box and gains what it says.
        report = found.report[agent]
        assert ((report >= space.low[agent] - 1e-12) & (report <= space.high[agent] + 1e-12)).all()
        assert -loss(report) == pytest.approx(found.gain[agent], abs=1e-9)
    if payments == "algorithm3":
        assert (found.gain > 1e-6).any()


@pytest.mark.parametrize(("name", "payments"), [*CASES, ("laplace", "vcg")])
def test_gains_at_the_truth(name, payments):
    """None under VCG and entropy payments, some under Algorithm 3, within the bounds proven."""
    mechanism = made(name)
    found = exploitability(mechanism, kind=payments)
    assert (found >= 0).all()
    assert (found <= mechanism.regret_bound(payments) + 1e-9).all()
    if name != "laplace" and payments != "algorithm3":
        assert found.tolist() == [0.0] * 6
    if payments == "algorithm3":
        assert found.max() > 1e-4


@given(st.integers(0, 10**6), st.sampled_from([("vcg", "vcg"), ("finite", "entropy"), ("finite", "algorithm3")]))
def test_no_random_misreport_beats_the_best(seed, which):
    """Also on other markets; the gain of lying is never negative, and truth is one of the reports."""
    name, payments = which
    case = Scenario.random(2, 3, seed % 5)
    mechanism = VCGMechanism(case) if name == "vcg" else other_market(seed % 5)
    space = TypeSpace.scalings(case, 0.2, 3.0)
    reports, types = profile(space, seed, (3,)), profile(space, seed + 1, (3,))
    bids, true = (rules.report_bids(case.bids, p) for p in (reports, types))
    found = gains(mechanism, bids, true, payments, [seed % 5])
    agent = seed % 5
    other = reports.copy()
    other[:, agent] = profile(space, seed + 2, (3,))[:, agent]
    lie = rules.report_bids(case.bids, other)
    if name == "vcg":
        pivots = rules.pivots(bids, case.bounds), rules.pivots(lie, case.bounds)
        now, then = (rules.value(true, p.clearing.allocation) - p.payment for p in pivots)
    else:
        laws = mechanism.law_of(bids, true), mechanism.law_of(lie, true)
        now, then = (law.true_value - mechanisms.payments(law, payments) for law in laws)
    assert ((then - now)[:, agent] <= found.bound[:, agent] + 1e-11).all()
    assert (found.gain[:, agent] >= 0).all()


@cache
def other_market(seed):
    case = Scenario.random(2, 3, seed)
    return ExponentialMechanism(case, 5.0, "finite", space=TypeSpace.scalings(case, 0.2, 3.0), range_size=15, seed=seed)


def test_best_misreport_and_regret_agree():
    mechanism = made("finite")
    for agent in (0, 3):
        found = best_misreport(mechanism, agent)
        assert found.gain == pytest.approx(regret(mechanism, agent, found.report), abs=1e-9)
        assert found.gain <= found.bound <= found.gain + 1.0001e-8
        assert found.gain == pytest.approx(exploitability(mechanism)[agent], abs=2e-8)
    # Against others who lie, and from a report of one's own that is no good.
    reports = with_report(CASE, 2, [-0.006, 0.2])
    found = best_misreport(mechanism, 2, reports)
    lied = mechanism.payoffs(reports=reports)[2]
    best = with_report(CASE, 2, found.report, reports)
    assert found.gain == pytest.approx(mechanism.payoffs(reports=best)[2] - lied, abs=1e-9)
    assert found.gain > 0


@pytest.mark.parametrize("name", ["vcg", "finite", "continuous"])
def test_batched_gains_equal_single_ones(name):
    mechanism, space = made(name, "scale"), SPACES["scale"]
    bids, true = (rules.report_bids(CASE.bids, profile(space, seed, (2, 2))) for seed in (5, 6))
    for kind in mechanisms.PAYMENTS[mechanism.kind]:
        found = gains(mechanism, bids, true, kind)
        assert found.gain.shape == (2, 2, 6)
        for index in ((0, 1), (1, 0)):
            one = gains(mechanism, row(bids, index), row(true, index), kind)
            np.testing.assert_allclose(found.gain[index], one.gain, atol=2e-8)
            np.testing.assert_allclose(found.bound[index], one.bound, atol=2e-8)


def test_chosen_agents_only():
    found = gains(made("finite"), CASE.bids, agents=[1, 5])
    assert np.isfinite(found.gain).tolist() == [False, True, False, False, False, True]


@pytest.mark.parametrize("kind", ["scale", "coefficients"])
def test_gains_under_laplace_noise(kind):
    """On the fixed draws: found ≤ any other report's gain ≤ bound, what one would gain with one's own noise gone."""
    mechanism, space = made("laplace", kind), SPACES[kind]
    reports, types = profile(space, 3), profile(space, 4)
    bids, true = (rules.report_bids(CASE.bids, p) for p in (reports, types))
    found = gains(mechanism, bids, true, agents=[1, 3])
    now = mechanism.payoffs_at(reports, true)
    for agent in (1, 3):
        points = grid(space, agent, {"scale": 101, "coefficients": 15}[kind])
        many = np.tile(reports, (len(points), 1, 1))
        many[:, agent] = points
        values = mechanism.payoffs_at(many, true)[:, agent] - now[agent]
        assert 0 <= found.gain[agent] <= found.bound[agent]
        assert values.max() <= found.bound[agent]
        assert found.gain[agent] >= values.max() - 5e-3
        changed = reports.copy()
        changed[agent] = found.report[agent]
        assert mechanism.payoffs_at(changed, true)[agent] - now[agent] == pytest.approx(found.gain[agent], abs=1e-12)
    # Noise aside, the bound is what VCG gives for the truth against noisy others, one draw after another.
    if kind == "coefficients":
        drawn = reports + mechanism.scale * mechanism.draws
        others = Bids(np.minimum(drawn[..., 0], -1e-6), drawn[..., 1], np.tile(CASE.bids.constant, (64, 1)))
        own = np.arange(6) == 1
        honest = Bids(*(np.where(own, right, lie) for right, lie in zip(true, others, strict=True)))
        free = payoff(made("vcg"), "vcg", honest, true, 1).mean()
        assert found.bound[1] == pytest.approx(max(free - now[1], found.gain[1]), abs=1e-10)


def test_the_efficient_allocation_and_its_payments():
    assert efficient_allocation(CASE).welfare == pytest.approx(1.568237, abs=5e-7)
    np.testing.assert_allclose(vcg_payments(CASE).sum(), -0.8365, atol=5e-5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: regret(made("vcg"), 6, 1.0), "agent must be a whole number from 0 to 5, got 6"),
        (lambda: regret(made("vcg"), 0, -1.0), "report of consumer_0 must be concave"),
        (lambda: regret(made("finite"), 0, 0.9), "report of consumer_0 is outside the declared type space"),
        (lambda: regret(made("finite"), 0, float("nan")), "agent 0 must be finite, got nan"),
        (lambda: regret(made("finite"), 0, 1.0, "vcg"), "must be one of 'algorithm3', 'entropy'; got 'vcg'"),
        (lambda: best_misreport(made("vcg"), "consumer_0"), "agent must be a whole number .* got 'consumer_0'"),
        (lambda: best_misreport(made("vcg"), 0, kind="entropy"), "must be one of 'vcg'; got 'entropy'"),
        (lambda: exploitability(made("vcg"), np.ones(5)), r"scales \(6,\) or coefficients \(6, 2\), got \(5,\)"),
        (
            lambda: exploitability(ExponentialMechanism(CASE, 1.0, "finite", paper_compat=True)),
            "the range of paper_compat moves with the reports",
        ),
    ],
)
def test_refusals(call, message):
    with pytest.raises(ValueError, match=message):
        call()
