"""Best responses of prosumers, exact, and what follows from them: exploitability and gains at prices.

Source: Belgioioso, Ananduta, Grammatico, Ocampo-Martinez, IEEE Trans. Smart Grid 2022; numbers in brackets are the
paper's.

Deviations are those of a generalised game: the others' schedules stay, so a prosumer's trades stay by (8b); its devices
and its purchase from the grid may change as far as its own limits and the shared ones, (12) and (16), allow.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from p2penv.core import validation
from p2penv.grid import blocks, rules
from p2penv.grid.blocks import BREAKABLE, DEVICES, Limits
from p2penv.grid.program import Floats, Mask, Program, Solution
from p2penv.grid.rules import Schedules
from p2penv.grid.scenario import Scenario

# Given schedules may miss a prosumer's own limits by so much, relative to the largest power or charge of the day.
SLACK = 1e-6
# Room left with free reactive flows, in units of what it costs to miss a limit.
ROOM = 1e-7


class Response(NamedTuple):
    """Best schedule of one prosumer against the others'."""

    schedules: Schedules  # (H, N): everybody's, with the prosumer's own replaced
    cost: float  # J of the prosumer [€]
    gain: float  # over the schedule it was asked about, ≥ 0 [€]


def best_response(scenario: Scenario, schedules: Schedules, prosumer: int) -> Response:
    """Best schedule of a prosumer while the others' stay.

    A shared limit that the given schedules exceed counts as being where they are: nobody may make it worse.

    Args:
        scenario: the market.
        schedules: ``(H, N)`` of everybody, each prosumer's own limits, (6) and (8b) satisfied.
        prosumer: which, 0..N−1.

    Raises:
        MissingSolverError: Clarabel is not installed.
        ValueError: no such prosumer, or schedules that nobody could have played.
        RuntimeError: the solver gave up.
    """
    if isinstance(prosumer, bool) or not isinstance(prosumer, int | np.integer) or not 0 <= prosumer < scenario.size:
        raise ValueError(f"prosumer must be in 0..{scenario.size - 1}, got {prosumer!r}")
    schedules = check_schedules(scenario, schedules)
    new, before, after = _responses(
        scenario, schedules, np.arange(scenario.size) == prosumer, _relaxed(scenario, schedules)
    )
    own = Schedules(*(np.array(each) for each in schedules))
    for array, values in zip(own, new, strict=True):
        array[:, prosumer] = values[:, prosumer]
    return Response(own, float(after[prosumer]), float(before[prosumer] - after[prosumer]))


def exploitability(scenario: Scenario, schedules: Schedules) -> Floats:
    """What each prosumer would gain ``(..., N)`` by its :func:`best_response` ≥ 0 [€].

    Args:
        scenario: the market.
        schedules: ``(..., H, N)``; days in leading axes are looked at one after the other.

    Raises:
        MissingSolverError, ValueError, RuntimeError: as :func:`best_response`.
    """
    lead = np.shape(schedules.grid)[:-2]
    gains = np.zeros((*lead, scenario.size))
    for day in np.ndindex(*lead):
        played = check_schedules(scenario, Schedules(*(np.asarray(each)[day] for each in schedules)))
        everybody, limits = np.ones(scenario.size, bool), _relaxed(scenario, played)
        for players in [everybody] if scenario.reactive else list(np.diag(everybody)):
            _, before, after = _responses(scenario, played, players, limits)
            gains[(*day, players)] = (before - after)[players]
    return gains


def competitive_gain(scenario: Scenario, schedules: Schedules, multipliers: dict[str, Floats]) -> Floats:
    """What each prosumer would gain ``(N,)`` if it could trade any amount at the multipliers' prices [€].

    The competitive notion beside :func:`exploitability`: it pays :func:`shadow_cost` and chooses trades, up to their
    limits, and devices; (8b), (12) and (16) are replaced by their prices. The others' purchases from the grid stay. It
    is 0 at the equilibrium the multipliers are from.

    Raises:
        MissingSolverError, ValueError, RuntimeError: as :func:`best_response`.
    """
    schedules = check_schedules(scenario, schedules)
    everybody = np.ones(scenario.size, bool)
    program = Program()
    blocks.add_devices(program, scenario, everybody, multipliers["nodal"][:, scenario.bus])
    _add_purchase(program, scenario, schedules, everybody, scenario.step_hours * multipliers["import"][:, None])
    program.bound("grid", None if scenario.export else 0.0, None)
    balance = blocks.add_balance(program, scenario, everybody)
    blocks.add_slots(program, scenario, balance, blocks.slots_of(scenario, multipliers["trade"]))
    solution = _solved(program, scenario)
    best, _ = blocks.polished(scenario, program, solution.x)
    cost = _own_cost(scenario, best, schedules) + _shadow(scenario, best, multipliers)
    return np.maximum(shadow_cost(scenario, schedules, multipliers) - cost, 0.0)


def shadow_cost(scenario: Scenario, schedules: Schedules, multipliers: dict[str, Floats]) -> Floats:
    """Cost ``(N,)`` of a day with shadow prices beside the contract's [€].

    J_i + Σ_h T_s (Σ_j μ^tr_ij p^tr_ij + import_h p^mg_ih + nodal_yh η_ih).
    """
    return rules.costs(scenario, schedules) + _shadow(scenario, schedules, multipliers)


def check_schedules(scenario: Scenario, schedules: Schedules) -> Schedules:
    """Schedules of a day as arrays, each prosumer's own limits, (6) and (8b) satisfied; shared limits may be missed.

    Raises:
        ValueError: names what is missed, by whom, in which hour, and by how much.
    """
    params, hours = scenario.params, scenario.hours
    shape = (hours, scenario.size)
    arrays = []
    for name, value in zip(Schedules._fields, schedules, strict=True):
        array = validation.floats(name, value)
        wanted = (*shape, scenario.slots) if name == "trade" else shape
        if array.shape != wanted or not np.isfinite(array).all():
            raise ValueError(f"{name} must be finite and of shape {wanted}, got shape {array.shape}")
        arrays.append(array)
    day = Schedules(*arrays)
    states = blocks.charge_states(scenario, day.charge, day.discharge)
    least = np.array(np.broadcast_to(scenario.storage_min, shape))
    if scenario.final_charge:
        least[-1] = scenario.initial_charge
    solar = rules.at(scenario.solar, None)
    residual = rules.grid_exchange(params, day.dispatch, day.charge, day.discharge, day.curtail, day.trade)
    # The same from both sides, and nothing in empty slots.
    mutual = np.where(params.slots > 0.0, day.trade + rules.exchange(params, day.trade), day.trade)
    missed = {
        "trade misses reciprocity (8b)": np.abs(mutual).max(axis=-1),
        "dispatch exceeds [0, dispatch_max]": np.maximum(-day.dispatch, day.dispatch - scenario.dispatch_max),
        "charge exceeds [0, storage_power]": np.maximum(-day.charge, day.charge - scenario.storage_power),
        "discharge exceeds [0, storage_power]": np.maximum(-day.discharge, day.discharge - scenario.storage_power),
        "curtail exceeds [0, solar]": np.maximum(-day.curtail, day.curtail - solar),
        "stored energy exceeds its range (5)": np.maximum(least - states, states - scenario.storage_max),
        "grid misses the balance (6)": np.abs(day.grid - residual),
        "grid exports": np.zeros(shape) if scenario.export else -day.grid,
    }
    scale = max(1.0, *(float(np.abs(each).max()) for each in (*day, scenario.storage_max)))
    for what, excess in missed.items():
        hour, k = np.unravel_index(int(excess.argmax()), shape)
        if excess[hour, k] > SLACK * scale:
            raise ValueError(f"{what} by {excess[hour, k]:.3g} (prosumer_{k}, hour {hour})")
    return day


def _responses(
    scenario: Scenario, schedules: Schedules, players: Mask, limits: Limits
) -> tuple[Schedules, Floats, Floats]:
    """Best responses of the players, each to the same schedules, and everybody's cost before and after ``(N,)``.

    One program: they do not see each other. With free reactive flows there must be one player only.
    """
    net = rules.net_demand(schedules)
    program = Program()
    blocks.add_devices(program, scenario, players)
    _add_purchase(program, scenario, schedules, players)
    low, high = _room(scenario, limits, schedules, net)
    if not scenario.export:
        low = np.maximum(low, 0.0)
    # The schedules as played are always allowed, but for what rounding takes.
    program.bound("grid", np.minimum(low, schedules.grid), np.maximum(high, schedules.grid))
    blocks.add_balance(program, scenario, players, schedules.trade.sum(axis=-1))
    if not scenario.reactive:
        others = np.where(players, blocks.base_demand(scenario), net)
        base, reactive = rules.bus_demand(scenario.params, others)
        ends = [np.where(players, end, net) for end in blocks.demand_range(scenario)]
        least, most = (rules.bus_demand(scenario.params, end)[0] for end in ends)
        blocks.add_network(program, scenario, limits, base, least, most, reactive)
    best, _ = blocks.polished(scenario, program, _solved(program, scenario).x, schedules.trade)
    before = _own_cost(scenario, schedules, schedules)
    after = _own_cost(scenario, best, schedules)
    better = players & (after < before)
    chosen = [np.where(better.reshape((-1,) + (1,) * (a.ndim - 2)), a, b) for a, b in zip(best, schedules, strict=True)]
    return Schedules(*chosen), before, np.where(better, after, before)


def _shadow(scenario: Scenario, schedules: Schedules, multipliers: dict[str, Floats]) -> Floats:
    """What multipliers as prices add to each prosumer's cost ``(N,)``."""
    price = blocks.slots_of(scenario, multipliers["trade"])
    extra = (price * schedules.trade).sum(axis=-1) + multipliers["import"][:, None] * schedules.grid
    extra = extra + multipliers["nodal"][:, scenario.bus] * rules.net_demand(schedules)
    return scenario.step_hours * extra.sum(axis=0)


def _own_cost(scenario: Scenario, own: Schedules, others: Schedules) -> Floats:
    """J_i ``(N,)`` of each prosumer's own schedule while the others' purchases are those of ``others``."""
    moved = own.grid + others.grid.sum(axis=1, keepdims=True) - others.grid
    price = rules.at(scenario.grid_slope, None)[:, None] * (moved + rules.at(scenario.passive_total, None)[:, None])
    spent = rules.bill(scenario.params, own)
    hourly = spent.cost - spent.grid + scenario.step_hours * price * own.grid
    return hourly.sum(axis=0)


def _add_purchase(
    program: Program, scenario: Scenario, schedules: Schedules, players: Mask, price: Floats | float = 0.0
) -> None:
    """p^mg of each player at d(σ + b), the others' purchases as in ``schedules``, and a price on top; (11)."""
    slope, passive = rules.at(scenario.grid_slope, None), rules.at(scenario.passive_total, None)
    others = schedules.grid.sum(axis=1, keepdims=True) - schedules.grid + passive[:, None]
    cost = scenario.step_hours * slope[:, None]
    on = np.broadcast_to(players, others.shape)
    program.add("grid", on, 2.0 * cost, cost * others + price)


def _relaxed(scenario: Scenario, schedules: Schedules) -> Limits:
    """Shared limits, those that schedules exceed moved to where they are."""
    net = rules.net_demand(schedules)
    limits = Limits.of(scenario)
    state = rules.state_of(scenario.params, net)
    if scenario.reactive:
        line, low, high, angle = state.apparent, state.voltage, state.voltage, abs(state.angle)
    else:
        # How much is missed with the best reactive flows.
        program = Program()
        for name in DEVICES:
            program.add(name, np.zeros(net.shape, bool))
        base, _ = rules.bus_demand(scenario.params, net)
        blocks.add_network(program, scenario, limits, base, base, base, np.zeros(base.shape))
        program.relax({name: cost for name, (cost, _, _) in BREAKABLE.items()})
        families = ("line_cone", "voltage_min", "voltage_max", "angle_min", "angle_max")
        missed: dict[str, Floats | float] = dict.fromkeys(families, 0.0)
        if program.size:
            x = _solved(program, scenario).x
            # A little more than is missed, so that there are inner points.
            missed |= {name: np.maximum(program.value("slack_" + name, x), 0.0) for name in families}
            missed |= {name: missed[name] + ROOM / cost for name, (cost, _, _) in BREAKABLE.items() if name in missed}
        line, angle = limits.line + missed["line_cone"], limits.angle + missed["angle_min"] + missed["angle_max"]
        low, high = limits.voltage_min - missed["voltage_min"], limits.voltage_max + missed["voltage_max"]
    return Limits(
        np.minimum(limits.import_min, state.grid_active),
        np.maximum(limits.import_max, state.grid_active),
        np.maximum(limits.line, line),
        np.minimum(limits.voltage_min, low),
        np.maximum(limits.voltage_max, high),
        np.maximum(limits.angle, angle),
    )


def _room(scenario: Scenario, limits: Limits, schedules: Schedules, net: Floats) -> tuple[Floats, Floats]:
    """Range ``(H, N)`` of each prosumer's purchase within the shared limits while all others' stay [kW].

    With free reactive flows (12) alone counts here.
    """
    params = scenario.params
    state = rules.state_of(params, net)
    least = [(limits.import_min - state.grid_active)[:, None]]
    most = [(limits.import_max - state.grid_active)[:, None]]
    if scenario.reactive:
        cap = np.sqrt(np.maximum(limits.line**2 - state.reactive**2, 0.0))
        for at, one in enumerate(params.downstream[:, scenario.bus]):
            least.append(np.where(one > 0.0, (-cap - state.active)[:, at, None], -np.inf))
            most.append(np.where(one > 0.0, (cap - state.active)[:, at, None], np.inf))
        for matrix, value, low, high in (
            (params.R, state.voltage, limits.voltage_min, limits.voltage_max),
            (params.X, state.angle, -limits.angle, limits.angle),
        ):
            for at, drop in enumerate(matrix[:, scenario.bus]):
                reached = drop > 0.0
                drop = np.where(reached, drop, 1.0)
                least.append(np.where(reached, (value - high)[:, at, None] / drop, -np.inf))
                most.append(np.where(reached, (value - low)[:, at, None] / drop, np.inf))
    shape = (scenario.hours, scenario.size)
    low, high = np.full(shape, -np.inf), np.full(shape, np.inf)
    for each in least:
        low = np.maximum(low, each)
    for each in most:
        high = np.minimum(high, each)
    return schedules.grid + low, schedules.grid + high


def _solved(program: Program, scenario: Scenario) -> Solution:
    solution = program.solve()
    if not solution.found:
        raise RuntimeError(f"Clarabel gave up on best responses in {scenario.name!r}: {solution.status}")
    return solution
