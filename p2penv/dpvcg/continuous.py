"""Exact law of the continuous exponential mechanism: density ∝ exp(βW(y)) on {low ≤ y ≤ high, Σy = 0}.

It is the law of independent truncated normals given that their sum Y is zero, so its normaliser is the density of Y
at zero times a constant. Five agents or more: Y has bounded support, so that density is exactly a sum of the
characteristic function φ = Πφ_i over the frequencies 2πk/T once aliases T apart lie outside the support, or where
there is no mass. φ_i comes from Gauss-Legendre nodes, as products with matrices that depend on public data only.
A tilt exp(−θΣy), which is one on the polytope, brings E[Y] close to zero: any θ gives the same result, but without it
differences of large terms lose all digits. Up to four agents: the characteristic function falls too slowly, and two
pairs of agents are integrated by Gauss-Legendre panels instead, given the sum of each pair.

Base measure: Lebesgue's on n − 1 of the quantities. Quadratures are built with NumPy (:func:`make_quadrature`);
:func:`law` and the rest are array functions, batched, differentiable, and need the quadrature's arrays in the
namespace of the bids.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from itertools import product
from math import prod
from typing import NamedTuple

import array_api_compat
import numpy as np
from scipy import special

from p2penv.core.arrays import Array, clip, namespace, row_sum, safe_divide
from p2penv.dpvcg.rules import Bids, Bounds, Law, clear, pivots, value, value_range

# Agents up to which pairs are integrated on panels.
PANEL_AGENTS = 4
# The density of a sum this many standard deviations from its mean is below rounding.
FAR = 8.5
NEWTON_STEPS = 4
# Sizes to try: frequencies; nodes a panel.
FREQUENCIES = tuple(round(2 ** (0.5 * k)) for k in range(8, 33))
NODES = tuple(round(2 ** (0.5 * k)) for k in range(5, 22))
# Complex numbers of the widest array of a block, in NumPy (fits the cache) and elsewhere (bounds memory).
BLOCK, LARGE = 2**17, 2**25
# Multiplications up to which BLAS uses one thread: many small products on several are slow on a busy machine.
THREADED = 2**18
# Entries of the largest matrix of a quadrature that is tried.
LARGEST = 2**23
# Pairs of nodes an agent that are tried; finding more takes minutes.
LARGEST_NODES = 2**11


class InaccurateError(ValueError):
    """No quadrature of a size that is tried is accurate enough."""


class Grid(NamedTuple):
    """H pairs of Gauss-Legendre nodes ±x on [−1, 1], mapped to every agent's interval."""

    middle: Array  # (n,) centre of each agent's interval [kWh]
    half: Array  # (n,) half its width [kWh]
    nodes: Array  # (H,) positive nodes
    weights: Array  # (H,)


class Fourier(NamedTuple):
    """Quadrature for five agents or more, of public data: K frequencies t."""

    grid: Grid
    cosine: Array  # (n, H, K) weight · cos(t·half·x)
    sine: Array  # (n, H, K)
    phase: Array  # (K,) weight of each frequency · exp(it·Σ middle)
    turn: Array  # (n, K) exp(−it·middle), which takes an agent away
    log_volume: Array  # () of the polytope
    log_volume_without: Array  # (n,) of the polytope without each agent


class Panels(NamedTuple):
    """Markets of up to four agents, m at once: S sums s of the first group, Q nodes in each group given its sum.

    Groups: the first two agents and the rest, or one each.
    """

    agents: Array  # (m, g) who takes part, the first group first
    first: Array  # (m, g₁, S, Q) quantities of the first group, Σ = s [kWh]
    second: Array  # (m, g₂, S, Q) quantities of the second, Σ = −s [kWh]
    first_weights: Array  # (m, S, Q)
    second_weights: Array  # (m, S, Q)
    weights: Array  # (m, S), zero where a market has fewer sums than the others
    log_volume: Array  # (m,)


class Pairs(NamedTuple):
    """Quadrature for up to four agents."""

    full: Panels  # the market, m = 1
    without: Panels  # the market without each agent, m = n


Quadrature = Fourier | Pairs


class Moments(NamedTuple):
    """The law of the whole market, as in :class:`~p2penv.dpvcg.rules.Law`."""

    welfare: Array  # (...)
    quantity: Array  # (..., n)
    value: Array  # (..., n)
    true_value: Array  # (..., n)
    free: Array  # (...)


def _constant(values: Array) -> Array:
    """Values that derivatives do not go through."""
    if array_api_compat.is_jax_array(values):
        import jax

        return jax.lax.stop_gradient(values)
    return values.detach() if array_api_compat.is_torch_array(values) else values


# Five agents or more.


def _bounds(grid: Grid) -> Bounds:
    return Bounds(grid.middle - grid.half, grid.middle + grid.half)


class _Local(NamedTuple):
    """β·v_i − θy in x = (y − middle)/half: level + slope·x + bend·x², each ``(n, ...)``."""

    level: Array
    slope: Array
    bend: Array

    def tilted(self, grid: Grid, theta: Array) -> _Local:
        """Tilted by θ ``(...)``."""
        return _Local(
            self.level - _agents_first(grid.middle, theta) * theta,
            self.slope - _agents_first(grid.half, theta) * theta,
            self.bend,
        )


def _agents_first(values: Array, like: Array) -> Array:
    """``(n,)`` as ``(n, 1, ...)`` over an array ``(...)``."""
    xp = namespace(values)
    return xp.reshape(values, (-1, *(1 for _ in like.shape)))


def _local(grid: Grid, bids: Bids) -> _Local:
    """Valuations in the local variable, ``(n, ..., 1)`` with an axis for markets, from bids ``(n, ...)``."""
    middle, half = (_agents_first(field, bids.linear[0, ...]) for field in (grid.middle, grid.half))
    bend = bids.quadratic * half * half
    slope = (2.0 * bids.quadratic * middle + bids.linear) * half
    return _Local(*(field[..., None] for field in (value(bids, middle), slope, bend)))


def _exponentials(grid: Grid, local: _Local) -> tuple[Array, Array, Array]:
    """exp(slope·x + bend·x² − top) at ±nodes, ``(n, ..., H)`` each, and the largest exponent top ``(n, ...)``."""
    xp = namespace(local.slope)
    steep, bend = _constant(xp.abs(local.slope)), _constant(local.bend)
    peak = xp.minimum(steep / xp.maximum(-2.0 * bend, 1e-30), 1.0)
    top = (bend * peak + steep) * peak
    curve = local.bend[..., None] * (grid.nodes * grid.nodes) - top[..., None]
    line = local.slope[..., None] * grid.nodes
    return xp.exp(curve + line), xp.exp(curve - line), top


def _tilt(grid: Grid, local: _Local, present: Array | None, theta: Array) -> Array:
    """θ ``(...)`` near E_θ[Σy] = 0 by safeguarded Newton steps; only conditioning depends on it.

    Args:
        grid: fine enough for the laws of single agents.
        local: ``(n, ...)`` without a tilt.
        present: who takes part, ``(n, ...)``; None for all.
        theta: where to start.
    """
    xp = namespace(theta)
    far = 0.25 * xp.finfo(theta.dtype).max
    low, high = theta - far, theta + far
    weights, square = grid.weights, grid.weights * grid.nodes * grid.nodes
    middle, half = _agents_first(grid.middle, theta), _agents_first(grid.half, theta)
    for _ in range(NEWTON_STEPS):
        up, down, _ = _exponentials(grid, local.tilted(grid, theta))
        even, odd = up + down, up - down
        mass = even @ weights
        mean = (odd @ (weights * grid.nodes)) / mass
        variance = half * half * ((even @ square) / mass - mean * mean)
        mean = middle + half * mean
        if present is not None:
            mean, variance = xp.where(present, mean, 0.0), xp.where(present, variance, 0.0)
        mean, variance = xp.sum(mean, axis=0), xp.maximum(xp.sum(variance, axis=0), 1e-30)
        low, high = xp.where(mean > 0.0, theta, low), xp.where(mean < 0.0, theta, high)
        # The variance of a tilted bounded variable changes by a bounded factor over 1/half.
        reach = 3.0 / xp.max(grid.half) + 2.0 / xp.sqrt(variance)
        step = theta + clip(mean / variance, -reach, reach)
        theta = xp.where((step < low) | (step > high), 0.5 * (low + high), step)
    return theta


def _product(rows: Array, matrix: Array) -> Array:
    """Products ``(n, R, K)`` of rows ``(n, R, H)`` with a matrix ``(n, H, K)`` for each agent."""
    xp = namespace(rows)
    agents, count, nodes = rows.shape
    frequencies = matrix.shape[-1]
    most = max(16, THREADED // (nodes * frequencies))
    if xp is not np or count <= most:
        return xp.matmul(rows, matrix)
    # The fewest equal parts that are small enough.
    parts = next(k for k in range(1, count + 1) if count % k == 0 and count // k <= most)
    split = rows.reshape(agents, parts, count // parts, nodes)
    return np.matmul(split, matrix[:, None]).reshape(agents, count, frequencies)


def _transform(quadrature: Fourier, up: Array, down: Array) -> Array:
    """Σ_q weight · f · exp(it·half·x) ``(n, ..., K)`` of functions f ``(n, ..., H)`` at ±nodes."""
    xp = namespace(up)
    shape = (*up.shape[:-1], quadrature.cosine.shape[-1])
    even, odd = (xp.reshape(f, (f.shape[0], -1, f.shape[-1])) for f in (up + down, up - down))
    return xp.reshape(_product(even, quadrature.cosine) + 1j * _product(odd, quadrature.sine), shape)


def _times(one: Sequence[Array], other: Sequence[Array]) -> list[Array]:
    """Product of numbers, or of dual numbers (value, derivative)."""
    both = one[0] * other[0]
    return [both] if len(one) == 1 else [both, one[0] * other[1] + one[1] * other[0]]


def _multiply(factors: Sequence[Array], *, leave_out: bool) -> list[Array]:
    """Products over the first axis, of all ``(...)`` or of all but each ``(n, ...)``, by a binary tree.

    Nothing is divided: characteristic functions have zeros.
    """
    xp = namespace(factors[0])
    levels, sizes = [], []
    level = list(factors)
    while level[0].shape[0] > 1:
        sizes.append(level[0].shape[0])
        if sizes[-1] % 2:
            one = xp.ones_like(level[0][:1, ...])
            level = [xp.concat([f, one if i == 0 else 0.0 * one], axis=0) for i, f in enumerate(level)]
        levels.append(level)
        level = _times([f[0::2, ...] for f in level], [f[1::2, ...] for f in level])
    if not leave_out:
        return [f[0, ...] for f in level]
    outside = [xp.ones_like(f) if i == 0 else xp.zeros_like(f) for i, f in enumerate(level)]
    for level, size in zip(reversed(levels), reversed(sizes), strict=True):
        sides = [_times(outside, [f[start::2, ...] for f in level]) for start in (1, 0)]
        outside = [
            xp.reshape(xp.stack([left, right], axis=1), f.shape)[:size, ...]
            for left, right, f in zip(*sides, level, strict=True)
        ]
    return outside


class _Factors(NamedTuple):
    """Tilted and normalised laws of single agents, ``(n, ..., H)`` at ±nodes, and what normalised them."""

    up: Array
    down: Array
    room: Array  # (n, ...) ∫exp(βv_i − θy) dy over the largest of the integrand [kWh]
    log: Array  # (n, ...) ln ∫exp(βv_i − θy) dy


def _factors(grid: Grid, local: _Local, theta: Array) -> _Factors:
    xp = namespace(theta)
    local = local.tilted(grid, theta)
    up, down, top = _exponentials(grid, local)
    mass = (up + down) @ grid.weights
    room = mass * _agents_first(grid.half, theta)
    scale = (1.0 / mass)[..., None]
    return _Factors(up * scale, down * scale, room, local.level + top + xp.log(room))


def _at_zero(transform: Array, phase: Array) -> Array:
    """Density of the sum at zero ``(...)`` from its centred characteristic function ``(..., K)``."""
    xp = namespace(transform)
    return xp.sum(xp.real(transform) * xp.real(phase) - xp.imag(transform) * xp.imag(phase), axis=-1)


def _welfare_transform(quadrature: Fourier, local: _Local, factors: _Factors) -> Array:
    """Transform of v_i times the law of each agent."""
    even = local.level[..., None] + local.bend[..., None] * (quadrature.grid.nodes * quadrature.grid.nodes)
    odd = local.slope[..., None] * quadrature.grid.nodes
    return _transform(quadrature, factors.up * (even + odd), factors.down * (even - odd))


def _scaled(local: _Local, beta: Array) -> _Local:
    return _Local(*(beta[:, None] * field for field in local))


def _market_tilt(grid: Grid, bids: Bids, beta: Array, scaled: _Local) -> Array:
    """θ ``(B, 1)`` of the whole market, from the price at which bids ``(n, B)`` clear."""
    xp = namespace(beta)
    turned = Bids(*(xp.permute_dims(_constant(field), (1, 0)) for field in bids))
    price = clear(turned, _bounds(grid)).price
    return _tilt(grid, _Local(*map(_constant, scaled)), None, _constant(beta * price)[:, None])


def _fourier_full(
    quadrature: Fourier, bids: Bids, beta: Array, *, without: bool
) -> tuple[tuple[Array, Array, Array], tuple[Array, Array] | None]:
    """Returns ln Z ``(B,)``, E[x] and E[x²] ``(n, B)``; if asked for, ln Z and E[W] ``(n, B)`` without each agent.

    Args:
        quadrature: of the market.
        bids: ``(n, B)``.
        beta: ``(B,)``.
        without: by the tilt of the whole market.
    """
    xp = namespace(beta)
    local = _local(quadrature.grid, bids)
    scaled = _scaled(local, beta)
    factors = _factors(quadrature.grid, scaled, _market_tilt(quadrature.grid, bids, beta, scaled))
    transforms = [_transform(quadrature, factors.up, factors.down)]
    if without:
        transforms.append(_welfare_transform(quadrature, local, factors))
    others = _multiply(transforms, leave_out=True)
    nodes = quadrature.grid.nodes
    first = _transform(quadrature, factors.up * nodes, -factors.down * nodes)
    second = _transform(quadrature, factors.up * (nodes * nodes), factors.down * (nodes * nodes))
    density = _at_zero(transforms[0][0, ...] * others[0][0, ...], quadrature.phase)
    moments = tuple(_at_zero(f * others[0], quadrature.phase)[..., 0] / density[:, 0] for f in (first, second))
    total = xp.sum(factors.log, axis=0)
    full = ((total + xp.log(density))[:, 0], *moments)
    if not without:
        return full, None
    phase = (quadrature.phase * quadrature.turn)[:, None, None, :]
    rest, welfare = (_at_zero(f, phase)[..., 0] for f in others)
    return full, ((total - factors.log)[..., 0] + xp.log(rest), welfare / rest)


def _fourier_without(quadrature: Fourier, bids: Bids, beta: Array, price: Array, markets: slice) -> tuple[Array, Array]:
    """Returns ln Z and E[W] ``(B, m)`` of some of the markets without one agent, each with its own tilt.

    Args:
        quadrature: of the market.
        bids: ``(n, B)``.
        beta: ``(B,)``.
        price: ``(B, m)`` at which those markets clear.
        markets: which agents are left out.
    """
    xp = namespace(beta)
    local = _local(quadrature.grid, bids)
    scaled = _scaled(local, beta)
    size = bids.linear.shape[0]
    agent = xp.arange(size)
    present = agent[:, None, None] != agent[markets]
    theta = _tilt(quadrature.grid, _Local(*map(_constant, scaled)), present, _constant(beta[:, None] * price))
    factors = _factors(quadrature.grid, scaled, theta)
    transforms = [
        xp.where(present[..., None], _transform(quadrature, factors.up, factors.down), 1.0),
        xp.where(present[..., None], _welfare_transform(quadrature, local, factors), 0.0),
    ]
    phase = quadrature.phase * quadrature.turn[markets, :]
    rest, welfare = (_at_zero(f, phase) for f in _multiply(transforms, leave_out=False))
    log = xp.sum(xp.where(present, factors.log, 0.0), axis=0)
    return log + xp.log(rest), welfare / rest


# Up to four agents.


class _Integral(NamedTuple):
    """Panels with bids: laws of the nodes ``(B, m, S, Q)`` of both groups, and ln Z ``(B, m)``."""

    first: Array
    second: Array
    log: Array


def _group(bids: Bids, agents: Array) -> Bids:
    """Bids ``(B, m, g, 1, 1)`` of the agents ``(m, g)`` of each market."""
    xp = namespace(bids.linear)
    flat, shape = xp.reshape(agents, (-1,)), (bids.linear.shape[0], *agents.shape, 1, 1)
    return Bids(*(xp.reshape(xp.take(field, flat, axis=-1), shape) for field in bids))


def _split(panels: Panels) -> tuple[Array, Array]:
    """Agents of the first and of the second group, ``(m, g₁)`` and ``(m, g₂)``."""
    size = panels.first.shape[1]
    return panels.agents[:, :size], panels.agents[:, size:]


def _integrate(panels: Panels, bids: Bids, beta: Array) -> _Integral:
    """The law of each market on its nodes; bids ``(B, n)``, β ``(B,)``."""
    xp = namespace(beta)
    beta = beta[:, None, None, None]
    masses, laws, tops = [], [], []
    groups = zip(_split(panels), panels[1:3], panels[3:5], strict=True)
    for agents, nodes, weights in groups:
        exponent = beta * xp.sum(value(_group(bids, agents), nodes), axis=2)
        tops.append(_constant(xp.max(exponent, axis=-1)))
        law = weights * xp.exp(exponent - tops[-1][..., None])
        masses.append(xp.sum(law, axis=-1))
        laws.append(law)
    top = tops[0] + tops[1]
    highest = xp.max(top, axis=-1)
    outer = panels.weights * xp.exp(top - highest[..., None])
    total = row_sum(outer * masses[0] * masses[1])
    outer = (outer / total[..., None])[..., None]
    return _Integral(
        laws[0] * outer * masses[1][..., None], laws[1] * outer * masses[0][..., None], highest + xp.log(total)
    )


def _panel_moments(panels: Panels, bids: Bids, beta: Array) -> tuple[Array, Array, Array, Array]:
    """Returns ln Z and E[W] ``(B, m)``, E[y] and E[y²] ``(B, m, g)``; bids ``(B, n)``, β ``(B,)``."""
    xp = namespace(beta)
    integral = _integrate(panels, bids, beta)
    quantity, square, welfare = [], [], 0.0
    groups = zip(_split(panels), panels[1:3], (integral.first, integral.second), strict=True)
    for agents, nodes, law in groups:
        law = law[:, :, None, :, :]
        quantity.append(xp.sum(law * nodes, axis=(-2, -1)))
        square.append(xp.sum(law * (nodes * nodes), axis=(-2, -1)))
        welfare = welfare + xp.sum(law * value(_group(bids, agents), nodes), axis=(-3, -2, -1))
    return integral.log, welfare, xp.concat(quantity, axis=-1), xp.concat(square, axis=-1)


# Any number of agents.


def _flat(bids: Bids, beta: Array | float, true: Bids | None) -> tuple[tuple[int, ...], Bids, Array, Bids]:
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


class _Partition(NamedTuple):
    """The whole market, and the markets without each agent if asked for; B rows."""

    log: Array  # (B,) ln Z
    quantity: Array  # (B, n) E[y]
    square: Array  # (B, n) E[y²]
    log_without: Array  # (B, n)
    welfare_without: Array  # (B, n)


def _fourier(quadrature: Fourier, bids: Bids, beta: Array, *, without: bool, shared_tilt: bool) -> _Partition:
    xp = namespace(beta)
    turned = Bids(*(xp.permute_dims(field, (1, 0)) for field in bids))
    full, rest = _fourier_full(quadrature, turned, beta, without=without and shared_tilt)
    log, first, second = full
    middle, half = quadrature.grid.middle[:, None], quadrature.grid.half[:, None]
    fields = [middle + half * first, middle * middle + 2.0 * middle * half * first + half * half * second]
    if rest is not None:
        fields += rest
    fields = [xp.permute_dims(field, (1, 0)) for field in fields]
    if without and rest is None:
        price = pivots(Bids(*map(_constant, bids)), _bounds(quadrature.grid)).price_without
        size, count = bids.linear.shape[-1], quadrature.phase.shape[0]
        step = max(1, LARGE // (count * size * beta.shape[0]))
        markets = [slice(start, min(start + step, size)) for start in range(0, size, step)]
        parts = [_fourier_without(quadrature, turned, beta, price[:, some], some) for some in markets]
        fields += [xp.concat(part, axis=-1) for part in zip(*parts, strict=True)]
    return _Partition(log, *fields, *(() if without else (log, log)))


def _pairs(quadrature: Pairs, bids: Bids, beta: Array, *, without: bool) -> _Partition:
    log, _, quantity, square = (field[:, 0, ...] for field in _panel_moments(quadrature.full, bids, beta))
    rest = _panel_moments(quadrature.without, bids, beta)[:2] if without else (log, log)
    return _Partition(log, quantity, square, *rest)


def _partition(quadrature: Quadrature, bids: Bids, beta: Array, *, without: bool, shared_tilt: bool) -> _Partition:
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
    return _Partition(*(xp.concat(fields, axis=0) for fields in zip(*parts, strict=True)))


def _volumes(quadrature: Quadrature) -> tuple[Array, Array]:
    """Logarithms of the volumes of the polytope ``()`` and of the polytopes without each agent ``(n,)``."""
    if isinstance(quadrature, Pairs):
        return quadrature.full.log_volume[0], quadrature.without.log_volume
    return quadrature.log_volume, quadrature.log_volume_without


def _finish(
    quadrature: Quadrature, bids: Bids, beta: Array | float, true: Bids | None, *, without: bool, shared_tilt: bool
) -> tuple[Array, ...]:
    """Fields of Law, of Moments if the markets without an agent are not asked for."""
    batch, bids, beta, true = _flat(bids, beta, true)
    xp = namespace(beta)
    part = _partition(quadrature, bids, beta, without=without, shared_tilt=shared_tilt)
    own, actual = (b.quadratic * part.square + b.linear * part.quantity + b.constant for b in (bids, true))
    welfare = row_sum(own)
    volume, volume_without = _volumes(quadrature)
    fields = [welfare, part.quantity, own, actual, _free(part.log, volume, beta, welfare)]
    if without:
        fields.append(part.welfare_without)
        fields.append(_free(part.log_without, volume_without, beta[:, None], part.welfare_without))
    return tuple(xp.reshape(field, (*batch, *field.shape[1:])) for field in fields)


def law(
    quadrature: Quadrature, bids: Bids, beta: Array | float, true: Bids | None = None, *, shared_tilt: bool = False
) -> Law:
    """The law of the mechanism, and what is needed of the laws of the markets without each agent.

    Args:
        quadrature: of the market; it says how accurate this is, see :func:`make_quadrature`.
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
    batch, bids, beta, _ = _flat(bids, beta, None)
    xp = namespace(beta)
    return xp.reshape(_partition(quadrature, bids, beta, without=False, shared_tilt=True).log, batch)


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
    batch, bids, beta, _ = _flat(bids, beta, None)
    xp = namespace(beta)
    x, weights = (xp.asarray(np.array(field), dtype=beta.dtype) for field in _gauss_pairs(nodes))
    grid = Grid(0.5 * (bounds.low + bounds.high), 0.5 * (bounds.high - bounds.low), x, weights)
    price = clear(bids, bounds).price[:, None]
    local = _local(grid, Bids(*(xp.permute_dims(field, (1, 0)) for field in bids)))
    steepest = xp.maximum(-local.bend, 0.25 * xp.abs(local.tilted(grid, price).slope))
    fine = xp.minimum(beta, 0.8 * nodes * nodes / xp.max(steepest, axis=0)[:, 0])
    scaled = _scaled(local, fine)
    theta = _tilt(grid, scaled, None, fine[:, None] * price)
    factors = _factors(grid, scaled, theta)
    theta = theta + (beta - fine)[:, None] * price
    rows = (xp.permute_dims(field[..., 0], (1, 0)) for field in (factors.room, factors.log))
    return Saddle(xp.reshape(theta, batch), *(xp.reshape(field, (*batch, field.shape[-1])) for field in rows))


# One agent's report.


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
    batch, bids, beta, _ = _flat(bids, beta, None)
    xp = namespace(beta)
    if isinstance(quadrature, Pairs):
        quantity, weight, weighted = _residual_pairs(quadrature, bids, beta, agent)
    else:
        quantity, weight, weighted = _residual_fourier(quadrature, bids, beta, agent)
    largest = xp.max(xp.abs(weight), axis=-1, keepdims=True)
    weight, weighted = weight / largest, weighted / largest
    apart = xp.arange(size) != agent
    least, most = (row_sum(xp.where(apart, end, 0.0))[:, None] for end in value_range(bids, bounds))
    others = clip(safe_divide(weighted, weight), least, most)
    fields = (xp.broadcast_to(quantity, weight.shape), weight, others, weighted)
    return Residual(*(xp.reshape(field, (*batch, field.shape[-1])) for field in fields))


def _residual_fourier(quadrature: Fourier, bids: Bids, beta: Array, agent: int) -> tuple[Array, Array, Array]:
    """Nodes ``(2H,)``, weights and weighted welfare of the others ``(B, 2H)``, up to a factor for each row."""
    xp = namespace(beta)
    turned = Bids(*(xp.permute_dims(field, (1, 0)) for field in bids))
    local = _local(quadrature.grid, turned)
    scaled = _scaled(local, beta)
    theta = _market_tilt(quadrature.grid, turned, beta, scaled)
    factors = _factors(quadrature.grid, scaled, theta)
    transforms = _transform(quadrature, factors.up, factors.down), _welfare_transform(quadrature, local, factors)
    others = [xp.concat([f[:agent, ...], f[agent + 1 :, ...]], axis=0) for f in transforms]
    half, nodes = quadrature.grid.half[agent], quadrature.grid.nodes
    tilt = -theta * half * nodes
    top = xp.max(xp.abs(tilt), axis=-1, keepdims=True)
    found = []
    for transform in _multiply(others, leave_out=False):
        # Densities at −y_q of the others' sum, by the same sums over frequencies as the density of the whole sum.
        spectrum = transform[:, 0, :] * quadrature.phase
        even = xp.real(spectrum) @ quadrature.cosine[agent, ...].T
        odd = xp.imag(spectrum) @ quadrature.sine[agent, ...].T
        found.append(xp.concat([(even - odd) * xp.exp(tilt - top), (even + odd) * xp.exp(-tilt - top)], axis=-1))
    return quadrature.grid.middle[agent] + half * xp.concat([nodes, -nodes]), found[0], found[1]


def _residual_pairs(quadrature: Pairs, bids: Bids, beta: Array, agent: int) -> tuple[Array, Array, Array]:
    """The same on panels: nodes of the agent's group, the other group integrated out."""
    xp = namespace(beta)
    panels = quadrature.full
    keep = xp.astype(xp.arange(bids.linear.shape[-1]) != agent, bids.linear.dtype)
    bids = Bids(*(field * keep for field in bids))
    integral = _integrate(panels, bids, beta)
    sides = list(zip(_split(panels), panels[1:3], (integral.first, integral.second), strict=True))
    if agent >= panels.first.shape[1]:
        sides.reverse()
    (mates, own, law), (rest, nodes, other) = sides
    welfare = xp.sum(value(_group(bids, mates), own), axis=2)
    beyond = xp.sum(other[:, :, None, ...] * value(_group(bids, rest), nodes), axis=(2, -1)) / xp.sum(other, axis=-1)
    weighted = law * (welfare + beyond[..., None])
    place = agent if agent < panels.first.shape[1] else agent - panels.first.shape[1]
    quantity = xp.broadcast_to(own[:, place, ...], law.shape[1:])
    return xp.reshape(quantity, (-1,)), *(xp.reshape(f, (beta.shape[0], -1)) for f in (law, weighted))


# Quadratures, with NumPy.


def _corners(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Sums at which the density of a group's sum is not smooth."""
    return np.array([sum(ends) for ends in product(*zip(low, high, strict=True))])


def _given_sum(low: np.ndarray, high: np.ndarray, total: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Nodes ``(g, S, Q)`` and weights ``(S, Q)`` for up to two quantities that add up to ``total (S,)``."""
    if low.size < 2:
        return np.broadcast_to(total, (low.size, total.size))[..., None], np.ones((total.size, 1))
    nodes, weights = _gauss(count)
    start, end = np.maximum(low[0], total - high[1]), np.minimum(high[0], total - low[1])
    own = 0.5 * (start + end)[:, None] + 0.5 * (end - start)[:, None] * nodes
    return np.stack([own, total[:, None] - own]), 0.5 * (end - start)[:, None] * weights


@cache
def _gauss(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Gauss-Legendre nodes on [−1, 1] and weights ``(count,)``."""
    nodes, weights = special.roots_legendre(count)
    for field in (nodes, weights):
        field.flags.writeable = False
    return nodes, weights


def _gauss_pairs(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Positive nodes of a rule of even size, and their weights ``(count,)``."""
    nodes, weights = _gauss(2 * count)
    return nodes[count:], weights[count:]


def _panels(low: np.ndarray, high: np.ndarray, markets: Sequence[Sequence[int]], count: int) -> Panels:
    """Panels of markets of equally many agents, with ``count`` nodes a panel."""
    nodes, weights = _gauss(count)
    found = []
    for agents in map(list, markets):
        cut = 2 if len(agents) > 2 else 1
        one, other = ((low[group], high[group]) for group in (agents[:cut], agents[cut:]))
        ends = max(one[0].sum(), -other[1].sum()), min(one[1].sum(), -other[0].sum())
        if len(agents) == 1:
            sums, outer = np.zeros(1), np.ones(1)
        else:
            kinks = np.concatenate([_corners(*one), -_corners(*other)])
            breaks = np.unique(np.clip(kinks, *ends))
            breaks = breaks[np.diff(breaks, prepend=-np.inf) > 1e-12 * np.ptp(breaks)]
            width = 0.5 * np.diff(breaks)[:, None]
            sums, outer = (breaks[:-1, None] + width + width * nodes).ravel(), (width * weights).ravel()
        found.append((sums, outer, _given_sum(*one, sums, count), _given_sum(*other, -sums, count)))
    # The shorter ones repeat their first sum, with no weight.
    longest = max(sums.size for sums, *_ in found)
    rows = [np.r_[np.arange(sums.size), np.zeros(longest - sums.size, int)] for sums, *_ in found]
    outer = np.array([np.pad(outer, (0, longest - outer.size)) for _, outer, *_ in found])
    groups = [
        (
            np.stack([entry[side][0][:, row] for entry, row in zip(found, rows, strict=True)]),
            np.stack([entry[side][1][row] for entry, row in zip(found, rows, strict=True)]),
        )
        for side in (2, 3)
    ]
    volume = (outer * groups[0][1].sum(-1) * groups[1][1].sum(-1)).sum(-1)
    return Panels(np.array(markets), groups[0][0], groups[1][0], groups[0][1], groups[1][1], outer, np.log(volume))


def _fourier_nodes(bounds: Bounds, period: float, frequencies: int, nodes: int) -> Fourier:
    """Quadrature of given size, volumes not filled in."""
    middle, half = 0.5 * (bounds.low + bounds.high), 0.5 * (bounds.high - bounds.low)
    x, weights = _gauss_pairs(nodes)
    t = 2.0 * np.pi / period * np.arange(frequencies)
    angle = half[:, None, None] * x[:, None] * t
    phase = np.where(t > 0.0, 2.0, 1.0) / period * np.exp(1j * t * middle.sum())
    turn = np.exp(-1j * t * middle[:, None])
    sizes = np.zeros(()), np.zeros(middle.size)
    grid = Grid(middle, half, x, weights)
    return Fourier(grid, weights[:, None] * np.cos(angle), weights[:, None] * np.sin(angle), phase, turn, *sizes)


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


def _difference(one: _Partition, other: _Partition, bounds: Bounds, beta: np.ndarray, scale: np.ndarray) -> float:
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

    def evaluate(quadrature: Fourier) -> _Partition:
        with np.errstate(invalid="ignore", divide="ignore"):  # what is too coarse may give a negative density
            return _partition(quadrature, bids, beta, without=True, shared_tilt=shared_tilt)

    def build(frequencies: int, nodes: int | None = None, stretch: float = 1.0) -> Fourier:
        highest = 2.0 * np.pi / (stretch * period) * frequencies
        ample = _ample_nodes(bounds, bids, beta, highest) if nodes is None else nodes
        if ample > LARGEST_NODES:
            raise InaccurateError(f"tolerance {tolerance!r} may need {ample} nodes an agent, most are {LARGEST_NODES}")
        return _fourier_nodes(bounds, stretch * period, frequencies, ample)

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


def _build_pairs(bounds: Bounds, count: int) -> Pairs:
    size = bounds.low.size
    everyone = range(size)
    rest = [[j for j in everyone if j != i] for i in everyone]
    full, without = (_panels(bounds.low, bounds.high, markets, count) for markets in ([everyone], rest))
    return Pairs(full, without)


def _fit_pairs(bounds: Bounds, bids: Bids, beta: np.ndarray, tolerance: float) -> Pairs:
    scale = _scale(bounds, bids)

    def evaluate(count: int) -> tuple[Pairs, _Partition]:
        quadrature = _build_pairs(bounds, count)
        return quadrature, _partition(quadrature, bids, beta, without=True, shared_tilt=False)

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
        shared_tilt: as :func:`law` will be called.

    Raises:
        ValueError: a market has no inside.
        InaccurateError: the tolerance is not reached.
    """
    bounds = Bounds(*(np.asarray(field, dtype=float) for field in bounds))
    size = bounds.low.size
    _check_inside(bounds)
    bids = Bids(*(np.asarray(field, dtype=float) for field in bids))
    _, bids, betas, _ = _flat(bids, beta, None)
    if size <= PANEL_AGENTS:
        return _fit_pairs(bounds, bids, betas, tolerance)
    quadrature = _fit_fourier(bounds, bids, betas, tolerance, shared_tilt=shared_tilt)
    # At β = 0 the bids do not matter.
    flat = Bids(-np.ones((1, size)), np.zeros((1, size)), np.zeros((1, size)))
    zero = np.zeros(1)
    uniform = _fit_fourier(bounds, flat, zero, tolerance, shared_tilt=shared_tilt)
    volume = _partition(uniform, flat, zero, without=True, shared_tilt=shared_tilt)
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
