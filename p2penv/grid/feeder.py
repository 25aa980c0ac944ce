"""Radial distribution feeders: buses, lines, and the matrices that follow from the tree.

Lines are without losses and linear as in (15) of Belgioioso, Ananduta, Grammatico, Ocampo-Martinez, "Operationally-safe
peer-to-peer energy trading in distribution grids", IEEE Transactions on Smart Grid 2022. On a tree the system (15) has
one solution: flows are sums over what lies downstream, drops of voltage and angle sums over the way to the source.

What the linear equations leave out are losses. Against an AC power flow by OpenDSS they overestimate voltages, by at
most 0.0016 p.u. while these stay above 0.95, and underestimate apparent power by at most 1.6 % and the import by at
most 2.5 %; with the shipped feeder's own loads the lowest voltage is 0.95875 p.u. at bus 740, by the AC power flow
0.95725, with losses of 58.86 kW (``tests/test_grid_feeder.py``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from p2penv.core import scenarios, validation
from p2penv.core.tables import read_table

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

COLUMNS = ("from", "to", "length_ft", "configuration", "r_pu", "x_pu", "load_kw", "load_kvar")


@dataclass(frozen=True, eq=False)
class Feeder:
    """A radial feeder of B buses and L = B − 1 lines; line l feeds the l-th bus that is not the source.

    Everything is checked when it is built.

    Raises:
        ValueError: buses named twice, an unknown source, lines that form a cycle or leave a bus without supply,
            impedances that are not positive, loads that are not finite; names bus or line and value.
    """

    name: str
    buses: tuple[str, ...]
    """(B,) names"""
    source: str
    """the bus at which the feeder meets the grid above; its voltage is 1 p.u., its angle 0"""
    parent: Ints
    """(B,) index of the bus that feeds this one; −1 at the source"""
    resistance: Floats
    """(L,) > 0 [p.u.]"""
    reactance: Floats
    """(L,) > 0 [p.u.]"""
    spot_active: Floats
    """(B,) loads the feeder is published with [kW]"""
    spot_reactive: Floats
    """(B,) [kvar]"""
    base_kva: float = 1000.0
    """> 0, power of 1 p.u. [kVA]"""
    base_kv: float = 4.8
    """> 0, voltage of 1 p.u., line to line [kV]"""

    def __post_init__(self) -> None:
        self._set("buses", tuple(str(bus) for bus in self.buses))
        if len(self.buses) < 2:
            raise ValueError(f"a feeder needs at least 2 buses, got {len(self.buses)}")
        twice = {bus for bus in self.buses if self.buses.count(bus) > 1}
        if twice:
            raise ValueError(f"buses named twice: {', '.join(sorted(twice))}")
        self._set("source", str(self.source))
        self.index(self.source)
        parent = np.array(self.parent)
        if parent.shape != (self.size,) or parent.dtype.kind not in "iu":
            raise ValueError(f"parent must be whole numbers of shape ({self.size},), got {parent!r}")
        parent = parent.astype(np.int64)
        for bus, above in zip(self.buses, parent, strict=True):
            if (above == -1) != (bus == self.source) or not -1 <= above < self.size:
                raise ValueError(
                    f"parent of bus {bus} must be {'-1' if bus == self.source else f'in [0, {self.size - 1}]'}, "
                    f"got {above} (the source is {self.source})"
                )
        parent.flags.writeable = False
        self._set("parent", parent)
        for name in ("resistance", "reactance"):
            self._set(name, _values(name, getattr(self, name), self.lines, positive=True))
        for name in ("spot_active", "spot_reactive"):
            self._set(name, _values(name, getattr(self, name), list(self.buses)))
        self._set("base_kva", validation.number("base_kva", self.base_kva, 0.0, open_low=True))
        self._set("base_kv", validation.number("base_kv", self.base_kv, 0.0, open_low=True))
        lost = np.flatnonzero(~self._reaches_source())
        if lost.size:
            names = ", ".join(self.buses[k] for k in lost[:8])
            raise ValueError(f"a cycle of lines keeps these buses from the source {self.source}: {names}")

    def __reduce__(self) -> tuple[type[Feeder], tuple[Any, ...]]:
        # Built anew when copied or unpickled: NumPy's copies could be written to.
        return type(self), tuple(getattr(self, each.name) for each in fields(self))

    def _set(self, field: str, value: Any) -> None:
        object.__setattr__(self, field, value)

    def _reaches_source(self) -> NDArray[np.bool_]:
        at = np.arange(self.size)
        for _ in range(self.size):
            at = np.where(at >= 0, self.parent[at], -1)
        return np.asarray(at < 0)

    @classmethod
    def from_lines(
        cls,
        name: str,
        source: str,
        lines: Sequence[tuple[str, str]],
        resistance: Any,
        reactance: Any,
        loads: dict[str, tuple[float, float]] | None = None,
        base_kva: float = 1000.0,
        base_kv: float = 4.8,
    ) -> Feeder:
        """A feeder of lines given as pairs of buses, in either direction; buses are numbered as they come.

        Args:
            name: of the feeder.
            source: name of the source bus.
            lines: (L,) pairs of bus names.
            resistance: (L,) > 0 [p.u.].
            reactance: (L,) > 0 [p.u.].
            loads: kW and kvar by bus.
            base_kva: power of 1 p.u. [kVA].
            base_kv: voltage of 1 p.u. [kV].

        Raises:
            ValueError: a cycle, a bus without a way to the source, a load at an unknown bus, or bad values.
        """
        pairs = [(str(a), str(b)) for a, b in lines]
        resistance, reactance = (
            validation.floats(k, v) for k, v in (("resistance", resistance), ("reactance", reactance))
        )
        for field, values in (("resistance", resistance), ("reactance", reactance)):
            if values.shape != (len(pairs),):
                raise ValueError(f"{field} must have shape ({len(pairs)},), one for each line, got {values.shape}")
        neighbours: dict[str, list[tuple[str, int]]] = {}
        for k, (a, b) in enumerate(pairs):
            if a == b:
                raise ValueError(f"line {a}-{b} starts and ends at the same bus")
            neighbours.setdefault(a, []).append((b, k))
            neighbours.setdefault(b, []).append((a, k))
        source = str(source)
        validation.choice("source", source, neighbours)
        buses, parent, used = [source], [-1], []
        position = {source: 0}
        at = 0
        while at < len(buses):
            for other, k in neighbours[buses[at]]:
                if k in used:
                    continue
                if other in position:
                    raise ValueError(f"line {pairs[k][0]}-{pairs[k][1]} closes a cycle; the feeder must be radial")
                position[other] = len(buses)
                buses.append(other)
                parent.append(at)
                used.append(k)
            at += 1
        if lost := [bus for bus in neighbours if bus not in position]:
            raise ValueError(f"disconnected feeder: no line leads from source {source} to {', '.join(lost)}")
        active, reactive = np.zeros(len(buses)), np.zeros(len(buses))
        for bus, (kw, kvar) in (loads or {}).items():
            validation.choice("bus of a load", str(bus), buses)
            active[position[str(bus)]], reactive[position[str(bus)]] = kw, kvar
        return cls(
            name, tuple(buses), source, np.array(parent), resistance[used], reactance[used], active, reactive,
            base_kva, base_kv,
        )  # fmt: skip

    @classmethod
    def read(
        cls, path: Any, source: str, name: str | None = None, base_kva: float = 1000.0, base_kv: float = 4.8
    ) -> Feeder:
        """A feeder from a CSV with the columns from, to, length_ft, configuration, r_pu, x_pu, load_kw, load_kvar.

        The load is that of the far end, ``to``.

        Raises:
            ValueError: no such file, other columns, bad values, or whatever :meth:`from_lines` raises.
        """
        table = read_table(path)
        if tuple(table.names) != COLUMNS:
            raise ValueError(f"{table.file}: columns must be {', '.join(COLUMNS)}; got {', '.join(table.names)}")
        values = table.numbers(range(4, 8))
        lines = [(row[0].strip(), row[1].strip()) for row in table.rows]
        loads = {pair[1]: (float(row[2]), float(row[3])) for pair, row in zip(lines, values, strict=True)}
        name = Path(table.file).stem if name is None else name
        return cls.from_lines(name, source, lines, values[:, 0], values[:, 1], loads, base_kva, base_kv)

    def index(self, bus: str) -> int:
        """Index of a bus by its name.

        Raises:
            ValueError: unknown bus; lists the known ones.
        """
        return self.buses.index(validation.choice("bus", str(bus), self.buses))

    @property
    def size(self) -> int:
        """Number of buses B."""
        return len(self.buses)

    @property
    def root(self) -> int:
        """Index of the source."""
        return self.buses.index(self.source)

    @cached_property
    def fed(self) -> Ints:
        """(L,) bus that each line feeds."""
        return np.array([k for k in range(self.size) if k != self.root])

    @cached_property
    def lines(self) -> list[str]:
        """(L,) names of the lines, from–to."""
        return [f"{self.buses[self.parent[k]]}-{self.buses[k]}" for k in self.fed]

    @cached_property
    def downstream(self) -> Floats:
        """(L, B) 1 where a line lies on the way from the source to a bus, else 0."""
        line_of = {int(bus): line for line, bus in enumerate(self.fed)}
        matrix = np.zeros((len(self.fed), self.size))
        for bus in range(self.size):
            at = bus
            while self.parent[at] >= 0:
                matrix[line_of[at], bus] = 1.0
                at = int(self.parent[at])
        return _fixed(matrix)

    @cached_property
    def R(self) -> Floats:
        """(B, B) resistance common to the ways to two buses: v = 1 − R p − X q, θ = R q − X p [p.u./kW]."""
        return _fixed(self.downstream.T @ (self.resistance[:, None] * self.downstream) / self.base_kva)

    @cached_property
    def X(self) -> Floats:
        """(B, B) reactance common to the ways to two buses [p.u./kvar]."""
        return _fixed(self.downstream.T @ (self.reactance[:, None] * self.downstream) / self.base_kva)


def load_feeder(name: str = "ieee37") -> Feeder:
    """A shipped feeder; ``"ieee37"`` is the IEEE 37-node test feeder in its positive-sequence equivalent.

    Raises:
        ValueError: unknown name.
    """
    validation.choice("feeder", name, FEEDERS)
    return Feeder.read(scenarios.folder("grid") / f"{name}.csv", FEEDERS[name])


FEEDERS = {"ieee37": "799"}


def _values(name: str, value: Any, owners: list[str], *, positive: bool = False) -> Floats:
    array = validation.floats(name, value)
    if array.shape != (len(owners),):
        raise ValueError(f"{name} must have shape ({len(owners)},), got {array.shape}")
    wrong = ~np.isfinite(array) | ((array <= 0.0) if positive else False)
    if wrong.any():
        k = int(np.argmax(wrong))
        allowed = "finite and > 0" if positive else "finite"
        raise ValueError(f"{name} of {owners[k]} must be {allowed}, got {float(array[k])!r}")
    return _fixed(array)


def _fixed(array: Floats) -> Floats:
    array.flags.writeable = False
    return array
