"""Rules of the VCG market: pure array functions, batched over leading axes.

Source: Hoseinpour, Hoseinpour, Haghifam, Haghifam, "Privacy-preserving and approximately truthful local electricity
markets: a differentially private VCG mechanism"; numbers in brackets are that paper's. An agent's quantity y is signed:
demand of a consumer, minus the generation of a producer. Per-agent arrays are ``(..., n)``, energy in kWh, money in $.

Departures from the paper, each shown by a test: valuations are not in [0, 1] (Table II gives utilities from −2.3 to 1),
so the exponential mechanism is calibrated to the oscillation of what an agent may declare, not to 1; the allocation
drawn is private, the expected payments are not, and publishing draws alone costs nε, not (2n + 1)ε; the bound of
Theorem 2 needs payoffs in [0, 1], one that holds is :func:`regret_bound`; the uniform law is the base of entropy
payments, or they would depend on units.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Literal, NamedTuple

import numpy as np

from p2penv.core.arrays import Array, clip, gather, namespace, row_sum, running_sum, safe_divide
from p2penv.core.roots import ramp_vertices

Payments = Literal["vcg", "algorithm3", "entropy"]
# Agents up to which the least welfare is found by looking at every vertex of the polytope.
VERTEX_AGENTS = 14


class Bids(NamedTuple):
    """Valuations v(y) = ay² + by + c of the signed quantity, true or reported; ``(..., n)``."""

    quadratic: Array  # a < 0 [$/kWh²]
    linear: Array  # b [$/kWh]
    constant: Array  # c [$]


class Bounds(NamedTuple):
    """Public limits of the signed quantities ``(n,)``, low < high."""

    low: Array
    high: Array


class Clearing(NamedTuple):
    """The efficient allocation (1)."""

    allocation: Array  # (..., n) y [kWh]
    price: Array  # (...) λ, the lowest that clears [$/kWh]
    welfare: Array  # (...) W [$]


class Law(NamedTuple):
    """What follows from the law D ∝ exp(βW) of an allocation, on a range or on the polytope; W is as reported."""

    welfare: Array  # (...) E_D[W]
    quantity: Array  # (..., n) E_D[y]
    value: Array  # (..., n) E_D[v_i] as reported
    true_value: Array  # (..., n) E_D[v_i] at the true valuation
    free: Array  # (...) ln E_uniform[exp(βW)] / β, the welfare less the price of randomness KL(D‖uniform)/β
    welfare_without: Array  # (..., n) E[W_{-i}] under D_{-i}, the law of the market without agent i
    free_without: Array  # (..., n) the same as `free` of the market without agent i


def one_honest(bids: Bids, true: Bids) -> Bids:
    """Bids ``(..., n, n)`` in which, row by row, one agent reports its valuation and the others what they report."""
    xp = namespace(bids.linear)
    own = xp.eye(bids.linear.shape[-1]) == 1
    rows = [xp.where(own, right[..., None, :], given[..., None, :]) for given, right in zip(bids, true, strict=True)]
    return Bids(*rows)


def report_bids(base: Bids, reports: Array) -> Bids:
    """Bids ``(..., n)`` of parameters ``(..., n, k)``: k = 1, scalings of the base; k = 2, its (a, b) replaced."""
    if reports.shape[-1] == 1:
        scale = reports[..., 0]
        return Bids(scale * base.quadratic, scale * base.linear, scale * base.constant)
    return Bids(reports[..., 0], reports[..., 1], base.constant + 0.0 * reports[..., 0])


def value(bids: Bids, quantity: Array) -> Array:
    """Value ``(..., n)`` of signed quantities ``(..., n)`` [$]."""
    return (bids.quadratic * quantity + bids.linear) * quantity + bids.constant


def value_range(bids: Bids, bounds: Bounds) -> tuple[Array, Array]:
    """Least and largest value ``(..., n)`` of quantities within the limits [$]."""
    ends = value(bids, bounds.low), value(bids, bounds.high)
    peak = clip(-0.5 * bids.linear / bids.quadratic, bounds.low, bounds.high)
    return namespace(ends[0]).minimum(*ends), value(bids, peak)


def response(bids: Bids, bounds: Bounds, price: Array) -> Array:
    """Quantities ``(..., n)`` that agents want at prices ``(..., n)`` or ``(..., 1)`` [kWh]."""
    return clip(0.5 * (price - bids.linear) / bids.quadratic, bounds.low, bounds.high)


def _crossing(vertices: tuple[Array, ...], index: Array, own: Callable[[Array], Array]) -> tuple[Array, Array]:
    """Lowest prices at which −Σy + own changes sign, and ∫−Σy dλ from the first vertex to there.

    Args:
        vertices: of −Σy.
        index: zeros of the shape ``(..., m)`` wanted.
        own: quantity to add at prices ``(..., m)``, itself with its kinks at vertices.
    """
    points, values, area = vertices
    xp, last = namespace(points), points.shape[-1]
    low, high = index, index + last
    for _ in range(last.bit_length()):  # vertices below the root, by bisection
        middle = (low + high) // 2
        here = gather(points, xp.minimum(middle, last - 1))
        below = (gather(values, xp.minimum(middle, last - 1)) + own(here) < 0.0) & (middle < high)
        low, high = xp.where(below, middle + 1, low), xp.where(below, high, middle)
    left, right = clip(low - 1, 0, last - 1), clip(low, 0, last - 1)
    start, end = gather(points, left), gather(points, right)
    supply, more = gather(values, left), gather(values, right)
    first = supply + own(start)
    share = safe_divide(-first, more + own(end) - first)
    step = share * (end - start)
    return start + step, gather(area, left) + step * (supply + 0.5 * share * (more - supply))


def _vertices(bids: Bids, bounds: Bounds) -> tuple[Array, ...]:
    """Vertices of −Σy(λ), nondecreasing in the price: points, values and areas from the first ``(..., 2n)``."""
    xp = namespace(bids.linear)
    steep = 2.0 * bids.quadratic
    points = xp.concat([bids.linear + steep * bounds.high, bids.linear + steep * bounds.low], axis=-1)
    rates = -1.0 / steep
    start = 0.0 * points[..., 0] - row_sum(bounds.high)
    points, values, *_ = ramp_vertices(points, xp.concat([rates, -rates], axis=-1), start)
    areas = 0.5 * (values[..., 1:] + values[..., :-1]) * (points[..., 1:] - points[..., :-1])
    return points, values, running_sum(xp.concat([0.0 * points[..., :1], areas], axis=-1))


def _zeros(vertices: tuple[Array, ...], count: int) -> Array:
    """Zeros ``(..., count)`` of the dtype of indices in this namespace."""
    xp, points = namespace(vertices[0]), vertices[0]
    return xp.zeros_like(xp.broadcast_to(xp.argmin(points, axis=-1)[..., None], (*points.shape[:-1], count)))


def _clear(bids: Bids, bounds: Bounds, vertices: tuple[Array, ...]) -> tuple[Clearing, Array]:
    price, area = _crossing(vertices, _zeros(vertices, 1), lambda price: 0.0 * price)
    allocation = response(bids, bounds, price)
    return Clearing(allocation, price[..., 0], row_sum(value(bids, allocation))), area


def clear(bids: Bids, bounds: Bounds) -> Clearing:
    """Efficient allocation (1) by water-filling: the price at which what agents want adds up to zero.

    Exact, ``O(n log n)``. The allocation is unique; where all agents are at limits the price is not, and the lowest
    is given.

    Args:
        bids: ``(..., n)``.
        bounds: must admit Σy = 0; a market that does not clear gets the nearest total.
    """
    return _clear(bids, bounds, _vertices(bids, bounds))[0]


class Pivots(NamedTuple):
    """The efficient allocation and what it is without each agent."""

    clearing: Clearing
    payment: Array  # (..., n) p_i = W_{-i} − Σ_{j≠i} v_j(y*), negative where an agent is paid [$]
    welfare_without: Array  # (..., n) W_{-i} [$]
    price_without: Array  # (..., n) price of the market without agent i [$/kWh]


def pivots(bids: Bids, bounds: Bounds) -> Pivots:
    """Efficient allocation and all n payments of Algorithm 1 together, exact, in ``O(n log n)``.

    "Without i" means that i, its limits and its constant are gone. With f = −Σy(λ) and i's surplus
    φ_i(λ) = v_i(y_i(λ)) − λy_i(λ), whose derivative is −y_i, integration by parts gives
    p_i = v_i(y_i*) + ∫f dλ − φ_i(λ_{-i}), integrated from λ* to λ_{-i}: no difference of sums over all agents.

    Args:
        bids: ``(..., n)``.
        bounds: must admit Σy = 0 with all agents, and without any one of them.
    """
    vertices = _vertices(bids, bounds)
    clearing, area = _clear(bids, bounds, vertices)
    index = _zeros(vertices, clearing.allocation.shape[-1])
    price, area_without = _crossing(vertices, index, lambda price: response(bids, bounds, price))
    quantity = response(bids, bounds, price)
    surplus = value(bids, quantity) - price * quantity
    own = value(bids, clearing.allocation)
    charge = area_without - area - surplus
    return Pivots(clearing, own + charge, clearing.welfare[..., None] + charge, price)


def allocations_without(bids: Bids, bounds: Bounds) -> Array:
    """Efficient allocations ``(..., n, n)`` of the markets without each agent; row i leaves i out, whose entry is 0."""
    price = pivots(bids, bounds).price_without
    xp = namespace(price)
    rows = response(Bids(*(field[..., None, :] for field in bids)), bounds, price[..., :, None])
    return xp.where(xp.eye(rows.shape[-1]) == 1, 0.0, rows)


def algorithm3_payments(law: Law) -> Array:
    """Payments ``(..., n)`` of Algorithm 3, E[W_{-i}] under D_{-i} minus E[Σ_{j≠i} v_j] under D [$]."""
    return law.welfare_without - law.welfare[..., None] + law.value


def entropy_payments(law: Law) -> Array:
    """Payments ``(..., n)`` that make truth exactly optimal in expectation [$].

    p_i = h(v_{-i}) − E_D[Σ_{j≠i} v_j] + KL(D‖uniform)/β with h = ln E_uniform[exp(βW)]/β: what i gets is then
    E_D[W] − KL(D‖uniform)/β − h(v_{-i}), which D, as the law of true valuations, maximises.
    """
    return law.free_without - law.free[..., None] + law.value


def scale_sensitivity(bids: Bids, bounds: Bounds, width: Array | float) -> Array:
    """ω_i ``(n,)``: oscillation of the difference of any two scalings of v_i that differ by up to ``width`` [$]."""
    least, most = value_range(bids, bounds)
    return width * (most - least)


def coefficient_sensitivity(quadratic: Array, linear: Array, bounds: Bounds) -> Array:
    """ω_i ``(n,)`` of a box of coefficients: Δa(u² − l²) + Δb(u − l) with y between l and u in size [$].

    Args:
        quadratic: ``(n,)`` width of the box in a.
        linear: ``(n,)`` width of the box in b.
        bounds: which do not change sign.
    """
    xp = namespace(bounds.low)
    first, second = xp.abs(bounds.low), xp.abs(bounds.high)
    small, large = xp.minimum(first, second), xp.maximum(first, second)
    return quadratic * (large * large - small * small) + linear * (large - small)


def oscillation(bids: Bids, bounds: Bounds) -> Array:
    """Largest minus least welfare of the polytope ``(...)``; beyond ``VERTEX_AGENTS`` agents an upper bound [$].

    Welfare is concave, so it is least at a vertex, where all agents but one are at a limit. The bound for large
    markets lets every agent have its own worst limit.
    """
    xp, size = namespace(bids.linear), bounds.low.shape[-1]
    if size > VERTEX_AGENTS:
        least = row_sum(xp.minimum(value(bids, bounds.low), value(bids, bounds.high)))
        return clear(bids, bounds).welfare - least
    corners = np.array(list(product((False, True), repeat=size - 1)))
    points = []
    for free in range(size):
        at = np.insert(corners, free, False, axis=1)
        ends = xp.where(xp.asarray(at), bounds.high, bounds.low)
        rest = ends[:, free] - row_sum(ends)
        fits = (rest >= bounds.low[free]) & (rest <= bounds.high[free])
        column = xp.asarray(np.arange(size) == free)
        points.append(xp.where(column, rest[:, None], ends)[fits])
    vertices = xp.concat(points, axis=0)
    # As products of matrices: agents' values at all vertices of a batch would not fit the memory.
    welfare = bids.quadratic @ (vertices * vertices).T + bids.linear @ vertices.T
    return clear(bids, bounds).welfare - (xp.min(welfare, axis=-1) + row_sum(bids.constant))


def regret_bound(beta: Array | float, sensitivity: Array, spread: Array) -> Array:
    """Most an agent gains by a misreport that moves D ∝ exp(βW): spread·tanh(βω/4) [$].

    Args:
        beta: β [1/$].
        sensitivity: ω_i, most a report moves W(r) − W(r') [$].
        spread: largest minus least of what the agent gets over the range: of v_i where payments are left aside, of W
            with the payments of Algorithm 3, which leave an agent W up to a constant [$].
    """
    xp = namespace(sensitivity, spread)
    return spread * xp.tanh(0.25 * beta * sensitivity)


def welfare_gap(epsilon: Array | float, size: int, delta: Array | float, sensitivity: float = 1.0) -> Array:
    """Theorem 1: W of the draw is at most this much below the best of a range of ``size``, with probability 1 − δ [$].

    The best of the range, not of the polytope; on ``community6`` with |R| = 11 and δ = .1 it says nothing for ε < 7.8.
    """
    return 2.0 * sensitivity / epsilon * np.log(size / np.asarray(delta))


def epsilon_for_gap(gap: Array | float, size: int, delta: Array | float, sensitivity: float = 1.0) -> Array:
    """Equation (16): ε at which :func:`welfare_gap` is ``gap`` [$]."""
    return welfare_gap(gap, size, delta, sensitivity)


def expected_gap(beta: float, agents: int) -> float:
    """E[W* − W] ≤ (n − 1)/β under the continuous mechanism: the polytope has n − 1 dimensions [$]."""
    return (agents - 1) / beta
