"""How fast is private clearing? Process time of all parties together in this process, medians over windows."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median

from benchmarks.speed import Row
from p2penv.pem.protocols.backends import need
from p2penv.pem.protocols.market import Backend

CASES: tuple[tuple[Backend, int, str, str], ...] = (
    ("paper", 100, "<= 1", "0.5"),
    ("paper", 200, "<= 2", "1"),
    ("paper", 300, "<= 2.5", "1.2"),
    ("hardened", 100, "", ""),
    ("hardened", 200, "", ""),
    ("hardened", 300, "<= 5", ""),
    ("committee", 300, "<= 0.8", ""),
)


def rows(quick: bool) -> Iterator[Row]:
    """A window of general price, keys of 2048 bits, zeros ready; and what is computed before it."""
    try:
        need()
    except ImportError as error:
        yield Row("private clearing", None, "s", note=f"skipped: {error}")
        return
    from training.reproduce_private import measure

    bits, count = (512, 1) if quick else (2048, 3)
    for backend, homes, target, aim in CASES:
        size = 20 if quick else homes
        found = list(measure(backend, size, bits, count))
        name = f"{backend} clearing, n = {size}" + (f", {bits} bit" if backend != "committee" else "")
        note = {"paper": "the paper: around 1 s on 8 cores", "committee": "no keys"}.get(backend, "")
        yield Row(name, median(each.seconds for each in found), "s", target, aim, note)
        if backend != "committee":
            idle = 1e3 * median(each.idle for each in found) / size
            yield Row(f"{backend} clearing, n = {size}, idle time before it", idle, "ms a home")
