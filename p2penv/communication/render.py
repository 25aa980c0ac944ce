"""Pictures of the communication game: the network coloured by privacy price, and the reports.

Figures are built without pyplot, so nothing depends on a display or on global state.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from p2penv.communication import rules

try:
    from matplotlib.cm import ScalarMappable
    from matplotlib.collections import LineCollection
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure
    from matplotlib.patheffects import withStroke
    from matplotlib.ticker import MaxNLocator, ScalarFormatter
except ImportError as error:
    raise ImportError("rendering needs matplotlib: pip install 'p2penv[render]'") from error

if TYPE_CHECKING:
    from p2penv.communication.env import Communication, State
    from p2penv.communication.scenario import Scenario

Floats = NDArray[np.float64]

COLOURS = "viridis_r"
INK, FAINT, RULE = "#22272e", "#6b7480", "#c9d0d8"
OVER, UNDER = "#d55e00", "#0072b2"  # over- and under-reporting, distinct to colour-blind readers
LUMINANCE = np.array([0.299, 0.587, 0.114])
LABELLED = 40
"""Most agents whose nodes and shifts are labelled."""


def draw(env: Communication, state: State, info: Mapping[str, Any]) -> Figure:
    """Picture of environment 0 of a batch.

    Left the network, nodes coloured by privacy price and sized by the magnitude of the report; right the
    reports against the truth, and below them the shifts with ±1 standard deviation of the noise. Give
    the state before the step whose infos these are: after it the truth has moved on.

    Args:
        env: the environment; its scenario gives network and bounds.
        state: of E ≥ 1 environments.
        info: of ``step`` or ``initial_info``; when empty, only what the state holds is shown.

    Returns:
        A 900 × 450 pixel figure.
    """
    scenario, params = env.scenario, env.scenario.params()
    truth = _first(state.private_information)
    shift = _first(info["shift"]) if "shift" in info else None
    reports = truth if shift is None else truth + shift
    figure = Figure(figsize=(9.0, 4.5), dpi=100)
    figure.text(0.025, 0.94, _headline(env, state, info), color=INK, fontsize=10.5, weight="bold")
    left = figure.add_axes((0.015, 0.17, 0.45, 0.71))
    bar = figure.add_axes((0.075, 0.115, 0.33, 0.022))
    price = _first(info["privacy_price"]) if "privacy_price" in info else None
    _network(left, bar, scenario, price, np.abs(reports), shift)

    upper = figure.add_axes((0.545, 0.50, 0.435, 0.38))
    lower = figure.add_axes((0.545, 0.115, 0.435, 0.30), sharex=upper)
    agents = np.arange(scenario.size)
    mark = float(np.clip(90.0 / scenario.size, 2.0, 6.5))
    upper.axhline(0.0, color=RULE, lw=0.8, zorder=0)
    upper.plot(agents, truth, "D", mfc="none", mec=FAINT, ms=mark, mew=1.0, label="truth $y$")
    if shift is not None:
        deviation = np.sqrt(_first(info["variance"]))
        colours = np.where(shift > 0, OVER, np.where(shift < 0, UNDER, FAINT)).tolist()
        upper.errorbar(agents, reports, deviation, fmt="none", ecolor=colours, elinewidth=min(1.0, mark / 3))
        upper.scatter(agents, reports, (0.7 * mark) ** 2, colours, zorder=3, label="report $y+x$")
        reach = params.max_shift
        lower.bar(agents, 2 * reach, 0.82, -reach, color="#eef1f4", label=r"allowed $\pm\alpha$")
        lower.bar(agents, shift, 0.58, color=colours)
        lower.errorbar(
            agents,
            shift,
            deviation,
            fmt="none",
            ecolor=INK,
            elinewidth=min(1.0, mark / 5),
            label="±1 sd of the noise",
        )
        lower.axhline(0.0, color=FAINT, lw=0.8)
    else:
        lower.text(
            0.5,
            0.5,
            "shifts are not in the infos",
            transform=lower.transAxes,
            color=FAINT,
            ha="center",
            va="center",
        )
    _style(upper, "Energy [MWh]")
    _style(lower, "Shift $x$ [MWh]")
    upper.tick_params(labelbottom=False)
    upper.legend(**_LEGEND, loc="lower right", bbox_to_anchor=(1.0, 0.985), ncols=2)
    if shift is None:
        lower.set_yticks([])
    else:
        lower.legend(**_LEGEND, loc="lower right", bbox_to_anchor=(1.0, 0.98), ncols=2)
    lower.set_xlim(-0.7, scenario.size - 0.3)
    lower.set_xlabel("Agent", color=INK, fontsize=8.5, labelpad=2)
    if scenario.size <= 20:
        lower.set_xticks(agents)
    else:
        lower.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    return figure


def network_figure(
    scenario: Scenario,
    privacy_price: Floats,
    *,
    title: str = "",
    shift: Floats | None = None,
    size: Floats | None = None,
) -> Figure:
    """The network alone, nodes coloured by privacy price ``(N,)`` [$/MWh].

    Args:
        scenario: the scenario, for lines and positions.
        privacy_price: ``(N,)``, either form of :func:`~p2penv.communication.rules.privacy_price`.
        title: above the picture.
        shift: ``(N,)`` x, drawn as labels [MWh].
        size: ``(N,)`` what the areas of the nodes show, the size of the own y if not given [MWh].
    """
    figure = Figure(figsize=(7.2, 5.4), dpi=150)
    figure.text(0.03, 0.975, title, color=INK, fontsize=11, ha="left", va="top")
    axes, bar = figure.add_axes((0.03, 0.17, 0.94, 0.74)), figure.add_axes((0.2, 0.115, 0.6, 0.02))
    area = np.abs(scenario.private_information) if size is None else size
    _network(axes, bar, scenario, privacy_price, area, shift)
    return figure


_LEGEND: dict[str, Any] = {
    "frameon": False,
    "fontsize": 7.5,
    "labelcolor": INK,
    "handletextpad": 0.4,
    "columnspacing": 1.2,
    "borderaxespad": 0.0,
}


def _first(values: Any) -> Floats:
    return np.asarray(values, dtype=np.float64)[0]


def _headline(env: Communication, state: State, info: Mapping[str, Any]) -> str:
    params = env.scenario.params()
    price, imbalance = (float(_first(info.get(key, getattr(state, key)))) for key in ("price", "imbalance"))
    truth = _first(state.private_information).sum()
    truthful = float(rules.price_at(params, truth, env.settlement == "physical"))
    parts = [f"Price {price:.3f} $/MWh (truthful {truthful:.3f})", f"imbalance {imbalance:+.2f} MWh"]
    if "slack" in info:
        slack = float(_first(info["slack"]))
        parts.append(f"slack {slack:.2f} MWh" if slack >= 0 else f"shared bounds violated by {-slack:.2f} MWh")
    return "   ·   ".join(parts)


def _positions(scenario: Scenario) -> Floats:
    """Positions ``(N, 2)`` in a box of height 1 and at most twice that width."""
    if scenario.positions is None:
        angle = np.pi - 2 * np.pi * np.arange(scenario.size) / scenario.size  # the root stands left
        places = np.stack([1.3 * np.cos(angle), np.sin(angle)], axis=1)
    else:
        places = np.asarray(scenario.positions, dtype=np.float64)
    return (places - places.min(0)) / max(float(np.ptp(places[:, 1])), 0.5 * float(np.ptp(places[:, 0])), 1e-12)


def _network(axes: Any, bar: Any, scenario: Scenario, price: Floats | None, area: Floats, shift: Floats | None) -> None:
    """Lines; nodes coloured by price (grey without one), area growing with ``area``; shifts as labels."""
    places, few = _positions(scenario), scenario.size <= LABELLED
    unit = 420.0 if few else 45.0
    sizes = unit * (0.3 + 0.7 * area / max(float(area.max()), 1e-12))
    axes.add_collection(LineCollection(list(places[scenario.lines]), colors=RULE, lw=1.4 if few else 0.6, zorder=1))
    values = np.zeros(scenario.size) if price is None else price
    low, high = float(values.min()), float(values.max())
    # A constant price is one colour in the middle of its scale.
    norm = Normalize(low, high) if high > low else Normalize(0.0, 2.0 * high if high > 0 else 1.0)
    scale = ScalarMappable(norm, COLOURS)
    faces = np.full((scenario.size, 4), (0.86, 0.88, 0.9, 1.0)) if price is None else scale.to_rgba(values)
    ring = np.where(np.arange(scenario.size) == 0, 2.4, 0.8) * (1.0 if few else 0.6)
    edges = np.where(np.arange(scenario.size) == 0, INK, "white")
    # The root comes last, on top of its neighbours.
    for nodes in (slice(1, None), slice(0, 1)):
        axes.scatter(*places[nodes].T, s=sizes[nodes], c=faces[nodes], ec=edges[nodes], lw=ring[nodes], zorder=3)
    if few:
        dark = faces[:, :3] @ LUMINANCE < 0.55
        halo = [withStroke(linewidth=2.2, foreground="white")]
        for node, place in enumerate(places):
            font: dict[str, Any] = {"fontsize": 7.5, "weight": "bold", "va": "center_baseline", "zorder": 4}
            axes.annotate(str(node), place, color="white" if dark[node] else INK, ha="center", **font)
            if shift is not None and abs(shift[node]) >= 0.05:
                sign, colour = ("▲", OVER) if shift[node] > 0 else ("▼", UNDER)
                label, away = (
                    f"{sign}{abs(shift[node]):.1f}",
                    (float(np.sqrt(sizes[node] / np.pi)) + 2.5, 0.0),
                )
                axes.annotate(
                    label, place, away, textcoords="offset points", color=colour, path_effects=halo, **font
                )  # fmt: skip
    below = (0.0, -float(np.sqrt(sizes[0] / np.pi)) - 8.0)
    axes.annotate("root", places[0], below, textcoords="offset points", color=FAINT, fontsize=7, ha="center",
                  va="center_baseline", zorder=4)  # fmt: skip
    axes.margins(0.09)
    axes.set_aspect("equal", adjustable="datalim")
    axes.set_axis_off()
    if price is None:
        bar.set_axis_off()
        return
    ticks = ScalarFormatter(useMathText=True)
    ticks.set_powerlimits((-2, 3))
    axes.figure.colorbar(scale, cax=bar, orientation="horizontal", format=ticks)
    bar.xaxis.set_major_locator(MaxNLocator(5))
    bar.tick_params(labelsize=7.5, colors=INK, length=2.5, pad=2)
    bar.set_xlabel("Privacy price [$/MWh]", fontsize=8.5, color=INK, labelpad=2)
    bar.xaxis.get_offset_text().set(size=7.5, color=INK)
    for spine in bar.spines.values():
        spine.set_visible(False)


def _style(axes: Any, label: str) -> None:
    axes.set_ylabel(label, color=INK, fontsize=8.5)
    axes.tick_params(labelsize=7.5, colors=INK, length=2.5)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(RULE)
    axes.yaxis.set_major_locator(MaxNLocator(5))
