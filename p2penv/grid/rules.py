"""Rules of trading under the limits of a feeder: pure array functions, batched over leading axes.

Source: Belgioioso, Ananduta, Grammatico, Ocampo-Martinez, "Operationally-safe peer-to-peer energy trading in
distribution grids: a game-theoretic market-clearing mechanism", IEEE Transactions on Smart Grid 2022; numbers in
brackets are that paper's. Power is in kW, energy in kWh, money in €. Arrays of one hour are ``(..., N)``, of a day
``(..., H, N)``; where ``hour`` is None a function takes a whole day, otherwise the hour's number or numbers ``(...)``.

Trades lie in slots ``(..., N, K)``: ``params.partner[i, k]`` is the k-th partner of prosumer i, −1 for none. A trade is
positive for who receives it.

The reactive balance is added to the paper's model, whose reactive flows are free and whose voltage limits hardly bind.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import numpy as np

from p2penv.core.arrays import Array, clip, namespace, positive, row_sum, safe_divide

Mode = Literal["contract", "bilateral"]
# Left of a limit when demand is cut, so that rounding exceeds nothing: so many times what rounding may do to a number
# of the limit's size and to what is cut.
CUT_MARGIN = 16.0


class Params(NamedTuple):
    """Arrays of a scenario: H hours, N prosumers, K slots, B buses, L lines; profiles have a row for the end too."""

    demand: Array  # (H + 1, N) p^d without generation [kW]
    solar: Array  # (H + 1, N) ≥ 0 [kW]
    reactive_demand: Array  # (H + 1, N) [kvar]
    bus: Array  # (N,) whole
    location: Array  # (N, B) 1 at the prosumer's bus
    partner: Array  # (N, K) whole, −1 in empty slots
    reverse: Array  # (N, K) whole, the partner's slot for this prosumer; 0 in empty ones
    pair: Array  # (N, K) whole, index of the pair; 0 in empty ones
    mirror: Array  # (N·K,) whole, the same trade seen from the partner, K·partner + reverse; own place where empty
    slots: Array  # (N, K) 1 for partners, 0 for empty slots
    trade_cost: Array  # (N, K) c^tr [€/kWh]
    trade_max: Array  # (N, K) p̄^tr, 0 in empty slots [kW]
    tariff: Array  # () c^ta [€/kWh]
    dispatch_max: Array  # (N,) p̄^di [kW]
    dispatch_quadratic: Array  # (N,) Q [€/kW²h]
    dispatch_linear: Array  # (N,) c^di [€/kWh]
    storage_power: Array  # (N,) p̄^ch = p̄^ds [kW]
    storage_min: Array  # (N,) x̲ [kWh]
    storage_max: Array  # (N,) x̄ [kWh]
    initial_charge: Array  # (N,) x_0 [kWh]
    leakage: Array  # (N,) η^st, part of the charge left after an hour
    charge_efficiency: Array  # (N,) η^ch
    discharge_efficiency: Array  # (N,) η^ds
    storage_cost: Array  # (N,) q_st [€/kW²h]
    passive_active: Array  # (H + 1, B) [kW]
    passive_reactive: Array  # (H + 1, B) [kvar]
    passive_total: Array  # (H + 1,) b [kW]
    grid_slope: Array  # (H + 1,) d [€/kWh per kW]
    import_min: Array  # () p̲ [kW]
    import_max: Array  # () p̄ [kW]
    downstream: Array  # (L, B) 1 where a line feeds a bus
    resistance: Array  # (L,) [p.u./kW]
    reactance: Array  # (L,) [p.u./kvar]
    R: Array  # (B, B) drop of voltage for active demand [p.u./kW]
    X: Array  # (B, B) drop of voltage for reactive demand [p.u./kvar]
    line_limit: Array  # (L,) s̄, infinite for none [kVA]
    voltage_min: Array  # () [p.u.]
    voltage_max: Array  # () [p.u.]
    angle_limit: Array  # () largest |θ| [rad]
    lost_load: Array  # () value of energy not served [€/kWh]
    line_price: Array  # () π of line and import limits [€/kVAh]
    voltage_price: Array  # () π [€/(p.u.·h)]
    angle_price: Array  # () π [€/(rad·h)]
    step_hours: Array  # () T_s [h]


class Schedules(NamedTuple):
    """What prosumers do, through a day or, without the axis H, in an hour [kW]."""

    dispatch: Array  # (..., H, N) p^di
    charge: Array  # (..., H, N) p^ch
    discharge: Array  # (..., H, N) p^ds
    curtail: Array  # (..., H, N) p^cu, solar power not used
    grid: Array  # (..., H, N) p^mg, bought from the grid; the residual of (6)
    trade: Array  # (..., H, N, K) p^tr, received


class NetworkState(NamedTuple):
    """Flows, voltages and by how much they exceed their limits."""

    active: Array  # (..., L) p^ℓ into the bus a line feeds [kW]
    reactive: Array  # (..., L) q^ℓ [kvar]
    apparent: Array  # (..., L) √(p² + q²) [kVA]
    voltage: Array  # (..., B) [p.u.]
    angle: Array  # (..., B) [rad]
    grid_active: Array  # (...) p^tg at the source [kW]
    grid_reactive: Array  # (...) q^tg at the source [kvar]
    line_excess: Array  # (..., L) ≥ 0 over (16a) [kVA]
    voltage_excess: Array  # (..., B) ≥ 0, distance to the range of (16) [p.u.]
    angle_excess: Array  # (..., B) ≥ 0 [rad]
    import_excess: Array  # (...) ≥ 0, distance to the range of (12) [kW]


class Bill(NamedTuple):
    """What prosumers pay in an hour or through a day, and to whom [€]."""

    dispatch: Array  # (..., N) (2)
    storage: Array  # (..., N) (4)
    trade: Array  # (..., N) to partners, negative for who is paid; (7) without tariff
    tariff: Array  # (..., N) to the operator
    grid: Array  # (..., N) to the supplier (11)

    @property
    def cost(self) -> Array:
        """J ``(..., N)``."""
        return self.dispatch + self.storage + self.trade + self.tariff + self.grid


def at(profile: Array, hour: Any) -> Array:
    """Rows of a profile ``(H + 1, ...)``: those of the given hours, or without them the day ``(H, ...)``."""
    if hour is None:
        return profile[:-1]
    return profile[hour]


# --- Devices and trades -----------------------------------------------------------------------------------------------


def grid_exchange(
    params: Params, dispatch: Array, charge: Array, discharge: Array, curtail: Array, trade: Array, hour: Any = None
) -> Array:
    """p^mg ``(..., N)``, what is left to buy from the grid, by (6) [kW]."""
    produced = dispatch + discharge + row_sum(trade)
    return at(params.demand, hour) - at(params.solar, hour) + curtail + charge - produced


def net_demand(schedules: Schedules) -> Array:
    """η ``(..., N)``, what prosumers draw from their bus, p^mg + Σ p^tr [kW]; (13)."""
    return schedules.grid + row_sum(schedules.trade)


def dispatch_cost(params: Params, dispatch: Array) -> Array:
    """f^di ``(..., N)`` by (2) [€]."""
    return params.step_hours * (params.dispatch_quadratic * dispatch + params.dispatch_linear) * dispatch


def storage_cost(params: Params, charge: Array, discharge: Array) -> Array:
    """f^st ``(..., N)`` by (4) [€]."""
    return params.step_hours * params.storage_cost * (charge * charge + discharge * discharge)


def trade_payment(params: Params, trade: Array, price: Array | None = None) -> Array:
    """What prosumers ``(..., N)`` pay their partners: the first part of (7) [€].

    Args:
        params: of the scenario.
        trade: ``(..., N, K)``.
        price: ``(..., N, K)`` of the trades; None: c^tr [€/kWh].
    """
    return params.step_hours * row_sum((params.trade_cost if price is None else price) * trade)


def tariff_payment(params: Params, trade: Array, tariff: Array | None = None) -> Array:
    """What prosumers ``(..., N)`` pay the operator for trading: the second part of (7) [€].

    Args:
        params: of the scenario.
        trade: ``(..., N, K)``.
        tariff: ``(...)``; None: c^ta [€/kWh].
    """
    traded = row_sum(namespace(trade).abs(trade))
    return params.step_hours * (params.tariff if tariff is None else tariff[..., None]) * traded


def trading_cost(params: Params, trade: Array, price: Array | None = None, tariff: Array | None = None) -> Array:
    """f^tr ``(..., N)`` by (7) [€]."""
    return trade_payment(params, trade, price) + tariff_payment(params, trade, tariff)


def grid_price(params: Params, total: Array, hour: Any = None) -> Array:
    """Price ``(...)`` of energy from the grid, d(σ + b), for purchases σ ``(...)`` of all prosumers [€/kWh]; (11)."""
    return at(params.grid_slope, hour) * (total + at(params.passive_total, hour))


def bill(
    params: Params, schedules: Schedules, hour: Any = None, price: Array | None = None, tariff: Array | None = None
) -> Bill:
    """What each prosumer pays for an hour, or for every hour of a day.

    Args:
        params: of the scenario.
        schedules: ``(..., N)`` of hours, or of a day where ``hour`` is None.
        hour: number of the hour, or one for each entry of the leading axes.
        price: ``(..., N, K)`` of trades; None: the contract's c^tr [€/kWh].
        tariff: ``(...)``; None: c^ta [€/kWh].
    """
    from_grid = params.step_hours * grid_price(params, row_sum(schedules.grid), hour)[..., None] * schedules.grid
    return Bill(
        dispatch_cost(params, schedules.dispatch),
        storage_cost(params, schedules.charge, schedules.discharge),
        trade_payment(params, schedules.trade, price),
        tariff_payment(params, schedules.trade, tariff),
        from_grid,
    )


def hour_cost(
    params: Params, schedules: Schedules, hour: Any = None, price: Array | None = None, tariff: Array | None = None
) -> Array:
    """J ``(..., N)`` of an hour or of every hour of a day [€]; arguments as of :func:`bill`."""
    return bill(params, schedules, hour, price, tariff).cost


def costs(params: Any, schedules: Schedules) -> Array:
    """J ``(..., N)`` of a day [€].

    Args:
        params: of the scenario, or the scenario.
        schedules: ``(..., H, N)``.
    """
    each = hour_cost(_params(params), schedules)
    return namespace(each).sum(each, axis=-2)


def potential(params: Any, schedules: Schedules, kind: str = "nash") -> Array:
    """Φ ``(...)`` that the variational equilibrium minimises [€].

    The grid's price is the same for all, so the game has an exact potential: Φ = Σ(f^di + f^st + f^tr) + Σ_h d·G with
    G = (σ² + Σ(p^mg)²)/2 + bσ. Price takers (``"wardrop"``) minimise it with G = σ²/2 + bσ, and what all pay together
    (``"social"``, without passive loads) has G = σ² + bσ. Terms of c^tr cancel only between equal prices.

    Args:
        params: of the scenario, or the scenario.
        schedules: ``(..., H, N)``.
        kind: "nash", "no_trade" (the same), "wardrop" or "social".

    Raises:
        ValueError: unknown kind.
    """
    if kind not in ("nash", "no_trade", "wardrop", "social"):
        raise ValueError(f"kind must be one of 'nash', 'no_trade', 'wardrop', 'social'; got {kind!r}")
    params = _params(params)
    own = bill(params, schedules)
    total = row_sum(schedules.grid)
    shared = total * total if kind == "social" else 0.5 * total * total
    if kind in ("nash", "no_trade"):
        shared = shared + 0.5 * row_sum(schedules.grid * schedules.grid)
    supply = params.step_hours * at(params.grid_slope, None) * (shared + at(params.passive_total, None) * total)
    hourly = row_sum(own.dispatch + own.storage + own.trade + own.tariff) + supply
    return namespace(hourly).sum(hourly, axis=-1)


def next_charge(params: Params, state: Array, charge: Array, discharge: Array) -> Array:
    """State of charge ``(..., N)`` after an hour by (5), in [x̲, x̄] whatever rounding does [kWh]."""
    stored = params.charge_efficiency * charge - discharge / params.discharge_efficiency
    return clip(params.leakage * state + params.step_hours * stored, params.storage_min, params.storage_max)


def storage_range(params: Params, state: Array) -> tuple[Array, Array]:
    """Least and most power ``(..., N)`` that keep (5), > 0 for charging [kW].

    The least is positive only where what leaks must be made up for.
    """
    xp = namespace(state, params.storage_max)
    kept, none = params.leakage * state, 0.0 * state
    room = (params.storage_max - kept) / (params.charge_efficiency * params.step_hours)
    most = clip(room, none, params.storage_power)
    stock = (kept - params.storage_min) / params.step_hours
    least = xp.where(stock < 0.0, -stock / params.charge_efficiency, -stock * params.discharge_efficiency)
    return clip(least, -params.storage_power, most), most


def storage_split(params: Params, state: Array, requested: Array) -> tuple[Array, Array]:
    """Charging and discharging ``(..., N)`` nearest to a requested power, within (5); one of them is zero [kW].

    Args:
        params: of the scenario; ``storage_min`` and ``storage_max`` may have leading axes.
        state: ``(..., N)`` charge [kWh].
        requested: ``(..., N)``, > 0 for charging [kW].
    """
    power = clip(requested, *storage_range(params, state))
    return positive(power), positive(-power)


def exchange(params: Params, values: Array) -> Array:
    """What the partner has in its slot for the same pair, ``(..., N, K)``; own values in empty slots."""
    if isinstance(values, np.ndarray) and values.ndim == 3:
        by_pair = values.transpose(1, 2, 0)
        if by_pair.flags.c_contiguous:  # environments side by side in memory, as faces hand them over, stay so
            return by_pair.reshape(-1, len(values))[params.mirror].reshape(by_pair.shape).transpose(2, 0, 1)
    xp = namespace(values)
    flat = xp.reshape(values, (*values.shape[:-2], values.shape[-2] * values.shape[-1]))
    return xp.reshape(xp.take(flat, params.mirror, axis=-1), values.shape)


def match(params: Params, proposals: Array, limit_price: Array | None = None, mode: Mode = "contract") -> Any:
    """Trades of the proposals: of a pair with opposite ones the smaller quantity; (8b) holds exactly.

    Args:
        params: of the scenario.
        proposals: ``(..., N, K)``, > 0 to receive; cut at p̄^tr [kW].
        limit_price: ``(..., N)``, "bilateral" only: most a prosumer pays and least it sells at [€/kWh].
        mode: "contract": prices are c^tr; "bilateral": a pair trades only where the buyer's limit is at least the
            seller's, at their middle.

    Returns:
        ``(trade, price)``, each ``(..., N, K)`` [kW, €/kWh]; bilateral prices are 0 where nothing is traded.
    """
    xp = namespace(proposals)
    own = clip(proposals, -params.trade_max, params.trade_max)
    other = exchange(params, own)
    none = 0.0 * own
    bought = xp.minimum(positive(own), positive(-other))
    sold = xp.minimum(positive(-own), positive(other))
    trade = bought - sold
    if mode == "contract":
        return trade, none + params.trade_cost
    mine = none + limit_price[..., None]  # type: ignore[index]
    theirs = exchange(params, mine)
    agreed = xp.where(trade > 0.0, mine >= theirs, theirs >= mine) & (trade != 0.0)
    return xp.where(agreed, trade, none), xp.where(agreed, 0.5 * (mine + theirs), none)


# --- Network ----------------------------------------------------------------------------------------------------------


def bus_demand(params: Params, net: Array, hour: Any = None) -> tuple[Array, Array]:
    """Active and reactive demand ``(..., B)`` at each bus, passive loads included [kW, kvar].

    Args:
        params: of the scenario.
        net: η ``(..., N)``, what prosumers draw from their bus [kW].
        hour: as everywhere.
    """
    active = at(params.passive_active, hour) + net @ params.location
    return active, at(params.passive_reactive, hour) + at(params.reactive_demand, hour) @ params.location


def network_state(params: Any, injections: Array, reactive: Array | None = None) -> NetworkState:
    """Flows and voltages of a radial feeder; the unique solution of (13) and (15).

    Args:
        params: of the scenario, or the scenario.
        injections: ``(..., B)`` generation less demand at each bus, passive loads included; what is injected at the
            source never enters the feeder [kW].
        reactive: ``(..., B)`` or ``(B,)`` the same of reactive power; None: none anywhere [kvar].
    """
    params = _params(params)
    xp = namespace(injections)
    p, q, rise, angle = _flows(params, injections, 0.0 * injections if reactive is None else reactive, -1.0)
    apparent, voltage = xp.sqrt(p * p + q * q), 1.0 + rise
    grid_active = -row_sum(injections)
    grid_reactive = 0.0 * grid_active - (0.0 if reactive is None else row_sum(reactive))
    short, over = params.import_min - grid_active, grid_active - params.import_max
    return NetworkState(
        p,
        q,
        apparent,
        voltage,
        angle,
        grid_active,
        grid_reactive,
        positive(apparent - params.line_limit),
        positive(xp.maximum(params.voltage_min - voltage, voltage - params.voltage_max)),
        positive(xp.abs(angle) - params.angle_limit),
        positive(xp.maximum(short, over)),
    )


def state_of(params: Any, net: Array, hour: Any = None) -> NetworkState:
    """Flows and voltages for net demands ``(..., N)`` of prosumers and the passive loads of the hour."""
    params = _params(params)
    active, reactive = bus_demand(params, net, hour)
    return network_state(params, -active, -reactive)


def passive_state(params: Any, hour: Any = None) -> NetworkState:
    """Flows and voltages for the passive loads alone, without prosumers' reactive power either."""
    params = _params(params)
    return network_state(params, -at(params.passive_active, hour), -at(params.passive_reactive, hour))


def network_fees(params: Params, net: Array, state: NetworkState) -> tuple[Array, Array]:
    """What violated limits cost, charged to the prosumers who push them further.

    A limit c exceeded by x_c costs π_c·x_c. Prosumer i pays the part max(0, g_ci η_i)/Σ_k max(0, g_ck η_k) of it, with
    g = ∂c/∂η; where nobody pushes, the operator pays.

    Args:
        params: of the scenario.
        net: η ``(..., N)`` [kW].
        state: of the network with these demands.

    Returns:
        Fees ``(..., N)`` and what is left to the operator ``(...)`` [€].
    """
    xp = namespace(net)
    none = 0.0 * state.voltage
    line = params.line_price * state.line_excess
    volt = params.voltage_price * state.voltage_excess
    turn = params.angle_price * state.angle_excess
    grid = params.line_price * state.import_excess[..., None]
    # Only the direction of a limit's g and the size by bus matter: the rest of it cancels in the shares.
    everywhere = 1.0 + 0.0 * params.location[None, :, 0]
    groups = (
        (line, state.active, params.downstream @ params.location.T),
        (volt, xp.where(state.voltage < params.voltage_min, 1.0 + none, none - 1.0), params.R @ params.location.T),
        (turn, -state.angle, params.X @ params.location.T),
        (grid, state.grid_active[..., None] - params.import_max, everywhere),
    )
    rising, falling = positive(net), positive(-net)
    fees, unassigned = 0.0 * net, 0.0 * state.grid_active
    for cost, direction, weight in groups:
        if xp is np and not cost.any():
            continue  # the usual case, and most of the time
        shared = 0.0 * cost
        # More demand makes a limit worse where its direction is positive, less demand where it is negative.
        for pushing, worse in ((rising, direction > 0.0), (falling, direction < 0.0)):
            push = pushing @ weight.T
            charged = xp.where(worse & (push > 0.0), cost, 0.0 * cost)
            shared = shared + charged
            fees = fees + pushing * (safe_divide(charged, push) @ weight)
        unassigned = unassigned + row_sum(cost - shared)
    return params.step_hours * fees, params.step_hours * unassigned


def cut(params: Params, net: Array, hour: Any = None) -> Array:
    """Smallest α ``(...)`` in [0, 1] such that (1 − α)η keeps (12) and (16); exact.

    Active and reactive power of prosumers are scaled alike, passive loads stay. The network must be able to carry the
    passive loads alone; then all limits hold for parts 1 − α from 0 up to the least one at which a limit is reached,
    a root of a linear or a convex quadratic equation for each.

    Args:
        params: of the scenario.
        net: η ``(..., N)`` [kW].
        hour: as everywhere.
    """
    xp = namespace(net)
    passive, passive_reactive = at(params.passive_active, hour), at(params.passive_reactive, hour)
    demand, reactive = net @ params.location, at(params.reactive_demand, hour) @ params.location
    p0, q0, v0, a0 = _flows(params, passive, passive_reactive)
    p1, q1, v1, a1 = _flows(params, demand, reactive + 0.0 * demand)
    b, total = at(params.passive_total, hour), row_sum(net)
    bought = (xp.abs(b) + row_sum(xp.abs(net)))[..., None]
    margin = CUT_MARGIN * float(xp.finfo(total.dtype).eps)
    limited = params.line_limit < xp.inf
    # Apparent power of a line: A t² + 2 B t + C ≤ 0 with C ≤ 0.
    square = p1 * p1 + q1 * q1
    top = positive(xp.where(limited, params.line_limit, 0.0) * (1.0 - margin) - margin * xp.sqrt(square))
    half = p0 * p1 + q0 * q1
    rest = xp.minimum(p0 * p0 + q0 * q0 - top * top, 0.0 * p0)
    root = xp.sqrt(half * half - square * rest)
    part = xp.where(half > 0.0, safe_divide(-rest, half + root), safe_divide(root - half, square))
    parts = [xp.where(limited & (square > 0.0), part, xp.inf)]
    for slope, room, size in (
        (-v1, v0 + (1.0 - params.voltage_min), 0.125),  # of 1 p.u., whose rounding alone counts beside v1
        (v1, (params.voltage_max - 1.0) - v0, 0.125),
        (a1, params.angle_limit - a0, params.angle_limit),
        (-a1, params.angle_limit + a0, params.angle_limit),
        (total[..., None], (params.import_max - b + 0.0 * total)[..., None], bought),
        (-total[..., None], (b - params.import_min + 0.0 * total)[..., None], bought),
    ):
        steep = xp.where(slope > 0.0, slope, 1.0)
        left = positive(room - margin * (size + xp.abs(slope)))
        parts.append(xp.where(slope > 0.0, left / steep, xp.inf))
    least = xp.min(
        xp.concat([xp.broadcast_to(each, (*total.shape, each.shape[-1])) for each in parts], axis=-1), axis=-1
    )
    return 1.0 - clip(least, 0.0 * total, 1.0 + 0.0 * total)  # nothing may be limited: infinite


def _flows(params: Params, active: Array, reactive: Array, sign: float = 1.0) -> tuple[Array, Array, Array, Array]:
    """Active and reactive flows ``(..., L)``, rise of voltage against the source and angle ``(..., B)``; (13), (15).

    Args:
        params: of the scenario.
        active: ``(..., B)`` demand; injections where ``sign`` is −1.
        reactive: ``(..., B)`` or ``(B,)``.
        sign: put on the small matrices, which spares passes over large arrays.
    """
    upward, resistance, reactance = sign * params.downstream.T, sign * params.R, -sign * params.X
    p, q = active @ upward, reactive @ upward
    rise = reactive @ reactance - active @ resistance
    angle = reactive @ resistance + active @ reactance
    return p, namespace(p).broadcast_to(q, p.shape), rise, angle


def _params(scenario: Any) -> Params:
    return scenario if isinstance(scenario, Params) else scenario.params
