"""Parameters of the communication game as arrays, and what is derived from them once.

Source: Shilov, Le Cadre, Bušić, "Privacy impact on generalized Nash equilibrium in peer-to-peer electricity market";
equation numbers in brackets are that paper's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from p2penv.core.arrays import Array, namespace, row_sum
from p2penv.core.roots import Inverse, inverse_of_answers, invert, ramp_vertices

if TYPE_CHECKING:
    from p2penv.communication.scenario import Scenario


class Params(NamedTuple):
    """Arrays of a scenario; per-agent ones ``(N,)``, others ``()``. Made by ``Scenario.params``.

    After replacing a given field call :func:`derive`, which recomputes the derived ones.
    """

    discomfort: Array  # ã
    usage_benefit: Array  # b̃
    generation_curvature: Array  # a
    generation_price: Array  # b
    fixed_cost: Array  # d
    nominal_demand: Array  # D*
    renewable_generation: Array  # ΔG
    demand_min: Array
    demand_max: Array
    generation_min: Array
    generation_max: Array
    max_shift: Array  # α
    privacy_budget: Array  # A
    variance_slope: Array  # least variance is variance_floor + variance_slope·x²: 1/(2A), or 0 with a floor
    variance_floor: Array  # 0, or α²/(2A) with a floor
    wholesale_price: Array  # p0
    root_price: Array  # c_0n
    bilateral_import: Array  # Σ_m q_mn over lines not touching node 0
    bilateral_cost: Array  # Σ_m c_nm q_mn over the same lines
    root_books: Array  # 1 at node 0 if it books everybody's trade with it (5), else 0
    margin: Array  # ω
    # Derived.
    slope: Any = None  # B_n = 1/a_n + 1/(2ã_n)
    total_slope: Any = None  # B
    offset: Any = None  # b_n/a_n
    intercept: Any = None  # β = Σ b_n/a_n
    standing_cost: Any = None  # d_n − b̃_n − b_n²/(2a_n)
    trading_slope: Any = None  # k_n: the trading cost falls by k_n/B per MWh of the report total
    incentive: Any = None  # ℓ_n = k_n/B + p0/N
    weight: Any = None  # B_n/(2B²)
    truthful_variance: Any = None  # ΣV of truthful reports: 0, or that of the floor
    target: Any = None  # L_n − β, with L_n = ℓ_n B²/B_n: the report total agent n would like best
    report_low: Any = None  # S interval of (8b), (8c)
    report_high: Any = None
    base_load: Any = None  # Y = Σ y of the scenario
    clearing: Any = None  # Inverse: λ from the report total, all bounds respected
    clearing_order: Any = None  # (4N,) which clip point stands where among the sorted ones
    free: Any = None  # Inverse: equilibrium report total from Y while the shared bound is slack; None: made when needed


def as_params(scenario: Scenario | Params) -> Params:
    """``Params`` of a scenario, or the params themselves."""
    return scenario if isinstance(scenario, Params) else scenario.params()


def clip_points(params: Params) -> tuple[Array, Array]:
    """Prices ``(4N,)`` at which a device reaches a bound and the change of the response there (2b), (2c).

    Order: every generator's lower bound, every demand cut's, then the upper bounds of both.
    """
    xp = namespace(params.discomfort)
    a, b, double = params.generation_curvature, params.generation_price, 2.0 * params.discomfort
    points = xp.concat(
        [
            b + a * params.generation_min,
            double * (params.nominal_demand - params.demand_max),
            b + a * params.generation_max,
            double * (params.nominal_demand - params.demand_min),
        ],
        axis=-1,
    )
    rates = xp.concat([1.0 / a, 1.0 / double], axis=-1)
    return points, xp.concat([rates, -rates], axis=-1)


def price_bounds(params: Params) -> tuple[Array, Array]:
    """Lowest and highest price at which all expected generation and demand fit their shrunk boxes (8b), (8c)."""
    xp = namespace(params.discomfort)
    a, b, double, margin = params.generation_curvature, params.generation_price, 2.0 * params.discomfort, params.margin
    low = xp.maximum(
        b + a * (params.generation_min + margin), double * (params.nominal_demand - params.demand_max + margin)
    )
    high = xp.minimum(
        b + a * (params.generation_max - margin), double * (params.nominal_demand - params.demand_min - margin)
    )
    return xp.max(low, axis=-1), xp.min(high, axis=-1)


def derive(params: Params) -> Params:
    """Fill in the derived fields."""
    size = params.discomfort.shape[-1]
    slope = 1.0 / params.generation_curvature + 0.5 / params.discomfort
    total = row_sum(slope)
    offset = params.generation_price / params.generation_curvature
    intercept = row_sum(offset)
    own = params.root_price * slope
    trading_slope = own - params.root_books * row_sum(own)
    incentive = trading_slope / total + params.wholesale_price / size
    low, high = price_bounds(params)
    points, rates = clip_points(params)
    start = row_sum(params.generation_min + params.nominal_demand - params.demand_max)
    sorted_points, values, left, right, order = ramp_vertices(points, rates, start)
    target = incentive * total * total / slope - intercept
    return params._replace(
        slope=slope,
        total_slope=total,
        offset=offset,
        intercept=intercept,
        standing_cost=params.fixed_cost - params.usage_benefit - 0.5 * params.generation_price * offset,
        trading_slope=trading_slope,
        incentive=incentive,
        weight=0.5 * slope / (total * total),
        truthful_variance=row_sum(params.variance_floor),
        target=target,
        report_low=low * total - intercept,
        report_high=high * total - intercept,
        base_load=row_sum(params.nominal_demand - params.renewable_generation),
        clearing=invert(sorted_points, values, left, right),
        clearing_order=order,
        free=_free_totals(target, params.variance_slope, params.max_shift),
    )


def _free_totals(target: Array, variance_slope: Array, max_shift: Array) -> Inverse:
    """Table that gives S from Y where ``S = Y + Σx_n(S)`` and x_n is agent n's best shift at a total of S.

    ``Σ(−x)`` increases in S: x_n = −clip((S − target_n)/variance_slope_n, ±α_n), with a floor −α_n·sign(S − target_n).
    """
    xp = namespace(target, variance_slope)
    flat = (variance_slope == 0).all()
    if xp is np:
        return inverse_of_answers(target, None if flat else 1.0 / variance_slope, max_shift, 1.0)
    # Compiled code cannot look which of the two it is.
    jumps = inverse_of_answers(target, None, max_shift, 1.0)
    ramps = inverse_of_answers(target, 1.0 / xp.where(variance_slope == 0, 1.0, variance_slope), max_shift, 1.0)
    return Inverse(*(xp.where(flat, jump, ramp) for jump, ramp in zip(jumps, ramps, strict=True)))
