"""Privacy measures against hand work, scipy's optimisers, randomised response and the mechanism's own guarantee."""

import array_api_compat.torch
import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import optimize, special

from p2penv.dpvcg import finite, rules
from p2penv.dpvcg.privacy import Accountant, epsilon_lower_bound, privacy_loss, worst_loss
from p2penv.dpvcg.rules import Bids, Bounds

BIDS = Bids(
    np.array([-0.00125, -0.006, -0.0067, -0.0022, -0.0013, -0.001]),
    np.array([0.125, 0.216, 0.2975, 0.0056, 0.0076, 0.003]),
    np.array([-0.5937, -0.93, -2.305, 0.0, 0.0, 0.0]),
)
BOUNDS = Bounds(np.array([5.0, 5, 10, -20, -25, -30]), np.array([15.0, 18, 25, 0, 0, 0]))


def replaced(agent, quadratic, linear):
    mine = np.arange(6) == agent
    return Bids(np.where(mine, quadratic, BIDS.quadratic), np.where(mine, linear, BIDS.linear), BIDS.constant)


# Exact losses.


@pytest.mark.parametrize("xp", [np, jax.numpy, array_api_compat.torch])
def test_privacy_loss_by_hand(xp):
    first = xp.asarray(np.array([[0.5, 0.5, 0.0], [0.2, 0.8, 0.0], [0.5, 0.0, 0.5]], np.float32))
    second = xp.asarray(np.array([[0.25, 0.75, 0.0], [0.2, 0.8, 0.0], [0.5, 0.5, 0.0]], np.float32))
    np.testing.assert_allclose(np.asarray(privacy_loss(first, second)), [np.log(2.0), 0.0, np.inf], rtol=1e-6)
    assert float(privacy_loss(first[0], second[0])) == pytest.approx(np.log(2.0), rel=1e-6)


def test_the_optimum_in_the_range_gives_privacy_away():
    points = finite.draw_range(BOUNDS, 10, 0).points
    lie = replaced(2, 0.9 * BIDS.quadratic[2], 0.9 * BIDS.linear[2])
    optima = [rules.clear(bids, BOUNDS).allocation for bids in (BIDS, lie)]
    assert np.abs(optima[0] - optima[1]).max() > 0.1
    # Laws on the union of both ranges: 10 points and two optima, each of them in one range only.
    laws = [
        finite.probabilities(finite.with_optimum(points, best), bids, 0.5)
        for best, bids in zip(optima, (BIDS, lie), strict=True)
    ]
    union = [np.append(laws[0], 0.0), np.insert(laws[1], 10, 0.0)]
    assert privacy_loss(*union) == np.inf
    without = [finite.probabilities(points, bids, 0.5) for bids in (BIDS, lie)]
    assert privacy_loss(*without) < 0.5 * np.ptp(0.1 * rules.value(BIDS, points)[:, 2])


def grid_loss(weights, statistics, low, high, beta, count):
    axes = [np.linspace(start, end, count) for start, end in zip(low, high, strict=True)]
    reports = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, len(low))
    exponent = beta * reports @ statistics + np.log(weights)
    chance = exponent - special.logsumexp(exponent, axis=1, keepdims=True)
    return np.ptp(chance, axis=0).max()


@pytest.mark.parametrize("width", [1, 2])
@pytest.mark.parametrize("beta", [0.1, 1.0, 8.0])
def test_worst_pair_against_grids_and_scipy(width, beta):
    rng = np.random.default_rng(width)
    inside = 0
    for _ in range(6):
        weights, statistics = rng.exponential(size=25), rng.normal(size=(width, 25))
        low = rng.uniform(-2, 0, width)
        high = low + rng.uniform(0.1, 3, width)
        found = worst_loss(weights, statistics, low, high, beta)
        grid = grid_loss(weights, statistics, low, high, beta, 501 if width == 1 else 61)
        assert grid <= found.bound
        assert found.loss == pytest.approx(found.bound, abs=1e-7)
        # A local search from the pair itself and from random pairs finds nothing better, and something as good.
        point = found.point

        def loss(pair, point=point, weights=weights, statistics=statistics):
            exponent = beta * pair.reshape(2, -1) @ statistics
            chance = exponent[:, point] - special.logsumexp(exponent + np.log(weights), axis=1)
            return chance[1] - chance[0]

        box = [*zip(low, high, strict=True)] * 2
        starts = [found.reports.ravel(), *(rng.uniform([*low, *low], [*high, *high]) for _ in range(5))]
        best = max(-optimize.minimize(loss, start, bounds=box, options={"ftol": 1e-15}).fun for start in starts)
        assert -loss(found.reports.ravel()) == pytest.approx(found.loss, abs=1e-12)
        assert best <= found.bound
        assert best == pytest.approx(found.loss, abs=1e-6)
        inside += bool(((found.reports > low) & (found.reports < high)).any())
    # With two parameters the likeliest report may lie inside an edge; with one the worst pair is both ends.
    assert inside == 0 if width == 1 else (beta < 8.0 or inside > 0)


@pytest.mark.parametrize("kind", ["scale", "coefficients"])
def test_worst_pair_of_the_market_keeps_the_guarantee(kind):
    # β = ε/ω: no pair of declared reports may lose more than ε, and the worst pair is a real one.
    support = finite.draw_range(BOUNDS, 60, 1)
    epsilon = 0.8
    for agent in range(6):
        own = np.array([BIDS.quadratic[agent], BIDS.linear[agent]])
        if kind == "scale":
            low, high = np.array([0.5]), np.array([1.5])
            omega = rules.scale_sensitivity(BIDS, BOUNDS, 1.0)[agent]
        else:
            low, high = own - 0.5 * np.abs(own), own + 0.5 * np.abs(own)
            width = np.full(6, high[0] - low[0]), np.full(6, high[1] - low[1])
            omega = rules.coefficient_sensitivity(*width, BOUNDS)[agent]
        beta = epsilon / omega
        family = finite.residual(support.points, BIDS, beta, agent)
        rows = np.stack([family.quantity**2, family.quantity])
        found = worst_loss(family.weight, own[None] @ rows if kind == "scale" else rows, low, high, beta)
        assert 0.1 < found.loss <= found.bound <= epsilon
        laws = []
        for report in found.reports:
            pair = report[0] * own if kind == "scale" else report
            laws.append(finite.probabilities(support.points, replaced(agent, *pair), beta))
        assert privacy_loss(*laws) == pytest.approx(found.loss, abs=1e-10)
        assert np.log(laws[0] / laws[1])[found.point] == pytest.approx(found.loss, abs=1e-10)


@pytest.mark.parametrize("epsilon", [0.1, 1.0, 5.0])
def test_epsilon_is_not_larger_than_it_must_be(epsilon):
    """A point that the others hardly want is told apart by all of ε, the oscillation of v_i − v_i' over its limits."""
    for agent in range(6):
        peak = np.clip(-0.5 * BIDS.linear[agent] / BIDS.quadratic[agent], BOUNDS.low[agent], BOUNDS.high[agent])
        y = np.array([BOUNDS.low[agent], peak, BOUNDS.high[agent]])
        value = BIDS.quadratic[agent] * y**2 + BIDS.linear[agent] * y
        beta = epsilon / rules.scale_sensitivity(BIDS, BOUNDS, 1.0)[agent]
        value = np.array([value.min(), value.max()])
        found = worst_loss(np.array([1e-6, 1.0]), value[None], np.array([0.5]), np.array([1.5]), beta)
        assert 0.999 * epsilon < found.loss <= epsilon


@given(st.integers(0, 10**6), st.integers(1, 2), st.floats(0.0, 20.0), st.integers(1, 30))
def test_no_pair_loses_more(seed, width, beta, size):
    rng = np.random.default_rng(seed)
    weights = np.where(rng.random(size) < 0.2, 0.0, rng.exponential(size=size))
    weights[0] = 1.0
    statistics = rng.normal(size=(width, size)) * rng.uniform(0, 3)
    low = rng.uniform(-2, 0, width)
    high = low + rng.uniform(0, 3, width)
    found = worst_loss(weights, statistics, low, high, beta)
    reports = rng.uniform(low, high, (400, width))
    edge = rng.random(reports.shape)
    reports = np.where(edge < 0.3, low, np.where(edge > 0.7, high, reports))
    exponent = beta * reports @ statistics[:, weights > 0]
    chance = exponent - special.logsumexp(exponent + np.log(weights[weights > 0]), axis=1, keepdims=True)
    assert np.ptp(chance, axis=0).max() <= found.bound + 1e-12
    assert found.loss <= found.bound <= found.loss + 1e-7 * (1.0 + found.loss)
    # β times the oscillation of what reports may differ by is the guarantee.
    corners = np.abs(high - low) @ np.abs(statistics)
    assert found.loss <= beta * 2.0 * corners.max() + 1e-9


def test_worst_loss_refuses_bad_input():
    good = {"weights": np.ones(3), "statistics": np.ones((1, 3)), "low": [0.0], "high": [1.0], "beta": 1.0}
    for changed, message in (
        ({"statistics": np.ones(3)}, r"statistics must have shape \(k, m\) with k = 1 or 2 and weights \(m,\)"),
        ({"weights": [1.0, -1.0, 1.0]}, "weights finite, >= 0 and not all zero"),
        ({"weights": np.zeros(3)}, "not all zero"),
        ({"statistics": np.full((1, 3), np.nan)}, "must be finite"),
        ({"low": [2.0]}, "exceeds"),
        ({"beta": np.nan}, "beta must be finite"),
    ):
        with pytest.raises(ValueError, match=message):
            worst_loss(**{**good, **changed})


# Audits.


def responses(epsilon, truth, size, rng):
    """Randomised response, whose privacy loss is ε exactly."""
    keep = rng.random(size) < special.expit(epsilon)
    return np.where(keep, truth, 1 - truth)


@pytest.mark.parametrize("epsilon", [0.2, 1.0, 3.0])
def test_audit_of_randomised_response(epsilon):
    rng = np.random.default_rng(0)
    first, second = responses(epsilon, 0, 200_000, rng), responses(epsilon, 1, 200_000, rng)
    found = epsilon_lower_bound(first, second, "points")
    assert epsilon - 0.06 < found <= epsilon
    assert epsilon_lower_bound(first.astype(float), second.astype(float), "score") == pytest.approx(found)


def test_audit_of_laplace_noise():
    # The loss of a shift by 1 under scale 1 is 1, reached by half-lines of the quantity itself.
    rng = np.random.default_rng(1)
    found = epsilon_lower_bound(rng.laplace(0.0, 1.0, 200_000), rng.laplace(1.0, 1.0, 150_000), "score")
    assert 0.9 < found <= 1.0


def test_audit_finds_disjoint_supports():
    first, second = np.zeros(20_000, int), np.ones(20_000, int)
    # 10⁴ of 10⁴ against 0 of 10⁴: the interval alone limits what can be said.
    assert epsilon_lower_bound(first, second, "points") > 6.0


def test_audit_of_the_market():
    support = finite.draw_range(BOUNDS, 30, 2)
    lie = replaced(2, 0.1 * BIDS.quadratic[2], 0.1 * BIDS.linear[2])
    rng = np.random.default_rng(2)
    chances = [finite.probabilities(support.points, bids, 2.0) for bids in (BIDS, lie)]
    exact = privacy_loss(*chances)
    draws = [finite.choose(np.tile(chance, (100_000, 1)), rng.random(100_000)) for chance in chances]
    by_points = epsilon_lower_bound(*draws, "points")
    assert 0.5 * exact < by_points <= exact
    scores = [rules.value(BIDS, support.points[index])[:, 2] for index in draws]
    assert 0.5 * exact < epsilon_lower_bound(*scores, "score") <= exact


@pytest.mark.parametrize("event", ["points", "score"])
def test_audit_holds_at_its_confidence(event):
    # Equal laws at 80 % confidence: what is found must be 0 (or below the true ε) in at least 80 % of the trials.
    rng = np.random.default_rng(3)
    wrong = 0
    for _ in range(200):
        draws = rng.integers(0, 5, (2, 400)) if event == "points" else rng.normal(size=(2, 400))
        wrong += epsilon_lower_bound(*draws, event, confidence=0.8) > 0.0
    assert wrong <= 0.2 * 200


def test_audit_refuses_bad_input():
    draws = np.array([0, 1, 2, 3])
    for arguments, message in (
        ((draws, draws, "sets"), "event must be one of"),
        ((draws, draws, "points", 1.0), "confidence must be below 1"),
        ((draws, draws, "points", 1.5), r"confidence must be in \(0, 1\]"),
        ((draws[:1], draws, "points"), r"first must hold at least two draws \(N,\), got shape \(1,\)"),
        ((draws, draws - 1, "points"), r"second\[0\] must be an index >= 0 into the range, got -1.0"),
        ((draws, draws + 0.5, "points"), "must be an index"),
        ((draws, np.array([1.0, np.nan]), "score"), r"second\[1\] must be finite, got nan"),
    ):
        with pytest.raises(ValueError, match=message):
            epsilon_lower_bound(*arguments)


# Accounting.


def test_accountant():
    accountant = Accountant()
    assert accountant.spent() == 0.0
    assert accountant.spend(0.5) == 0.5
    assert accountant.spend(0.25) == 0.75
    assert accountant.rounds == 2
    assert accountant.spent(coalition=3) == 2.25
    for wrong in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="epsilon must be > 0"):
            accountant.spend(wrong)
    with pytest.raises(ValueError, match="coalition must be a whole number >= 1"):
        accountant.spent(0)
    assert accountant.rounds == 2
    # A release that hides nothing.
    assert accountant.spend(float("inf")) == float("inf")
