"""Physical settlement: the reported market is cleared within its bounds, the imbalance is bought at p0.

Generation and demand are always feasible and energy always balances: ΣQ is what the operator buys, split evenly.
The paper's closed forms do not hold here. Cost is piecewise quadratic in the report total, so its expectation
under Gaussian noise is a sum of truncated moments, exact; best responses are by a certified scalar search.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from p2penv.communication.params import Params, clip_points
from p2penv.communication.rules import dispatch, price_at, private, trading_change, trading_cost
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


class Pieces(NamedTuple):
    """The cost of every agent as a piecewise quadratic function of the report total, up to a constant each.

    Between kinks it is convex; outside them it is constant, as all devices are at their bounds.
    """

    kinks: Array  # (K,) report totals, sorted [MWh]
    slope_jump: Array  # (N, K) what the slope gains at each kink [$/MWh]
    curvature_jump: Array  # (N, K) what the curvature gains at each kink [$/MWh²]
    steepest: Array  # (N,) largest |slope| [$/MWh]


def cost_pieces(params: Params) -> Pieces:
    """Slopes and curvatures of all costs in the report total, from the two ends of every piece. NumPy only."""
    table, size = params.clearing, params.slope.shape[-1]
    ends = np.stack([table.point[1:-1], table.point[2:]])  # prices at both ends of each inner piece
    rate = table.rate[1:-1]
    points, rates = clip_points(params)
    middle = 0.5 * (ends[0] + ends[1])[:, None]
    response = np.where((middle > points[: 2 * size]) & (middle < points[2 * size :]), rates[: 2 * size], 0.0)
    served = response[:, :size] + response[:, size:]
    # dC/dλ = λ·served for the own device cost, and what the served energy saves.
    saved = trading_change(params, served) + (params.wholesale_price / size) * served.sum(axis=-1, keepdims=True)
    slopes = (ends[..., None] * served - saved) * rate[:, None]
    curvature = rate[:, None] ** 2 * served
    flat = np.zeros((1, size))
    return Pieces(
        kinks=table.knots,
        slope_jump=(np.concatenate([slopes[0], flat]) - np.concatenate([flat, slopes[1]])).T,
        curvature_jump=np.diff(np.concatenate([flat, curvature, flat]), axis=0).T,
        steepest=np.abs(slopes).max(axis=(0, 1), initial=0.0),
    )


class Stakes(NamedTuple):
    """One agent's cost as a function of its own shift x, all else fixed; ``(P,)`` for P such problems at once.

    The report total is N(others + x, noise + pull·x²).
    """

    agent: Array
    others: Array  # report total without the own shift [MWh]
    noise: Array  # its variance at x = 0 [MWh²]
    pull: Array  # the variance the privacy rule adds per x²


def cost_on_interval(pieces: Pieces, stakes: Stakes, centre: Array, half: Array) -> tuple[Array, Array]:
    """Expected cost J at ``centre (P,)`` and a lower bound of it on ``centre ± half``, up to one constant [$].

    With s² the variance of the total, r = ds/dx (so r² ≤ pull), c the cost in the total and Z standard normal,
    J″ = E[c″·((1 + rZ)² + pull − r²)], kinks of c counted as point masses of c″. Only concave kinks make it
    negative: one at z standard deviations adds at most its jump times (1 + pull)(1 + z²)φ(z)/s, which falls in
    z ≥ 1. Hence J ≥ J(centre) − |J′(centre)|·half − ½N·half², with N from the closest z and the least s; useless
    next to a kink without noise, where J ≥ J(centre) − half·steepest·√(1 + pull) takes over: that is the Lipschitz
    constant since E|1 + rZ| ≤ √(1 + r²).
    """
    jump, bend = pieces.slope_jump[stakes.agent], pieces.curvature_jump[stakes.agent]
    gap = (stakes.others + centre)[:, None] - pieces.kinks

    def deviation(own: Array) -> Array:
        # As in expected_moments: less noise than this is lost in rounding.
        return np.sqrt(np.maximum(stakes.noise + stakes.pull * own * own, 1e-36))[:, None]

    spread = deviation(centre)
    z = gap / spread
    below, density = normal_cdf(z), np.exp(-0.5 * z * z) * (0.5 / np.pi) ** 0.5
    # Expectations of max(0, total − kink) and of its square.
    above = gap * below + spread * density
    square = (gap * gap + spread * spread) * below + gap * spread * density
    cost = np.sum(jump * above + 0.5 * bend * square, axis=-1)
    by_mean = np.sum(jump * below + bend * above, axis=-1)
    by_mean_twice = np.sum(jump * density / spread + bend * below, axis=-1)
    # The derivative in the variance is half the second one in the mean (heat equation).
    slope = by_mean + stakes.pull * centre * by_mean_twice

    least = deviation(np.maximum(np.abs(centre) - half, 0.0))[:, 0]
    closest = np.maximum((np.abs(gap) - half[:, None]) / deviation(np.abs(centre) + half), 1.0)
    peak = (1.0 + closest * closest) * np.exp(-0.5 * closest * closest) * (0.5 / np.pi) ** 0.5
    concavity = (1.0 + stakes.pull) * np.sum(np.maximum(-jump, 0.0) * peak, axis=-1) / least
    first_order = pieces.steepest[stakes.agent] * np.sqrt(1.0 + stakes.pull) * half
    return cost, cost - np.minimum(first_order, (np.abs(slope) + 0.5 * concavity * half) * half)


class Certified(NamedTuple):
    """Best responses found by search, with a proven bound on what was missed."""

    shift: Array  # (..., N) best own shift found [MWh]
    gain: Array  # (..., N) cost saved by it, ≥ 0 [$]
    bound: Array  # (..., N) no own deviation saves more than this [$]


def best_response(
    params: Params, shift: Array, variance: Array, y: Array | None = None, tolerance: float = 1e-4
) -> Certified:
    """Best unilateral deviation of every agent under physical settlement with expected cost.

    Branch and bound on each agent's own shift with its least variance, all agents and rows at once: intervals that
    :func:`cost_on_interval` shows to hold nothing better by ``tolerance`` are dropped, others halved. More noise
    than the least is compared too: the gain is measured from the profile as it is. The bound is proven up to
    rounding. NumPy only.

    Args:
        params: of the scenario.
        shift: ``(..., N)`` with ``|x| ≤ α``.
        variance: ``(..., N)`` at least :func:`~p2penv.communication.rules.least_variance`.
        y: ``(..., N)`` private information; the scenario's own if not given.
        tolerance: largest gap between ``gain`` and ``bound``, > 0 [$].

    Raises:
        ValueError: tolerance not positive.
    """
    if not tolerance > 0:
        raise ValueError(f"tolerance must be > 0, got {tolerance!r}")
    y = private(params, y)
    shape = np.broadcast_shapes(shift.shape, variance.shape, y.shape)
    shift, variance, y = (np.asarray(np.broadcast_to(array, shape), dtype=float) for array in (shift, variance, y))
    agent = np.broadcast_to(np.arange(shape[-1]), shape).ravel()
    total = (y + shift).sum(axis=-1, keepdims=True)
    spread = variance.sum(axis=-1, keepdims=True)
    noise = np.maximum(spread - variance, 0.0) + params.variance_floor
    stakes = Stakes(agent, (total - shift).ravel(), noise.ravel(), params.variance_slope[agent])
    pieces = cost_pieces(params)

    def evaluate(stakes: Stakes, centre: Array, half: Array) -> tuple[Array, Array]:
        """:func:`cost_on_interval` in blocks that fit the cache."""
        blocks = np.array_split(np.arange(centre.size), 1 + centre.size * pieces.kinks.size // 2**16)
        parts = [
            cost_on_interval(pieces, Stakes(*(field[block] for field in stakes)), centre[block], half[block])
            for block in blocks
        ]
        return np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])

    half = params.max_shift[agent]
    # The cost as it is: the own noise may exceed the least, so it is fixed at what it is.
    fixed = stakes._replace(noise=np.broadcast_to(spread, shape).ravel(), pull=0.0 * half)
    now = evaluate(fixed, shift.ravel(), 0.0 * half)[0]
    best_shift, best = shift.ravel().copy(), now.copy()
    # Corners are the usual answer, and no interval has its centre there.
    for corner in (-half, half):
        cost = evaluate(stakes, corner, 0.0 * half)[0]
        best_shift, best = np.where(cost < best, corner, best_shift), np.minimum(cost, best)
    lowest = best.copy()
    search, centre = np.arange(agent.size), 0.0 * half
    while search.size:
        cost, lower = evaluate(Stakes(*(field[search] for field in stakes)), centre, half)
        previous = best[search]
        np.minimum.at(best, search, cost)
        better = (cost < previous) & (cost == best[search])
        best_shift[search[better]] = centre[better]
        keep = lower < best[search] - tolerance
        np.minimum.at(lowest, search[~keep], lower[~keep])
        search, half = np.repeat(search[keep], 2), np.repeat(0.5 * half[keep], 2)
        centre = np.repeat(centre[keep], 2) + half * np.tile([-1.0, 1.0], half.size // 2)
    return Certified(*(found.reshape(shape) for found in (best_shift, now - best, now - np.minimum(lowest, best))))
