"""Picture of the VCG market: reported supply and demand, quantities within their limits, what agents get and pay.

Built without pyplot, so nothing depends on a display or on global state.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from p2penv.dpvcg import rules
from p2penv.dpvcg.rules import Bids

try:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
except ImportError as error:
    raise ImportError("rendering needs matplotlib: pip install 'p2penv[render]'") from error

if TYPE_CHECKING:
    from p2penv.dpvcg.env import DPVCG, State

Floats = NDArray[np.float64]

INK, FAINT, RULE = "#22272e", "#6b7480", "#c9d0d8"
CONSUMER, PRODUCER = "#0072b2", "#d55e00"  # distinct to colour-blind readers
LABELLED = 24
"""Most agents whose names are written."""


def draw(env: DPVCG, state: State, info: Mapping[str, Any]) -> Figure:
    """Picture of environment 0 of a batch.

    Left what consumers demand and producers supply at each price, as reported (solid) and in truth (faint); right
    quantities traded within their limits, and below them the value of these to each agent beside its payment. Give
    the state before the step whose infos these are: after it types have moved on.

    Args:
        env: the environment.
        state: of E ≥ 1 environments.
        info: of ``step`` or ``initial_info``; when empty, only what the state holds is shown.

    Returns:
        A 900 × 450 pixel figure.
    """
    scenario = env.scenario
    types = np.asarray(state.types[0], np.float64)
    true = rules.report_bids(scenario.bids, types)
    reports = np.stack([_first(info[f"report_{name}"]) for name in env.action_names], axis=-1) if info else types
    figure = Figure(figsize=(9.0, 4.5), dpi=100)
    figure.text(0.025, 0.94, _headline(env, info), color=INK, fontsize=10.5, weight="bold")
    curves = figure.add_axes((0.075, 0.12, 0.38, 0.74))
    _curves(curves, env, true, rules.report_bids(scenario.bids, reports))
    upper = figure.add_axes((0.55, 0.53, 0.43, 0.33))
    lower = figure.add_axes((0.55, 0.12, 0.43, 0.33), sharex=upper)
    agents = np.arange(scenario.size)
    colours = np.where(scenario.sign > 0, CONSUMER, PRODUCER)
    sizes = np.sort(np.abs(np.stack(scenario.bounds)), axis=0)
    upper.vlines(agents, *sizes, color=RULE, lw=6.0)
    upper.set_ylabel("quantity [kWh]", color=INK, fontsize=9)
    lower.axhline(0.0, color=RULE, lw=0.8)
    lower.set_ylabel("[$]", color=INK, fontsize=9)
    if info:
        quantity, payment = _first(info["quantity"]), _first(info["payment"])
        if _traded(info):
            upper.scatter(agents, np.abs(quantity), c=colours.tolist(), s=28, zorder=3)
            lower.bar(agents - 0.2, rules.value(true, quantity), 0.36, color=colours.tolist(), label="value")
            lower.bar(agents + 0.2, payment, 0.36, color=FAINT, label="payment")
            lower.legend(frameon=False, fontsize=8, labelcolor=INK, loc="best")
    if scenario.size <= LABELLED:
        lower.set_xticks(agents, [name[0] + name.rsplit("_", 1)[1] for name in scenario.agents])
    for axes in (curves, upper, lower):
        axes.tick_params(labelsize=8, colors=FAINT)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    upper.tick_params(labelbottom=False)
    return figure


def _traded(info: Mapping[str, Any]) -> bool:
    """Whether the infos are those of a round: before the first one all quantities are zero."""
    return bool(np.any(_first(info["quantity"]) != 0.0))


def _curves(axes: Axes, env: DPVCG, true: Bids, reported: Bids) -> None:
    """Demand and supply against the price."""
    scenario, bounds = env.scenario, env.scenario.bounds
    ends = [reported.linear + 2.0 * reported.quadratic * limit for limit in bounds]
    prices = np.linspace(min(0.0, float(np.min(ends))), float(np.max(ends)) * 1.05, 200)
    buys = scenario.sign > 0
    for bids, alpha, label in ((true, 0.35, "true"), (reported, 1.0, "reported")):
        wanted = rules.response(Bids(*(field[None] for field in bids)), bounds, prices[:, None])
        axes.plot(wanted[:, buys].sum(axis=1), prices, color=CONSUMER, alpha=alpha, label=f"{label} demand")
        axes.plot(-wanted[:, ~buys].sum(axis=1), prices, color=PRODUCER, alpha=alpha, label=f"{label} supply")
    cleared = rules.clear(reported, bounds)
    axes.plot(cleared.allocation[buys].sum(), cleared.price, "o", color=INK, ms=5, label="efficient for reports")
    axes.set_xlabel("energy [kWh]", color=INK, fontsize=9)
    axes.set_ylabel("price [$/kWh]", color=INK, fontsize=9)
    axes.legend(frameon=False, fontsize=8, labelcolor=INK)


def _headline(env: DPVCG, info: Mapping[str, Any]) -> str:
    kind = env.mechanism.kind
    parts = [f"{env.scenario.name}: {'VCG' if kind == 'vcg' else kind + ' mechanism'}"]
    if np.isfinite(env.mechanism.nominal_epsilon):
        parts.append(f"ε = {env.mechanism.nominal_epsilon:g}")
    if info and _traded(info):
        parts += [f"welfare {float(info['welfare'][0]):.3f} \\$", f"budget {float(info['budget'][0]):.3f} \\$"]
    return ", ".join(parts)


def _first(values: Any) -> Floats:
    """Row of environment 0."""
    return np.asarray(values, np.float64)[0]
