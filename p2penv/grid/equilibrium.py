"""Equilibria of the network-constrained market as sparse convex programs; best responses and exploitability, exact.

Source: Belgioioso, Ananduta, Grammatico, Ocampo-Martinez, IEEE Trans. Smart Grid 2022 (arXiv 2107.13444).

The grid price d_h(σ + b) is common to all, so the game has the exact potential

    Φ = Σ_i (f^di + f^st + f^tr) + Σ_h d_h [(σ² + Σ_i (p^mg_i)²)/2 + bσ],

and its variational equilibrium is the minimiser of Φ over everybody's constraints. Wardrop prosumers do not see what
their own purchase does to the price: Σ_i (p^mg_i)² is dropped. The social optimum has Σ_h d_h (σ² + bσ), what prosumers
pay together; passive consumers' bills are left out. Without trade is the equilibrium with p^tr = 0.

(17b) follows from (6), (8b) and (13) and is left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

from p2penv.core import validation
from p2penv.grid import blocks, rules
from p2penv.grid.blocks import DEVICES, SHARED, Limits
from p2penv.grid.program import EQUAL, Floats, Program, Solution
from p2penv.grid.rules import Schedules

if TYPE_CHECKING:
    from p2penv.grid.scenario import Scenario

Kind = Literal["nash", "wardrop", "social", "no_trade"]


class InfeasibleError(ValueError):
    """No schedules satisfy everybody's constraints; the message names which are missed."""


@dataclass(frozen=True)
class Equilibrium:
    """Schedules that minimise a potential, and the multipliers of their constraints.

    Multipliers by name; prices per kWh of an hour of length T_s, so those of rows in kW are divided by T_s:

    ===================  ========  =========================================================================
    ``balance``          (H, N)    of (6): what one kWh more of demand costs prosumer i before network charges
    ``trade``            (H, M)    μ^tr of (8b): what who receives pays on top of c^tr, and who delivers gets;
                                   where it is not unique (no trade, or trade at its limit) the middle
    ``import``           (H,)      of (12): on each kWh from the grid; > 0 at the upper limit, < 0 at the lower
    ``line_max/_min``    (H, L)    of (16a) into and out of the child bus [€/kWh], ≥ 0
    ``voltage_min/_max`` (H, B)    of (16) [€/h per p.u.], ≥ 0
    ``angle_min/_max``   (H, B)    of (16) [€/h per rad], ≥ 0
    ``nodal``            (H, B)    of (13): what one kWh more of net demand at a bus costs by the limits (16)
    ``state``            (H, N)    of (5): what a stored kWh at the end of the hour is worth [€/kWh]
    ===================  ========  =========================================================================
    """

    kind: Kind
    schedules: Schedules
    cost: Floats  # (N,) J_i of the day with contract prices [€]
    potential: float  # what was minimised [€]
    multipliers: dict[str, Floats]
    residual: float  # of the Karush-Kuhn-Tucker conditions, relative; see :func:`kkt_residual`
    iterations: int  # of the interior-point method
    seconds: float  # of the solver


def variational_equilibrium(scenario: Scenario, kind: Kind = "nash") -> Equilibrium:
    """Exact equilibrium of the day.

    Args:
        scenario: the market.
        kind: ``"nash"``: the variational generalised Nash equilibrium; ``"wardrop"``: of price takers; ``"social"``:
            least total cost of the prosumers; ``"no_trade"``: Nash with p^tr = 0.

    Returns:
        Schedules ``(H, N)``, costs ``(N,)``, multipliers and the residual. Net trades of each prosumer and all other
        decisions are unique where costs are strictly convex; who trades with whom may not be.

    Raises:
        InfeasibleError: names constraints that no schedules satisfy together.
        MissingSolverError: Clarabel is not installed.
        ValueError: unknown kind.
        RuntimeError: the solver gave up.
    """
    validation.choice("kind", kind, get_args(Kind))
    program = potential_program(scenario, kind)
    solution = program.solve()
    if solution.infeasible:
        raise InfeasibleError(_why_infeasible(scenario, kind))
    if not solution.found:
        raise RuntimeError(f"Clarabel gave up on the {kind} program with status {solution.status}")
    schedules, x = _polished(scenario, program, solution)
    return Equilibrium(
        kind,
        schedules,
        rules.costs(scenario, schedules),
        _value(program, x),
        _multipliers(scenario, program, solution),
        kkt_residual(program, x, solution.z),
        solution.iterations,
        solution.seconds,
    )


def potential_program(scenario: Scenario, kind: Kind = "nash") -> Program:
    """The convex program of :func:`variational_equilibrium`."""
    program = Program()
    everybody, hours, step = np.ones(scenario.size, bool), scenario.hours, scenario.step_hours
    slope = scenario.grid_slope[:hours]
    passive, _ = blocks.passive(scenario)
    blocks.add_devices(program, scenario, everybody)
    own = step * slope[:, None] if kind in ("nash", "no_trade") else 0.0
    program.add("grid", np.ones((hours, scenario.size), bool), own)
    rows = blocks.add_balance(program, scenario, everybody, 0.0)
    if kind != "no_trade":
        blocks.add_pairs(program, scenario, rows)
    weight = 2.0 if kind == "social" else 1.0
    total = program.add("total", np.ones(hours, bool), weight * step * slope, step * slope * passive.sum(axis=-1))
    sums = program.require("total", EQUAL, np.ones(hours, bool), 0.0, (total, -1.0))
    program.extend(EQUAL, sums[:, None], program.variables["grid"], 1.0)
    low, high = blocks.demand_range(scenario)
    blocks.add_import(program, Limits.of(scenario), passive.sum(axis=-1), low.sum(axis=-1), high.sum(axis=-1))
    base, reactive = blocks.bus_demand(scenario)
    low, high = (blocks.at_buses(scenario, each - blocks.base_demand(scenario)) for each in (low, high))
    blocks.add_network(program, scenario, Limits.of(scenario), base, base + low, base + high, reactive)
    return program


def kkt_residual(program: Program, x: Floats, z: Floats) -> float:
    """Largest violation of the Karush-Kuhn-Tucker conditions of a program, worked out from its own data.

    Of stationarity relative to the largest price, of the constraints relative to the largest right-hand side, and of
    complementarity relative to the value, where what is below 1 counts as 1. Multipliers of inequalities are cut to
    their cones first, so that their sign cannot be wrong.
    """
    quadratic, linear, matrix, right, (equal, most, cones) = program.matrices()
    z = z.copy()
    z[equal : equal + most] = np.maximum(z[equal : equal + most], 0.0)
    rest = right - matrix @ x
    missed = np.concatenate([np.abs(rest[:equal]), np.maximum(-rest[equal : equal + most], 0.0), [0.0]])
    if cones:
        for vector, sign in ((z, 1.0), (rest, -1.0)):
            discs = vector[equal + most :].reshape(-1, 3)
            length = np.linalg.norm(discs[:, 1:], axis=1)
            if sign > 0:
                discs[:, 0] = np.maximum(discs[:, 0], length)
            else:
                missed = np.append(missed, np.maximum(length - discs[:, 0], 0.0))
    gradient = quadratic * x + linear
    stationary = np.abs(gradient + matrix.T @ z)
    # The slack of rows met exactly or missed a little is 0.
    gaps = np.abs(z[equal : equal + most] * np.maximum(rest[equal : equal + most], 0.0))
    cone_gap = abs(float(z[equal + most :] @ rest[equal + most :]))
    prices = max(float(np.abs(gradient).max(initial=0.0)), float(np.abs(z[:equal]).max(initial=0.0)))
    value = abs(float(gradient @ x))
    return max(
        float(stationary.max(initial=0.0)) / max(prices, 1e-12),
        float(missed.max()) / max(float(np.abs(right).max(initial=0.0)), 1.0),
        (float(gaps.sum()) + cone_gap) / max(value, 1.0),
    )


def _value(program: Program, x: Floats) -> float:
    quadratic, linear = np.concatenate(program.quadratic), np.concatenate(program.linear)
    return float(0.5 * (quadratic * x) @ x + linear @ x)


def _polished(scenario: Scenario, program: Program, solution: Solution) -> tuple[Schedules, Floats]:
    """Schedules inside all bounds, with (5), (6), (8b) and (13) exact, and the variables that go with them."""
    get = {name: program.value(name, solution.x) for name in program.variables}
    high = {"dispatch": scenario.dispatch_max, "charge": scenario.storage_power, "discharge": scenario.storage_power}
    high["curtail"] = scenario.solar[: scenario.hours]
    for name in DEVICES:
        get[name] = np.clip(get[name], 0.0, high[name])
    shape = (scenario.hours, scenario.size, scenario.partner.shape[1])
    trade = np.zeros(shape)
    if "received" in get:
        get["received"], get["delivered"] = (
            np.clip(get[name], 0.0, scenario.trade_max) for name in ("received", "delivered")
        )
        trade = blocks.in_slots(scenario, get["received"] - get["delivered"])
    demand = blocks.base_demand(scenario) + sum(sign * get[name] for name, sign in DEVICES.items())
    get["grid"] = demand - trade.sum(axis=-1)
    get["total"] = get["grid"].sum(axis=-1)
    if "state" in get:
        get["state"] = blocks.charge_states(scenario, get["charge"], get["discharge"])
    base, _ = blocks.passive(scenario)
    get["flow"] = (base + blocks.at_buses(scenario, demand)) @ blocks.Tree.of(scenario).downstream.T
    x = solution.x.copy()
    for name, index in program.variables.items():
        x[index[index >= 0]] = get[name][index >= 0]
    return Schedules(get["dispatch"], get["charge"], get["discharge"], get["curtail"], get["grid"], trade), x


def _multipliers(scenario: Scenario, program: Program, solution: Solution) -> dict[str, Floats]:
    step = scenario.step_hours
    found = {name: program.multiplier(name, solution.z) for name in program.rows}
    balance = found["balance"] / step
    first, second = (scenario.edges[:, k] for k in (0, 1))
    price = blocks.trade_costs(scenario)
    middle = 0.5 * (balance[:, first] - price[:, 0] + balance[:, second] - price[:, 1])
    feeds = np.zeros((scenario.hours, len(scenario.feeder.buses)))
    feeds[:, blocks.Tree.of(scenario).child] = -found["flow"] / step
    none = np.zeros(feeds.shape)
    lines = np.zeros((scenario.hours, len(scenario.line_limit)))
    result = {
        "balance": balance,
        "trade": middle,
        "import": (found["import_max"] - found["import_min"]) / step,
        "nodal": feeds,
        "state": -found["storage"],
    }
    for name in ("line_max", "line_min"):
        result[name] = found.get(name, lines) / step
    if "line_cone" in found:
        result["line_cone"] = found["line_cone"] / step
    for name in ("voltage_min", "voltage_max", "angle_min", "angle_max"):
        result[name] = found.get(name, none) / step
    return result


def _why_infeasible(scenario: Scenario, kind: Kind) -> str:
    """Which limits would have to be missed, when as little as possible is."""
    program = potential_program(scenario, kind)
    program.relax({**SHARED, "state_min": 0.01, "state_max": 0.01, "grid_min": 0.1})
    solution = program.solve(1e-8)
    units = {"voltage": "p.u.", "angle": "rad", "state": "kWh"}
    missed = []
    for name in program.variables:
        if name.startswith("slack_"):
            amounts = program.value(name, solution.x)
            where = np.unravel_index(int(amounts.argmax()), amounts.shape) if amounts.size else ()
            if where and amounts[where] > 1e-6 * (1.0 if not name.startswith(("slack_v", "slack_a")) else 1e-2):
                row = name.removeprefix("slack_")
                unit = units.get(row.split("_")[0], "kW")
                missed.append(f"{blocks.NAMES[row]}{blocks.place(scenario, row, where)} by {amounts[where]:.3g} {unit}")
    what = "; ".join(missed) if missed else "the solver found no single limit"
    return f"no schedules of {scenario.name!r} ({kind}) satisfy all constraints. Least misses, worst hour each: {what}"
