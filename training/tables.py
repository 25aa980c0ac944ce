"""What the command line prints."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from training.evaluate import Episodes, Evaluation

if TYPE_CHECKING:
    from training.privacy import Privacy
    from training.truthfulness import Truthfulness


def _alike(named: dict[str, list[Any]], deviations: str | None) -> dict[str, list[Any]]:
    """Columns of numbers by name; where no deviation is allowed those that agree are one column with all their names.

    Profiles that may differ in reports alone are then one profile: to compare them would say nothing.
    """
    if deviations != "":
        return named
    merged: list[tuple[str, list[Any]]] = []
    for name, values in named.items():
        numbers = np.array(values, float)  # what is undefined is NaN
        for index, (names, kept) in enumerate(merged):
            if np.allclose(numbers, np.array(kept, float), rtol=1e-9, atol=1e-12, equal_nan=True):
                merged[index] = (f"{names} = {name}", kept)
                break
        else:
            merged.append((name, values))
    return dict(merged)


def _agents(rows: list[dict[str, Any]], played: str, reference: str, money: str, deviations: str | None) -> Table:
    table = Table(title=f"cost per agent [{money}]", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("agent")
    names = {reference: "cost_truthful", "equilibrium": "cost_equilibrium", played: "cost"}
    costs = _alike({name: [row[key] for row in rows] for name, key in names.items()}, deviations)
    columns = {name: [f"{value:.4f}" for value in values] for name, values in costs.items()}
    if len(costs) == len(names):
        columns["utility gap"] = [f"{row['utility_gap']:.4f}" for row in rows]
    if deviations != "":
        columns["exploitability"] = [f"{round(row['exploitability'], 6) + 0.0:.6f}" for row in rows]
        if "regret_bound" in rows[0]:
            columns["bound"] = [f"{row['regret_bound']:.4f}" for row in rows]
    for column in columns:
        table.add_column(column, justify="right")
    for row, *cells in zip(rows, *columns.values(), strict=True):
        table.add_row(row["agent"], *cells)
    return table


def _single(label: str, named: dict[str, Any], deviations: str | None) -> list[tuple[str, Any]]:
    """Rows of one number by profile, those that are the same one together."""
    found = _alike({name: [value] for name, value in named.items()}, deviations)
    return [(f"{label}, {name}", value) for name, (value,) in found.items()]


def _episodes(rows: list[dict[str, Any]], names: list[str], played: str, reference: str, money: str) -> Table:
    table = Table(title=f"reward of an episode per agent [{money}]", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("agent")
    for column in (reference, played, "gain"):
        table.add_column(column, justify="right")
    for name, row in zip(names, rows, strict=True):
        table.add_row(name, *(f"{row[f'episode_{key}']:.3f}" for key in ("reference", "reward", "gain")))
    return table


def _pairs(rows: list[tuple[str, str]]) -> Table:
    table = Table(show_header=False)
    table.add_column("measure")
    table.add_column("value", justify="right")
    for row in rows:
        table.add_row(*row)
    return table


def _contexts(count: int, nearest: int, equilibrium: str, deviations: str | None) -> list[tuple[str, str]]:
    empty = [("contexts without a feasible joint set", str(nearest))] if nearest else []
    over = [] if deviations is None else [("exploitability is over", deviations or "nothing: no misreport is allowed")]
    return [("equilibrium", equilibrium), *over, ("contexts", str(count)), *empty]


def _ratio(value: float | None) -> str:
    return "undefined (cost and welfare)" if value is None else f"{value:.5f}"


def print_training(metrics: dict[str, Any], console: Console) -> None:
    """Learned play beside the market's reference and equilibrium."""
    reference = metrics["reference"].replace("_", " ")
    over, agents, money = metrics["deviations"], metrics["agents"], metrics["money"]
    # Where exploitability is over part of what agents do, so are the costs of single steps.
    if over is not None and "episode_gain" in agents[0]:
        console.print(_episodes(agents, [row["agent"] for row in agents], "learned", reference, money))
    else:
        console.print(_agents(agents, "learned", reference, money, over))
    step = "" if over is None else " of a step"
    profiles = {reference: "truthful", "equilibrium": "equilibrium", "learned": "learned", "planner": "coordinated"}
    costs = {name: metrics[f"social_cost_{key}"] for name, key in profiles.items()}
    anarchy = {"equilibrium": metrics["price_of_anarchy"], "learned": metrics["price_of_anarchy_learned"]}
    share = metrics["nashconv_ratio"]
    # Where truth is an equilibrium there is nothing to compare with.
    compared = "" if share is None else f" ({share:.3%} of {reference})"
    episode = [
        (f"reward of an episode, {label}", f"{metrics[f'episode_reward_{name}']:.4f}")
        for name, label in (("truthful", reference), ("learned", "learned"))
        if f"episode_reward_{name}" in metrics
    ]
    nashconv = [
        (f"NashConv, {reference}", f"{metrics['nashconv_truthful']:.4f}"),
        ("NashConv, untrained", f"{metrics['nashconv_untrained']:.4f}"),
        ("NashConv, learned", f"{metrics['nashconv_learned']:.5f}{compared}"),
        ("most one agent could gain, of its payoff", f"{metrics['regret_share']:.3%}"),
    ]
    console.print(
        _pairs(
            [
                *episode,
                *((label, f"{cost:.4f}") for label, cost in _single(f"social cost{step}", costs, over)),
                *((label, _ratio(value)) for label, value in _single("price of anarchy", anarchy, over)),
                *(nashconv if over != "" else []),
                (
                    f"payoff against {reference}, all; worst agent",
                    "{payoff_change:+.2%}; {payoff_change_worst:+.2%}".format(**metrics),
                ),
                *(
                    (f"{key.replace('_', ' ')}, mean", f"{np.mean(each):.5f}")
                    for key, each in metrics["measures"].items()
                ),
                *_contexts(metrics["contexts"], metrics["contexts_without_feasible_set"], metrics["equilibrium"], over),
                ("agent-steps", f"{metrics['agent_steps']:,}"),
                ("training seconds", f"{metrics['train_seconds']:.1f}"),
            ]
        )
    )


def print_evaluation(found: Evaluation, title: str, console: Console, played: Episodes | None = None) -> None:
    """Measures of one profile, those of whole episodes first where single steps do not tell it all."""
    console.print(f"[bold]{title}[/bold]")
    reference = found.reference.replace("_", " ")
    if played is not None:
        console.print(_episodes(played.rows(), played.agents, "played", reference, played.money))
        numbers = played.numbers
        console.print(
            _pairs(
                [
                    (
                        f"reward of an episode, mean of agents, {reference}",
                        f"{numbers['episode_reward_reference']:.4f}",
                    ),
                    ("reward of an episode, mean of agents, played", f"{numbers['episode_reward']:.4f}"),
                    ("gain of the agent that gains least", f"{numbers['least_gain']:.4f}"),
                ]
            )
        )
        console.print("Single steps, what moves the state as played:")
    console.print(_agents(found.rows(), "played", reference, found.money, found.deviations))
    costs = {
        reference: found.social_cost_truthful,
        "equilibrium": found.social_cost_equilibrium,
        "played": found.social_cost,
        "planner": found.social_cost_coordinated,
    }
    anarchy = {"equilibrium": found.price_of_anarchy, "played": found.price_of_anarchy_played}
    nashconv = [("NashConv", f"{round(found.nashconv, 6) + 0.0:.6f} ± {found.interval:.6f}")]
    console.print(
        _pairs(
            [
                *((label, f"{cost:.4f}") for label, cost in _single("social cost", costs, found.deviations)),
                *((label, _ratio(value)) for label, value in _single("price of anarchy", anarchy, found.deviations)),
                *(nashconv if found.deviations != "" else []),
                *_contexts(found.contexts, found.nearest, found.equilibrium, found.deviations),
            ]
        )
    )


def print_infos(found: Evaluation, console: Console) -> None:
    """What the market reports of the profile: averages per agent, then those of the market."""
    columns = [key for key, value in found.info.items() if value.ndim == 1]
    # As many columns side by side as the console is wide enough for.
    first = max(map(len, found.agents))
    while columns:
        table = Table("agent", title="averages per agent", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
        cells: list[list[str]] = []
        room = console.width - first - 4
        while columns:
            column = [f"{value:.5f}" for value in found.info[columns[0]]]
            header = columns[0].replace("_", " ")
            room -= max(len(header), *map(len, column)) + 2
            if cells and room < 0:
                break
            table.add_column(header, justify="right")
            cells.append(column)
            columns = columns[1:]
        for agent, *row in zip(found.agents, *cells, strict=True):
            table.add_row(agent, *row)
        console.print(table)
    market = [(key, f"{float(value):.5f}") for key, value in found.info.items() if value.ndim == 0]
    if market:
        console.print(_pairs(market))


def print_truthfulness(found: Truthfulness, console: Console) -> None:
    """Regret of misreporting beside what bounds it and what learners gain."""
    contexts = len(found.regret)
    table = Table(title="regret of misreporting [$], others truthful", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("agent")
    alone = contexts == 1
    optional = [*["learned"] * (found.learned is not None), *[f"best {name}" for name in found.parameters] * alone]
    for column in ("regret", "no report gains", "proven bound", *optional):
        table.add_column(column, justify="right")
    for row in found.rows():
        interval = "" if alone else f" ± {row['interval_95']:.6f}"
        table.add_row(
            row["agent"],
            f"{row['regret']:.6f}{interval}",
            f"{row['certificate']:.6f}",
            f"{row['bound']:.6f}",
            *([f"{row['learned'] + 0.0:.6f}"] if found.learned is not None else []),
            *([f"{row[f'report_{name}']:.5g}" for name in found.parameters] if alone else []),
        )
    console.print(table)
    rows = [("contexts", str(contexts)), ("ε, the paper's bound", f"{found.epsilon:g}")]
    if found.agree is not None:
        rows.append(("learned gains within the exact ones", "yes" if found.agree else "NO"))
    console.print(_pairs(rows))


def print_privacy(found: Privacy, console: Console) -> None:
    """Privacy loss of a draw beside the ε that is claimed."""
    console.print(f"[bold]{found.mechanism}[/bold]")
    table = Table(title="privacy loss of one draw, others truthful", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("agent")
    for column in ("claimed ε", "exact loss", "at least, from draws", "told apart by"):
        table.add_column(column, justify="right")
    for n, agent in enumerate(found.agents):
        pair = " | ".join(", ".join(f"{value:.4g}" for value in report) for report in found.reports[n])
        table.add_row(agent, f"{found.claimed:g}", f"{found.exact[n]:.6f}", f"{found.lower[n]:.4f}", pair)
    console.print(table)
    releases = [
        (f"may be published: {name.replace('_', ' ')}", f"ε = {cost:g}") for name, cost in found.releases.items()
    ]
    console.print(
        _pairs(
            [
                ("ε of one draw by the mechanism's account", f"{found.epsilon:g}"),
                (f"ε in all, rounds: {found.rounds}", f"{found.spent:g}"),
                *(releases or [("may be published", "nothing")]),
                ("payments", "never listed"),
                ("draws, confidence", f"2 x {found.samples:,}, 1 - {1.0 - found.confidence:.0e}"),
                (
                    "the claim holds",
                    "none is made" if found.claimed == float("inf") else "yes" if found.holds else "NO",
                ),
            ]
        )
    )
