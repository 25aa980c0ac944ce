"""What the limits of the feeder's lines cost, and what the multipliers of the market mean."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from training.figures import legend, panels, save
from training.grid_study import BLUE, GREY, RED, Part, Rows, Study, claim, state_of, text
from training.runs import write_csv

# A limit counts as reached from this share on.
REACHED = 1.0 - 1e-4


def lines(study: Study, out: Path) -> Part:
    """Loading without (16a) and with limits as tight as can be; what tighter limits cost."""
    days = study.tightened()
    rows: Rows = []
    for each in days:
        row: dict[str, Any] = {"room": each.share, "feasible": each.nash is not None}
        if each.nash is not None and each.social is not None:
            loading = state_of(each.scenario, each.nash).apparent / each.scenario.line_limit
            row |= {"cost": float(each.nash.cost.sum()), "least_cost": each.social.potential,
                    "lines_at_limit": int((loading.max(axis=0) > REACHED).sum())}  # fmt: skip
        rows.append(row)
    feasible = [each for each in days if each.nash is not None]
    tight, limits = feasible[-1], feasible[-1].scenario.line_limit
    without, within = (
        state_of(each.scenario, each.nash).apparent.max(axis=0) / limits for each in (days[0], tight) if each.nash
    )
    figure, axes = panels("Highest loading of each line", "line", "part of the tightest limit")
    place = np.arange(len(limits))
    axes.bar(place - 0.2, without, width=0.4, color=RED, label="without limits (16a)")
    axes.bar(place + 0.2, within, width=0.4, color=BLUE, label="with them")
    axes.axhline(1.0, color=GREY, lw=0.8)
    lines = tight.scenario.feeder.lines
    axes.set_xticks(place, lines, rotation=90, fontsize=6)
    legend(axes)
    loads = [
        {"line": name, "limit_kva": float(limits[k]), "without": float(without[k]), "within": float(within[k])}
        for k, name in enumerate(lines)
    ]
    table = out / "line-limits.csv"
    write_csv(table, rows, ["room", "feasible", "cost", "least_cost", "lines_at_limit"])
    least = [each.social.potential for each in feasible if each.social is not None]
    rising = all(b >= a - 1e-6 * abs(a) for a, b in pairwise(least))
    none = [each.share for each in days if each.nash is None]
    claims = [
        claim("limits of lines are kept", "yes", f"{within.max():.6f}", within.max() <= 1.0 + 1e-6,
               f"highest loading with limits; {int((without > 1.0 + 1e-6).sum())} lines beyond them without"),
        claim("tighter limits cost more", "yes", text(least), rising and least[-1] > least[0] + 1e-6,
               f"least total cost with room {text([each.share for each in feasible], '.3g')} on each line [€/day]"),
        claim("some limits are infeasible", "yes", text(none[:1], ".3g"), bool(none),
               "largest part of the room found at which no day is feasible"),
    ]  # fmt: skip
    return [*save(out, "line-loading", figure, loads), table], claims


# --- What the multipliers mean ----------------------------------------------------------------------------------------


MEANINGS: tuple[tuple[str, str, str, str], ...] = (
    ("balance", "(6)", "€/kWh", "what a kWh more of demand costs the prosumer, before network charges"),
    (
        "trade",
        "(8b)",
        "€/kWh",
        "what who receives pays on top of c^tr, and who delivers gets: shadow price of a trade",
    ),
    ("import", "(12)", "€/kWh", "charge on each kWh from the grid at the most, credit at the least total import"),
    ("nodal", "(13)", "€/kWh", "what a kWh more of net demand at a bus costs by limits of lines and voltages"),
    ("line_max", "(16a)", "€/kWh", "what a kW more of room on a line saves, flows towards the bus it feeds"),
    ("line_min", "(16a)", "€/kWh", "the same, flows towards the source"),
    ("line_cone", "(16a)", "€/kVAh", "the same where reactive flows are free (reactive=False)"),
    ("voltage_min", "(16)", "€/(p.u. h)", "worth of a lower voltage limit"),
    ("voltage_max", "(16)", "€/(p.u. h)", "worth of a higher voltage limit"),
    ("angle_min", "(16)", "€/(rad h)", "worth of a wider angle, lagging"),
    ("angle_max", "(16)", "€/(rad h)", "worth of a wider angle, leading"),
    ("state", "(5)", "€/kWh", "what a stored kWh is worth at the end of an hour"),
)


def multipliers(study: Study, out: Path) -> Part:
    """Each multiplier: its constraint, its meaning, its range on this day and on one with tight lines."""
    found, tight = study.solve(), [each.nash for each in study.tightened() if each.nash is not None][-1]
    rows: Rows = []
    for name, constraint, unit, meaning in MEANINGS:
        row: dict[str, Any] = {"multiplier": name, "constraint": constraint, "unit": unit, "meaning": meaning}
        for label, each in (("", found), ("_tight", tight)):
            values = each.multipliers[name]
            row |= {
                f"least{label}": float(values.min()),
                f"mean{label}": float(values.mean()),
                f"most{label}": float(values.max()),
                f"nonzero{label}": int((np.abs(values) > 1e-6).sum()),
            }
        rows.append(row)
    table = out / "multipliers.csv"
    write_csv(table, rows, list(rows[0]))
    residual = max(found.residual, tight.residual)
    return [table], [claim("multipliers satisfy the optimality conditions", "", f"{residual:.1e}", residual < 1e-6,
                            "largest relative residual of the Karush-Kuhn-Tucker conditions, both days")]  # fmt: skip


# --- The distributed algorithms ---------------------------------------------------------------------------------------
