"""An hour of the network-constrained market: what a joint action comes to. Pure functions, batched over environments.

Source: Belgioioso, Ananduta, Grammatico, Ocampo-Martinez; equation numbers in brackets are that paper's. The rules it
is made of are in ``p2penv.grid.rules``, what makes actions feasible in ``p2penv.grid.feasible``.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from p2penv.core.arrays import Array, clip, namespace, row_sum
from p2penv.grid import rules
from p2penv.grid.feasible import absorb, backed
from p2penv.grid.rules import NetworkState, Schedules

OWN = ("dispatch", "storage", "curtailment", "limit_price")


class Game(NamedTuple):
    """What of the environment's options an hour depends on; see ``Grid``."""

    trade_price: str
    network: str
    led: bool  # whether the operator plays
    limit_price: float  # highest [€/kWh]
    tariff_max: float  # [€/kWh]
    fee_max: float
    export: bool
    horizon: int  # H


class Params(NamedTuple):
    """Arrays of a market; H hours, n prosumers with K slots for partners, L lines, B buses."""

    market: rules.Params
    floor: Array  # (H + 1, n) least charge from which the day can end as it must [kWh]
    charge_price: Array  # (n,) what a stored kWh may be worth, for learners [€/kWh]
    line_scale: Array  # (L,) limit of a line; where it has none, the largest flow without prosumers [kVA]
    trade_shadow: Array  # (H + 1, n, K) μ^tr, paid by who receives [€/kWh]; zero but for trade_price="shadow"
    nodal_shadow: Array  # (H + 1, n) price of the limits (16), paid on net demand [€/kWh]; zero likewise
    import_shadow: Array  # (H + 1, 1) price of the limits (12), paid on what comes from the grid [€/kWh]; zero likewise


class State(NamedTuple):
    """State of E episodes."""

    charge: Array  # (E, n) in the storage units [kWh]
    proposal: Array  # (E, n, K) last, as a share of what the pair may trade
    trade: Array  # (E, n, K) last, received [kW]
    price: Array  # (E,) last of the grid [€/kWh]
    imported: Array  # (E,) last σ + b [kW]
    tariff: Array  # (E,) last c^ta [€/kWh]
    factor: Array  # (E,) by which the network fee was last multiplied
    loading: Array  # (E, L) last apparent power, as a share of the line's scale; L = 0 unless the operator plays
    voltage: Array  # (E, B) last deviation from 1 p.u., as a share of the widest allowed; B = 0 likewise
    forecast: Array  # (E, n, 2) errors of the forecasts of demand and solar power, standard normal
    time: Array  # (E,) hours played


class Hour(NamedTuple):
    """What a joint action comes to."""

    planned: Schedules  # (E, n), trade (E, n, K), before the operator cuts anything [kW]
    flows: Schedules  # the same as it happened
    proposal: Array  # (E, n, K) as a share of what the pair may trade
    price: Array  # (E, n, K) of trades [€/kWh]
    grid_price: Array  # (E,) [€/kWh]
    imported: Array  # (E,) σ + b [kW]
    net: Array  # (E, n) η, net demand at the bus as it happened [kW]
    unserved: Array  # (E, n) demand cut by the operator [kW]
    cut: Array  # (E,) α
    network: NetworkState
    push: Array  # (E, n) network fee before the operator multiplies it [€]
    fee: Array  # (E, n) [€]
    tax: Array  # (E, n) tariffs on trades [€]
    penalty: Array  # (E,) cost of violated limits [€]
    tariff: Array  # (E,) c^ta [€/kWh]
    factor: Array  # (E,) of the network fee
    cost: Array  # (E, n) J [€]

    @property
    def operator(self) -> Array:
        """What the operator earns ``(E,)`` [€]."""
        return row_sum(self.tax + self.fee) - self.penalty


def row_at(time: Array, horizon: int) -> Array:
    """Rows of profiles for times ``(E,)``, the last one from the end on; one number where all are the same."""
    if isinstance(time, np.ndarray):
        first = time[0]
        if (time == first).all():
            return min(int(first), horizon)
    return clip(time, 0 * time, 0 * time + horizon)


def storage(game: Game, params: Params, state: State, power: Array) -> tuple[Array, Array]:
    """Charging and discharging ``(E, n)`` nearest to ``power``, charging positive, that the storage allows [kW]."""
    market = params.market._replace(storage_min=params.floor[row_at(state.time + 1, game.horizon)])
    return rules.storage_split(market, state.charge, power)


def play(game: Game, params: Params, state: State, actions: Array) -> Hour:
    """What actions ``(E, N, A)`` come to in the hour of the state."""
    market, hour = params.market, row_at(state.time, game.horizon)
    xp = namespace(state.charge)
    own = actions[:, : market.partner.shape[0], :]
    demand, solar = market.demand[hour], market.solar[hour]
    dispatch = 0.5 * (own[..., 0] + 1.0) * market.dispatch_max
    charge, discharge = storage(game, params, state, own[..., 1] * market.storage_power)
    curtail = 0.5 * (own[..., 2] + 1.0) * solar
    limit = 0.5 * (own[..., 3] + 1.0) * game.limit_price
    proposal = own[..., len(OWN) :] * market.slots
    mode: rules.Mode = "bilateral" if game.trade_price == "bilateral" else "contract"
    trade, price = rules.match(market, proposal * market.trade_max, limit, mode)
    if not game.export:
        trade = backed(trade, demand + charge, market.partner)
        left = rules.grid_exchange(market, dispatch, charge, discharge, curtail, trade, hour)
        more, dispatch, discharge = absorb(-left, solar - curtail, dispatch, discharge)
        curtail = curtail + more
    grid = rules.grid_exchange(market, dispatch, charge, discharge, curtail, trade, hour)
    if not game.export:
        grid = xp.maximum(grid, 0.0 * grid)  # rounding
    planned = Schedules(dispatch, charge, discharge, curtail, grid, trade)
    return _settle(game, params, state, actions, planned, proposal, price)


def _settle(
    game: Game, params: Params, state: State, actions: Array, planned: Schedules, proposal: Array, price: Array
) -> Hour:
    """Network, fees and bills of what prosumers planned."""
    market, hour = params.market, row_at(state.time, game.horizon)
    xp, alone = namespace(state.charge), 0.0 * state.price
    net, flows, cut, unserved = rules.net_demand(planned), planned, alone, 0.0 * planned.grid
    if game.network == "curtail":
        cut = rules.cut(market, net, hour)
        taken = cut[:, None] * net
        flows = planned._replace(grid=planned.grid - taken)
        unserved, net = xp.maximum(taken, 0.0 * taken), net - taken
    network = carried(market, net, 1.0 - cut, hour)
    push, rest = _pushed(market, net, network)
    tariff, factor = alone + market.tariff, alone + 1.0
    if game.led:
        tariff = 0.5 * (actions[:, -1, 0] + 1.0) * game.tariff_max
        factor = 0.5 * (actions[:, -1, 1] + 1.0) * game.fee_max
    fee = factor[:, None] * push
    bill = rules.bill(market, flows, hour, price, tariff)
    cost = bill.cost + fee + market.step_hours * market.lost_load * unserved
    if game.trade_price == "shadow":
        shadow = row_sum(params.trade_shadow[hour] * flows.trade) + params.nodal_shadow[hour] * net
        cost = cost + market.step_hours * (shadow + params.import_shadow[hour] * flows.grid)
    total = row_sum(flows.grid)
    return Hour(
        planned,
        flows,
        proposal,
        price,
        rules.grid_price(market, total, hour),
        total + market.passive_total[hour],
        net,
        unserved,
        cut,
        network,
        push,
        fee,
        bill.tariff,
        row_sum(push) + rest,
        tariff,
        factor,
        cost,
    )


def carried(market: rules.Params, net: Array, served: Array, hour: Any) -> NetworkState:
    """Flows and voltages for net demands ``(E, n)``, of reactive demand a part ``(E,)``."""
    active = market.passive_active[hour] + net @ market.location
    own = served[:, None] * (market.reactive_demand[hour] @ market.location)
    return rules.network_state(market, -active, -(market.passive_reactive[hour] + own))


def _pushed(market: rules.Params, net: Array, network: NetworkState) -> tuple[Array, Array]:
    """What violated limits cost: prosumers ``(E, n)``, and nobody in particular ``(E,)`` [€]."""
    excess = (network.line_excess, network.voltage_excess, network.angle_excess, network.import_excess)
    if isinstance(net, np.ndarray) and not any(each.any() for each in excess):
        return 0.0 * net, 0.0 * network.grid_active
    return rules.network_fees(market, net, network)
