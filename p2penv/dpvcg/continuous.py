"""Exact law of the continuous exponential mechanism: density ∝ exp(βW(y)) on {low ≤ y ≤ high, Σy = 0}.

It is the law of independent truncated normals given that their sum Y is zero, so its normaliser is the density of Y
at zero times a constant. Five agents or more: Y has bounded support, so that density is exactly a sum of the
characteristic function φ = Πφ_i over the frequencies 2πk/T once aliases T apart lie outside the support, or where
there is no mass. φ_i comes from Gauss-Legendre nodes, as products with matrices that depend on public data only.
A tilt exp(−θΣy), which is one on the polytope, brings E[Y] close to zero: any θ gives the same result, but without it
differences of large terms lose all digits. Up to four agents: the characteristic function falls too slowly, and two
pairs of agents are integrated by Gauss-Legendre panels instead, given the sum of each pair.

Base measure: Lebesgue's on n − 1 of the quantities. Quadratures are built with NumPy
(:func:`~p2penv.dpvcg.quadrature.make_quadrature`); :func:`law` and the rest are array functions, batched,
differentiable, and need the quadrature's arrays in the namespace of the bids.
"""

from __future__ import annotations

from math import prod
from typing import NamedTuple

import numpy as np

from p2penv.core.arrays import Array, clip, namespace, row_sum, safe_divide
from p2penv.dpvcg import fourier, panels
from p2penv.dpvcg.fourier import Fourier, Grid
from p2penv.dpvcg.panels import Pairs
from p2penv.dpvcg.rules import Bids, Bounds, Law, clear, pivots, value_range

# Complex numbers of the widest array of a block, in NumPy (fits the cache) and elsewhere (bounds memory).
BLOCK, LARGE = 2**17, 2**25

Quadrature = Fourier | Pairs


class Moments(NamedTuple):
    """The law of the whole market, as in :class:`~p2penv.dpvcg.rules.Law`."""

    welfare: Array  # (...)
    quantity: Array  # (..., n)
    value: Array  # (..., n)
    true_value: Array  # (..., n)
    free: Array  # (...)


def law(
    quadrature: Quadrature, bids: Bids, beta: Array | float, true: Bids | None = None, *, shared_tilt: bool = False
) -> Law:
    """The law of the mechanism, and what is needed of the laws of the markets without each agent.

    Args:
        quadrature: of the market; it says how accurate this is, see :mod:`~p2penv.dpvcg.quadrature`.
        bids: ``(..., n)`` as reported.
        beta: ``(...)`` or one number, ≥ 0 [1/$].
        true: ``(..., n)`` true valuations for ``true_value``; the reported ones if not given.
        shared_tilt: take the tilt of the whole market for the markets without an agent too. That is n times less
            work, and loses about z²/2 of 36 natural digits where an agent's E[y] is z standard deviations of the
            others' sum: harmless while z ≤ 4, wrong at large β in small markets. Without effect up to four agents.
    """
    return Law(*_finish(quadrature, bids, beta, true, without=True, shared_tilt=shared_tilt))


def moments(quadrature: Quadrature, bids: Bids, beta: Array | float, true: Bids | None = None) -> Moments:
    """The same for the whole market alone."""
    return Moments(*_finish(quadrature, bids, beta, true, without=False, shared_tilt=True))


def log_partition(quadrature: Quadrature, bids: Bids, beta: Array | float) -> Array:
    """Logarithm ``(...)`` of ∫exp(βW) over the polytope; bids ``(..., n)``, β ``(...)`` or one number."""
    batch, bids, beta, _ = flat(bids, beta, None)
    xp = namespace(beta)
    return xp.reshape(partition(quadrature, bids, beta, without=False, shared_tilt=True).log, batch)


def flat(bids: Bids, beta: Array | float, true: Bids | None) -> tuple[tuple[int, ...], Bids, Array, Bids]:
    """Batch shape; bids ``(B, n)``, β ``(B,)`` and true bids ``(B, n)``."""
    xp = namespace(*bids)
    true = bids if true is None else true
    shape = np.broadcast_shapes(*(tuple(field.shape) for field in (*bids, *true)))
    beta = xp.broadcast_to(xp.asarray(beta, dtype=bids.linear.dtype), shape[:-1])
    fields = [xp.reshape(xp.broadcast_to(field, shape), (-1, shape[-1])) for field in (*bids, *true)]
    return shape[:-1], Bids(*fields[:3]), xp.reshape(beta, (-1,)), Bids(*fields[3:])


def _free(log: Array, log_volume: Array, beta: Array, welfare: Array) -> Array:
    """Free welfare ln E_uniform[exp(βW)]/β, which is E_uniform[W] at β = 0; the rounding error is 1e-15/β."""
    xp = namespace(log)
    zero = beta == 0.0
    return xp.where(zero, welfare, (log - log_volume) / xp.where(zero, 1.0, beta))


class Partition(NamedTuple):
    """The whole market, and the markets without each agent if asked for; B rows."""

    log: Array  # (B,) ln Z
    quantity: Array  # (B, n) E[y]
    square: Array  # (B, n) E[y²]
    log_without: Array  # (B, n)
    welfare_without: Array  # (B, n)


def partition(quadrature: Quadrature, bids: Bids, beta: Array, *, without: bool, shared_tilt: bool) -> Partition:
    """Row by row; bids ``(B, n)``, β ``(B,)``."""
    if isinstance(quadrature, Pairs):
        widest = prod(quadrature.full.first_weights.shape) * (bids.linear.shape[-1] if without else 1)
    else:
        widest = prod(quadrature.turn.shape) * (bids.linear.shape[-1] if without and not shared_tilt else 1)
    # A power of two, to be split evenly.
    rows = 2 ** max(0, (BLOCK // widest).bit_length() - 1) if namespace(beta) is np else max(1, beta.shape[0])
    parts = []
    for start in range(0, beta.shape[0], rows):
        some = Bids(*(field[start : start + rows, :] for field in bids)), beta[start : start + rows]
        if isinstance(quadrature, Pairs):
            parts.append(_pairs(quadrature, *some, without=without))
        else:
            parts.append(_fourier(quadrature, *some, without=without, shared_tilt=shared_tilt))
    if len(parts) == 1:
        return parts[0]
    xp = namespace(beta)
    return Partition(*(xp.concat(fields, axis=0) for fields in zip(*parts, strict=True)))


def _fourier(quadrature: Fourier, bids: Bids, beta: Array, *, without: bool, shared_tilt: bool) -> Partition:
    xp = namespace(beta)
    turned = Bids(*(xp.permute_dims(field, (1, 0)) for field in bids))
    full, rest = fourier.whole(quadrature, turned, beta, without=without and shared_tilt)
    log, first, second = full
    middle, half = quadrature.grid.middle[:, None], quadrature.grid.half[:, None]
    fields = [middle + half * first, middle * middle + 2.0 * middle * half * first + half * half * second]
    if rest is not None:
        fields += rest
    fields = [xp.permute_dims(field, (1, 0)) for field in fields]
    if without and rest is None:
        price = pivots(Bids(*map(fourier.constant, bids)), fourier.bounds_of(quadrature.grid)).price_without
        size, count = bids.linear.shape[-1], quadrature.phase.shape[0]
        step = max(1, LARGE // (count * size * beta.shape[0]))
        markets = [slice(start, min(start + step, size)) for start in range(0, size, step)]
        parts = [fourier.without_each(quadrature, turned, beta, price[:, some], some) for some in markets]
        fields += [xp.concat(part, axis=-1) for part in zip(*parts, strict=True)]
    return Partition(log, *fields, *(() if without else (log, log)))


def _pairs(quadrature: Pairs, bids: Bids, beta: Array, *, without: bool) -> Partition:
    log, _, quantity, square = (field[:, 0, ...] for field in panels.moments(quadrature.full, bids, beta))
    rest = panels.moments(quadrature.without, bids, beta)[:2] if without else (log, log)
    return Partition(log, quantity, square, *rest)


def _volumes(quadrature: Quadrature) -> tuple[Array, Array]:
    """Logarithms of the volumes of the polytope ``()`` and of the polytopes without each agent ``(n,)``."""
    if isinstance(quadrature, Pairs):
        return quadrature.full.log_volume[0], quadrature.without.log_volume
    return quadrature.log_volume, quadrature.log_volume_without


def _finish(
    quadrature: Quadrature, bids: Bids, beta: Array | float, true: Bids | None, *, without: bool, shared_tilt: bool
) -> tuple[Array, ...]:
    """Fields of Law, of Moments if the markets without an agent are not asked for."""
    batch, bids, beta, true = flat(bids, beta, true)
    xp = namespace(beta)
    part = partition(quadrature, bids, beta, without=without, shared_tilt=shared_tilt)
    own, actual = (b.quadratic * part.square + b.linear * part.quantity + b.constant for b in (bids, true))
    welfare = row_sum(own)
    volume, volume_without = _volumes(quadrature)
    fields = [welfare, part.quantity, own, actual, _free(part.log, volume, beta, welfare)]
    if without:
        fields.append(part.welfare_without)
        fields.append(_free(part.log_without, volume_without, beta[:, None], part.welfare_without))
    return tuple(xp.reshape(field, (*batch, *field.shape[1:])) for field in fields)


# A tilt, and one agent's report.


class Saddle(NamedTuple):
    """Laws of single agents ∝ exp(βv_i − θy) under a tilt that nearly balances them."""

    theta: Array  # (...) [1/kWh]
    room: Array  # (..., n) integral over the largest value of exp(βv_i − θy) [kWh]
    log: Array  # (..., n) ln of the integral


def saddle(bids: Bids, bounds: Bounds, beta: Array | float, nodes: int = 32) -> Saddle:
    """A tilt θ near E_θ[Σy] = 0, as :func:`law` uses.

    Where laws are too narrow for the nodes they are found at the largest β that is not; θ is then β times the price
    that clears plus a correction, which tends to a constant in β.

    Args:
        bids: ``(..., n)``.
        bounds: ``(n,)``.
        beta: ``(...)`` or one number, ≥ 0 [1/$].
        nodes: pairs of Gauss-Legendre nodes of each agent; fine enough up to β|a|·half² = 0.8·nodes².
    """
    batch, bids, beta, _ = flat(bids, beta, None)
    xp = namespace(beta)
    x, weights = (xp.asarray(np.array(field), dtype=beta.dtype) for field in fourier.gauss_pairs(nodes))
    grid = Grid(0.5 * (bounds.low + bounds.high), 0.5 * (bounds.high - bounds.low), x, weights)
    price = clear(bids, bounds).price[:, None]
    local = fourier.local_valuations(grid, Bids(*(xp.permute_dims(field, (1, 0)) for field in bids)))
    steepest = xp.maximum(-local.bend, 0.25 * xp.abs(local.tilted(grid, price).slope))
    fine = xp.minimum(beta, 0.8 * nodes * nodes / xp.max(steepest, axis=0)[:, 0])
    scaled = fourier.times_beta(local, fine)
    theta = fourier.tilt(grid, scaled, None, fine[:, None] * price)
    factors = fourier.factors_of(grid, scaled, theta)
    theta = theta + (beta - fine)[:, None] * price
    rows = (xp.permute_dims(field[..., 0], (1, 0)) for field in (factors.room, factors.log))
    return Saddle(xp.reshape(theta, batch), *(xp.reshape(field, (*batch, field.shape[-1])) for field in rows))


class Residual(NamedTuple):
    """How the law depends on the report r of one agent, at nodes y_q of its quantity.

    E[f(y_i) + W_{-i}] = Σ_q exp(βr(y_q))w_q(f(y_q) + g_q) / Σ_q exp(βr(y_q))w_q, with g_q = E[W_{-i} | y_i = y_q].
    Weights may be negative by the error of the quadrature, where the others can hardly balance the agent.
    """

    quantity: Array  # (..., Q) nodes y_q [kWh]
    weight: Array  # (..., Q) w_q, the largest of size one
    others: Array  # (..., Q) g_q, kept between the least and the largest possible [$]
    weighted: Array  # (..., Q) w_q·g_q as integrated


def residual(quadrature: Quadrature, bounds: Bounds, bids: Bids, beta: Array | float, agent: int) -> Residual:
    """The law as a one-dimensional family in the report of ``agent``; sums over it equal what :func:`law` gives.

    The agent's own bid in ``bids`` only steers rounding. Weights underflow where β·price·width exceeds about 700.

    Args:
        quadrature: of the market.
        bounds: ``(n,)``.
        bids: ``(..., n)``.
        beta: ``(...)`` or one number, ≥ 0 [1/$].
        agent: index, 0 to n − 1.
    """
    size = bounds.low.shape[-1]
    if not 0 <= agent < size:
        raise ValueError(f"agent must be in [0, {size - 1}], got {agent}")
    batch, bids, beta, _ = flat(bids, beta, None)
    xp = namespace(beta)
    if isinstance(quadrature, Pairs):
        quantity, weight, weighted = panels.residual(quadrature, bids, beta, agent)
    else:
        quantity, weight, weighted = fourier.residual(quadrature, bids, beta, agent)
    largest = xp.max(xp.abs(weight), axis=-1, keepdims=True)
    weight, weighted = weight / largest, weighted / largest
    apart = xp.arange(size) != agent
    least, most = (row_sum(xp.where(apart, end, 0.0))[:, None] for end in value_range(bids, bounds))
    others = clip(safe_divide(weighted, weight), least, most)
    fields = (xp.broadcast_to(quantity, weight.shape), weight, others, weighted)
    return Residual(*(xp.reshape(field, (*batch, field.shape[-1])) for field in fields))
