"""Scenarios of trading under network limits.

Source: Belgioioso, Ananduta, Grammatico, Ocampo-Martinez, "Operationally-safe peer-to-peer energy trading in
distribution grids", IEEE Transactions on Smart Grid 2022 (equation numbers in brackets are that paper's).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from p2penv.core import scenarios, validation
from p2penv.core.params import freeze
from p2penv.grid import rules
from p2penv.grid.feeder import Feeder
from p2penv.grid.rules import Params

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Scenario:
    """A day of H hours of N ≥ 2 prosumers who trade in M pairs on a radial feeder.

    Scalars given for a field of prosumers, pairs or hours are spread over them. Everything is checked when it is
    built. Profiles have a row more than there are hours, for the observation after the last. Power in kW, energy in
    kWh, money in €.

    Raises:
        ValueError: names field, prosumer, pair, bus or hour, value and what is allowed.
    """

    feeder: Feeder
    bus: Ints
    """(N,) index of each prosumer's bus, from names of buses too; never the source"""
    demand: Floats
    """(H + 1, N) ≥ 0, without generation [kW]"""
    edges: Ints
    """(M, 2) pairs i < j that may trade"""
    passive_active: Floats
    """(H + 1, B) loads of nobody who trades; their sum must be > 0 in every hour if ``grid_slope`` is not given [kW]"""
    passive_reactive: Floats
    """(H + 1, B) [kvar]"""
    solar: Floats = field(default_factory=lambda: np.array(0.0))
    """(H + 1, N) ≥ 0, can be curtailed [kW]"""
    power_factor: float = 1.0
    """in (0, 1], of the prosumers' demand; 1: no reactive power"""
    trade_cost: Floats = field(default_factory=lambda: np.array(0.08))
    """(M,) c^tr ≥ 0, or (M, 2) where the two of a pair see different ones [€/kWh]"""
    tariff: float = 0.01
    """c^ta ≥ 0, of the operator for trading [€/kWh]"""
    trade_max: Floats = field(default_factory=lambda: np.array(30.0))
    """(M,) p̄^tr > 0 [kW]"""
    dispatch_max: Floats = field(default_factory=lambda: np.array(0.0))
    """(N,) p̄^di ≥ 0 [kW]"""
    dispatch_quadratic: Floats = field(default_factory=lambda: np.array(0.002))
    """(N,) Q ≥ 0 [€/kW²h]"""
    dispatch_linear: Floats = field(default_factory=lambda: np.array(0.045))
    """(N,) c^di ≥ 0 [€/kWh]"""
    storage_power: Floats = field(default_factory=lambda: np.array(0.0))
    """(N,) p̄^ch = p̄^ds ≥ 0; 0 without storage [kW]"""
    storage_min: Floats = field(default_factory=lambda: np.array(0.0))
    """(N,) x̲ ≥ 0 [kWh]"""
    storage_max: Floats = field(default_factory=lambda: np.array(0.0))
    """(N,) x̄ ≥ x̲ [kWh]"""
    initial_charge: Floats = field(default_factory=lambda: np.array(0.0))
    """(N,) x_0 in [x̲, x̄] [kWh]"""
    leakage: Floats = field(default_factory=lambda: np.array(1.0))
    """(N,) η^st in (0, 1], part of the charge that is left after an hour"""
    charge_efficiency: Floats = field(default_factory=lambda: np.array(0.95))
    """(N,) η^ch in (0, 1]"""
    discharge_efficiency: Floats = field(default_factory=lambda: np.array(0.94))
    """(N,) η^ds in (0, 1]"""
    storage_cost: Floats = field(default_factory=lambda: np.array(1e-4))
    """(N,) q_st ≥ 0 [€/kW²h]"""
    final_charge: bool = False
    """whether x_H ≥ x_0 is asked for"""
    grid_slope: Floats = None  # type: ignore[assignment]  # an array once built
    """(H + 1,) d > 0; None: 0.1624 €/kWh over the passive load [€/kWh per kW]"""
    import_min: float = 0.0
    """p̲ of (12) [kW]"""
    import_max: float = np.inf
    """p̄ of (12), ≥ p̲; infinite for none [kW]"""
    line_limit: Floats = field(default_factory=lambda: np.array(np.inf))
    """(L,) s̄ > 0 of (16a), infinite for none [kVA]"""
    voltage_min: float = 0.95
    """in (0, 1) [p.u.]"""
    voltage_max: float = 1.05
    """> 1 [p.u.]"""
    angle_limit: float = np.pi / 12.0
    """> 0 [rad]"""
    reactive: bool = True
    """whether reactive power is balanced; without, there is none (the paper leaves its flows free)"""
    export: bool = False
    """whether p^mg may be negative, paid at the import price"""
    lost_load: float = 10.0
    """≥ 0, value of energy not served [€/kWh]"""
    line_price: float = 1.0
    """≥ 0, of what exceeds the limits of lines and import [€/kVAh]"""
    voltage_price: float = 1000.0
    """≥ 0, of what exceeds voltage limits [€/(p.u.·h)]"""
    angle_price: float = 1000.0
    """≥ 0, of what exceeds angle limits [€/(rad·h)]"""
    step_hours: float = 1.0
    """T_s > 0 [h]"""
    name: str = "custom"

    def __post_init__(self) -> None:
        if not isinstance(self.feeder, Feeder):
            raise TypeError(f"feeder must be a Feeder, got {type(self.feeder).__name__}")
        demand = validation.floats("demand", self.demand)
        if demand.ndim != 2 or demand.shape[0] < 2 or demand.shape[1] < 2:
            raise ValueError(
                "demand must have shape (H + 1, N), a row for each of H >= 1 hours and one for the end, of N >= 2 "
                f"prosumers; got shape {demand.shape}"
            )
        rows, count = demand.shape
        self._set("demand", _profile("demand", demand, demand.shape, "prosumer", low=0.0))
        self._set("solar", _profile("solar", self.solar, demand.shape, "prosumer", low=0.0))
        self._set("bus", self._buses(count))
        for name in ("passive_active", "passive_reactive"):
            self._set(name, _profile(name, getattr(self, name), (rows, self.feeder.size), "bus"))
        self._set("edges", _edges(self.edges, count))
        pairs = len(self.edges)
        cost = validation.floats("trade_cost", self.trade_cost)
        if cost.shape not in ((), (pairs,), (pairs, 2)):
            raise ValueError(f"trade_cost must be a scalar or of shape ({pairs},) or ({pairs}, 2), got {cost.shape}")
        cost = np.broadcast_to(cost[:, None] if cost.ndim == 1 else cost, (pairs, 2))
        self._set("trade_cost", _profile("trade_cost", cost, (pairs, 2), "side", low=0.0, row="pair"))
        self._set("trade_max", _vector("trade_max", self.trade_max, pairs, "pair", open_low=True))
        for name in ("dispatch_max", "dispatch_quadratic", "dispatch_linear", "storage_power", "storage_min",
                     "storage_max", "initial_charge", "storage_cost"):  # fmt: skip
            self._set(name, validation.vector(name, getattr(self, name), count, 0.0))
        for name in ("leakage", "charge_efficiency", "discharge_efficiency"):
            self._set(name, validation.vector(name, getattr(self, name), count, 0.0, 1.0, open_low=True))
        validation.ordered("storage_min", self.storage_min, "initial_charge", self.initial_charge)
        validation.ordered("initial_charge", self.initial_charge, "storage_max", self.storage_max)
        for name, open_low in (
            ("tariff", False), ("lost_load", False), ("line_price", False), ("voltage_price", False),
            ("angle_price", False), ("step_hours", True), ("angle_limit", True),
        ):  # fmt: skip
            self._set(name, validation.number(name, getattr(self, name), 0.0, open_low=open_low))
        self._set("power_factor", validation.number("power_factor", self.power_factor, 0.0, 1.0, open_low=True))
        self._limits()
        self._slope(rows)
        for name in ("final_charge", "reactive", "export"):
            if not isinstance(getattr(self, name), bool | np.bool_):
                raise TypeError(f"{name} must be True or False, got {getattr(self, name)!r}")
        leak = (1.0 - self.leakage) * self.storage_min - self.step_hours * self.charge_efficiency * self.storage_power
        if (leak > 1e-9).any():
            k = int(np.argmax(leak))
            raise ValueError(f"storage_power[{k}] cannot make up for what leaks at storage_min (prosumer_{k})")

    def __reduce__(self) -> tuple[type[Scenario], tuple[Any, ...]]:
        # Built anew when copied or unpickled: NumPy's copies could be written to.
        return type(self), tuple(getattr(self, each.name) for each in dataclasses.fields(self))

    def _set(self, field: str, value: Any) -> None:
        object.__setattr__(self, field, value)

    def _buses(self, count: int) -> Ints:
        given = np.array(self.bus)
        if given.shape != (count,):
            raise ValueError(f"bus must have shape ({count},), one for each prosumer, got {given.shape}")
        if given.dtype.kind in "US":
            given = np.array([self.feeder.index(bus) for bus in given])
        if given.dtype.kind not in "iu":
            raise TypeError(f"bus must hold indices or names of buses, got an array of {given.dtype}")
        for k, bus in enumerate(given):
            if not 0 <= bus < self.feeder.size or bus == self.feeder.root:
                raise ValueError(
                    f"bus[{k}] must be a bus of feeder {self.feeder.name!r} other than the source, in "
                    f"[0, {self.feeder.size - 1}] without {self.feeder.root}, got {int(bus)} (prosumer_{k})"
                )
        given = given.astype(np.int64)
        given.flags.writeable = False
        return given

    def _limits(self) -> None:
        count = len(self.feeder.lines)
        limit = validation.floats("line_limit", self.line_limit)
        if limit.shape not in ((), (count,)):
            raise ValueError(f"line_limit must be a scalar or of shape ({count},), got {limit.shape}")
        limit = np.array(np.broadcast_to(limit, (count,)))
        if not (limit > 0.0).all():
            k = int(np.argmax(~(limit > 0.0)))
            raise ValueError(f"line_limit of line {self.feeder.lines[k]} must be > 0, got {float(limit[k])!r}")
        limit.flags.writeable = False
        self._set("line_limit", limit)
        self._set("import_min", validation.number("import_min", self.import_min))
        high = float(self.import_max)
        if not high >= self.import_min:
            raise ValueError(f"import_max must be at least import_min = {self.import_min:g}, got {high!r}")
        self._set("import_max", high)
        low, high = (validation.number(k, getattr(self, k)) for k in ("voltage_min", "voltage_max"))
        if not 0.0 < low < 1.0 < high:
            raise ValueError(
                f"voltage limits must have voltage_min in (0, 1) and voltage_max > 1, the source's voltage being 1; "
                f"got {low:g} and {high:g}"
            )
        self._set("voltage_min", low)
        self._set("voltage_max", high)

    def _slope(self, rows: int) -> None:
        b = self.passive_total
        if self.grid_slope is None:
            short = b <= 0.0
            if short.any():
                k = int(np.argmax(short))
                raise ValueError(
                    f"passive load of hour {k} must be > 0 for the grid's price 0.1624/b, got {float(b[k])!r} kW; give "
                    "grid_slope"
                )
            self._set("grid_slope", 0.1624 / b)
        self._set("grid_slope", _vector("grid_slope", self.grid_slope, rows, "hour", open_low=True))

    @property
    def size(self) -> int:
        """Number of prosumers N."""
        return self.demand.shape[1]

    @property
    def hours(self) -> int:
        """Number of hours H."""
        return self.demand.shape[0] - 1

    @property
    def pairs(self) -> int:
        """Number of trading pairs M."""
        return len(self.edges)

    @property
    def slots(self) -> int:
        """Most partners of a prosumer K."""
        return self.partner.shape[1]

    @property
    def agents(self) -> list[str]:
        """Names of the prosumers."""
        return [f"prosumer_{k}" for k in range(self.size)]

    @cached_property
    def passive_total(self) -> Floats:
        """(H + 1,) b, passive load of the feeder [kW]."""
        return self.passive_active.sum(axis=1)

    @cached_property
    def reactive_demand(self) -> Floats:
        """(H + 1, N) of prosumers, tan(acos(power factor))·demand [kvar]."""
        return np.tan(np.arccos(self.power_factor)) * self.demand * float(self.reactive)

    @cached_property
    def _tables(self) -> tuple[Ints, Ints, Ints, Ints]:
        """Partner, slot in the partner's list, pair and side of it, ``(N, K)`` each."""
        lists: list[list[tuple[int, int, int]]] = [[] for _ in range(self.size)]
        for m, (i, j) in enumerate(self.edges.tolist()):
            lists[i].append((j, m, 0))
            lists[j].append((i, m, 1))
        width = max(map(len, lists))
        partner, reverse, pair, side = (np.zeros((self.size, width), np.int64) for _ in range(4))
        partner -= 1
        slot = {(i, m): k for i, entries in enumerate(lists) for k, (_, m, _) in enumerate(entries)}
        for i, entries in enumerate(lists):
            for k, (j, m, where) in enumerate(entries):
                partner[i, k], reverse[i, k], pair[i, k], side[i, k] = j, slot[j, m], m, where
        return freeze((partner, reverse, pair, side))

    @property
    def partner(self) -> Ints:
        """(N, K) partner in each slot, −1 where empty."""
        return self._tables[0]

    @property
    def reverse(self) -> Ints:
        """(N, K) slot of the same pair in the partner's list, 0 where empty."""
        return self._tables[1]

    @property
    def pair(self) -> Ints:
        """(N, K) index of the pair, 0 where empty."""
        return self._tables[2]

    @cached_property
    def params(self) -> Params:
        """All arrays the rules need."""
        partner, reverse, pair, side = self._tables
        full = partner >= 0
        count, width = partner.shape
        mirror = np.where(full, partner * width + reverse, np.arange(count * width).reshape(count, width))
        location = np.zeros((count, self.feeder.size))
        location[np.arange(count), self.bus] = 1.0
        scalar = {
            name: np.array(float(getattr(self, name)))
            for name in ("tariff", "import_min", "import_max", "voltage_min", "voltage_max", "angle_limit", "lost_load",
                         "line_price", "voltage_price", "angle_price", "step_hours")
        }  # fmt: skip
        same = {
            name: np.array(getattr(self, name))
            for name in ("demand", "solar", "bus", "dispatch_max", "dispatch_quadratic", "dispatch_linear",
                         "storage_power", "storage_min", "storage_max", "initial_charge", "leakage",
                         "charge_efficiency", "discharge_efficiency", "storage_cost", "passive_active", "passive_total",
                         "grid_slope", "line_limit", "reactive_demand", "partner", "reverse", "pair")
        }  # fmt: skip
        made = {
            "location": location,
            "mirror": mirror.ravel(),
            "slots": full.astype(np.float64),
            "trade_cost": np.where(full, self.trade_cost[pair, side], 0.0),
            "trade_max": np.where(full, self.trade_max[pair], 0.0),
            "passive_reactive": self.passive_reactive * float(self.reactive),
            "downstream": np.array(self.feeder.downstream),
            "resistance": self.feeder.resistance / self.feeder.base_kva,
            "reactance": self.feeder.reactance / self.feeder.base_kva,
            "R": np.array(self.feeder.R),
            "X": np.array(self.feeder.X),
        }
        return freeze(Params(**scalar, **same, **made))

    def replace(self, **fields: Any) -> Scenario:
        """A changed copy.

        Raises:
            TypeError: unknown field.
            ValueError: whatever building a scenario raises.
        """
        scenarios.check_fields(type(self), fields)
        return dataclasses.replace(self, **fields)

    def check_passive(self) -> None:
        """Refuse a feeder that cannot carry its passive loads alone, for then no cut of prosumers helps.

        Raises:
            ValueError: names limit, hour, place and by how much.
        """
        state = rules.passive_state(self.params, slice(None))
        places: tuple[tuple[str, Any, Any, str], ...] = (
            ("line", state.line_excess, self.feeder.lines, "kVA"),
            ("voltage of bus", state.voltage_excess, self.feeder.buses, "p.u."),
            ("angle of bus", state.angle_excess, self.feeder.buses, "rad"),
            ("import at", state.import_excess[:, None], [self.feeder.source], "kW"),
        )
        for what, excess, names, unit in places:
            if (excess > 0.0).any():
                hour, k = np.unravel_index(int(np.argmax(excess)), excess.shape)
                raise ValueError(
                    f"the passive loads alone exceed a limit: {what} {names[k]} by {excess[hour, k]:g} {unit} in hour "
                    f"{hour}"
                )

    @classmethod
    def random(cls, prosumers: int, seed: int = 0, **options: Any) -> Scenario:
        """Households on the IEEE 37-node feeder: :func:`p2penv.grid.load_scenario` with this size and seed."""
        from p2penv.grid.loading import load_scenario

        return load_scenario("ieee37", prosumers=prosumers, seed=seed, **options)


def _vector(name: str, value: Any, size: int, owner: str, *, open_low: bool = False) -> Floats:
    array = validation.floats(name, value)
    if array.shape not in ((), (size,)):
        raise ValueError(f"{name} must be a scalar or of shape ({size},), one for each {owner}, got {array.shape}")
    return _profile(name, array, (1, size), owner, low=0.0, open_low=open_low)[0]


def _profile(
    name: str, value: Any, shape: tuple[int, ...], owner: str, low: float = -np.inf, *, open_low: bool = False,
    row: str = "hour",
) -> Floats:  # fmt: skip
    array = validation.floats(name, value)
    if array.ndim == 0 or (shape[0] == 1 and array.shape == shape[1:]):
        array = np.array(np.broadcast_to(array, shape))
    if array.shape != shape:
        raise ValueError(f"{name} must have shape {shape}, got {array.shape}")
    wrong = ~np.isfinite(array) | (array < low) | ((array <= low) if open_low else False)
    if wrong.any():
        j, k = (int(i) for i in np.argwhere(wrong)[0])
        allowed = "finite" if np.isinf(low) else f"finite and {'>' if open_low else '>='} {low:g}"
        where = f"{owner}_{k}" if shape[0] == 1 else f"{row} {j}, {owner}_{k}"
        raise ValueError(f"{name} must be {allowed}, got {float(array[j, k])!r} ({where})")
    array.flags.writeable = False
    return array


def _edges(value: Any, count: int) -> Ints:
    edges = np.array(value)
    if edges.ndim != 2 or edges.shape[1] != 2 or not len(edges) or edges.dtype.kind not in "iu":
        raise ValueError(f"edges must be whole numbers of shape (M, 2) with M >= 1, got {value!r}")
    edges = edges.astype(np.int64)
    seen = set()
    for m, (i, j) in enumerate(edges.tolist()):
        if not 0 <= i < j < count:
            raise ValueError(f"edges[{m}] must be two prosumers i < j in [0, {count - 1}], got ({i}, {j})")
        if (i, j) in seen:
            raise ValueError(f"edges[{m}] = ({i}, {j}) is there twice")
        seen.add((i, j))
    edges.flags.writeable = False
    return edges
