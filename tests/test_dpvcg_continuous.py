"""Law of the continuous exponential mechanism: scipy quadrature, closed forms, Monte Carlo, published figures."""

from fractions import Fraction
from math import comb, factorial

import array_api_compat.torch
import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate

from p2penv.core.params import cast
from p2penv.dpvcg import continuous, fourier, panels, rules
from p2penv.dpvcg.quadrature import PANEL_AGENTS, make_quadrature
from p2penv.dpvcg.rules import Bids, Bounds

SIX = Bids(
    np.array([-0.00125, -0.006, -0.0067, -0.0022, -0.0013, -0.001]),
    np.array([0.125, 0.216, 0.2975, 0.0056, 0.0076, 0.003]),
    np.array([-0.5937, -0.93, -2.305, 0.0, 0.0, 0.0]),
)
BOUNDS = Bounds(np.array([5.0, 5, 10, -20, -25, -30]), np.array([15.0, 18, 25, 0, 0, 0]))


def market(size, seed=0):
    """A random market that clears inside without any one of its agents."""
    rng = np.random.default_rng(seed)
    sellers = size // 2
    buyers = size - sellers
    bids = Bids(
        -rng.uniform(0.001, 0.01, size),
        np.r_[rng.uniform(0.1, 0.3, buyers), rng.uniform(0.0, 0.02, sellers)],
        rng.normal(size=size),
    )
    low = np.r_[rng.uniform(-1.0, 0.0, buyers), -rng.uniform(10, 25, sellers)]
    high = np.r_[rng.uniform(8, 15, buyers), rng.uniform(0.1, 1.0, sellers)]
    return bids, Bounds(low, high)


def without(fields, agent):
    return type(fields)(*(np.delete(field, agent) for field in fields))


def scipy_integral(bids, bounds, beta):
    """Integrals of exp(βW) times 1, W and each y over the polytope of two to four agents, by scipy."""
    low, high = bounds
    size = low.size

    def point(free):
        return np.array([*free, -sum(free)])

    def limits(*outer):
        # scipy asks for the innermost first: what is fixed already comes in as arguments.
        index = size - 2 - len(outer)
        fixed, later = sum(outer), [*range(index), size - 1]
        return max(low[index], -fixed - high[later].sum()), min(high[index], -fixed - low[later].sum())

    def integral(function):
        def integrand(*free):
            y = point(free)
            return function(y) * np.exp(beta * rules.value(bids, y).sum())

        ranges = [limits for _ in range(size - 1)]
        return integrate.nquad(integrand, ranges, opts={"epsabs": 1e-9, "epsrel": 1e-9, "limit": 20})[0]

    return integral


@pytest.mark.parametrize(("size", "beta"), [(2, 0.7), (3, 0.0), (3, 2.0)])
def test_small_markets_match_scipy(size, beta):
    bids, bounds = market(size)
    bounds = Bounds(np.minimum(bounds.low, 0.0), np.maximum(bounds.high, 0.0))
    law = continuous.law(make_quadrature(bounds, bids, beta, 1e-12), bids, beta)

    def expected(bids, bounds):
        integral = scipy_integral(bids, bounds, beta)
        mass = integral(lambda y: 1.0)
        uniform = scipy_integral(bids, bounds, 0.0)(lambda y: 1.0)
        welfare = integral(lambda y: rules.value(bids, y).sum()) / mass
        free = np.log(mass / uniform) / beta if beta else welfare
        return integral, mass, welfare, free

    integral, mass, welfare, free = expected(bids, bounds)
    np.testing.assert_allclose(law.welfare, welfare, rtol=1e-9)
    np.testing.assert_allclose(law.free, free, rtol=1e-8)
    quantity = [integral(lambda y, i=i: y[i]) / mass for i in range(size)]
    np.testing.assert_allclose(law.quantity, quantity, rtol=1e-8, atol=1e-9)
    worth = [integral(lambda y, i=i: rules.value(bids, y)[i]) / mass for i in range(size)]
    np.testing.assert_allclose(law.value, worth, rtol=1e-8, atol=1e-9)
    for agent in range(size):
        if size == 2:  # the other has to keep to itself
            alone = rules.value(bids, np.zeros(2))[1 - agent]
            np.testing.assert_allclose([law.welfare_without[agent], law.free_without[agent]], alone, atol=1e-12)
            continue
        _, _, welfare, free = expected(without(bids, agent), without(bounds, agent))
        np.testing.assert_allclose(law.welfare_without[agent], welfare, rtol=1e-9)
        np.testing.assert_allclose(law.free_without[agent], free, rtol=1e-8)


def test_four_agents_match_scipy_and_the_fourier_sum():
    bids, bounds = market(4)
    beta = 1.5
    law = continuous.law(make_quadrature(bounds, bids, beta), bids, beta)
    # Inner integrals by a rule that is exact enough; panels are cut by scipy, which knows nothing of corners.
    nodes, weights = np.polynomial.legendre.leggauss(12)

    def inner(low, high):
        return 0.5 * (low + high) + 0.5 * (high - low) * nodes, 0.5 * (high - low) * weights

    def pair(group, total, power):
        a, b = group
        low = max(bounds.low[a], total - bounds.high[b])
        high = min(bounds.high[a], total - bounds.low[b])
        if high <= low:
            return 0.0
        y, w = inner(low, high)
        one = rules.value(Bids(*(field[a] for field in bids)), y)
        other = rules.value(Bids(*(field[b] for field in bids)), total - y)
        return (w * np.exp(beta * (one + other)) * (one + other) ** power).sum()

    def integral(first, second):
        # Groups other than those of the code.
        corners = [x + y for x in (bounds.low[0], bounds.high[0]) for y in (bounds.low[2], bounds.high[2])]
        corners += [-x - y for x in (bounds.low[1], bounds.high[1]) for y in (bounds.low[3], bounds.high[3])]
        return integrate.quad(
            lambda s: pair((0, 2), s, first) * pair((1, 3), -s, second),
            bounds.low[[0, 2]].sum(),
            bounds.high[[0, 2]].sum(),
            points=corners,
            epsabs=1e-12,
            epsrel=1e-11,
            limit=200,
        )[0]

    np.testing.assert_allclose(law.welfare, (integral(1, 0) + integral(0, 1)) / integral(0, 0), rtol=1e-9)
    # The same market by characteristic functions, slowly.
    slow = fourier.build(bounds, 1.1 * np.abs(bounds).sum(axis=-1).max(), 2000, 600)
    np.testing.assert_allclose(continuous.moments(slow, bids, beta).quantity, law.quantity, rtol=1e-6)


@pytest.mark.parametrize("size", [5, 6, 8, 13, 20])
def test_volumes_are_irwin_hall(size):
    # Intervals [−3, 7]: the density of the sum of uniforms on [0, 1] at 3n/10, in exact fractions.
    bounds = Bounds(np.full(size, -3.0), np.full(size, 7.0))

    def volume(count):
        x = Fraction(3 * count, 10)
        terms = ((-1) ** k * comb(count, k) * (x - k) ** (count - 1) for k in range(int(x) + 1))
        return float(sum(terms) / factorial(count - 1) * 10 ** (count - 1))

    bids = Bids(-np.ones(size), np.zeros(size), np.zeros(size))
    quadrature = make_quadrature(bounds, bids, 0.0, 1e-10)
    np.testing.assert_allclose(quadrature.log_volume, np.log(volume(size)), rtol=0, atol=4e-10)
    np.testing.assert_allclose(quadrature.log_volume_without, np.log(volume(size - 1)), rtol=0, atol=4e-10)


@pytest.mark.parametrize(
    ("size", "shared"), [(3, False), (4, False), (5, False), (6, False), (30, False), (100, False), (1000, True)]
)
def test_far_bounds_give_the_normal_law(size, shared):
    # No bound within 9 standard deviations of the optimum: all is known in closed form.
    rng = np.random.default_rng(size)
    bids = Bids(-rng.uniform(0.01, 0.1, size), rng.uniform(0, 2, size), rng.normal(size=size))
    beta, stiffness = 3.0, -6.0 * bids.quadratic
    wide = Bounds(np.full(size, -1e3), np.full(size, 1e3))
    best = rules.pivots(bids, wide)
    deviation = 1.0 / np.sqrt(stiffness)
    shift = np.abs((best.price_without - best.clearing.price) / (2 * bids.quadratic.max())).max()
    reach = 9.0 * deviation + shift
    bounds = Bounds(best.clearing.allocation - reach, best.clearing.allocation + reach)
    quadrature = make_quadrature(bounds, bids, beta, 1e-10, shared_tilt=shared)
    law = continuous.law(quadrature, bids, beta, shared_tilt=shared)

    def log_mass(welfare, stiffness, count):
        widths = (count - 1) * np.log(2 * np.pi) - np.log(stiffness).sum() - np.log((1 / stiffness).sum())
        return beta * welfare + 0.5 * widths

    np.testing.assert_allclose(law.quantity, best.clearing.allocation, rtol=0, atol=1e-7)
    np.testing.assert_allclose(law.welfare, best.clearing.welfare - (size - 1) / (2 * beta), rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(
        law.welfare_without, best.welfare_without - (size - 2) / (2 * beta), rtol=1e-9, atol=1e-7
    )
    exact = log_mass(best.clearing.welfare, stiffness, size)
    np.testing.assert_allclose(continuous.log_partition(quadrature, bids, beta), exact, rtol=1e-9, atol=1e-8)


@pytest.fixture(scope="module")
def six():
    return make_quadrature(BOUNDS, SIX, np.array(0.5))


@pytest.mark.parametrize(("beta", "welfare"), [(0.0, 0.825062), (0.05, 0.829845), (0.5, 0.871575), (5.0, 1.165620)])
def test_welfare_of_the_case(six, beta, welfare):
    assert continuous.moments(six, SIX, beta).welfare == pytest.approx(welfare, abs=1e-6)


def test_moments_of_the_uniform_law(six):
    """By quadrature, E[y²] as the value of bids a = 1, against means and deviations of some 10⁵ draws."""
    squares = Bids(np.ones(6), np.zeros(6), np.zeros(6))
    law = continuous.moments(six, SIX, 0.0, squares)
    deviation = np.sqrt(law.true_value - law.quantity**2)
    np.testing.assert_allclose(np.abs(law.quantity), [9.947, 11.410, 17.373, 10.225, 12.884, 15.621], atol=0.02)
    np.testing.assert_allclose(deviation, [2.867, 3.704, 4.256, 5.580, 6.821, 7.794], atol=0.02)


def test_payments_of_the_case(six):
    law = continuous.law(six, SIX, 0.005)
    expected = [0.417686, 0.475859, 0.722909, -0.467539, -0.636826, -0.893387]
    np.testing.assert_allclose(rules.algorithm3_payments(law), expected, atol=1e-6)
    law = continuous.law(six, SIX, 0.5)
    expected = [0.4335, 0.4911, 0.7341, -0.4645, -0.6479, -0.9227]
    np.testing.assert_allclose(rules.entropy_payments(law), expected, atol=6e-5)


def on_a_grid(agents, beta, step):
    """ln Z, E[y], E[y²] and E[v] of the case's agents: laws on a grid, by trapezoids, convolved."""
    low, high = (np.rint(limit[agents] / step).astype(int) for limit in BOUNDS)
    nodes = [step * np.arange(start, end + 1) for start, end in zip(low, high, strict=True)]
    values = [rules.value(Bids(*(field[agent] for field in SIX)), y) for agent, y in zip(agents, nodes, strict=True)]
    weights = [step * np.exp(beta * v) * np.r_[0.5, np.ones(v.size - 2), 0.5] for v in values]
    size = 2 ** int(np.ceil(np.log2(sum(y.size for y in nodes))))
    waves = [np.fft.rfft(w, size) for w in weights]

    def at_zero(replaced=None, function=None):
        parts = [np.fft.rfft(w * function, size) if k == replaced else waves[k] for k, w in enumerate(weights)]
        return np.fft.irfft(np.prod(parts, axis=0), size)[-low.sum()] / step

    mass = at_zero()
    rows = [[at_zero(k, f) / mass for f in (y, y * y, v)] for k, (y, v) in enumerate(zip(nodes, values, strict=True))]
    return np.log(mass), *np.array(rows).T


def extrapolated(agents, beta):
    """The same without the error of trapezoids, of second order in the step, whose kinks lie on the grid."""
    coarse, fine = (on_a_grid(agents, beta, step) for step in (0.05, 0.025))
    return [(4.0 * b - a) / 3.0 for a, b in zip(coarse, fine, strict=True)]


@pytest.mark.parametrize("beta", [0.0, 0.005, 0.5, 5.0])
def test_the_case_by_convolution_on_a_grid(six, beta):
    """Welfare, moments and both payments to 1e-6, without quadrature nodes, tilts or frequencies."""
    everyone = np.arange(6)
    law = continuous.law(six, SIX, beta, Bids(np.ones(6), np.zeros(6), np.zeros(6)))
    log, quantity, square, value = extrapolated(everyone, beta)
    np.testing.assert_allclose(law.quantity, quantity, rtol=0, atol=1e-6)
    np.testing.assert_allclose(law.true_value, square, rtol=0, atol=5e-5)
    np.testing.assert_allclose(law.welfare, value.sum(), rtol=0, atol=1e-7)
    others = [np.delete(everyone, agent) for agent in everyone]
    without = [extrapolated(rest, beta) for rest in others]
    payment = [rest[3].sum() - np.delete(value, agent).sum() for agent, rest in enumerate(without)]
    np.testing.assert_allclose(rules.algorithm3_payments(law), payment, rtol=0, atol=1e-6)
    if beta == 0.0:
        # What a uniform draw is like; deviations print as 2.866, 3.705, 4.256, 5.581, 6.823 and 7.793.
        np.testing.assert_allclose(
            np.abs(quantity), [9.94668, 11.40859, 17.37700, 10.23228, 12.87220, 15.62780], rtol=0, atol=1e-5
        )
        return
    free = (log - extrapolated(everyone, 0.0)[0]) / beta
    rests = [(rest[0] - extrapolated(agents, 0.0)[0]) / beta for rest, agents in zip(without, others, strict=True)]
    np.testing.assert_allclose(rules.entropy_payments(law), rests - free + value, rtol=0, atol=1e-6)


def test_plain_rejection_gives_the_same_moments(six):
    rng = np.random.default_rng(0)
    beta = 0.5
    y = rng.uniform(BOUNDS.low, BOUNDS.high, (2_000_000, 6))
    y[:, 5] = -y[:, :5].sum(axis=1)
    y = y[(y[:, 5] >= -30) & (y[:, 5] <= 0)]
    welfare = rules.value(SIX, y).sum(axis=1)
    weight = np.exp(beta * (welfare - welfare.max()))
    weight /= weight.sum()
    error = 4 / np.sqrt(len(y))
    uniform, law = (continuous.moments(six, SIX, b) for b in (0.0, beta))
    assert np.all(np.abs(y.mean(axis=0) - uniform.quantity) < error * y.std(axis=0))
    np.testing.assert_allclose(y.mean(axis=0), [9.947, 11.410, 17.373, -10.225, -12.884, -15.621], atol=0.05)
    assert np.all(np.abs(weight @ y - law.quantity) < 1.2 * error * y.std(axis=0))
    assert abs(weight @ welfare - law.welfare) < 1.2 * error * welfare.std()
    free = welfare.max() + np.log(np.mean(np.exp(beta * (welfare - welfare.max())))) / beta
    assert abs(free - law.free) < 1.2 * error * welfare.std()


def test_large_beta_gives_water_filling_and_vcg():
    best = rules.pivots(SIX, BOUNDS)
    gaps = []
    for beta in (50.0, 500.0, 50_000.0):
        law = continuous.law(make_quadrature(BOUNDS, SIX, beta), SIX, beta)
        assert 0 < best.clearing.welfare - law.welfare <= rules.expected_gap(beta, 6)
        gaps.append(np.abs(rules.algorithm3_payments(law) - best.payment).max())
        assert gaps[-1] < 2 / beta
        assert np.abs(law.quantity - best.clearing.allocation).max() < 5 / np.sqrt(beta)
    assert gaps[0] > gaps[1] > gaps[2]


@pytest.mark.parametrize("size", [3, 4, 6, 9, 40])
@pytest.mark.parametrize("beta", [0.0, 0.5, 30.0])
def test_more_nodes_change_nothing(size, beta):
    bids, bounds = market(size)
    law = continuous.law(make_quadrature(bounds, bids, beta, 1e-9), bids, beta)
    if size <= PANEL_AGENTS:
        finer = panels.build(bounds, 70)
    else:
        rough = make_quadrature(bounds, bids, beta, 1e-9)
        period = 1.3 * max(bounds.high.sum() - bounds.high.min(), -bounds.low.sum() + bounds.low.max())
        finer = fourier.build(bounds, period, 700, 250)
        finer = finer._replace(log_volume=rough.log_volume, log_volume_without=rough.log_volume_without)
    exact = continuous.law(finer, bids, beta)
    for ours, theirs in zip(law, exact, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-7, atol=2e-8)


@settings(max_examples=15)
@given(st.integers(2, 9), st.integers(0, 10**6), st.floats(0.01, 100.0))
def test_bounds_of_theory_hold(size, seed, beta):
    bids, bounds = market(size, seed)
    law = continuous.law(make_quadrature(bounds, bids, beta, 1e-6), bids, beta)
    best = rules.pivots(bids, bounds)
    slack = 1e-5 * (1 + np.abs(best.welfare_without))
    assert law.free <= law.welfare + slack[0]
    assert best.clearing.welfare - rules.expected_gap(beta, size) - slack[0] <= law.welfare
    assert law.welfare <= best.clearing.welfare + slack[0]
    assert np.all(law.free_without <= law.welfare_without + slack)
    assert np.all(best.welfare_without - rules.expected_gap(beta, size - 1) - slack <= law.welfare_without)
    assert np.all(law.welfare_without <= best.welfare_without + slack)
    assert abs(law.quantity.sum()) < 1e-4
    assert np.all((law.quantity > bounds.low - 1e-6) & (law.quantity < bounds.high + 1e-6))


@pytest.mark.parametrize("size", [4, 6, 15])
def test_a_batch_is_a_loop(size):
    bids, bounds = market(size)
    rng = np.random.default_rng(1)
    batch = Bids(*(field * rng.uniform(0.7, 1.3, (5, 3, size)) for field in bids))
    beta = rng.uniform(0.1, 3.0, (5, 3))
    true = Bids(*(1.1 * field for field in bids))
    quadrature = make_quadrature(bounds, batch, beta, 1e-8)
    law = continuous.law(quadrature, batch, beta, true)
    assert law.welfare.shape == (5, 3)
    for place in np.ndindex(5, 3):
        own = Bids(*(field[place] for field in batch))
        one = continuous.law(quadrature, own, beta[place], true)
        for whole, part in zip(law, one, strict=True):
            np.testing.assert_allclose(whole[place], part, rtol=1e-9, atol=1e-10)
        second = one.true_value - continuous.law(quadrature, own, beta[place], own).value
        assert np.abs(second).max() > 1e-3
    alone = continuous.moments(quadrature, batch, beta, true)
    for whole, part in zip(law[:5], alone, strict=True):
        np.testing.assert_allclose(whole, part, rtol=1e-12, atol=1e-12)


def test_blocks_do_not_matter(six, monkeypatch):
    rng = np.random.default_rng(0)
    batch = Bids(*(field * rng.uniform(0.7, 1.3, (40, 6)) for field in SIX))
    law = continuous.law(six, batch, 0.5)
    monkeypatch.setattr(continuous, "BLOCK", 1)
    monkeypatch.setattr(continuous, "LARGE", 1)
    for ours, theirs in zip(law, continuous.law(six, batch, 0.5), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-11, atol=1e-11)


def test_shared_tilt_agrees_where_it_may():
    bids, bounds = market(60)
    for beta in (0.0, 1.0, 100.0):
        shared = make_quadrature(bounds, bids, beta, 1e-9, shared_tilt=True)
        law = continuous.law(shared, bids, beta, shared_tilt=True)
        own = continuous.law(make_quadrature(bounds, bids, beta, 1e-9), bids, beta)
        for ours, theirs in zip(law, own, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-8, atol=1e-8)
    with pytest.raises(ValueError, match="shared_tilt loses digits in this market"):
        make_quadrature(BOUNDS, SIX, 60.0, 1e-12, shared_tilt=True)


@pytest.mark.parametrize("size", [2, 3, 4, 6, 11])
def test_residual_is_the_law_of_other_reports(size):
    bids, bounds = market(size)
    bounds = Bounds(np.minimum(bounds.low, 0.0), np.maximum(bounds.high, 0.0))
    beta = 2.0
    for agent in (0, size - 1):
        change = np.where(np.arange(size) == agent, 1.4, 1.0)
        other = Bids(*(change * field for field in bids))
        both = Bids(*(np.stack(fields) for fields in zip(bids, other, strict=True)))
        quadrature = make_quadrature(bounds, both, beta, 1e-10)
        family = continuous.residual(quadrature, bounds, bids, beta, agent)
        assert np.abs(family.weight).max() == 1.0
        for report, tolerance in ((bids, 1e-12), (other, 1e-8)):
            law = continuous.moments(quadrature, report, beta)
            own = rules.value(Bids(*(field[agent] for field in report)), family.quantity)
            weight = np.exp(beta * (own - own.max()))
            mass = (weight * family.weight).sum()
            quantity = (weight * family.weight * family.quantity).sum() / mass
            welfare = (weight * (family.weighted + family.weight * own)).sum() / mass
            np.testing.assert_allclose(quantity, law.quantity[agent], rtol=tolerance, atol=10 * tolerance)
            np.testing.assert_allclose(welfare, law.welfare, rtol=tolerance, atol=10 * tolerance)
            welfare = (weight * family.weight * (family.others + own)).sum() / mass
            np.testing.assert_allclose(welfare, law.welfare, rtol=1e-8, atol=1e-8)
    batch = Bids(*(np.stack([field, field]) for field in bids))
    pair = continuous.residual(quadrature, bounds, batch, np.array([beta, 1.0]), size - 1)
    np.testing.assert_allclose(pair.weight[0], family.weight, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("size", "shared"), [(4, False), (6, False), (6, True)])
def test_jax_and_torch_agree(size, shared):
    bids, bounds = market(size)
    quadrature = make_quadrature(bounds, bids, 0.8, 1e-8)
    law = continuous.law(quadrature, bids, 0.8, shared_tilt=shared)
    torch = array_api_compat.torch
    results = [continuous.law(cast(quadrature, torch), cast(bids, torch), 0.8, shared_tilt=shared)]
    with jax.enable_x64(True):
        table, declared = cast(quadrature, jax.numpy), cast(bids, jax.numpy)
        results.append(jax.jit(lambda declared: continuous.law(table, declared, 0.8, shared_tilt=shared))(declared))
    for there in results:
        for ours, theirs in zip(law, there, strict=True):
            np.testing.assert_allclose(ours, np.asarray(theirs), rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("size", [4, 6])
def test_derivatives_are_moments(size):
    bids, bounds = market(size)
    quadrature = make_quadrature(bounds, bids, 0.8, 1e-8)
    law = continuous.law(quadrature, bids, 0.8)
    torch = array_api_compat.torch
    table, declared = cast(quadrature, torch), Bids(*(field.requires_grad_() for field in cast(bids, torch)))
    there = continuous.law(table, declared, 0.8)
    slope = Bids(*torch.autograd.grad(there.free, declared, retain_graph=True))
    apart = torch.autograd.grad(there.free_without[1], declared.constant)[0]
    # ∂free/∂(c, b, a) = 1, E[y], E[y²].
    np.testing.assert_allclose(slope.constant, 1.0, atol=1e-8)
    np.testing.assert_allclose(slope.linear, law.quantity, rtol=1e-7, atol=1e-7)
    square = (law.value - bids.linear * law.quantity - bids.constant) / bids.quadratic
    np.testing.assert_allclose(slope.quadratic, square, rtol=1e-7)
    np.testing.assert_allclose(apart, np.arange(size) != 1, atol=1e-7)
    with jax.enable_x64(True):
        table, declared = cast(quadrature, jax.numpy), cast(bids, jax.numpy)
        slope = jax.jit(jax.grad(lambda declared: continuous.moments(table, declared, 0.8).free))(declared)
    np.testing.assert_allclose(slope.constant, 1.0, atol=1e-8)
    np.testing.assert_allclose(slope.linear, law.quantity, rtol=1e-7, atol=1e-7)


def test_bad_markets_are_refused(six):
    bids = without(SIX, 0)
    with pytest.raises(ValueError, match=r"total quantity without agent 2 must be able to be 0 inside .*, got \[3\.0"):
        make_quadrature(Bounds(np.array([1.0, 2, -9]), np.array([5.0, 5, -1])), Bids(*np.ones((3, 3))), 1.0)
    with pytest.raises(ValueError, match=r"total quantity must be able to be 0 inside its range, got \[1\.0, 4\.0\]"):
        make_quadrature(Bounds(np.array([1.0, 0]), np.array([2.0, 2])), bids, 1.0)
    with pytest.raises(ValueError, match="a market has at least 2 agents, got 1"):
        make_quadrature(Bounds(np.array([-1.0]), np.array([2.0])), bids, 1.0)
    with pytest.raises(ValueError, match="tolerance 1e-30 is not reached"):
        make_quadrature(BOUNDS, SIX, 0.5, 1e-30)
    with pytest.raises(ValueError, match="tolerance 1e-30 is not reached"):
        make_quadrature(*reversed(market(3)), 0.5, 1e-30)
    with pytest.raises(ValueError, match=r"agent must be in \[0, 5\], got 6"):
        continuous.residual(six, BOUNDS, SIX, 0.5, 6)
