"""Exact draws of the continuous exponential mechanism, against quadrature, plain rejection and closed forms."""

import array_api_compat.torch
import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from p2penv.core.params import cast
from p2penv.dpvcg import continuous, rules, sampling
from p2penv.dpvcg.quadrature import make_quadrature
from p2penv.dpvcg.rules import Bids, Bounds

SIX = Bids(
    np.array([-0.00125, -0.006, -0.0067, -0.0022, -0.0013, -0.001]),
    np.array([0.125, 0.216, 0.2975, 0.0056, 0.0076, 0.003]),
    np.array([-0.5937, -0.93, -2.305, 0.0, 0.0, 0.0]),
)
BOUNDS = Bounds(np.array([5.0, 5, 10, -20, -25, -30]), np.array([15.0, 18, 25, 0, 0, 0]))


def check(draws, bounds):
    assert np.abs(draws.sum(axis=-1)).max() <= 1e-9
    assert np.all((draws >= bounds.low) & (draws <= bounds.high))


def scores(draws, bids, bounds, beta):
    """Standard scores of mean quantities, squares and welfare against quadrature."""
    law = continuous.moments(make_quadrature(bounds, bids, beta), bids, beta)
    worth = rules.value(bids, draws)
    gaps = [(draws, law.quantity), (worth, law.value), (worth.sum(axis=-1), law.welfare)]
    return np.concatenate(
        [np.atleast_1d((sample.mean(0) - mean) / (sample.std(0) / len(sample) ** 0.5)) for sample, mean in gaps]
    )


@pytest.mark.parametrize("beta", [0.0, 0.005, 0.5, 50.0, 5000.0])
def test_a_million_draws_match_quadrature(beta):
    draws = sampling.sample(SIX, BOUNDS, beta, 10**6, np.random.default_rng(1))
    assert draws.shape == (10**6, 6)
    check(draws, BOUNDS)
    assert np.abs(scores(draws, SIX, BOUNDS, beta)).max() < 4


@pytest.mark.parametrize("beta", [0.0, 2.0])
def test_plain_rejection_gives_the_same_laws(beta):
    rng = np.random.default_rng(2)
    plain = rng.uniform(BOUNDS.low, BOUNDS.high, (400_000, 6))
    plain[:, 3] = plain[:, 3] - plain.sum(axis=1)
    plain = plain[(plain[:, 3] >= -20) & (plain[:, 3] <= 0)]
    welfare = rules.value(SIX, plain).sum(axis=1)
    plain = plain[rng.random(len(plain)) < np.exp(beta * (welfare - rules.clear(SIX, BOUNDS).welfare))]
    assert len(plain) > 5000
    draws = sampling.sample(SIX, BOUNDS, beta, len(plain), rng)
    together = [(plain, draws), (plain @ np.arange(6), draws @ np.arange(6))]
    together.append(tuple(rules.value(SIX, y).sum(axis=1) for y in (plain, draws)))
    columns = [(a[:, i], b[:, i]) for i in range(6) for a, b in together[:1]] + together[1:]
    assert min(stats.ks_2samp(*pair).pvalue for pair in columns) > 1e-3


@pytest.mark.parametrize("beta", [1e-12, 1e-6, 1e-4, 1e-3, 0.01])
def test_single_laws_at_any_stiffness(beta):
    # Uniforms on a grid: what is drawn follows the law, computed by numerical integration.
    bids, bounds = Bids(*(field[:, None] for field in SIX)), Bounds(BOUNDS.low[:, None], BOUNDS.high[:, None])
    for theta in (-3.0, -0.1, 0.0, 1e-9, 0.2, 40.0):
        laws = sampling._laws(bids, bounds, beta, np.array(theta))
        uniforms = np.linspace(0, 1, 4001)
        drawn, ratio = sampling._propose(laws, np.broadcast_to(uniforms, (6, 4001)))
        assert np.all((drawn >= bounds.low) & (drawn <= bounds.high))
        nodes, weights = np.polynomial.legendre.leggauss(100)
        y = 0.5 * (bounds.low + bounds.high) + 0.5 * (bounds.high - bounds.low) * nodes
        log = beta * rules.value(bids, y) - theta * y
        mass = weights * np.exp(log - log.max(axis=1, keepdims=True))
        exact = (mass * y).sum(axis=1) / mass.sum(axis=1)
        # The trapezoidal rule in the uniforms; ratios make up for what an exponential is off.
        panel = np.exp(ratio)
        ours = np.trapezoid(panel * drawn, uniforms, axis=1) / np.trapezoid(panel, uniforms, axis=1)
        np.testing.assert_allclose(ours, exact, rtol=0, atol=2e-3 * np.ptp(BOUNDS))


def test_far_tails_are_right():
    # A narrow normal far outside the interval: an exponential with its correction, or the lower tail.
    for distance in (5.0, 25.0, 29.9, 30.1, 200.0, 1e5):
        for sign in (-1.0, 1.0):
            bids = Bids(np.array([-0.5]), np.array([sign * distance]), np.zeros(1))
            bounds = Bounds(np.minimum(-sign, 0.0)[None], np.maximum(-sign, 0.0)[None])
            laws = sampling._laws(bids, bounds, 1.0, np.zeros(1))
            assert laws.exponential[0] == (distance > 30)
            uniforms = (np.arange(20_000)[:, None] + 0.5) / 20_000
            drawn, ratio = sampling._propose(laws, uniforms)
            nodes, weights = np.polynomial.legendre.leggauss(60)
            t = 20 / distance * (1 + nodes)  # beyond 40 scales there is nothing
            mass = weights * np.exp(-distance * t - 0.5 * t * t) * (t < 1)
            weight = np.exp(ratio[:, 0])
            ours = (weight * np.abs(drawn[:, 0])).sum() / weight.sum()
            tolerance = 1e-3 if distance > 25 else 2e-2  # t < 1 cuts a panel
            assert ours == pytest.approx((mass * t).sum() / mass.sum(), rel=tolerance)


@pytest.mark.parametrize(("size", "draws"), [(3, 10**5), (20, 10**5), (100, 10**4), (10_000, 2)])
def test_any_number_of_agents(size, draws):
    rng = np.random.default_rng(size)
    sellers = size // 2
    buyers = size - sellers
    bids = Bids(-rng.uniform(0.001, 0.01, size), rng.uniform(0.0, 0.3, size), rng.normal(size=size))
    low, high = (
        np.r_[-np.ones(buyers), -rng.uniform(5, 25, sellers)],
        np.r_[rng.uniform(5, 15, buyers), np.ones(sellers)],
    )
    bounds = Bounds(low, high)
    found = sampling.sample(bids, bounds, 3.0, draws, rng)
    assert found.shape == (draws, size)
    check(found, bounds)
    if size < 1000:
        assert np.abs(scores(found, bids, bounds, 3.0)).max() < 4.5


@settings(max_examples=25)
@given(st.integers(2, 12), st.integers(0, 10**6), st.sampled_from([0.0, 1e-6, 1.0, 1e3, 1e7]))
def test_draws_are_feasible_everywhere(size, seed, beta):
    rng = np.random.default_rng(seed)
    bids = Bids(-(10.0 ** rng.uniform(-4, 0, size)), rng.normal(size=size), rng.normal(size=size))
    centre, width = rng.normal(size=size), 10.0 ** rng.uniform(-1, 2, size)
    centre -= centre.sum() * width / width.sum()
    bounds = Bounds(centre - width, centre + width)
    check(sampling.sample(bids, bounds, beta, 50, rng), bounds)
    check(sampling.from_uniforms(bids, bounds, beta, rng.random((8, 5, size))), bounds)


def test_large_beta_gives_the_efficient_allocation():
    draws = sampling.sample(SIX, BOUNDS, 1e9, 1000, 0)
    assert np.abs(draws - rules.clear(SIX, BOUNDS).allocation).max() < 1e-2


def test_seeds_repeat():
    one, other, third = (sampling.sample(SIX, BOUNDS, 0.5, 10, seed) for seed in (5, 5, 6))
    assert np.array_equal(one, other)
    assert not np.array_equal(one, third)


@pytest.mark.parametrize("beta", [0.0, 0.05, 5.0, 500.0])
def test_fixed_noise_draws_from_the_same_law(beta):
    tries = sampling.proposals_needed(SIX, BOUNDS, beta)
    assert 5 < tries < 100
    rng = np.random.default_rng(3)
    draws = sampling.from_uniforms(SIX, BOUNDS, beta, rng.random((60_000, tries, 6)))
    check(draws, BOUNDS)
    assert np.abs(scores(draws, SIX, BOUNDS, beta)).max() < 4


@pytest.mark.parametrize("beta", [0.05])  # a large β would reject nearly everything
def test_how_single_laws_are_drawn_does_not_matter(monkeypatch, beta):
    """Exponentials in place of all normals: what the ratio of the two has to make up for is then large."""
    monkeypatch.setattr(sampling, "NARROW", {64: 1e9})
    draws = sampling.sample(SIX, BOUNDS, beta, 300_000, np.random.default_rng(1))
    assert np.abs(scores(draws, SIX, BOUNDS, beta)).max() < 4
    draws = sampling.from_uniforms(SIX, BOUNDS, beta, np.random.default_rng(2).random((20_000, 60, 6)))
    assert np.abs(scores(draws, SIX, BOUNDS, beta)).max() < 4


@pytest.mark.parametrize("beta", [0.5, 20.0])
def test_proposals_are_accepted_by_the_residual_agent_s_density(beta):
    """One proposal each; the uniform at which it is no longer taken is the density over its largest value."""
    theta = continuous.saddle(SIX, BOUNDS, beta).theta
    last = int(sampling._residual_agent(sampling._laws(SIX, BOUNDS, beta, theta[..., None])))
    best = rules.clear(SIX, BOUNDS).allocation
    uniforms = np.random.default_rng(0).random((400, 1, 6))

    def drawn(level):
        uniforms[:, 0, last] = level
        found = sampling.from_uniforms(SIX, BOUNDS, beta, uniforms)
        return found, (found != best).any(axis=-1)

    found, possible = drawn(np.zeros(400))
    low, high = np.zeros(400), np.ones(400)
    for _ in range(50):
        middle = 0.5 * (low + high)
        taken = drawn(middle)[1]
        low, high = np.where(taken, middle, low), np.where(taken, high, middle)
    quantity = found[possible, last]
    assert 100 < quantity.size < 400

    def value(y):
        return (SIX.quadratic[last] * y + SIX.linear[last]) * y

    # Up to the tilt, a factor exp(−θy), and a constant, that density is exp(βv).
    rest = np.log(low[possible]) - beta * value(quantity)
    slope, constant = np.polyfit(quantity, rest, 1)
    np.testing.assert_allclose(rest, slope * quantity + constant, rtol=0, atol=1e-9)
    y = np.linspace(BOUNDS.low[last], BOUNDS.high[last], 100_001)
    assert (beta * value(y) + slope * y + constant).max() == pytest.approx(0.0, abs=1e-7)


def test_proposals_needed_are_what_is_observed():
    # One proposal alone: how often none is accepted, and the efficient allocation is given instead.
    rng = np.random.default_rng(4)
    for beta in (0.0, 5.0):
        few = sampling.proposals_needed(SIX, BOUNDS, beta, failure=0.01)
        draws = sampling.from_uniforms(SIX, BOUNDS, beta, rng.random((40_000, few, 6)))
        fallback = np.all(draws == rules.clear(SIX, BOUNDS).allocation, axis=-1)
        check(draws[~fallback], BOUNDS)
        assert 0.001 < fallback.mean() < 0.0115
    more = Bids(*(np.stack([field, 2.0 * field]) for field in SIX))
    both = [sampling.proposals_needed(Bids(*(f[row] for f in more)), BOUNDS, 5.0) for row in (0, 1)]
    assert sampling.proposals_needed(more, BOUNDS, 5.0) == max(both)


def test_rows_have_their_own_reports_on_every_backend():
    rng = np.random.default_rng(5)
    bids = Bids(*(field * rng.uniform(0.5, 1.5, (7, 6)) for field in SIX))
    uniforms, beta = rng.random((7, 30, 6)), np.linspace(0.0, 30.0, 7)
    expected = sampling.from_uniforms(bids, BOUNDS, beta, uniforms)
    for row in range(7):
        own = Bids(*(field[row] for field in bids))
        np.testing.assert_allclose(
            sampling.from_uniforms(own, BOUNDS, beta[row], uniforms[row]), expected[row], rtol=1e-9, atol=1e-9
        )
    torch = array_api_compat.torch
    there = sampling.from_uniforms(cast(bids, torch), cast(BOUNDS, torch), torch.asarray(beta), torch.asarray(uniforms))
    np.testing.assert_allclose(there.numpy(), expected, rtol=1e-8, atol=1e-8)
    with jax.enable_x64(True):
        there = jax.jit(sampling.from_uniforms)(
            cast(bids, jax.numpy), cast(BOUNDS, jax.numpy), jax.numpy.asarray(beta), jax.numpy.asarray(uniforms)
        )
        np.testing.assert_allclose(np.asarray(there), expected, rtol=1e-8, atol=1e-8)


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="size must be a whole number >= 1, got 0"):
        sampling.sample(SIX, BOUNDS, 0.5, 0)
    with pytest.raises(ValueError, match="beta must be"):
        sampling.sample(SIX, BOUNDS, -0.5, 3)
