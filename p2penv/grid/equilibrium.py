"""Equilibria of the network-constrained market as sparse convex programs; best responses are exact too.

Source: Belgioioso, Ananduta, Grammatico, Ocampo-Martinez, IEEE Trans. Smart Grid 2022 (arXiv 2107.13444).

The grid's price d_h(σ + b) is common to all, so the game has the exact potential

    Φ = Σ_i (f^di + f^st + f^tr) + Σ_h d_h [(σ² + Σ_i (p^mg_i)²)/2 + bσ],

and its variational equilibrium is the minimiser of Φ over everybody's constraints. Price takers (Wardrop) do not see
what their own purchase does to the price: Σ_i (p^mg_i)² is dropped. The social optimum has Σ_h d_h (σ² + bσ), what
prosumers pay together; bills of passive loads are left out. Without trade: Nash with p^tr = 0. (17b) follows from (6),
(8b) and (13) and is left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from p2penv.core import validation
from p2penv.core.params import freeze
from p2penv.grid import blocks, rules
from p2penv.grid.blocks import BREAKABLE, Limits
from p2penv.grid.program import EQUAL, Floats, Program, Solution, kkt_residual
from p2penv.grid.responses import (
    Response,
    best_response,
    check_schedules,
    competitive_gain,
    exploitability,
    shadow_cost,
)
from p2penv.grid.rules import Schedules
from p2penv.grid.scenario import Scenario

Kind = Literal["nash", "wardrop", "social", "no_trade"]

__all__ = [
    "Equilibrium",
    "InfeasibleError",
    "Response",
    "best_response",
    "bill",
    "check_schedules",
    "competitive_gain",
    "exploitability",
    "potential_program",
    "shadow_cost",
    "variational_equilibrium",
]


class InfeasibleError(ValueError):
    """No schedules satisfy everybody's constraints; the message names which are missed."""


@dataclass(frozen=True, eq=False)
class Equilibrium:
    """Schedules that minimise a potential, and the multipliers of their constraints.

    Multipliers by name, with a positive sign where they are said to cost:

    =====================================  ======  =====================================================================
    ``balance``                            (H, N)  of (6): cost of one more kWh of demand, apart from ``nodal`` [€/kWh]
    ``trade``                              (H, M)  μ^tr of (8b): paid by who receives, to who delivers, on top of c^tr;
                                                   the middle of its range where it has one, as in pairs that do not
                                                   trade or are at their limit [€/kWh]
    ``import``                             (H,)    of (12): cost of one more kWh from the grid, beside its price;
                                                   negative at the lower limit [€/kWh]
    ``nodal``                              (H, B)  of (13): cost of one more kWh of net demand at a bus, by (16) [€/kWh]
    ``line_max``, ``line_min``             (H, L)  ≥ 0 of (16a), towards and from the bus a line feeds: what one kW more
                                                   of room would save [€/kWh]; with free reactive flows ``line_cone``
    ``voltage_min/_max``, ``angle_min/_max``  (H, B)  ≥ 0 of (16) [€/h per p.u. or rad]
    ``state``                              (H, N)  of (5): worth of a kWh stored at the end of the hour [€/kWh]
    =====================================  ======  =====================================================================
    """

    kind: Kind
    schedules: Schedules
    cost: Floats  # (N,) J_i of the day at contract prices [€]
    potential: float  # what was minimised [€]
    multipliers: dict[str, Floats]
    residual: float  # relative, of the Karush-Kuhn-Tucker conditions; see program.kkt_residual
    iterations: int  # of the interior-point method
    seconds: float  # of the solver


def variational_equilibrium(scenario: Scenario, kind: Kind = "nash") -> Equilibrium:
    """Exact equilibrium of the day.

    Purchases σ, devices with strictly convex costs, and the sum of f^tr are unique; who trades with whom need not be,
    and with it the single prosumer's cost at contract prices: interior points end in the middle of what is optimal.

    Args:
        scenario: the market.
        kind: ``"nash"``: the variational generalised Nash equilibrium; ``"wardrop"``: of price takers; ``"social"``:
            least cost of all prosumers together; ``"no_trade"``: Nash with p^tr = 0.

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
        raise RuntimeError(f"Clarabel gave up on the {kind} program of {scenario.name!r}: {solution.status}")
    schedules, x = blocks.polished(scenario, program, solution.x)
    multipliers = _multipliers(scenario, program, solution)
    for array in multipliers.values():
        array.flags.writeable = False
    return Equilibrium(
        kind,
        freeze(schedules),
        rules.costs(scenario, schedules),
        float(rules.potential(scenario, schedules, kind)),
        multipliers,
        kkt_residual(program, x, solution.z),
        solution.iterations,
        solution.seconds,
    )


def potential_program(scenario: Scenario, kind: Kind = "nash") -> Program:
    """The convex program of :func:`variational_equilibrium`."""
    program, limits = Program(), Limits.of(scenario)
    hours, step = np.ones(scenario.hours, bool), scenario.step_hours
    everybody = np.ones((scenario.hours, scenario.size), bool)
    slope, passive = rules.at(scenario.grid_slope, None), rules.at(scenario.passive_total, None)
    blocks.add_devices(program, scenario, everybody[0])
    program.add("grid", everybody, step * slope[:, None] if kind in ("nash", "no_trade") else 0.0)
    program.bound("grid", None if scenario.export else 0.0, None)
    balance = blocks.add_balance(program, scenario, everybody[0])
    if kind != "no_trade":
        blocks.add_pairs(program, scenario, balance)
    weight = 2.0 if kind == "social" else 1.0
    total = program.add("total", hours, weight * step * slope, step * slope * passive)
    sums = program.require("total", EQUAL, hours, 0.0, (total, -1.0))
    program.extend(EQUAL, sums[:, None], program.variables["grid"], 1.0)
    low, high = blocks.demand_range(scenario)
    blocks.add_import(program, limits, passive, low.sum(axis=1), high.sum(axis=1))
    base, reactive = rules.bus_demand(scenario.params, blocks.base_demand(scenario))
    least, most = (rules.bus_demand(scenario.params, each)[0] for each in (low, high))
    blocks.add_network(program, scenario, limits, base, least, most, reactive)
    # Hours are coupled by storage alone: with an hour's charges last, factors fill up within hours only.
    program.eliminate_late(program.variables["state"])
    return program


def bill(scenario: Scenario, equilibrium: Equilibrium) -> Floats:
    """:func:`shadow_cost` ``(N,)`` of an equilibrium at its own prices [€].

    At these prices nobody wants other trades or devices, the others' purchases as they are. Still trading need not be
    better for everybody than no trade, for it moves the others' purchases and with them the grid's price. A prosumer
    could still buy p⁰, what it would without trade, so that trading saves it at least

        Σ_h T_s p⁰_h [d_h (σ⁰_h − σ_h) − import_h − nodal_h],

    σ⁰ and σ being the others' purchases without and with trade. Who buys in hours in which others now buy more, to
    store and sell it later, may lose.
    """
    return shadow_cost(scenario, equilibrium.schedules, equilibrium.multipliers)


def _multipliers(scenario: Scenario, program: Program, solution: Solution) -> dict[str, Floats]:
    """Multipliers by name as :class:`Equilibrium` has them: per kWh, where rows are in kW for an hour of T_s."""
    step = scenario.step_hours
    by_bus, by_line = (np.zeros((scenario.hours, scenario.feeder.size - k)) for k in (0, 1))
    found = {name: program.multiplier(name, solution.z) / step for name in program.rows}
    # Both of a pair say what the trade is worth to them, up to a tariff each: in the middle both are content.
    worth = found["balance"][:, scenario.edges] - scenario.trade_cost
    nodal = by_bus.copy()
    nodal[:, scenario.feeder.fed] = -found["flow"]
    result = {
        "balance": found["balance"],
        "trade": worth.mean(axis=-1),
        "import": found["import_max"] - found["import_min"],
        "nodal": nodal,
        "state": step * found["storage"],
    }
    lines = {name: found.get(name, by_line) for name in ("line_max", "line_min", "line_cone")}
    return result | lines | {name: found[name] for name in ("voltage_min", "voltage_max", "angle_min", "angle_max")}


def _why_infeasible(scenario: Scenario, kind: Kind) -> str:
    """Which limits are missed, and by how much, when as little as possible is."""
    program = potential_program(scenario, kind)
    program.relax({name: cost for name, (cost, _, _) in BREAKABLE.items()})
    x = program.solve().x
    missed = []
    for name in [name for name in BREAKABLE if "slack_" + name in program.variables]:
        cost, unit, words = BREAKABLE[name]
        amounts = program.value("slack_" + name, x)
        where = np.unravel_index(int(amounts.argmax()), amounts.shape)
        if cost * amounts[where] > 1e-7:
            missed.append(f"{words}{blocks.place(scenario, name, where)} by {amounts[where]:.3g} {unit}")
    what = "; ".join(missed) or "none found"
    return f"no schedules of {scenario.name!r} ({kind}) satisfy all constraints; missed at least, where most: {what}"
