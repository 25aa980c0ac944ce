"""One self-contained HTML page a run: what was learned against the equilibrium."""

from __future__ import annotations

import base64
import io
import json
from html import escape
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from training.policies import load_learned
from training.runs import load_config, read_csv, write_atomic, write_text

LEARNED, EXACT, TRUTH, PLANNER = "#0072b2", "#d55e00", "#999999", "#009e73"  # colour-blind safe

PAGE = Template("""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">
<title>$title</title>
<style>
body{font:16px/1.5 system-ui,sans-serif;max-width:62rem;margin:2rem auto;padding:0 1rem;color:#1a1a1a}
h1{font-size:1.5rem;margin-bottom:.2rem} h2{font-size:1.15rem;margin:2rem 0 .5rem}
.lead{color:#555;margin-top:0} .tiles{display:flex;flex-wrap:wrap;gap:.8rem;margin:1.2rem 0}
.tile{border:1px solid #ddd;border-radius:.5rem;padding:.7rem 1rem;flex:1 1 11rem}
.tile b{display:block;font-size:1.45rem} .tile span{color:#555;font-size:.85rem}
img{max-width:100%;height:auto} table{border-collapse:collapse;font-size:.92rem;width:100%}
th,td{padding:.25rem .6rem;text-align:right;border-bottom:1px solid #eee} th:first-child,td:first-child{text-align:left}
pre{background:#f6f6f6;padding:1rem;border-radius:.5rem;overflow-x:auto;font-size:.85rem}
</style></head><body>
<h1>$title</h1><p class="lead">$lead</p>
<div class="tiles">$tiles</div>
<h2>$against</h2><img alt="learning curve" src="$curve">
<h2>Per agent</h2><img alt="gain per agent" src="$bars">$table
<h2>The market as learned</h2><img alt="the market after one learned step" src="$picture">
<h2>Configuration</h2><pre>$config</pre>
</body></html>
""")


def write(folder: Path) -> Path:
    """Write ``report.html`` and ``learned.png`` from the files of a finished run.

    Raises:
        FileNotFoundError: not a run, or not finished.
    """
    path = folder / "metrics.json"
    load_config(folder)
    if not path.is_file():
        raise FileNotFoundError(f"run {folder} is not finished: it has no metrics.json")
    metrics = json.loads(path.read_text(encoding="utf-8"))
    curve = read_csv(folder / "curve.csv")
    config = (folder / "config.json").read_text(encoding="utf-8")
    usual, money = _usual(metrics)
    step = "" if metrics.get("deviations") is None else " of a step"
    tiles = [
        *(_nashconv(metrics) if metrics.get("deviations") != "" else []),
        (
            f"{metrics['social_cost_learned']:.3f} {money}",
            f"social cost{step} (equilibrium {metrics['social_cost_equilibrium']:.3f})",
        ),
        (f"{metrics['train_seconds']:.1f} s", f"training, {metrics['agent_steps']:,} agent-steps"),
    ]
    if "episode_reward_learned" in metrics:
        learned, truthful = metrics["episode_reward_learned"], metrics["episode_reward_truthful"]
        tiles.insert(0, (f"{learned:.2f}", f"reward of an episode, mean of agents ({usual} {truthful:.2f})"))
    page = PAGE.substitute(
        title=escape(f"{metrics['market']} · {metrics['scenario']}: learned against {_rival(metrics)}"),
        lead=escape(
            f"{metrics['algorithm'].upper()}, {metrics['learners']} learners, seed {metrics['seed']}, horizon "
            f"{metrics['horizon']}; measures are exact, averaged over {metrics['contexts']} context(s)."
        ),
        tiles="".join(
            f'<div class="tile"><b>{escape(value)}</b><span>{escape(text)}</span></div>' for value, text in tiles
        ),
        against=f"Learning against {_rival(metrics)}",
        curve=_embed(curve_figure(curve, metrics)),
        bars=_embed(bars_figure(metrics)),
        picture=_embed(market_figure(folder)),
        table=_table(metrics),
        config=escape(config),
    )
    overview = overview_figure(curve, metrics)
    write_atomic(folder / "learned.png", lambda temporary: overview.savefig(temporary, dpi=110))
    target = folder / "report.html"
    write_text(target, page)
    return target


def _nashconv(metrics: dict[str, Any]) -> list[tuple[str, str]]:
    """Tiles of NashConv, and over what deviations it is if not over all."""
    share, over = metrics["nashconv_ratio"], metrics.get("deviations")
    usual, money = _usual(metrics)
    what = "it is an equilibrium" if over is None else f"over {over}"
    return [
        ("none", f"NashConv of {usual} play: {what}")
        if share is None
        else (f"{share:.3%}", f"NashConv of the learned profile, of {usual} play's"),
        (
            f"{metrics['nashconv_learned']:.5f} {money}",
            f"NashConv learned ({usual} {metrics['nashconv_truthful']:.4f})" + (f", over {over}" if over else ""),
        ),
    ]


def _rival(metrics: dict[str, Any]) -> str:
    """What learned play is held against: where no deviation is measured, what it is compared with."""
    return f"{_usual(metrics)[0]} play" if metrics.get("deviations") == "" else "equilibrium"


def _usual(metrics: dict[str, Any]) -> tuple[str, str]:
    """What play is compared with, and the unit of money; runs older than these keys are of truth and $."""
    return metrics.get("reference", "truthful").replace("_", " "), metrics.get("money", "$")


def curve_figure(curve: list[dict[str, float]], metrics: dict[str, Any]) -> Figure:
    """Social gain and NashConv over training, with the equilibrium, the planner and truthful play as lines."""
    figure = Figure(figsize=(10, 3.8), layout="constrained")
    _draw_curve(figure.subplots(1, 2), curve, metrics)
    return figure


def bars_figure(metrics: dict[str, Any]) -> Figure:
    """Cost saved per agent at the equilibrium and as learned."""
    figure = Figure(figsize=(10, 3.4), layout="constrained")
    _draw_bars(figure.subplots(), metrics)
    return figure


def overview_figure(curve: list[dict[str, float]], metrics: dict[str, Any]) -> Figure:
    """Learning curve, NashConv and bars in one picture."""
    figure = Figure(figsize=(10, 6.4), layout="constrained")
    rows: Any = figure.subfigures(2, 1, height_ratios=(1.1, 1.0))
    _draw_curve(rows[0].subplots(1, 2), curve, metrics)
    _draw_bars(rows[1].subplots(), metrics)
    return figure


def _draw_curve(axes: NDArray[Any], curve: list[dict[str, float]], metrics: dict[str, Any]) -> None:
    left, right = axes
    usual, money = _usual(metrics)
    steps = np.array([row["agent_steps"] for row in curve]) / 1e6
    if "episode_gain" in curve[0]:
        left.plot(steps, [row["episode_gain"] for row in curve], color=LEARNED, lw=2, label="learned")
        left.set_ylabel(f"gain of an episode on {usual}, mean")
    else:
        _draw_social(left, steps, curve, metrics)
    left.axhline(0.0, color=TRUTH, lw=1, label=usual)
    if metrics.get("deviations") == "" and "least_gain" in curve[0]:
        right.plot(steps, [row["least_gain"] for row in curve], color=LEARNED, lw=2, label="learned")
        right.axhline(0.0, color=TRUTH, lw=1, label=usual)
        right.set_ylabel("the same, of the agent that gains least")
    else:
        nashconv = np.maximum([row["nashconv"] for row in curve], 1e-9)
        right.semilogy(steps, nashconv, color=LEARNED, lw=2, label="learned")
        if metrics["nashconv_truthful"] > 0:
            right.axhline(metrics["nashconv_truthful"], color=TRUTH, label=usual)
        right.set_ylabel(f"NashConv [{money}]")
    for panel in axes:
        panel.set_xlabel("million agent-steps")
        panel.grid(alpha=0.25)
        panel.legend(frameon=False)


def _draw_social(axes: Axes, steps: NDArray[Any], curve: list[dict[str, float]], metrics: dict[str, Any]) -> None:
    axes.plot(steps, [row["social_gap"] for row in curve], color=LEARNED, lw=2, label="learned")
    truthful = metrics["social_cost_truthful"]
    for key, colour, label in (("equilibrium", EXACT, "equilibrium"), ("coordinated", PLANNER, "planner")):
        level = truthful - metrics[f"social_cost_{key}"]
        axes.plot(steps[[0, -1]], [level, level], color=colour, ls="--", label=label)  # inside the axes' margins
    axes.set_ylabel(f"social cost saved [{_usual(metrics)[1]}]")


def _draw_bars(axes: Axes, metrics: dict[str, Any]) -> None:
    rows = metrics["agents"]
    usual, money = _usual(metrics)
    names = [row["agent"] for row in rows]
    roles = {name.rsplit("_", 1)[0] for name in names}
    place = np.arange(len(rows))
    episodes = "episode_gain" in rows[0]
    if episodes:
        axes.bar(place, [row["episode_gain"] for row in rows], 0.6, color=LEARNED, label="learned")
    else:
        exact = [row["cost_truthful"] - row["cost_equilibrium"] for row in rows]
        axes.bar(place - 0.2, exact, 0.4, color=EXACT, label="equilibrium")
        axes.bar(place + 0.2, [row["utility_gap"] for row in rows], 0.4, color=LEARNED, label="learned")
    axes.axhline(0.0, color="black", lw=0.8)
    if len(rows) <= 60:
        axes.set_xticks(place, [name if len(roles) > 1 else name.rsplit("_", 1)[1] for name in names])
    axes.set_xlabel("agent" if len(roles) > 1 else roles.pop())
    axes.set_ylabel(f"episode reward over that of {usual}" if episodes else f"cost saved [{money}]")
    axes.grid(axis="y", alpha=0.25)
    axes.legend(frameon=False)


def market_figure(folder: Path) -> Figure:
    """The market's own picture after one step of the learned policy."""
    import p2penv
    from p2penv.faces.runner import Runner
    from training.evaluate import HELD_OUT

    config = load_config(folder)
    env = p2penv.make_functional(config.market, **{**config.options, "infos": "full"})
    runner = Runner(env)
    runner.reset(HELD_OUT)
    before = runner.state
    policy = load_learned(folder, env)
    actions = policy.act(runner.params, runner.observations(before), None, {})
    return env.render(before, runner.step(runner.check(actions)).info)


def _embed(figure: Figure) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _table(metrics: dict[str, Any]) -> str:
    rows = metrics["agents"]
    usual, money = _usual(metrics)
    names = [usual, "equilibrium", "learned", "utility gap", "exploitability"]
    columns = ["cost_truthful", "cost_equilibrium", "cost", "utility_gap", "exploitability"]
    over = metrics.get("deviations")
    if over is not None and "episode_reference" in rows[0]:
        names = [f"{usual}, episode", "learned, episode", "gain", *["exploitability"] * (over != "")]
        columns = ["episode_reference", "episode_reward", "episode_gain", *["exploitability"] * (over != "")]
    head = "".join(f"<th>{escape(text)}</th>" for text in ("agent", *(f"{name} [{money}]" for name in names)))
    body = "".join(
        f"<tr><td>{escape(row['agent'])}</td>"
        + "".join(f"<td>{round(row[key], 5) + 0.0:.5f}</td>" for key in columns)
        + "</tr>"
        for row in rows
    )
    return f"<table><tr>{head}</tr>{body}</table>"
