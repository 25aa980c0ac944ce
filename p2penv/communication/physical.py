"""Physical settlement: the reported market is cleared within its bounds, the imbalance is bought at p0.

Generation and demand are always feasible and energy always balances: ΣQ is what the operator buys, split evenly.
The paper's closed forms do not hold here. Cost is piecewise quadratic in the report total, so its expectation
under Gaussian noise is a sum of truncated moments, exact; best responses are by a certified scalar search.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from p2penv.communication.rules import (
    Params,
    clip_points,
    dispatch,
    price_at,
    trading_change,
    trading_cost,
)
from p2penv.core.arrays import Array, clip, namespace, normal_cdf


class Moments(NamedTuple):
    """First and second moments of generation G and demand cut D* − D, each ``(..., N)``."""

    generation: Array
    generation_square: Array
    cut: Array
    cut_square: Array


def realised_moments(params: Params, total: Array) -> Moments:
    """Dispatch at report totals ``(...)``, with its squares."""
    generation, cut = dispatch(params, price_at(params, total, bounded=True), bounded=True)
    return Moments(generation, generation * generation, cut, cut * cut)


def expected_moments(params: Params, mean: Array, variance: Array) -> Moments:
    """Moments of the dispatch when the report total is N(mean, variance), both ``(...)``; exact.

    Between two knots of the clearing curve the price is affine in the total, so its truncated moments are closed
    forms; each device adds up the pieces on which it is not at a bound.
    """
    xp = namespace(mean, variance)
    table, size = params.clearing, params.slope.shape[-1]
    # Less noise than this is lost in rounding; none at all would have no quotient and no derivative.
    deviation = xp.sqrt(xp.maximum(variance, 1e-36))[..., None]
    # Standardised knots; beyond 40 standard deviations there is no mass in floating point.
    z = clip((table.knots - mean[..., None]) / deviation, -40.0, 40.0)
    cdf, pdf = normal_cdf(z), xp.exp(-0.5 * z * z) * (0.5 / np.pi) ** 0.5
    edge = 0.0 * mean[..., None]
    mass = xp.concat([cdf, edge + 1.0], axis=-1) - xp.concat([edge, cdf], axis=-1)
    first = xp.concat([edge, pdf], axis=-1) - xp.concat([pdf, edge], axis=-1)
    second = mass + xp.concat([edge, z * pdf], axis=-1) - xp.concat([z * pdf, edge], axis=-1)
    # On each piece the price is centre + spread·z with z standard normal.
    centre = table.point + (mean[..., None] - table.value) * table.rate
    spread = deviation * table.rate
    price = centre * mass + spread * first
    price_square = centre * centre * mass + 2.0 * centre * spread * first + spread * spread * second

    def below(piecewise: Array) -> Array:
        """Integral up to each device's clip points, lower ones first: ``(..., 2, 2N)``."""
        sums = xp.cumulative_sum(piecewise, axis=-1)[..., xp.argsort(params.clearing_order)]
        return xp.reshape(sums, (*sums.shape[:-1], 2, 2 * size))

    mass, price, price_square = below(mass), below(price), below(price_square)
    points, rates = clip_points(params)
    rate, lower = rates[..., : 2 * size], points[..., : 2 * size]
    bounds = xp.concat([params.generation_min, params.nominal_demand - params.demand_max], axis=-1)
    tops = xp.concat([params.generation_max, params.nominal_demand - params.demand_min], axis=-1)
    offset = bounds - rate * lower
    inside = mass[..., 1, :] - mass[..., 0, :]
    price = price[..., 1, :] - price[..., 0, :]
    price_square = price_square[..., 1, :] - price_square[..., 0, :]
    low, high = mass[..., 0, :], 1.0 - mass[..., 1, :]
    level = bounds * low + tops * high + offset * inside + rate * price
    square = (
        bounds * bounds * low
        + tops * tops * high
        + offset * offset * inside
        + 2.0 * offset * rate * price
        + rate * rate * price_square
    )
    return Moments(level[..., :size], square[..., :size], level[..., size:], square[..., size:])


def bill(params: Params, moments: Moments) -> Array:
    """Part of the cost ``(..., N)`` that depends on the dispatch; linear in the moments [$]."""
    xp = namespace(moments.generation)
    served = moments.generation + moments.cut
    return (
        0.5 * params.generation_curvature * moments.generation_square
        + params.generation_price * moments.generation
        + params.discomfort * moments.cut_square
        - trading_change(params, served)
        - (params.wholesale_price / served.shape[-1]) * xp.sum(served, axis=-1, keepdims=True)
    )


def _cost(params: Params, moments: Moments, y: Array) -> Array:
    imbalance_at_no_service = namespace(y).sum(y, axis=-1, keepdims=True)
    return (
        bill(params, moments)
        + params.fixed_cost
        - params.usage_benefit
        + trading_cost(params, y)
        + (params.wholesale_price / y.shape[-1]) * imbalance_at_no_service
    )


def realised_cost(params: Params, deviation: Array, y: Array) -> Array:
    """Cost ``(..., N)`` at a report total of Σy + deviation ``(...)``; y ``(..., N)`` [$]."""
    return _cost(params, realised_moments(params, namespace(y).sum(y, axis=-1) + deviation), y)


def expected_cost(params: Params, shift: Array, variance: Array, y: Array) -> Array:
    """Exact expectation of :func:`realised_cost` over Gaussian noise; all arguments ``(..., N)`` [$]."""
    xp = namespace(shift, y)
    mean = xp.sum(y + shift, axis=-1)
    return _cost(params, expected_moments(params, mean, xp.sum(variance, axis=-1) + 0.0 * mean), y)


def utility_gap(params: Params, moments: Moments, truthful: Moments) -> Array:
    """Cost at truthful play minus cost ``(..., N)``, from differences of moments [$]."""
    return bill(params, Moments(*(a - b for a, b in zip(truthful, moments, strict=True))))


class Certified(NamedTuple):
    """Best responses found by search, with a proven bound on what was missed."""

    shift: Array  # (..., N) best own shift found [MWh]
    gain: Array  # (..., N) cost saved by it, ≥ 0 [$]
    bound: Array  # (..., N) no own deviation saves more than this [$]


def best_response(
    params: Params, shift: Array, variance: Array, y: Array | None = None, tolerance: float = 1e-4
) -> Certified:
    """Best unilateral deviation of every agent under physical settlement with expected cost.

    Branch and bound on each agent's own shift with its least variance (more noise than that is compared too: the
    gain is measured from the profile as it is). The cost is Lipschitz in the own shift with constant
    L(1 + √(2/π)/√(2A)), L the steepest slope of the agent's cost in the report total; intervals that cannot hold
    anything better by ``tolerance`` are dropped. NumPy only.

    Args:
        params: of the scenario.
        shift: ``(..., N)`` with ``|x| ≤ α``.
        variance: ``(..., N)`` at least :func:`least_variance`.
        y: ``(..., N)`` private information; the scenario's own if not given.
        tolerance: largest gap between ``gain`` and ``bound`` [$].
    """
    y = params.nominal_demand - params.renewable_generation if y is None else y
    shape = np.broadcast_shapes(shift.shape, y.shape)
    shift, variance, y = (np.broadcast_to(array, shape).reshape(-1, shape[-1]) for array in (shift, variance, y))
    found = [
        np.stack([_search(params, *row, n, tolerance) for n in range(shape[-1])])
        for row in zip(shift, variance, y, strict=True)
    ]
    stacked = np.stack(found).reshape(*shape, 3)
    return Certified(stacked[..., 0], stacked[..., 1], stacked[..., 2])


def steepest_slope(params: Params) -> Array:
    """Largest |d cost_n / d total| ``(N,)`` over all report totals, from the two ends of every piece [$/MWh]."""
    knots = params.clearing.knots
    ends = np.stack([params.clearing.point[1:-1], params.clearing.point[2:]])  # prices at the ends of inner pieces
    rate = params.clearing.rate[1:-1]
    middle = 0.5 * (ends[0] + ends[1])[:, None]
    points, _ = clip_points(params)
    size = params.slope.shape[-1]
    low, high = points[: 2 * size], points[2 * size :]
    active = (middle > low) & (middle < high)
    own = np.where(active[:, :size], 1.0 / params.generation_curvature, 0.0)
    cut = np.where(active[:, size:], 0.5 / params.discomfort, 0.0)
    served = own + cut
    linear = -trading_change(params, served) - (params.wholesale_price / size) * served.sum(axis=-1, keepdims=True)
    slopes = [(price[:, None] * served + linear) * rate[:, None] for price in ends]
    return np.abs(np.concatenate(slopes)).max(axis=0, initial=0.0) if knots.size > 1 else np.zeros(size)


def _search(params: Params, shift: Array, variance: Array, y: Array, agent: int, tolerance: float) -> Array:
    others = shift.sum() - shift[agent] + y.sum()
    others_variance = variance.sum() - variance[agent]

    def cost(own: Array) -> Array:
        noise = params.variance_floor[agent] + params.variance_slope[agent] * own * own
        return bill(params, expected_moments(params, others + own, others_variance + noise))[:, agent]

    alpha = params.max_shift[agent]
    now = bill(params, expected_moments(params, np.array([y.sum() + shift.sum()]), np.array([variance.sum()])))[
        0, agent
    ]
    lipschitz = steepest_slope(params)[agent] * (1.0 + np.sqrt(2.0 / np.pi * params.variance_slope[agent]))
    left, width = np.linspace(-alpha, alpha, 65)[:-1], alpha / 32
    best_shift, best = float(shift[agent]), now
    while True:
        centre = left + 0.5 * width
        costs = cost(centre)
        index = int(np.argmin(costs))
        if costs[index] < best:
            best_shift, best = float(centre[index]), costs[index]
        keep = costs - 0.5 * lipschitz * width < best - tolerance
        if not keep.any():
            return np.array([best_shift, now - best, now - best + tolerance])
        width = 0.5 * width
        left = np.stack([left[keep], left[keep] + width], axis=1).reshape(-1)
