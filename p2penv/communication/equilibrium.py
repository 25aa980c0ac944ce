"""Equilibria, best responses and exploitability of the communication game, exact.

Source: Shilov, Le Cadre, Bušić (equation numbers in brackets). With V eliminated, own cost is quadratic in the own
shift with gradient F_n = (B_n/B²)(S + β + w_n x_n) − ℓ_n, where S = Σ(y + x) and w_n = 1/(2A_n) (0 with a variance
floor). Everything follows from one scalar root in S, or in the multiplier where the shared bound (8b), (8c) binds.

Departures from the paper: Lemma 15 (strong monotonicity of F) is false when the B_n differ, since the Jacobian is
indefinite; F_n/B_n is strongly monotone, so Proposition 16 (unique variational equilibrium) still holds where the
shared bound is slack, and by monotonicity of Σx in the multiplier where it binds. The game is an exact weighted
potential game without Assumption 17 (see :func:`potential`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from p2penv.communication import rules
from p2penv.communication.params import Params, as_params
from p2penv.communication.rules import least_variance_at, private, violation
from p2penv.core import validation
from p2penv.core.arrays import Array, clip, column, namespace, row_sum, safe_divide, some
from p2penv.core.roots import Inverse, evaluate, inverse_of_answers, piecewise_root

if TYPE_CHECKING:
    from p2penv.communication.scenario import Scenario

Shared = Literal["constraint", "ignore", "penalty"]
# Newton steps that take rounding off, and how close a sum of shifts must come to what it should be: to a bound, and to
# an unbound total, for what is missing there changes costs by its square only.
ROUNDS, CLOSE_TO_BOUND, CLOSE = 3, 4e-15, 1e-10


class Equilibrium(NamedTuple):
    """A profile of reports; per-agent arrays ``(..., N)``, others ``(...)``."""

    shift: Array  # x, deterministic report minus truth [MWh]
    variance: Array  # V of the noise [MWh²]
    price: Array  # expected λ [$/MWh]
    multiplier: Array  # θ of the shared interval per MWh of S; > 0 at its lower end, < 0 at its upper [$/MWh]
    cost: Array  # expected J [$]
    nearest: Array  # bool: the joint set was empty and the nearest reachable total stands in for the bound


def _checked(params: Params, y: Array, infeasible: str) -> tuple[Array, Array, Array]:
    """Ends ``(...)`` of the report totals that agents can reach within (8b), (8c), and whether there are none."""
    load, reach = row_sum(y), row_sum(params.max_shift)
    low, high = load - reach, load + reach
    empty = (high < params.report_low) | (low > params.report_high)
    if infeasible == "raise" and some(empty):
        first = np.argwhere(np.atleast_1d(np.asarray(empty)))[0]
        at = tuple(first) if np.ndim(empty) else ()
        raise ValueError(
            f"empty joint feasible set: expected bounds need a report total in [{float(params.report_low):g}, "
            f"{float(params.report_high):g}] MWh, agents can reach [{float(low[at]):g}, {float(high[at]):g}]"
        )
    return clip(params.report_low, low, high), clip(params.report_high, low, high), empty


def _shifts(distance: Array, rate: Array | None, reach: Array, total: Array, slope: float) -> Array:
    """Shifts ``(..., N)`` at signed distances t − aim, ``total (...)`` being their sum but for rounding.

    ``slope`` is how much of that sum a change of t takes away. Without curvature those at a tie share least squares.
    """
    xp = namespace(distance, reach)
    if rate is not None:
        return _add_up(clip(rate * distance, -reach, reach), rate, reach, total, slope)
    tied = xp.abs(distance) <= 1e-9 * (1.0 + xp.max(xp.abs(distance), axis=-1, keepdims=True))
    fixed = xp.where(tied, 0.0, reach * xp.sign(distance))
    rest = total - row_sum(fixed)
    room = xp.where(tied, reach, 0.0)
    unit = xp.where(tied, 1.0, 0.0)
    level = piecewise_root(xp.concat([-room, room], axis=-1), xp.concat([unit, -unit], axis=-1), -row_sum(room), rest)
    return xp.where(tied, clip(level[..., None], -room, room), fixed)


def _add_up(shift: Array, rate: Array, reach: Array, total: Array, slope: float) -> Array:
    """Shifts ``(..., N)`` by Newton steps, for where rates are large they repeat the rounding of t that often."""
    xp, close = namespace(shift, reach), CLOSE if slope else CLOSE_TO_BOUND
    for _ in range(ROUNDS):
        missing = total - row_sum(shift)
        if xp is np and not some(abs(missing) > close * (abs(total) + 1.0)):
            break
        moves = xp.where(xp.abs(shift) < reach, rate, 0.0 * rate)
        step = safe_divide(missing, slope + row_sum(moves))
        shift, total = clip(shift + moves * column(step, shift), -reach, reach), total - slope * step
    return shift


def _is_flat(params: Params, floor: bool | None) -> bool:
    """Whether the least variance is a floor, so that it does not depend on the shift."""
    if floor is not None and not isinstance(params.variance_slope, np.ndarray):
        return floor
    found = bool(namespace(params.variance_slope).count_nonzero(params.variance_slope) == 0)
    if floor not in (None, found):
        raise ValueError(f"floor must be {found} or None with these parameters, got {floor!r}")
    return found


def _context(scenario: Scenario | Params, private_information: Array | None, infeasible: str) -> tuple[Params, Array]:
    params = as_params(scenario)
    validation.choice("infeasible", infeasible, ("raise", "nearest"))
    return params, private(params, private_information)


def _solve(
    params: Params, y: Array, aim: Array, weights: Array, infeasible: str, floor: bool | None, table: Inverse | None
) -> tuple[Array, Array, Array]:
    """Shifts, multiplier and emptiness for x_n = clip((aim_n + θ weights_n − S)/w_n, ±α_n), S = Σ(y + x).

    ``table`` gives S from Σy at θ = 0, where Σ(−x) increases in S; it is made here if the parameters do not hold it.
    """
    xp = namespace(y, params.slope)
    flat = _is_flat(params, floor)
    reach, load = params.max_shift, row_sum(y)
    low, high, empty = _checked(params, y, infeasible)
    rate = None if flat else 1.0 / params.variance_slope
    free = evaluate(inverse_of_answers(aim, rate, reach, 1.0) if table is None else table, load)
    total = clip(free, low, high)
    shift = _shifts(aim - column(total, aim), rate, reach, total - load, 1.0)
    multiplier = 0.0 * total
    binding = free != total
    if xp is not np or some(binding):
        steep = None if flat else weights / params.variance_slope
        for bound, ends in ((params.report_low, low), (params.report_high, high)):
            # Rounding may put the free total beyond what agents can reach: no bound binds there.
            here = binding & (total == ends) & ((ends == bound) | empty)
            if xp is np and not some(here):
                continue
            # Reports total the bound; Σx(θ) = S − Y with x increasing in θ. An unreachable bound is the nearest
            # total, where everybody is at the same end and any θ beyond the last clip point will do.
            zero = (ends[..., None] - aim) / weights
            theta = evaluate(inverse_of_answers(zero, steep, reach, 0.0), ends - load)
            held = _shifts(theta[..., None] - zero, steep, reach, ends - load, 0.0)
            held = xp.where(empty[..., None], xp.sign(ends - load)[..., None] * reach, held)
            shift = xp.where(here[..., None], held, shift)
            multiplier = xp.where(here, theta, multiplier)
    return shift, multiplier, empty


def _profile(params: Params, y: Array, shift: Array, multiplier: Array, nearest: Array) -> Equilibrium:
    variance, deviation = least_variance_at(params, shift), row_sum(shift)
    price = rules.price_at(params, row_sum(y) + deviation, bounded=False)
    cost = rules.interior_cost(params, y, deviation, row_sum(variance))
    return Equilibrium(shift, variance, price, multiplier, cost, nearest)


def variational_equilibrium(
    scenario: Scenario | Params,
    weights: Array | None = None,
    private_information: Array | None = None,
    infeasible: Literal["raise", "nearest"] = "raise",
    floor: bool | None = None,
) -> Equilibrium:
    """Exact variational equilibrium of (8): one multiplier for the shared bounds; ``O(N log N)``.

    Where the shared bounds are slack, parameters that hold the sorted answers (``free``), as those of a scenario do,
    make that ``O(N)``.

    x_n = clip((L_n + θB²/B_n − β − S)/w_n, ±α_n), with S = Y + Σx and θ = 0 unless S would leave its interval.
    With a variance floor the equilibrium need not be unique: the one of least ‖x‖ is given.

    Args:
        scenario: the scenario.
        weights: ``(N,)`` r > 0 of another normalised equilibrium, with multiplier θ r_n; all ones for the
            variational one. They matter only where the shared bound binds.
        private_information: ``(..., N)`` y [MWh].
        infeasible: where no report total in reach keeps (8b), (8c): ``"raise"``, or play the ``"nearest"`` total
            and flag it.
        floor: whether the least variance is a floor; looked up in the parameters unless given, which compiled code
            cannot do. Where it can be looked up it must agree.

    Raises:
        ValueError: empty joint feasible set, weights that are not positive, wrong shape, not finite, unknown option.
    """
    params, y = _context(scenario, private_information, infeasible)
    steer = params.total_slope**2 / params.slope
    if weights is not None:
        (weights,) = validation.per_agent(params.slope.shape[-1], weights=weights)
        if weights.ndim > 1:
            raise ValueError(f"weights must have shape {tuple(params.slope.shape)}, got {tuple(weights.shape)}")
        if not bool((weights > 0).all()):
            raise ValueError(f"weights must all be > 0, got {weights}")
        steer = weights * steer
    return _profile(params, y, *_solve(params, y, params.target, steer, infeasible, floor, params.free))


def coordinated(
    scenario: Scenario | Params,
    private_information: Array | None = None,
    infeasible: Literal["raise", "nearest"] = "raise",
    floor: bool | None = None,
) -> Equilibrium:
    """The planner's profile: least expected social cost within (8b)-(8e).

    x_n = clip((Σk + Bp0 − β − S)/w_n, ±α_n) with k the trading slopes: Bc if everybody books its own trade, 0 if
    node 0 books the rest. Proposition 8 (Σŷ = Σy) fixes only the expected price; costs equal truthful ones only
    at x = 0. The multiplier is that of S in the planner's problem. Arguments as in :func:`variational_equilibrium`.
    """
    params, y = _context(scenario, private_information, infeasible)
    xp = namespace(params.slope)
    common = row_sum(params.trading_slope) + params.total_slope * params.wholesale_price - params.intercept
    ones = xp.ones_like(params.slope)
    shift, multiplier, nearest = _solve(params, y, common * ones, params.total_slope * ones, infeasible, floor, None)
    return _profile(params, y, shift, multiplier, nearest)


def _response(params: Params, others: Array, total: Array, shared: Shared, penalty: float) -> Array:
    """Best own shift ``(..., N)`` given the rest of the report total ``(..., N)``."""
    xp = namespace(others, total)
    stiffness = 1.0 + params.variance_slope
    best = (params.target - others) / stiffness
    if shared == "penalty":
        # Derivative of R/2·violation² in units of B_n/B².
        extra = penalty * 0.5 / params.weight
        for bound, side in ((params.report_low, -1.0), (params.report_high, 1.0)):
            beyond = (params.target - others + extra * (bound - others)) / (stiffness + extra)
            best = xp.where(side * (others + best - bound) > 0, beyond, best)
    low, high = -params.max_shift, params.max_shift
    if shared == "constraint":
        # A profile outside the interval still has best responses: it need not come back, but not go further.
        low = xp.maximum(low, xp.minimum(params.report_low, total)[..., None] - others)
        high = xp.minimum(high, xp.maximum(params.report_high, total)[..., None] - others)
    return clip(best, low, high)


def _prepare(
    scenario: Scenario | Params, shared: Shared, penalty: float, y: Array | None, **profile: Array
) -> tuple[Params, Array, Array, list[Array]]:
    """Parameters, the report total ``(...)``, that of the others ``(..., N)``, and the profile as checked arrays."""
    params = as_params(scenario)
    if shared not in ("constraint", "ignore", "penalty"):
        raise ValueError(f"shared must be 'constraint', 'ignore' or 'penalty', got {shared!r}")
    if (shared == "penalty") != (validation.number("penalty", penalty, 0.0) > 0.0):
        raise ValueError(f"penalty must be > 0 with shared='penalty' and 0 otherwise, got {penalty!r} with {shared!r}")
    *arrays, y = validation.per_agent(params.slope.shape[-1], **profile, private_information=private(params, y))
    shift = arrays[0]
    rules.check_reach(params, "shift", shift)
    total = row_sum(y + shift)
    return params, total, total[..., None] - shift, arrays


def best_response(
    scenario: Scenario | Params,
    shift: Array,
    shared: Shared = "constraint",
    penalty: float = 0.0,
    private_information: Array | None = None,
) -> Array:
    """Every agent's best own shift ``(..., N)`` against the others' shifts in ``shift (..., N)``, closed form [MWh].

    Args:
        scenario: the scenario.
        shift: ``(..., N)`` with ``|x| ≤ α``.
        shared: ``"constraint"``: the report total must stay in the interval of (8b), (8c) (the generalised game;
            from outside it must not get worse); ``"ignore"``: the bare game; ``"penalty"``: every agent is charged
            ``penalty``/2 · violation².
        penalty: R > 0 with ``"penalty"`` [$/MWh²], 0 otherwise.
        private_information: ``(..., N)`` y [MWh].

    Raises:
        ValueError: wrong shape, not finite, shift out of range, unknown notion.
    """
    params, total, others, _ = _prepare(scenario, shared, penalty, private_information, shift=shift)
    return _response(params, others, total, shared, penalty)


def exploitability(
    scenario: Scenario | Params,
    shift: Array,
    variance: Array,
    shared: Shared = "constraint",
    penalty: float = 0.0,
    private_information: Array | None = None,
) -> Array:
    """What each agent saves by its best unilateral deviation ``(..., N)``, exact and ≥ 0 [$]; NashConv is the sum.

    gain_n = −F_nδ − ½h_nδ² + B_n/(2B²)·(V_n − least V_n), δ the best own change, h_n = B_n(1 + w_n)/B²; with a
    penalty its change is added. Arguments as in :func:`best_response`; ``variance (..., N)`` [MWh²] at least
    :func:`~p2penv.communication.rules.least_variance`. The violation of the shared interval is not part of it.

    Raises:
        ValueError: as :func:`best_response`; variance below the least one.
    """
    params, total, others, (shift, variance) = _prepare(
        scenario, shared, penalty, private_information, shift=shift, variance=variance
    )
    least = least_variance_at(params, shift)
    if isinstance(variance, np.ndarray):
        short = ~(variance >= least * (1 - 1e-6))
        if short.any():
            index = tuple(int(i) for i in np.argwhere(short)[0])
            raise ValueError(
                f"variance of agent {index[-1]} must be at least {np.broadcast_to(least, short.shape)[index]:g} MWh² "
                f"(8e), got {np.broadcast_to(variance, short.shape)[index]}"
            )
    change = _response(params, others, total, shared, penalty) - shift
    # F_n = 2·weight_n·(S + w_n x_n − target_n), with weight_n = B_n/(2B²).
    slope = total[..., None] + params.variance_slope * shift - params.target
    stiffness = 1.0 + params.variance_slope
    gain = params.weight * (-(2.0 * slope + stiffness * change) * change + (variance - least))
    if shared == "penalty":
        before, after = violation(params, total)[..., None], violation(params, total[..., None] + change)
        gain = gain + 0.5 * penalty * (before - after) * (before + after)
    return gain + 0.0  # no negative zeros


def potential(
    scenario: Scenario | Params, shift: Array, variance: Array, private_information: Array | None = None
) -> Array:
    """Exact weighted potential ``(...)``: a change of own action changes J_n by B_n times the change of this.

    W = [(S + β)² + ΣV]/(2B²) − Σ(ℓ_n/B_n)x_n. No Assumption 17 is needed. (The printed potential of Proposition 18
    has H/B on V where H/(2B) is right, and cHŷ/B where cHŷ is.) It does not extend to the penalised game.

    Raises:
        ValueError: wrong shape or not finite.
    """
    params = as_params(scenario)
    shift, variance, y = validation.per_agent(
        params.slope.shape[-1],
        shift=shift,
        variance=variance,
        private_information=private(params, private_information),
    )
    level = row_sum(y + shift) + params.intercept
    quadratic = (level * level + row_sum(variance)) / (2.0 * params.total_slope**2)
    return quadratic - row_sum(params.incentive / params.slope * shift)
