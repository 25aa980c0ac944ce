"""Roots of piecewise-linear functions against their definition, evaluated directly."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2penv.core.roots import evaluate, inverse_of_answers, invert, piecewise_root, ramp_vertices

# Quarters: sums of few of them are exact, so ties and flat pieces are true ones.
quarters = st.integers(-40, 40).map(lambda k: k / 4)
ramps = st.lists(st.tuples(quarters, st.integers(0, 40), st.integers(0, 12)), min_size=1, max_size=8)


def as_vertices(data):
    """Clip points and slope changes of Σ rate·(clip(t, low, low + width) − low)."""
    low, width, rate = (np.array(column, float) for column in zip(*data, strict=True))
    return np.concatenate([low, low + width]), np.concatenate([rate, -rate])


def total(data, t, slope=0.0):
    return slope * t + sum(rate * (np.clip(t, low, low + width) - low) for low, width, rate in data)


@given(ramps, quarters, st.sampled_from([0.25, 1.0, 3.0]))
def test_root_meets_its_target(data, target, slope):
    points, increments = as_vertices(data)
    root = piecewise_root(points, increments, np.array(0.0), np.array(target), slope)
    assert total(data, root, slope) == pytest.approx(target, abs=1e-9)


@given(ramps, st.floats(0.0, 1.0))
def test_flat_pieces_give_their_lowest_argument(data, share):
    points, increments = as_vertices(data)
    top = total(data, 1e3)
    # Whole targets hit the flat pieces exactly.
    target = np.floor(share * top)
    root = piecewise_root(points, increments, np.array(0.0), np.array(target))
    if top == 0 or target == 0:
        assert root == points.min()
    else:
        assert total(data, root) == pytest.approx(target, abs=1e-9)
        assert total(data, root - 1e-6) < target


@given(ramps)
def test_targets_out_of_reach_give_the_end_vertices(data):
    points, increments = as_vertices(data)
    targets = np.array([-1.0, total(data, 1e3) + 1.0])
    roots = piecewise_root(points, increments, np.array(0.0), targets)
    np.testing.assert_array_equal(roots, [points.min(), points.max()])


@given(
    st.integers(1, 6).flatmap(
        lambda k: st.lists(
            st.tuples(
                st.lists(st.tuples(quarters, st.integers(0, 40), st.integers(0, 12)), min_size=k, max_size=k), quarters
            ),
            min_size=1,
            max_size=5,
        )
    ),
    st.sampled_from([0.0, 0.5]),
)
def test_batch_equals_loop(rows, slope):
    vertices = [as_vertices(data) for data, _ in rows]
    points, increments = (np.stack(column) for column in zip(*vertices, strict=True))
    targets = np.array([target for _, target in rows])
    batched = piecewise_root(points, increments, np.zeros(len(rows)), targets, slope)
    looped = [piecewise_root(p, i, np.array(0.0), t, slope) for (p, i), t in zip(vertices, targets, strict=True)]
    np.testing.assert_allclose(batched, looped, rtol=0, atol=1e-12)


def test_batches_too_give_the_lowest_argument_of_a_flat_piece():
    # Rises on [0, 1] and [2, 3], flat at 1 between; the second row is the first, two further right.
    points = np.array([[0.0, 1.0, 2.0, 3.0], [2.0, 3.0, 4.0, 5.0]])
    increments = np.array([1.0, -1.0, 1.0, -1.0]) * np.ones((2, 1))
    roots = piecewise_root(points, increments, np.zeros(2), np.array([1.0, 1.0]))
    np.testing.assert_array_equal(roots, [1.0, 3.0])


def test_one_table_serves_targets_of_any_shape():
    points, values, left, right, order = ramp_vertices(np.array([2.0, 0.0]), np.array([-3.0, 3.0]), np.array(1.0))
    np.testing.assert_array_equal(order, [1, 0])
    targets = np.array([[1.0, 4.0], [5.5, 7.0]])
    np.testing.assert_allclose(evaluate(invert(points, values, left, right), targets), [[0.0, 1.0], [1.5, 2.0]])


def test_targets_inside_a_jump_give_its_place():
    # −1 until t = 2, then a jump to 3, then slope 2.
    table = invert(np.array([0.0, 2.0, 2.0]), np.array([-1.0, -1.0, 3.0]), np.array(0.0), np.array(2.0))
    np.testing.assert_allclose(evaluate(table, np.array([-0.5, 1.0, 3.0, 5.0])), [2.0, 2.0, 2.0, 3.0])


def test_slope_left_by_rounding_counts_as_flat():
    # 0.1 + 0.2 − 0.3 is not zero in floating point; without care the root would be near 10¹⁶.
    points, increments = np.array([0.0, 0.0, 1.0]), np.array([0.1, 0.2, -0.3])
    assert piecewise_root(points, increments, np.array(0.0), np.array(5.0)) == 1.0


answers = st.lists(st.tuples(quarters, st.integers(1, 12), st.integers(0, 12)), min_size=1, max_size=8)


@given(answers, quarters, st.sampled_from([0.0, 0.25, 1.0]), st.integers(0, 8))
def test_clipped_answers_meet_their_target(data, target, slope, shift):
    aim, rate, reach = (np.array(column, float) for column in zip(*data, strict=True))
    most = reach.sum()
    target = target if slope else np.clip(target, -most, most)
    # Two rows: each its own table.
    table = inverse_of_answers(np.stack([aim, aim + shift]), rate, reach, slope)
    roots = evaluate(table, np.array([target, target + slope * shift]))
    single = evaluate(inverse_of_answers(aim, rate, reach, slope), np.array(target))
    met = slope * single + np.clip(rate * (single - aim), -reach, reach).sum()
    assert met == pytest.approx(target, abs=1e-9)
    np.testing.assert_allclose(roots, [single, single + shift], rtol=0, atol=1e-9)


@given(answers, quarters, st.sampled_from([0.0, 1.0]))
def test_answers_without_curvature_jump_over_their_target(data, target, slope):
    aim, _, reach = (np.array(column, float) for column in zip(*data, strict=True))
    target = target if slope else np.clip(target, -reach.sum(), reach.sum())
    root = evaluate(inverse_of_answers(aim, None, reach, slope), np.array(target))
    below, above = (slope * root + (reach * np.sign(root + step - aim)).sum() for step in (-1e-7, 1e-7))
    assert below - 1e-6 <= target <= above + 1e-6
