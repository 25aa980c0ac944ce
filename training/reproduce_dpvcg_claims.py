"""What the text of the VCG paper says of its figures, beside what follows from the corrected model.

Source: Hoseinpour et al., sections V and VI.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from p2penv.communication.render import INK
from p2penv.dpvcg import Scenario, continuous, finite, rules, sampling, search
from p2penv.dpvcg.mechanisms import ExponentialMechanism, LaplaceMechanism
from p2penv.dpvcg.quadrature import make_quadrature
from p2penv.dpvcg.rules import Bids, Bounds
from p2penv.dpvcg.typespace import TypeSpace, with_report
from training.dpvcg_paper import (
    COLOURS,
    DRAWS,
    OURS,
    PAYMENTS,
    SUMMARY,
    SWEEP,
    VCG_NOTE,
    Floats,
    Rows,
    agent_name,
    compared,
    continuous_laws,
    eleven,
    expected_payments,
)
from training.figures import legend, panels, save
from training.runs import write_csv


def text_claims(scenario: Scenario, out: Path) -> list[Path]:
    """Numbers that the text gives for figures, beside ours; ours is of the continuous mechanism with β = ε/2."""
    rows: Rows = []

    def say(figure: str, statement: str, paper: float, ours: float, note: str = "") -> None:
        rows.append({"where": figure, "statement": statement, **compared(paper, ours, note)})

    points, agents = eleven(scenario), [agent_name(scenario, agent) for agent in range(scenario.size)]
    say("Figure 5", "probability of the optimum, eleven points, ε = 100", 1.0,
        finite.probabilities(points, scenario.bids, 50.0)[-1], "paper: ≈ 1")  # fmt: skip
    truth, lie = (finite.probabilities(points, bids, 0.25) for bids in (scenario.bids, with_report(scenario, 5, 0.1)))
    say("Figure 6", "largest ratio of probabilities, at most", float(np.exp(0.5)), (truth / lie).max(),
        "a bound, which holds: it is far from reached on these points")  # fmt: skip
    vcg = rules.pivots(scenario.bids, scenario.bounds)
    for name, paper, ours in zip(agents, PAYMENTS[np.inf], vcg.payment, strict=True):
        say("Figure 7", f"limit of the payment of {name}", paper, ours, VCG_NOTE)
    law = continuous_laws(scenario, 0.5 * SWEEP)
    payment = expected_payments(law)
    say("Figure 7", "payment of producer 1 at ε = .01, beyond its limit", PAYMENTS[0.01][3], payment[0, 3],
        "noise of ten points drawn for the market without it; exactly, it is paid less than in the limit")  # fmt: skip
    payoff = law.value - payment
    level, agent = np.unravel_index(int(payoff.argmin()), payoff.shape)
    say("Figure 8", "least payoff of an agent, not below", 0.0, payoff[level, agent],
        f"{agents[agent]} at ε = {SWEEP[level]:g}; minimum demands keep it from staying away")  # fmt: skip
    say("Figure 10", "welfare of the optimum", 1.56, vcg.clearing.welfare, "the paper cuts off after the last digit")
    noisy = float(LaplaceMechanism(scenario, 10.0, samples=DRAWS // 10).expected_welfare())
    gap = SUMMARY["Exp", 10.0][0][-1] - SUMMARY["InLap", 10.0][0][-1]
    say("Table VI", "welfare at ε = 10, exponential mechanism less noise on reports", gap,
        float(continuous_laws(scenario, np.array([5.0])).welfare[0]) - noisy,
        "the paper's range holds the optimum of the reports, which privacy forbids")  # fmt: skip
    releases = ExponentialMechanism(scenario, 1.0).releases
    say("Section V", "ε of all outputs together, each draw costing 1", 2.0 * scenario.size + 1.0, releases["all_draws"],
        "of all draws; no ε covers payments, which are expectations under raw reports")  # fmt: skip
    path = out / "text-claims.csv"
    write_csv(path, rows, list(rows[0]))
    return [path]


def laplace_or_exponential(scenario: Scenario, out: Path) -> list[Path]:
    """Mean welfare over ε: which is better depends on ε, and on what β really costs."""
    levels = np.geomspace(0.1, 30.0, 40)
    omega = float(TypeSpace.group(scenario).sensitivity.max())
    exponential = {
        "paper": continuous_laws(scenario, 0.5 * levels).welfare,
        "declared": continuous_laws(scenario, levels / omega).welfare,
    }
    laplace = [LaplaceMechanism(scenario, float(level), samples=DRAWS // 10) for level in levels]
    mean = np.array([float(mechanism.expected_welfare()) for mechanism in laplace])
    error = np.array([float(mechanism.standard_error()) for mechanism in laplace])
    title = "Mean welfare: noise on reports against the exponential mechanism"
    figure, axes = panels(title, "ε", "mean welfare [$]", log=True)
    axes.plot(levels, mean, color=COLOURS[1], lw=1.8, label="Laplace noise on coefficients, then VCG")
    for (key, welfare), colour, text in zip(
        exponential.items(), (COLOURS[0], COLOURS[2]), ("β = ε/2 (paper)", f"β = ε/ω, ω = {omega:.3f} $"), strict=True
    ):
        cross = crossover(levels, mean - welfare)
        axes.plot(levels, welfare, color=colour, lw=1.8, label=f"exponential, {text}")
        axes.axvline(cross, color=colour, ls=":", lw=1.0, label=f"Laplace better above ε = {cross:.1f}")
        exponential[key] = welfare
    axes.axhline(rules.clear(scenario.bids, scenario.bounds).welfare, color=INK, ls="--", lw=0.9, label="optimum")
    legend(axes, loc="upper left")
    rows = [
        {"epsilon": level, "laplace": mean[k], "laplace_standard_error": error[k],
         "exponential_paper": exponential["paper"][k], "exponential_declared": exponential["declared"][k]}
        for k, level in enumerate(levels)
    ]  # fmt: skip
    return save(out, "laplace-versus-exponential", figure, rows)


def crossover(places: Floats, difference: Floats) -> float:
    """Last of ``places (E,)`` at which a difference ``(E,)`` turns positive, by linear interpolation; NaN if none."""
    turns = np.flatnonzero((difference[:-1] <= 0.0) & (difference[1:] > 0.0))
    if not turns.size:
        return float("nan")
    k = int(turns[-1])
    share = -difference[k] / (difference[k + 1] - difference[k])
    return float(places[k] + share * (places[k + 1] - places[k]))


def replicated(scenario: Scenario, copies: int) -> tuple[Bids, Bounds]:
    """Bids and limits ``(copies · n,)`` of a community of so many copies of the scenario."""
    bids = Bids(*(np.tile(field, copies) for field in scenario.bids))
    return bids, Bounds(*(np.tile(field, copies) for field in scenario.bounds))


def finite_regret(bids: Bids, beta: float, points: Floats) -> float:
    """Largest regret of Algorithm 3 among all agents for reports αv, 0 ≤ α ≤ 1, on a range ``(m, n)`` [$]."""
    value, welfare = rules.value(bids, points).T, finite.welfare(points, bids)
    score = beta * (welfare - value)
    weight = np.exp(score - score.max(axis=1, keepdims=True))
    return _largest_gain(weight, value, np.broadcast_to(welfare, value.shape), beta)


def continuous_regret(bids: Bids, bounds: Bounds, beta: float, agents: Sequence[int]) -> float:
    """The same on the whole polytope, among the agents given."""
    # The tilt of the whole market serves: an agent is a small part of it, or β is small.
    quadrature = make_quadrature(bounds, bids, beta, 1e-8, shared_tilt=True)
    families = [continuous.residual(quadrature, bounds, bids, beta, agent) for agent in agents]
    quantity, weight, others, _ = (np.stack(field) for field in zip(*families, strict=True))
    value = rules.value(Bids(*(field[list(agents), None] for field in bids)), quantity)
    return _largest_gain(weight, value, value + others, beta)


def _largest_gain(weight: Floats, value: Floats, objective: Floats, beta: float) -> float:
    """Largest gain of a report αv, 0 ≤ α ≤ 1, over the truth in families ``(P, Q)``, certified to 1e-9."""
    size = len(weight)
    low, high = np.zeros((size, 1)), np.ones((size, 1))
    found = search.maximise(weight, value[:, None], objective, low, high, beta, 1e-9)
    tilt = beta * value
    law = weight * np.exp(tilt - tilt.max(axis=1, keepdims=True))
    return float((found.value - np.vecdot(law, objective) / law.sum(axis=1)).max())


def regret_at_scale(scenario: Scenario, out: Path) -> list[Path]:
    """Regret of Algorithm 3 over the number of agents at ε = .1, |R| = 10, in copies of the community.

    β = ε/2, which over reports αv costs less than ε. The welfare of a range of fixed size spreads as √n and so does
    what a report gains; on the polytope the draw follows the reports of all, and the gain stays where it was.
    """
    epsilon, size, seeds = 0.1, 10, 6
    beta, rng = 0.5 * epsilon, np.random.default_rng(3)
    rows: Rows = []
    for copies in (1, 3, 10, 30, 100, 300, 1000):
        bids, bounds = replicated(scenario, copies)
        gains = [finite_regret(bids, beta, sampling.sample(bids, bounds, 0.0, size, rng)) for _ in range(seeds)]
        smooth = continuous_regret(bids, bounds, beta, range(scenario.size))
        rows.append(
            {"agents": copies * scenario.size, "finite_mean": float(np.mean(gains)), "finite_least": min(gains),
             "finite_most": max(gains), "continuous": smooth, "paper_bound": epsilon}
        )  # fmt: skip
    title = f"Largest regret of Algorithm 3, ε = {epsilon:g}, reports αv with 0 ≤ α ≤ 1"
    figure, axes = panels(title, "agents", "regret [$]", log=True)
    axes.set_yscale("log")
    agents = [row["agents"] for row in rows]
    axes.fill_between(agents, [row["finite_least"] for row in rows], [row["finite_most"] for row in rows],
                      color=COLOURS[1], alpha=0.2, lw=0)  # fmt: skip
    axes.plot(agents, [row["finite_mean"] for row in rows], "o-", color=COLOURS[1], ms=4,
              label=f"finite range, |R| = {size} ({seeds} ranges)")  # fmt: skip
    axes.plot(agents, [row["continuous"] for row in rows], "o-", color=OURS, ms=4, label="continuous")
    axes.axhline(epsilon, color=INK, ls="--", lw=0.9, label="ε, the paper's bound")
    legend(axes)
    return save(out, "regret-at-scale", figure, rows)
