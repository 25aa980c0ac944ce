"""The VCG paper's printed numbers, and its mechanism on the range it prints.

Source: Hoseinpour, Hoseinpour, Haghifam, Haghifam, "Privacy-preserving and approximately truthful local electricity
markets: a differentially private VCG mechanism", section VI. What the paper prints is data here; nothing of ours is.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from p2penv.dpvcg import Scenario, continuous, finite, rules
from p2penv.dpvcg.quadrature import make_quadrature
from p2penv.dpvcg.rules import Bids, Law

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
VCG_NOTE = "exact VCG payment; all six printed are lower, as where drawn points miss the optimum without the agent"
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


def eleven(scenario: Scenario) -> Floats:
    """The paper's range ``(11, n)`` in signed quantities: its printed points, then the optimum at the truth."""
    assert scenario.sampled_allocations is not None
    best = rules.clear(scenario.bids, scenario.bounds).allocation
    return finite.with_optimum(scenario.sampled_allocations * scenario.sign, best)


def many(bids: Bids, count: int) -> Bids:
    """The same bids ``(count, n)``."""
    return Bids(*(np.broadcast_to(field, (count, field.size)) for field in bids))


def continuous_laws(scenario: Scenario, betas: Floats) -> Law:
    """Laws of the continuous mechanism at truthful reports for β ``(E,)``."""
    hardest = np.array([betas.min(), betas.max()])
    quadrature = make_quadrature(scenario.bounds, many(scenario.bids, 2), hardest, 1e-8)
    return continuous.law(quadrature, many(scenario.bids, betas.size), betas)


def sub_ranges(scenario: Scenario, points: int, sets: int) -> Floats:
    """``(sets, n, points + 1, n)``: ranges of the markets without each agent, drawn uniformly, with their optima."""
    drawn = finite.draw_range(scenario.bounds, points * sets, seed=0).without
    best = rules.allocations_without(scenario.bids, scenario.bounds)
    split = drawn.reshape(scenario.size, sets, points, scenario.size).swapaxes(0, 1)
    return finite.with_optimum(split, np.broadcast_to(best, (sets, *best.shape)))


def paper_laws(scenario: Scenario, betas: Floats, sets: int) -> list[Law]:
    """For each β the laws ``(sets,)`` on the eleven-point range with drawn ranges for the markets without an agent."""
    without = sub_ranges(scenario, 10, sets)
    points = np.broadcast_to(eleven(scenario), (sets, 11, scenario.size))
    support, bids = finite.Range(points, without), many(scenario.bids, sets)
    return [finite.law(support, bids, float(beta)) for beta in betas]


def expected_payments(law: Law) -> Floats:
    """Payments ``(..., n)`` of Algorithm 3 [$]."""
    return np.asarray(rules.algorithm3_payments(law))


def agent_name(scenario: Scenario, agent: int) -> str:
    """What the paper calls an agent, numbered from 1 in its group."""
    own = agent if agent < scenario.consumers else agent - scenario.consumers
    return f"{'consumer' if agent < scenario.consumers else 'producer'} {own + 1}"


def compared(paper: float, ours: float, note: str = "") -> dict[str, Any]:
    """The printed number beside ours, and why they differ."""
    return {"paper": float(paper), "ours": float(ours), "difference": float(ours - paper), "note": note}


def print_note(paper: float, ours: float, decimals: int) -> str | None:
    """Nothing if ours is printed like the paper's, that it was cut off if so, and None if neither explains it."""
    unit = 10.0**-decimals
    if abs(ours - paper) <= 0.5 * unit * (1.0 + 1e-9):
        return ""
    return "the paper cuts off after the last digit" if 0.0 <= abs(ours) - abs(paper) < unit else None


def decimals_of(printed: float) -> int:
    """Decimals of a number as printed."""
    return len(repr(printed).partition(".")[2])
