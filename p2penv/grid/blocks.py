"""Blocks of the convex programs of the grid market: devices, balance, trades, import and network.

Source: Belgioioso, Ananduta, Grammatico, Ocampo-Martinez, IEEE Trans. Smart Grid 2022; numbers in brackets are the
paper's. Flows are tree sums, voltages and angles sums along the way to the source. With a reactive balance reactive
flows are data, so (16a) is an interval for each active flow; with free ones it is a second-order cone. Limits that
nothing the devices can do would reach are left out: their multipliers are 0.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from p2penv.grid import rules
from p2penv.grid.program import EQUAL, MOST, Floats, Index, Mask, Program
from p2penv.grid.rules import Schedules
from p2penv.grid.scenario import Scenario

# What a prosumer's net demand η at its bus consists of beside load − solar, with its sign; (6), (13).
DEVICES = {"curtail": 1.0, "charge": 1.0, "discharge": -1.0, "dispatch": -1.0}
# Limits that may be missed to find out why a day is infeasible: cost per unit, unit, words. About 100 kW, .05 p.u.,
# 1 degree and 100 kWh cost 1.
BREAKABLE = {
    "import_min": (0.01, "kW", "the least import (12)"),
    "import_max": (0.01, "kW", "the largest import (12)"),
    "line_min": (0.01, "kW", "the line limit (16a)"),
    "line_max": (0.01, "kW", "the line limit (16a)"),
    "line_cone": (0.01, "kVA", "the line limit (16a)"),
    "voltage_min": (20.0, "p.u.", "the least voltage (16)"),
    "voltage_max": (20.0, "p.u.", "the largest voltage (16)"),
    "angle_min": (50.0, "rad", "the least angle (16)"),
    "angle_max": (50.0, "rad", "the largest angle (16)"),
    "state_min": (0.01, "kWh", "the least charge (5)"),
    "state_max": (0.01, "kWh", "the largest charge (5)"),
}


class Limits(NamedTuple):
    """Shared limits by hour; infinite where there is none."""

    import_min: Floats  # (H,) of σ + b [kW]
    import_max: Floats  # (H,)
    line: Floats  # (H, L) apparent power [kVA]
    voltage_min: Floats  # (H, B) [p.u.]
    voltage_max: Floats  # (H, B)
    angle: Floats  # (H, B) [rad]

    @classmethod
    def of(cls, scenario: Scenario) -> Limits:
        """The scenario's."""

        def rows(value: ArrayLike, *shape: int) -> Floats:
            return np.broadcast_to(np.asarray(value, np.float64), (scenario.hours, *shape))

        buses = scenario.feeder.size
        return cls(
            rows(scenario.import_min),
            rows(scenario.import_max),
            rows(scenario.line_limit, buses - 1),
            rows(scenario.voltage_min, buses),
            rows(scenario.voltage_max, buses),
            rows(scenario.angle_limit, buses),
        )


def add_devices(program: Program, scenario: Scenario, players: Mask, price: ArrayLike = 0.0) -> None:
    """Dispatch (2), storage (4), (5) and curtailment of the players ``(N,)``, with their costs.

    ``price (H, N)`` is paid on net demand η too [€/kWh].
    """
    step, on = scenario.step_hours, np.broadcast_to(players, (scenario.hours, scenario.size))
    solar, stored = rules.at(scenario.solar, None), on & (scenario.storage_power > 0.0)
    wear = 2.0 * step * scenario.storage_cost
    marginal = 2.0 * step * scenario.dispatch_quadratic
    for name, mask, most, quadratic, linear in (
        ("dispatch", on & (scenario.dispatch_max > 0.0), scenario.dispatch_max, marginal, scenario.dispatch_linear),
        ("charge", stored, scenario.storage_power, wear, 0.0),
        ("discharge", stored, scenario.storage_power, wear, 0.0),
        ("curtail", on & (solar > 0.0), solar, 0.0, 0.0),
    ):
        program.add(name, mask, quadratic, step * (linear + DEVICES[name] * np.asarray(price)))
        program.bound(name, 0.0, most)
    # What is stored at the end of an hour [kWh].
    state = program.add("state", stored)
    low = np.array(np.broadcast_to(scenario.storage_min, state.shape))
    if scenario.final_charge:
        low[-1] = scenario.initial_charge
    program.bound("state", low, scenario.storage_max)
    start = np.zeros(state.shape)
    start[0] = scenario.leakage * scenario.initial_charge
    program.require(
        "storage",
        EQUAL,
        stored,
        start,
        (state, 1.0),
        (np.concatenate([np.full_like(state[:1], -1), state[:-1]]), -scenario.leakage),
        (program.variables["charge"], -step * scenario.charge_efficiency),
        (program.variables["discharge"], step / scenario.discharge_efficiency),
    )


def add_balance(program: Program, scenario: Scenario, players: Mask, received: ArrayLike = 0.0) -> Index:
    """Rows (6), net demand − grid exchange − trades = 0 ``(H, N)``; ``received`` by trades that are fixed [kW]."""
    on = np.broadcast_to(players, (scenario.hours, scenario.size))
    right = np.asarray(received) - base_demand(scenario)
    terms = [(program.variables[name], sign) for name, sign in DEVICES.items()]
    return program.require("balance", EQUAL, on, right, *terms, (program.variables["grid"], -1.0))


def add_pairs(program: Program, scenario: Scenario, balance: Index) -> None:
    """What the first of each pair receives and delivers, (7); the second does the opposite, (8b)."""
    price, first, second = scenario.trade_cost, scenario.edges[:, 0], scenario.edges[:, 1]
    pairs = np.ones((scenario.hours, scenario.pairs), bool)
    for name, sign in (("received", 1.0), ("delivered", -1.0)):
        cost = sign * (price[:, 0] - price[:, 1]) + 2.0 * scenario.tariff
        index = program.add(name, pairs, 0.0, scenario.step_hours * cost)
        program.bound(name, 0.0, None)
        program.extend(EQUAL, balance[:, first], index, -sign)
        program.extend(EQUAL, balance[:, second], index, sign)
    both = [(program.variables[name], 1.0) for name in ("received", "delivered")]
    program.require("trade_max", MOST, pairs, scenario.trade_max, *both)


def add_slots(program: Program, scenario: Scenario, balance: Index, shadow: Floats) -> None:
    """Trades ``(H, N, K)`` that each prosumer chooses alone, paying ``shadow`` on top of c^tr [€/kWh]."""
    params = scenario.params
    slots = np.broadcast_to(params.slots > 0.0, shadow.shape)
    for name, sign in (("received", 1.0), ("delivered", -1.0)):
        cost = sign * (params.trade_cost + shadow) + scenario.tariff
        index = program.add(name, slots, 0.0, scenario.step_hours * cost)
        program.bound(name, 0.0, None)
        program.extend(EQUAL, balance[..., None], index, -sign)
    both = [(program.variables[name], 1.0) for name in ("received", "delivered")]
    program.require("trade_max", MOST, slots, params.trade_max, *both)


def add_import(program: Program, limits: Limits, passive: Floats, low: Floats, high: Floats) -> None:
    """Limits (12) of σ + b where they can be reached; ``(H,)`` passive demand, least and largest σ."""
    total = program.variables["total"]
    most, least = limits.import_max - passive, limits.import_min - passive
    program.require("import_max", MOST, high > most, most, (total, 1.0))
    program.require("import_min", MOST, low < least, -least, (total, -1.0))


def add_network(
    program: Program, scenario: Scenario, limits: Limits, base: Floats, low: Floats, high: Floats, reactive: Floats
) -> None:
    """Flows (13) and limits (16) of the network, where they can be reached.

    Args:
        program: with devices.
        scenario: the scenario.
        limits: shared limits.
        base: ``(H, B)`` net demand at buses with the program's devices at rest [kW].
        low: ``(H, B)`` least net demand at buses.
        high: ``(H, B)`` largest.
        reactive: ``(H, B)`` reactive demand at buses; not used with free reactive flows [kvar].
    """
    params, feeder = scenario.params, scenario.feeder
    down, r, x = params.downstream, params.resistance, params.reactance
    least, most = low @ down.T, high @ down.T
    q = reactive @ down.T if scenario.reactive else np.zeros(least.shape)
    cap = np.sqrt(np.maximum(limits.line**2 - q**2, 0.0))
    # Drops Σ(rp + xq) of voltage and Σ(xp − rq) of angle from the source: the parts of reactive flows, and room for p.
    drop, lag = (q * x) @ down, -(q * r) @ down
    rooms = {
        "voltage_min": (1.0, r, x, 1.0 - limits.voltage_min - drop),
        "voltage_max": (-1.0, r, x, limits.voltage_max - 1.0 + drop),
        "angle_min": (1.0, x, -r, limits.angle - lag),
        "angle_max": (-1.0, x, -r, limits.angle + lag),
    }
    kept = {"line": np.maximum(np.abs(least), np.abs(most)) > cap}
    for name, (sign, weight, _, room) in rooms.items():
        kept[name] = np.maximum(sign * (least * weight) @ down, sign * (most * weight) @ down) > room
    if not scenario.reactive:
        # Free reactive flows may as well be 0 where nothing is reached then; elsewhere every limit of the hour counts.
        hours = np.any([each.any(axis=1) for each in kept.values()], axis=0)[:, None]
        kept = {"line": hours & np.isfinite(cap)} | {
            name: hours & np.isfinite(room) & (feeder.parent >= 0) for name, (_, _, _, room) in rooms.items()
        }
    # With a line all those it feeds: flows are sums over the lines below.
    wanted = kept["line"] | np.any([(kept[name] @ down.T) > 0.0 for name in rooms], axis=0)
    wanted = wanted.astype(np.float64) @ down[:, feeder.fed] > 0.0
    flow = program.add("flow", wanted)
    rows = program.require("flow", EQUAL, wanted, base[:, feeder.fed], (flow, 1.0))
    line_of = np.full(feeder.size, -1)
    line_of[feeder.fed] = np.arange(len(feeder.fed))
    above = line_of[feeder.parent[feeder.fed]]
    program.extend(EQUAL, rows[:, above[above >= 0]], flow[:, above >= 0], -1.0)
    for name, sign in DEVICES.items():
        program.extend(EQUAL, rows[:, line_of[scenario.bus]], program.variables[name], -sign)
    free = program.add("reactive", wanted & (not scenario.reactive))
    if scenario.reactive:
        program.require("line_max", MOST, kept["line"], cap, (flow, 1.0))
        program.require("line_min", MOST, kept["line"], cap, (flow, -1.0))
    else:
        program.discs("line_cone", kept["line"], cap, flow, free)
    bus, line = np.nonzero(down.T)  # every bus and each line on its way to the source
    for name, (sign, first, second, room) in rooms.items():
        rows = program.require(name, MOST, kept[name], room)
        program.extend(MOST, rows[:, bus], flow[:, line], sign * first[line])
        program.extend(MOST, rows[:, bus], free[:, line], sign * second[line])


def base_demand(scenario: Scenario) -> Floats:
    """Load − solar of prosumers ``(H, N)`` [kW]."""
    return rules.at(scenario.demand, None) - rules.at(scenario.solar, None)


def demand_range(scenario: Scenario) -> tuple[Floats, Floats]:
    """What net demands η ``(H, N)`` can be at least and at most, by the devices alone [kW]."""
    base = base_demand(scenario)
    low = base - scenario.storage_power - scenario.dispatch_max
    return low, base + rules.at(scenario.solar, None) + scenario.storage_power


def slots_of(scenario: Scenario, values: Floats) -> Floats:
    """Values ``(..., M)`` of pairs in the slots ``(..., N, K)`` of both, 0 in empty ones."""
    return values[..., scenario.pair] * scenario.params.slots


def trade_of(scenario: Scenario, received: Floats) -> Floats:
    """Trades ``(..., N, K)`` of what the first of each pair receives ``(..., M)`` [kW]."""
    own = np.arange(scenario.size)[:, None]
    return slots_of(scenario, received) * np.where(own < scenario.partner, 1.0, -1.0)


def charge_states(scenario: Scenario, charge: Floats, discharge: Floats) -> Floats:
    """State of charge ``(H, N)`` at the end of each hour by (5), whatever the bounds [kWh]."""
    state, states = scenario.initial_charge, []
    for into, out in zip(charge, discharge, strict=True):
        stored = scenario.charge_efficiency * into - out / scenario.discharge_efficiency
        state = scenario.leakage * state + scenario.step_hours * stored
        states.append(state)
    return np.stack(states)


def polished(scenario: Scenario, program: Program, x: Floats, trade: Floats | None = None) -> tuple[Schedules, Floats]:
    """Schedules within device and trade limits with (6) and (8b) exact, and the variables that go with them."""
    found: dict[str, Any] = {name: program.value(name, x) for name in program.variables}
    high = {"dispatch": scenario.dispatch_max, "charge": scenario.storage_power, "discharge": scenario.storage_power}
    high["curtail"] = rules.at(scenario.solar, None)
    for name in DEVICES:
        found[name] = np.clip(found[name], 0.0, high[name])
    devices = {name: found[name] for name in ("dispatch", "charge", "discharge", "curtail")}
    if trade is None:
        trade = np.zeros((scenario.hours, scenario.size, scenario.slots))
    if "received" in found:
        paired = found["received"].ndim == 2
        most = scenario.trade_max if paired else scenario.params.trade_max
        for name in ("received", "delivered"):
            found[name] = np.clip(found[name], 0.0, most)
        amount = found["received"] - found["delivered"]
        trade = trade_of(scenario, amount) if paired else amount
    found["grid"] = rules.grid_exchange(scenario.params, **devices, trade=trade)
    schedules = Schedules(**devices, grid=found["grid"], trade=trade)
    found["total"] = found["grid"].sum(axis=1)
    found["state"] = charge_states(scenario, found["charge"], found["discharge"])
    found["flow"] = rules.state_of(scenario.params, rules.net_demand(schedules)).active
    polished = x.copy()
    for name, index in program.variables.items():
        polished[index[index >= 0]] = found[name][index >= 0]
    return schedules, polished


def place(scenario: Scenario, name: str, where: tuple[np.intp, ...]) -> str:
    """Where a row of that name is, in words."""
    owner = ""
    if name.startswith("line"):
        owner = f" of line {scenario.feeder.lines[where[1]]}"
    elif name.startswith(("voltage", "angle")):
        owner = f" at bus {scenario.feeder.buses[where[1]]}"
    elif len(where) > 1:
        owner = f" of prosumer_{where[1]}"
    return f"{owner} in hour {where[0]}"
