"""Picture of the private energy market: supply and demand at each price, and what homes do in the window.

Built without pyplot, so nothing depends on a display or on global state.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from p2penv.pem.rules import EXTREME, NO_MARKET, Offers, supply

try:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator
except ImportError as error:
    raise ImportError("rendering needs matplotlib: pip install 'p2penv[render]'") from error

if TYPE_CHECKING:
    from p2penv.pem.env import PEM, State

Floats = NDArray[np.float64]

INK, FAINT, RULE = "#22272e", "#6b7480", "#c9d0d8"
SELLER, BUYER = "#d55e00", "#0072b2"  # distinct to colour-blind readers
CASES = {NO_MARKET: "no market", EXTREME: "extreme market"}


def draw(env: PEM, state: State, info: Mapping[str, Any]) -> Figure:
    """Picture of environment 0 of a batch.

    Left the true supply of sellers against the price, with demand and the price of the window, batteries as played (at
    rest, and base loads, when there are no infos); right net power of every home, sellers above and buyers below, the
    part traded on the market solid, and below it the charge of the batteries. Give the state before the step whose
    infos these are: after it the day has moved on.

    Args:
        env: the environment.
        state: of E ≥ 1 environments.
        info: of ``step`` or ``initial_info``; when empty, only what the state holds is shown.

    Returns:
        A 900 × 450 pixel figure.
    """
    size = env.scenario.size
    figure = Figure(figsize=(9.0, 4.5), dpi=100)
    figure.text(0.025, 0.94, _headline(env, state, info), color=INK, fontsize=10.5, weight="bold")
    left = figure.add_axes((0.075, 0.12, 0.36, 0.74))
    upper = figure.add_axes((0.53, 0.48, 0.45, 0.38))
    lower = figure.add_axes((0.53, 0.12, 0.45, 0.24), sharex=upper)
    homes = _curves(left, env, state, info)
    net = _first(info["net"])[:size] if info else homes
    order, place = np.argsort(-net), np.arange(size)
    colours = np.where(net[order] > 0, SELLER, BUYER).tolist()
    upper.bar(place, net[order], 0.9, color=colours, alpha=0.3)
    if info:
        traded = (_first(info["sold"]) - _first(info["bought"]))[:size] / env.scenario.hours
        upper.bar(place, traded[order], 0.9, color=colours)
    upper.axhline(0.0, color=RULE, lw=0.8)
    upper.set_ylabel("net power [kW]", color=INK, fontsize=9)
    lower.vlines(place, 0.0, env.scenario.battery_capacity[order], color=RULE, lw=max(1.0, 200.0 / size))
    charge = _first(info["charge"])[:size] if info else _first(state.charge)
    lower.plot(place, charge[order], ".", color=INK, ms=3)
    lower.set_ylabel("charge [kWh]", color=INK, fontsize=9)
    lower.set_xlabel("homes, by net power", color=INK, fontsize=9)
    lower.xaxis.set_major_locator(MaxNLocator(integer=True))
    upper.tick_params(labelbottom=False)
    for axes in (left, upper, lower):
        axes.tick_params(labelsize=8, colors=FAINT)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    return figure


def _curves(axes: Axes, env: PEM, state: State, info: Mapping[str, Any]) -> Floats:
    """Supply and demand, at base loads and batteries at rest without infos; returns net power ``(n,)``."""
    scenario, size = env.scenario, env.scenario.size
    row = min(int(state.time[0]), scenario.windows)
    generation, load, preference = scenario.generation[row], scenario.load[row], scenario.preference[row]
    net, role, charging = generation - load, np.sign(generation - load), 0.0 * load
    cleared = info and float(info["sellers"][0] + info["buyers"][0]) > 0
    if cleared:
        net, role = _first(info["net"])[:size], _first(info["role"])[:size]
        charging = generation - _first(info["load"])[:size] - net
    most = np.where(role > 0, np.maximum(generation - charging - (1.0 - scenario.flexibility) * load, 0.0), 0.0)
    prices = np.linspace(scenario.buyback, scenario.retail, 200)
    offers = Offers(preference, generation + 1.0 + (scenario.loss - 1.0) * charging, most)
    axes.plot(supply(offers, prices[:, None]).sum(axis=1), prices, color=SELLER, label="supply")
    axes.axvline(float(np.maximum(-net, 0.0)[role < 0].sum()), color=BUYER, label="demand")
    axes.axhspan(scenario.low, scenario.high, color=RULE, alpha=0.3, lw=0)
    if cleared:
        axes.axhline(float(info["price"][0]), color=INK, ls="--", lw=1, label="price")
    axes.set_xlim(left=0.0)
    axes.set_xlabel("power [kW]", color=INK, fontsize=9)
    axes.set_ylabel("price [cents/kWh]", color=INK, fontsize=9)
    axes.legend(frameon=False, fontsize=8, labelcolor=INK)
    return net


def _headline(env: PEM, state: State, info: Mapping[str, Any]) -> str:
    hour, minute = divmod(round(60.0 * env.scenario.start + env.scenario.minutes * int(state.time[0])), 60)
    parts = [env.scenario.name, f"{hour % 24:02d}:{minute:02d}"]
    if info and float(info["sellers"][0] + info["buyers"][0]) > 0:
        parts += [CASES.get(int(info["case"][0]), "general market"), f"price {float(info['price'][0]):.2f}"]
        parts.append(f"{int(info['sellers'][0])} sellers, {int(info['buyers'][0])} buyers")
    return ", ".join(parts)


def _first(values: Any) -> Floats:
    """Row of environment 0."""
    return np.asarray(values, np.float64)[0]
