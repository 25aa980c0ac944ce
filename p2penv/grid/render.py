"""Picture of the grid market: the feeder with its voltages and flows, and what prosumers do in the hour.

Built without pyplot, so nothing depends on a display or on global state.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

try:
    from matplotlib import colormaps
    from matplotlib.axes import Axes
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure
except ImportError as error:
    raise ImportError("rendering needs matplotlib: pip install 'p2penv[render]'") from error

if TYPE_CHECKING:
    from p2penv.grid.env import Grid
    from p2penv.grid.feeder import Feeder
    from p2penv.grid.hours import State

Floats = NDArray[np.float64]

INK, FAINT, RULE = "#22272e", "#6b7480", "#c9d0d8"
# Own power: solar power and these.
OWN_FLOWS = (("dispatch", 1.0), ("charging", -1.0), ("curtailed", -1.0))
OWN, PEER, FROM_GRID = "#e69f00", "#0072b2", "#6b7480"  # distinct to colour-blind readers


def draw(env: Grid, state: State, info: Mapping[str, Any]) -> Figure:
    """Picture of environment 0 of a batch.

    Left the feeder, the farther right the more resistance from the source; buses by voltage, lines by apparent power,
    prosumers ringed. Right what feeds every prosumer's demand, own, from partners and from the grid (below zero what
    goes to partners or the storage), and below it the charge of the storage units. Give the state before the step whose
    infos these are: after it the day has moved on.

    Args:
        env: the environment.
        state: of E ≥ 1 environments.
        info: of ``step`` or ``initial_info``; when empty, the hour is shown without any action.

    Returns:
        A 1000 × 450 pixel figure.
    """
    size = env.scenario.size
    figure = Figure(figsize=(10.0, 4.5), dpi=100)
    figure.text(0.025, 0.94, _headline(env, state, info), color=INK, fontsize=10.5, weight="bold")
    left = figure.add_axes((0.03, 0.1, 0.42, 0.78))
    upper = figure.add_axes((0.53, 0.46, 0.45, 0.42))
    lower = figure.add_axes((0.53, 0.12, 0.45, 0.22), sharex=upper)
    hour = min(int(state.time[0]), env.horizon)
    demand, solar = env.scenario.demand[hour], env.scenario.solar[hour]
    net = _first(info["net"])[:size] if info else demand - solar
    _feeder(left, env, net, hour, float(info["cut"][0]) if info else 0.0)
    place = np.arange(size)
    received = _first(info["received"])[:size] if info else 0.0 * net
    grid = _first(info["grid"])[:size] if info else np.maximum(net, 0.0)
    # Not what is left of demand: an operator that cuts leaves some unserved.
    own = np.minimum(solar, demand)
    if info:
        own = solar + sum(sign * _first(info[key])[:size] for key, sign in OWN_FLOWS)
    above, below = np.zeros(size), np.zeros(size)
    for values, colour, label in ((own, OWN, "own"), (received, PEER, "partners"), (grid, FROM_GRID, "grid")):
        upper.bar(place, np.maximum(values, 0.0), 0.8, bottom=above, color=colour, label=label)
        upper.bar(place, np.minimum(values, 0.0), 0.8, bottom=below, color=colour)
        above, below = above + np.maximum(values, 0.0), below + np.minimum(values, 0.0)
    upper.plot(place, demand, "_", color=INK, ms=max(2.0, 150.0 / size), label="demand")
    upper.axhline(0.0, color=RULE, lw=0.8)
    upper.set_ylabel("power [kW]", color=INK, fontsize=9)
    upper.legend(frameon=False, fontsize=8, labelcolor=INK, ncols=4, loc="lower right", bbox_to_anchor=(1.0, 1.0))
    storage = env.scenario.storage_power > 0.0
    low, high = env.scenario.storage_min[storage], env.scenario.storage_max[storage]
    lower.vlines(place[storage], low, high, color=RULE, lw=max(1.0, 200.0 / size))
    charge = _first(info["charge"])[:size] if info else _first(state.charge)
    lower.plot(place[storage], charge[storage], ".", color=INK, ms=4)
    lower.set_ylabel("charge [kWh]", color=INK, fontsize=9)
    lower.set_xlabel("prosumer", color=INK, fontsize=9)
    upper.tick_params(labelbottom=False)
    for axes in (upper, lower):
        axes.tick_params(labelsize=8, colors=FAINT)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    return figure


def _feeder(axes: Axes, env: Grid, net: Floats, hour: int, cut: float) -> None:
    """The tree, with voltages and apparent powers at net demands ``(n,)`` of an hour, α cut already."""
    feeder, found = env.scenario.feeder, env.flows_at(net, hour, cut)
    x, y = _places(feeder, np.diag(np.asarray(env.params.market.R)))
    apparent = found.apparent
    widths = 0.6 + 4.0 * apparent / max(float(apparent.max()), 1e-9)
    for line, bus in enumerate(feeder.fed):
        parent = feeder.parent[bus]
        limit = float(env.scenario.line_limit[line])
        colour = "#d55e00" if apparent[line] > limit else FAINT
        axes.plot([x[parent], x[bus]], [y[parent], y[bus]], color=colour, lw=float(widths[line]), zorder=1)
    limits = Normalize(float(env.scenario.voltage_min), float(env.scenario.voltage_max))
    colours = colormaps["viridis"](limits(found.voltage))
    ringed = np.isin(np.arange(len(feeder.buses)), env.scenario.bus)
    axes.scatter(x, y, s=np.where(ringed, 52, 26), c=colours, edgecolors=np.where(ringed, INK, RULE).tolist(), zorder=2)
    lowest = int(np.argmin(found.voltage))
    axes.annotate(
        f"{feeder.buses[lowest]}: {found.voltage[lowest]:.4f} p.u.", (x[lowest], y[lowest]), (4, 6),
        textcoords="offset points", fontsize=8, color=INK,
    )  # fmt: skip
    axes.set_axis_off()


def _places(feeder: Feeder, distance: Floats) -> tuple[Floats, Floats]:
    """Coordinates of buses: resistance from the source, and an order in which no lines cross."""
    children: dict[int, list[int]] = {}
    for bus, parent in enumerate(feeder.parent):
        children.setdefault(int(parent), []).append(bus)
    height = np.zeros(len(feeder.buses))
    stack, order, leaves = [*children[-1]], [], 0
    while stack:
        bus = stack.pop()
        order.append(bus)
        stack += children.get(bus, [])
    for bus in order:
        if bus not in children:
            height[bus], leaves = leaves, leaves + 1
    for bus in reversed(order):
        if bus in children:
            height[bus] = np.mean(height[children[bus]])
    return distance, height


def _headline(env: Grid, state: State, info: Mapping[str, Any]) -> str:
    hour, minute = divmod(round(60.0 * env.scenario.step_hours * int(state.time[0])), 60)
    parts = [env.scenario.name, f"{hour % 24:02d}:{minute:02d}"]
    if info:
        parts += [f"grid {float(info['price'][0]):.3f} €/kWh", f"import {float(info['imported'][0]):.0f} kW"]
        parts += [f"traded {float(info['traded'][0]):.1f} kWh"]
    return ", ".join(parts)


def _first(values: Any) -> Floats:
    """Row of environment 0."""
    return np.asarray(values, np.float64)[0]
