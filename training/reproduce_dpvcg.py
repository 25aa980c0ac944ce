"""Tables III to VI and Figures 5 to 10 of the VCG paper from the corrected model, the printed numbers beside ours.

Source: Hoseinpour, Hoseinpour, Haghifam, Haghifam, "Privacy-preserving and approximately truthful local electricity
markets: a differentially private VCG mechanism", section VI.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from p2penv.communication.render import FAINT, INK
from p2penv.dpvcg import Scenario, finite, load_scenario, rules, sampling
from p2penv.dpvcg.mechanisms import LaplaceMechanism
from p2penv.dpvcg.typespace import with_report
from training import reproduce_dpvcg_claims as claims
from training.dpvcg_paper import (
    CHANGES,
    COLOURS,
    DRAWS,
    LEVELS,
    MISPRINTS,
    OURS,
    PAPER,
    PAYMENTS,
    PROBABILITIES,
    QUANTITIES,
    RANGES,
    SUMMARY,
    SWEEP,
    VCG_NOTE,
    WELFARE,
    Floats,
    Rows,
    agent_name,
    compared,
    continuous_laws,
    decimals_of,
    eleven,
    expected_payments,
    paper_laws,
    print_note,
)
from training.figures import grid, legend, panels, save


def dpvcg(out: Path, report: Callable[[str], None] | None = None) -> list[Path]:
    """Tables III to VI, Figures 5 to 10, what the text says of them, and two figures on what the paper claims.

    The paper's mechanism is β = ε/2 on its eleven-point range: ten printed points, off balance by up to .04 kWh, and
    the optimum of the reports. That range is not private; it is used to check the paper, beside the continuous
    mechanism, which is.

    Args:
        out: folder, made if missing; every file appears in one step.
        report: called with the name of each part before it is made.

    Returns:
        The files written: a picture and a table for each, a table of what the text says.
    """
    scenario = load_scenario("community6")
    found: list[Path] = []
    for name, part in PARTS.items():
        if report is not None:
            report(name)
        found += part(scenario, out)
    return found


def _two(
    axes: Any, labels: Sequence[str], paper: Sequence[float], ours: Sequence[float] | Floats, **extra: Any
) -> None:
    """Printed values as open diamonds, ours as dots with optional spread."""
    places = np.arange(len(labels))
    axes.errorbar(places, ours, fmt="o", color=OURS, ms=4, lw=1.0, capsize=2, label="ours", **extra)
    axes.plot(places, paper, "D", mfc="none", mec=PAPER, ms=6, label="paper")
    axes.set_xticks(places, labels)


# Tables.


def _table3(scenario: Scenario, out: Path) -> list[Path]:
    """Probabilities and welfare of the eleven points."""
    points = eleven(scenario)
    welfare = finite.welfare(points, scenario.bids)
    numbers = [*(str(number) for number in range(1, 11)), "opt"]
    rows: Rows = []
    figure, axes = grid("Table III: probabilities on the eleven-point range, β = ε/2", "point", "probability",
                        [f"ε = {level:g}" for level in LEVELS], 2)  # fmt: skip
    for panel, level in zip(axes.flat, LEVELS, strict=True):
        ours = finite.probabilities(points, scenario.bids, 0.5 * level)
        for number, printed, right in zip(numbers, PROBABILITIES[level], ours, strict=True):
            note = _note3(level, number, printed, right)
            rows.append({"quantity": f"probability, ε = {level:g}", "point": number, **compared(printed, right, note)})
        _two(panel, numbers, PROBABILITIES[level], ours)
    for number, printed, right in zip(numbers, WELFARE, welfare, strict=True):
        cut = print_note(printed, right, decimals_of(printed))
        note = "computed from g3 = 21.94, printed as 21.9" if cut is None else cut
        rows.append({"quantity": "welfare [$]", "point": number, **compared(printed, right, note)})
    legend(axes[0, 0])
    return save(out, "table3-probabilities", figure, rows)


def _note3(level: float, number: str, paper: float, ours: float) -> str:
    if (level, number) == (1.0, "7"):
        return "misprint: .1115 follows from the printed welfare"
    if level == 100.0:
        return "paper: ≈"
    note = print_note(paper, ours, decimals_of(paper))
    # A probability moves by β times what its point's welfare does.
    shift = 2.0 / level * np.log(paper / ours)
    return (
        f"would follow from a welfare of this point {shift:+.4f} $ off that of its printed digits"
        if note is None
        else note
    )


def _table4(scenario: Scenario, out: Path) -> list[Path]:
    """Expected payments: exact for the continuous mechanism, with their spread for drawn ranges."""
    levels = [level for level in PAYMENTS if np.isfinite(level)]
    betas = 0.5 * np.array(levels)
    exact = expected_payments(continuous_laws(scenario, betas))
    drawn = [expected_payments(law) for law in paper_laws(scenario, betas, RANGES)]
    limits = rules.pivots(scenario.bids, scenario.bounds).payment
    agents = [agent_name(scenario, agent) for agent in range(scenario.size)]
    rows: Rows = []
    for index, level in enumerate(levels):
        for agent, name in enumerate(agents):
            mean, spread = drawn[index][:, agent].mean(), drawn[index][:, agent].std(ddof=1)
            paper = PAYMENTS[level][agent]
            far = abs(paper - mean) / spread
            note = (
                f"the paper draws ten points for the market without the agent and does not print them; "
                f"its value lies {far:.1f} standard deviations from the mean over {RANGES} such ranges"
            )
            row = {"epsilon": level, "agent": name, **compared(paper, exact[index, agent], note)}
            rows.append({**row, "sampled_mean": mean, "sampled_sd": spread})
    for agent, name in enumerate(agents):
        row = {"epsilon": np.inf, "agent": name, **compared(PAYMENTS[np.inf][agent], limits[agent], VCG_NOTE)}
        rows.append({**row, "sampled_mean": limits[agent], "sampled_sd": 0.0})
    titles = [*(f"ε = {level:g}" for level in levels), "ε → ∞ (VCG)"]
    figure, axes = grid("Table IV: expected payments; bars: two standard deviations over drawn ranges", "agent",
                        "payment [$]", titles, 2)  # fmt: skip
    short = [name[0] + name[-1] for name in agents]
    for panel, (level, printed), index in zip(axes.flat, PAYMENTS.items(), range(4), strict=True):
        if np.isfinite(level):
            sampled = drawn[index]
            panel.errorbar(np.arange(6) + 0.2, sampled.mean(axis=0), 2.0 * sampled.std(axis=0, ddof=1), fmt="s",
                           color=FAINT, ms=3, lw=1.0, capsize=2, label="ours, drawn ranges")  # fmt: skip
        _two(panel, short, printed, exact[index] if np.isfinite(level) else limits)
    legend(axes[0, 0])
    return save(out, "table4-payments", figure, rows)


def _table5(scenario: Scenario, out: Path) -> list[Path]:
    """What misreports αv change, on the eleven-point range with the optimum held fixed."""
    points = eleven(scenario)
    welfare = finite.welfare(points, scenario.bids)
    value = rules.value(scenario.bids, points)
    agents = [agent_name(scenario, agent) for agent in range(scenario.size)]
    rows: Rows = []
    titles = [f"α = {scale:g}, ε = {level:g}" for scale, level in CHANGES]
    figure, axes = grid("Table V: change of payoff by reporting αv; bars: most that is possible", "agent",
                        "change [$]", titles, 3)  # fmt: skip
    for panel, ((scale, level), printed) in zip(axes.flat, CHANGES.items(), strict=True):
        beta = 0.5 * level
        truth = finite.probabilities(points, scenario.bids, beta)
        ours = []
        for agent in range(scenario.size):
            lie = finite.probabilities(points, with_report(scenario, agent, scale), beta)
            # Algorithm 3 leaves an agent E[W] up to a constant that it cannot move.
            ours.append(float((lie - truth) @ welfare))
        bound = rules.regret_bound(beta, (1.0 - scale) * np.ptp(value, axis=0), np.ptp(welfare))
        for agent, name in enumerate(agents):
            note = (
                "printed: more than this report can change any expectation on this range; noise of redrawn ranges"
                if abs(printed[agent]) > bound[agent]
                else "the printed value carries the noise of redrawn ranges, here the optimum is held fixed"
            )
            row = {"alpha": scale, "epsilon": level, "agent": name, **compared(printed[agent], ours[agent], note)}
            rows.append({**row, "bound": float(bound[agent])})
        _two(panel, [name[0] + name[-1] for name in agents], printed, ours, yerr=None)
        panel.bar(np.arange(6), 2.0 * bound, 0.5, -bound, color=FAINT, alpha=0.25)
    legend(axes[0, 0])
    return save(out, "table5-misreports", figure, rows)


def _spread(values: Floats, chances: Floats) -> tuple[Floats, Floats]:
    """Mean and standard deviation by the formulas Σpx and (Σp(x − mean)²)^½, whatever p adds up to."""
    mean = chances @ values
    return mean, np.sqrt(chances @ (values - mean) ** 2)


def _table6(scenario: Scenario, out: Path) -> list[Path]:
    """Exponential mechanism and Laplace noise: mean and standard deviation of quantities and welfare."""
    points, bids = eleven(scenario), scenario.bids
    quantities = points * scenario.sign
    outcome = np.column_stack([quantities, finite.welfare(points, bids)])
    published = np.column_stack([quantities, WELFARE])
    rows: Rows = []
    titles = [f"{mechanism}, ε = {level:g}" for mechanism, level in SUMMARY]
    figure, axes = grid("Table VI: mean quantities [kWh], bars: standard deviation", "quantity", "mean [kWh]",
                        titles, 2)  # fmt: skip
    rng = np.random.default_rng(0)
    for panel, ((mechanism, level), (means, deviations)) in zip(axes.flat, SUMMARY.items(), strict=True):
        columns: dict[str, tuple[Floats, Floats]] = {}
        if mechanism == "Exp":
            ours = _spread(published, np.array(PROBABILITIES[level]))
            columns["normalised"] = _spread(outcome, finite.probabilities(points, bids, 0.5 * level))
            drawn = sampling.sample(bids, scenario.bounds, 0.5 * level, DRAWS, rng)
        else:
            drawn = LaplaceMechanism(scenario, level, samples=1).sample(DRAWS, rng)
        smooth = np.column_stack([drawn * scenario.sign, rules.value(bids, drawn).sum(axis=1)])
        sampled = smooth.mean(axis=0), smooth.std(axis=0, ddof=1)
        if mechanism == "Exp":
            columns["continuous"] = sampled
        else:
            ours = sampled
        for kind, paper, right in (("mean", means, ours[0]), ("sd", deviations, ours[1])):
            which = 0 if kind == "mean" else 1
            for index, quantity in enumerate(QUANTITIES):
                row = {"mechanism": mechanism, "epsilon": level, "quantity": quantity, "statistic": kind}
                note = _note6(mechanism, level, quantity, kind, paper[index], right[index])
                rows.append(
                    row
                    | compared(paper[index], right[index], note)
                    | {
                        name: float(columns[name][which][index]) if columns else ""
                        for name in ("normalised", "continuous")
                    }
                )
        _two(panel, QUANTITIES[:6], means[:6], ours[0][:6], yerr=ours[1][:6])
    legend(axes[0, 0])
    return save(out, "table6-mechanisms", figure, rows)


def _note6(mechanism: str, level: float, quantity: str, kind: str, paper: float, ours: float) -> str:
    if mechanism == "InLap":
        return f"{DRAWS} draws, a held at or below −1e-6; the paper does not say how it keeps valuations concave"
    if (level, quantity, kind) in MISPRINTS:
        return f"misprint: the printed probabilities give {ours:.2f}"
    note = print_note(paper, ours, 2)
    return "from printed probabilities, whose sum is not quite 1, and points" if note is None else note


# Figures.


def _figure5(scenario: Scenario, out: Path) -> list[Path]:
    """Distribution of welfare: the eleven points, and the density of the continuous mechanism."""
    points = eleven(scenario)
    welfare = finite.welfare(points, scenario.bids)
    order = np.argsort(welfare)
    edges = np.linspace(-0.6, 1.6, 89)
    middle = 0.5 * (edges[1:] + edges[:-1])
    figure, upper, lower = panels("Figure 5: welfare under the exponential mechanism, β = ε/2", "welfare [$]",
                                  "probability, eleven points", "density, continuous")  # fmt: skip
    rng = np.random.default_rng(1)
    chances, densities = [], []
    for level, colour in zip(LEVELS, COLOURS, strict=False):
        chances.append(finite.probabilities(points, scenario.bids, 0.5 * level))
        drawn = sampling.sample(scenario.bids, scenario.bounds, 0.5 * level, DRAWS // 4, rng)
        densities.append(np.histogram(rules.value(scenario.bids, drawn).sum(axis=1), edges, density=True)[0])
        upper.plot(welfare[order], chances[-1][order], "o-", color=colour, ms=4, lw=1.2, label=f"ε = {level:g}")
        lower.plot(middle, densities[-1], color=colour, lw=1.2)
    legend(upper, loc="upper left")
    rows = [
        {"support": support, "welfare": where[k]}
        | {f"epsilon_{e:g}": law[k] for e, law in zip(LEVELS, laws, strict=True)}
        for support, where, laws in (("eleven points", welfare, chances), ("continuous, density", middle, densities))
        for k in range(where.size)
    ]
    return save(out, "figure5-welfare-distribution", figure, rows)


def _figure6(scenario: Scenario, out: Path) -> list[Path]:
    """Ratio of probabilities when producer 3 reports αv."""
    points, beta = eleven(scenario), 0.25
    welfare, agent = finite.welfare(points, scenario.bids), scenario.size - 1
    truth = finite.probabilities(points, scenario.bids, beta)
    title = "Figure 6: probability ratio when producer 3 reports αv, ε = .5"
    figure, axes = panels(title, "point", "P(truth) / P(report)")
    numbers = [*(str(number) for number in range(1, 11)), "opt"]
    ratios = {}
    for scale, colour in zip((0.5, 0.1), COLOURS, strict=False):
        ratios[scale] = truth / finite.probabilities(points, with_report(scenario, agent, scale), beta)
        axes.plot(numbers, ratios[scale], "o-", color=colour, ms=4, lw=1.2,
                  label=f"α = {scale:g}, largest {ratios[scale].max():.4f}")  # fmt: skip
    axes.axhline(np.exp(0.5), color=INK, ls="--", lw=1.0, label=f"bound $e^{{0.5}}$ = {np.exp(0.5):.4f}")
    legend(axes)
    rows = [
        {"point": number, "welfare": welfare[k], "ratio_0.5": ratios[0.5][k], "ratio_0.1": ratios[0.1][k],
         "bound": float(np.exp(0.5))}
        for k, number in enumerate(numbers)
    ]  # fmt: skip
    return save(out, "figure6-privacy-ratio", figure, rows)


def _figures78(scenario: Scenario, out: Path) -> list[Path]:
    """Expected payments and payoffs over ε.

    Consumer 3's payoff is negative at small ε: taking part is not rational for everybody, as the paper has it.
    """
    vcg = rules.pivots(scenario.bids, scenario.bounds)
    exact, drawn = continuous_laws(scenario, 0.5 * SWEEP), paper_laws(scenario, 0.5 * SWEEP, RANGES)
    title = "Figure 7: expected payments of Algorithm 3, β = ε/2"
    ranges = np.stack([expected_payments(law) for law in drawn])
    found = _over_epsilon(
        scenario, out, "figure7-payments", title, expected_payments(exact), ranges, vcg.payment, PAYMENTS[np.inf]
    )
    title = "Figure 8: expected payoffs under Algorithm 3, β = ε/2; below zero an agent would rather stay away"
    ranges = np.stack([law.value for law in drawn]) - ranges
    limits = rules.value(scenario.bids, vcg.clearing.allocation) - vcg.payment
    return found + _over_epsilon(
        scenario, out, "figure8-payoffs", title, exact.value - expected_payments(exact), ranges, limits
    )


def _over_epsilon(
    scenario: Scenario,
    out: Path,
    name: str,
    title: str,
    exact: Floats,
    ranges: Floats,
    limits: Floats,
    printed: Sequence[float] | None = None,
) -> list[Path]:
    """A measure of each agent over ε: continuous ``(E, n)``, on ranges ``(E, R, n)``, and its limits ``(n,)``.

    ``printed`` are the limits that the paper gives, if it does.
    """
    mean, spread = ranges.mean(axis=1), ranges.std(axis=1, ddof=1)
    agents = [agent_name(scenario, agent) for agent in range(scenario.size)]
    figure, axes = grid(title, "ε", "$", agents, 3, log=True)
    for agent, panel in enumerate(axes.flat):
        low, high = mean[:, agent] - spread[:, agent], mean[:, agent] + spread[:, agent]
        panel.fill_between(SWEEP, low, high, color=FAINT, alpha=0.25, lw=0, label="± 1 sd over ranges")
        panel.plot(SWEEP, mean[:, agent], color=FAINT, lw=1.2, label="eleven points")
        panel.plot(SWEEP, exact[:, agent], color=OURS, lw=1.8, label="continuous")
        panel.axhline(limits[agent], color=INK, ls="--", lw=0.9, label="VCG")
        if printed is not None:
            panel.axhline(printed[agent], color=PAPER, ls=":", lw=1.2, label="VCG as printed")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5, frameon=False, fontsize=8.5)
    rows = [
        {
            "epsilon": level,
            "agent": agents[agent],
            "continuous": exact[k, agent],
            "eleven_points": mean[k, agent],
            "eleven_points_sd": spread[k, agent],
            "vcg": limits[agent],
        }
        | ({} if printed is None else {"vcg_printed": printed[agent]})
        for k, level in enumerate(SWEEP)
        for agent in range(scenario.size)
    ]
    return save(out, name, figure, rows)


def _figure9(scenario: Scenario, out: Path) -> list[Path]:
    """ε against the confidence 1 − δ by (16)."""
    del scenario
    gaps, sizes = (0.1, 0.5, 1.0), (10, 100, 1000)
    delta = 1.0 - np.array([0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.925, 0.95, 0.97, 0.98, 0.99, 0.995, 0.999])
    figure, axes = panels("Figure 9: ε that guarantees a gap with confidence 1 − δ, by (16)", "1 − δ", "ε")
    axes.set_yscale("log")
    rows: Rows = []
    for gap, colour in zip(gaps, COLOURS, strict=False):
        for size, dash in zip(sizes, ("-", "--", ":"), strict=True):
            needed = rules.epsilon_for_gap(gap, size, delta)
            axes.plot(1.0 - delta, needed, dash, color=colour, lw=1.4, label=f"gap {gap:g} $, |R| = {size}")
            rows += [
                {"gap": gap, "range_size": size, "confidence": float(1.0 - d), "epsilon": float(e)}
                for d, e in zip(delta, needed, strict=True)
            ]
    legend(axes, ncols=3, fontsize=7.5, loc="upper left")
    return save(out, "figure9-epsilon-confidence", figure, rows)


def _figure10(scenario: Scenario, out: Path) -> list[Path]:
    """Density of welfare under Laplace noise on what is reported."""
    edges = np.linspace(-2.0, 1.6, 145)
    middle = 0.5 * (edges[1:] + edges[:-1])
    figure, axes = panels("Figure 10: welfare under Laplace noise on coefficients", "welfare [$]", "density")
    densities = {}
    for level, colour in zip((0.1, 1.0, 10.0), COLOURS, strict=False):
        drawn = LaplaceMechanism(scenario, level, samples=1).sample(DRAWS, np.random.default_rng(2))
        welfare = rules.value(scenario.bids, drawn).sum(axis=1)
        densities[level] = np.histogram(welfare, edges, density=True)[0]
        axes.plot(middle, densities[level], color=colour, lw=1.4, label=f"ε = {level:g}, mean {welfare.mean():.3f}")
    axes.axvline(rules.clear(scenario.bids, scenario.bounds).welfare, color=INK, ls="--", lw=0.9, label="optimum")
    legend(axes, loc="upper left")
    rows = [
        {"welfare": where} | {f"epsilon_{level:g}": density[k] for level, density in densities.items()}
        for k, where in enumerate(middle)
    ]
    return save(out, "figure10-laplace-density", figure, rows)


PARTS: dict[str, Callable[[Scenario, Path], list[Path]]] = {
    "Table III": _table3,
    "Table IV": _table4,
    "Table V": _table5,
    "Table VI": _table6,
    "Figure 5": _figure5,
    "Figure 6": _figure6,
    "Figures 7 and 8": _figures78,
    "Figure 9": _figure9,
    "Figure 10": _figure10,
    "claims of the text": claims.text_claims,
    "Laplace or exponential": claims.laplace_or_exponential,
    "regret at scale": claims.regret_at_scale,
}
