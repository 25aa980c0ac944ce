"""Quadratures of the continuous exponential mechanism: the smallest that is accurate on given bids. NumPy only."""

from __future__ import annotations

import numpy as np

from p2penv.dpvcg import fourier, panels
from p2penv.dpvcg.continuous import Partition, Quadrature, flat, partition
from p2penv.dpvcg.fourier import Fourier
from p2penv.dpvcg.panels import Pairs
from p2penv.dpvcg.rules import Bids, Bounds, pivots, value_range

# Agents up to which pairs are integrated on panels.
PANEL_AGENTS = 4
# The density of a sum this many standard deviations from its mean is below rounding.
FAR = 8.5
# Sizes to try: frequencies; nodes a panel.
FREQUENCIES = tuple(round(2 ** (0.5 * k)) for k in range(8, 33))
NODES = tuple(round(2 ** (0.5 * k)) for k in range(5, 22))
# Entries of the largest matrix of a quadrature that is tried.
LARGEST = 2**23
# Pairs of nodes an agent that are tried; finding more takes minutes.
LARGEST_NODES = 2**11


class InaccurateError(ValueError):
    """No quadrature of a size that is tried is accurate enough."""


def make_quadrature(
    bounds: Bounds, bids: Bids, beta: float | np.ndarray, tolerance: float = 1e-9, *, shared_tilt: bool = False
) -> Quadrature:
    """Smallest quadrature of a ladder whose law of these bids is right to ``tolerance``.

    The error is measured against a quadrature with twice the frequencies and more nodes, on the market and on all
    markets without an agent: of E[y] by half an agent's range, of E[W] by the largest range R of a valuation, of ln Z
    by 1 + βR. In an environment give the reports that are hardest, the steepest and the flattest to be declared.
    Reports in between then are as accurate; law costs about 0.1 ms for six agents in a batch.

    Args:
        bounds: ``(n,)`` with n ≥ 2; Σy = 0 must lie inside, with all agents and without any one of them.
        bids: ``(..., n)`` to be right on.
        beta: ``(...)`` or one number, ≥ 0 [1/$].
        tolerance: relative.
        shared_tilt: as :func:`~p2penv.dpvcg.continuous.law` will be called.

    Raises:
        ValueError: a market has no inside.
        InaccurateError: the tolerance is not reached.
    """
    bounds = Bounds(*(np.asarray(field, dtype=float) for field in bounds))
    size = bounds.low.size
    _check_inside(bounds)
    bids = Bids(*(np.asarray(field, dtype=float) for field in bids))
    _, bids, betas, _ = flat(bids, beta, None)
    if size <= PANEL_AGENTS:
        return _fit_pairs(bounds, bids, betas, tolerance)
    quadrature = _fit_fourier(bounds, bids, betas, tolerance, shared_tilt=shared_tilt)
    # At β = 0 the bids do not matter.
    level = Bids(-np.ones((1, size)), np.zeros((1, size)), np.zeros((1, size)))
    zero = np.zeros(1)
    uniform = _fit_fourier(bounds, level, zero, tolerance, shared_tilt=shared_tilt)
    volume = partition(uniform, level, zero, without=True, shared_tilt=shared_tilt)
    return quadrature._replace(log_volume=volume.log[0], log_volume_without=volume.log_without[0])


def _check_inside(bounds: Bounds) -> None:
    size = bounds.low.size
    if size < 2:
        raise ValueError(f"a market has at least 2 agents, got {size}")
    low, high = bounds.low.sum(), bounds.high.sum()
    if not low < 0.0 < high:
        raise ValueError(f"total quantity must be able to be 0 inside its range, got [{low}, {high}]")
    low, high = low - bounds.low, high - bounds.high
    # One agent alone has a point, not a polytope.
    inside = (low < 0.0) & (high > 0.0) if size > 2 else (low <= 0.0) & (high >= 0.0)
    if not inside.all():
        agent = int(np.argmin(inside))
        raise ValueError(
            f"total quantity without agent {agent} must be able to be 0 inside its range, "
            f"got [{low[agent]}, {high[agent]}]"
        )


def _period(bounds: Bounds, stiffness: np.ndarray, *, shared_tilt: bool) -> float:
    """Distance of aliases: beyond the support of the sum, or ``FAR`` standard deviations if that is nearer.

    A truncated normal of density exp(−stiffness·y²/2 − …) is sub-Gaussian with variance proxy
    min(width²/12, 1/stiffness), whatever its tilt.
    """
    width = bounds.high - bounds.low
    high, low = bounds.high.sum() - np.append(bounds.high, 0.0), bounds.low.sum() - np.append(bounds.low, 0.0)
    support = max(high.max(), -low.min())
    variance = np.minimum(width * width / 12.0, 1.0 / np.maximum(stiffness, 1e-300)).sum()
    # One standard deviation for a tilt that is not exact; a shared one is off by what an agent takes away.
    off = np.abs([bounds.low, bounds.high]).max() if shared_tilt else 0.0
    return float(min(support, (FAR + 1.0) * np.sqrt(variance) + off))


def _ample_nodes(bounds: Bounds, bids: Bids, beta: np.ndarray, highest: float) -> int:
    """Pairs of nodes that are certainly enough up to frequency ``highest``; bids ``(B, n)``.

    A Gaussian exp(−αx²), an exponential exp(γx) and a wave exp(iXx) on [−1, 1] are polynomials of degree 12√α, 8.5√γ
    and X + 5X^(1/3) to rounding; Q nodes integrate degree 2Q − 1.
    """
    middle, half = 0.5 * (bounds.low + bounds.high), 0.5 * (bounds.high - bounds.low)
    found = pivots(bids, bounds)
    prices = np.concatenate([found.clearing.price[:, None], found.price_without], axis=-1)
    wave = highest * half
    bend = beta[:, None] * np.abs(bids.quadratic) * half * half
    marginal = 2.0 * bids.quadratic * middle + bids.linear
    off = np.maximum(prices.max(-1)[:, None] - marginal, marginal - prices.min(-1)[:, None])
    slope = beta[:, None] * off * half + 3.0
    degree = wave + 5.0 * np.cbrt(wave) + (12.0 * np.sqrt(bend) + 8.5 * np.sqrt(slope)).max(axis=0) + 20.0
    return int(np.ceil(degree.max() / 4.0))


def _difference(one: Partition, other: Partition, bounds: Bounds, beta: np.ndarray, scale: np.ndarray) -> float:
    """Largest relative difference; welfare by ``scale (B,)``, E[y] by half widths, ln Z by 1 + β·scale."""
    log = 1.0 + (beta * scale)[:, None]
    gaps = (
        (one.log - other.log) / log[:, 0],
        (one.log_without - other.log_without) / log,
        2.0 * (one.quantity - other.quantity) / (bounds.high - bounds.low),
        (one.welfare_without - other.welfare_without) / scale[:, None],
    )
    worst = max(np.abs(gap).max() for gap in gaps)
    return worst if np.isfinite(worst) else np.inf


def _stuck(errors: list[float]) -> bool:
    """Whether errors, past the first digits, were not halved by nearly three times the nodes: it is rounding."""
    return len(errors) > 3 and 1e-3 > errors[-1] > 0.5 * errors[-4]


def _fit_fourier(bounds: Bounds, bids: Bids, beta: np.ndarray, tolerance: float, *, shared_tilt: bool) -> Fourier:
    """Smallest quadrature of a ladder that meets the tolerance on these bids ``(B, n)``, volumes not filled in."""
    period = _period(bounds, (2.0 * beta[:, None] * np.abs(bids.quadratic)).min(axis=0), shared_tilt=shared_tilt)
    scale = _scale(bounds, bids)

    def evaluate(quadrature: Fourier) -> Partition:
        with np.errstate(invalid="ignore", divide="ignore"):  # what is too coarse may give a negative density
            return partition(quadrature, bids, beta, without=True, shared_tilt=shared_tilt)

    def build(frequencies: int, nodes: int | None = None, stretch: float = 1.0) -> Fourier:
        highest = 2.0 * np.pi / (stretch * period) * frequencies
        ample = _ample_nodes(bounds, bids, beta, highest) if nodes is None else nodes
        if ample > LARGEST_NODES:
            raise InaccurateError(f"tolerance {tolerance!r} may need {ample} nodes an agent, most are {LARGEST_NODES}")
        return fourier.build(bounds, stretch * period, frequencies, ample)

    errors: list[float] = []
    for frequencies in FREQUENCIES:
        # Twice the highest frequency, and aliases farther away.
        finer = build(int(2.2 * frequencies), stretch=1.1)
        exact, quadrature = evaluate(finer), build(frequencies)
        errors.append(_difference(evaluate(quadrature), exact, bounds, beta, scale))
        if errors[-1] <= tolerance:
            break
        if _stuck(errors) or finer.cosine.size > LARGEST:
            raise InaccurateError(
                f"tolerance {tolerance!r} is not reached: {errors[-1]:.1e} with {frequencies} frequencies"
                + (", shared_tilt loses digits in this market" if shared_tilt else "")
            )
    while (nodes := int(0.85 * quadrature.grid.nodes.size)) >= 4:
        fewer = build(frequencies, nodes)
        if not _difference(evaluate(fewer), exact, bounds, beta, scale) <= tolerance:
            break
        quadrature = fewer
    return quadrature


def _scale(bounds: Bounds, bids: Bids) -> np.ndarray:
    """Largest range of a valuation ``(B,)``, payments are of its size; at least what W is rounded to [$]."""
    least, most = value_range(bids, bounds)
    largest = np.maximum(np.abs(least), np.abs(most))
    return (most - least).max(axis=-1) + 1e-6 * largest.sum(axis=-1)


def _fit_pairs(bounds: Bounds, bids: Bids, beta: np.ndarray, tolerance: float) -> Pairs:
    scale = _scale(bounds, bids)

    def evaluate(count: int) -> tuple[Pairs, Partition]:
        quadrature = panels.build(bounds, count)
        return quadrature, partition(quadrature, bids, beta, without=True, shared_tilt=False)

    errors: list[float] = []
    quadrature, coarse = evaluate(NODES[0])
    for count in NODES[1:]:
        finer, fine = evaluate(count)
        errors.append(_difference(coarse, fine, bounds, beta, scale))
        if errors[-1] <= tolerance:
            return quadrature
        if _stuck(errors) or finer.full.first.size > LARGEST:
            break
        quadrature, coarse = finer, fine
    raise InaccurateError(f"tolerance {tolerance!r} is not reached: {errors[-1]:.1e} with {count} nodes a panel")
