"""Certified best report of one agent under the exponential mechanism: branch and bound over its report box.

The law of the draw is an exponential family in the report η of one agent, D_η(q) ∝ w_q exp(βη·s_q) over points or
quadrature nodes q, and with the payments of Algorithm 3 the agent's payoff is E_η[g] up to a constant, g the welfare at
its true valuation (without payments: g its true value). E_η[g] is neither concave nor unimodal in η, so a local search
proves nothing about what an agent cannot gain.

The bound: on a box with centre c let x_q = βδ·(s_q − E_c[s]), so that at η = c + δ
E_η[g] − E_c[g] = E_c[(g − E_c[g])eˣ] / E_c[eˣ]. By Jensen the denominator is at least 1, and the numerator is a
quadratic in δ plus at most E_c[|g − E_c[g]|(eʳ − 1 − r − r²/2)] with r_q the largest |x_q| in the box. The quadratic is
maximised exactly.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from p2penv.core import validation

Floats = NDArray[np.float64]
# Entries of a box-by-node array worked on at a time: it then stays in the cache.
CHUNK = 2**18
# Largest r at which the expansion is tried; beyond it says nothing.
REACH = 20.0
# Rounding allowance of expectations, relative to the oscillation of the objective.
ROUNDING = 1e-12


class Maximum(NamedTuple):
    """The best report of each problem, and what no report exceeds."""

    report: Floats  # (P, k)
    value: Floats  # (P,) expected objective at the report
    bound: Floats  # (P,) no report in the box has more; bound − value ≤ tolerance unless the search was cut short


class _Problems(NamedTuple):
    log_weights: Floats  # (P, Q) ln|w|, −inf where w = 0
    signs: Floats | None  # (P, Q) of w; None: no weight is negative
    statistics: Floats  # (P, k, Q)
    objective: Floats  # (P, Q), middle of its range taken off
    beta: float


class _Boxes(NamedTuple):
    problem: NDArray[np.int64]  # (B,)
    low: Floats  # (B, k)
    high: Floats  # (B, k)
    bound: Floats  # (B,) on the objective in the box

    def take(self, index: NDArray[np.bool_] | slice) -> _Boxes:
        return _Boxes(self.problem[index], self.low[index], self.high[index], self.bound[index])


class _Analysis(NamedTuple):
    """What the expansion about their centres says of boxes."""

    value: Floats  # (B,) at the centre
    bound: Floats  # (B,)
    peak: Floats  # (B, k) report at which the quadratic is largest
    predicted: Floats  # (B,) the quadratic there
    monotone: NDArray[np.int64]  # (B, k) 1 rising, −1 falling, 0 not known


def _law(problems: _Problems, index: NDArray[np.int64], reports: Floats) -> tuple[Floats, Floats]:
    """Laws D ``(B, Q)`` at reports ``(B, k)`` of the problems ``(B,)``, and their statistics ``(B, k, Q)``."""
    statistics = problems.statistics[index]
    exponent = problems.log_weights[index] + problems.beta * (reports[:, None] @ statistics)[:, 0]
    law = np.exp(exponent - exponent.max(axis=1, keepdims=True))
    if problems.signs is not None:
        law *= problems.signs[index]
    total = law.sum(axis=1, keepdims=True)
    return law / np.where(total > 0.0, total, np.nan), statistics


def _expected(problems: _Problems, index: NDArray[np.int64], reports: Floats) -> Floats:
    """Expected objective ``(B,)``; −inf where the weights leave no law."""
    law, _ = _law(problems, index, reports)
    value = np.vecdot(law, problems.objective[index])
    return np.where(np.isnan(value), -np.inf, value)


def quadratic_peak(slope: Floats, curvature: Floats, low: Floats, high: Floats) -> tuple[Floats, Floats]:
    """Where δ·slope + ½δ·curvature·δ is largest in boxes that contain 0 or not, and its value there.

    Exact: the critical point if it lies inside, and the best of every edge.

    Args:
        slope: ``(B, k)``, k = 1 or 2.
        curvature: ``(B, k, k)``, of any sign.
        low: ``(B, k)``.
        high: ``(B, k)``.

    Returns:
        Points ``(B, k)`` and values ``(B,)``.
    """

    def edge(linear: Floats, quadratic: Floats, start: Floats, end: Floats) -> Floats:
        """Best of start, end and the vertex between them; linear and quadratic terms along the edge."""
        vertex = np.clip(-linear / np.where(quadratic < 0.0, quadratic, -np.inf), start, end)
        points = np.stack([start, end, np.where(quadratic < 0.0, vertex, start)])
        best = np.argmax((linear + 0.5 * quadratic * points) * points, axis=0)
        return np.take_along_axis(points, best[None], axis=0)[0]

    if slope.shape[1] == 1:
        points = edge(slope[:, 0], curvature[:, 0, 0], low[:, 0], high[:, 0])[:, None, None]
    else:
        found = []
        for along, across in ((0, 1), (1, 0)):
            for side in (low[:, across], high[:, across]):
                point = np.empty_like(slope)
                linear = slope[:, along] + curvature[:, 0, 1] * side
                point[:, along] = edge(linear, curvature[:, along, along], low[:, along], high[:, along])
                point[:, across] = side
                found.append(point)
        determinant = curvature[:, 0, 0] * curvature[:, 1, 1] - curvature[:, 0, 1] ** 2
        safe = np.where(determinant > 0.0, determinant, 1.0)
        inner = np.stack(
            [
                curvature[:, 0, 1] * slope[:, 1] - curvature[:, 1, 1] * slope[:, 0],
                curvature[:, 0, 1] * slope[:, 0] - curvature[:, 0, 0] * slope[:, 1],
            ],
            axis=1,
        )
        found.append(np.clip(inner / safe[:, None], low, high))
        points = np.stack(found, axis=1)
    values = np.einsum("bpk,bk->bp", points, slope) + 0.5 * np.einsum("bpk,bkl,bpl->bp", points, curvature, points)
    best = np.argmax(values, axis=1)
    rows = np.arange(len(best))
    return points[rows, best], values[rows, best]


def _analyse(problems: _Problems, boxes: _Boxes) -> _Analysis:
    beta = problems.beta
    centre, half = 0.5 * (boxes.low + boxes.high), 0.5 * (boxes.high - boxes.low)
    law, statistics = _law(problems, boxes.problem, centre)
    objective = problems.objective[boxes.problem]
    value = np.vecdot(law, objective)
    deviation = statistics - statistics @ law[..., None]
    centred = law * (objective - value[:, None])
    size = np.abs(centred)
    distance = np.abs(deviation)

    slope = beta * (deviation @ centred[..., None])[..., 0]
    curvature = beta**2 * (centred[:, None] * deviation) @ deviation.transpose(0, 2, 1)
    peak, rise = quadratic_peak(slope, curvature, -half, half)

    reach = beta * (half[:, None] @ distance)[:, 0]
    small = reach.max(axis=1) <= REACH
    reach = np.where(small[:, None], reach, 0.0)
    growth = np.expm1(reach)
    rest = np.vecdot(size, _beyond_quadratic(reach, growth))
    least = np.ones_like(value)
    if problems.signs is not None:
        # With negative weights Jensen's 1 loses at most what they weigh.
        least -= np.vecdot(np.maximum(-law, 0.0), growth - reach)
    usable = small & (least > 0.0) & np.isfinite(value)
    bound = value + (rise + rest) / np.where(usable, least, 1.0)

    # Z·Cov_η(g, s) differs from Cov_c by at most what the growth of the exponential does to both of its terms.
    drift = (distance @ (size * growth)[..., None])[..., 0]
    product = np.vecdot(size, growth)[:, None] * (distance @ (np.abs(law) * growth)[..., None])[..., 0]
    sure = np.abs(slope) > beta * (drift + product / np.where(usable, least, 1.0)[:, None])
    return _Analysis(
        value=np.where(np.isfinite(value), value, -np.inf),
        bound=np.where(usable, bound, np.inf),
        peak=np.clip(centre + peak, boxes.low, boxes.high),  # rounding may leave the box
        predicted=np.where(usable, value + rise, -np.inf),
        monotone=np.where(sure & usable[:, None], np.sign(slope), 0.0).astype(np.int64),
    )


def _beyond_quadratic(reach: Floats, growth: Floats) -> Floats:
    """eʳ − 1 − r − r²/2 for r ≥ 0, from above where the difference would cancel."""
    series = reach**3 / 6.0 * (1.0 + 0.26 * reach)  # r³/6 (1 + r/4 + r²/20 + …), for r ≤ 0.05
    return np.where(reach < 0.05, series, growth - reach - 0.5 * reach * reach)


def _analyse_all(problems: _Problems, boxes: _Boxes) -> _Analysis:
    step = max(1, CHUNK // problems.statistics[0].size)
    parts = [_analyse(problems, boxes.take(slice(start, start + step))) for start in range(0, len(boxes.bound), step)]
    return _Analysis(*(np.concatenate(fields) for fields in zip(*parts, strict=True)))


def _best_of_each(problem: NDArray[np.int64], scores: Floats) -> NDArray[np.int64]:
    """Index of the largest score of each problem that occurs."""
    order = np.lexsort((scores, problem))
    last = np.flatnonzero(np.diff(problem[order], append=-1))
    return order[last]


def _divide(boxes: _Boxes, monotone: NDArray[np.int64], spread: Floats) -> _Boxes:
    """Boxes shrunk to the face where a maximum must be, where one is known, and otherwise halved."""
    low = np.where(monotone > 0, boxes.high, boxes.low)
    high = np.where(monotone < 0, boxes.low, boxes.high)
    shrunk = boxes._replace(low=low, high=high)
    halve = (low == boxes.low).all(axis=1) & (high == boxes.high).all(axis=1)
    whole, split = shrunk.take(~halve), shrunk.take(halve)
    rows = np.arange(len(split.bound))
    axis = np.argmax((split.high - split.low) * spread[split.problem], axis=1)
    middle = 0.5 * (split.low[rows, axis] + split.high[rows, axis])
    upper, lower = split.low.copy(), split.high.copy()
    upper[rows, axis] = lower[rows, axis] = middle
    parts = (whole, split._replace(high=lower), split._replace(low=upper))
    return _Boxes(*(np.concatenate(fields) for fields in zip(*parts, strict=True)))


def _checked(**arrays: NDArray[np.float64]) -> list[Floats]:
    weights, statistics = arrays["weights"], arrays["statistics"]
    if statistics.ndim != 3 or statistics.shape[1] not in (1, 2):
        raise ValueError(f"statistics must have shape (P, k, Q) with k = 1 or 2, got {statistics.shape}")
    size, width, nodes = statistics.shape
    shapes = {"weights": (size, nodes), "objective": (size, nodes), "low": (size, width), "high": (size, width)}
    for name, shape in shapes.items():
        if arrays[name].shape != shape:
            raise ValueError(f"{name} must have shape {shape}, got {arrays[name].shape}")
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            index = tuple(int(i) for i in np.argwhere(~np.isfinite(array))[0])
            raise ValueError(f"{name}{list(index)} must be finite, got {float(array[index])!r}")
    empty = (arrays["low"] > arrays["high"]).any(axis=1)
    if empty.any():
        problem = int(np.argmax(empty))
        low, high = arrays["low"][problem], arrays["high"][problem]
        raise ValueError(f"low of problem {problem} must not exceed high, got {low.tolist()} and {high.tolist()}")
    if not (weights > 0.0).any(axis=1).all():
        problem = int(np.argmin((weights > 0.0).any(axis=1)))
        raise ValueError(f"weights of problem {problem} must have one > 0")
    return list(arrays.values())


def maximise(
    weights: Floats,
    statistics: Floats,
    objective: Floats,
    low: Floats,
    high: Floats,
    beta: float,
    tolerance: float = 1e-7,
    limit: int = 10_000,
) -> Maximum:
    """Largest expected objective over a box of reports, for P problems at once, with a proof that it is.

    Args:
        weights: ``(P, Q)`` w; a quadrature may have negative ones, small beside the others.
        statistics: ``(P, k, Q)`` s, k = 1 (v_i of the scenario, for a scale) or 2 (y², y, for coefficients).
        objective: ``(P, Q)`` g [$].
        low: ``(P, k)`` box of reports.
        high: ``(P, k)``.
        beta: β ≥ 0 [1/$].
        tolerance: how far the bound may lie above the value [$]; below 1e-11 of the oscillation of g rounding decides.
        limit: boxes to look at, P of them each on average; the bound is honest but loose where they do not suffice.

    Raises:
        ValueError: wrong shapes, values that are not finite, an empty box, no positive weight.
    """
    beta = validation.number("beta", beta, 0.0)
    tolerance = validation.number("tolerance", tolerance, 0.0, open_low=True)
    weights, statistics, objective, low, high = _checked(
        **{
            name: validation.floats(name, values)
            for name, values in (
                ("weights", weights),
                ("statistics", statistics),
                ("objective", objective),
                ("low", low),
                ("high", high),
            )
        }
    )
    middle = 0.5 * (objective.max(axis=1) + objective.min(axis=1))
    allowance = ROUNDING * np.ptp(objective, axis=1)
    negative = bool((weights < 0.0).any())
    # A common factor of the exponentials cancels: statistics may be centred, which keeps exponents small.
    problems = _Problems(
        np.log(np.abs(weights), out=np.full(weights.shape, -np.inf), where=weights != 0.0),
        np.sign(weights) if negative else None,
        statistics - 0.5 * (statistics.max(axis=2, keepdims=True) + statistics.min(axis=2, keepdims=True)),
        objective - middle[:, None],
        beta,
    )
    count = len(weights)
    everyone = np.arange(count)
    spread = np.ptp(statistics, axis=2)
    report = 0.5 * (low + high)
    value = _expected(problems, everyone, report)
    bound = np.full(count, -np.inf)

    def improve(problem: NDArray[np.int64], candidates: Floats, scores: Floats) -> None:
        better = scores > value[problem]
        value[problem[better]], report[problem[better]] = scores[better], candidates[better]

    boxes = _Boxes(everyone, low, high, np.full(count, np.inf))
    seen = 0
    while len(boxes.bound) and seen + len(boxes.bound) <= limit * count:
        seen += len(boxes.bound)
        analysis = _analyse_all(problems, boxes)
        boxes = boxes._replace(bound=np.minimum(boxes.bound, analysis.bound + allowance[boxes.problem]))
        best = _best_of_each(boxes.problem, analysis.value)
        improve(boxes.problem[best], 0.5 * (boxes.low[best] + boxes.high[best]), analysis.value[best])
        best = _best_of_each(boxes.problem, analysis.predicted)
        improve(boxes.problem[best], analysis.peak[best], _expected(problems, boxes.problem[best], analysis.peak[best]))
        open_ = boxes.bound > value[boxes.problem] + tolerance
        np.maximum.at(bound, boxes.problem[~open_], boxes.bound[~open_])
        boxes = _divide(boxes.take(open_), analysis.monotone[open_], spread)
    np.maximum.at(bound, boxes.problem, boxes.bound)
    # Without a usable expansion anywhere the objective's own largest value is still a bound if no weight is negative.
    if not negative:
        bound = np.minimum(bound, 0.5 * np.ptp(objective, axis=1))
    return Maximum(report, value + middle, np.maximum(bound, value) + middle)
