"""Privacy that a draw really costs: exact on a finite range, statistical from draws, and added up over rounds.

ε here is the privacy loss of pure differential privacy: sup |ln P(S)/P'(S)| over events S, for two profiles of reports
that differ in one agent (Hoseinpour et al., Definition 2).
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from p2penv.core import validation
from p2penv.core.arrays import Array, namespace, row_max
from p2penv.dpvcg.search import quadratic_peak

Floats = NDArray[np.float64]
# Newton steps of the worst pair, each halved until it helps; a handful is usual.
STEPS = 100
# Rounding allowance, relative to the largest exponents.
ROUNDING = 1e-13
# Thresholds tried for the distinguishing event.
THRESHOLDS = 400


def privacy_loss(first: Array, second: Array) -> Array:
    """Largest |ln P(r)/P'(r)| ``(...)`` of two laws ``(..., m)`` on one range; infinite where supports differ."""
    xp = namespace(first, second)
    here, there = first > 0.0, second > 0.0
    ratio = xp.abs(xp.log(xp.where(here, first, 1.0)) - xp.log(xp.where(there, second, 1.0)))
    return row_max(xp.where(here & there, ratio, xp.where(here | there, xp.inf, 0.0)))


class WorstPair(NamedTuple):
    """The two reports of one agent that the draw tells apart best."""

    loss: float  # privacy loss between them
    bound: float  # no pair has more
    reports: Floats  # (2, k): the draw of `point` is likelier under the first
    point: int  # the telling allocation


def worst_loss(weights: Floats, statistics: Floats, low: Floats, high: Floats, beta: float) -> WorstPair:
    """Largest privacy loss between any two reports of one agent, the others' and the range being fixed.

    The log-probability of a point r, β η·s_r − ln Σ_q w_q exp(βη·s_q), is concave in the report η. Its least value is
    at a vertex of the box; its largest, inside or at the edge, is found by Newton steps, and by concavity no report
    exceeds what the gradient there allows: that is ``bound``.

    Args:
        weights: ``(m,)`` w ≥ 0, see :func:`p2penv.dpvcg.finite.residual`.
        statistics: ``(k, m)`` s, k = 1 (v_i, for a scale) or 2 (y², y, for coefficients).
        low: ``(k,)`` box of reports.
        high: ``(k,)``.
        beta: β ≥ 0 [1/$].

    Raises:
        ValueError: wrong shapes, values that are not finite, an empty box, a negative weight.
    """
    beta = validation.number("beta", beta, 0.0)
    weights, statistics = validation.floats("weights", weights), validation.floats("statistics", statistics)
    if statistics.ndim != 2 or len(statistics) not in (1, 2) or weights.shape != statistics.shape[1:]:
        raise ValueError(
            f"statistics must have shape (k, m) with k = 1 or 2 and weights (m,), got {statistics.shape} and "
            f"{weights.shape}"
        )
    if not np.isfinite(statistics).all() or not ((weights >= 0) & np.isfinite(weights)).all() or not weights.any():
        raise ValueError("statistics must be finite, and weights finite, >= 0 and not all zero")
    low, high = validation.vector("low", low, len(statistics)), validation.vector("high", high, len(statistics))
    validation.ordered("low", low, "high", high)
    present = np.flatnonzero(weights)
    log_weights, scores = np.log(weights[present]), beta * statistics[:, present].T
    scores = scores - 0.5 * (scores.max(axis=0) + scores.min(axis=0))

    vertices = np.stack(np.meshgrid(*zip(low, high, strict=True), indexing="ij"), axis=-1).reshape(-1, len(low))
    chances = _log_law(log_weights, scores, vertices)
    least = chances.min(axis=0)
    # Start from the best vertex or the centre.
    starts = np.concatenate([vertices, 0.5 * (low + high)[None]])
    best = np.argmax(_log_law(log_weights, scores, starts), axis=0)
    report, most, slack = _likeliest(log_weights, scores, starts[best], low, high)
    losses = most - least
    point = int(np.argmax(losses))
    return WorstPair(
        float(losses[point]),
        float((losses + slack).max()) + ROUNDING * (1.0 + float(np.ptp(scores, axis=0) @ (high - low))),
        np.stack([report[point], vertices[np.argmin(chances[:, point])]]),
        int(present[point]),
    )


def _log_law(log_weights: Floats, scores: Floats, reports: Floats) -> Floats:
    """Log-probability of each point, less its log-weight, ``(..., m)`` at reports ``(..., k)``."""
    exponent = reports @ scores.T
    total = exponent + log_weights
    top = total.max(axis=-1, keepdims=True)
    return exponent - top - np.log(np.exp(total - top).sum(axis=-1, keepdims=True))


def _likeliest(
    log_weights: Floats, scores: Floats, report: Floats, low: Floats, high: Floats
) -> tuple[Floats, Floats, Floats]:
    """For each point q the report ``(m, k)`` in the box under which it is likeliest, from starts ``(m, k)``.

    Returns:
        Reports, log-probabilities ``(m,)`` (less the log-weights), and how much more there can be at most ``(m,)``.
    """
    rows = np.arange(len(report))
    value = _log_law(log_weights, scores, report)[rows, rows]
    for _ in range(STEPS):
        law = np.exp(_log_law(log_weights, scores, report) + log_weights)
        slope = scores - law @ scores
        # What a concave function can still gain: its tangent over the box.
        slack = (np.maximum(slope * (low - report), slope * (high - report))).sum(axis=1)
        if slack.max() < 1e-13:
            break
        mean = law @ scores
        curvature = -np.einsum("rq,qk,ql->rkl", law, scores, scores) + mean[:, :, None] * mean[:, None]
        step, _ = quadratic_peak(slope, curvature, low - report, high - report)
        share = np.ones(len(report))
        for _ in range(40):
            trial = np.clip(report + share[:, None] * step, low, high)
            reached = _log_law(log_weights, scores, trial)[rows, rows]
            worse = reached < value
            if not worse.any():
                break
            share = np.where(worse, 0.5 * share, share)
        improved = reached > value
        if not improved.any():
            break
        report, value = np.where(improved[:, None], trial, report), np.maximum(value, reached)
    return report, value, np.maximum(slack, 0.0)


def _epsilon(hits: Array, size: int, others: Array, other_size: int, level: float) -> Array:
    """Lower bound on ln P(S)/P'(S) from counts in S, each side by Clopper and Pearson at one-sided level ``level``."""
    hits, others = np.asarray(hits, dtype=np.float64), np.asarray(others, dtype=np.float64)
    least = np.where(hits > 0, stats.beta.ppf(level, np.maximum(hits, 1), size - hits + 1), 0.0)
    most = np.where(others < other_size, stats.beta.isf(level, others + 1, np.maximum(other_size - others, 1)), 1.0)
    return np.log(np.maximum(least, np.finfo(float).tiny)) - np.log(most)


def _half_line(first: Floats, second: Floats, level: float) -> tuple[float, float]:
    """Sign and threshold, among quantiles of both, of the half-line most surely likelier under the first."""
    found = []
    for sign in (1.0, -1.0):
        values = np.unique(sign * np.concatenate([first, second]))
        if len(values) > THRESHOLDS:
            values = np.unique(np.quantile(values, np.linspace(0.0, 1.0, THRESHOLDS), method="nearest"))
        hits = len(first) - np.searchsorted(np.sort(sign * first), values)
        others = len(second) - np.searchsorted(np.sort(sign * second), values)
        gains = _epsilon(hits, len(first), others, len(second), level)
        best = int(np.argmax(gains))
        found.append((float(gains[best]), sign, float(values[best])))
    return max(found)[1:]


def epsilon_lower_bound(
    first: NDArray[np.int64] | Floats,
    second: NDArray[np.int64] | Floats,
    event: Literal["points", "score"],
    confidence: float = 1 - 1e-6,
) -> float:
    """What the privacy loss between two profiles is at least, from independent draws under each.

    The event that tells the profiles apart is chosen on the first half of the draws and counted on the second half,
    in both directions; the four counts get Clopper-Pearson bounds that hold together with the stated confidence. A
    mechanism that claims a smaller ε has failed.

    Args:
        first: ``(N,)`` draws under the first profile: for ``"points"`` indices into a range; for ``"score"`` real
            numbers, best v_i' − v_i at the quantity drawn: the log-likelihood ratio up to scale and shift.
        second: ``(M,)`` under the second.
        event: "points", any set of points; "score", half-lines of the score.
        confidence: in (0, 1).

    Returns:
        ε ≥ 0; zero says nothing.

    Raises:
        ValueError: fewer than two draws, values that are not finite, negative indices.
    """
    validation.choice("event", event, ("points", "score"))
    confidence = validation.number("confidence", confidence, 0.0, 1.0, open_low=True)
    if confidence == 1.0:
        raise ValueError("confidence must be below 1: no number of draws is certain")
    scores = [_draws("first", first, event), _draws("second", second, event)]
    halves = [(draws[: len(draws) // 2], draws[len(draws) // 2 :]) for draws in scores]
    if event == "points":
        size = 1 + int(max(draws.max() for draws in scores))
        counts = [np.bincount(chosen.astype(np.int64), minlength=size) for chosen, _ in halves]
        # Points ranked by how much likelier they looked under the first; half a count keeps the ratio finite.
        rank = np.log((counts[0] + 0.5) / len(halves[0][0])) - np.log((counts[1] + 0.5) / len(halves[1][0]))
        halves = [(rank[chosen.astype(np.int64)], rank[held.astype(np.int64)]) for chosen, held in halves]
    level = 0.25 * (1.0 - confidence)
    found = 0.0
    for (chosen, held), (other_chosen, other_held) in (halves, halves[::-1]):
        sign, threshold = _half_line(chosen, other_chosen, level)
        hits, others = np.sum(sign * held >= threshold), np.sum(sign * other_held >= threshold)
        found = max(found, float(_epsilon(hits, len(held), others, len(other_held), level)))
    return found


def _draws(name: str, values: NDArray[np.int64] | Floats, event: str) -> Floats:
    draws = validation.floats(name, values)
    if draws.ndim != 1 or len(draws) < 2:
        raise ValueError(f"{name} must hold at least two draws (N,), got shape {draws.shape}")
    if not np.isfinite(draws).all():
        index = int(np.argmin(np.isfinite(draws)))
        raise ValueError(f"{name}[{index}] must be finite, got {float(draws[index])!r}")
    if event == "points" and ((draws < 0) | (draws != np.floor(draws))).any():
        index = int(np.argmax((draws < 0) | (draws != np.floor(draws))))
        raise ValueError(f"{name}[{index}] must be an index >= 0 into the range, got {float(draws[index])!r}")
    return draws


class Accountant:
    """Adds up what published draws cost: by basic composition ε₁ + ε₂ + …, whatever was learnt in between."""

    def __init__(self) -> None:
        self.rounds = 0
        """Releases so far."""
        self._spent = 0.0

    def spend(self, epsilon: float) -> float:
        """Count one release and return the total; ``inf`` stands for a release that hides nothing.

        Raises:
            ValueError: ε ≤ 0 or not a number.
        """
        if not epsilon > 0.0:
            raise ValueError(f"epsilon must be > 0, got {epsilon!r}")
        self._spent += float(epsilon)
        self.rounds += 1
        return self._spent

    def spent(self, coalition: int = 1) -> float:
        """Privacy loss so far of a coalition of that many agents: k neighbouring steps, so kε."""
        return validation.count("coalition", coalition) * self._spent
