"""Scenarios of the communication game: parameters, shipped cases, random instances.

Source: Shilov, Le Cadre, Bušić, "Privacy impact on generalized Nash equilibrium in peer-to-peer electricity
market" (equation numbers in brackets are that paper's).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from p2penv.communication.params import Params, derive, price_bounds
from p2penv.core import scenarios, validation
from p2penv.core.params import cast, freeze

Floats = NDArray[np.float64]
# Sizes of numbers whose products stay finite, and how far apart budgets may be: beyond it sums lose the small ones.
LEAST, MOST = 1e-9, 1e9
APART = 1e12


@dataclass(frozen=True, eq=False)
class Scenario:
    """Parameters of one communication game with N ≥ 2 agents; node 0 is the root.

    Scalars given for a per-agent field are spread over all agents. Everything is checked when it is built; no number
    may be larger than 1e9. Money in $, energy in MWh.

    Raises:
        ValueError: names field, agent, value and what is allowed; also when no report total keeps every agent's
            expected generation and demand inside their boxes.
    """

    discomfort: Floats
    """(N,) ã ≥ 1e-9, curvature of the disutility ã(D − D*)² of moving demand [$/MWh²]"""
    usage_benefit: Floats
    """(N,) b̃, benefit of consuming the nominal demand [$]"""
    generation_curvature: Floats
    """(N,) a ≥ 1e-9 in the cost aG²/2 + bG + d [$/MWh²]"""
    generation_price: Floats
    """(N,) b in the cost of generation [$/MWh]"""
    fixed_cost: Floats
    """(N,) d in the cost of generation [$]"""
    nominal_demand: Floats
    """(N,) D* [MWh]"""
    renewable_generation: Floats
    """(N,) ΔG ≥ 0, not flexible [MWh]"""
    demand_min: Floats
    """(N,) [MWh]"""
    demand_max: Floats
    """(N,) [MWh]"""
    generation_min: Floats
    """(N,) [MWh]"""
    generation_max: Floats
    """(N,) [MWh]"""
    max_shift: Floats
    """(N,) α ≥ 0, largest distance of the deterministic report from the truth (8d) [MWh]"""
    privacy_budget: Floats
    """(N,) A ≥ 1e-9, largest Kullback-Leibler privacy loss (8e), within a factor of 1e12 of each other [nat]"""
    wholesale_price: float
    """p0 ≥ 0, at which the operator buys the imbalance [$/MWh]"""
    root_price: Floats
    """(N,) c_0n, trading price with node 0; all equal where trading is homogeneous [$/MWh]"""
    price_matrix: Floats | None = None
    """(N, N) c_nm, what n pays per MWh imported from m; None: homogeneous [$/MWh]

    Read only on lines that do not touch node 0, whose price is ``root_price``; bookkeeping is "root" then.
    """
    lines: NDArray[np.int64] = dataclasses.field(default_factory=lambda: np.zeros((0, 2), np.int64))
    """(L, 2) pairs of neighbours"""
    line_capacity: Floats = dataclasses.field(default_factory=lambda: np.zeros(0))
    """(L,) κ ≥ 0; lines that touch node 0 are unlimited (Assumption 1) [MWh]"""
    symmetric_flow: Floats = dataclasses.field(default_factory=lambda: np.zeros(0))
    """(L,) flow into the first node of lines whose two prices are equal, which no condition determines [MWh]"""
    bookkeeping: Literal["each", "root"] = "each"
    """who books the trade of an imbalance: each agent its own (3), or node 0 the rest (5), as it always does
    where prices are heterogeneous"""
    privacy: Literal["budget", "floor"] = "budget"
    """least variance: x²/(2A), or α²/(2A) whatever the shift, which hides truthful reports too"""
    margin: float = 1e-3
    """ω ≥ 0, by which the boxes of (8b), (8c) are shrunk [MWh]"""
    positions: Floats | None = None
    """(N, 2) where to draw each node; None: on a circle"""
    name: str = "custom"

    def __post_init__(self) -> None:
        vectors = (
            ("discomfort", LEAST),
            ("usage_benefit", -MOST),
            ("generation_curvature", LEAST),
            ("generation_price", -MOST),
            ("fixed_cost", -MOST),
            ("nominal_demand", 0.0),
            ("renewable_generation", 0.0),
            ("demand_min", 0.0),
            ("demand_max", 0.0),
            ("generation_min", 0.0),
            ("generation_max", 0.0),
            ("max_shift", 0.0),
            ("privacy_budget", LEAST),
            ("root_price", -MOST),
        )
        # Any of them may be a scalar, in an override for one; the length most of them have is N.
        sizes = [np.size(getattr(self, field)) for field, _ in vectors if np.ndim(getattr(self, field))]
        size = max(sizes, key=lambda length: (sizes.count(length), length), default=1)
        if size < 2:
            raise ValueError(f"a communication game needs at least 2 agents, got N = {size}")
        for field, low in vectors:
            self._set(field, validation.vector(field, getattr(self, field), size, low, MOST))
        least, most = int(np.argmin(self.privacy_budget)), int(np.argmax(self.privacy_budget))
        if self.privacy == "budget" and self.privacy_budget[most] > APART * self.privacy_budget[least]:
            raise ValueError(
                f"privacy_budget must not differ by more than a factor of {APART:g}, which rounding would not survive; "
                f"got {self.privacy_budget[least]:g} (agent {least}) and {self.privacy_budget[most]:g} (agent {most})"
            )
        validation.ordered("demand_min", self.demand_min, "demand_max", self.demand_max)
        validation.ordered("generation_min", self.generation_min, "generation_max", self.generation_max)
        validation.ordered("demand_min", self.demand_min, "nominal_demand", self.nominal_demand)
        validation.ordered("nominal_demand", self.nominal_demand, "demand_max", self.demand_max)
        self._set("wholesale_price", validation.number("wholesale_price", self.wholesale_price, 0.0, MOST))
        self._set("margin", validation.number("margin", self.margin, 0.0, MOST))
        validation.choice("bookkeeping", self.bookkeeping, ("each", "root"))
        validation.choice("privacy", self.privacy, ("budget", "floor"))
        self._check_network(size)
        self._check_prices(size)
        low, high = (float(bound) for bound in price_bounds(self.params()))
        if low > high:
            raise ValueError(
                "empty feasible set: expected generation and demand fit no price, which would have to be at least "
                f"{low:g} and at most {high:g} $/MWh; widen generation_min/max, demand_min/max or lower margin"
            )

    def __reduce__(self) -> tuple[type[Scenario], tuple[Any, ...]]:
        # Built anew when copied or unpickled: NumPy's copies could be written to.
        return type(self), tuple(getattr(self, field.name) for field in dataclasses.fields(self))

    def _set(self, field: str, value: Any) -> None:
        object.__setattr__(self, field, value)

    def _check_network(self, size: int) -> None:
        pairs = validation.floats("lines", self.lines)
        pairs = pairs.reshape(0, 2) if pairs.size == 0 else pairs
        if pairs.shape[1:] != (2,):
            raise ValueError(f"lines must be pairs of nodes, shape (L, 2), got shape {pairs.shape}")
        nodes = (pairs >= 0) & (pairs < size) & (pairs == np.floor(pairs))
        for first, second in pairs[~nodes.all(1) | (pairs[:, 0] == pairs[:, 1])]:
            raise ValueError(f"lines must join two different nodes of 0 … {size - 1}, got ({first:g}, {second:g})")
        lines = pairs.astype(np.int64)
        keys = np.sort(lines, axis=1) @ np.array([size, 1])
        if np.unique(keys).size != keys.size:
            raise ValueError("lines must not repeat a pair of nodes")
        lines.flags.writeable = False
        self._set("lines", lines)
        for field, low in (("line_capacity", 0.0), ("symmetric_flow", -MOST)):
            value = 0.0 if np.size(getattr(self, field)) == 0 else getattr(self, field)
            self._set(field, validation.vector(field, value, len(lines), low, MOST, owner="line"))
        if self.positions is not None:
            positions = validation.floats("positions", self.positions)
            if positions.shape != (size, 2) or not np.isfinite(positions).all():
                raise ValueError(f"positions must be finite and of shape ({size}, 2), got shape {positions.shape}")
            positions.flags.writeable = False
            self._set("positions", positions)

    def _check_prices(self, size: int) -> None:
        if self.price_matrix is None:
            if np.ptp(self.root_price) > 0:
                raise ValueError("root_price differs between agents: give price_matrix too (Proposition 3)")
            if np.any(self.symmetric_flow):
                raise ValueError("symmetric_flow needs a price_matrix with equal prices on the line")
            return
        matrix = validation.floats("price_matrix", self.price_matrix)
        if matrix.shape != (size, size):
            raise ValueError(f"price_matrix must have shape ({size}, {size}), got {matrix.shape}")
        first, second = self.lines.T
        used, clear = np.stack([matrix[first, second], matrix[second, first]]), (first != 0) & (second != 0)
        unknown = clear & ~np.isfinite(used).all(0)
        if unknown.any():
            line = self.lines[int(np.argmax(unknown))]
            raise ValueError(f"price_matrix must be finite on line ({line[0]}, {line[1]})")
        tied = (used[0] == used[1]) & clear
        wrong = (~tied & (self.symmetric_flow != 0)) | (np.abs(self.symmetric_flow) > self.line_capacity)
        if wrong.any():
            line = int(np.argmax(wrong))
            raise ValueError(
                f"symmetric_flow[{line}] must be 0 unless the two prices of line {tuple(self.lines[line].tolist())} "
                f"are equal, and at most its capacity {self.line_capacity[line]:g}; got {self.symmetric_flow[line]:g}"
            )
        matrix.flags.writeable = False
        self._set("price_matrix", matrix)

    @property
    def size(self) -> int:
        """Number of agents N."""
        return self.discomfort.size

    @property
    def private_information(self) -> Floats:
        """(N,) y = D* − ΔG, what each agent reports on [MWh]."""
        return self.nominal_demand - self.renewable_generation

    @cached_property
    def bilateral_flows(self) -> Floats:
        """(L,) flow into the first node of each line that does not touch node 0 (Proposition 2) [MWh].

        The neighbour with the smaller price imports at capacity. Zero on lines of node 0, whose flows are what is
        left of the net imports, and where trading is homogeneous: no condition determines single flows then.
        """
        if self.price_matrix is None:
            return np.zeros(len(self.lines))
        first, second = self.lines.T
        gain = np.sign(self.price_matrix[second, first] - self.price_matrix[first, second])
        flow = np.where(gain == 0, self.symmetric_flow, gain * self.line_capacity)
        return np.where((first == 0) | (second == 0), 0.0, flow)

    def params(self, xp: ModuleType = np, dtype: Any = None) -> Params:
        """Arrays of the scenario in a namespace, with what the rules derive from them.

        Args:
            xp: array namespace (``numpy``, ``jax.numpy``, ``array_api_compat.torch``).
            dtype: floating dtype, float64 by default.

        Raises:
            ValueError: the namespace cannot hold the dtype (JAX without x64 would silently round to float32).
        """
        if xp is np and dtype in (None, np.float64):
            return self._params
        return cast(self._params, xp, dtype)  # derived fields are rounded once, from their float64 values

    @cached_property
    def _params(self) -> Params:
        return freeze(derive(Params(*self._raw())))

    def _raw(self) -> tuple[Floats, ...]:
        floor = self.privacy == "floor"
        first, second = self.lines.T
        flow, prices = self.bilateral_flows, self.price_matrix
        imports, bill = np.zeros(self.size), np.zeros(self.size)
        if prices is not None:
            clear = (first != 0) & (second != 0)
            first, second, flow = first[clear], second[clear], flow[clear]
            np.add.at(imports, first, flow)
            np.add.at(imports, second, -flow)
            np.add.at(bill, first, prices[first, second] * flow)
            np.add.at(bill, second, -prices[second, first] * flow)
        root = np.zeros(self.size)
        root[0] = self.bookkeeping == "root" or prices is not None
        least = 0.5 / self.privacy_budget
        return (
            self.discomfort,
            self.usage_benefit,
            self.generation_curvature,
            self.generation_price,
            self.fixed_cost,
            self.nominal_demand,
            self.renewable_generation,
            self.demand_min,
            self.demand_max,
            self.generation_min,
            self.generation_max,
            self.max_shift,
            self.privacy_budget,
            np.zeros(self.size) if floor else least,
            least * self.max_shift**2 if floor else np.zeros(self.size),
            np.array(self.wholesale_price),
            self.root_price,
            imports,
            bill,
            root,
            np.array(self.margin),
        )

    def replace(
        self,
        *,
        net_load: float | None = None,
        trading_price: ArrayLike | tuple[ArrayLike, ArrayLike] | None = None,
        **fields: Any,
    ) -> Scenario:
        """A changed copy.

        Args:
            net_load: Y = Σy, met by scaling renewable generation [MWh].
            trading_price: a scalar (homogeneous), or ``(root_price (N,), price_matrix (N, N))`` [$/MWh].
            **fields: any field of the scenario.

        Raises:
            TypeError: unknown field.
            ValueError: renewable generation would turn negative, or whatever building a scenario raises.
        """
        scenarios.check_fields(type(self), fields, "net_load", "trading_price")
        if trading_price is not None:
            fields |= _trading_fields(trading_price)
        scenario = dataclasses.replace(self, **fields) if fields else self
        if net_load is None:
            return scenario
        target = validation.number("net_load", net_load)
        demand, renewable = scenario.nominal_demand.sum(), scenario.renewable_generation.sum()
        if demand < target:
            raise ValueError(
                f"net_load must be at most the nominal demand {demand:g} MWh, or renewable generation would turn "
                f"negative; got {target!r}"
            )
        if renewable == 0:
            if demand == target:
                return scenario
            raise ValueError(f"net_load {target!r} needs renewable generation to scale; the scenario has none")
        factor = (demand - target) / renewable
        return dataclasses.replace(scenario, renewable_generation=scenario.renewable_generation * factor)

    @classmethod
    def random(cls, n: int, seed: int | None = None) -> Scenario:
        """A feasible random scenario of any size with a connected network, about 1.5 lines an agent.

        Every agent's expected generation and demand are inside their boxes at truthful play, so a variational
        equilibrium exists. An agent moves the price by about 1/N: with privacy budgets of that order and p0 near
        price − c some agents of a market of any size over-report, some under-report and some stop in between.
        """
        if validation.count("n", n) < 2:
            raise ValueError(f"a communication game needs at least 2 agents, got n = {n}")
        rng = np.random.default_rng(None if seed is None else validation.seed("seed", seed))
        price = rng.uniform(9.0, 12.0)
        a, b = rng.uniform(0.3, 1.0, n), rng.uniform(4.0, 8.0, n)
        discomfort, trading_price = rng.uniform(0.3, 5.0, n), rng.uniform(0.5, 2.0)
        # What each agent sheds and generates at the price that is to clear the market.
        shed, generation = price / (2 * discomfort), (price - b) / a
        demand = (shed + generation) * rng.uniform(1.1, 1.6, n)
        share = rng.uniform(0.0, 1.0, n) * (rng.uniform(size=n) < 0.3)
        share[rng.integers(n)] += 1.0
        tree = np.stack([np.arange(1, n), (rng.uniform(size=n - 1) * np.arange(1, n)).astype(np.int64)], axis=1)
        extra = rng.integers(0, n, (n // 2, 2))
        pairs = np.sort(np.concatenate([tree, extra[extra[:, 0] != extra[:, 1]]]), axis=1)
        return cls(
            discomfort=discomfort,
            usage_benefit=rng.uniform(0.0, 6.0, n),
            generation_curvature=a,
            generation_price=b,
            fixed_cost=rng.uniform(0.0, 15.0, n),
            nominal_demand=demand,
            renewable_generation=(demand - shed - generation).sum() * share / share.sum(),
            demand_min=np.zeros(n),
            demand_max=demand + 5.0,
            generation_min=np.zeros(n),
            generation_max=generation * rng.uniform(1.3, 3.0, n),
            max_shift=rng.uniform(0.5, 3.0, n),
            # Shrinking with the market, or every agent of a large one would report at a bound.
            privacy_budget=10.0 ** rng.uniform(-1.0, 1.0, n) / n,
            wholesale_price=rng.uniform(0.75, 1.0) * (price - trading_price),
            root_price=np.full(n, trading_price),
            lines=np.unique(pairs, axis=0),
            line_capacity=np.array(4.0),
            name=f"random-{n}" if seed is None else f"random-{n}-{seed}",
        )


def _trading_fields(price: ArrayLike | tuple[ArrayLike, ArrayLike]) -> dict[str, Any]:
    if isinstance(price, tuple | list):
        matrix = validation.floats("price_matrix", price[1]) if len(price) == 2 else np.zeros(0)
        if matrix.ndim != 2:
            raise ValueError("trading_price must be a scalar or (root prices (N,), price matrix (N, N))")
        return {"root_price": price[0], "price_matrix": matrix}
    if np.ndim(price) != 0:
        raise ValueError("trading_price must be a scalar or (root prices (N,), price matrix (N, N))")
    return {"root_price": price, "price_matrix": None}


def scenario_names() -> list[str]:
    """Names of the shipped scenarios."""
    return scenarios.names("communication")


def load_scenario(name: str | Path = "ieee14", **overrides: Any) -> Scenario:
    """Load a shipped scenario, or one from a TOML file of the same layout.

    Args:
        name: one of :func:`scenario_names`, or the path of a ``.toml`` file.
        **overrides: what :meth:`Scenario.replace` takes: ``net_load``, ``max_shift``, ``privacy_budget``,
            ``wholesale_price``, ``trading_price`` and every other field.

    Raises:
        ValueError: unknown name (the error lists the known ones) or bad values.
        TypeError: unknown field.
    """
    scenario = scenarios.build(Scenario, _read(name), str(name))
    return scenario.replace(**overrides) if overrides else scenario


def _read(name: str | Path, above: tuple[str, ...] = ()) -> dict[str, Any]:
    table, parent = scenarios.read("communication", name)
    if str(name) in above:
        raise ValueError(f"scenario {str(name)!r} is based on itself: {' -> '.join((*above, str(name)))}")
    # Before the base's fields are filled in: its trading price must not replace this table's own prices.
    if "trading_price" in table:
        table |= _trading_fields(table.pop("trading_price"))
    if "base" not in table:
        return table
    base = str(table.pop("base"))
    return _read(parent / base if base.endswith(".toml") else base, (*above, str(name))) | table
