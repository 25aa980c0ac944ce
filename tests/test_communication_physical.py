"""Physical settlement against a plain re-implementation, quadrature, Monte Carlo and dense search."""

import numpy as np
import pytest
from scipy.integrate import quad_vec
from scipy.optimize import brentq
from scipy.stats import norm

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
def test_pieces_are_the_cost_in_the_report_total(case):
    scenario = CASES[case]
    pieces = physical.cost_pieces(scenario.params())
    grid = np.linspace(-45, 45, 20_001)
    above = np.maximum(grid[:, None] + scenario.private_information.sum() - pieces.kinks, 0)
    rebuilt = above @ pieces.slope_jump.T + 0.5 * above**2 @ pieces.curvature_jump.T
    sample = np.linspace(0, grid.size - 1, 60).astype(int)
    cost = np.stack([settled(scenario, grid[index]) for index in sample])
    np.testing.assert_allclose(rebuilt[sample] - rebuilt[0], cost - cost[0], atol=1e-9)
    steepest = np.abs(np.diff(rebuilt, axis=0) / np.diff(grid)[:, None]).max(axis=0)
    assert (steepest <= pieces.steepest + 1e-6).all()
    np.testing.assert_allclose(steepest, pieces.steepest, rtol=0.05)


def roof(places, slopes):
    """One agent's piecewise linear cost: the slopes between the places, 0 outside."""
    jumps = np.diff([0.0, *slopes, 0.0])
    return physical.Pieces(np.array(places), jumps[None], 0 * jumps[None], np.abs([slopes]).max(axis=-1))


@pytest.mark.parametrize("pull", [0.0, 0.05, 2.5, 40.0])
def test_the_interval_bound_counts_the_own_noise(pull):
    # Cost −|total| and a total of x + √pull·|x|·Z: the expectation is −|x|·E|1 + √pull·Z|, a folded normal mean.
    # Its slope at 0 exceeds that of the cost, which is 1: noise can pay more than the shift it comes with.
    root = np.sqrt(pull)
    folded = 1.0 if pull == 0 else root * np.sqrt(2 / np.pi) * np.exp(-0.5 / pull) + 1 - 2 * norm.cdf(-1 / root)
    assert pull < 1 or folded > 1.4
    pieces = roof([-1e3, 0.0, 1e3], [1.0, -1.0])
    zero, half = np.zeros(1), np.array([0.7])
    stakes = physical.Stakes(np.zeros(1, int), zero, zero, np.array([pull]))
    cost, lower = physical.cost_on_interval(pieces, stakes, zero, half)
    assert lower[0] <= cost[0] - folded * half[0] + 1e-9
    # And it is no looser than the constant that is stated.
    assert lower[0] == pytest.approx(cost[0] - np.sqrt(1 + pull) * half[0], abs=1e-9)


@pytest.mark.parametrize("pull", [0.0, 0.05, 2.5])
def test_the_interval_bound_holds_at_a_concave_kink(pull):
    # Cost 0.2·total up to 0 and −total above: −0.6|total| − 0.4·total, so a folded normal mean again.
    def expected(own, others, noise):
        mean, deviation = others + own, np.sqrt(noise + pull * own * own)
        folded = deviation * np.sqrt(2 / np.pi) * np.exp(-0.5 * (mean / deviation) ** 2)
        folded = folded + mean * (1 - 2 * norm.cdf(-mean / deviation))
        return -0.6 * folded - 0.4 * mean

    pieces = roof([-1e3, 0.0, 1e3], [0.2, -1.0])
    rng = np.random.default_rng(0)
    tight = []
    for _ in range(2000):
        others, centre = rng.uniform(-3, 3, 2)
        noise, half = rng.choice([1e-4, 0.1, 1.0, 4.0]), 10.0 ** rng.uniform(-3, 0)
        one = np.ones(1)
        stakes = physical.Stakes(np.zeros(1, int), others * one, noise * one, pull * one)
        cost, lower = physical.cost_on_interval(pieces, stakes, centre * one, half * one)
        least = expected(centre + half * np.linspace(-1, 1, 101), others, noise).min()
        drop = expected(centre, others, noise) - least
        # The constant of the pieces, 1e3, costs digits.
        assert cost[0] - lower[0] >= drop - 1e-11
        tight.append((cost[0] - lower[0]) / max(drop, 1e-6))
    assert np.median(tight) < 1.5


@pytest.mark.parametrize("budget", [0.02, 0.2, 10.0])
@pytest.mark.parametrize("case", CASES)
def test_the_interval_bound_is_below_the_cost(case, budget):
    scenario = CASES[case].replace(privacy_budget=budget)
    params = scenario.params()
    pieces = physical.cost_pieces(params)
    rng = np.random.default_rng(5)
    for trial in range(40):
        shift, variance = profile(scenario, trial)
        if trial % 2:  # own noise is all there is
            variance = rules.least_variance(scenario, 0 * shift)
        agent = trial % scenario.size
        others, noise = np.delete(shift, agent).sum(), np.delete(variance, agent).sum()
        centre = rng.choice([0.0, *rng.uniform(-1, 1, 3)]) * scenario.max_shift[agent]
        half = 10.0 ** rng.uniform(-3, 0)
        if trial % 4 == 1:  # a kink at the truthful total: the least noise in the worst place
            others = rng.choice(pieces.kinks) - scenario.private_information.sum()
        own = centre + half * np.linspace(-1, 1, 201)
        deviations, noises = np.zeros((2, own.size, scenario.size))
        deviations[:, agent] = own
        noises[:] = rules.least_variance(scenario, deviations)
        # The others in one lump, on somebody else.
        deviations[:, agent - 1] = others
        noises[:, agent - 1] = noise
        noises[:, np.delete(np.arange(scenario.size), [agent, agent - 1])] = 0
        true = rules.expected_cost(scenario, deviations, noises, "physical")[:, agent]
        one = np.ones(1)
        stakes = physical.Stakes(
            np.array([agent]),
            (others + scenario.private_information.sum()) * one,
            (noise + params.variance_floor[agent]) * one,
            params.variance_slope[[agent]],
        )
        cost, lower = physical.cost_on_interval(pieces, stakes, centre * one, half * one)
        assert lower[0] - cost[0] <= true.min() - true[100] + 1e-9
        # Up to one constant the cost is the expected cost.
        elsewhere, _ = physical.cost_on_interval(pieces, stakes, own[[0]], 0 * one)
        assert elsewhere[0] - cost[0] == pytest.approx(true[0] - true[100], abs=1e-9)


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


@pytest.mark.parametrize("name", ["ieee14", "ieee14-interior", "ieee14-bound"])
def test_the_search_is_short(name, monkeypatch):
    # First-order bounds alone take thousands of evaluations an agent.
    scenario = load_scenario(name)
    whole, evaluated = physical.cost_on_interval, []
    monkeypatch.setattr(physical, "cost_on_interval", lambda *args: (evaluated.append(args[2].size), whole(*args))[1])
    result = variational_equilibrium(scenario)
    for shift in (0 * result.shift, result.shift, profile(scenario)[0]):
        physical.best_response(scenario.params(), shift, rules.least_variance(scenario, shift))
    assert sum(evaluated) < 3 * 20 * scenario.size


def test_best_response_needs_a_tolerance():
    scenario = CASES["tight"]
    with pytest.raises(ValueError, match=r"tolerance must be > 0, got 0\.0"):
        physical.best_response(scenario.params(), *profile(scenario), tolerance=0.0)


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
