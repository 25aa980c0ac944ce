"""Tables III to VI and Figures 5 to 10 of the VCG paper from the corrected model, the printed numbers beside ours.

Source: Hoseinpour, Hoseinpour, Haghifam, Haghifam, "Privacy-preserving and approximately truthful local electricity
markets: a differentially private VCG mechanism", section VI. What the paper prints is data here; nothing of ours is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from p2penv.communication.render import FAINT, INK
from p2penv.dpvcg import Scenario, continuous, finite, load_scenario, rules, sampling, search
from p2penv.dpvcg.mechanisms import LaplaceMechanism
from p2penv.dpvcg.quadrature import make_quadrature
from p2penv.dpvcg.rules import Bids, Bounds, Law
from p2penv.dpvcg.typespace import TypeSpace, with_report
from training.figures import grid, legend, panels, save

Floats = NDArray[np.float64]
Rows = list[dict[str, Any]]

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
OURS, PAPER = "#0072b2", "#d55e00"
LEVELS = (0.1, 1.0, 10.0, 100.0)  # ε of Table III and Figure 5
SWEEP = np.geomspace(0.01, 1000.0, 61)  # ε of Figures 7 and 8
DRAWS = 200_000
RANGES = 200  # ranges of the sub-markets that Table IV and Figures 7 and 8 average over

# Table III: probabilities of its eleven points at ε = .1, 1, 10; at 100 it says ≈ 0 and ≈ 1.
PROBABILITIES = {
    0.1: (0.0924, 0.0882, 0.0897, 0.0915, 0.0883, 0.0907, 0.0929, 0.0925, 0.0897, 0.0899, 0.0937),
    1.0: (0.105, 0.0662, 0.0784, 0.0953, 0.0673, 0.0882, 0.115, 0.106, 0.0788, 0.0806, 0.121),
    10.0: (0.114, 0.0011, 0.0059, 0.0422, 0.0012, 0.0193, 0.201, 0.127, 0.0062, 0.0079, 0.472),
    100.0: (*[0.0] * 10, 1.0),
}
WELFARE = (1.28, 0.356, 0.7, 1.08, 0.388, 0.93, 1.4, 1.3, 0.7, 0.75, 1.56)
# Table IV, and the limits of Figure 7 the text gives: consumers 1 to 3, producers 1 to 3.
PAYMENTS = {
    0.01: (0.375, 0.413, 0.637, -0.613, -0.722, -1.121),
    0.5: (0.374, 0.412, 0.634, -0.627, -0.756, -1.15),
    1.0: (0.372, 0.41, 0.63, -0.64, -0.791, -1.19),
    np.inf: (0.59, 0.53, 0.7, -0.57, -0.9, -1.45),
}
# Table V: (α, ε), the same order; 0 stands for ≈ 0.
CHANGES = {
    (0.9, 0.1): (0.004, 0.02, 0.011, -0.026, 0.0051, 0.005),
    (0.9, 0.5): (0.001, 0.016, 0.01, -0.024, 0.0054, 0.007),
    (0.9, 1.0): (-0.002, 0.012, 0.008, -0.022, 0.0058, 0.01),
    (0.5, 0.1): (-0.006, 0.01, 0.0048, -0.042, -0.009, -0.001),
    (0.5, 0.5): (-0.01, 0.006, -0.002, -0.043, -0.005, 0.004),
    (0.5, 1.0): (-0.03, -0.01, -0.01, -0.044, 0.0, 0.01),
}
# Table VI: mean and standard deviation of d1 d2 d3 g1 g2 g3 and sw.
SUMMARY = {
    ("Exp", 0.1): (
        (10.98, 12.12, 16.74, 9.98, 10.74, 19.12, 0.95),
        (2.9, 3.62, 3.54, 6.35, 5.77, 6.21, 0.38),
    ),
    ("InLap", 0.1): (
        (9.51, 10.65, 16.26, 10.22, 12.53, 13.67, 0.08),
        (4.86, 6.26, 7.21, 8.48, 10.12, 11.51, 0.47),
    ),
    ("Exp", 1.0): (
        (11.45, 12.58, 17.13, 9.89, 11.6, 19.68, 1.02),
        (2.82, 3.48, 3.44, 6.28, 5.67, 5.93, 0.36),
    ),
    ("InLap", 1.0): (
        (9.93, 11.73, 17.54, 9.56, 13.12, 16.52, 0.32),
        (4.85, 6.1, 7.02, 7.37, 9.4, 10.75, 0.45),
    ),
    ("Exp", 10.0): (
        (13.83, 14.23, 18.42, 8.5, 16.04, 21.94, 1.4),
        (1.41, 1.57, 1.87, 2.04, 2.97, 3.27, 0.19),
    ),
    ("InLap", 10.0): (
        (13.5, 13.81, 19.0, 9.26, 15.27, 21.76, 1.24),
        (3.23, 3.53, 3.95, 2.58, 4.52, 5.12, 0.24),
    ),
}
QUANTITIES = ("d1", "d2", "d3", "g1", "g2", "g3", "sw")
MISPRINTS = {(1.0, "g2", "sd"), (1.0, "sw", "sd"), (10.0, "g1", "sd")}


def dpvcg(out: Path, report: Callable[[str], None] | None = None) -> list[Path]:
    """Tables III to VI, Figures 5 to 10, and two figures on what the paper claims.

    The paper's mechanism is β = ε/2 on its eleven-point range: ten printed points, off balance by up to .04 kWh, and
    the optimum of the reports. That range is not private; it is used to check the paper, beside the continuous
    mechanism, which is.

    Args:
        out: folder, made if missing; every file appears in one step.
        report: called with the name of each part before it is made.

    Returns:
        The files written, a picture and a table for each.
    """
    scenario = load_scenario("community6")
    found: list[Path] = []
    for name, part in PARTS.items():
        if report is not None:
            report(name)
        found += part(scenario, out)
    return found


# What the parts share.


def _eleven(scenario: Scenario) -> Floats:
    """The paper's range ``(11, n)`` in signed quantities: its printed points, then the optimum at the truth."""
    assert scenario.sampled_allocations is not None
    best = rules.clear(scenario.bids, scenario.bounds).allocation
    return finite.with_optimum(scenario.sampled_allocations * scenario.sign, best)


def _many(bids: Bids, count: int) -> Bids:
    return Bids(*(np.broadcast_to(field, (count, field.size)) for field in bids))


def _continuous(scenario: Scenario, betas: Floats) -> Law:
    """Laws of the continuous mechanism at truthful reports for β ``(E,)``."""
    hardest = np.array([betas.min(), betas.max()])
    quadrature = make_quadrature(scenario.bounds, _many(scenario.bids, 2), hardest, 1e-8)
    return continuous.law(quadrature, _many(scenario.bids, betas.size), betas)


def _sub_ranges(scenario: Scenario, points: int, sets: int) -> Floats:
    """``(sets, n, points + 1, n)``: ranges of the markets without each agent, drawn uniformly, with their optima."""
    drawn = finite.draw_range(scenario.bounds, points * sets, seed=0).without
    best = rules.allocations_without(scenario.bids, scenario.bounds)
    split = drawn.reshape(scenario.size, sets, points, scenario.size).swapaxes(0, 1)
    return finite.with_optimum(split, np.broadcast_to(best, (sets, *best.shape)))


def _paper_laws(scenario: Scenario, betas: Floats, sets: int) -> list[Law]:
    """For each β the laws ``(sets,)`` on the eleven-point range with drawn ranges for the markets without an agent."""
    without = _sub_ranges(scenario, 10, sets)
    points = np.broadcast_to(_eleven(scenario), (sets, 11, scenario.size))
    support, bids = finite.Range(points, without), _many(scenario.bids, sets)
    return [finite.law(support, bids, float(beta)) for beta in betas]


def _payments(law: Law) -> Floats:
    return np.asarray(rules.algorithm3_payments(law))


def _name(scenario: Scenario, agent: int) -> str:
    own = agent if agent < scenario.consumers else agent - scenario.consumers
    return f"{'consumer' if agent < scenario.consumers else 'producer'} {own + 1}"


def _compared(paper: float, ours: float, note: str = "") -> dict[str, Any]:
    return {"paper": float(paper), "ours": float(ours), "difference": float(ours - paper), "note": note}


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
    points = _eleven(scenario)
    welfare = finite.welfare(points, scenario.bids)
    numbers = [*(str(number) for number in range(1, 11)), "opt"]
    rows: Rows = []
    figure, axes = grid("Table III: probabilities on the eleven-point range, β = ε/2", "point", "probability",
                        [f"ε = {level:g}" for level in LEVELS], 2)  # fmt: skip
    for panel, level in zip(axes.flat, LEVELS, strict=True):
        ours = finite.probabilities(points, scenario.bids, 0.5 * level)
        for number, printed, right in zip(numbers, PROBABILITIES[level], ours, strict=True):
            wrong = (level, number) == (1.0, "7")
            note = "misprint: .1115 follows from the printed welfare" if wrong else "paper: ≈" if level == 100 else ""
            rows.append({"quantity": f"probability, ε = {level:g}", "point": number, **_compared(printed, right, note)})
        _two(panel, numbers, PROBABILITIES[level], ours)
    for number, printed, right in zip(numbers, WELFARE, welfare, strict=True):
        note = "computed from g3 = 21.94, printed as 21.9" if number == "2" else ""
        note = "the paper cuts 1.568 off after two digits" if number == "opt" else note
        rows.append({"quantity": "welfare [$]", "point": number, **_compared(printed, right, note)})
    legend(axes[0, 0])
    return save(out, "table3-probabilities", figure, rows)


def _table4(scenario: Scenario, out: Path) -> list[Path]:
    """Expected payments: exact for the continuous mechanism, with their spread for drawn ranges."""
    levels = [level for level in PAYMENTS if np.isfinite(level)]
    betas = 0.5 * np.array(levels)
    exact = _payments(_continuous(scenario, betas))
    drawn = [_payments(law) for law in _paper_laws(scenario, betas, RANGES)]
    limits = rules.pivots(scenario.bids, scenario.bounds).payment
    agents = [_name(scenario, agent) for agent in range(scenario.size)]
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
            row = {"epsilon": level, "agent": name, **_compared(paper, exact[index, agent], note)}
            rows.append({**row, "sampled_mean": mean, "sampled_sd": spread})
    for agent, name in enumerate(agents):
        note = "exact VCG payment; all six printed are lower, as where drawn points miss the optimum without the agent"
        row = {"epsilon": np.inf, "agent": name, **_compared(PAYMENTS[np.inf][agent], limits[agent], note)}
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
    points = _eleven(scenario)
    welfare = finite.welfare(points, scenario.bids)
    value = rules.value(scenario.bids, points)
    agents = [_name(scenario, agent) for agent in range(scenario.size)]
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
            row = {"alpha": scale, "epsilon": level, "agent": name, **_compared(printed[agent], ours[agent], note)}
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
    points, bids = _eleven(scenario), scenario.bids
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
                    | _compared(paper[index], right[index], note)
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
    return (
        "printed probabilities as they are, sum not quite 1; cut off after two digits"
        if abs(ours - paper) > 0.005
        else ""
    )


# Figures.


def _figure5(scenario: Scenario, out: Path) -> list[Path]:
    """Distribution of welfare: the eleven points, and the density of the continuous mechanism."""
    points = _eleven(scenario)
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
    points, beta = _eleven(scenario), 0.25
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
    exact, drawn = _continuous(scenario, 0.5 * SWEEP), _paper_laws(scenario, 0.5 * SWEEP, RANGES)
    title = "Figure 7: expected payments of Algorithm 3, β = ε/2"
    ranges = np.stack([_payments(law) for law in drawn])
    found = _over_epsilon(scenario, out, "figure7-payments", title, _payments(exact), ranges, vcg.payment)
    title = "Figure 8: expected payoffs under Algorithm 3, β = ε/2; below zero an agent would rather stay away"
    ranges = np.stack([law.value for law in drawn]) - ranges
    limits = rules.value(scenario.bids, vcg.clearing.allocation) - vcg.payment
    return found + _over_epsilon(
        scenario, out, "figure8-payoffs", title, exact.value - _payments(exact), ranges, limits
    )


def _over_epsilon(
    scenario: Scenario, out: Path, name: str, title: str, exact: Floats, ranges: Floats, limits: Floats
) -> list[Path]:
    """A measure of each agent over ε: continuous ``(E, n)``, on ranges ``(E, R, n)``, and its limits ``(n,)``."""
    mean, spread = ranges.mean(axis=1), ranges.std(axis=1, ddof=1)
    agents = [_name(scenario, agent) for agent in range(scenario.size)]
    figure, axes = grid(title, "ε", "$", agents, 3, log=True)
    for agent, panel in enumerate(axes.flat):
        low, high = mean[:, agent] - spread[:, agent], mean[:, agent] + spread[:, agent]
        panel.fill_between(SWEEP, low, high, color=FAINT, alpha=0.25, lw=0, label="± 1 sd over ranges")
        panel.plot(SWEEP, mean[:, agent], color=FAINT, lw=1.2, label="eleven points")
        panel.plot(SWEEP, exact[:, agent], color=OURS, lw=1.8, label="continuous")
        panel.axhline(limits[agent], color=INK, ls="--", lw=0.9, label="VCG")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize=8.5)
    rows = [
        {
            "epsilon": level,
            "agent": agents[agent],
            "continuous": exact[k, agent],
            "eleven_points": mean[k, agent],
            "eleven_points_sd": spread[k, agent],
            "vcg": limits[agent],
        }
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


# What the paper claims and does not show.


def _laplace_or_exponential(scenario: Scenario, out: Path) -> list[Path]:
    """Mean welfare over ε: which is better depends on ε, and on what β really costs."""
    levels = np.geomspace(0.1, 30.0, 40)
    omega = float(TypeSpace.group(scenario).sensitivity.max())
    exponential = {
        "paper": _continuous(scenario, 0.5 * levels).welfare,
        "declared": _continuous(scenario, levels / omega).welfare,
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


def _regret_at_scale(scenario: Scenario, out: Path) -> list[Path]:
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
    "Laplace or exponential": _laplace_or_exponential,
    "regret at scale": _regret_at_scale,
}
