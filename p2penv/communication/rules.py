"""Rules of the communication game: pure array functions, batched over leading axes.

Source: Shilov, Le Cadre, Bušić, "Privacy impact on generalized Nash equilibrium in peer-to-peer electricity
market"; equation numbers in brackets are that paper's. Per-agent arrays are ``(..., N)``, energy in MWh, money
in $. Every function takes a ``Scenario`` or its ``Params``; where ``private_information`` (y, ``(..., N)``) is not
given, the scenario's own is used.

Departures from the paper: (6) holds only while no bound of (2b), (2c) binds, so a bound-aware price stands beside
it; the derivative of the expected cost in the variance is B_n/(2B²), not V_nB_n/B² as in (10); "q_n0" in
section 2.3 reads q_0n; the two privacy prices are told apart (see :func:`privacy_price`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np

from p2penv.communication.params import Params, as_params
from p2penv.core import validation
from p2penv.core.arrays import Array, clip, column, namespace, row_sum, safe_divide, smaller
from p2penv.core.roots import Inverse, evaluate

if TYPE_CHECKING:
    from p2penv.communication.scenario import Scenario

Settlement = Literal["analytic", "physical"]


def private(params: Params, private_information: Array | None) -> Array:
    """``private_information (..., N)``, or the scenario's own y_n = D*_n − ΔG_n [MWh].

    Raises:
        ValueError: wrong shape or not finite.
    """
    if private_information is None:
        return params.nominal_demand - params.renewable_generation
    return validation.per_agent(params.slope.shape[-1], private_information=private_information)[0]


def _variance(variance: Array) -> Array:
    """The variances ``(..., N)``, where they can be looked at none of them negative."""
    if isinstance(variance, np.ndarray) and (negative := variance < 0.0).any():
        index = tuple(int(i) for i in np.argwhere(negative)[0])
        raise ValueError(f"variance of agent {index[-1]} must be >= 0, got {float(variance[index])!r}")
    return variance


def check_reach(params: Params, name: str, shift: Array) -> None:
    """Refuse shifts ``(..., N)`` beyond α (8d), where they can be looked at.

    Raises:
        ValueError: names agent, value and α.
    """
    if not isinstance(shift, np.ndarray):
        return
    outside = ~(np.abs(shift) <= params.max_shift * (1 + 1e-6))  # float32 actions reach α up to rounding
    if outside.any():
        index = tuple(int(i) for i in np.argwhere(outside)[0])
        allowed = float(params.max_shift[index[-1]])
        raise ValueError(f"{name} of agent {index[-1]} must be within ±{allowed:g} MWh (8d), got {shift[index]}")


def price_at(params: Params, total: Array, bounded: bool) -> Array:
    """Clearing price at report totals ``(...)`` [$/MWh]; see :func:`clearing_price`."""
    if bounded:
        table: Inverse = params.clearing
        return evaluate(table, total)
    return (total + params.intercept) / params.total_slope


def clearing_price(scenario: Scenario | Params, reports: Array, bounded: bool = False) -> Array:
    """Price that clears the market of the reports.

    Args:
        scenario: the scenario.
        reports: ``(..., N)`` ỹ [MWh].
        bounded: respect the bounds (2b), (2c); otherwise the interior formula (6), which is the equilibrium price
            only while no bound binds. A total nobody can serve gives the end price; a flat piece its lowest.

    Returns:
        ``(...)`` λ [$/MWh].

    Raises:
        ValueError: wrong shape or not finite.
    """
    params = as_params(scenario)
    (reports,) = validation.per_agent(params.slope.shape[-1], reports=reports)
    return price_at(params, row_sum(reports), bounded)


def dispatch(scenario: Scenario | Params, price: Array, bounded: bool = False) -> tuple[Array, Array]:
    """Generation G and demand cut D* − D ``(..., N)`` at prices ``(...)``, clipped to (2b), (2c) if bounded [MWh]."""
    params = as_params(scenario)
    price = price if hasattr(price, "shape") else validation.floats("price", price)
    generation = (price[..., None] - params.generation_price) / params.generation_curvature
    cut = price[..., None] * (0.5 / params.discomfort)
    if not bounded:
        return generation, cut
    generation = clip(generation, params.generation_min, params.generation_max)
    return generation, clip(cut, params.nominal_demand - params.demand_max, params.nominal_demand - params.demand_min)


def trading_change(params: Params, net_import: Array) -> Array:
    """Linear part of the trading cost in the trade with node 0 ``(..., N)`` (3), (4), (5) [$]."""
    own = params.root_price * net_import
    return own - params.root_books * column(row_sum(own), own)


def trading_cost(scenario: Scenario | Params, net_import: Array) -> Array:
    """Trading cost C̃_n ``(..., N)`` of net imports Q ``(..., N)`` (3), or (4), (5) [$].

    With heterogeneous prices the neighbour with the smaller price imports at capacity on every line that does not
    touch node 0 (Proposition 2) and the rest of Q_n goes through node 0. With equal prices on a line the flow is
    ``Scenario.symmetric_flow``; the total over all agents does not depend on it. (3) and (5) differ by −cΣQ at
    node 0 once ΣQ ≠ 0, hence ``Scenario.bookkeeping``.
    """
    params = as_params(scenario)
    (net_import,) = validation.per_agent(params.slope.shape[-1], net_import=net_import)
    return _trading_cost(params, net_import)


def _trading_cost(params: Params, net_import: Array) -> Array:
    return trading_change(params, net_import - params.bilateral_import) + params.bilateral_cost


def least_variance(scenario: Scenario | Params, shift: Array) -> Array:
    """Least variance ``(..., N)`` the privacy rule allows at shifts ``(..., N)``: x²/(2A) (8e), or the floor [MWh²].

    Raises:
        ValueError: wrong shape or not finite.
    """
    params = as_params(scenario)
    (shift,) = validation.per_agent(params.slope.shape[-1], shift=shift)
    return least_variance_at(params, shift)


def least_variance_at(params: Params, shift: Array) -> Array:
    """:func:`least_variance`, unchecked."""
    return params.variance_floor + params.variance_slope * shift * shift


def privacy_loss(scenario: Scenario | Params, shift: Array, variance: Array) -> Array:
    """Kullback-Leibler privacy loss η = x²/(2V) ``(..., N)`` (8e) [nat]; the loss variable is N(η, 2η) (Lemma 7).

    Zero where x² = 0 (with V = 0 the report is the truth itself: (8e) does not see that), infinite where only V = 0.

    Raises:
        ValueError: wrong shape, not finite or a negative variance.
    """
    shift, variance = validation.per_agent(as_params(scenario).slope.shape[-1], shift=shift, variance=variance)
    return privacy_loss_at(shift, _variance(variance))


def privacy_loss_at(shift: Array, variance: Array) -> Array:
    """:func:`privacy_loss`, unchecked."""
    if isinstance(variance, np.ndarray) and np.count_nonzero(variance) == variance.size:
        return shift * shift / (variance + variance)
    xp = namespace(shift, variance)
    silent, square = variance == 0, shift * shift
    return xp.where(silent & (square != 0), float("inf"), 0.5 * square / xp.where(silent, 1.0, variance))


def posterior_variance(prior: Array | float, variance: Array) -> Array:
    """Variance of y_n left to who sees its report, ``(..., N)``, for a normal prior of variance ``prior`` [MWh²].

    The shift is a public strategy, so the report is y_n plus noise of variance V; the price is a function of all
    reports and adds nothing to them.
    """
    return safe_divide(prior * variance, prior + variance)


def privacy_price(scenario: Scenario | Params, shift: Array, form: Literal["paper", "kkt"] = "paper") -> Array:
    """Price of privacy ``(..., N)``, the multiplier of (8e) at V = x²/(2A).

    ``"paper"``: B_n|x_n|/(2B²), Proposition 11. ``"kkt"``: B_n|x_n|/(2A_nB²), the multiplier of (8e) written as
    |x_n| ≤ σ_n√(2A_n), which the paper's own first-order condition implies [$/MWh]. They agree at A = 1. The range
    printed under the paper's Figure 1 (1.129e-3 to 2.827e-2) comes from neither.

    With a variance floor V does not depend on the shift and this is the price of the budget the floor is made from,
    not a multiplier.

    Raises:
        ValueError: unknown form, wrong shape or not finite.
    """
    params = as_params(scenario)
    validation.choice("form", form, ("paper", "kkt"))
    (shift,) = validation.per_agent(params.slope.shape[-1], shift=shift)
    price = privacy_price_at(params, shift)
    return price if form == "paper" else price / params.privacy_budget


def privacy_price_at(params: Params, shift: Array) -> Array:
    """:func:`privacy_price` of the paper's form, unchecked."""
    return params.weight * abs(shift)


def slack(params: Params, total: Array) -> Array:
    """Distance of expected report totals ``(...)`` from the nearer end of the interval of (8b), (8c) [MWh].

    Negative outside, where it is minus the :func:`violation`.
    """
    return smaller(total - params.report_low, params.report_high - total)


def violation(params: Params, total: Array) -> Array:
    """How far expected report totals ``(...)`` leave the interval of (8b), (8c) [MWh]."""
    xp = namespace(total)
    return xp.maximum(xp.maximum(params.report_low - total, total - params.report_high), total * 0.0)


def utility_gap(params: Params, load: Array, deviation: Array, extra_variance: Array | float) -> Array:
    """Interior cost at truthful play minus cost ``(..., N)``, in factored form [$].

    Differences of costs lose the digits that matter in float32; this form does not.

    Args:
        params: of the scenario.
        load: ``(...)`` Y, the true total [MWh].
        deviation: ``(...)`` report total minus Y: Σx for expected, Σ(x + ε) for realised cost [MWh].
        extra_variance: ``(...)`` ΣV beyond that of truthful play for expected, 0 for realised cost [MWh²].
    """
    level = load + params.intercept
    quadratic = deviation * (level + (level + deviation)) + extra_variance
    return params.incentive * column(deviation, params.incentive) - params.weight * column(quadratic, params.weight)


def interior_cost(params: Params, y: Array, deviation: Array, variance: Array | float) -> Array:
    """Own cost (8a) ``(..., N)`` at a report total of Σy + deviation, its variance given; unchecked [$]."""
    price = (row_sum(y) + deviation + params.intercept) / params.total_slope
    return (
        params.slope * column(0.5 * (price * price + variance / params.total_slope**2), y)
        + params.standing_cost
        + _trading_cost(params, y + params.offset - params.slope * column(price, y))
        - column((params.wholesale_price / y.shape[-1]) * deviation, y)
    )


def expected_cost(
    scenario: Scenario | Params,
    shift: Array,
    variance: Array,
    settlement: Settlement = "analytic",
    private_information: Array | None = None,
) -> Array:
    """Expected cost J_n ``(..., N)`` of shifts x and noise variances V ``(..., N)`` (8a), section 3.1 [$].

    ``"analytic"``: the paper's, with the interior price (6). ``"physical"``: the market is cleared within its
    bounds and the expectation over the noise is exact.

    Raises:
        ValueError: unknown settlement, wrong shape, not finite or a negative variance.
    """
    params = as_params(scenario)
    validation.choice("settlement", settlement, ("analytic", "physical"))
    shift, variance, y = validation.per_agent(
        params.slope.shape[-1],
        shift=shift,
        variance=variance,
        private_information=private(params, private_information),
    )
    variance = _variance(variance)
    if settlement == "physical":
        from p2penv.communication import physical

        return physical.expected_cost(params, shift, variance, y)
    return interior_cost(params, y, row_sum(shift), row_sum(variance))


def realised_cost(
    scenario: Scenario | Params,
    shift: Array,
    noise: Array,
    settlement: Settlement = "analytic",
    private_information: Array | None = None,
) -> Array:
    """Cost ``(..., N)`` once the noise ε ``(..., N)`` [MWh] is drawn: reports are y + x + ε [$].

    Raises:
        ValueError: unknown settlement, wrong shape or not finite.
    """
    params = as_params(scenario)
    validation.choice("settlement", settlement, ("analytic", "physical"))
    shift, noise, y = validation.per_agent(
        params.slope.shape[-1], shift=shift, noise=noise, private_information=private(params, private_information)
    )
    deviation = row_sum(shift + noise)
    if settlement == "physical":
        from p2penv.communication import physical

        return physical.realised_cost(params, deviation, y)
    return interior_cost(params, y, deviation, 0.0)
