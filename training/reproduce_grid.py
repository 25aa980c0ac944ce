"""Figures of the network-constrained market's paper from its exact equilibria, and what becomes of its claims.

Source: Belgioioso, Ananduta, Grammatico, Ocampo-Martinez, "Operationally-safe peer-to-peer energy trading in
distribution grids: a game-theoretic market-clearing mechanism", IEEE Transactions on Smart Grid 2022, section IV, and
the questions of its review (trade prices with and without storage, a quadratic cost of dispatch, shadow prices alone,
ADMM, what the multipliers mean). What the paper says is text here; every number of ours is computed. The paper's
profiles are not published, so numbers of kWh and € are compared in kind only.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from p2penv.grid import Scenario, load_scenario, rules
from p2penv.grid.equilibrium import Equilibrium, InfeasibleError, Kind, bill, variational_equilibrium
from training import reproduce_grid_algorithm as algorithm
from training.figures import legend, panels, save
from training.runs import write_csv

Floats = NDArray[np.float64]
Rows = list[dict[str, Any]]
Part = tuple[list[Path], Rows]
Changes = dict[str, Any]

BLUE, RED, DARK, GREY = "#0072b2", "#d55e00", "#22272e", "#aab3bd"
OTHER_PROFILES = "the paper's profiles are not published"
TARIFFS = (0.01, 0.03, 0.05, 0.07, 0.09, 0.11)  # c^ta [€/kWh]
CONTRACTS = (0.0, 0.04, 0.08, 0.12, 0.16, 0.2)  # c^tr [€/kWh]
QUADRATIC = (0.0, 0.0005, 0.001, 0.002, 0.004)  # Q^di [€/kW²h]
# A limit counts as reached from this share on.
REACHED = 1.0 - 1e-4


@dataclass
class Study:
    """Days of the same businesses under changed parameters, each solved once."""

    prosumers: int = 50
    density: float = 0.6
    seed: int = 0
    _scenarios: dict[Any, Scenario] = field(default_factory=dict)
    _found: dict[Any, Equilibrium] = field(default_factory=dict)
    _limited: list[Limited] = field(default_factory=list)

    def scenario(self, **changes: Any) -> Scenario:
        """The day with changed options of :func:`p2penv.grid.load_scenario`."""
        key = tuple(sorted(changes.items()))
        if key not in self._scenarios:
            self._scenarios[key] = load_scenario(
                "ieee37", prosumers=self.prosumers, density=self.density, seed=self.seed, scale="paper", **changes
            )
        return self._scenarios[key]

    def solve(self, kind: Kind = "nash", **changes: Any) -> Equilibrium:
        """Its equilibrium."""
        key = (kind, *sorted(changes.items()))
        if key not in self._found:
            self._found[key] = variational_equilibrium(self.scenario(**changes), kind)
        return self._found[key]

    def tightened(self) -> list[Limited]:
        """The day without line limits and with less and less room on the lines."""
        if not self._limited:
            self._limited = tightened(self.scenario())
        return self._limited


class Flows(NamedTuple):
    """What a day looks like from above; H hours."""

    imported: Floats  # (H,) σ [kW]
    supplied: Floats  # (H,) dispatched [kW]
    price: Floats  # (H,) of the grid [€/kWh]
    trade_price: Floats  # (H,) c^tr + μ^tr, mean over what is traded; NaN where nothing is [€/kWh]
    traded: float  # [kWh]


def flows(scenario: Scenario, found: Equilibrium) -> Flows:
    """Totals of a solved day."""
    schedules = found.schedules
    imported = schedules.grid.sum(axis=1)
    bought = np.maximum(schedules.trade, 0.0)
    # Buyers of a pair pay c^tr and the multiplier of reciprocity, which has the sign of who is first in the pair.
    price = scenario.params.trade_cost + found.multipliers["trade"][:, scenario.pair]
    total = bought.sum(axis=(1, 2))
    mean = np.divide((price * bought).sum(axis=(1, 2)), total, out=np.full(len(total), np.nan), where=total > 1e-6)
    grid = rules.grid_price(scenario.params, imported)
    return Flows(imported, schedules.dispatch.sum(axis=1), grid, mean, scenario.step_hours * float(total.sum()))


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


def _claim(claim: str, paper: Any, ours: Any, holds: Any, note: str = "") -> dict[str, Any]:
    return {"claim": claim, "paper": paper, "ours": ours, "holds": holds if holds == "" else bool(holds), "note": note}


def _text(values: Any, form: str = ".2f") -> str:
    return ", ".join(f"{number:{form}}" for number in np.atleast_1d(values))


# --- Who gains from trading -------------------------------------------------------------------------------------------


def _benefit(study: Study, out: Path) -> Part:
    """What trading saves each prosumer at contract and at shadow prices, with Q as given and with Q = 0."""
    rows: Rows = []
    saved: dict[str, Floats] = {}
    scenario = study.scenario()
    cases: tuple[tuple[str, Changes], ...] = (("", {}), (" Q = 0", {"dispatch_quadratic": 0.0}))
    for name, changes in cases:
        alone, traded = study.solve("no_trade", **changes), study.solve(**changes)
        saved[f"contract prices{name}"] = alone.cost - traded.cost
        own = study.scenario(**changes)
        saved[f"shadow prices{name}"] = bill(own, alone) - bill(own, traded)
    for i in range(scenario.size):
        rows.append(
            {
                "prosumer": i,
                "dispatchable": bool(scenario.dispatch_max[i] > 0.0),
                "storage": bool(scenario.storage_power[i] > 0.0),
                "solar": bool(scenario.solar[:, i].max() > 0.0),
                "cost_alone": float(study.solve("no_trade").cost[i]),
                **{f"saved at {name}": float(values[i]) for name, values in saved.items()},
            }
        )
    figure, axes = panels("What trading saves each prosumer", "prosumer, by what it saves at contract prices",
                          "saved [€/day]")  # fmt: skip
    order = np.argsort(-saved["contract prices"], kind="stable")
    for (name, values), colour, mark in zip(saved.items(), (RED, BLUE, RED, BLUE), "oo++", strict=True):
        axes.plot(values[order], mark, color=colour, ms=4, alpha=0.85, label=f"{name}: mean {values.mean():.1f}")
    axes.axhline(0.0, color=GREY, lw=0.8)
    legend(axes)
    means, least, losers = (_text([measure(values) for values in saved.values()], form)
                            for measure, form in ((np.mean, ".2f"), (np.min, ".2f"), (_losers, "d")))  # fmt: skip
    names = "; ".join(saved)
    shadow = [values for name, values in saved.items() if name.startswith("shadow")]
    contract = [values for name, values in saved.items() if name.startswith("contract")]
    claims = [
        _claim("trading saves on average [€/day]", 129.6, means, all(values.mean() > 0.0 for values in saved.values()),
               f"in order: {names}; {OTHER_PROFILES}"),
        _claim("nobody loses at contract prices: least saving [€/day]", 0.16, least,
               all(_losers(values) == 0 for values in contract),
               f"in order: {names}; who dispatches at a rising marginal cost is paid c^tr alone"),
        _claim("who loses at contract prices", 0, losers, all(_losers(values) == 0 for values in contract),
               f"number of prosumers, in order: {names}"),
        _claim("nobody loses at shadow prices", "", losers, all(_losers(values) == 0 for values in shadow),
               "trades are worth their price to both sides; what they do to the grid's price comes on top"),
    ]  # fmt: skip
    return save(out, "trading-benefit", figure, rows), claims


def _losers(saved: Floats) -> int:
    return int((saved < -1e-6).sum())


def _operator(study: Study, out: Path) -> Part:
    """What the operator takes in and what its network carries, by equilibrium."""
    scenario = study.scenario()
    kinds: tuple[Kind, ...] = ("no_trade", "nash", "wardrop", "social")
    rows: Rows = []
    for kind in kinds:
        found = study.solve(kind)
        own, state = rules.bill(scenario.params, found.schedules), _state(scenario, found)
        rows.append(
            {
                "equilibrium": kind,
                "prosumers_cost": float(found.cost.sum()),
                "tariff_income": float(own.tariff.sum()),
                "traded_kwh": flows(scenario, found).traded,
                "imported_kwh": scenario.step_hours * float(found.schedules.grid.sum()),
                "peak_import_kw": float(state.grid_active.max()),
                "peak_loading": float((state.apparent / scenario.line_limit).max()),
                "lowest_voltage": float(state.voltage.min()),
                # What everybody without a contract pays moves with the price.
                "passive_bills": float((flows(scenario, found).price * scenario.passive_total[:-1]).sum()),
            }
        )
    figure, *axes = panels("What the operator gains from trading", "equilibrium", "tariffs [€/day]", "peak import [kW]")
    for panel, key in zip(axes, ("tariff_income", "peak_import_kw"), strict=True):
        panel.bar(list(kinds), [row[key] for row in rows], color=[GREY, BLUE, RED, DARK], width=0.6)
    alone, nash, _, social = rows
    ratio = nash["prosumers_cost"] / social["prosumers_cost"]
    claims = [
        _claim("trading benefits the operator", "yes", _text([nash["tariff_income"], nash["peak_loading"]]),
               nash["tariff_income"] > 0.0 and nash["peak_import_kw"] <= alone["peak_import_kw"],
               f"tariffs [€/day] and highest loading; without trade no tariffs and {alone['peak_loading']:.2f}"),
        _claim("passive consumers pay less", "", _text([alone["passive_bills"], nash["passive_bills"]]),
               nash["passive_bills"] <= alone["passive_bills"], "bills without and with trade [€/day]"),
        _claim("price of anarchy", "", f"{ratio:.4f}", ratio >= 1.0 - 1e-9,
               "cost of the v-GNE over the least there is; passive bills left out"),
    ]  # fmt: skip
    return save(out, "operator", figure, rows), claims


COMMUNITIES: dict[str, Changes] = {
    "households": {},
    "businesses": {"scale": "paper", "density": 0.6},
    "businesses, storage alone": {"scale": "paper", "dispatch_share": 0.0, "storage_share": 1.0,
                                  "storage_power": 20.0, "passive_level": 0.1},
}  # fmt: skip
SEEDS = 100


def _losing(study: Study, out: Path) -> Part:
    """Least saving at shadow prices in many communities of 12: who buys when storage does may lose."""
    rows: Rows = []
    for name, options in COMMUNITIES.items():
        for seed in range(study.seed, study.seed + SEEDS):
            scenario = load_scenario("ieee37", prosumers=12, seed=seed, **options)
            alone, traded = variational_equilibrium(scenario, "no_trade"), variational_equilibrium(scenario)
            saved = bill(scenario, alone) - bill(scenario, traded)
            part = saved / np.maximum(np.abs(alone.cost), 1e-9)
            rows.append({"community": name, "seed": seed, "losers": _losers(saved), "least_saved": float(saved.min()),
                         "least_part": float(part.min()), "saved": float(saved.sum())})  # fmt: skip
    figure, axes = panels("Who loses by trading at shadow prices", "community, by its least saving",
                          "least saving [% of the cost alone]")  # fmt: skip
    claims: Rows = []
    for name, colour in zip(COMMUNITIES, (BLUE, RED, DARK), strict=True):
        mine = [row for row in rows if row["community"] == name]
        losing, least = sum(row["losers"] for row in mine), min(row["least_part"] for row in mine)
        axes.plot(sorted(100.0 * row["least_part"] for row in mine), color=colour, lw=1.5, label=name)
        claims.append(
            _claim(f"12 {name}: nobody loses at shadow prices", "", losing, losing == 0,
                   f"of {12 * len(mine)} in {len(mine)} communities; least saving {least:.2%} of the cost alone; "
                   "who buys when storage does, for others, pays more to the grid")
        )  # fmt: skip
    axes.axhline(0.0, color=GREY, lw=0.8)
    legend(axes)
    return save(out, "trading-losers", figure, rows), claims


# --- Tariffs and prices -----------------------------------------------------------------------------------------------


def _tariffs(study: Study, out: Path) -> Part:
    """Total trade against both prices of a trade, and who loses at contract prices."""
    rows: Rows = []
    base, alone = study.scenario(), study.solve("no_trade")
    for key, name, values in (("c^ta", "tariff", TARIFFS), ("c^tr", "trade_cost", CONTRACTS)):
        for value in values:
            changes: Changes = {name: value}
            found = study.solve(**changes)
            saved = alone.cost - found.cost
            rows.append(
                {
                    "changed": key,
                    "value": value,
                    "traded_kwh": flows(study.scenario(**changes), found).traded,
                    "cost": float(found.cost.sum()),
                    "losers": _losers(saved),
                    "least_saved": float(saved.min()),
                }
            )
    by = {key: [row for row in rows if row["changed"] == key] for key in ("c^ta", "c^tr")}
    figure, top, low = panels("Trade against its prices", "€/kWh", "traded [kWh/day]", "lose")
    for (key, part), colour in zip(by.items(), (BLUE, RED), strict=True):
        at = [row["value"] for row in part]
        top.plot(at, [row["traded_kwh"] for row in part], "o-", color=colour, lw=1.3, ms=4, label=key)
        low.plot(at, [row["losers"] for row in part], "o-", color=colour, lw=1.3, ms=4)
    top.set_ylim(bottom=0.0)
    legend(top)
    traded = [row["traded_kwh"] for row in by["c^ta"]]
    flat = [row["traded_kwh"] for row in by["c^tr"]]
    spread = (max(flat) - min(flat)) / max(max(flat), 1e-9)
    claims = [
        _claim("trade falls as c^ta rises from 0.01 to 0.11 [kWh]", "21,048 to 14,191", _text(traded, ".0f"),
               all(more >= less - 1e-3 for more, less in pairwise(traded)),
               f"at c^ta = {_text(TARIFFS)}; {OTHER_PROFILES}"),
        _claim("trade against c^tr [kWh]", "", _text(flat, ".0f"), spread < 1e-3,
               "flat: what one of a pair pays the other gets, so a common c^tr cancels in the potential and "
               f"only moves the multiplier; at c^tr = {_text(CONTRACTS)} it decides who gains "
               f"({_text([row['losers'] for row in by['c^tr']], 'd')} of {base.size} lose)"),
    ]  # fmt: skip
    return save(out, "trade-against-prices", figure, rows), claims


def _prices(study: Study, out: Path) -> Part:
    """Prices of the grid and of trades by hour, with and without storage."""
    cases: dict[str, Changes] = {"with storage": {}, "without storage": {"storage_share": 0.0}}
    day = {name: flows(study.scenario(**changes), study.solve(**changes)) for name, changes in cases.items()}
    figure, axes = panels("Prices over the day", "hour", "€/kWh")
    rows: Rows = []
    for (name, each), dash in zip(day.items(), ("-", "--"), strict=True):
        axes.plot(each.price, dash, color=BLUE, lw=1.4, label=f"grid, {name}")
        axes.plot(each.trade_price, dash, color=RED, lw=1.4, label=f"trades, {name}")
        rows += [{"case": name, "hour": h, "grid_price": each.price[h], "trade_price": each.trade_price[h],
                  "imported_kw": each.imported[h]} for h in range(len(each.price))]  # fmt: skip
    axes.axhline(study.scenario().trade_cost.max(), color=GREY, lw=0.8)
    legend(axes)
    spread = {name: float(np.ptp(each.price)) for name, each in day.items()}
    below = [float(np.nanmean((each.trade_price <= each.price + 1e-9)[np.isfinite(each.trade_price)]))
             for each in day.values()]  # fmt: skip
    claims = [
        _claim("trades cost less than the grid", "", _text(below), min(below) == 1.0,
               "share of hours, with and without storage; c^tr and shadow price together, the tariff apart"),
        _claim("storage flattens the price of the grid", "", _text(list(spread.values()), ".4f"),
               spread["with storage"] <= spread["without storage"] + 1e-9,
               "highest less lowest price with and without storage [€/kWh]"),
    ]  # fmt: skip
    return save(out, "prices", figure, rows), claims


def _shadow(study: Study, out: Path) -> Part:
    """c^tr = 0: the multiplier of reciprocity alone is the price of a trade."""
    base, free = study.solve(), study.solve(trade_cost=0.0)
    own, none = study.scenario(), study.scenario(trade_cost=0.0)
    day, plain = flows(own, base), flows(none, free)
    figure, axes = panels("Shadow prices of trades", "hour", "€/kWh")
    axes.plot(day.trade_price - own.trade_cost.max(), color=BLUE, lw=1.4, label="multiplier, c^tr as given")
    axes.plot(plain.trade_price, color=RED, lw=1.4, label="multiplier, c^tr = 0")
    axes.plot(day.trade_price, ":", color=DARK, lw=1.4, label="c^tr and multiplier")
    axes.axhline(0.0, color=GREY, lw=0.8)
    legend(axes)
    rows = [{"hour": h, "multiplier": day.trade_price[h] - own.trade_cost.max(), "multiplier_without_c_tr":
             plain.trade_price[h], "grid_price": day.price[h]} for h in range(len(day.price))]  # fmt: skip
    traded = np.isfinite(day.trade_price) & np.isfinite(plain.trade_price)
    gap = float(np.abs(day.trade_price - plain.trade_price)[traded].max(initial=0.0))
    bills = float(np.abs(bill(own, base) - bill(none, free)).max())
    claims = [
        _claim("with c^tr = 0 the shadow price is the price of trades", "yes", f"{gap:.1e}", gap < 1e-3,
               "largest difference between c^tr + multiplier with and without c^tr [€/kWh]"),
        _claim("bills at shadow prices do not depend on c^tr", "", f"{bills:.1e}", bills < 1e-2,
               "largest difference of a prosumer's bill [€/day]"),
    ]  # fmt: skip
    return save(out, "shadow-price", figure, rows), claims


# --- Storage and dispatch ---------------------------------------------------------------------------------------------


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
        _claim("storage with everybody lowers the peak of the import", "31.8 %", f"{cut:.1%}", cut > 0.0,
               f"{without.imported.max():.0f} to {full.imported.max():.0f} kW; {OTHER_PROFILES}"),
        _claim("and the highest price [€/kWh]", "0.414 to 0.283",
               _text([without.price.max(), full.price.max()], ".3f"), full.price.max() < without.price.max(),
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
        _claim("with Q > 0 storage lowers the peak of the import", "yes", _text([100.0 * each for each in shaved]),
               min(shaved) > 0.0,
               f"by % at Q = {_text([a['quadratic'] for a, _ in pairs], 'g')}; at other Q dispatch leaves no import"),
        _claim("nobody charges and discharges at once", "", sum(row["both_hours"] for row in rows),
               all(row["both_hours"] == 0 for row in rows), "hours of prosumers, all days; q_st > 0 keeps them apart"),
    ]  # fmt: skip
    return save(out, "dispatch-cost", figure, rows), claims


# --- The network ------------------------------------------------------------------------------------------------------


def _state(scenario: Scenario, found: Equilibrium) -> rules.NetworkState:
    return rules.state_of(scenario, rules.net_demand(found.schedules))


def room_left(scenario: Scenario, share: float) -> Scenario:
    """Line limits that leave prosumers a share of the room above the peaks of the passive loads."""
    passive = rules.passive_state(scenario).apparent.max(axis=0)
    return scenario.replace(line_limit=np.maximum(passive + share * (scenario.line_limit - passive), 1e-3))


class Limited(NamedTuple):
    """A day under line limits, solved for the v-GNE and for the least total cost; None where infeasible."""

    share: float  # of the lines' room; infinite without limits
    scenario: Scenario
    nash: Equilibrium | None
    social: Equilibrium | None


def tightened(base: Scenario) -> list[Limited]:
    """Days without line limits, and with ever less room, down to within 1 % of the least that is feasible."""
    days = [_limited(np.inf, base.replace(line_limit=np.inf)), _limited(1.0, base)]
    low, high = 0.0, 1.0
    if days[-1].nash is None:
        return days
    while high - low > 0.01:
        share = 0.5 * (low + high)
        days.append(_limited(share, room_left(base, share)))
        low, high = (share, high) if days[-1].nash is None else (low, share)
    return sorted(days, key=lambda each: -each.share)


def _limited(share: float, scenario: Scenario) -> Limited:
    try:
        return Limited(share, scenario, variational_equilibrium(scenario), variational_equilibrium(scenario, "social"))
    except InfeasibleError:
        return Limited(share, scenario, None, None)


def _lines(study: Study, out: Path) -> Part:
    """Loading without (16a) and with limits as tight as can be; what tighter limits cost."""
    days = study.tightened()
    rows: Rows = []
    for each in days:
        row: dict[str, Any] = {"room": each.share, "feasible": each.nash is not None}
        if each.nash is not None and each.social is not None:
            loading = _state(each.scenario, each.nash).apparent / each.scenario.line_limit
            row |= {"cost": float(each.nash.cost.sum()), "least_cost": each.social.potential,
                    "lines_at_limit": int((loading.max(axis=0) > REACHED).sum())}  # fmt: skip
        rows.append(row)
    feasible = [each for each in days if each.nash is not None]
    tight, limits = feasible[-1], feasible[-1].scenario.line_limit
    without, within = (
        _state(each.scenario, each.nash).apparent.max(axis=0) / limits for each in (days[0], tight) if each.nash
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
        _claim("limits of lines are kept", "yes", f"{within.max():.6f}", within.max() <= 1.0 + 1e-6,
               f"highest loading with limits; {int((without > 1.0 + 1e-6).sum())} lines beyond them without"),
        _claim("tighter limits cost more", "yes", _text(least), rising and least[-1] > least[0] + 1e-6,
               f"least total cost with room {_text([each.share for each in feasible], '.3g')} on each line [€/day]"),
        _claim("some limits are infeasible", "yes", _text(none[:1], ".3g"), bool(none),
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


def _multipliers(study: Study, out: Path) -> Part:
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
    return [table], [_claim("multipliers satisfy the optimality conditions", "", f"{residual:.1e}", residual < 1e-6,
                            "largest relative residual of the Karush-Kuhn-Tucker conditions, both days")]  # fmt: skip


# --- The distributed algorithms ---------------------------------------------------------------------------------------


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
    sizes = _text([each.scenario.size for each in found["prosumers"]], "d")
    spread = [max(each) / min(each) for each in counts.values()]
    claims = [
        _claim("Algorithm 1 converges", "yes", _text([row["distance_kw"] for row in first], ".3f"),
               all(row["converged"] for row in first),
               f"largest distance of the hourly import to the exact one [kW], stopped at residuals of "
               f"{algorithm.TOLERANCE:g} kW and cents/kWh"),
        _claim("iterations hardly depend on N", "about 1000 at 40 to 80", _text(counts["prosumers"], "d"),
               spread[0] < 1.5,
               f"at N = {sizes}; the paper's rule stops at changes, not at a residual"),
        _claim("iterations hardly depend on connectivity", "about 1000", _text(counts["density"], "d"), spread[1] < 1.5,
               f"at density {_text(algorithm.DENSITIES)}"),
        _claim("a day is solved in time [s]", "under 23 min", _text(times, ".1f"), max(times) < 23 * 60,
               "all players one after another on this machine, in the order of the table"),
        _claim("ADMM on the same problem", "asked for in the review", _text([row["iterations"] for row in second], "d"),
               all(row["converged"] for row in second),
               "iterations in the same order; it needs the game's potential, which Algorithm 1 does not; "
               f"{runs['ADMM'].seconds:.1f} s against {runs['Algorithm 1'].seconds:.1f} s at N = {study.prosumers}"),
    ]  # fmt: skip
    return [*paths, *traces], claims


PARTS: dict[str, Callable[[Study, Path], Part]] = {
    "Trading benefit": _benefit,
    "Who loses by trading": _losing,
    "Operator": _operator,
    "Trade against its prices": _tariffs,
    "Prices over the day": _prices,
    "Shadow price alone": _shadow,
    "Storage and peaks": _storage,
    "Cost of dispatch": _dispatch,
    "Line limits": _lines,
    "Multipliers": _multipliers,
    "Algorithms": _algorithms,
}
