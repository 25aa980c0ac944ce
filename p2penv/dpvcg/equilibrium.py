"""Exact solutions of the VCG market: efficient allocation, payments, and what misreports gain.

Source: Hoseinpour et al., (1), Algorithms 1 and 3, Theorem 2. Truth is dominant under VCG and, in expectation, under
entropy payments: gains are closed forms there. Under Algorithm 3 an agent gets E_D[W] up to a constant, W with its own
true valuation, and its report only tilts D; the best report is found by branch and bound with a certificate.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from p2penv.dpvcg import continuous, finite, rules, search
from p2penv.dpvcg.mechanisms import ExponentialMechanism, LaplaceMechanism, Mechanism, check_payments, same_bids
from p2penv.dpvcg.rules import Bids, Clearing, Payments
from p2penv.dpvcg.scenario import Scenario
from p2penv.dpvcg.typespace import check_agent, with_report

Floats = NDArray[np.float64]
# Certified gains are found to this precision [$].
TOLERANCE = 1e-8
# Under Laplace noise: rounds of the search, each on a window as wide as two gaps of the one before, and points a side.
ZOOMS = 5
ZOOM_POINTS = {1: 9, 2: 5}


class Gains(NamedTuple):
    """What the best unilateral misreport of each agent gains; money in $."""

    gain: Floats  # (..., n) found, ≥ 0
    bound: Floats  # (..., n) no report gains more
    report: Floats  # (..., n, k) parameters of the report found, as the type space has them


class Misreport(NamedTuple):
    """The best misreport of one agent."""

    report: Floats  # (k,)
    gain: float
    bound: float


def efficient_allocation(scenario: Scenario) -> Clearing:
    """Efficient allocation (1) at the true valuations: ``allocation (n,)`` signed [kWh], ``price``, ``welfare``."""
    return rules.clear(scenario.bids, scenario.bounds)


def vcg_payments(scenario: Scenario) -> Floats:
    """Payments ``(n,)`` of Algorithm 1 at the true valuations, negative where an agent is paid [$].

    Raises:
        ValueError: a scenario that does not clear without one of its agents.
    """
    scenario.check_submarkets()
    return rules.pivots(scenario.bids, scenario.bounds).payment


def regret(mechanism: Mechanism, agent: int, report: Any, kind: Payments | None = None) -> float:
    """What an agent gains by a report instead of the truth when the others report the truth; negative if it loses [$].

    Args:
        mechanism: the mechanism.
        agent: number, consumers first.
        report: a scale of its true valuation, or (a, b) in the signed quantity.
        kind: payment rule, the mechanism's first if not given.

    Raises:
        ValueError: no such agent, a report that is not concave or, where ε is calibrated to it, outside the declared
            type space; payments of another mechanism.
    """
    agent = check_agent(mechanism.scenario, agent)
    lie = with_report(mechanism.scenario, agent, report)
    return float(mechanism.payoffs(kind, lie)[agent] - mechanism.payoffs(kind)[agent])


def best_misreport(mechanism: Mechanism, agent: int, reports: Any = None, kind: Payments | None = None) -> Misreport:
    """Report of an agent within its type space that pays most against the reports of the others.

    Args:
        mechanism: the mechanism.
        agent: number, consumers first.
        reports: of everybody; truthful if not given.
        kind: payment rule, the mechanism's first if not given.

    Returns:
        The report, its gain over the agent's report in ``reports``, and a bound that no report of the type space
        exceeds: within 1e-8 of the gain, or zero gain and bound, except for Laplace noise (see :func:`gains`).

    Raises:
        ValueError: no such agent, bad reports, payments of another mechanism, or a range that moves with the reports.
    """
    agent = check_agent(mechanism.scenario, agent)
    found = gains(mechanism, mechanism.accept(reports), kind=kind, agents=[agent])
    return Misreport(found.report[agent], float(found.gain[agent]), float(found.bound[agent]))


def exploitability(mechanism: Mechanism, reports: Any = None, kind: Payments | None = None) -> Floats:
    """Gain ``(n,)`` of each agent's best unilateral misreport within the type space, ≥ 0 [$].

    Exact under VCG and entropy payments, certified to 1e-8 under Algorithm 3, a lower bound under Laplace noise.
    Arguments and errors as :func:`best_misreport`; reports may have leading axes.
    """
    return gains(mechanism, mechanism.accept(reports), kind=kind).gain


def gains(
    mechanism: Mechanism,
    bids: Bids,
    true: Bids | None = None,
    kind: Payments | None = None,
    agents: list[int] | None = None,
) -> Gains:
    """Best misreports of all agents at once, batched over leading axes.

    Under Laplace noise payoffs are averages over the mechanism's fixed draws, the gain is what a zooming search finds
    and the bound what the agent would gain if its own report went in without noise.

    Args:
        mechanism: the mechanism.
        bids: reports ``(..., n)``.
        true: valuations ``(..., n)``, the scenario's if not given.
        kind: payment rule.
        agents: whose gains to find; the others' are NaN. All if not given.
    """
    scenario = mechanism.scenario
    kind = check_payments(mechanism.kind, kind)
    true = scenario.bids if true is None else true
    shape = np.broadcast_shapes(*(np.shape(field) for field in (*bids, *true)))
    bids, true = (Bids(*(np.broadcast_to(field, shape) for field in each)) for each in (bids, true))
    chosen = list(range(scenario.size)) if agents is None else agents
    if isinstance(mechanism, LaplaceMechanism):
        return _search_noisy(mechanism, bids, true, chosen)
    if isinstance(mechanism, ExponentialMechanism) and mechanism.paper_compat:
        raise ValueError("the range of paper_compat moves with the reports: only the regret of a given report is known")
    if isinstance(mechanism, ExponentialMechanism) and kind == "algorithm3":
        return _search_certified(mechanism, bids, true, chosen)
    # Truth is optimal: one law or clearing with each agent's report replaced by its valuation, (..., n, n).
    honest = rules.one_honest(bids, true)
    if isinstance(mechanism, ExponentialMechanism):
        law = mechanism.law_of(bids, true)
        best = mechanism.law_of(honest, honest).free
        gain = best - law.free[..., None] - law.true_value + law.value
    else:
        now = rules.clear(bids, scenario.bounds)
        best = rules.clear(honest, scenario.bounds).welfare
        lie = rules.value(true, now.allocation) - rules.value(bids, now.allocation)
        gain = best - now.welfare[..., None] - lie
    # Rounding of sums, where truth is told already.
    gain = np.where(same_bids(bids, true), 0.0, np.maximum(gain, 0.0))
    return Gains(gain, gain, mechanism.space.parameters(true))


def _search_certified(mechanism: ExponentialMechanism, bids: Bids, true: Bids, agents: list[int]) -> Gains:
    """Branch and bound over the box of every agent; all problems of a batch side by side."""
    scenario, space, beta = mechanism.scenario, mechanism.space, mechanism.beta
    law = mechanism.law_of(bids, true)
    now = law.welfare[..., None] - law.value + law.true_value
    shape = now.shape
    gain, bound = np.full(shape, np.nan), np.full(shape, np.nan)
    report = np.full((*shape, space.statistics), np.nan)
    for agent in agents:
        family: Any
        if mechanism.support == "continuous":
            family = continuous.residual(mechanism.table, scenario.bounds, bids, beta, agent)
        else:
            family = finite.residual(mechanism.table.points, bids, beta, agent)
        quantity = np.broadcast_to(family.quantity, family.weight.shape)
        own = Bids(*(field[..., agent, None] for field in true))
        objective = rules.value(own, quantity) + family.others
        base = Bids(*(field[agent] for field in scenario.bids))
        rows = [rules.value(base, quantity)] if space.kind == "scale" else [quantity**2, quantity]
        statistics = np.stack(rows, axis=-2)
        size = family.weight.shape[-1]
        found = search.maximise(
            family.weight.reshape(-1, size),
            statistics.reshape(-1, len(rows), size),
            objective.reshape(-1, size),
            np.tile(space.low[agent], (now[..., agent].size, 1)),
            np.tile(space.high[agent], (now[..., agent].size, 1)),
            beta,
            TOLERANCE,
        )
        here = now[..., agent].reshape(-1)
        # The report played may itself be the best one.
        better = found.value > here
        played = space.parameters(bids)[..., agent, :].reshape(found.report.shape)
        gain[..., agent] = np.maximum(found.value - here, 0.0).reshape(shape[:-1])
        bound[..., agent] = np.maximum(found.bound - here, 0.0).reshape(shape[:-1])
        chosen = np.where(better[:, None], found.report, played)
        report[..., agent, :] = chosen.reshape(*shape[:-1], -1)
    return Gains(gain, bound, report)


def _search_noisy(mechanism: LaplaceMechanism, bids: Bids, true: Bids, agents: list[int]) -> Gains:
    """Zooming search on the average over the fixed draws, all environments side by side."""
    space, shape = mechanism.space, bids.linear.shape
    parameters = space.parameters(bids)
    now, most = mechanism.payoffs_at(parameters, true), mechanism.clairvoyant(parameters, true)
    gain, bound = np.full(shape, np.nan), np.full(shape, np.nan)
    report = np.full((*shape, space.statistics), np.nan)
    # Points of a round, relative to the centre of the window; the centre itself comes first and wins ties.
    marks = np.linspace(-1.0, 1.0, ZOOM_POINTS[space.statistics])
    offsets = np.stack(np.meshgrid(*[marks] * space.statistics), axis=-1).reshape(-1, space.statistics)
    offsets = offsets[np.argsort(np.abs(offsets).sum(axis=-1), kind="stable")]
    for agent in agents:
        low, high = space.low[agent], space.high[agent]
        best, best_report = now[..., agent], parameters[..., agent, :]
        centre, reach = np.clip(space.parameters(true)[..., agent, :], low, high), high - low
        for _ in range(ZOOMS):
            tried = np.clip(
                centre + reach * offsets.reshape(-1, *(1,) * (centre.ndim - 1), space.statistics), low, high
            )
            candidates = np.array(np.broadcast_to(parameters, (len(tried), *parameters.shape)))
            candidates[..., agent, :] = tried
            payoff = mechanism.payoffs_at(candidates, true)[..., agent]
            top = payoff.argmax(axis=0)
            centre = np.take_along_axis(tried, top[None, ..., None], axis=0)[0]
            found = np.take_along_axis(payoff, top[None], axis=0)[0]
            best_report = np.where((found > best)[..., None], centre, best_report)
            best = np.maximum(found, best)
            reach = reach * 2.0 / (len(marks) - 1)
        gain[..., agent], report[..., agent, :] = best - now[..., agent], best_report
        bound[..., agent] = np.maximum(most[..., agent] - now[..., agent], gain[..., agent])
    return Gains(gain, bound, report)
