"""Blocks of the programs of the grid market: devices, balance, trades and network, with the paper's equations."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from p2penv.grid.program import EQUAL, MOST, Floats, Index, Program

if TYPE_CHECKING:
    from p2penv.grid.scenario import Scenario

# What a prosumer's net demand η at its bus consists of beside load − solar, with its sign; (13).
DEVICES = {"curtail": 1.0, "charge": 1.0, "discharge": -1.0, "dispatch": -1.0}
# Shared limits and what one unit of missing them costs when a day is infeasible: about 100 kW, 5 % or 1 degree are 1.
SHARED = {
    "import_min": 0.01,
    "import_max": 0.01,
    "line_min": 0.01,
    "line_max": 0.01,
    "line_cone": 0.01,
    "voltage_min": 20.0,
    "voltage_max": 20.0,
    "angle_min": 50.0,
    "angle_max": 50.0,
}


NAMES = {
    "import_min": "the least import (12)",
    "import_max": "the largest import (12)",
    "line_min": "the limit (16a) of a line",
    "line_max": "the limit (16a) of a line",
    "line_cone": "the limit (16a) of a line",
    "voltage_min": "the least voltage (16b)",
    "voltage_max": "the largest voltage (16b)",
    "angle_min": "the least angle (16b)",
    "angle_max": "the largest angle (16b)",
    "state_min": "the least charge (5)",
    "state_max": "the largest charge (5)",
    "grid_min": "no export (6)",
}


class Limits(NamedTuple):
    """Shared limits by hour; ±inf where there is none."""

    import_min: Floats  # (H,) of σ + b [kW]
    import_max: Floats  # (H,)
    line: Floats  # (H, L) apparent power [kVA]
    voltage_min: Floats  # (H, B) [p.u.]
    voltage_max: Floats  # (H, B)
    angle: Floats  # (H, B) [rad]

    @classmethod
    def of(cls, scenario: Scenario) -> Limits:
        """The scenario's."""
        hours, lines, buses = scenario.hours, len(scenario.line_limit), len(scenario.feeder.buses)

        def rows(value: float | Floats, width: int) -> Floats:
            return np.broadcast_to(np.asarray(value, np.float64), (hours, width))

        return cls(
            rows(scenario.import_min, 1)[:, 0],
            rows(scenario.import_max, 1)[:, 0],
            rows(scenario.line_limit, lines),
            rows(scenario.voltage_min, buses),
            rows(scenario.voltage_max, buses),
            rows(scenario.angle_limit, buses),
        )


class Tree(NamedTuple):
    """The feeder as a tree: line l feeds bus child[l] from bus parent[l]."""

    child: Index  # (L,)
    above: Index  # (L,) the line that feeds the parent of l, −1 at the source
    downstream: Floats  # (L, B) 1 where line l feeds bus y
    bus: Index  # buses and lines (P,) of all pairs in which the line is on the bus's path to the source
    line: Index
    resistance: Floats  # (L,) p.u. per kW
    reactance: Floats

    @classmethod
    def of(cls, scenario: Scenario) -> Tree:
        """Of the scenario's feeder."""
        feeder = scenario.feeder
        parent = np.asarray(feeder.parent)
        child = np.flatnonzero(parent >= 0)
        number = np.full(len(parent), -1)
        number[child] = np.arange(len(child))
        downstream = np.asarray(feeder.downstream, np.float64)
        bus, line = np.nonzero(downstream.T)
        base = feeder.base_kva
        return cls(
            child, number[parent[child]], downstream, bus, line, feeder.resistance / base, feeder.reactance / base
        )


def add_devices(program: Program, scenario: Scenario, players: NDArray[np.bool_]) -> None:
    """Dispatch (2), storage (4), (5) and curtailment of the players, with their costs."""
    step, on = scenario.step_hours, np.broadcast_to(players, (scenario.hours, scenario.size))
    quadratic, linear = scenario.dispatch_quadratic, scenario.dispatch_linear
    program.add("dispatch", on & (scenario.dispatch_max > 0.0), 2.0 * step * quadratic, step * linear)
    program.bound("dispatch", 0.0, scenario.dispatch_max)
    stored = on & (scenario.storage_power > 0.0)
    for name in ("charge", "discharge"):
        program.add(name, stored, 2.0 * step * scenario.storage_cost)
        program.bound(name, 0.0, scenario.storage_power)
    solar = scenario.solar[: scenario.hours]
    program.add("curtail", on & (solar > 0.0))
    program.bound("curtail", 0.0, solar)
    # What is stored at the end of an hour [kWh].
    state = program.add("state", stored)
    low = np.array(np.broadcast_to(scenario.storage_min, state.shape))
    if scenario.final_charge:
        low[-1] = np.maximum(low[-1], scenario.initial_charge)
    program.bound("state", low, scenario.storage_max)
    before = np.concatenate([np.full_like(state[:1], -1), state[:-1]])
    right = np.zeros(state.shape)
    right[0] = scenario.leakage * scenario.initial_charge
    program.require(
        "storage",
        EQUAL,
        stored,
        right,
        (state, 1.0),
        (before, -scenario.leakage * np.ones(scenario.size)),
        (program.variables["charge"], -step * scenario.charge_efficiency),
        (program.variables["discharge"], step / scenario.discharge_efficiency),
    )


def add_balance(program: Program, scenario: Scenario, players: NDArray[np.bool_], received: Floats | float) -> Index:
    """Rows (6), net demand − grid exchange − trades = 0, with what is received by trades that are fixed ``(H, N)``."""
    on = np.broadcast_to(players, (scenario.hours, scenario.size))
    if not scenario.export:
        program.bound("grid", 0.0, None)
    right = np.asarray(received) - base_demand(scenario)
    terms = [(program.variables[name], sign) for name, sign in DEVICES.items()]
    return program.require("balance", EQUAL, on, right, *terms, (program.variables["grid"], -1.0))


def base_demand(scenario: Scenario) -> Floats:
    """Load − solar of prosumers ``(H, N)`` [kW]."""
    return scenario.demand[: scenario.hours] - scenario.solar[: scenario.hours]


def demand_range(scenario: Scenario) -> tuple[Floats, Floats]:
    """What net demands η ``(H, N)`` can be at least and at most, by the devices alone [kW]."""
    base = base_demand(scenario)
    low = base - scenario.storage_power - scenario.dispatch_max
    return low, base + scenario.solar[: scenario.hours] + scenario.storage_power


def trade_costs(scenario: Scenario) -> Floats:
    """c^tr ``(M, 2)`` that the first and the second of each pair pay for what they receive [€/kWh]."""
    costs = np.asarray(scenario.trade_cost, np.float64)
    return np.broadcast_to(costs.reshape(len(costs), -1), (len(costs), 2))


def add_pairs(program: Program, scenario: Scenario, balance: Index) -> None:
    """What the first of each pair receives and delivers, (7) and (8b)."""
    pairs = np.ones((scenario.hours, len(scenario.edges)), bool)
    price, step = trade_costs(scenario), scenario.step_hours
    fee = 2.0 * np.asarray(scenario.tariff)
    for name, sign in (("received", 1.0), ("delivered", -1.0)):
        index = program.add(name, pairs, 0.0, step * (sign * (price[:, 0] - price[:, 1]) + fee))
        program.bound(name, 0.0, None)
        program.extend(EQUAL, balance[:, scenario.edges[:, 0]], index, -sign)
        program.extend(EQUAL, balance[:, scenario.edges[:, 1]], index, sign)
    both = [(program.variables[name], 1.0) for name in ("received", "delivered")]
    program.require("trade_max", MOST, pairs, scenario.trade_max, *both)


def in_slots(scenario: Scenario, received: Floats) -> Floats:
    """Trades ``(..., N, K)`` of what the first of each pair receives ``(..., M)``."""
    partner, pair = np.asarray(scenario.partner), np.asarray(scenario.pair)
    own = np.arange(scenario.size)[:, None]
    sign = np.where(partner >= 0, np.where(own < partner, 1.0, -1.0), 0.0)
    return received[..., np.where(partner >= 0, pair, 0)] * sign


def charge_states(scenario: Scenario, charge: Floats, discharge: Floats) -> Floats:
    """State of charge ``(H, N)`` at the end of each hour; (5) [kWh]."""
    state, states = scenario.initial_charge, []
    for into, out in zip(charge, discharge, strict=True):
        state = scenario.leakage * state + scenario.step_hours * (
            scenario.charge_efficiency * into - out / scenario.discharge_efficiency
        )
        states.append(state)
    return np.stack(states)


def add_import(program: Program, limits: Limits, passive: Floats, low: Floats, high: Floats) -> None:
    """Limits (12) of σ + b where they can be reached; ``(H,)`` passive demand, least and largest σ."""
    total = program.variables["total"]
    most, least = limits.import_max - passive, limits.import_min - passive
    program.require("import_max", MOST, high > most, most, (total, 1.0))
    program.require("import_min", MOST, low < least, -least, (total, -1.0))


def passive(scenario: Scenario) -> tuple[Floats, Floats]:
    """Active and reactive passive demand ``(H, B)`` [kW, kvar]."""
    return scenario.passive_active[: scenario.hours], scenario.passive_reactive[: scenario.hours]


def bus_demand(scenario: Scenario) -> tuple[Floats, Floats]:
    """Active and reactive demand ``(H, B)`` at buses with all devices at rest [kW, kvar]."""
    active, reactive = passive(scenario)
    load = scenario.demand[: scenario.hours]
    ratio = np.tan(np.arccos(scenario.power_factor))
    return active + at_buses(scenario, base_demand(scenario)), reactive + at_buses(scenario, ratio * load)


def at_buses(scenario: Scenario, values: Floats) -> Floats:
    """Sums ``(H, B)`` of prosumers' values ``(H, N)`` at their buses."""
    place = np.zeros((scenario.size, len(scenario.feeder.buses)))
    place[np.arange(scenario.size), scenario.bus] = 1.0
    return values @ place


def add_network(
    program: Program, scenario: Scenario, limits: Limits, base: Floats, low: Floats, high: Floats, reactive: Floats
) -> None:
    """Flows (13) and limits (16) of the network, where they can be reached.

    Args:
        program: with devices.
        scenario: the scenario.
        limits: shared limits.
        base: ``(H, B)`` net demand at buses without the devices in the program [kW].
        low: ``(H, B)`` least net demand at buses.
        high: ``(H, B)`` largest.
        reactive: ``(H, B)`` reactive demand at buses [kvar]; not used with free reactive flows.
    """
    tree = Tree.of(scenario)
    down, r, x = tree.downstream, tree.resistance, tree.reactance
    least, most = low @ down.T, high @ down.T
    q = reactive @ down.T if scenario.reactive else np.zeros(least.shape)
    cap = np.sqrt(np.maximum(limits.line**2 - q**2, 0.0))
    # Drops of voltage and of angle from the source, without those by active flows.
    drop, lag = (q * x) @ down, (-q * r) @ down
    rooms = {
        "voltage_min": (1.0, 1.0 - limits.voltage_min - drop),
        "voltage_max": (-1.0, limits.voltage_max - 1.0 + drop),
        "angle_min": (1.0, limits.angle - lag),
        "angle_max": (-1.0, limits.angle + lag),
    }
    kept = {"line": np.maximum(np.abs(least), np.abs(most)) > cap}
    for name, (sign, room) in rooms.items():
        weight = r if name.startswith("voltage") else x
        kept[name] = np.maximum((sign * least * weight) @ down, (sign * most * weight) @ down) > room
    if not scenario.reactive:
        # Free reactive flows are 0 in hours in which nothing is reached then; in others every limit counts.
        hours = np.any([each.any(axis=1) for each in kept.values()], axis=0)[:, None]
        kept = {name: hours & np.isfinite(room) for name, (_, room) in rooms.items()} | {
            "line": hours & np.isfinite(cap)
        }
        for name in rooms:
            kept[name][:, np.asarray(scenario.feeder.parent) < 0] = False
    wanted = kept["line"].copy()
    for name in rooms:
        wanted |= (kept[name] @ down.T) > 0.0
    # With a line all those it feeds: flows are sums over the lines below.
    wanted = (wanted.astype(np.float64) @ down[:, tree.child]) > 0.0
    flow = program.add("flow", wanted)
    rows = program.require("flow", EQUAL, wanted, base[:, tree.child], (flow, 1.0))
    lower = np.flatnonzero(tree.above >= 0)
    program.extend(EQUAL, rows[:, tree.above[lower]], flow[:, lower], -1.0)
    feeds = np.full(base.shape[1], -1)
    feeds[tree.child] = np.arange(len(tree.child))
    line = feeds[scenario.bus]
    own = np.where(line >= 0, rows[:, line], -1)
    for name, sign in DEVICES.items():
        program.extend(EQUAL, own, program.variables[name], -sign)
    if scenario.reactive:
        program.require("line_max", MOST, kept["line"], cap, (flow, 1.0))
        program.require("line_min", MOST, kept["line"], cap, (flow, -1.0))
    else:
        free = program.add("reactive", wanted)
        program.discs("line_cone", kept["line"], cap, flow, free)
    for name, (sign, room) in rooms.items():
        first, second = (r, x) if name.startswith("voltage") else (x, -r)
        rows = program.require(name, MOST, kept[name], room)
        program.extend(MOST, rows[:, tree.bus], flow[:, tree.line], sign * first[tree.line])
        if not scenario.reactive:
            program.extend(MOST, rows[:, tree.bus], free[:, tree.line], sign * second[tree.line])


def place(scenario: Scenario, name: str, where: tuple[np.intp, ...]) -> str:
    """Where a row of that name is, in words."""
    hour = f" in hour {where[0]}"
    if len(where) == 1:
        return hour
    buses, parent = scenario.feeder.buses, np.asarray(scenario.feeder.parent)
    if name.startswith("line"):
        child = int(Tree.of(scenario).child[where[1]])
        return f" {buses[parent[child]]}-{buses[child]}{hour}"
    if name.startswith(("voltage", "angle")):
        return f" at bus {buses[where[1]]}{hour}"
    return f" of prosumer {where[1]}{hour}"
