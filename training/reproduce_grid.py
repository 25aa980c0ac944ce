"""Figures of the network-constrained market's paper from its exact equilibria, and what becomes of its claims.

Source: Belgioioso, Ananduta, Grammatico, Ocampo-Martinez, "Operationally-safe peer-to-peer energy trading in
distribution grids: a game-theoretic market-clearing mechanism", IEEE Transactions on Smart Grid 2022, section IV, and
the questions of its review (trade prices with and without storage, a quadratic cost of dispatch, shadow prices alone,
ADMM, what the multipliers mean). What the paper says is text here; every number of ours is computed. The paper's
profiles are not published, so numbers of kWh and € are compared in kind only.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from training import reproduce_grid_algorithm as algorithm
from training import reproduce_grid_network as network
from training import reproduce_grid_trade as trade
from training.figures import legend, panels, save
from training.grid_study import BLUE, GREY, OTHER_PROFILES, RED, Changes, Part, Rows, Study, claim, flows, text
from training.runs import write_csv

QUADRATIC = (0.0, 0.0005, 0.001, 0.002, 0.004)  # Q^di [€/kW²h]


def grid(out: Path, report: Callable[[str], None] | None = None, *, prosumers: int = 50) -> list[Path]:
    """Figures and tables on a day of businesses and farms, as in the paper, and a table of its claims.

    Args:
        out: folder, made if missing; every file appears in one step.
        report: called with the name of each part before it is made.
        prosumers: how many, ≥ 4; the paper's 50.

    Returns:
        The files written, a picture and a table for each part, the table of multipliers and the table of claims.

    Raises:
        ValueError: too few prosumers.
        MissingSolverError: Clarabel is not installed.
    """
    if prosumers < 4:
        raise ValueError(f"prosumers must be at least 4, for some to have what others lack, got {prosumers!r}")
    study = Study(prosumers)
    found: list[Path] = []
    claims: Rows = []
    for name, part in PARTS.items():
        if report is not None:
            report(name)
        paths, rows = part(study, out)
        found += paths
        claims += [{"part": name, **row} for row in rows]
    table = out / "claims.csv"
    write_csv(table, claims, list(claims[0]))
    return [*found, table]


def _storage(study: Study, out: Path) -> Part:
    """Import and local supply by hour without storage, with half of the prosumers owning some, with all."""
    cases = {"none": 0.0, "half": 0.5, "everybody": 1.0}
    day = {}
    for name, share in cases.items():
        changes: Changes = {} if share == 0.5 else {"storage_share": share}
        day[name] = flows(study.scenario(**changes), study.solve(**changes))
    figure, top, low = panels("Storage and peaks", "hour", "import [kW]", "dispatch [kW]")
    rows: Rows = []
    for (name, each), colour in zip(day.items(), (GREY, RED, BLUE), strict=True):
        top.plot(each.imported, color=colour, lw=1.5, label=f"storage: {name}")
        low.plot(each.supplied, color=colour, lw=1.5)
        rows += [{"storage": name, "hour": h, "imported_kw": each.imported[h], "dispatched_kw": each.supplied[h],
                  "grid_price": each.price[h]} for h in range(len(each.price))]  # fmt: skip
    legend(top)
    without, full = day["none"], day["everybody"]
    cut = 1.0 - full.imported.max() / without.imported.max() if without.imported.max() > 1e-6 else 0.0
    claims = [
        claim("storage with everybody lowers the peak of the import", "31.8 %", f"{cut:.1%}", cut > 0.0,
               f"{without.imported.max():.0f} to {full.imported.max():.0f} kW; {OTHER_PROFILES}"),
        claim("and the highest price [€/kWh]", "0.414 to 0.283",
               text([without.price.max(), full.price.max()], ".3f"), full.price.max() < without.price.max(),
               "here the passive load is larger against the prosumers, so prices rise less above 0.1624"),
    ]  # fmt: skip
    return save(out, "storage", figure, rows), claims


def _dispatch(study: Study, out: Path) -> Part:
    """Storage and dispatch as the marginal cost of dispatch rises, which the paper's first version left at zero."""
    rows: Rows = []
    for quadratic in QUADRATIC:
        for share in (0.5, 0.0):
            changes: Changes = {"dispatch_quadratic": quadratic} | ({} if share == 0.5 else {"storage_share": 0.0})
            scenario, found = study.scenario(**changes), study.solve(**changes)
            each, schedules = flows(scenario, found), found.schedules
            both = (schedules.charge > 1e-6) & (schedules.discharge > 1e-6)
            rows.append({"quadratic": quadratic, "storage": share > 0.0, "peak_import_kw": float(each.imported.max()),
                         "peak_import_and_dispatch_kw": float((each.imported + each.supplied).max()),
                         "dispatched_kwh": float(each.supplied.sum()), "charged_kwh": float(schedules.charge.sum()),
                         "traded_kwh": each.traded, "both_hours": int(both.sum()),
                         "cost": float(found.cost.sum())})  # fmt: skip
    figure, top, low = panels("A quadratic cost of dispatch", "Q [€/kW²h]", "highest import [kW]", "charged [kWh]")
    for stores, colour, name in ((True, BLUE, "with storage"), (False, RED, "without")):
        part = [row for row in rows if row["storage"] == stores]
        top.plot(QUADRATIC, [row["peak_import_kw"] for row in part], "o-", color=colour, lw=1.3, ms=4, label=name)
        low.plot(QUADRATIC, [row["charged_kwh"] for row in part], "o-", color=colour, lw=1.3, ms=4)
    legend(top)
    pairs = [(rows[k], rows[k + 1]) for k in range(0, len(rows), 2)]
    pairs = [(a, b) for a, b in pairs if b["peak_import_kw"] > 1e-6]
    shaved = [1.0 - a["peak_import_kw"] / b["peak_import_kw"] for a, b in pairs]
    claims = [
        claim("with Q > 0 storage lowers the peak of the import", "yes", text([100.0 * each for each in shaved]),
               min(shaved) > 0.0,
               f"by % at Q = {text([a['quadratic'] for a, _ in pairs], 'g')}; at other Q dispatch leaves no import"),
        claim("nobody charges and discharges at once", "", sum(row["both_hours"] for row in rows),
               all(row["both_hours"] == 0 for row in rows), "hours of prosumers, all days; q_st > 0 keeps them apart"),
    ]  # fmt: skip
    return save(out, "dispatch-cost", figure, rows), claims


# --- The network ------------------------------------------------------------------------------------------------------


def _algorithms(study: Study, out: Path) -> Part:
    """Iterations and time of Algorithm 1 and of ADMM against size and density, and how they converge."""
    found = algorithm.trials(study.prosumers, study.density, study.seed)
    paths, rows = algorithm.iterations(found, out)
    (same,) = (each for each in found["prosumers"] if each.scenario.size == study.prosumers)
    traces, runs = algorithm.convergence(same, out)
    first = [row for row in rows if row["algorithm"] == "Algorithm 1"]
    second = [row for row in rows if row["algorithm"] == "ADMM"]
    counts = {key: [row["iterations"] for row in first if row["against"] == key] for key in ("prosumers", "density")}
    times = [row["seconds"] for row in first]
    sizes = text([each.scenario.size for each in found["prosumers"]], "d")
    spread = [max(each) / min(each) for each in counts.values()]
    claims = [
        claim("Algorithm 1 converges", "yes", text([row["distance_kw"] for row in first], ".3f"),
               all(row["converged"] for row in first),
               f"largest distance of the hourly import to the exact one [kW], stopped at residuals of "
               f"{algorithm.TOLERANCE:g} kW and cents/kWh"),
        claim("iterations hardly depend on N", "about 1000 at 40 to 80", text(counts["prosumers"], "d"),
               spread[0] < 1.5,
               f"at N = {sizes}; the paper's rule stops at changes, not at a residual"),
        claim("iterations hardly depend on connectivity", "about 1000", text(counts["density"], "d"), spread[1] < 1.5,
               f"at density {text(algorithm.DENSITIES)}"),
        claim("a day is solved in time [s]", "under 23 min", text(times, ".1f"), max(times) < 23 * 60,
               "all players one after another on this machine, in the order of the table"),
        claim("ADMM on the same problem", "asked for in the review", text([row["iterations"] for row in second], "d"),
               all(row["converged"] for row in second),
               "iterations in the same order; it needs the game's potential, which Algorithm 1 does not; "
               f"{runs['ADMM'].seconds:.1f} s against {runs['Algorithm 1'].seconds:.1f} s at N = {study.prosumers}"),
    ]  # fmt: skip
    return [*paths, *traces], claims


PARTS: dict[str, Callable[[Study, Path], Part]] = {
    "Trading benefit": trade.benefit,
    "Who loses by trading": trade.losing,
    "Operator": trade.operator,
    "Trade against its prices": trade.tariffs,
    "Prices over the day": trade.prices,
    "Shadow price alone": trade.shadow,
    "Storage and peaks": _storage,
    "Cost of dispatch": _dispatch,
    "Line limits": network.lines,
    "Multipliers": network.multipliers,
    "Algorithms": _algorithms,
}
