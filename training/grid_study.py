"""Days of the network-constrained market that its figures are made of, each solved once, and rows of claims."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from p2penv.grid import Scenario, load_scenario, rules
from p2penv.grid.equilibrium import Equilibrium, InfeasibleError, Kind, variational_equilibrium

Floats = NDArray[np.float64]
Rows = list[dict[str, Any]]
Part = tuple[list[Path], Rows]
Changes = dict[str, Any]

BLUE, RED, DARK, GREY = "#0072b2", "#d55e00", "#22272e", "#aab3bd"
OTHER_PROFILES = "the paper's profiles are not published"


@dataclass
class Study:
    """Days of the same businesses under changed parameters, each solved once."""

    prosumers: int = 50
    density: float = 0.6
    seed: int = 0
    _scenarios: dict[Any, Scenario] = field(default_factory=dict)
    _found: dict[Any, Equilibrium] = field(default_factory=dict)
    _limited: list[Limited] = field(default_factory=list)

    def scenario(self, **changes: Any) -> Scenario:
        """The day with changed options of :func:`p2penv.grid.load_scenario`."""
        key = tuple(sorted(changes.items()))
        if key not in self._scenarios:
            self._scenarios[key] = load_scenario(
                "ieee37", prosumers=self.prosumers, density=self.density, seed=self.seed, scale="paper", **changes
            )
        return self._scenarios[key]

    def solve(self, kind: Kind = "nash", **changes: Any) -> Equilibrium:
        """Its equilibrium."""
        key = (kind, *sorted(changes.items()))
        if key not in self._found:
            self._found[key] = variational_equilibrium(self.scenario(**changes), kind)
        return self._found[key]

    def tightened(self) -> list[Limited]:
        """The day without line limits and with less and less room on the lines."""
        if not self._limited:
            self._limited = tightened(self.scenario())
        return self._limited


class Flows(NamedTuple):
    """What a day looks like from above; H hours."""

    imported: Floats  # (H,) σ [kW]
    supplied: Floats  # (H,) dispatched [kW]
    price: Floats  # (H,) of the grid [€/kWh]
    trade_price: Floats  # (H,) c^tr + μ^tr, mean over what is traded; NaN where nothing is [€/kWh]
    traded: float  # [kWh]


def flows(scenario: Scenario, found: Equilibrium) -> Flows:
    """Totals of a solved day."""
    schedules = found.schedules
    imported = schedules.grid.sum(axis=1)
    bought = np.maximum(schedules.trade, 0.0)
    # Buyers of a pair pay c^tr and the multiplier of reciprocity, which has the sign of who is first in the pair.
    price = scenario.params.trade_cost + found.multipliers["trade"][:, scenario.pair]
    total = bought.sum(axis=(1, 2))
    mean = np.divide((price * bought).sum(axis=(1, 2)), total, out=np.full(len(total), np.nan), where=total > 1e-6)
    grid = rules.grid_price(scenario.params, imported)
    return Flows(imported, schedules.dispatch.sum(axis=1), grid, mean, scenario.step_hours * float(total.sum()))


def claim(name: str, paper: Any, ours: Any, holds: Any, note: str = "") -> dict[str, Any]:
    """A row of the table of claims; ``holds`` may be empty."""
    return {"claim": name, "paper": paper, "ours": ours, "holds": holds if holds == "" else bool(holds), "note": note}


def text(values: Any, form: str = ".2f") -> str:
    """Numbers side by side."""
    return ", ".join(f"{number:{form}}" for number in np.atleast_1d(values))


# --- Who gains from trading -------------------------------------------------------------------------------------------


def count_losers(saved: Floats) -> int:
    """How many save less than nothing, beyond rounding."""
    return int((saved < -1e-6).sum())


def state_of(scenario: Scenario, found: Equilibrium) -> rules.NetworkState:
    """The network in all hours of a solved day."""
    return rules.state_of(scenario, rules.net_demand(found.schedules))


def room_left(scenario: Scenario, share: float) -> Scenario:
    """Line limits that leave prosumers a share of the room above the peaks of the passive loads."""
    passive = rules.passive_state(scenario).apparent.max(axis=0)
    return scenario.replace(line_limit=np.maximum(passive + share * (scenario.line_limit - passive), 1e-3))


class Limited(NamedTuple):
    """A day under line limits, solved for the v-GNE and for the least total cost; None where infeasible."""

    share: float  # of the lines' room; infinite without limits
    scenario: Scenario
    nash: Equilibrium | None
    social: Equilibrium | None


def tightened(base: Scenario) -> list[Limited]:
    """Days without line limits, and with ever less room, down to within 1 % of the least that is feasible."""
    days = [_limited(np.inf, base.replace(line_limit=np.inf)), _limited(1.0, base)]
    low, high = 0.0, 1.0
    if days[-1].nash is None:
        return days
    while high - low > 0.01:
        share = 0.5 * (low + high)
        days.append(_limited(share, room_left(base, share)))
        low, high = (share, high) if days[-1].nash is None else (low, share)
    return sorted(days, key=lambda each: -each.share)


def _limited(share: float, scenario: Scenario) -> Limited:
    try:
        return Limited(share, scenario, variational_equilibrium(scenario), variational_equilibrium(scenario, "social"))
    except InfeasibleError:
        return Limited(share, scenario, None, None)
