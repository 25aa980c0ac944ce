"""Certified best reports against dense grids, bounded local searches of scipy, and random reports."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize

from p2penv.dpvcg import search
from p2penv.dpvcg.search import maximise


def random_problems(seed, count, nodes, width, negative=False):
    """Statistics and objectives of no structure; the best report may lie anywhere."""
    rng = np.random.default_rng(seed)
    weights = rng.exponential(size=(count, nodes))
    statistics = rng.normal(size=(count, width, nodes))
    if width == 2:  # as y² and y go together
        statistics[:, 0] = statistics[:, 1] ** 2 + 0.5 * statistics[:, 0]
    # Mixtures make the objective rise and fall along the family.
    objective = rng.normal(size=(count, nodes)) + np.sin(3.0 * statistics[:, -1] + rng.uniform(0, 6, (count, 1)))
    if negative:
        weights = np.where(rng.random(weights.shape) < 0.2, -1e-6 * weights, weights)
    low = rng.uniform(-1.5, 0.5, (count, width))
    high = low + rng.uniform(0.2, 2.0, (count, width))
    return weights, statistics, objective, low, high


def expected(problem, reports, beta):
    """Expected objective (R,) of one problem at reports (R, k), by the definition."""
    weights, statistics, objective = problem
    exponent = beta * reports @ statistics
    chance = weights * np.exp(exponent - exponent.max(axis=1, keepdims=True))
    return chance @ objective / chance.sum(axis=1)


def brute_force(problem, low, high, beta):
    """Best of a dense grid, polished by a bounded local search."""
    axes = [np.linspace(start, end, 2001 if len(low) == 1 else 101) for start, end in zip(low, high, strict=True)]
    grid = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, len(low))
    values = expected(problem, grid, beta)
    best = values.max()
    for start in grid[np.argsort(values)[-3:]]:
        found = optimize.minimize(
            lambda report: -expected(problem, report[None], beta)[0],
            start,
            bounds=list(zip(low, high, strict=True)),
            options={"ftol": 1e-15, "gtol": 1e-10},
        )
        best = max(best, -found.fun)
    return best


@pytest.mark.parametrize("negative", [False, True])
@pytest.mark.parametrize("width", [1, 2])
@pytest.mark.parametrize("beta", [0.05, 1.0, 6.0])
def test_against_brute_force(width, beta, negative):
    weights, statistics, objective, low, high = random_problems(width, 12, 60, width, negative)
    found = maximise(weights, statistics, objective, low, high, beta)
    inside = 0
    for index in range(12):
        problem = weights[index], statistics[index], objective[index]
        best = brute_force(problem, low[index], high[index], beta)
        assert found.value[index] == pytest.approx(best, abs=2e-7)
        assert found.bound[index] >= best - 1e-11
        assert found.bound[index] - found.value[index] <= 1e-7
        assert expected(problem, found.report[index : index + 1], beta)[0] == pytest.approx(
            found.value[index], abs=1e-11
        )
        assert (found.report[index] >= low[index]).all()
        assert (found.report[index] <= high[index]).all()
        inside += bool(((found.report[index] > low[index]) & (found.report[index] < high[index])).any())
    # Not only corners were looked at.
    assert beta < 1.0 or inside > 0


@settings(max_examples=60)
@given(st.integers(0, 10**6), st.integers(1, 2), st.floats(0.0, 10.0), st.integers(1, 40), st.booleans())
def test_no_report_exceeds_the_bound(seed, width, beta, nodes, negative):
    weights, statistics, objective, low, high = random_problems(seed, 2, nodes, width, negative)
    weights[:, 0] = 1.0
    found = maximise(weights, statistics, objective, low, high, beta, limit=200)
    rng = np.random.default_rng(seed)
    for index in range(2):
        reports = rng.uniform(low[index], high[index], (500, width))
        edge = rng.random(reports.shape)
        reports = np.where(edge < 0.2, low[index], np.where(edge > 0.8, high[index], reports))
        values = expected((weights[index], statistics[index], objective[index]), reports, beta)
        assert values.max() <= found.bound[index] + 1e-12
        assert found.value[index] <= found.bound[index]


@given(st.integers(0, 10**6), st.integers(1, 2), st.floats(0.01, 2.0))
def test_one_box_is_bounded_whatever_the_signs(seed, width, beta):
    # A tenth of the nodes weigh −0.3 of what they did: far more than a quadrature's noise.
    weights, statistics, objective, low, high = random_problems(seed, 4, 30, width)
    rng = np.random.default_rng(seed)
    weights *= np.where(rng.random(weights.shape) < 0.1, -0.3, 1.0)
    found = maximise(weights, statistics, objective, low, high, beta, limit=1)
    for index in range(4):
        reports = rng.uniform(low[index], high[index], (400, width))
        reports = np.where(rng.random(reports.shape) < 0.3, high[index], reports)
        assert (
            expected((weights[index], statistics[index], objective[index]), reports, beta).max() <= found.bound[index]
        )


def test_two_nodes_by_hand():
    # Chance of the second node is 1/(1 + exp(−βη)): it rises in η, and so does what it pays.
    found = maximise([[1.0, 1.0]], [[[0.0, 1.0]]], [[2.0, 5.0]], [[-1.0]], [[3.0]], 0.5)
    assert found.report[0, 0] == 3.0
    assert found.value[0] == pytest.approx(2.0 + 3.0 / (1.0 + np.exp(-1.5)), abs=1e-12)
    assert found.bound[0] == pytest.approx(found.value[0], abs=1e-7)


def test_inner_maximum_by_hand():
    # Nodes −1, 0, 1 pay 0, 1, 0: E = 1/(1 + 2 cosh(βη)) is largest at η = 0, and the search finds it to rounding.
    found = maximise(np.ones((1, 3)), [[[-1.0, 0.0, 1.0]]], [[0.0, 1.0, 0.0]], [[-0.3]], [[1.7]], 2.0, 1e-10)
    assert found.report[0, 0] == pytest.approx(0.0, abs=1e-5)
    assert found.value[0] == pytest.approx(1.0 / 3.0, abs=1e-11)
    assert found.bound[0] <= 1.0 / 3.0 + 1.1e-10


def test_two_hills():
    # Far apart, of nearly the same height: a local search from the middle or one end may take the wrong one.
    quantity = np.linspace(-1.0, 1.0, 201)
    for height in (1.001, 0.999):
        objective = np.exp(-(((quantity + 0.6) / 0.1) ** 2)) + height * np.exp(-(((quantity - 0.6) / 0.1) ** 2))
        weights = np.exp(-40.0 * quantity**2)
        found = maximise(weights[None], quantity[None, None], objective[None], [[-60.0]], [[60.0]], 1.0)
        assert np.sign(found.report[0, 0]) == np.sign(height - 1.0)
        reports = np.linspace(-60, 60, 20001)[:, None]
        best = expected((weights, quantity[None], objective), reports, 1.0).max()
        assert found.value[0] == pytest.approx(best, abs=1e-5)
        assert best <= found.bound[0] <= found.value[0] + 1e-7


def test_nothing_to_choose():
    # β = 0: no report matters.
    weights, statistics, objective, low, high = random_problems(0, 3, 20, 2)
    found = maximise(weights, statistics, objective, low, high, 0.0)
    mean = (weights * objective).sum(axis=1) / weights.sum(axis=1)
    np.testing.assert_allclose(found.value, mean, rtol=1e-13)
    np.testing.assert_allclose(found.bound, mean, atol=1e-7)
    # A box without width: the report is given.
    found = maximise(weights, statistics, objective, low, low, 2.0)
    np.testing.assert_array_equal(found.report, low)
    for index in range(3):
        value = expected((weights[index], statistics[index], objective[index]), low[index : index + 1], 2.0)[0]
        assert found.value[index] == pytest.approx(value, abs=1e-13)


def test_a_search_cut_short_is_honest():
    weights, statistics, objective, low, high = random_problems(5, 20, 50, 2)
    exact = maximise(weights, statistics, objective, low, high, 4.0)
    for limit in (1, 3, 10):
        found = maximise(weights, statistics, objective, low, high, 4.0, limit=limit)
        assert (found.value <= exact.bound).all()
        assert (found.bound >= exact.value).all()
        assert (found.bound <= objective.max(axis=1) + 1e-12).all()
    assert (found.bound - found.value).max() > 1e-3


def test_problems_do_not_mix():
    weights, statistics, objective, low, high = random_problems(6, 30, 40, 2)
    together = maximise(weights, statistics, objective, low, high, 3.0)
    for index in (0, 7, 29):
        rows = slice(index, index + 1)
        alone = maximise(weights[rows], statistics[rows], objective[rows], low[rows], high[rows], 3.0)
        assert together.value[index] == pytest.approx(alone.value[0], abs=1e-7)
        assert together.bound[index] == pytest.approx(alone.bound[0], abs=2e-7)


def test_large_exponents():
    # Weights that underflow to zero and exponents of thousands: the tail decides.
    quantity = np.linspace(0.0, 10.0, 101)[None]
    weights = np.where(quantity > 9.5, 1e-200, 1.0)
    found = maximise(weights, quantity[:, None], quantity**2, [[-100.0]], [[100.0]], 10.0)
    assert found.report[0, 0] > 30.0
    assert found.value[0] == pytest.approx(100.0, abs=1e-6)


@given(st.integers(0, 10**6), st.integers(1, 2))
def test_quadratics_are_maximised_exactly(seed, width):
    rng = np.random.default_rng(seed)
    slope, square = rng.normal(size=(1, width)), rng.normal(size=(1, width, width))
    square = square + square.transpose(0, 2, 1) - rng.uniform(0, 4) * np.eye(width)
    low, high = -rng.uniform(0, 1, (1, width)), rng.uniform(0, 1, (1, width))
    point, value = search.quadratic_peak(slope, square, low, high)
    assert ((point >= low) & (point <= high)).all()
    grid = rng.uniform(low, high, (2000, width))
    edge = rng.random(grid.shape)
    grid = np.where(edge < 0.2, low, np.where(edge > 0.8, high, grid))
    values = grid @ slope[0] + 0.5 * np.einsum("rk,kl,rl->r", grid, square[0], grid)
    assert values.max() <= value[0] + 1e-12
    assert value[0] == pytest.approx(float(point[0] @ slope[0] + 0.5 * point[0] @ square[0] @ point[0]), abs=1e-13)


def test_bad_input_is_refused():
    good = {
        "weights": np.ones((2, 3)),
        "statistics": np.ones((2, 1, 3)),
        "objective": np.ones((2, 3)),
        "low": np.zeros((2, 1)),
        "high": np.ones((2, 1)),
        "beta": 1.0,
    }
    for changed, message in (
        ({"statistics": np.ones((2, 3))}, r"statistics must have shape \(P, k, Q\) with k = 1 or 2, got \(2, 3\)"),
        ({"statistics": np.ones((2, 3, 3))}, "k = 1 or 2"),
        ({"weights": np.ones((2, 4))}, r"weights must have shape \(2, 3\), got \(2, 4\)"),
        ({"low": np.zeros(2)}, r"low must have shape \(2, 1\)"),
        ({"objective": np.array([[0, 1, 2], [0, np.nan, 1]])}, r"objective\[1, 1\] must be finite, got nan"),
        ({"low": np.array([[0.0], [2.0]])}, r"low of problem 1 must not exceed high, got \[2.0\] and \[1.0\]"),
        ({"weights": np.array([[1.0, 0, 0], [0, 0, 0]])}, "weights of problem 1 must have one > 0"),
        ({"beta": -1.0}, "beta must be finite and >= 0"),
        ({"tolerance": 0.0}, "tolerance must be finite and > 0"),
        ({"weights": "many"}, "weights must hold numbers"),
    ):
        with pytest.raises((ValueError, TypeError), match=message):
            maximise(**{**good, **changed})
