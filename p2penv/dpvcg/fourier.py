"""Markets of five agents or more under the continuous exponential mechanism: characteristic functions.

The density of Y = Σy at zero is a sum of φ = Πφ_i over the frequencies 2πk/T. φ_i comes from Gauss-Legendre nodes, as
products with matrices that depend on public data only. A tilt exp(−θΣy), which is one on the polytope, brings E[Y]
close to zero: any θ gives the same result, but without it differences of large terms lose all digits.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import array_api_compat
import numpy as np
from scipy import special

from p2penv.core.arrays import Array, clip, namespace
from p2penv.dpvcg.rules import Bids, Bounds, clear, value

NEWTON_STEPS = 4
# Multiplications up to which BLAS uses one thread: many small products on several are slow on a busy machine.
THREADED = 2**18


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


def constant(values: Array) -> Array:
    """Values that derivatives do not go through."""
    if array_api_compat.is_jax_array(values):
        import jax

        return jax.lax.stop_gradient(values)
    return values.detach() if array_api_compat.is_torch_array(values) else values


@cache
def gauss(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Gauss-Legendre nodes on [−1, 1] and weights ``(count,)``."""
    nodes, weights = special.roots_legendre(count)
    for field in (nodes, weights):
        field.flags.writeable = False
    return nodes, weights


def gauss_pairs(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Positive nodes of a rule of even size, and their weights ``(count,)``."""
    nodes, weights = gauss(2 * count)
    return nodes[count:], weights[count:]


def build(bounds: Bounds, period: float, frequencies: int, nodes: int) -> Fourier:
    """Quadrature of given size, volumes not filled in."""
    middle, half = 0.5 * (bounds.low + bounds.high), 0.5 * (bounds.high - bounds.low)
    x, weights = gauss_pairs(nodes)
    t = 2.0 * np.pi / period * np.arange(frequencies)
    angle = half[:, None, None] * x[:, None] * t
    phase = np.where(t > 0.0, 2.0, 1.0) / period * np.exp(1j * t * middle.sum())
    turn = np.exp(-1j * t * middle[:, None])
    sizes = np.zeros(()), np.zeros(middle.size)
    grid = Grid(middle, half, x, weights)
    return Fourier(grid, weights[:, None] * np.cos(angle), weights[:, None] * np.sin(angle), phase, turn, *sizes)


def bounds_of(grid: Grid) -> Bounds:
    """Limits of the quantities that a grid spans."""
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


def local_valuations(grid: Grid, bids: Bids) -> _Local:
    """Valuations in the local variable, ``(n, ..., 1)`` with an axis for markets, from bids ``(n, ...)``."""
    middle, half = (_agents_first(field, bids.linear[0, ...]) for field in (grid.middle, grid.half))
    bend = bids.quadratic * half * half
    slope = (2.0 * bids.quadratic * middle + bids.linear) * half
    return _Local(*(field[..., None] for field in (value(bids, middle), slope, bend)))


def _exponentials(grid: Grid, local: _Local) -> tuple[Array, Array, Array]:
    """exp(slope·x + bend·x² − top) at ±nodes, ``(n, ..., H)`` each, and the largest exponent top ``(n, ...)``."""
    xp = namespace(local.slope)
    steep, bend = constant(xp.abs(local.slope)), constant(local.bend)
    peak = xp.minimum(steep / xp.maximum(-2.0 * bend, 1e-30), 1.0)
    top = (bend * peak + steep) * peak
    curve = local.bend[..., None] * (grid.nodes * grid.nodes) - top[..., None]
    line = local.slope[..., None] * grid.nodes
    return xp.exp(curve + line), xp.exp(curve - line), top


def tilt(grid: Grid, local: _Local, present: Array | None, theta: Array) -> Array:
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


def factors_of(grid: Grid, local: _Local, theta: Array) -> _Factors:
    """Laws of single agents under a tilt θ ``(...)``."""
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


def times_beta(local: _Local, beta: Array) -> _Local:
    """Valuations ``(n, B, 1)`` in the local variable, times β ``(B,)``."""
    return _Local(*(beta[:, None] * field for field in local))


def _market_tilt(grid: Grid, bids: Bids, beta: Array, scaled: _Local) -> Array:
    """θ ``(B, 1)`` of the whole market, from the price at which bids ``(n, B)`` clear."""
    xp = namespace(beta)
    turned = Bids(*(xp.permute_dims(constant(field), (1, 0)) for field in bids))
    price = clear(turned, bounds_of(grid)).price
    return tilt(grid, _Local(*map(constant, scaled)), None, constant(beta * price)[:, None])


def whole(
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
    local = local_valuations(quadrature.grid, bids)
    scaled = times_beta(local, beta)
    factors = factors_of(quadrature.grid, scaled, _market_tilt(quadrature.grid, bids, beta, scaled))
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


def without_each(quadrature: Fourier, bids: Bids, beta: Array, price: Array, markets: slice) -> tuple[Array, Array]:
    """Returns ln Z and E[W] ``(B, m)`` of some of the markets without one agent, each with its own tilt.

    Args:
        quadrature: of the market.
        bids: ``(n, B)``.
        beta: ``(B,)``.
        price: ``(B, m)`` at which those markets clear.
        markets: which agents are left out.
    """
    xp = namespace(beta)
    local = local_valuations(quadrature.grid, bids)
    scaled = times_beta(local, beta)
    size = bids.linear.shape[0]
    agent = xp.arange(size)
    present = agent[:, None, None] != agent[markets]
    theta = tilt(quadrature.grid, _Local(*map(constant, scaled)), present, constant(beta[:, None] * price))
    factors = factors_of(quadrature.grid, scaled, theta)
    transforms = [
        xp.where(present[..., None], _transform(quadrature, factors.up, factors.down), 1.0),
        xp.where(present[..., None], _welfare_transform(quadrature, local, factors), 0.0),
    ]
    phase = quadrature.phase * quadrature.turn[markets, :]
    rest, welfare = (_at_zero(f, phase) for f in _multiply(transforms, leave_out=False))
    log = xp.sum(xp.where(present, factors.log, 0.0), axis=0)
    return log + xp.log(rest), welfare / rest


def residual(quadrature: Fourier, bids: Bids, beta: Array, agent: int) -> tuple[Array, Array, Array]:
    """Nodes ``(2H,)``, weights and weighted welfare of the others ``(B, 2H)``, up to a factor for each row."""
    xp = namespace(beta)
    turned = Bids(*(xp.permute_dims(field, (1, 0)) for field in bids))
    local = local_valuations(quadrature.grid, turned)
    scaled = times_beta(local, beta)
    theta = _market_tilt(quadrature.grid, turned, beta, scaled)
    factors = factors_of(quadrature.grid, scaled, theta)
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
