"""Scenarios of the VCG market: parameters, the shipped case, random instances.

Source: Hoseinpour, Hoseinpour, Haghifam, Haghifam, "Privacy-preserving and approximately truthful local electricity
markets: a differentially private VCG mechanism" (numbers in brackets are that paper's).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from p2penv.core import scenarios, validation
from p2penv.dpvcg.rules import Bids, Bounds

Floats = NDArray[np.float64]
# Quantities follow prices at a rate of one over twice the curvature, which must leave them digits [$/kWh²].
LEAST_CURVATURE = 1e-9


@dataclass(frozen=True, eq=False)
class Scenario:
    """A local market of consumers and producers with quadratic valuations.

    Scalars given for a field of a group are spread over the group. Everything is checked when it is built. Energy in
    kWh, money in $; agents are numbered with the consumers first.

    Raises:
        ValueError: names field, agent, value and what is allowed; also when supply and demand cannot balance.
    """

    utility_quadratic: Floats
    """(C,) a^u < 0 in the utility a d² + b d + c of demand d [$/kWh²]"""
    utility_linear: Floats
    """(C,) b^u [$/kWh]"""
    utility_constant: Floats
    """(C,) c^u [$]"""
    demand_min: Floats
    """(C,) ≥ 0 [kWh]"""
    demand_max: Floats
    """(C,) > demand_min [kWh]"""
    cost_quadratic: Floats
    """(G,) a^g > 0 in the cost a g² + b g + c of generation g [$/kWh²]"""
    cost_linear: Floats
    """(G,) b^g [$/kWh]"""
    cost_constant: Floats
    """(G,) c^g [$]"""
    generation_min: Floats
    """(G,) ≥ 0 [kWh]"""
    generation_max: Floats
    """(G,) > generation_min [kWh]"""
    sampled_allocations: Floats | None = None
    """(m, C + G) demands, then generations, of a published range, within the limits; balance is not asked of them"""
    name: str = "custom"

    def __post_init__(self) -> None:
        consumers = self._group("utility_quadratic", "utility_linear", "utility_constant", "demand_min", "demand_max")
        producers = self._group("cost_quadratic", "cost_linear", "cost_constant", "generation_min", "generation_max")
        for field, sign in (("utility_quadratic", -1.0), ("cost_quadratic", 1.0)):
            wrong = sign * getattr(self, field) < LEAST_CURVATURE
            if wrong.any():
                agent = int(np.argmax(wrong))
                shape = f"<= -{LEAST_CURVATURE:g}: utility is" if sign < 0 else f">= {LEAST_CURVATURE:g}: cost is"
                kind = "strictly concave" if sign < 0 else "strictly convex"
                raise ValueError(f"{field}[{agent}] must be {shape} {kind}, got {float(getattr(self, field)[agent])!r}")
        for group, size in (("demand", consumers), ("generation", producers)):
            low, high = getattr(self, f"{group}_min"), getattr(self, f"{group}_max")
            for agent in range(size):
                if low[agent] >= high[agent]:
                    raise ValueError(
                        f"{group}_min[{agent}] = {low[agent]:g} must be below {group}_max[{agent}] = {high[agent]:g}"
                    )
        least, most = float(self.bounds.low.sum()), float(self.bounds.high.sum())
        if least > 0 or most < 0:
            raise ValueError(
                f"empty feasible set: demand of {self.demand_min.sum():g} to {self.demand_max.sum():g} kWh cannot meet "
                f"generation of {self.generation_min.sum():g} to {self.generation_max.sum():g} kWh"
            )
        if self.sampled_allocations is not None:
            points = validation.floats("sampled_allocations", self.sampled_allocations)
            if points.ndim != 2 or points.shape[1] != self.size or not np.isfinite(points).all():
                raise ValueError(
                    f"sampled_allocations must be finite and of shape (m, {self.size}), got shape {points.shape}"
                )
            signed = points * self.sign
            outside = (signed < self.bounds.low - 1e-9) | (signed > self.bounds.high + 1e-9)
            if outside.any():
                row, agent = (int(i) for i in np.argwhere(outside)[0])
                raise ValueError(
                    f"sampled_allocations[{row}] of agent {agent} must be in "
                    f"[{min(abs(self.bounds.low[agent]), abs(self.bounds.high[agent])):g}, "
                    f"{max(abs(self.bounds.low[agent]), abs(self.bounds.high[agent])):g}], got {points[row, agent]:g}; "
                    "with other limits, set sampled_allocations to None"
                )
            points.flags.writeable = False
            object.__setattr__(self, "sampled_allocations", points)

    def __reduce__(self) -> tuple[type[Scenario], tuple[Any, ...]]:
        # Built anew when copied or unpickled: NumPy's copies could be written to.
        return type(self), tuple(getattr(self, field.name) for field in dataclasses.fields(self))

    def _group(self, *fields: str) -> int:
        sizes = {np.size(getattr(self, field)) for field in fields if np.ndim(getattr(self, field))}
        size = max(sizes, default=1)
        for field in fields:
            low = 0.0 if field.endswith(("_min", "_max")) else -np.inf
            object.__setattr__(self, field, validation.vector(field, getattr(self, field), size, low))
        return size

    @property
    def consumers(self) -> int:
        """Number of consumers C."""
        return self.utility_quadratic.size

    @property
    def producers(self) -> int:
        """Number of producers G."""
        return self.cost_quadratic.size

    @property
    def size(self) -> int:
        """Number of agents n = C + G."""
        return self.consumers + self.producers

    @property
    def agents(self) -> list[str]:
        """Names of the agents."""
        return [f"consumer_{k}" for k in range(self.consumers)] + [f"producer_{k}" for k in range(self.producers)]

    @cached_property
    def sign(self) -> Floats:
        """(n,) of the signed quantity: 1 for consumers, −1 for producers."""
        return _frozen(np.repeat([1.0, -1.0], [self.consumers, self.producers]))

    @cached_property
    def bids(self) -> Bids:
        """True valuations in the signed quantity, ``(n,)``."""
        return Bids(
            _frozen(np.concatenate([self.utility_quadratic, -self.cost_quadratic])),
            _frozen(np.concatenate([self.utility_linear, self.cost_linear])),
            _frozen(np.concatenate([self.utility_constant, -self.cost_constant])),
        )

    @cached_property
    def bounds(self) -> Bounds:
        """Limits of the signed quantities, ``(n,)`` [kWh]."""
        return Bounds(
            _frozen(np.concatenate([self.demand_min, 0.0 - self.generation_max])),
            _frozen(np.concatenate([self.demand_max, 0.0 - self.generation_min])),
        )

    def check_submarkets(self) -> None:
        """Refuse a scenario that does not clear without one of its agents: payments compare with that market.

        Raises:
            ValueError: names the agent.
        """
        low, high = self.bounds.low.sum() - self.bounds.low, self.bounds.high.sum() - self.bounds.high
        wrong = (low > 0) | (high < 0)
        if wrong.any():
            agent = int(np.argmax(wrong))
            raise ValueError(
                f"infeasible sub-market: without {self.agents[agent]} the others' demand minus generation is at least "
                f"{low[agent]:g} and at most {high[agent]:g} kWh, so its payment is undefined; widen their limits"
            )

    def replace(self, **fields: Any) -> Scenario:
        """A changed copy.

        Raises:
            TypeError: unknown field.
            ValueError: whatever building a scenario raises.
        """
        scenarios.check_fields(type(self), fields)
        return dataclasses.replace(self, **fields)

    @classmethod
    def random(cls, n_consumers: int, n_producers: int, seed: int | None = None) -> Scenario:
        """A random community that clears with all agents and without any one of them.

        Coefficients and limits are spread about those of the paper's case; minimum demands and the number of producers
        are balanced by scaling generation to 1.2 to 2 times what consumers want at most.

        Raises:
            ValueError: fewer than two of a kind: the market without one would have no counterpart.
        """
        for name, count in (("n_consumers", n_consumers), ("n_producers", n_producers)):
            if validation.count(name, count) < 2:
                raise ValueError(f"{name} must be at least 2, got {count!r}")
        consumers, producers = n_consumers, n_producers
        rng = np.random.default_rng(seed)
        least = rng.uniform(0.0, 10.0, consumers)
        most = least + rng.uniform(5.0, 15.0, consumers)
        share = rng.uniform(0.5, 1.0, producers)
        # Without its largest producer the market must still serve all minimum demands.
        total = most.sum() * rng.uniform(1.2, 2.0)
        total = max(total, 1.1 * least.sum() / (1.0 - share.max() / share.sum()))
        return cls(
            utility_quadratic=-rng.uniform(0.001, 0.008, consumers),
            utility_linear=rng.uniform(0.1, 0.35, consumers),
            utility_constant=-rng.uniform(0.0, 1.5, consumers),
            demand_min=least,
            demand_max=most,
            cost_quadratic=rng.uniform(0.001, 0.003, producers) * producers / consumers,
            cost_linear=rng.uniform(0.002, 0.02, producers),
            cost_constant=np.zeros(producers),
            generation_min=np.zeros(producers),
            generation_max=total * share / share.sum(),
            name=f"random-{consumers}-{producers}" + ("" if seed is None else f"-{seed}"),
        )


def _frozen(array: Floats) -> Floats:
    array.flags.writeable = False
    return array


def scenario_names() -> list[str]:
    """Names of the shipped scenarios."""
    return scenarios.names("dpvcg")


def load_scenario(name: str | Path = "community6", **overrides: Any) -> Scenario:
    """Load a shipped scenario, or one from a TOML file of the same layout.

    Args:
        name: one of :func:`scenario_names`, or the path of a ``.toml`` file.
        **overrides: fields to replace.

    Raises:
        ValueError: unknown name (the error lists the known ones) or bad values.
        TypeError: unknown field.
    """
    scenario = scenarios.build(Scenario, scenarios.read("dpvcg", name)[0], str(name))
    return scenario.replace(**overrides) if overrides else scenario
