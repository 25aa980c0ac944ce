"""Who gains from trading on the feeder, and what its prices do."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np

from p2penv.grid import load_scenario, rules
from p2penv.grid.equilibrium import Kind, bill, variational_equilibrium
from training.figures import legend, panels, save
from training.grid_study import (
    BLUE,
    DARK,
    GREY,
    OTHER_PROFILES,
    RED,
    Changes,
    Floats,
    Part,
    Rows,
    Study,
    claim,
    count_losers,
    flows,
    state_of,
    text,
)

TARIFFS = (0.01, 0.03, 0.05, 0.07, 0.09, 0.11)  # c^ta [€/kWh]
CONTRACTS = (0.0, 0.04, 0.08, 0.12, 0.16, 0.2)  # c^tr [€/kWh]


def benefit(study: Study, out: Path) -> Part:
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
    means, least, losers = (text([measure(values) for values in saved.values()], form)
                            for measure, form in ((np.mean, ".2f"), (np.min, ".2f"), (count_losers, "d")))  # fmt: skip
    names = "; ".join(saved)
    shadow = [values for name, values in saved.items() if name.startswith("shadow")]
    contract = [values for name, values in saved.items() if name.startswith("contract")]
    claims = [
        claim("trading saves on average [€/day]", 129.6, means, all(values.mean() > 0.0 for values in saved.values()),
               f"in order: {names}; {OTHER_PROFILES}"),
        claim("nobody loses at contract prices: least saving [€/day]", 0.16, least,
               all(count_losers(values) == 0 for values in contract),
               f"in order: {names}; who dispatches at a rising marginal cost is paid c^tr alone"),
        claim("who loses at contract prices", 0, losers, all(count_losers(values) == 0 for values in contract),
               f"number of prosumers, in order: {names}"),
        claim("nobody loses at shadow prices", "", losers, all(count_losers(values) == 0 for values in shadow),
               "trades are worth their price to both sides; what they do to the grid's price comes on top"),
    ]  # fmt: skip
    return save(out, "trading-benefit", figure, rows), claims


def operator(study: Study, out: Path) -> Part:
    """What the operator takes in and what its network carries, by equilibrium."""
    scenario = study.scenario()
    kinds: tuple[Kind, ...] = ("no_trade", "nash", "wardrop", "social")
    rows: Rows = []
    for kind in kinds:
        found = study.solve(kind)
        own, state = rules.bill(scenario.params, found.schedules), state_of(scenario, found)
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
        claim("trading benefits the operator", "yes", text([nash["tariff_income"], nash["peak_loading"]]),
               nash["tariff_income"] > 0.0 and nash["peak_import_kw"] <= alone["peak_import_kw"],
               f"tariffs [€/day] and highest loading; without trade no tariffs and {alone['peak_loading']:.2f}"),
        claim("passive consumers pay less", "", text([alone["passive_bills"], nash["passive_bills"]]),
               nash["passive_bills"] <= alone["passive_bills"], "bills without and with trade [€/day]"),
        claim("price of anarchy", "", f"{ratio:.4f}", ratio >= 1.0 - 1e-9,
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


def losing(study: Study, out: Path) -> Part:
    """Least saving at shadow prices in many communities of 12: who buys when storage does may lose."""
    rows: Rows = []
    for name, options in COMMUNITIES.items():
        for seed in range(study.seed, study.seed + SEEDS):
            scenario = load_scenario("ieee37", prosumers=12, seed=seed, **options)
            alone, traded = variational_equilibrium(scenario, "no_trade"), variational_equilibrium(scenario)
            saved = bill(scenario, alone) - bill(scenario, traded)
            part = saved / np.maximum(np.abs(alone.cost), 1e-9)
            rows.append({"community": name, "seed": seed, "losers": count_losers(saved),
                         "least_saved": float(saved.min()), "least_part": float(part.min()),
                         "saved": float(saved.sum())})  # fmt: skip
    figure, axes = panels("Who loses by trading at shadow prices", "community, by its least saving",
                          "least saving [% of the cost alone]")  # fmt: skip
    claims: Rows = []
    for name, colour in zip(COMMUNITIES, (BLUE, RED, DARK), strict=True):
        mine = [row for row in rows if row["community"] == name]
        losing, least = sum(row["losers"] for row in mine), min(row["least_part"] for row in mine)
        axes.plot(sorted(100.0 * row["least_part"] for row in mine), color=colour, lw=1.5, label=name)
        claims.append(
            claim(f"12 {name}: nobody loses at shadow prices", "", losing, losing == 0,
                   f"of {12 * len(mine)} in {len(mine)} communities; least saving {least:.2%} of the cost alone; "
                   "who buys when storage does, for others, pays more to the grid")
        )  # fmt: skip
    axes.axhline(0.0, color=GREY, lw=0.8)
    legend(axes)
    return save(out, "trading-losers", figure, rows), claims


# --- Tariffs and prices -----------------------------------------------------------------------------------------------


def tariffs(study: Study, out: Path) -> Part:
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
                    "losers": count_losers(saved),
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
        claim("trade falls as c^ta rises from 0.01 to 0.11 [kWh]", "21,048 to 14,191", text(traded, ".0f"),
               all(more >= less - 1e-3 for more, less in pairwise(traded)),
               f"at c^ta = {text(TARIFFS)}; {OTHER_PROFILES}"),
        claim("trade against c^tr [kWh]", "", text(flat, ".0f"), spread < 1e-3,
               "flat: what one of a pair pays the other gets, so a common c^tr cancels in the potential and "
               f"only moves the multiplier; at c^tr = {text(CONTRACTS)} it decides who gains "
               f"({text([row['losers'] for row in by['c^tr']], 'd')} of {base.size} lose)"),
    ]  # fmt: skip
    return save(out, "trade-against-prices", figure, rows), claims


def prices(study: Study, out: Path) -> Part:
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
        claim("trades cost less than the grid", "", text(below), min(below) == 1.0,
               "share of hours, with and without storage; c^tr and shadow price together, the tariff apart"),
        claim("storage flattens the price of the grid", "", text(list(spread.values()), ".4f"),
               spread["with storage"] <= spread["without storage"] + 1e-9,
               "highest less lowest price with and without storage [€/kWh]"),
    ]  # fmt: skip
    return save(out, "prices", figure, rows), claims


def shadow(study: Study, out: Path) -> Part:
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
        claim("with c^tr = 0 the shadow price is the price of trades", "yes", f"{gap:.1e}", gap < 1e-3,
               "largest difference between c^tr + multiplier with and without c^tr [€/kWh]"),
        claim("bills at shadow prices do not depend on c^tr", "", f"{bills:.1e}", bills < 1e-2,
               "largest difference of a prosumer's bill [€/day]"),
    ]  # fmt: skip
    return save(out, "shadow-price", figure, rows), claims


# --- Storage and dispatch ---------------------------------------------------------------------------------------------
