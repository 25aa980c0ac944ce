"""Physical settlement against a plain re-implementation, quadrature, Monte Carlo and dense search."""

import numpy as np
import pytest
from scipy.integrate import quad_vec
from scipy.optimize import brentq

from p2penv.communication import physical, rules
from p2penv.communication.equilibrium import exploitability, variational_equilibrium
from p2penv.communication.scenario import Scenario, load_scenario


def tight(seed, size=4, heterogeneous=False):
    """A random scenario in which noise of a few MWh drives many devices to their bounds."""
    rng = np.random.default_rng(seed)
    scenario = Scenario.random(size, seed)
    price = rules.clearing_price(scenario, scenario.private_information)
    generation, cut = rules.dispatch(scenario, price)
    demand = scenario.nominal_demand
    scenario = scenario.replace(
        generation_min=np.maximum(generation - rng.uniform(0.2, 3, size), 0),
        generation_max=generation + rng.uniform(0.2, 3, size),
        demand_min=np.maximum(demand - cut - rng.uniform(0.2, 3, size), 0),
        demand_max=np.maximum(demand - cut + rng.uniform(0.2, 3, size), demand),
        max_shift=3.0,
    )
    if heterogeneous:
        scenario = scenario.replace(trading_price=(rng.uniform(0, 2, size), rng.uniform(0, 2, (size, size))))
    return scenario


CASES = {
    "tight": tight(0),
    "heterogeneous": tight(1, heterogeneous=True),
    "root books": tight(2).replace(bookkeeping="root"),
    "floor": tight(3).replace(privacy="floor"),
}


def profile(scenario, seed=0):
    rng = np.random.default_rng(seed)
    shift = rng.uniform(-1, 1, scenario.size) * scenario.max_shift
    return shift, rules.least_variance(scenario, shift) * rng.uniform(1, 2, scenario.size)


def cleared(scenario, total):
    """Generation and demand when a report total is served, by bisection on the price; clamped at the ends."""
    s = scenario

    def at(price):
        generation = np.clip((price - s.generation_price) / s.generation_curvature, s.generation_min, s.generation_max)
        demand = np.clip(s.nominal_demand - price / (2 * s.discomfort), s.demand_min, s.demand_max)
        return generation, demand

    def excess(price):
        generation, demand = at(price)
        return (generation + s.nominal_demand - demand).sum() - total

    low, high = -1e3, 1e3
    if excess(low) >= 0:
        return at(low)
    if excess(high) <= 0:
        return at(high)
    return at(brentq(excess, low, high, xtol=1e-13, rtol=1e-14))


def settled(scenario, deviation):
    """Own costs (1) and charges at a report total of Y + deviation, written out line by line."""
    s, y = scenario, scenario.private_information
    generation, demand = cleared(s, y.sum() + deviation)
    net_import = demand - generation - s.renewable_generation
    trade = np.zeros(s.size)
    to_root = net_import.copy()
    if s.price_matrix is not None:
        for (n, m), capacity in zip(s.lines, s.line_capacity, strict=True):
            if 0 in (n, m):
                continue
            buyer, seller = (n, m) if s.price_matrix[n, m] < s.price_matrix[m, n] else (m, n)
            trade[buyer] += s.price_matrix[buyer, seller] * capacity
            trade[seller] -= s.price_matrix[seller, buyer] * capacity
            to_root[buyer] -= capacity
            to_root[seller] += capacity
    own = s.root_price * to_root
    if s.bookkeeping == "root" or s.price_matrix is not None:
        own[0] = -own[1:].sum()
    return (
        0.5 * s.generation_curvature * generation**2
        + s.generation_price * generation
        + s.fixed_cost
        + s.discomfort * (demand - s.nominal_demand) ** 2
        - s.usage_benefit
        + trade
        + own
        + s.wholesale_price * net_import.sum() / s.size
    )


@pytest.mark.parametrize("case", CASES)
def test_realised_cost_is_the_settlement_written_out(case):
    scenario = CASES[case]
    for deviation in (-40.0, -6.0, -1.0, 0.0, 2.0, 7.0, 40.0):
        shift = np.full(scenario.size, deviation / scenario.size)
        cost = rules.realised_cost(scenario, shift, 0 * shift, "physical")
        np.testing.assert_allclose(cost, settled(scenario, deviation), atol=1e-9)


def test_energy_balances_and_the_operator_pays_for_it():
    scenario = CASES["tight"]
    params, y = scenario.params(), scenario.private_information
    for deviation in (-30.0, -2.0, 0.0, 5.0, 30.0):
        generation, demand = cleared(scenario, y.sum() + deviation)
        imbalance = (demand - generation - scenario.renewable_generation).sum()
        # The shares of p0·ΣQ add up to it: raise p0 and read the charges off the costs.
        shift = np.full(scenario.size, deviation / scenario.size)
        dearer = scenario.replace(wholesale_price=scenario.wholesale_price + 1.0)
        charge = [rules.realised_cost(s, shift, 0 * shift, "physical") for s in (dearer, scenario)]
        np.testing.assert_allclose(charge[0] - charge[1], imbalance / scenario.size, atol=1e-9)
        moments = physical.realised_moments(params, y.sum() + deviation)
        assert (y - moments.generation - moments.cut).sum() == pytest.approx(imbalance, abs=1e-9)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("spread", [0.3, 2.0, 15.0])
def test_expected_cost_is_the_integral_over_the_noise(case, spread):
    scenario = CASES[case]
    shift, variance = profile(scenario)
    variance = variance * spread**2 / variance.sum()
    params = scenario.params()

    def weighted(z):
        return settled(scenario, shift.sum() + spread * z) * np.exp(-0.5 * z * z) / np.sqrt(2 * np.pi)

    kinks = (params.clearing.knots - params.base_load - shift.sum()) / spread
    points = kinks[np.abs(kinks) < 9]
    assert spread < 1 or points.size >= 6
    integral, _ = quad_vec(weighted, -9, 9, epsabs=1e-10, epsrel=1e-12, points=points)
    cost = rules.expected_cost(scenario, shift, variance, "physical")
    np.testing.assert_allclose(cost, integral, rtol=0, atol=2e-9)


@pytest.mark.parametrize("case", CASES)
def test_expected_cost_is_the_mean_over_the_noise(case):
    scenario = CASES[case]
    shift, variance = profile(scenario, 1)
    noise = np.random.default_rng(2).standard_normal((100_000, scenario.size)) * np.sqrt(variance)
    draws = rules.realised_cost(scenario, shift, noise, "physical")
    error = draws.std(axis=0) / np.sqrt(len(draws))
    assert (np.abs(draws.mean(axis=0) - rules.expected_cost(scenario, shift, variance, "physical")) < 4 * error).all()
    # Bounds matter here: the interior formula is somewhere else.
    interior = rules.expected_cost(scenario, shift, variance)
    assert np.abs(draws.mean(axis=0) - interior).max() > 20 * error.max()


def test_far_from_every_bound_it_is_the_analytic_settlement():
    scenario = Scenario.random(5, 0)
    shift, variance = profile(scenario)
    shift, variance = 0.05 * shift, 0.05**2 * variance
    physical_cost = rules.expected_cost(scenario, shift, variance, "physical")
    np.testing.assert_allclose(physical_cost, rules.expected_cost(scenario, shift, variance), rtol=1e-12)


@pytest.mark.parametrize("case", CASES)
def test_no_noise_is_the_realised_cost(case):
    scenario = CASES[case]
    shift, _ = profile(scenario, 3)
    zero = np.zeros(scenario.size)
    expected = rules.expected_cost(scenario, shift, zero, "physical")
    np.testing.assert_allclose(expected, rules.realised_cost(scenario, shift, zero, "physical"), atol=1e-10)
    # Exactly on a kink of the clearing curve too, where a standardised distance would be 0/0.
    params = scenario.params()
    for knot in params.clearing.knots:
        shift = np.full(scenario.size, (knot - params.base_load) / scenario.size)
        expected = rules.expected_cost(scenario, shift, zero, "physical")
        np.testing.assert_allclose(expected, rules.realised_cost(scenario, shift, zero, "physical"), atol=1e-9)


@pytest.mark.parametrize("case", CASES)
def test_utility_gap_is_the_difference_of_costs(case):
    scenario = CASES[case]
    params, y = scenario.params(), scenario.private_information
    shift, variance = profile(scenario, 4)
    zero = np.zeros(scenario.size)
    hidden = rules.least_variance(scenario, zero)
    gap = rules.expected_cost(scenario, zero, hidden, "physical")
    gap = gap - rules.expected_cost(scenario, shift, variance, "physical")
    now = physical.expected_moments(params, y.sum() + shift.sum(), variance.sum())
    truth = physical.expected_moments(params, y.sum(), hidden.sum())
    np.testing.assert_allclose(physical.utility_gap(params, now, truth), gap, atol=1e-10)


@pytest.mark.parametrize("case", CASES)
def test_steepest_slope_bounds_every_slope_of_the_cost(case):
    scenario = CASES[case]
    grid = np.linspace(-45, 45, 20_001)
    shift = np.broadcast_to(grid[:, None] / scenario.size, (grid.size, scenario.size))
    cost = rules.realised_cost(scenario, shift, 0 * shift, "physical")
    steepest = np.abs(np.diff(cost, axis=0) / np.diff(grid)[:, None]).max(axis=0)
    bound = physical.steepest_slope(scenario.params())
    assert (steepest <= bound + 1e-6).all()
    np.testing.assert_allclose(steepest, bound, rtol=0.05)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("seed", range(3))
def test_best_response_is_certified(case, seed):
    scenario = CASES[case]
    shift, variance = profile(scenario, seed)
    if seed == 2:
        # All others silent: own noise is all there is, and the cost has kinks.
        shift, variance = 0 * shift, rules.least_variance(scenario, 0 * shift)
    tolerance = 1e-3
    found = physical.best_response(scenario.params(), shift, variance, tolerance=tolerance)
    now = rules.expected_cost(scenario, shift, variance, "physical")
    for agent in range(scenario.size):
        own = np.linspace(-1, 1, 4001) * scenario.max_shift[agent]
        deviations, noise = np.tile(shift, (own.size, 1)), np.tile(variance, (own.size, 1))
        deviations[:, agent] = own
        noise[:, agent] = rules.least_variance(scenario, deviations)[:, agent]
        best = (now[agent] - rules.expected_cost(scenario, deviations, noise, "physical")[:, agent]).max()
        assert found.bound[agent] >= best
        assert best >= found.gain[agent] - tolerance
        assert found.gain[agent] >= best - tolerance
        assert 0 <= found.gain[agent] <= found.bound[agent] <= found.gain[agent] + tolerance * (1 + 1e-9)
        # The gain is that of the shift it comes with, for agents who gain at all.
        x, v = shift.copy(), variance.copy()
        x[agent] = found.shift[agent]
        v[agent] = rules.least_variance(scenario, x)[agent]
        if found.gain[agent] > 0:
            cost = rules.expected_cost(scenario, x, v, "physical")[agent]
            assert now[agent] - cost == pytest.approx(found.gain[agent], abs=1e-9)


def test_best_response_takes_batches():
    scenario = CASES["tight"]
    params = scenario.params()
    shift, variance = (np.stack(rows) for rows in zip(*(profile(scenario, seed) for seed in range(3)), strict=True))
    y = scenario.private_information + np.arange(3.0)[:, None]
    batched = physical.best_response(params, shift, variance, y, tolerance=1e-2)
    for row in range(3):
        single = physical.best_response(params, shift[row], variance[row], y[row], tolerance=1e-2)
        for whole, one in zip(batched, single, strict=True):
            np.testing.assert_array_equal(whole[row], one)


def test_the_analytic_equilibrium_is_exploitable_here():
    # With A = .2 the noise at equilibrium (sd 14 MWh) reaches the lower bound of generation, 13 MWh away.
    scenario = load_scenario("ieee14-interior")
    result = variational_equilibrium(scenario)
    assert exploitability(scenario, result.shift, result.variance, "ignore").max() < 1e-12
    found = physical.best_response(scenario.params(), result.shift, result.variance, tolerance=1e-3)
    assert found.gain.max() > 0.03


def test_cost_takes_leading_axes():
    scenario = CASES["heterogeneous"]
    pairs = [profile(scenario, seed) for seed in range(6)]
    shift = np.stack([pair[0] for pair in pairs]).reshape(2, 3, -1)
    variance = np.stack([pair[1] for pair in pairs]).reshape(2, 3, -1)
    costs = rules.expected_cost(scenario, shift, variance, "physical")
    for index, (x, v) in zip(np.ndindex(2, 3), pairs, strict=True):
        np.testing.assert_allclose(costs[index], rules.expected_cost(scenario, x, v, "physical"), rtol=1e-13)
