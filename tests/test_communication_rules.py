"""Rules of the communication game against generic solvers, Monte Carlo, automatic differentiation and hand work."""

import re

import array_api_compat.torch
import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2penv.communication import params as params_of
from p2penv.communication import rules
from p2penv.communication.equilibrium import best_response, exploitability, potential, variational_equilibrium
from p2penv.communication.scenario import Scenario, load_scenario

SIZE = 6


def heterogeneous(size=SIZE, seed=0, **fields):
    """A random scenario with prices drawn from continuous laws: no two are equal."""
    rng = np.random.default_rng(seed)
    prices = rng.uniform(0.2, 2.0, size), rng.uniform(0.2, 2.0, (size, size))
    return Scenario.random(size, seed).replace(trading_price=prices, **fields)


def random_profile(scenario, seed, batch=()):
    rng = np.random.default_rng(seed)
    shift = rng.uniform(-1, 1, (*batch, scenario.size)) * scenario.max_shift
    return shift, rules.least_variance(scenario, shift) * rng.uniform(1, 2, shift.shape)


def market_qp(solve_qp, scenario, y):
    """The whole market as one quadratic program: least total cost of generation, demand, and trade on every line.

    Variables: G (N), cut D* − D (N), flow into the first node of each line clear of node 0 (L), flow from node 0
    into each other node (N − 1). Reciprocity is built in: one variable a line. Trade with node 0 costs c_0n on one
    side and is earned on the other (Assumption 1), so its price drops out of the total.
    """
    n = scenario.size
    lines = scenario.lines[(scenario.lines != 0).all(axis=1)]
    capacity = scenario.line_capacity[(scenario.lines != 0).all(axis=1)]
    matrix = scenario.price_matrix if scenario.price_matrix is not None else np.full((n, n), scenario.root_price[0])
    incidence = np.zeros((n, len(lines)))
    incidence[lines[:, 0], np.arange(len(lines))] = 1.0
    incidence[lines[:, 1], np.arange(len(lines))] = -1.0
    root = np.vstack([-np.ones(n - 1), np.eye(n - 1)])
    size = 2 * n + len(lines) + n - 1
    quadratic, linear = np.zeros((size, size)), np.zeros(size)
    quadratic[:n, :n] = np.diag(scenario.generation_curvature)
    quadratic[n : 2 * n, n : 2 * n] = np.diag(2 * scenario.discomfort)
    linear[:n] = scenario.generation_price
    linear[2 * n : 2 * n + len(lines)] = matrix[lines[:, 0], lines[:, 1]] - matrix[lines[:, 1], lines[:, 0]]
    # Balance (2f): G + cut + imports = D* − ΔG.
    equal = np.hstack([np.eye(n), np.eye(n), incidence, root])
    free = np.full(n - 1, np.inf)
    low = [scenario.generation_min, scenario.nominal_demand - scenario.demand_max, -capacity, -free]
    high = [scenario.generation_max, scenario.nominal_demand - scenario.demand_min, capacity, free]
    solution, price = solve_qp(quadratic, linear, equal, y, np.concatenate(low), np.concatenate(high))
    generation, cut = solution[:n], solution[n : 2 * n]
    line_flow, root_flow = np.split(solution[2 * n :], [len(lines)])
    trade = np.zeros(n)
    for (first, second), flow in zip(lines, line_flow, strict=True):
        trade[first] += matrix[first, second] * flow
        trade[second] -= matrix[second, first] * flow
    trade[1:] += scenario.root_price[1:] * root_flow
    trade[0] -= scenario.root_price[1:] @ root_flow
    cost = (
        0.5 * scenario.generation_curvature * generation**2
        + scenario.generation_price * generation
        + scenario.fixed_cost
        + scenario.discomfort * cut**2
        - scenario.usage_benefit
    )
    return generation, cut, line_flow, trade, cost, price


def pool_qp(solve_qp, scenario, total):
    """Least cost of serving a total, (2, N) generation and cut, and its price: the market without its lines."""
    quadratic = np.diag(np.concatenate([scenario.generation_curvature, 2 * scenario.discomfort]))
    linear = np.concatenate([scenario.generation_price, np.zeros(scenario.size)])
    low = np.concatenate([scenario.generation_min, scenario.nominal_demand - scenario.demand_max])
    high = np.concatenate([scenario.generation_max, scenario.nominal_demand - scenario.demand_min])
    solution, price = solve_qp(quadratic, linear, np.ones((1, 2 * scenario.size)), np.array([total]), low, high)
    return solution.reshape(2, -1), price


def market_cost(scenario, y, price):
    """Own cost (1) of the dispatch at a price, with the package's trading cost."""
    generation, cut = rules.dispatch(scenario, price)
    return (
        0.5 * scenario.generation_curvature * generation**2
        + scenario.generation_price * generation
        + scenario.fixed_cost
        + scenario.discomfort * cut**2
        - scenario.usage_benefit
        + rules.trading_cost(scenario, y - generation - cut)
    )


# The market underneath.


def test_default_case_constants():
    params = load_scenario().params()
    assert params.total_slope == pytest.approx(31.890463, abs=5e-7)
    assert params.intercept == pytest.approx(156.0, abs=1e-12)
    low, high = params_of.price_bounds(params)
    assert low == pytest.approx(6.0005, abs=1e-12)
    assert high == pytest.approx(11.40674, abs=5e-6)
    assert rules.price_at(params, 66.0, bounded=False) == pytest.approx(6.961329, abs=5e-7)


@pytest.mark.parametrize(
    ("load", "bounded", "interior"), [(20, 3.395, 5.519), (250, 12.744, 12.731), (400, 19.658, 17.435)]
)
def test_default_case_prices_at_bounds(load, bounded, interior):
    scenario = load_scenario()
    reports = np.full(13, load / 13)
    assert rules.clearing_price(scenario, reports, bounded=True) == pytest.approx(bounded, abs=5e-4)
    assert rules.clearing_price(scenario, reports) == pytest.approx(interior, abs=5e-4)


def test_two_agents_by_hand():
    # a = 1, b = 2, ã = (1, 2): B = (1 + 1/2) + (1 + 1/4), β = 4. Y = 7 gives λ = 11/2.75 = 4.
    scenario = Scenario(
        discomfort=[1.0, 2.0],
        usage_benefit=0.0,
        generation_curvature=1.0,
        generation_price=2.0,
        fixed_cost=[3.0, 0.0],
        nominal_demand=[10.0, 5.0],
        renewable_generation=[8.0, 0.0],
        demand_min=0.0,
        demand_max=12.0,
        generation_min=0.0,
        generation_max=9.0,
        max_shift=2.0,
        privacy_budget=0.5,
        wholesale_price=6.0,
        root_price=1.0,
    )
    y = scenario.private_information
    np.testing.assert_array_equal(y, [2.0, 5.0])
    price = rules.clearing_price(scenario, y)
    assert price == pytest.approx(4.0)
    generation, cut = rules.dispatch(scenario, price)
    np.testing.assert_allclose(generation, [2.0, 2.0])
    np.testing.assert_allclose(cut, [2.0, 1.0])
    # Q = y − G − cut = (−2, 2). Cost: G²/2 + 2G + d + ã cut² + cQ = 2 + 4 + 3 + 4 − 2 and 2 + 4 + 2 + 2.
    zero = np.zeros(2)
    np.testing.assert_allclose(rules.expected_cost(scenario, zero, zero), [11.0, 10.0])
    # Agent 0 reports 2.75 more: λ = 5, G = (3, 3), cut = (2.5, 1.25), Q = (−3.5, .75), and 6/2·ΣQ = −8.25 each.
    realised = rules.realised_cost(scenario, np.array([2.75, 0.0]), zero)
    np.testing.assert_allclose(realised, [4.5 + 6 + 3 + 6.25 - 3.5 - 8.25, 4.5 + 6 + 3.125 + 0.75 - 8.25])
    # Noise: V = x²/(2A) = 4 at x = 2 costs B_n V/(2B²) on top.
    x = np.array([2.0, 0.0])
    variance = rules.least_variance(scenario, x)
    np.testing.assert_array_equal(variance, [4.0, 0.0])
    extra = rules.expected_cost(scenario, x, variance) - rules.expected_cost(scenario, x, zero)
    np.testing.assert_allclose(extra, np.array([1.5, 1.25]) * 4 / (2 * 2.75**2))
    np.testing.assert_array_equal(rules.privacy_loss(scenario, x, variance), [0.5, 0.0])
    np.testing.assert_array_equal(rules.privacy_loss(scenario, x, zero), [np.inf, 0.0])


def test_interior_clearing_is_the_joint_optimum(solve_qp):
    for seed in range(5):
        scenario = Scenario.random(SIZE, seed)
        y = scenario.private_information
        generation, cut, _, _, _, dual = market_qp(solve_qp, scenario, y)
        price = rules.clearing_price(scenario, y)
        np.testing.assert_allclose(np.stack(rules.dispatch(scenario, price)), [generation, cut], atol=1e-8)
        np.testing.assert_allclose(dual, price, atol=1e-8)


def test_bounded_clearing_is_the_joint_optimum(solve_qp):
    binding = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        scenario = Scenario.random(SIZE, seed)
        demand, top = scenario.nominal_demand, scenario.generation_max
        scenario = scenario.replace(
            demand_min=demand * rng.uniform(0, 0.3, SIZE),
            demand_max=demand + rng.uniform(0, 1, SIZE),
            generation_min=top * rng.uniform(0, 0.05, SIZE),
            margin=0.0,
            generation_price=rng.uniform(4, 5, SIZE),
        )
        least = scenario.generation_min.sum() + (demand - scenario.demand_max).sum()
        most = top.sum() + (demand - scenario.demand_min).sum()
        y = rng.dirichlet(np.ones(SIZE)) * (least + rng.uniform(0.02, 0.98) * (most - least))
        dispatch, dual = pool_qp(solve_qp, scenario, y.sum())
        price = rules.clearing_price(scenario, y, bounded=True)
        mine = np.stack(rules.dispatch(scenario, price, bounded=True))
        np.testing.assert_allclose(mine, dispatch, atol=1e-8, rtol=0)
        np.testing.assert_allclose(dual, price, atol=1e-8, rtol=0)
        binding += not np.allclose(mine, np.stack(rules.dispatch(scenario, price)), atol=1e-6)
    assert binding > 30


def test_bounded_price_is_clamped_where_nobody_can_serve():
    scenario = load_scenario()
    points, _ = params_of.clip_points(scenario.params())
    served = np.array([-1e6, 1e6])[:, None] * np.eye(1, 13)
    prices = rules.clearing_price(scenario, served, bounded=True)
    np.testing.assert_array_equal(prices, [points.min(), points.max()])
    generation, cut = rules.dispatch(scenario, prices, bounded=True)
    np.testing.assert_array_equal(generation[1], scenario.generation_max)
    np.testing.assert_allclose(cut[0], scenario.nominal_demand - scenario.demand_max)


def test_bounded_price_is_the_lowest_on_a_flat_piece():
    # A scenario has no flat piece inside: all its devices move at some common price. Parameters may have one.
    one = np.ones(2)
    params = params_of.derive(
        Scenario.random(2, 0)
        .params()
        ._replace(
            discomfort=one,
            generation_curvature=one,
            generation_price=2 * one,
            nominal_demand=one,
            demand_min=0 * one,
            demand_max=3 * one,
            generation_min=one,
            generation_max=2 * one,
        )
    )
    # Demand is cut to 0 at price 2; generation stays at 1 until price 3: 2·(1 + 1) MWh is served from 2 to 3.
    served = np.array([[2.0, 2.0], [2.0, 1.0], [2.5, 2.5], [4.0, 4.0]])
    np.testing.assert_allclose(rules.clearing_price(params, served, bounded=True), [2.0, 1.0, 3.5, 4.0])


def test_homogeneous_trade_is_a_tax(solve_qp):
    scenario = load_scenario()
    y = scenario.private_information
    price = rules.clearing_price(scenario, y)
    *_, cost, _ = market_qp(solve_qp, scenario, y)
    generation, cut = rules.dispatch(scenario, price)
    net_import = y - generation - cut
    np.testing.assert_allclose(market_cost(scenario, y, price), cost + net_import, atol=1e-7)
    # (3) and (5) agree while imports balance, and differ at node 0 by −cΣQ once they do not.
    books = scenario.replace(bookkeeping="root")
    np.testing.assert_allclose(rules.trading_cost(books, net_import), net_import, atol=1e-12)
    unbalanced = net_import + np.arange(13.0)
    difference = rules.trading_cost(books, unbalanced) - rules.trading_cost(scenario, unbalanced)
    np.testing.assert_allclose(difference, [-unbalanced.sum()] + [0.0] * 12, atol=1e-12)


@pytest.mark.parametrize("seed", range(6))
def test_heterogeneous_trade_is_the_joint_optimum(solve_qp, seed):
    scenario = heterogeneous(9, seed)
    y = scenario.private_information
    generation, cut, line_flow, trade, cost, _ = market_qp(solve_qp, scenario, y)
    clear = (scenario.lines != 0).all(axis=1)
    assert clear.sum() > 2
    np.testing.assert_allclose(scenario.bilateral_flows[clear], line_flow, atol=1e-7)
    np.testing.assert_array_equal(scenario.bilateral_flows[~clear], 0.0)
    net_import = y - generation - cut
    np.testing.assert_allclose(rules.trading_cost(scenario, net_import), trade, atol=1e-7)
    np.testing.assert_allclose(market_cost(scenario, y, rules.clearing_price(scenario, y)), cost + trade, atol=1e-7)


def test_free_flow_of_a_symmetric_pair_moves_money_but_makes_none(solve_qp):
    scenario = heterogeneous(9, 3)
    line = int(np.flatnonzero((scenario.lines != 0).all(axis=1))[0])
    first, second = scenario.lines[line]
    prices = scenario.price_matrix.copy()
    prices[second, first] = prices[first, second]
    y, net_import = scenario.private_information, np.linspace(-2, 2, 9)
    costs = []
    for flow in (-4.0, 0.0, 1.7):
        free = np.zeros(len(scenario.lines))
        free[line] = flow
        tied = scenario.replace(trading_price=(scenario.root_price, prices), symmetric_flow=free)
        assert tied.bilateral_flows[line] == flow
        costs.append(rules.trading_cost(tied, net_import))
    np.testing.assert_allclose(np.sum(costs, axis=1), np.sum(costs[1]), atol=1e-12)
    assert np.ptp(costs, axis=0)[[first, second]].min() > 0.1
    generation, cut, line_flow, trade, *_ = market_qp(solve_qp, tied, y)
    assert trade.sum() == pytest.approx(rules.trading_cost(tied, y - generation - cut).sum(), abs=1e-7)
    others = np.delete(np.flatnonzero((scenario.lines != 0).all(axis=1)), 0)
    np.testing.assert_allclose(tied.bilateral_flows[others], line_flow[1:], atol=1e-7)


# The cost of a report.

CASES = {
    "default": load_scenario(),
    "root books": load_scenario(bookkeeping="root"),
    "heterogeneous": heterogeneous(SIZE, 1),
    "floor": load_scenario(privacy="floor"),
}


@pytest.mark.parametrize("case", CASES)
def test_expected_cost_is_the_mean_over_the_noise(case):
    scenario = CASES[case]
    shift, variance = random_profile(scenario, 1)
    noise = np.random.default_rng(2).standard_normal((200_000, scenario.size)) * np.sqrt(variance)
    draws = rules.realised_cost(scenario, shift, noise)
    error = draws.std(axis=0) / np.sqrt(len(draws))
    assert (np.abs(draws.mean(axis=0) - rules.expected_cost(scenario, shift, variance)) < 4 * error).all()


@pytest.mark.parametrize("case", CASES)
def test_realised_cost_is_the_market_cleared_at_the_reports(case):
    scenario = CASES[case]
    shift, variance = random_profile(scenario, 3)
    noise = np.random.default_rng(4).standard_normal((5, scenario.size)) * np.sqrt(variance)
    y = scenario.private_information
    for row, cost in zip(noise, rules.realised_cost(scenario, shift, noise), strict=True):
        price = rules.clearing_price(scenario, y + shift + row)
        charge = -scenario.wholesale_price / scenario.size * (shift + row).sum()
        np.testing.assert_allclose(cost, market_cost(scenario, y, price) + charge, rtol=1e-12, atol=1e-10)


@given(st.sampled_from(sorted(CASES)), st.integers(0, 10**6))
def test_utility_gap_is_the_difference_of_costs(case, seed):
    scenario = CASES[case]
    params, load = scenario.params(), scenario.private_information.sum()
    shift, variance = random_profile(scenario, seed)
    zero = np.zeros(scenario.size)
    hidden = rules.least_variance(scenario, zero)
    gap = rules.expected_cost(scenario, zero, hidden) - rules.expected_cost(scenario, shift, variance)
    factored = rules.utility_gap(params, load, shift.sum(), (variance - hidden).sum())
    np.testing.assert_allclose(factored, gap, atol=1e-10)
    noise = np.random.default_rng(seed).standard_normal(scenario.size)
    gap = rules.realised_cost(scenario, zero, zero) - rules.realised_cost(scenario, shift, noise)
    np.testing.assert_allclose(rules.utility_gap(params, load, (shift + noise).sum(), 0.0), gap, atol=1e-10)


def test_costs_take_leading_axes_and_private_information():
    scenario = CASES["heterogeneous"]
    shift, variance = random_profile(scenario, 5, (3, 4))
    y = scenario.private_information + np.random.default_rng(0).normal(size=(3, 4, SIZE))
    costs = rules.expected_cost(scenario, shift, variance, private_information=y)
    for index in np.ndindex(3, 4):
        moved = scenario.replace(renewable_generation=0.0, nominal_demand=scenario.nominal_demand)
        single = rules.expected_cost(moved, shift[index], variance[index], private_information=y[index])
        np.testing.assert_allclose(costs[index], single, rtol=1e-13)


# Privacy.


def test_privacy_loss_is_the_divergence_of_the_two_reports():
    scenario = load_scenario()
    shift, variance = random_profile(scenario, 6)
    loss = rules.privacy_loss(scenario, shift, variance)
    # log-likelihood ratio of N(x, V) against N(0, V) under the former: mean η and variance 2η (Lemma 7).
    reports = shift + np.random.default_rng(7).standard_normal((200_000, 13)) * np.sqrt(variance)
    ratio = (reports**2 - (reports - shift) ** 2) / (2 * variance)
    np.testing.assert_allclose(ratio.mean(axis=0), loss, rtol=0.01)
    np.testing.assert_allclose(ratio.var(axis=0), 2 * loss, rtol=0.02)
    np.testing.assert_allclose(rules.privacy_loss(scenario, shift, rules.least_variance(scenario, shift)), 10.0)


def test_privacy_price_is_the_value_of_a_looser_budget():
    # Derivative of the least cost in the right-hand side of (8e) written as |x| ≤ σ√(2A): V = ((|x| − r)/√(2A))².
    scenario = load_scenario(privacy_budget=np.linspace(0.2, 10, 13))
    shift, _ = random_profile(scenario, 8)
    root, step = np.sqrt(2 * scenario.privacy_budget), 1e-5
    variances = [((np.abs(shift) - r) / root) ** 2 for r in (-step, step)]
    slope = [
        [rules.expected_cost(scenario, shift, np.where(np.arange(13) == n, v, 0.0))[n] for n in range(13)]
        for v in variances
    ]
    price = (np.array(slope[0]) - slope[1]) / (2 * step)
    np.testing.assert_allclose(rules.privacy_price(scenario, shift, "kkt"), price, atol=1e-8)
    one = scenario.replace(privacy_budget=1.0)
    np.testing.assert_array_equal(rules.privacy_price(one, shift, "kkt"), rules.privacy_price(one, shift, "paper"))
    with pytest.raises(ValueError, match="form must be one of 'paper', 'kkt'; got 'dual'"):
        rules.privacy_price(scenario, shift, "dual")


# The same lines on every namespace.


def everything(params, shift, variance):
    """All rules at one profile, as one list."""
    y = rules.private(params, None)
    reports = y + shift
    # Far enough out that bounds bind.
    spread = reports * 3.0
    price = rules.clearing_price(params, spread, bounded=True)
    return [
        rules.clearing_price(params, reports),
        price,
        *rules.dispatch(params, price, bounded=True),
        rules.trading_cost(params, reports),
        rules.least_variance(params, shift),
        rules.privacy_loss(params, shift, variance),
        rules.privacy_price(params, shift, "kkt"),
        rules.expected_cost(params, shift, variance),
        rules.realised_cost(params, shift, variance),
        rules.expected_cost(params, shift, variance, "physical"),
        rules.expected_cost(params, 0.0 * shift, 0.0 * variance, "physical"),
        rules.realised_cost(params, shift, variance, "physical"),
        rules.expected_cost(params, shift, variance, "physical", private_information=3.0 * y),
    ]


@pytest.mark.parametrize("case", CASES)
def test_jax_and_torch_equal_numpy(case):
    scenario = CASES[case]
    shift, variance = random_profile(scenario, 9, (4,))
    expected = everything(scenario.params(), shift, variance)
    torch = array_api_compat.torch
    on_torch = everything(scenario.params(torch), torch.asarray(shift), torch.asarray(variance))
    with jax.enable_x64(True):
        params = scenario.params(jax.numpy)
        # One row at a time under vmap, the whole batch at once on the others.
        on_jax = jax.jit(jax.vmap(everything, (None, 0, 0)))(
            params, jax.numpy.asarray(shift), jax.numpy.asarray(variance)
        )
    for results in (on_torch, on_jax):
        for mine, theirs in zip(expected, results, strict=True):
            np.testing.assert_allclose(np.asarray(theirs), mine, rtol=1e-11, atol=1e-10)


@pytest.mark.parametrize("case", CASES)
def test_single_precision_keeps_single_precision(case):
    scenario = CASES[case]
    shift, variance = random_profile(scenario, 9, (4,))
    expected = everything(scenario.params(), shift, variance)
    small = everything(scenario.params(np, np.float32), np.float32(shift), np.float32(variance))
    for mine, theirs in zip(expected, small, strict=True):
        assert theirs.dtype == np.float32
        np.testing.assert_allclose(theirs, mine, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("case", ["default", "heterogeneous", "root books"])
def test_gradient_of_own_cost_is_the_closed_form(case):
    scenario = CASES[case]
    size, p0 = scenario.size, scenario.wholesale_price
    shift, _ = random_profile(scenario, 10)
    with jax.enable_x64(True):
        params = scenario.params(jax.numpy)

        def own(x):
            return rules.expected_cost(params, x, rules.least_variance(params, x))

        gradient = np.diagonal(np.asarray(jax.jacobian(own)(jax.numpy.asarray(shift))))
    slope = 1 / scenario.generation_curvature + 1 / (2 * scenario.discomfort)
    total, beta = slope.sum(), (scenario.generation_price / scenario.generation_curvature).sum()
    reports = scenario.private_information + shift
    incentive = scenario.root_price * slope / total + p0 / size
    if case != "default":
        incentive[0] = p0 / size - (scenario.root_price * slope)[1:].sum() / total
    closed = slope / total**2 * (reports.sum() + beta + shift / (2 * scenario.privacy_budget)) - incentive
    np.testing.assert_allclose(gradient, closed, atol=1e-12)


def test_physical_cost_has_a_gradient_everywhere():
    scenario = load_scenario()
    with jax.enable_x64(True):
        params = scenario.params(jax.numpy)

        def social(x):
            return rules.expected_cost(params, x, rules.least_variance(params, x), "physical").sum()

        # Truthful play has no noise at all.
        for shift in (np.zeros(13), random_profile(scenario, 11)[0]):
            gradient = np.asarray(jax.grad(social)(jax.numpy.asarray(shift)))
            steps = 1e-5 * np.eye(13)
            numeric = [(social(shift + step) - social(shift - step)) / 2e-5 for step in steps]
            np.testing.assert_allclose(gradient, numeric, atol=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda case, z: rules.clearing_price(case, z[:5]), r"reports must have shape \(..., 13\), got \(5,\)"),
        (lambda case, z: rules.expected_cost(case, z[:5], z[:5]), r"shift must have shape \(..., 13\)"),
        (lambda case, z: rules.expected_cost(case, z, z[:12]), r"variance must have shape \(..., 13\)"),
        (lambda case, z: rules.expected_cost(case, z, z, settlement="phys"), "settlement must be one of"),
        (lambda case, z: rules.realised_cost(case, z, z * np.nan), "noise of agent 0 must be finite"),
        (lambda case, z: rules.trading_cost(case, z[:3]), "net_import must have shape"),
        (lambda case, z: variational_equilibrium(case, infeasible="neares"), "infeasible must be one of"),
        (lambda case, z: variational_equilibrium(case, z[:5] + 1), "weights must have shape"),
        (
            lambda case, z: variational_equilibrium(case, private_information=z * np.nan),
            "private_information of agent 0",
        ),
        (lambda case, z: exploitability(case, z, z[:12]), "variance must have shape"),
        (lambda case, z: best_response(case, z[:2]), "shift must have shape"),
        (lambda case, z: potential(case, z, z[:2]), "variance must have shape"),
        (
            lambda case, z: rules.expected_cost(case, z, z, private_information=[1.0] * 12),
            r"private_information must have shape \(..., 13\), got \(12,\)",
        ),
        (
            lambda case, z: rules.expected_cost(case, z + np.zeros((3, 1)), z, private_information=np.ones((4, 13))),
            r"leading axes .* shift \(3, 13\), variance \(13,\), private_information \(4, 13\)",
        ),
        (lambda case, z: exploitability(case, z + np.zeros((3, 1)), z + np.zeros((4, 1))), "leading axes must be"),
    ],
)
def test_wrong_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call(load_scenario(), np.zeros(13))


def test_lists_are_taken():
    case = load_scenario()
    assert rules.clearing_price(case, list(case.private_information)) == rules.clearing_price(
        case, case.private_information
    )
    zero = np.zeros(13)
    for measure in (rules.expected_cost, rules.realised_cost, exploitability, potential):
        np.testing.assert_array_equal(measure(case, [0.0] * 13, [0.0] * 13), measure(case, zero, zero))
    for mine, other in zip(rules.dispatch(case, 7), rules.dispatch(case, np.array(7.0)), strict=True):
        np.testing.assert_array_equal(mine, other)


def test_slack_and_violation_of_the_shared_interval():
    params = load_scenario().params()
    low, high = params.report_low, params.report_high
    totals = np.array([low - 2.0, low, 0.5 * (low + high), high - 1.0, high + 3.0])
    np.testing.assert_allclose(rules.slack(params, totals), [-2.0, 0.0, 0.5 * (high - low), 1.0, -3.0], atol=1e-9)
    np.testing.assert_allclose(rules.violation(params, totals), [2.0, 0.0, 0.0, 0.0, 3.0], atol=1e-9)
    for total in totals:
        assert rules.slack(params, total) == rules.slack(params, totals[totals == total])[0]


PRIVACY_RULES = {
    "least_variance": lambda case, shift, variance: rules.least_variance(case, shift),
    "privacy_loss": rules.privacy_loss,
    "privacy_price": lambda case, shift, variance: rules.privacy_price(case, shift),
    "expected_cost": rules.expected_cost,
}


@pytest.mark.parametrize("rule", PRIVACY_RULES.values(), ids=PRIVACY_RULES)
def test_rules_take_lists_and_refuse_what_is_no_profile(rule):
    case, ones = load_scenario(), np.ones(13)
    np.testing.assert_array_equal(rule(case, [1.0] * 13, [1.0] * 13), rule(case, ones, ones))
    with pytest.raises(ValueError, match="shift of agent 3 must be finite, got nan"):
        rule(case, np.where(np.arange(13) == 3, np.nan, 1.0), ones)
    with pytest.raises(ValueError, match=re.escape("shift must have shape (..., 13), got (12,)")):
        rule(case, np.ones(12), ones)


@pytest.mark.parametrize("rule", [rules.privacy_loss, rules.expected_cost])
def test_variances_are_not_negative(rule):
    with pytest.raises(ValueError, match=re.escape("variance of agent 4 must be >= 0, got -0.5")):
        rule(load_scenario(), np.ones((2, 13)), np.where(np.arange(13) == 4, -0.5, np.ones((2, 13))))
