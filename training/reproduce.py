"""The papers' figures, regenerated from the exact solvers as PNG and CSV."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from p2penv.communication import Scenario, load_scenario, rules
from p2penv.communication.equilibrium import Equilibrium, coordinated, variational_equilibrium
from p2penv.communication.render import FAINT, INK, network_figure
from training.figures import panels, save

Floats = NDArray[np.float64]

BUDGETS = np.geomspace(0.1, 100.0, 61)  # A [nat]
SHIFTS = np.linspace(0.25, 8.0, 156)  # α [MWh], every 0.05
SMALL = np.linspace(0.0, 3.0, 61)  # α of single agents [MWh]
# Colour-blind safe (Okabe and Ito); the others are told apart by their labels.
NAMED = {3: "#0072b2", 8: "#009e73", 9: "#d55e00", 11: "#cc79a7"}
OTHER = "#aab3bd"
PEER, PLANNER, TRUTH = "#0072b2", "#d55e00", "#22272e"


def communication(out: Path) -> list[Path]:
    """Figures 1 to 5 of the communication game's paper, and two runs it only describes.

    Source: Shilov, Le Cadre, Bušić, section 4.2. Nominal demand and renewable generation are printed only
    inside the paper's Figure 1, so the scenario's are calibrated: of them only Y = Σy matters here. Its colour
    range (1.129e-3 to 2.827e-2 $/MWh) follows from neither form of the privacy price; both are in the table.
    Prices in the heterogeneous run are drawn at random, since the paper gives none.

    Args:
        out: folder, made if missing; every file appears in one step.

    Returns:
        The files written, a picture and a table for each figure.
    """
    scenario = load_scenario("ieee14")
    return [
        *_privacy_price(scenario, out),
        *_utility_gaps(scenario, out, "figure2-gap-budget", "privacy_budget", BUDGETS),
        *_utility_gaps(scenario, out, "figure3-gap-shift", "max_shift", SHIFTS),
        *_social_cost(scenario, out, "figure4-social-budget", "privacy_budget", BUDGETS),
        *_social_cost(scenario, out, "figure5-social-shift", "max_shift", SHIFTS),
        *_heterogeneous_prices(scenario, out),
        *_small_shifts(scenario, out),
    ]


def _gap(scenario: Scenario, played: Equilibrium) -> Floats:
    """Utility gap ``(N,)``: expected cost at truthful play minus that of the profile [$]."""
    params = scenario.params()
    gap = rules.utility_gap(params, params.base_load, played.shift.sum(), played.variance.sum())
    return np.asarray(gap)


def _privacy_price(scenario: Scenario, out: Path) -> list[Path]:
    played = variational_equilibrium(scenario)
    paper = rules.privacy_price(scenario, played.shift, "paper")
    kkt = rules.privacy_price(scenario, played.shift, "kkt")
    rows = [
        {
            "agent": n,
            "shift_mwh": played.shift[n],
            "variance_mwh2": played.variance[n],
            "paper": paper[n],
            "kkt": kkt[n],
        }
        for n in range(scenario.size)
    ]
    figure = network_figure(
        scenario,
        paper,
        title=f"Privacy price at the equilibrium (form of Proposition 11){_calibrated(scenario)}",
        shift=played.shift,
    )
    return save(out, "figure1-privacy-price", figure, rows)


def _utility_gaps(scenario: Scenario, out: Path, name: str, field: str, values: Floats) -> list[Path]:
    gaps = np.stack([_gap(case, variational_equilibrium(case)) for case in _cases(scenario, field, values)])
    figure, axes = _axes(f"Utility gap of each agent{_calibrated(scenario)}", field, "Utility gap [$]")
    _agent_lines(axes, values, gaps)
    rows = [{field: value, **_columns("gap_", row)} for value, row in zip(values, gaps, strict=True)]
    return save(out, name, figure, rows)


def _social_cost(scenario: Scenario, out: Path, name: str, field: str, values: Floats) -> list[Path]:
    rows = []
    for value, case in zip(values, _cases(scenario, field, values), strict=True):
        zero = np.zeros(case.size)
        truthful = float(rules.expected_cost(case, zero, rules.least_variance(case, zero)).sum())
        decrease = {
            "peer_to_peer": float(_gap(case, variational_equilibrium(case)).sum()),
            "coordinated": float(_gap(case, coordinated(case)).sum()),
            "truthful": 0.0,
        }
        rows.append({field: value, **decrease, "truthful_social_cost": truthful})
    figure, axes = _axes(f"Social cost decrease{_calibrated(scenario)}", field, "Decrease from truthful reports [$]")
    lines = (("coordinated", PLANNER, "--"), ("peer_to_peer", PEER, "-"), ("truthful", TRUTH, ":"))
    for key, colour, style in lines:
        axes.plot(values, [row[key] for row in rows], style, color=colour, lw=2.0, label=key.replace("_", "-"))
    axes.set_ylim(bottom=-0.6)
    axes.legend(frameon=False, fontsize=9, loc="center right", labelcolor=INK)
    return save(out, name, figure, rows)


def _heterogeneous_prices(scenario: Scenario, out: Path) -> list[Path]:
    """Prices away from node 0 differ; what node 0 gains is bookkeeping, it books the whole imbalance (5)."""
    size = scenario.size
    prices = np.random.default_rng(0).uniform(0.5, 1.5, (size, size))
    prices[0], prices[:, 0] = scenario.root_price, scenario.root_price
    cases = {
        "heterogeneous": scenario.replace(trading_price=(scenario.root_price, prices)),
        "homogeneous_root": scenario.replace(bookkeeping="root"),
        "homogeneous_each": scenario,
    }
    gaps = {key: _gap(case, variational_equilibrium(case)) for key, case in cases.items()}
    rows = [{"agent": n, **{key: gap[n] for key, gap in gaps.items()}} for n in range(size)]
    title = f"Heterogeneous trading prices: node 0 gains by bookkeeping{_calibrated(scenario)}"
    figure, axes = _axes(title, "agent", "Utility gap [$]")
    agents = np.arange(size)
    axes.bar(
        agents - 0.2,
        gaps["heterogeneous"],
        0.38,
        color=PEER,
        label="heterogeneous $c_{nm}$, node 0 books the rest (5)",
    )
    axes.bar(
        agents + 0.2,
        gaps["homogeneous_each"],
        0.38,
        color=PLANNER,
        label="homogeneous $c$, each books its own (3)",
    )
    axes.plot(
        agents - 0.2,
        gaps["homogeneous_root"],
        "D",
        color=TRUTH,
        ms=4,
        label="homogeneous $c$, node 0 books the rest",
    )
    axes.axhline(0.0, color=FAINT, lw=0.8)
    axes.set_xticks(agents)
    axes.legend(frameon=False, fontsize=9, labelcolor=INK)
    return save(out, "heterogeneous-prices", figure, rows)


def _small_shifts(scenario: Scenario, out: Path) -> list[Path]:
    """A small α for nodes 3 and 8 alone bounds their influence on the total of the reports."""
    rows, gaps = [], []
    for value in SMALL:
        reach = scenario.max_shift.copy()
        reach[[3, 8]] = value
        case = scenario.replace(max_shift=reach)
        played = variational_equilibrium(case)
        gaps.append(_gap(case, played))
        row = {
            "max_shift_3_8": value,
            "total_shift_mwh": float(played.shift.sum()),
            "price": float(played.price),
        }
        rows.append({**row, "social_decrease": float(gaps[-1].sum()), **_columns("gap_", gaps[-1])})
    title = f"Small shifts for nodes 3 and 8 alone{_calibrated(scenario)}"
    figure, upper, lower = _axes(title, "max_shift_3_8", "Utility gap [$]", "Total shift Σx [MWh]")
    _agent_lines(upper, SMALL, np.stack(gaps))
    lower.plot(SMALL, [row["total_shift_mwh"] for row in rows], color=TRUTH, lw=1.6)
    return save(out, "small-shift-3-8", figure, rows)


def _cases(scenario: Scenario, field: str, values: Floats) -> list[Scenario]:
    return [scenario.replace(**{field: value}) for value in values]


def _columns(prefix: str, values: Floats) -> dict[str, float]:
    return {f"{prefix}{n}": float(value) for n, value in enumerate(values)}


def _calibrated(scenario: Scenario) -> str:
    return f"\ncalibrated net load $Y$ = {scenario.private_information.sum():.0f} MWh"


_LABELS = {
    "privacy_budget": "Privacy budget $A_n$, the same for all agents [nat]",
    "max_shift": r"Largest shift $\alpha_n$, the same for all agents [MWh]",
    "max_shift_3_8": r"Largest shift $\alpha_3 = \alpha_8$, that of the others is 3 [MWh]",
    "agent": "Agent",
}


def _axes(title: str, field: str, *labels: str) -> tuple[Any, ...]:
    """A figure and one panel for each label, above each other over the same field."""
    return panels(title, _LABELS[field], *labels, log=field == "privacy_budget")


def _agent_lines(axes: Any, values: Floats, gaps: Floats) -> None:
    """A line for each agent, labelled at its right end; labels that would overlap are pushed apart."""
    axes.axhline(0.0, color=FAINT, lw=0.8)
    for agent in sorted(range(gaps.shape[1]), key=lambda agent: agent in NAMED):
        width = 2.2 if agent in NAMED else 1.1
        axes.plot(values, gaps[:, agent], color=NAMED.get(agent, OTHER), lw=width)
    low, high = axes.get_ylim()
    order = np.argsort(gaps[-1])
    places = _apart(gaps[-1][order], 0.042 * (high - low))
    for agent, place in zip(order, places, strict=True):
        colour = NAMED.get(int(agent), FAINT)
        axes.annotate(
            str(agent),
            xy=(values[-1], gaps[-1, agent]),
            xytext=(1.035, place),
            textcoords=axes.get_yaxis_transform(),
            arrowprops={"arrowstyle": "-", "color": colour, "lw": 0.6, "shrinkA": 0, "shrinkB": 1},
            color=colour,
            fontsize=8.5,
            weight="bold" if agent in NAMED else "normal",
            va="center",
            annotation_clip=False,
        )
    axes.set_xlim(values[0], values[-1])
    axes.set_ylim(min(low, float(places[0])), high)


def _apart(places: Floats, distance: float) -> Floats:
    """Sorted places moved as little as needed (least squares) to be at least ``distance`` apart."""
    from scipy.optimize import isotonic_regression

    steps = distance * np.arange(places.size)
    return np.asarray(isotonic_regression(places - steps).x) + steps
