"""Iterations and time of the distributed algorithms of the network-constrained market, beside the exact equilibrium.

Source: Belgioioso, Ananduta, Grammatico, Ocampo-Martinez, IEEE Transactions on Smart Grid 2022, Algorithm 1 and the
scalability test of section IV; its review asks for ADMM on the same problem and for times.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from baselines.grid_algorithm import Run, admm, algorithm1
from p2penv.grid import Scenario, load_scenario
from p2penv.grid.equilibrium import Equilibrium, variational_equilibrium
from training.figures import legend, panels, save

Rows = list[dict[str, Any]]

BLUE, RED, GREY = "#0072b2", "#d55e00", "#aab3bd"
SIZES = (0.8, 1.0, 1.2, 1.6)  # of the prosumers; the paper's 40 to 80 of 50
DENSITIES = (0.2, 0.4, 0.6, 0.8, 1.0)
TOLERANCE = 1e-2  # of both residuals [cents/kWh, kW]
MOST = 20_000
SOLVERS: dict[str, Callable[..., Run]] = {"Algorithm 1": algorithm1, "ADMM": admm}


class Trial(NamedTuple):
    """One instance, solved exactly and by both algorithms."""

    scenario: Scenario
    exact: Equilibrium
    runs: dict[str, Run]


def trial(prosumers: int, density: float, seed: int) -> Trial:
    """Businesses with so many prosumers, of whose pairs this part trades."""
    scenario = load_scenario(prosumers=prosumers, density=density, seed=seed, scale="paper")
    runs = {name: solver(scenario, TOLERANCE, MOST) for name, solver in SOLVERS.items()}
    return Trial(scenario, variational_equilibrium(scenario), runs)


def distance(found: Run, exact: Equilibrium) -> float:
    """Largest difference of what prosumers buy from the grid in an hour, all together [kW]."""
    return float(np.abs(found.schedules.grid.sum(axis=1) - exact.schedules.grid.sum(axis=1)).max())


def trials(prosumers: int, density: float, seed: int) -> dict[str, list[Trial]]:
    """Instances of several sizes, and of several densities; the instance of the study is part of both."""
    sizes = {max(4, round(size * prosumers)) for size in SIZES}
    first = {count: trial(count, density, seed) for count in sorted(sizes)}
    dense = [first[prosumers] if part == density else trial(prosumers, part, seed) for part in DENSITIES]
    return {"prosumers": list(first.values()), "density": dense}


def iterations(found: dict[str, list[Trial]], out: Path) -> tuple[list[Path], Rows]:
    """Iterations and time for each prosumer against size and density."""
    rows: Rows = []
    for field, each in found.items():
        for case, density in zip(each, DENSITIES if field == "density" else [None] * len(each), strict=True):
            for name, run in case.runs.items():
                rows.append(
                    {
                        "against": field,
                        "prosumers": case.scenario.size,
                        "pairs": case.scenario.pairs,
                        "density": density if density is not None else "",
                        "algorithm": name,
                        "iterations": run.iterations,
                        "converged": run.converged,
                        "seconds": run.seconds,
                        "seconds_per_prosumer": run.seconds / case.scenario.size,
                        "distance_kw": distance(run, case.exact),
                        "exact_seconds": case.exact.seconds,
                    }
                )
    figure, *axes = panels("Iterations and time against the number of prosumers", "prosumers", "iterations",
                           "seconds per\nprosumer")  # fmt: skip
    for name, colour in zip(SOLVERS, (BLUE, RED), strict=True):
        part = [row for row in rows if row["algorithm"] == name and row["against"] == "prosumers"]
        for panel, key in zip(axes, ("iterations", "seconds_per_prosumer"), strict=True):
            panel.plot(
                [row["prosumers"] for row in part], [row[key] for row in part], "o-", color=colour, ms=4, label=name
            )
    for panel in axes:
        panel.set_ylim(bottom=0.0)
    legend(axes[0])
    paths = save(out, "iterations-prosumers", figure, rows)
    figure, *axes = panels("Iterations and time against the density of trade", "part of all pairs that trade",
                           "iterations", "seconds per\nprosumer")  # fmt: skip
    for name, colour in zip(SOLVERS, (BLUE, RED), strict=True):
        part = [row for row in rows if row["algorithm"] == name and row["against"] == "density"]
        for panel, key in zip(axes, ("iterations", "seconds_per_prosumer"), strict=True):
            panel.plot(DENSITIES, [row[key] for row in part], "o-", color=colour, ms=4, label=name)
    for panel in axes:
        panel.set_ylim(bottom=0.0)
    legend(axes[0])
    dense = [row for row in rows if row["against"] == "density"]
    return [*paths, *save(out, "iterations-density", figure, dense)], rows


def convergence(case: Trial, out: Path) -> tuple[list[Path], dict[str, Run]]:
    """Residuals and total purchase of both algorithms by iteration."""
    target = case.scenario.step_hours * float(case.exact.schedules.grid.sum())
    figure, *axes = panels("Algorithm 1 and ADMM", "iteration", "largest residual", "purchase")
    rows: Rows = []
    for (name, run), colour in zip(case.runs.items(), (BLUE, RED), strict=True):
        residual = np.maximum(run.trace.stationarity, run.trace.infeasibility)
        gap = np.abs(run.trace.total - target) / max(target, 1.0)
        at = np.arange(1, run.iterations + 1)
        axes[0].plot(at, residual, color=colour, lw=1.2, label=name)
        axes[1].plot(at, gap, color=colour, lw=1.2)
        rows += [{"algorithm": name, "iteration": int(k), "stationarity": run.trace.stationarity[k - 1],
                  "infeasibility": run.trace.infeasibility[k - 1], "purchase_gap": gap[k - 1],
                  "seconds": run.trace.seconds[k - 1]} for k in at]  # fmt: skip
    axes[0].axhline(TOLERANCE, color=GREY, lw=0.8)
    for panel in axes:
        panel.set_yscale("log")
        panel.set_xscale("log")
    axes[1].set_ylabel("relative gap of\nthe purchase", fontsize=9)
    legend(axes[0])
    return save(out, "algorithm1-admm", figure, rows), case.runs
