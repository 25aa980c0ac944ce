"""Rules of the VCG market: printed figures, a generic solver, linear programs, hand-worked cases, other namespaces."""

import array_api_compat.torch
import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linprog

from p2penv.dpvcg import rules
from p2penv.dpvcg.rules import Bids, Bounds
from p2penv.dpvcg.scenario import Scenario, load_scenario

CASE = load_scenario()


def bids_about(case, seed, batch=()):
    """Reports well away from the truth, with leading axes."""
    rng = np.random.default_rng(seed)
    return Bids(*(field * rng.uniform(0.3, 2.5, (*batch, case.size)) for field in case.bids))


def take(bids, index):
    return Bids(*(field[..., index] for field in bids))


def row(bids, index):
    return Bids(*(field[index] for field in bids))


def solve(solve_qp, bids, bounds):
    """Efficient allocation, welfare and price by interior points, in units of the largest limit and marginal value."""
    size, length, unit = bids.linear.size, np.abs(bounds).max(), np.abs(bids.linear).max()
    found, dual = solve_qp(
        np.diag(-2.0 * bids.quadratic * length / unit),
        -bids.linear / unit,
        np.ones((1, size)),
        np.zeros(1),
        *(limit / length for limit in bounds),
    )
    found = length * found
    return found, (bids.quadratic * found**2 + bids.linear * found + bids.constant).sum(), -unit * dual[0]


def without(values, agent):
    return type(values)(*(np.delete(field, agent, axis=-1) for field in values))


# Printed figures of the paper's case.


def test_efficient_allocation_of_the_case():
    found = rules.clear(CASE.bids, CASE.bounds)
    assert found.price == pytest.approx(0.047956355, abs=5e-10)
    assert found.welfare == pytest.approx(1.568237, abs=5e-7)
    np.testing.assert_allclose(
        found.allocation * CASE.sign, [15, 14.003637, 18.622660, 9.626444, 15.521675, 22.478178], atol=5e-7
    )


def test_vcg_payments_of_the_case():
    found = rules.pivots(CASE.bids, CASE.bounds)
    others = [1.198939, 1.238988, 1.404575, 1.319925, 1.115397, 0.726836]
    np.testing.assert_allclose(found.welfare_without, others, atol=6e-7)
    payments = [0.630752, 0.588926, 0.747996, -0.506091, -0.884004, -1.414105]
    np.testing.assert_allclose(found.payment, payments, atol=6e-7)
    assert found.payment.sum() == pytest.approx(-0.8365, abs=5e-5)  # the operator's deficit


# A generic solver.


@pytest.mark.parametrize(("consumers", "producers", "agents"), [(2, 2, 4), (3, 3, 6), (9, 4, 13), (60, 40, 8),
                                                                (600, 400, 2)])  # fmt: skip
def test_clearing_and_payments_equal_the_generic_solver(solve_qp, consumers, producers, agents):
    for seed in range(6) if consumers < 50 else [1]:
        case = Scenario.random(consumers, producers, seed)
        bids = bids_about(case, seed)
        found = rules.pivots(bids, case.bounds)
        allocation, welfare, price = solve(solve_qp, bids, case.bounds)
        np.testing.assert_allclose(found.clearing.allocation, allocation, atol=1e-8)
        assert found.clearing.welfare == pytest.approx(welfare, abs=1e-8)
        inside = (allocation > case.bounds.low + 1e-6) & (allocation < case.bounds.high - 1e-6)
        if inside.any():
            assert found.clearing.price == pytest.approx(price, abs=1e-8)
        assert abs(found.clearing.allocation.sum()) < 1e-12 * np.abs(found.clearing.allocation).sum()
        values = bids.quadratic * allocation**2 + bids.linear * allocation + bids.constant
        rest = rules.allocations_without(bids, case.bounds)
        for agent in np.random.default_rng(seed).permutation(case.size)[:agents]:
            others, best, _ = solve(solve_qp, without(bids, agent), without(case.bounds, agent))
            assert found.welfare_without[agent] == pytest.approx(best, abs=1e-8)
            assert found.payment[agent] == pytest.approx(best - (values.sum() - values[agent]), abs=1e-8)
            np.testing.assert_allclose(np.delete(rest[agent], agent), others, atol=1e-8)
            assert rest[agent, agent] == 0.0


@pytest.mark.parametrize(("consumers", "producers", "seeds", "agents"), [(3, 3, 20, 6), (25, 15, 2, 8)])
def test_exact_best_response_under_vcg_is_the_truth(solve_qp, consumers, producers, seeds, agents):
    """A report moves an agent's payoff by the allocation alone: the best feasible one for it bounds all reports."""
    for seed in range(seeds):
        case = CASE if seed == 0 and consumers == 3 else Scenario.random(consumers, producers, seed)
        others = bids_about(case, seed)
        for agent in np.random.default_rng(seed).permutation(case.size)[:agents]:
            own = np.arange(case.size) == agent
            honest = Bids(*(np.where(own, true, lie) for true, lie in zip(case.bids, others, strict=True)))
            found = rules.pivots(honest, case.bounds)
            payoff = rules.value(case.bids, found.clearing.allocation)[agent] - found.payment[agent]
            _, best, _ = solve(solve_qp, honest, case.bounds)
            _, rest, _ = solve(solve_qp, without(honest, agent), without(case.bounds, agent))
            assert best - rest - payoff <= 1e-9
            assert payoff - (best - rest) <= 1e-9


@given(st.integers(2, 7), st.integers(2, 7), st.integers(0, 10**6))
def test_what_was_cleared_is_optimal(consumers, producers, seed):
    """Optimality conditions, whoever found it: balance, limits, and marginal values on the right side of the price."""
    case = Scenario.random(consumers, producers, seed)
    bids = bids_about(case, seed, (4,))
    found = rules.clear(bids, case.bounds)
    y, price = found.allocation, found.price[:, None]
    low, high = case.bounds
    np.testing.assert_allclose(y.sum(axis=1), 0.0, atol=1e-12 * np.abs(y).sum())
    assert ((y >= low) & (y <= high)).all()
    marginal = 2.0 * bids.quadratic * y + bids.linear
    assert (marginal[y > low] >= np.broadcast_to(price, y.shape)[y > low] - 1e-12).all()
    assert (marginal[y < high] <= np.broadcast_to(price, y.shape)[y < high] + 1e-12).all()


def test_a_market_of_ten_thousand():
    """Payments against markets cleared without the agent, one after another."""
    case = Scenario.random(5000, 5000, 1)
    found = rules.pivots(case.bids, case.bounds)
    own = rules.value(case.bids, found.clearing.allocation)
    for agent in (0, 17, 4999, 5000, 9999):
        best = rules.clear(without(case.bids, agent), without(case.bounds, agent)).welfare
        assert found.payment[agent] == pytest.approx(best - np.delete(own, agent).sum(), abs=1e-9)
        # What the agent adds, by the price of its trade: between two markets' prices.
        prices = sorted([found.clearing.price, found.price_without[agent]])
        traded = found.payment[agent] / found.clearing.allocation[agent]
        assert found.clearing.allocation[agent] == 0 or prices[0] - 1e-9 <= traded <= prices[1] + 1e-9


# Ties and flat pieces, by hand.


def test_the_price_of_a_flat_piece_is_the_lowest():
    bounds = Bounds(np.array([0.0, 0.0, -2.0, -3.0]), np.array([3.0, 2.0, 0.0, 0.0]))
    quadratic, constant = np.array([-0.1, -0.1, -0.05, -0.05]), np.zeros(4)
    # Marginal values at the limits: demand .9 and .6, supply .3 and .2. All trade at prices from .3 to .6.
    bids = Bids(quadratic, np.array([1.5, 1.0, 0.1, -0.1]), constant)
    found = rules.pivots(bids, bounds)
    np.testing.assert_allclose(found.clearing.allocation, [3, 2, -2, -3], rtol=1e-15)
    assert found.clearing.price == pytest.approx(0.3, abs=1e-15)
    value = (quadratic * found.clearing.allocation + bids.linear) * found.clearing.allocation
    # Without consumer 0: 2 kWh of demand, from producer 1 alone while .1 > −.1 + 2·.05·2 (exactly a tie).
    np.testing.assert_allclose(found.welfare_without[0], 2 * 1.0 - 0.4 - (0.05 * 4 - 0.1 * 2), atol=1e-12)
    np.testing.assert_allclose(found.payment[0], found.welfare_without[0] - value[1:].sum(), atol=1e-12)
    assert found.price_without[0] == pytest.approx(0.1, abs=1e-15)


def test_equal_agents_share():
    """Four equal consumers and four equal producers: every vertex of the excess is met eightfold."""
    bids = Bids(np.repeat([-0.01, -0.02], 4), np.repeat([0.5, 0.1], 4), np.zeros(8))
    bounds = Bounds(np.repeat([0.0, -10.0], 4), np.repeat([10.0, 0.0], 4))
    found = rules.pivots(bids, bounds)
    # .5 − .02y = .1 + .04y
    np.testing.assert_allclose(np.abs(found.clearing.allocation), 0.4 / 0.06, rtol=1e-14)
    assert np.ptp(found.payment[:4]) < 1e-15
    # Without one consumer: demand .5 − .02d, supply .1 + .04·3d/4.
    demand = 0.4 / 0.05
    rest = 3 * (0.5 * demand - 0.01 * demand**2) - 4 * (0.1 * 0.75 * demand + 0.02 * (0.75 * demand) ** 2)
    np.testing.assert_allclose(found.welfare_without[:4], rest, rtol=1e-13)


def test_a_market_that_must_trade_at_its_limits():
    """No slack at all: minimum demands equal the largest generation."""
    bounds = Bounds(np.array([4.0, 1.0, -2.0, -3.0]), np.array([9.0, 8.0, 0.0, 0.0]))
    found = rules.clear(bids_about(Scenario.random(2, 2, 0), 0), bounds)
    np.testing.assert_allclose(found.allocation, [4, 1, -2, -3], atol=1e-13)


@given(st.integers(0, 10**6), st.sampled_from([0.5, 0.25, 0.1]))
def test_limits_on_a_grid(seed, unit):
    """Coarse limits and coefficients: coinciding vertices, agents at both limits, polytopes with few dimensions."""
    rng = np.random.default_rng(seed)
    size = 4
    low, high = np.sort(rng.integers(-6, 7, (2, size)), axis=0) * unit
    high = high + unit
    if low.sum() > 0 or high.sum() < 0:
        return
    bids = Bids(-0.125 * 2.0 ** rng.integers(0, 3, size), 0.25 * rng.integers(-2, 3, size), np.zeros(size))
    found = rules.clear(bids, Bounds(low, high))
    y = found.allocation
    assert abs(y.sum()) < 1e-13
    marginal = 2.0 * bids.quadratic * y + bids.linear
    assert (marginal[y > low + 1e-12] >= found.price - 1e-12).all()
    assert (marginal[y < high - 1e-12] <= found.price + 1e-12).all()
    if unit != 0.1:
        # Exact in binary, so the lowest of all prices that clear: a little below it more is wanted.
        wanted = np.clip((found.price - 1e-7 - bids.linear) / (2.0 * bids.quadratic), low, high)
        assert wanted.sum() > 1e-9 or (wanted == high).all()
    # Vertices of this polytope lie on the grid, since one row of ones is totally unimodular: try all of it.
    steps = [np.arange(round(start / unit), round(end / unit) + 1) for start, end in zip(low, high, strict=True)]
    grid = np.stack(np.meshgrid(*steps, indexing="ij"), axis=-1).reshape(-1, size)
    grid = unit * grid[grid.sum(axis=1) == 0]
    least = (bids.quadratic * grid**2 + bids.linear * grid).sum(axis=1).min()
    assert rules.oscillation(bids, Bounds(low, high)) == pytest.approx(found.welfare - least, abs=1e-12)


# Bounds: linear programs find vertices of the polytope.


def worst_vertex(bids, bounds, rng, directions=150):
    """Least welfare at the vertices that linear programs of random directions end at."""
    size = bids.linear.size
    found = []
    for direction in rng.normal(size=(directions, size)):
        result = linprog(direction, A_eq=np.ones((1, size)), b_eq=[0.0], bounds=np.stack(bounds, axis=1))
        found.append((bids.quadratic * result.x**2 + bids.linear * result.x + bids.constant).sum())
    # Slopes of welfare itself are good directions too.
    for start in rng.uniform(bounds.low, bounds.high, (directions // 3, size)):
        slope = 2.0 * bids.quadratic * start + bids.linear
        result = linprog(slope, A_eq=np.ones((1, size)), b_eq=[0.0], bounds=np.stack(bounds, axis=1))
        found.append((bids.quadratic * result.x**2 + bids.linear * result.x + bids.constant).sum())
    return min(found)


def test_oscillation_of_the_case():
    assert rules.oscillation(CASE.bids, CASE.bounds) == pytest.approx(2.560187, abs=5e-7)
    least = worst_vertex(CASE.bids, CASE.bounds, np.random.default_rng(0), 300)
    assert 1.5682371451 - least == pytest.approx(2.560187, abs=1e-6)


@pytest.mark.parametrize("seed", range(4))
def test_oscillation_against_linear_programs(seed):
    case = Scenario.random(2 + seed % 2, 2, seed)
    bids = bids_about(case, seed, (2,))
    found = rules.oscillation(bids, case.bounds)
    rng = np.random.default_rng(seed)
    for index in range(2):
        one = row(bids, index)
        least = worst_vertex(one, case.bounds, rng)
        assert found[index] == pytest.approx(rules.clear(one, case.bounds).welfare - least, abs=1e-9)


def test_oscillation_of_many_agents_is_a_bound(monkeypatch):
    case = Scenario.random(4, 4, 3)
    exact = rules.oscillation(case.bids, case.bounds)
    monkeypatch.setattr(rules, "VERTEX_AGENTS", 4)
    bound = rules.oscillation(case.bids, case.bounds)
    assert exact <= bound <= 3.0 * exact
    large = Scenario.random(20, 20, 3)
    rng = np.random.default_rng(0)
    spread = rules.clear(large.bids, large.bounds).welfare - worst_vertex(large.bids, large.bounds, rng, 20)
    assert rules.oscillation(large.bids, large.bounds) >= spread


@given(st.integers(0, 10**6), st.floats(0.01, 50.0), st.integers(3, 40))
def test_no_tilt_gains_more_than_the_bound(seed, beta, size):
    """Two laws ∝ exp(βW) on random points whose W differ by at most ω: the mean of any u moves by the bound at most."""
    rng = np.random.default_rng(seed)
    welfare, payoff = rng.normal(size=size), rng.normal(size=size)
    change = rng.uniform(-0.5, 0.5, size)
    laws = [np.exp(beta * (w - w.max())) for w in (welfare, welfare + change)]
    first, second = (law / law.sum() for law in laws)
    bound = rules.regret_bound(beta, np.array([np.ptp(change)]), np.array([np.ptp(payoff)]))
    assert abs((second - first) @ payoff) <= bound[0] * (1 + 1e-12)
    # And it is attained: two points, equally likely at first, tilted by half of ω each way.
    ends = np.exp(0.5 * beta * np.array([[-0.5, 0.5], [0.5, -0.5]]))
    ends = ends[:, 1] / ends.sum(axis=1)
    assert rules.regret_bound(beta, np.array([1.0]), np.array([1.0]))[0] == pytest.approx(abs(ends[0] - ends[1]))


@pytest.mark.parametrize(
    ("gap", "size", "delta", "epsilon"),
    [(0.5, 10, 0.1, 18.42), (0.5, 100, 0.1, 27.63), (0.1, 10, 0.05, 105.97), (1.0, 1000, 0.01, 23.03)],
)
def test_points_of_equation_16(gap, size, delta, epsilon):
    found = rules.epsilon_for_gap(gap, size, delta)
    assert found == pytest.approx(epsilon, abs=5e-3)
    assert rules.welfare_gap(found, size, delta) == pytest.approx(gap)


def test_theorem_1_says_nothing_on_the_case_below_7_8():
    """Eleven points, δ = .1: the gap allowed exceeds the whole range of welfare, .356 to 1.568."""
    spread = 1.568237 - 0.356
    assert rules.welfare_gap(7.75, 11, 0.1) > spread > rules.welfare_gap(7.8, 11, 0.1)
    np.testing.assert_allclose(rules.welfare_gap(np.array([1.0, 2.0]), 11, 0.1, 0.5), np.log(110) / [1.0, 2.0])


@given(st.integers(0, 10**6), st.floats(0.05, 50.0), st.integers(2, 60), st.floats(0.01, 0.5))
def test_theorem_1_holds(seed, epsilon, size, delta):
    """Exact probability that the draw is worse than the best of the range by more than the gap."""
    welfare = np.random.default_rng(seed).normal(size=size)
    law = np.exp(0.5 * epsilon * (welfare - welfare.max()))
    law /= law.sum()
    bad = welfare < welfare.max() - rules.welfare_gap(epsilon, size, delta)
    assert law[bad].sum() <= delta


def test_expected_gap():
    """One agent's quantity decides between two linear valuations: E[W* − W] of an exponential law is 1/β."""
    y = np.linspace(0.0, 400.0, 400_001)
    weight = np.exp(-0.5 * y)
    assert rules.expected_gap(0.5, 2) == pytest.approx((weight * y).sum() / weight.sum(), rel=1e-3)
    assert rules.expected_gap(2.0, 6) == 2.5


# Pieces of mechanisms.


def test_bids_of_report_parameters():
    reports = np.random.default_rng(0).uniform(0.5, 1.5, (3, 6, 1))
    found = rules.report_bids(CASE.bids, reports)
    for field, base in zip(found, CASE.bids, strict=True):
        np.testing.assert_array_equal(field, reports[..., 0] * base)
    pairs = np.random.default_rng(0).normal(size=(3, 6, 2))
    found = rules.report_bids(CASE.bids, pairs)
    np.testing.assert_array_equal(found.quadratic, pairs[..., 0])
    np.testing.assert_array_equal(found.linear, pairs[..., 1])
    np.testing.assert_array_equal(found.constant, np.broadcast_to(CASE.bids.constant, (3, 6)))


def test_one_honest():
    bids = bids_about(CASE, 0, (2,))
    found = rules.one_honest(bids, CASE.bids)
    for agent in range(6):
        for field, given_, true in zip(found, bids, CASE.bids, strict=True):
            np.testing.assert_array_equal(field[:, agent, agent], np.full(2, true[agent]))
            np.testing.assert_array_equal(np.delete(field[:, agent], agent, 1), np.delete(given_, agent, 1))


@pytest.mark.parametrize(("consumers", "producers"), [(2, 2), (3, 5), (30, 20)])
def test_batched_equals_loop(consumers, producers):
    case = Scenario.random(consumers, producers, 1)
    bids = bids_about(case, 2, (3, 4))
    found = rules.pivots(bids, case.bounds)
    rest, spread = rules.allocations_without(bids, case.bounds), rules.oscillation(bids, case.bounds)
    for index in np.ndindex(3, 4):
        one = rules.pivots(row(bids, index), case.bounds)
        for mine, batched in zip((*one.clearing, *one[1:]), (*found.clearing, *found[1:]), strict=True):
            np.testing.assert_allclose(batched[index], mine, rtol=1e-12, atol=1e-13)
        np.testing.assert_allclose(rest[index], rules.allocations_without(row(bids, index), case.bounds), atol=1e-12)
        assert spread[index] == pytest.approx(rules.oscillation(row(bids, index), case.bounds), rel=1e-13)


def everything(bids, bounds, reports, noise):
    """All rules, as one list."""
    found = rules.pivots(bids, bounds)
    changed = rules.report_bids(bids, reports)
    law = rules.Law(*(noise * (k + 1.0) for k in range(7)))
    law = law._replace(welfare=noise[..., 0], free=noise[..., 1])
    return [
        *found.clearing,
        *found[1:],
        *rules.clear(changed, bounds),
        rules.value(bids, found.clearing.allocation),
        rules.response(bids, bounds, found.clearing.price[..., None]),
        rules.allocations_without(bids, bounds),
        *rules.one_honest(changed, bids),
        rules.scale_sensitivity(bids, bounds, 0.5),
        rules.coefficient_sensitivity(0.1 * bids.quadratic**2, 0.1 * bids.linear**2, bounds),
        rules.regret_bound(2.0, bids.linear**2, bids.linear**2),
        rules.algorithm3_payments(law),
        rules.entropy_payments(law),
    ]


@pytest.mark.parametrize("case", [CASE, Scenario.random(9, 9, 4)], ids=["case", "random"])
def test_jax_and_torch_equal_numpy(case):
    bids, rng = bids_about(case, 5, (4,)), np.random.default_rng(5)
    reports, noise = rng.uniform(0.5, 1.5, (4, case.size, 1)), rng.normal(size=(4, case.size))
    expected = everything(bids, case.bounds, reports, noise)
    torch = array_api_compat.torch

    def on_torch(values):
        return type(values)(*map(torch.asarray, map(np.copy, values)))

    results = [everything(on_torch(bids), on_torch(case.bounds), torch.asarray(reports), torch.asarray(noise))]
    with jax.enable_x64(True):
        # One row at a time under vmap, the whole batch at once on the others.
        compiled = jax.jit(jax.vmap(everything, (0, None, 0, 0)))
        results.append(compiled(*jax.tree.map(jax.numpy.asarray, (bids, case.bounds, reports, noise))))
    for found in results:
        for mine, theirs in zip(expected, found, strict=True):
            np.testing.assert_allclose(np.asarray(theirs), mine, rtol=1e-10, atol=1e-11)


def test_oscillation_in_other_types():
    """Not compiled by JAX: which vertices there are depends on the limits."""
    bids = bids_about(CASE, 5, (4,))
    expected = rules.oscillation(bids, CASE.bounds)
    torch = array_api_compat.torch
    found = rules.oscillation(*(type(v)(*map(torch.asarray, map(np.copy, v))) for v in (bids, CASE.bounds)))
    np.testing.assert_allclose(np.asarray(found), expected, rtol=1e-12)
    small = rules.oscillation(*(type(v)(*map(np.float32, v)) for v in (bids, CASE.bounds)))
    assert small.dtype == np.float32
    np.testing.assert_allclose(small, expected, rtol=1e-4)


def test_single_precision_keeps_single_precision():
    bids, rng = bids_about(CASE, 5, (4,)), np.random.default_rng(5)
    reports, noise = rng.uniform(0.5, 1.5, (4, 6, 1)), rng.normal(size=(4, 6))
    expected = everything(bids, CASE.bounds, reports, noise)
    small = everything(
        Bids(*map(np.float32, bids)), Bounds(*map(np.float32, CASE.bounds)), np.float32(reports), np.float32(noise)
    )
    for mine, theirs in zip(expected, small, strict=True):
        assert theirs.dtype == np.float32
        np.testing.assert_allclose(theirs, mine, rtol=2e-3, atol=2e-4)


def test_envelope_theorem():
    """The gradient of welfare in an agent's coefficients is what it trades: y², y and 1."""
    import torch

    bids = Bids(*(torch.tensor(field, requires_grad=True) for field in CASE.bids))
    found = rules.clear(bids, Bounds(*map(torch.tensor, map(np.copy, CASE.bounds))))
    found.welfare.backward()
    y = found.allocation.detach().numpy()
    np.testing.assert_allclose(bids.quadratic.grad, y**2, rtol=1e-9)
    np.testing.assert_allclose(bids.linear.grad, y, rtol=1e-9)
    np.testing.assert_allclose(bids.constant.grad, np.ones(6))
