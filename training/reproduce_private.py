"""Figure 5 and Table I of the private energy market's paper, run time and traffic of its protocols, measured here.

Source: Xie, Wang, Hong, Thai, "Privacy preserving distributed energy trading" (PEM), section VII-B and Table I. What
the paper says is text here; every number of ours is measured: process time of all homes together in one process,
general windows of the shipped day, zeros of ciphertexts made before each window, as in the paper.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from p2penv.core import validation
from p2penv.pem import load_scenario
from p2penv.pem.protocols import plain
from p2penv.pem.protocols.backends import need
from p2penv.pem.protocols.market import Backend, Window
from p2penv.pem.rules import GENERAL
from training.figures import legend, panels, save
from training.private import LONGEST, windows_at
from training.runs import write_csv

HOMES, BITS, WINDOWS = (100, 200, 300), (512, 1024, 2048), 4
MIDDLE = 200  # homes of Table I and Figure 5b
COLOURS = ("#0072b2", "#d55e00", "#22272e")
# Table I: MB at 300, 360, …, 720 windows, by bits of the key.
TABLE = {
    512: (0.45, 0.54, 0.48, 0.52, 0.47, 0.48, 0.55, 0.46),
    1024: (0.84, 0.88, 1.02, 0.93, 0.98, 1.06, 0.97, 0.96),
    2048: (1.87, 2.12, 2.05, 2.11, 2.20, 2.16, 2.05, 2.01),
}


class Measured(NamedTuple):
    """One window."""

    seconds: float  # of process time, all parties
    idle: float  # before it, all parties [s]
    late: int  # zeros that were not made before it
    size: int  # of payloads [bytes]


def general_windows(homes: int, count: int) -> list[Window]:
    """The first windows of the shipped day in which there is a market and demand exceeds supply.

    Raises:
        ValueError: there are not so many.
    """
    day = load_scenario("day300", homes=homes, windows=LONGEST)
    net = day.generation[:-1] - day.load[:-1]
    short = (net.sum(axis=1) < 0) & ((net > 0).sum(axis=1) >= 4) & ((net < 0).sum(axis=1) >= 4)
    found = [window for window in windows_at(day, np.flatnonzero(short)[:count]) if window.open]
    if len(found) < count:
        raise ValueError(f"windows must be at most {len(found)} with {homes} homes, got {count}")
    return found


def measure(backend: Backend, homes: int, bits: int, count: int) -> Iterator[Measured]:
    """Clear windows in this process; one before them, with which keys are made, does not count.

    Raises:
        RuntimeError: a result is not the one in the clear.
    """
    from p2penv.pem.protocols.clearing import clear
    from p2penv.pem.protocols.member import Community

    # The same homes have the tasks in all windows, so that they can prepare.
    community = Community(homes, bits, insecure=bits < 2048, coin=b"measured")
    first, *rest = general_windows(homes, count + 1)
    clear(first, backend, community=community, timeout=600.0)
    for window in rest:
        known = sum(member.late for member in community.members.values())
        start = time.process_time()
        community.idle()
        ready = time.process_time()
        found = clear(window, backend, community=community, timeout=600.0)
        end = time.process_time()
        if not found.same(plain.clear(window)) or found.case != GENERAL:
            raise RuntimeError(f"{backend} cleared {found.published} where {plain.clear(window).published} is right")
        late = sum(member.late for member in community.members.values()) - known
        yield Measured(end - ready, ready - start, late, found.record.size)


def private(
    out: Path,
    report: Callable[[str], None] | None = None,
    *,
    homes: Sequence[int] = HOMES,
    bits: Sequence[int] = BITS,
    windows: int = WINDOWS,
    middle: int = MIDDLE,
) -> list[Path]:
    """Figure 5, Table I and the windows they are made of, of the protocols as printed.

    Args:
        out: folder, made if missing; every file appears in one step.
        report: called with the name of each part before it is made.
        homes: numbers of homes.
        bits: of keys.
        windows: number of windows of each; the paper takes up to 720.
        middle: number of homes of Table I and Figure 5b, one of ``homes``.

    Returns:
        The files written, pictures and tables.

    Raises:
        ImportError: the extra is not installed.
        ValueError: an option out of range.
    """
    need()
    validation.count("windows", windows)
    validation.choice("middle", middle, tuple(homes))
    found: dict[tuple[int, int], list[Measured]] = {}
    for size in homes:
        for key in bits:
            if report is not None:
                report(f"{size} homes, keys of {key} bits")
            found[size, key] = list(measure("paper", size, key, windows))
    rows = [
        {"homes": size, "bits": key, "window": number} | each._asdict()
        for (size, key), parts in found.items()
        for number, each in enumerate(parts, 1)
    ]
    write_csv(out / "figure5-windows.csv", rows, list(rows[0]))
    return [
        *_average(out, found, max(bits)),
        *_total(out, found, middle),
        *_by_homes(out, found),
        *_table(out, found, middle),
        out / "figure5-windows.csv",
    ]


Found = dict[tuple[int, int], list[Measured]]


def _sums(parts: Sequence[Measured]) -> Any:
    return np.cumsum([each.seconds for each in parts])


def _average(out: Path, found: Found, bits: int) -> list[Path]:
    """Average run time of a window against the number of windows."""
    title = f"Figure 5a: average run time of a window, keys of {bits} bits"
    figure, axes = panels(title, "windows", "process time [s]")
    rows = []
    chosen = [(size, parts) for (size, key), parts in found.items() if key == bits]
    for colour, (size, parts) in zip(COLOURS * len(chosen), chosen, strict=False):
        number = np.arange(1, len(parts) + 1)
        average = _sums(parts) / number
        axes.plot(number, average, "o-", color=colour, label=f"{size} homes")
        rows += [
            {"homes": size, "windows": int(m), "seconds": float(value), "paper": "around 1"}
            for m, value in zip(number, average, strict=True)
        ]
    axes.axhline(1.0, color="#aab3bd", linestyle=":", label="paper, around")
    axes.set_ylim(bottom=0.0)
    legend(axes)
    return save(out, "figure5a-average", figure, rows)


def _total(out: Path, found: Found, homes: int) -> list[Path]:
    """Total run time against the number of windows, by size of keys."""
    figure, axes = panels(f"Figure 5b: total run time, {homes} homes", "windows", "process time [s]")
    rows = []
    chosen = [(key, parts) for (size, key), parts in found.items() if size == homes]
    for colour, (key, parts) in zip(COLOURS * len(chosen), chosen, strict=False):
        total = _sums(parts)
        axes.plot(np.arange(1, len(parts) + 1), total, "o-", color=colour, label=f"{key} bits")
        rows += [
            {"bits": key, "windows": m, "seconds": float(value), "paper": "the same for all keys"}
            for m, value in enumerate(total, 1)
        ]
    axes.set_ylim(bottom=0.0)
    legend(axes)
    return save(out, "figure5b-keys", figure, rows)


def _by_homes(out: Path, found: Found) -> list[Path]:
    """Total run time against the number of homes, by size of keys."""
    figure, axes = panels("Figure 5c: total run time by number of homes", "homes", "process time [s]")
    rows = []
    keys = list(dict.fromkeys(key for _, key in found))
    for colour, key in zip(COLOURS * len(keys), keys, strict=False):
        chosen = [(size, parts) for (size, other), parts in found.items() if other == key]
        total = [float(_sums(parts)[-1]) for _, parts in chosen]
        axes.plot([size for size, _ in chosen], total, "o-", color=colour, label=f"{key} bits")
        rows += [
            {
                "homes": size,
                "bits": key,
                "windows": len(parts),
                "seconds": spent,
                "idle_per_home": float(np.mean([each.idle for each in parts])) / size,
                "paper": "rises with the number of homes",
            }
            for (size, parts), spent in zip(chosen, total, strict=True)
        ]
    axes.set_ylim(bottom=0.0)
    legend(axes)
    return save(out, "figure5c-homes", figure, rows)


def _table(out: Path, found: Found, homes: int) -> list[Path]:
    """Payloads of all homes in a window, averaged over windows, beside the paper's averages."""
    rows: list[dict[str, Any]] = []
    for (size, key), parts in found.items():
        if size == homes:
            paper = TABLE.get(key)
            rows.append(
                {
                    "bits": key,
                    "homes": homes,
                    "windows": len(parts),
                    "megabytes": float(np.mean([each.size for each in parts])) / 1e6,
                    "paper_least": "" if paper is None else min(paper),
                    "paper_most": "" if paper is None else max(paper),
                }
            )
    title = f"Table I: sent by all homes in a window, {homes} homes"
    figure, axes = panels(title, "bits of the key", "MB")
    place = np.arange(len(rows))
    axes.bar(place - 0.2, [row["megabytes"] for row in rows], 0.4, color=COLOURS[0], label="here, payloads")
    known = [(at, TABLE[row["bits"]]) for at, row in zip(place, rows, strict=True) if row["bits"] in TABLE]
    axes.bar([at + 0.2 for at, _ in known], [np.mean(each) for _, each in known], 0.4, color=COLOURS[1], label="paper")
    axes.set_xticks(place, [str(row["bits"]) for row in rows])
    legend(axes)
    return save(out, "table1-bandwidth", figure, rows)
