"""Windows of the private energy market cleared by a protocol, in this process or by one process a home over TCP."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from rich import box
from rich.console import Console
from rich.table import Table

from p2penv.core import validation
from p2penv.pem import Scenario, load_scenario
from p2penv.pem.protocols import plain
from p2penv.pem.protocols.backends import BACKENDS, need
from p2penv.pem.protocols.channel import ProtocolError
from p2penv.pem.protocols.market import ENERGY, TICKS, Window, names
from p2penv.pem.protocols.roster import Own, Published, public
from p2penv.pem.rules import EXTREME, GENERAL, NO_MARKET

CASES = {NO_MARKET: "grid", GENERAL: "general", EXTREME: "extreme"}
LONGEST = 720  # windows, all of the day


class Cleared(NamedTuple):
    """A window that was cleared, or given up."""

    window: int
    sellers: int
    buyers: int
    expected: Published  # in the clear
    published: Published | None
    traded: float  # by buyers, by what was published [kWh]
    seconds: float
    size: int  # sent between parties [bytes]
    error: ProtocolError | None

    @property
    def right(self) -> bool:
        """Whether the result is the one in the clear."""
        return self.published == self.expected

    def row(self) -> dict[str, Any]:
        """As plain numbers."""
        names = ("case", "price", "fill", "share")
        result = dict(zip(names, self.published or (None,) * 4, strict=True))
        rest = {"traded": self.traded, "seconds": self.seconds, "bytes": self.size, "right": self.right}
        parties = {"window": self.window, "sellers": self.sellers, "buyers": self.buyers}
        return parties | result | rest | {"error": None if self.error is None else str(self.error)}


def windows(homes: int, count: int) -> list[Window]:
    """Windows spread evenly over the shipped day, homes at their base loads, reports true.

    Raises:
        ValueError: too few or too many of them.
    """
    validation.count("homes", homes)
    if not 1 <= count <= LONGEST:
        raise ValueError(f"windows must be in [1, {LONGEST}], got {count}")
    day = load_scenario("day300", homes=homes, windows=LONGEST)
    return windows_at(day, ((np.arange(count) + 0.5) / count * LONGEST).astype(int))


def windows_at(day: Scenario, places: NDArray[np.integer[Any]]) -> list[Window]:
    """Windows of a day by number, homes at their base loads, reports true."""
    found = []
    for at in places:
        net, capacity = day.generation[at] - day.load[at], day.generation[at] + 1.0
        found.append(Window.of(net, day.preference[at], capacity, day.prices, day.hours))
    return found


def run(
    homes: int = 20,
    count: int = 6,
    backend: str = "hardened",
    transport: str = "local",
    *,
    bits: int = 2048,
    insecure: bool = False,
    limit: float = 60.0,
) -> Iterator[Cleared]:
    """Clear windows one after another.

    Args:
        homes: of the shipped day, the first so many.
        count: of windows.
        backend: ``"hardened"``, ``"committee"`` or ``"paper"``.
        transport: ``"local"``, all parties in this process, or ``"tcp"``, each a process of its own.
        bits: of keys; the committee has none.
        insecure: allow keys of fewer than 2048 bits.
        limit: longest time for a window over TCP, longest wait for a message in process [s].

    Raises:
        ImportError: the extra is not installed.
        ValueError: an option out of range.
        ProtocolError: processes that do not start.
    """
    need()
    from p2penv.pem.protocols.keys import check_bits

    validation.choice("backend", backend, BACKENDS)
    validation.choice("transport", transport, ("local", "tcp"))
    check_bits("homes", bits, insecure)
    validation.number("limit", limit, 0.0, open_low=True)
    market = windows(homes, count)
    if transport == "local":
        yield from _local(market, homes, backend, bits, insecure, limit)
    else:
        yield from _tcp(market, homes, backend, bits, insecure, limit)


def _local(
    market: list[Window], homes: int, backend: Any, bits: int, insecure: bool, limit: float
) -> Iterator[Cleared]:
    from p2penv.pem.protocols.clearing import clear
    from p2penv.pem.protocols.member import Community

    community = None if backend == "committee" else Community(homes, bits, insecure=insecure)
    for number, window in enumerate(market, 1):
        start = time.perf_counter()
        try:
            found = clear(window, backend, community=community, timeout=limit)
        except ProtocolError as error:
            yield _cleared(number, window, None, time.perf_counter() - start, 0, error)
            continue
        spent = time.perf_counter() - start
        yield _cleared(number, window, Published(*found.published), spent, found.record.size, None)
        if community is not None:
            community.idle()


def _tcp(market: list[Window], homes: int, backend: str, bits: int, insecure: bool, limit: float) -> Iterator[Cleared]:
    from p2penv.pem.protocols.deployment import Deployment

    columns = [np.stack((each.net, each.preference, each.capacity, each.supply), axis=1) for each in market]
    rows = {name: [Own(*map(int, each[home])) for each in columns] for home, name in enumerate(names(homes))}
    deployment = Deployment(rows, market[0].prices, backend, bits=bits, insecure=insecure, limit=limit)
    with asyncio.Runner() as runner:
        runner.run(deployment.__aenter__())
        try:
            for number, window in enumerate(market, 1):
                found = runner.run(deployment.clear())
                yield _cleared(number, window, found.published, found.seconds, found.size, found.error)
        finally:
            runner.run(deployment.stop())


def _cleared(
    number: int, window: Window, published: Published | None, seconds: float, size: int, error: ProtocolError | None
) -> Cleared:
    known, expected = public(window), Published(*plain.clear(window).published)
    fill = 0 if published is None else published.fill
    traded = float(((np.maximum(-window.net, 0) * fill) >> 16).sum()) / ENERGY
    return Cleared(number, len(known.sellers), len(known.buyers), expected, published, traded, seconds, size, error)


def table(rows: list[Cleared], title: str) -> Table:
    """Windows as a table."""
    columns = ("window", "sell", "buy", "case", "price", "traded", "time", "sent", "right")
    caption = "price in cents/kWh, traded in kWh, time in s, sent in MB; right: as in the clear"
    made = Table(*columns, title=title, caption=caption, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for row in rows:
        case, price = ("given up", "") if row.published is None else _words(row.published)
        numbers = (f"{row.traded:.4f}", f"{row.seconds:.2f}", f"{row.size / 1e6:.3f}")
        parties = map(str, (row.window, row.sellers, row.buyers))
        made.add_row(*parties, case, price, *numbers, "yes" if row.right else "no")
    return made


def _words(published: Published) -> tuple[str, str]:
    return CASES[published.case], f"{published.price / TICKS:.1f}"


def show(rows: list[Cleared], title: str, console: Console) -> None:
    """Print the table and what went wrong."""
    console.print(table(rows, title))
    for row in rows:
        if row.error is not None:
            console.print(f"window {row.window}: {row.error}", highlight=False)
