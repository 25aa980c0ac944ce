"""What the regenerated figures have in common: look, and files that appear in one step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from p2penv.communication.render import INK, RULE
from training.runs import write_atomic, write_csv


def style(axes: Any) -> None:
    """Light frame and grid."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(RULE)
    axes.tick_params(which="both", colors=INK, labelsize=9)
    axes.grid(axis="y", color=RULE, lw=0.5, alpha=0.7)
    axes.set_axisbelow(True)


def log_axis(axes: Any) -> None:
    """Logarithmic x axis with plain numbers."""
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")


def panels(title: str, field: str, *labels: str, log: bool = False) -> tuple[Any, ...]:
    """A figure and one panel for each label, above each other over the same field."""
    figure = Figure(figsize=(7.2, 4.8 + 1.4 * (len(labels) - 1)), dpi=150, layout="constrained")
    found = figure.subplots(len(labels), sharex=True, squeeze=False, height_ratios=[3, 1][: len(labels)])[:, 0]
    found[0].set_title(title, fontsize=11, color=INK, loc="left")
    found[-1].set_xlabel(field, fontsize=10, color=INK)
    if log:
        log_axis(found[0])
    for axes, label in zip(found, labels, strict=True):
        axes.set_ylabel(label, fontsize=10, color=INK)
        style(axes)
    return figure, *found


def grid(title: str, field: str, label: str, names: Sequence[str], columns: int, *, log: bool = False) -> Any:
    """A figure and its panels ``(rows, columns)`` over the same field, one for each name."""
    rows = -(-len(names) // columns)
    figure = Figure(figsize=(3.4 * columns, 1.0 + 2.5 * rows), dpi=150, layout="constrained")
    found = figure.subplots(rows, columns, sharex=True, squeeze=False)
    figure.suptitle(title, fontsize=11, color=INK, x=0.01, ha="left")
    for axes, name in zip(found.flat, names, strict=True):
        axes.set_title(name, fontsize=9.5, color=INK, loc="left")
        style(axes)
        if log:
            log_axis(axes)
    for axes in found[-1]:
        axes.set_xlabel(field, fontsize=10, color=INK)
    for axes in found[:, 0]:
        axes.set_ylabel(label, fontsize=10, color=INK)
    return figure, found


def legend(axes: Any, **options: Any) -> None:
    """A plain legend."""
    axes.legend(frameon=False, labelcolor=INK, **{"fontsize": 8.5, **options})


def save(out: Path, name: str, figure: Figure, rows: Sequence[Mapping[str, Any]]) -> list[Path]:
    """Write picture and table, each in one step; the files written."""
    picture, table = out / f"{name}.png", out / f"{name}.csv"
    draw: Callable[[Path], None] = figure.savefig
    write_atomic(picture, draw)
    write_csv(table, rows, list(rows[0]))
    return [picture, table]
