"""Is it as private as it says? The exact privacy loss of a draw, and what draws prove, beside the ε that is claimed.

For each agent two neighbouring profiles, which differ in its report alone. The loss between them follows from the law
of the draw; a lower bound on it follows from draws alone, by whatever program makes them. Neither may exceed ε.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from p2penv.core import validation
from p2penv.dpvcg import continuous, finite, rules
from p2penv.dpvcg.mechanisms import ExponentialMechanism, LaplaceMechanism, Mechanism
from p2penv.dpvcg.privacy import Accountant, epsilon_lower_bound, privacy_loss, worst_loss
from p2penv.dpvcg.rules import Bids
from p2penv.dpvcg.typespace import TypeSpace, with_report

Floats = NDArray[np.float64]
CONFIDENCE = 1.0 - 1e-6


@dataclass(frozen=True)
class Privacy:
    """Privacy loss of one draw, per agent; the others report the truth."""

    agents: list[str]
    mechanism: str
    claimed: float
    """ε asked for"""
    epsilon: float
    """ε that one draw costs by the mechanism's own account"""
    spent: float
    """by the end of all rounds"""
    rounds: int
    releases: Mapping[str, float]
    """what may be published, and its ε"""
    reports: Floats
    """(n, 2, k) the two reports that are told apart"""
    exact: Floats
    """(n,) loss between them: of the worst two reports on a finite range and under Laplace noise"""
    lower: Floats
    """(n,) what it is at least, from draws"""
    samples: int
    confidence: float

    @property
    def holds(self) -> bool:
        """Whether neither the exact loss nor what draws prove exceeds the ε claimed."""
        return bool((np.maximum(self.exact, self.lower) <= self.claimed * (1.0 + 1e-9)).all())

    def summary(self) -> dict[str, Any]:
        """Numbers as plain data; infinite ones as ``"inf"``."""
        rows = [
            {"agent": agent, "exact": plain(self.exact[n]), "lower": plain(self.lower[n]), "reports": self.reports[n]}
            for n, agent in enumerate(self.agents)
        ]
        return {
            "mechanism": self.mechanism,
            "epsilon_claimed": plain(self.claimed),
            "epsilon": plain(self.epsilon),
            "rounds": self.rounds,
            "epsilon_spent": plain(self.spent),
            "releases": {name: plain(cost) for name, cost in self.releases.items()},
            "samples": self.samples,
            "confidence": self.confidence,
            "holds": self.holds,
            "agents": rows,
        }


def plain(value: float) -> float | str:
    """A number, or ``"inf"``: JSON has none that is infinite."""
    return float(value) if np.isfinite(value) else "inf"


def audit(
    mechanism: Mechanism,
    space: TypeSpace,
    samples: int = 50_000,
    seed: int = 0,
    confidence: float = CONFIDENCE,
    rounds: int = 1,
) -> Privacy:
    """Privacy of one draw for each agent, the others reporting the truth.

    Args:
        mechanism: the mechanism.
        space: what agents may declare.
        samples: draws under each of the two profiles of an agent.
        seed: of the draws.
        confidence: that all of an agent's lower bound holds, in (0, 1).
        rounds: draws that are published.

    Raises:
        ValueError: fewer than two samples, a seed below 0, a confidence outside (0, 1), no rounds.
    """
    if validation.count("samples", samples) < 2:
        raise ValueError(f"samples must be at least 2, one to choose an event and one to count it, got {samples}")
    scenario, rng = mechanism.scenario, np.random.default_rng(validation.seed("seed", seed))
    accountant = Accountant()
    for _ in range(validation.count("rounds", rounds)):
        accountant.spend(mechanism.epsilon)
    reports, exact, lower = [], [], []
    for agent in range(scenario.size):
        pair, loss = worst_pair(mechanism, space, agent)
        reports.append(pair)
        exact.append(loss)
        lower.append(tell_apart(mechanism, agent, pair, samples, rng, confidence))
    return Privacy(
        agents=scenario.agents,
        mechanism=_describe(mechanism),
        claimed=mechanism.nominal_epsilon,
        epsilon=mechanism.epsilon,
        spent=accountant.spent(),
        rounds=rounds,
        releases=mechanism.releases,
        reports=np.array(reports),
        exact=np.array(exact),
        lower=np.array(lower),
        samples=samples,
        confidence=confidence,
    )


def _describe(mechanism: Mechanism) -> str:
    if not isinstance(mechanism, ExponentialMechanism):
        return mechanism.kind
    added = ", optimum of the reports added (not private)" if mechanism.paper_compat else ""
    return f"{mechanism.kind}, {mechanism.support}, β = {mechanism.beta:.4g}/$ ({mechanism.calibration}){added}"


def with_paper_range(mechanism: Mechanism) -> ExponentialMechanism:
    """The same finite range with the optimum of the reports added, as the paper has it.

    Raises:
        ValueError: not the exponential mechanism on a finite range.
    """
    if not isinstance(mechanism, ExponentialMechanism) or mechanism.support != "finite":
        raise ValueError("the paper's range needs mechanism='exponential' and support='finite'")
    if mechanism.paper_compat:
        return mechanism
    return ExponentialMechanism(
        mechanism.scenario,
        mechanism.nominal_epsilon,
        "finite",
        mechanism.calibration,
        space=mechanism.space,
        points=mechanism.table,
        paper_compat=True,
    )


def worst_pair(mechanism: Mechanism, space: TypeSpace, agent: int) -> tuple[Floats, float]:
    """Two reports ``(2, k)`` of an agent that a draw tells apart best, and the exact privacy loss between them.

    On a finite range and under Laplace noise no two reports have more. On the polytope the pair is the worst for what
    is drawn at quadrature nodes, and its loss is that over all quantities. Where what can be drawn depends on the
    report any pair will do: the ends of the type space are taken.
    """
    ends = np.stack([space.low[agent], space.high[agent]])
    if isinstance(mechanism, LaplaceMechanism):
        # Of the reports, which all else follows from: |θ − θ'|/scale adds up over parameters.
        return ends, float((np.ptp(ends, axis=0) / mechanism.scale[agent]).sum())
    if not isinstance(mechanism, ExponentialMechanism) or mechanism.paper_compat:
        return ends, float(privacy_loss(*_laws(mechanism, agent, ends)))
    bids, bounds, beta = mechanism.scenario.bids, mechanism.scenario.bounds, mechanism.beta
    if mechanism.support == "finite":
        family: Any = finite.residual(mechanism.table.points, bids, beta, agent)
    else:
        family = continuous.residual(mechanism.table, bounds, bids, beta, agent)
    base = Bids(*(field[agent] for field in bids))
    quantity = family.quantity
    rows = [rules.value(base, quantity)] if space.kind == "scale" else [quantity**2, quantity]
    weight = np.maximum(family.weight, 0.0)  # negative by the error of a quadrature
    found = worst_loss(weight, np.stack(rows), space.low[agent], space.high[agent], beta)
    loss = found.loss if mechanism.support == "finite" else _density_loss(mechanism, agent, found.reports)
    return found.reports, loss


def _profiles(mechanism: Mechanism, agent: int, pair: Floats) -> list[Bids]:
    return [with_report(mechanism.scenario, agent, report) for report in pair]


def _laws(mechanism: Mechanism, agent: int, pair: Floats) -> list[Floats]:
    """Laws ``(m,)`` under two reports on all that can be drawn under one of them."""
    ranges, chances = [], []
    for bids in _profiles(mechanism, agent, pair):
        if isinstance(mechanism, ExponentialMechanism):
            ranges.append(mechanism.range(bids).points)
            chances.append(mechanism.probabilities(bids))
        else:
            ranges.append(mechanism.expected_allocation(bids)[None])
            chances.append(np.ones(1))
    points, place = np.unique(np.concatenate(ranges), axis=0, return_inverse=True)
    found = [np.zeros(len(points)) for _ in ranges]
    for law, where, chance in zip(found, np.split(place, [len(ranges[0])]), chances, strict=True):
        np.add.at(law, where, chance)
    return found


def _density_loss(mechanism: ExponentialMechanism, agent: int, pair: Floats) -> float:
    """Largest |ln p(y)/p'(y)| on the polytope: β(v_i − v_i')(y_i) less the difference of ln Z, y_i where it can be."""
    low, high = mechanism.scenario.bounds
    ends = max(low[agent], high[agent] - high.sum()), min(high[agent], low[agent] - low.sum())
    first, second = _profiles(mechanism, agent, pair)
    change = Bids(*(one[agent] - other[agent] for one, other in zip(first, second, strict=True)))
    peak = -0.5 * change.linear / change.quadratic if change.quadratic != 0.0 else ends[0]
    quantity = np.array([*ends, np.clip(peak, *ends)])
    free = [mechanism.law(bids).free for bids in (first, second)]
    return float(mechanism.beta * np.abs(rules.value(change, quantity) - (free[0] - free[1])).max())


def tell_apart(
    mechanism: Mechanism,
    agent: int,
    pair: Floats,
    samples: int,
    rng: np.random.Generator,
    confidence: float = CONFIDENCE,
) -> float:
    """What the privacy loss between two reports ``(2, k)`` of an agent is at least, from draws of allocations."""
    first, second = _profiles(mechanism, agent, pair)
    draws = [mechanism.sample(samples, rng, bids) for bids in (first, second)]
    if isinstance(mechanism, LaplaceMechanism) or getattr(mechanism, "support", "") == "continuous":
        own = [Bids(*(field[agent] for field in bids)) for bids in (first, second)]
        scores = [rules.value(own[0], drawn[:, agent]) - rules.value(own[1], drawn[:, agent]) for drawn in draws]
        return epsilon_lower_bound(scores[0], scores[1], "score", confidence)
    # Told apart by one number each; equal ones would only hide something.
    keys = (np.concatenate(draws) * rng.random(mechanism.scenario.size)).sum(axis=1)
    _, place = np.unique(keys, return_inverse=True)
    return epsilon_lower_bound(place[:samples], place[samples:], "points", confidence)
