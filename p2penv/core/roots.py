"""Roots of nondecreasing piecewise-linear functions by one sort, prefix sums and interpolation.

Every market clears by such a root: agents answer a price (or an aggregate) with clipped linear functions, and
the sum of those answers must meet a target. The sum is a polyline with its vertices at the clip points, so its
inverse is a table: ``O(K log K)`` to build and ``O(log K)`` a query. Tables are exact up to rounding.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from p2penv.core.arrays import Array, gather, namespace, order, row_max, row_sum, running_sum, safe_divide

# A slope below this many units of rounding of the steepest one is left by the prefix sums: the piece is flat.
FLAT = 512


class Inverse(NamedTuple):
    """Inverse of a nondecreasing polyline: ``t = point + (target - value) * rate`` in the piece of the target.

    Piece ``k`` lies between ``knots[k - 1]`` and ``knots[k]``; the first and the last are unbounded.
    """

    knots: Array  # (..., K) values of the polyline at its vertices, sorted
    point: Array  # (..., K + 1) anchor of each piece, in the argument
    value: Array  # (..., K + 1) anchor of each piece, in the value
    rate: Array  # (..., K + 1) change of argument per unit of value; 0 where the argument is held


def ramp_vertices(points: Array, increments: Array, start: Array, slope: Array = 0.0) -> tuple[Array, ...]:
    """Vertices of ``f(t) = start + slope·t + Σ_k increments_k · max(0, t − points_k)``.

    Args:
        points: ``(..., K)`` places where the slope changes, in any order.
        increments: ``(..., K)`` change of slope at each place.
        start: ``(...)`` value of the first affine piece at ``t = 0``.
        slope: slope of the first affine piece.

    Returns:
        ``points (..., K)`` sorted, ``values (..., K)``, the slope left of the first and right of the last vertex,
        and ``order (..., K)``, the permutation that sorted the points.
    """
    xp = namespace(points, increments)
    sorting = order(points)
    points = gather(points, sorting)
    slopes = slope + running_sum(gather(increments, sorting))
    steepness = xp.abs(slopes)
    noise = FLAT * xp.finfo(slopes.dtype).eps * row_max(steepness)[..., None]
    slopes = slopes * (steepness > noise)
    first = (start + slope * points[..., 0])[..., None]
    rises = slopes[..., :-1] * (points[..., 1:] - points[..., :-1])
    values = running_sum(xp.concat([first, rises], axis=-1))
    return points, values, slope + 0.0 * points[..., 0], slopes[..., -1], sorting


def invert(points: Array, values: Array, left: Array, right: Array) -> Inverse:
    """Table of the inverse of the polyline through sorted vertices.

    Where the polyline is flat the inverse is the lowest argument; where an end is flat, targets beyond it give
    the end vertex; where it jumps (equal points), targets inside the jump give the point of the jump.

    Args:
        points: ``(..., K)`` sorted arguments of the vertices.
        values: ``(..., K)`` nondecreasing values at the vertices.
        left: ``(...)`` slope before the first vertex, ≥ 0.
        right: ``(...)`` slope after the last vertex, ≥ 0.
    """
    xp = namespace(points, values)
    one = xp.ones_like(points[..., :1])
    runs = xp.concat([one, points[..., 1:] - points[..., :-1], one], axis=-1)
    rises = xp.concat([left[..., None], values[..., 1:] - values[..., :-1], right[..., None]], axis=-1)
    return Inverse(
        knots=values,
        point=xp.concat([points[..., :1], points], axis=-1),
        value=xp.concat([values[..., :1], values], axis=-1),
        rate=safe_divide(runs, rises),
    )


def piece(table: Inverse, target: Array) -> Array:
    """Index ``(...)`` in ``0 … K`` of the piece each target falls into.

    A table without leading axes serves targets of any shape; otherwise the leading axes must agree.
    """
    xp = namespace(table.knots, target)
    if table.knots.ndim == 1:
        # NumPy's function takes four times as long as the method.
        return table.knots.searchsorted(target) if xp is np else xp.searchsorted(table.knots, target)
    return xp.sum(xp.astype(table.knots < target[..., None], xp.int32), axis=-1)


def evaluate(table: Inverse, target: Array) -> Array:
    """Lowest argument ``(...)`` at which the polyline reaches ``target (...)``; an end if it never does."""
    xp = namespace(table.knots, target)
    index = piece(table, target)
    if table.knots.ndim == 1:
        return table.point[index] + (target - table.value[index]) * table.rate[index]
    index = index[..., None]

    def at(column: Array) -> Array:
        return xp.take_along_axis(column, index, axis=-1)[..., 0]

    return at(table.point) + (target - at(table.value)) * at(table.rate)


def piecewise_root(points: Array, increments: Array, start: Array, target: Array, slope: Array = 0.0) -> Array:
    """Lowest ``t`` with ``start + slope·t + Σ_k increments_k max(0, t − points_k) = target``; see the parts for shapes.

    >>> import numpy as np
    >>> piecewise_root(np.array([0.0, 1.0]), np.array([2.0, -2.0]), 0.0, np.array([0.5, 1.0, 9.0]))
    array([0.25, 0.5 , 1.  ])
    """
    points, values, left, right, _ = ramp_vertices(points, increments, start, slope)
    return evaluate(invert(points, values, left, right), target)


def inverse_of_answers(aim: Array, rate: Array | None, reach: Array, slope: float) -> Inverse:
    """Table of the inverse of ``slope·t + Σ_n clip(rate_n·(t − aim_n), ±reach_n)``.

    Args:
        aim: ``(..., N)`` where each answer changes sign; one table for each row.
        rate: ``(..., N)`` steepness of each answer, > 0; None: its limit, ``reach·sign(t − aim)``.
        reach: ``(..., N)`` largest answers, ≥ 0.
        slope: slope of what is added to the answers, ≥ 0.
    """
    xp = namespace(aim, reach)
    if aim.ndim > 1:
        reach, rate = reach + 0.0 * aim, None if rate is None else rate + 0.0 * aim
    if rate is not None:
        half = reach / rate
        points = xp.concat([aim - half, aim + half], axis=-1)
        changes = xp.concat([rate, -rate], axis=-1)
        points, values, left, right, _ = ramp_vertices(points, changes, -row_sum(reach), slope)
        return invert(points, values, left, right)
    sorting = order(aim)
    aim, reach = gather(aim, sorting), gather(reach, sorting)
    after = slope * aim - row_sum(reach)[..., None] + 2.0 * running_sum(reach)
    points = xp.reshape(xp.stack([aim, aim], axis=-1), (*aim.shape[:-1], -1))
    values = xp.reshape(xp.stack([after - 2.0 * reach, after], axis=-1), (*aim.shape[:-1], -1))
    ends = slope + 0.0 * points[..., 0]
    return invert(points, values, ends, ends)
