"""Exact independent draws of the continuous exponential mechanism, density ∝ exp(βW(y)) on {low ≤ y ≤ high, Σy = 0}.

Tilt and reject: all agents but one, the residual agent r, are drawn from their own laws f_i ∝ exp(βv_i(y) − θy), and
y_r = −Σ others is accepted with probability f_r(y_r) / max f_r. The tilt θ, which changes nothing on the polytope,
balances the means; what is accepted is about the width of f_r over that of the sum, 40 % for six agents and 1 % for
ten thousand. A truncated normal is drawn by its distribution function in its more accurate tail; where that fails, far
in a tail or on a range so narrow that the law is nearly uniform or exponential (β = 0 too), an exponential is drawn
instead and its ratio to the normal goes into the acceptance: exact in all cases.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from p2penv.core import validation
from p2penv.core.arrays import Array, clip, namespace, normal_cdf, normal_quantile, row_sum
from p2penv.dpvcg import continuous
from p2penv.dpvcg.quadrature import make_quadrature
from p2penv.dpvcg.rules import Bids, Bounds, clear

# A normal is drawn as an exponential beyond this many standard deviations, by bits of precision.
TAIL = {64: 30.0, 32: 8.0}
# The same if the whole interval is narrower than this.
NARROW = {64: 0.01, 32: 0.1}
# Pairs of nodes that steer the tilt where bids are not known in advance.
SADDLE_NODES = 32
# Numbers worked on at a time in NumPy: they stay in the cache.
BLOCK = 2**15


class Laws(NamedTuple):
    """Tilted laws of single agents, ``(..., n)``, in the distance t ≥ 0 from the end where they are densest.

    ∝ exp(−fall·t − stiffness·t²/2) on [0, width].
    """

    flipped: Array  # whether that end is the low one
    end: Array  # that end [kWh]
    width: Array  # [kWh]
    fall: Array  # [1/kWh]
    stiffness: Array  # −2βa [1/kWh²]
    exponential: Array  # whether an exponential is drawn
    near: Array  # standard normal distribution function at that end, in the lower tail; zero if exponential
    far: Array  # at the other end
    peak: Array  # quantity of the largest density [kWh]
    slope: Array  # of the exponent there [1/kWh]


def _laws(bids: Bids, bounds: Bounds, beta: Array | float, theta: Array) -> Laws:
    """Laws of bids ``(..., n)`` tilted by ``theta (..., 1)``, β ``(..., 1)``."""
    xp = namespace(theta)
    low, width = bounds.low, bounds.high - bounds.low
    stiffness = -2.0 * beta * bids.quadratic
    at_low = beta * bids.linear - theta - stiffness * low
    at_high = at_low - stiffness * width
    flipped = at_low + at_high < 0.0
    fall = xp.where(flipped, -at_low, at_high)
    bits = xp.finfo(theta.dtype).bits
    root = xp.sqrt(stiffness)
    exponential = (root * width < NARROW[bits]) | (fall > TAIL[bits] * root)
    # Standardised ends, the denser one nearer to zero or beyond it.
    scale = xp.where(exponential, 1.0, root)
    near, far = -fall / scale, -xp.where(flipped, -at_high, at_low) / scale
    near, far = (xp.where(exponential, 0.0, normal_cdf(xp.where(exponential, 0.0, z))) for z in (near, far))
    # Without stiffness the peak is at an end, by the sign of the slope.
    peak = clip(low + at_low / xp.maximum(stiffness, 1e-30), low, bounds.high)
    end = xp.where(flipped, low, bounds.high)
    slope = at_low - stiffness * (peak - low)
    return Laws(flipped, end, width + 0.0 * end, fall, stiffness, exponential, near, far, peak, slope)


def _normals(laws: Laws, uniforms: Array) -> Array:
    """Distances t at uniforms in [0, 1] by the normal distribution function; for laws that are not ``exponential``."""
    scale = 1.0 / laws.stiffness**0.5
    depth = laws.far + uniforms * (laws.near - laws.far)
    return -scale * (normal_quantile(depth) + laws.fall * scale)


def _exponentials(laws: Laws, uniforms: Array) -> Array:
    """Distances t at uniforms in [0, 1], ∝ exp(−fall·t)."""
    xp = namespace(uniforms)
    drop = laws.fall * laws.width
    flat = xp.abs(drop) < 1e-30
    gone = xp.maximum(uniforms * xp.expm1(-drop), xp.finfo(uniforms.dtype).eps - 1.0)
    return xp.where(flat, uniforms, -xp.log1p(gone) / xp.where(flat, 1.0, drop)) * laws.width


def _propose(laws: Laws, uniforms: Array) -> tuple[Array, Array]:
    """Quantities at uniforms ``(..., n)``, and ln of the ratio of their law to what they were drawn from, ≤ 0."""
    xp = namespace(uniforms)
    exponential = laws.exponential
    normal = laws._replace(stiffness=xp.where(exponential, 1.0, laws.stiffness))
    decaying = laws._replace(fall=xp.where(exponential, laws.fall, 0.0))
    t = xp.where(exponential, _exponentials(decaying, uniforms), _normals(normal, uniforms))
    t = clip(t, 0.0, laws.width)
    return laws.end + xp.where(laws.flipped, t, -t), xp.where(exponential, -0.5 * laws.stiffness * t * t, 0.0)


def _acceptance(laws: Laws, quantity: Array) -> Array:
    """Logarithm of the density over its largest value, at quantities inside the bounds."""
    off = quantity - laws.peak
    return (laws.slope - 0.5 * laws.stiffness * off) * off


def _residual_agent(laws: Laws) -> Array:
    """The agent of the widest law ``(...)``, by the least of what limits a width."""
    xp = namespace(laws.fall)
    limits = 1.0 / laws.width + (laws.stiffness / (2.0 * np.pi)) ** 0.5 + xp.maximum(laws.fall, 0.0)
    return xp.argmin(limits, axis=-1)


def _grid_size(bids: Bids, bounds: Bounds, beta: float) -> int:
    """Nodes for the narrowest normal; see :func:`~p2penv.dpvcg.continuous.saddle`."""
    half = 0.5 * (bounds.high - bounds.low)
    return 24 + int(min(3.0 * np.sqrt(np.max(beta * np.abs(bids.quadratic) * half * half)), 256.0))


def sample(
    bids: Bids, bounds: Bounds, beta: float, size: int, rng: np.random.Generator | int | None = None
) -> NDArray[np.float64]:
    """Independent exact draws ``(size, n)``; Σy = 0 up to rounding, never outside the bounds.

    Args:
        bids: ``(n,)``, NumPy.
        bounds: ``(n,)``, Σy = 0 inside.
        beta: β ≥ 0 [1/$].
        size: how many, ≥ 1.
        rng: generator or seed.
    """
    size, beta = validation.count("size", size), validation.number("beta", beta, low=0.0)
    rng, agents = np.random.default_rng(rng), bounds.low.size
    start = continuous.saddle(bids, bounds, beta, _grid_size(bids, bounds, beta))
    laws = _laws(bids, bounds, beta, start.theta)
    last = int(_residual_agent(laws))
    own = Laws(*(field[last] for field in laws))
    # Normals, exponentials and the residual agent side by side, so that blocks are views.
    kind = np.where(np.arange(agents) == last, 2, laws.exponential)
    order, count = np.argsort(kind, kind="stable"), int((kind == 0).sum())
    spans = (slice(0, count), _normals), (slice(count, agents - 1), _exponentials)
    groups = [(span, draw, Laws(*(field[order[span]] for field in laws))) for span, draw in spans]
    low, high, place = bounds.low[last], bounds.high[last], np.argsort(order)
    drawn, missing, rows = [], size, max(1, BLOCK // agents)
    while missing > 0:
        uniforms = rng.random((min(rows, 4 * missing), agents))
        ratio = np.log1p(-uniforms[:, -1])  # of one minus the uniform, which is never zero
        quantity = np.zeros_like(uniforms)
        for span, draw, some in groups:
            t = clip(draw(some, uniforms[:, span]), 0.0, some.width)
            np.add(some.end, np.where(some.flipped, t, -t), out=quantity[:, span])
            if draw is _exponentials:
                ratio += 0.5 * (t * t) @ some.stiffness
        rest = -row_sum(quantity)
        quantity[:, -1] = rest
        accepted = (rest >= low) & (rest <= high) & (ratio < _acceptance(own, rest))
        drawn.append(quantity[accepted][:missing])
        missing -= len(drawn[-1])
    return np.concatenate(drawn)[:, place]


def proposals_needed(bids: Bids, bounds: Bounds, beta: float, failure: float = 1e-12) -> int:
    """Proposals of :func:`from_uniforms` of which none is accepted with at most this probability.

    Args:
        bids: ``(..., n)``; the hardest of them counts, so give the extremes of what may be declared.
        bounds: ``(n,)``.
        beta: β ≥ 0 [1/$].
        failure: in (0, 1).
    """
    quadrature = make_quadrature(bounds, bids, beta, 1e-6)
    start = continuous.saddle(bids, bounds, beta, _grid_size(bids, bounds, beta))
    last = _residual_agent(_laws(bids, bounds, beta, start.theta[..., None]))
    single = row_sum(start.log) - np.log(np.take_along_axis(start.room, last[..., None], axis=-1)[..., 0])
    accepted = np.exp(continuous.log_partition(quadrature, bids, beta) - single).min()
    return int(np.ceil(np.log(failure) / np.log1p(-accepted)))


def from_uniforms(bids: Bids, bounds: Bounds, beta: Array | float, uniforms: Array) -> Array:
    """Draws ``(..., n)`` as a function of uniforms: the first accepted of B proposals.

    Where none is accepted, which :func:`proposals_needed` makes improbable, the efficient allocation is given: it is
    feasible, but no draw, so the mechanism is ε-private up to that probability.

    Args:
        bids: ``(..., n)``.
        bounds: ``(n,)``.
        beta: ``(...)`` or one number, ≥ 0 [1/$].
        uniforms: ``(..., B, n)`` in [0, 1].
    """
    xp = namespace(bids.linear, uniforms)
    start = continuous.saddle(bids, bounds, beta, SADDLE_NODES)
    beta = xp.asarray(beta, dtype=uniforms.dtype)[..., None, None]
    bids = Bids(*(field[..., None, :] for field in bids))
    laws = _laws(bids, bounds, beta, start.theta[..., None, None])
    last = xp.arange(bounds.low.shape[-1]) == _residual_agent(laws)[..., None]
    quantity, ratio = _propose(laws, uniforms)
    rest = -row_sum(xp.where(last, 0.0, quantity))[..., None]
    inside = xp.any(last & (rest >= bounds.low) & (rest <= bounds.high), axis=-1)
    # The uniform of the residual agent decides.
    chance = row_sum(xp.where(last, _acceptance(laws, rest), ratio))
    accepted = inside & (row_sum(xp.where(last, uniforms, 0.0)) < xp.exp(xp.where(inside, chance, 0.0)))
    first = xp.argmax(xp.astype(accepted, xp.int32), axis=-1, keepdims=True)[..., None]
    quantity = xp.where(last, rest, quantity)
    index = xp.broadcast_to(first, (*quantity.shape[:-2], 1, quantity.shape[-1]))
    found = xp.take_along_axis(quantity, index, axis=-2)[..., 0, :]
    fallback = clear(Bids(*(field[..., 0, :] for field in bids)), bounds).allocation
    return xp.where(xp.any(accepted, axis=-1)[..., None], found, fallback)
