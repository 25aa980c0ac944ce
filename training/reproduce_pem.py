"""Figures 4 and 6a to 6d of the private energy market's paper from the corrected model, and what becomes of its claims.

Source: Xie, Wang, Hong, Thai, "Privacy preserving distributed energy trading" (PEM), section VII. What the paper says
is text here; every number of ours is computed. Figure 5 and Table I measure the cryptographic protocols, not the
market, and are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from p2penv.pem import PEM, Scenario, load_scenario, rules, settlement
from p2penv.pem.rules import NO_MARKET
from p2penv.pem.settlement import Homes, Pricing, Reports, Terms
from training.figures import grid, legend, panels, save
from training.runs import write_csv

Floats = NDArray[np.float64]
Rows = list[dict[str, Any]]

PAPER, EXACT, ALONE, OTHER = "#d55e00", "#0072b2", "#22272e", "#aab3bd"
LINES: tuple[tuple[str, str, str, str], ...] = (
    ("without", "without the market", ALONE, ":"),
    ("paper", "paper's price", PAPER, "-"),
    ("exact", "exact price", EXACT, "--"),
)
RULES = ("paper", "exact")
PREFERENCES = (20.0, 40.0)  # k of Figure 6b
CUT = 0.253  # "25.3 % in the current setting on average"
MINUTES = 720  # from 07:00 to 19:00


class Day(NamedTuple):
    """Truthful homes through a day, batteries at rest; T windows, n homes."""

    hour: Floats  # (T,) of the day at which a window starts
    price: Floats  # (T,) [cents/kWh]
    case: Floats  # (T,)
    role: Floats  # (T, n) 1 sells, −1 buys, 0 stays off the market
    net: Floats  # (T, n) [kWh]
    traded: Floats  # (T, n) with other homes, bought or sold [kWh]
    payment: Floats  # (T, n) [cents]
    utility: Floats  # (T, n) k·log(1 + l) − payment [cents]

    @property
    def cost(self) -> Floats:
        """Γ ``(T,)``, what buyers pay [cents]; (7)."""
        return np.asarray(np.where(self.role < 0.0, self.payment, 0.0).sum(axis=1))

    @property
    def exchange(self) -> Floats:
        """Energy ``(T,)`` that homes take from the grid and feed into it [kWh]."""
        return np.asarray((np.abs(self.net) - self.traded).sum(axis=1))


class Days(NamedTuple):
    """The same day under both rules and without a market."""

    scenario: Scenario
    paper: Day
    exact: Day
    without: Day

    @property
    def markets(self) -> tuple[Day, Day]:
        """The day under both rules, in the order of ``RULES``."""
        return self.paper, self.exact


def pem(out: Path, report: Callable[[str], None] | None = None, *, homes: int = 300, minutes: int = 1) -> list[Path]:
    """Figures 4 and 6a to 6d on a day of homes made of measured profiles, and a table of the paper's claims.

    Everything goes through the environment, by the paper's rule and by the exact price; homes tell the truth, sellers'
    loads answer the price. Without the market sellers answer the grid's buyback price.

    Args:
        out: folder, made if missing; every file appears in one step.
        report: called with the name of each part before it is made.
        homes: of the community, ≥ 6; Figure 6c takes one and two thirds of them, the paper's 100 and 200 of 300.
        minutes: length of a window, a divisor of 720.

    Returns:
        The files written, a picture and a table for each figure, and the table of claims.

    Raises:
        ValueError: too few homes, or windows that do not fill the day.
    """
    if homes < 6:
        raise ValueError(f"homes must be at least 6, for thirds of them to be communities, got {homes!r}")
    days = play(community(homes, minutes))
    found: list[Path] = []
    claims: Rows = []
    for name, part in PARTS.items():
        if report is not None:
            report(name)
        paths, rows = part(days, out)
        found += paths
        claims += [{"figure": name, **row} for row in rows]
    left_out = "left out: of the protocols, not of the market; `reproduce pem-private` measures them"
    claims.append(
        {"figure": "Figure 5, Table I", **_claim("run time and traffic of the protocols", "", ("", ""), "", left_out)}
    )
    table = out / "claims.csv"
    write_csv(table, claims, list(claims[0]))
    return [*found, table]


def community(homes: int, minutes: int, pv: Literal["measured", "clear_sky"] = "measured") -> Scenario:
    """The first homes of the shipped day, from 07:00 to 19:00.

    Args:
        homes: how many.
        minutes: length of a window.
        pv: measured, about an hour ahead of the sun, or that of a clear sky.

    Raises:
        ImportError: ``pv`` needs an extra that is missing.
        ValueError: windows that do not fill the day.
    """
    if MINUTES % minutes:
        raise ValueError(f"minutes must divide {MINUTES}, got {minutes!r}")
    return load_scenario("day300", homes=homes, windows=MINUTES // minutes, minutes=float(minutes), pv=pv)


def play(scenario: Scenario) -> Days:
    """A day of truthful homes under both rules and without a market."""
    return Days(scenario, _market(scenario, "paper"), _market(scenario, "exact"), _without(scenario))


def _market(scenario: Scenario, pricing: Pricing) -> Day:
    """All windows at once: with batteries at rest none depends on another."""
    env = PEM(scenario, pricing=pricing, charge_value=0.0)
    count, params = env.horizon, env.params
    state = env.initial(params, {}, count)._replace(time=np.arange(count, dtype=np.int32))
    step = env.step(params, state, np.zeros((count, scenario.size, len(env.action_names))), {})
    info = step.info
    return Day(
        _hours(scenario),
        info["price"],
        info["case"],
        info["role"],
        scenario.hours * info["net"],
        info["bought"] + info["sold"],
        info["payment"],
        step.reward,
    )


def _truth(scenario: Scenario) -> tuple[PEM, Homes, Reports]:
    """Homes ``(T, n)`` and their true reports in all windows, batteries at rest."""
    env = PEM(scenario)
    count = env.horizon
    state = env.initial(env.params, {}, count)._replace(time=np.arange(count, dtype=np.int32))
    homes, truth, _ = env.decode(env.params, state, np.zeros((count, scenario.size, len(env.action_names))))
    return env, homes, truth


def _without(scenario: Scenario) -> Day:
    """The grid alone: it buys at pb, which sellers answer, and sells at ps."""
    env, homes, truth = _truth(scenario)
    one, prices = np.ones(env.horizon), env.params.prices
    terms = Terms(one * scenario.retail, one * NO_MARKET, 0.0 * one, one * scenario.buyback)
    net = settlement.best_net(homes, truth, terms, prices, "exact")
    settled = settlement.settle(homes, truth, terms, net, prices, "exact")
    return Day(
        _hours(scenario),
        terms.price,
        terms.case,
        np.sign(homes.nominal),
        scenario.hours * net,
        scenario.hours * (settled.bought + settled.sold),
        scenario.hours * settled.payment,
        scenario.hours * settlement.rewards(homes, net, settled.payment),
    )


def _hours(scenario: Scenario) -> Floats:
    return np.asarray(scenario.start + scenario.hours * np.arange(scenario.windows))


def _claim(claim: str, paper: Any, ours: Sequence[Any], holds: Any, note: str = "") -> dict[str, Any]:
    """A row of the table of claims; ours under the paper's rule and under the exact price."""
    rule, exact = ours
    row = {"claim": claim, "paper": paper, "ours_paper_rule": rule, "ours_exact_price": exact}
    return {**row, "holds": holds if holds == "" else bool(holds), "note": note}


def _text(values: Any, form: str = ".3f") -> list[str]:
    """Numbers, or rows of them, as text."""
    return [", ".join(f"{number:{form}}" for number in np.atleast_1d(value)) for value in values]


def _figure4(days: Days, out: Path) -> tuple[list[Path], Rows]:
    """Sizes of the coalitions; they follow from base loads, under any rule."""
    role, hour = days.paper.role, days.paper.hour
    counts = {name: (role == sign).sum(axis=1) for name, sign in (("sellers", 1), ("buyers", -1), ("off_market", 0))}
    figure, axes = panels(f"Figure 4: coalition sizes, {days.scenario.size} homes", "hour", "homes")
    for name, colour in (("buyers", PAPER), ("sellers", EXACT), ("off_market", OTHER)):
        axes.plot(hour, counts[name], color=colour, lw=1.4, label=name.replace("_", " the "))
    legend(axes)
    rows = [
        {"window": t, "hour": hour[t], **{name: int(count[t]) for name, count in counts.items()}}
        for t in range(hour.size)
    ]
    both = int(((role > 0).any(axis=0) & (role < 0).any(axis=0)).sum())
    note = "homes that both sell and buy in the course of the day"
    claims = [_claim("homes change their roles over the day", "yes", (both, both), both > 0, note)]
    return save(out, "figure4-coalitions", figure, rows), claims


def _figure6a(days: Days, out: Path) -> tuple[list[Path], Rows]:
    """Prices of all windows; the retail price where nobody sells."""
    scenario, hour = days.scenario, days.paper.hour
    figure, axes = panels("Figure 6a: prices", "hour", "price [cents/kWh]")
    for limit in (scenario.low, scenario.high):
        axes.axhline(limit, color=OTHER, lw=0.8)
    for key, text, colour, dash in LINES[1:]:
        price = getattr(days, key).price
        inside = float(((price > scenario.low) & (price < scenario.high)).mean())
        axes.plot(hour, price, dash, color=colour, lw=1.2, label=f"{text}: inside its range in {inside:.0%}")
    legend(axes, loc="upper center")
    rows = [
        {"window": t, "hour": hour[t]}
        | {f"{name}_{key}": float(getattr(getattr(days, key), name)[t])
           for key in RULES for name in ("price", "case")}
        for t in range(hour.size)
    ]  # fmt: skip
    retail, low = (
        [(played.price == value).mean() for played in days.markets] for value in (scenario.retail, scenario.low)
    )
    sellers = (days.paper.role > 0).sum(axis=1)
    ends = all((played.price[[0, -1]] == scenario.retail).all() for played in days.markets)
    claims = [
        _claim("price is ps in the first windows and at the end", "yes", _text(retail), ends,
               f"share of windows at ps, where nobody sells; {sellers[0]} homes sell in the first window, "
               f"{sellers[-1]} in the last; measured PV is about an hour ahead of the sun, {_by_the_sun(scenario)}"),
        _claim("price is p_l in many windows in the middle of the day", "yes", _text(low), min(low) > 0.0,
               "share of windows at p_l"),
    ]  # fmt: skip
    return save(out, "figure6a-price", figure, rows), claims


def _by_the_sun(scenario: Scenario) -> str:
    """Who sells in the first window where PV follows the sun: a clear sky instead of the measured profiles."""
    try:
        sunny = community(scenario.size, round(scenario.minutes), "clear_sky")
    except ImportError:
        return "which decides the first windows (the extra clearsky, not installed, has PV by the sun)"
    sellers = (sunny.generation > sunny.load)[:-1].sum(axis=1)
    hour, minute = divmod(round(60.0 * _hours(sunny)[np.argmax(sellers > 0)]), 60)
    return f"by the sun under a clear sky {sellers[0]} do, the first at {hour:02d}:{minute:02d}"


def unclipped_price(scenario: Scenario) -> Floats:
    """p̂ ``(T,)`` of (13) before (14) moves it into the range; 0 where nobody sells [cents/kWh]."""
    env, homes, truth = _truth(scenario)
    offers = settlement.offered(homes, truth, "paper")
    # Demand beyond supply, and a range that leaves nothing out.
    demand = np.maximum(homes.nominal, 0.0).sum(axis=1) + 1.0
    wide = env.params.prices._replace(buyback=0.0, low=1e-3 * scenario.low, high=1e3 * scenario.retail)
    market = rules.paper_price(offers, homes.nominal, demand, wide)
    return np.asarray(np.where(market.case == NO_MARKET, 0.0, market.price))


def _figure6b(days: Days, out: Path) -> tuple[list[Path], Rows]:
    """Utility of the two homes that sell longest, at the paper's preferences and at the scenario's own."""
    scenario = days.scenario
    sells = (days.paper.role > 0).sum(axis=0)
    homes = np.argsort(-sells, kind="stable")[:2]
    cases = {f"k = {k:g}": play(scenario.replace(preference=k)) for k in PREFERENCES} | {"own k": days}
    names = [f"home {home}, {case}" for home in homes for case in cases]
    title = "Figure 6b: utility of the two homes that sell longest, while they sell"
    figure, axes = grid(title, "hour", "utility [cents/h]", names, len(cases))
    rows: Rows = []
    for panel, (home, case) in zip(axes.flat, ((home, case) for home in homes for case in cases), strict=True):
        played = cases[case]
        active = played.paper.role[:, home] > 0
        utility = {key: getattr(played, key).utility[:, home] / scenario.hours for key, *_ in LINES}
        for key, text, colour, dash in LINES:
            panel.plot(days.paper.hour, np.where(active, utility[key], np.nan), dash, color=colour, lw=1.0, label=text)
        rows += [
            {"home": int(home), "case": case, "window": int(t), "hour": days.paper.hour[t]}
            | {key: float(values[t]) for key, values in utility.items()}
            for t in np.flatnonzero(active)
        ]
    # What the market adds while they sell (windows × homes), by case and rule [cents/h].
    gained = {
        case: [
            (market.utility - played.without.utility)[:, homes][played.paper.role[:, homes] > 0] / scenario.hours
            for market in played.markets
        ]
        for case, played in cases.items()
    }
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=8.5)
    return save(out, "figure6b-utility", figure, rows), _claims6b(scenario, np.sort(sells)[:-3:-1], gained)


def _claims6b(scenario: Scenario, sells: NDArray[np.int64], gained: dict[str, list[Floats]]) -> Rows:
    """Of the windows ``(2,)`` that the longest sellers sell in, and what the market adds to their utility."""
    highest = [float(unclipped_price(scenario.replace(preference=k)).max()) for k in PREFERENCES]
    limit, load = np.sqrt(scenario.retail * max(PREFERENCES)), max(PREFERENCES) / scenario.low - 1.0
    least = [min(float(added[rule].min()) for added in gained.values()) for rule in range(2)]
    means = [[float(gained[f"k = {k:g}"][rule].mean()) for k in PREFERENCES] for rule in range(2)]
    longest = _text([sells], "d")[0]
    return [
        _claim("two homes sell in all windows", scenario.windows, (longest, longest), sells.min() == scenario.windows,
               "windows that the two longest sellers sell in; where anybody sells the price is not ps, so the claim "
               "and Figure 6a, with ps in the first and last windows, exclude each other"),
        _claim("k = 20, 40 have a price of their own", "", (_text([highest], ".2f")[0], ""),
               max(highest) >= scenario.low,
               f"highest p-hat of (13) at k = 20, 40; S >= 1 keeps it at or below sqrt(ps k) <= {limit:.1f}, so the "
               f"price is p_l = {scenario.low:g} in every window in which somebody sells"),
        _claim("loads of (15) at k = 20, 40", "", (f"{load:.3f}", ""), load >= 0.0,
               "k/p_l - 1 [kW] at k = 40 without battery, the most (15) gives at any price in range, is negative; "
               "here loads stay at or above their least"),
        _claim("sellers' utility is higher with the market", "yes", _text(least), min(least) >= -1e-9,
               "least difference in a window they sell in, at any k [cents/h]"),
        _claim("the improvement is higher at k = 40 than at k = 20", "yes", _text(means, ".4f"),
               all(more > less + 1e-9 for less, more in means),
               "mean improvement at k = 20, 40 [cents/h]; equal, as loads are at their least at both and sales so the "
               "same; with loads by (15), free to be negative, it falls in k by log(p/pb)"),
    ]  # fmt: skip


def _figure6c(days: Days, out: Path) -> tuple[list[Path], Rows]:
    """Cost of the buyers' coalition with and without the market, in two sizes of the community."""
    scenario = days.scenario
    sizes = (scenario.size // 3, 2 * scenario.size // 3)
    minutes = round(scenario.minutes)
    cases = {size: play(community(size, minutes)) for size in sizes}
    names = [f"{size} homes" for size in sizes]
    figure, axes = grid("Figure 6c: cost of the buyers' coalition", "hour", "cents/h", names, 2)
    rows: Rows = []
    for panel, (size, played) in zip(axes.flat, cases.items(), strict=True):
        costs = {key: getattr(played, key).cost for key, *_ in LINES}
        for key, text, colour, dash in LINES:
            panel.plot(played.paper.hour, costs[key] / scenario.hours, dash, color=colour, lw=1.0, label=text)
        rows += [
            {"homes": size, "window": t, "hour": played.paper.hour[t]}
            | {f"cost_{key}": float(values[t]) for key, values in costs.items()}
            | {f"cut_{key}": float(saved_share(costs[key][t], costs["without"][t])) for key in RULES}
            for t in range(scenario.windows)
        ]
    legend(axes[0, 0])
    # (rules, sizes, T)
    cuts = np.array([[[row[f"cut_{key}"] for row in rows if row["homes"] == size] for size in sizes] for key in RULES])
    most, means, reached = (scenario.retail - scenario.low) / scenario.retail, cuts.mean(axis=2), cuts > 1e-12
    claims = [
        _claim(f"cost is {CUT:.1%} lower on average", CUT, _text(means, ".4f"), (means >= CUT).all(),
               f"mean over windows at {sizes[0]} and {sizes[1]} homes; no more than (ps - p_l)/ps = {most:.0%} is "
               f"possible in any window, at any supply; the most found is {cuts.max():.4f}"),
        _claim("cost is lower in all windows", 1.0, _text(reached.mean(axis=2)), reached.all(),
               "share of windows with lower cost; where nobody sells, all is from the grid"),
    ]  # fmt: skip
    return save(out, "figure6c-buyer-cost", figure, rows), claims


def saved_share(cost: float, without: float) -> float:
    """Share by which a cost is below the one without a market; 0 where there is none to save."""
    return (without - cost) / without if without > 0.0 else 0.0


def _figure6d(days: Days, out: Path) -> tuple[list[Path], Rows]:
    """Energy that homes exchange with the grid, either way."""
    hour, scenario = days.paper.hour, days.scenario
    exchange = {key: getattr(days, key).exchange for key, *_ in LINES}
    title = f"Figure 6d: exchange with the grid, {scenario.size} homes"
    figure, axes = panels(title, "hour", "taken and fed in [kW]")
    for key, text, colour, dash in LINES:
        total = float(exchange[key].sum())
        axes.plot(hour, exchange[key] / scenario.hours, dash, color=colour, lw=1.2, label=f"{text}: {total:.0f} kWh")
    legend(axes)
    axes.set_ylim(bottom=0.0)
    rows = [
        {"window": t, "hour": hour[t], **{f"exchange_{key}": float(values[t]) for key, values in exchange.items()}}
        for t in range(hour.size)
    ]
    less = [1.0 - exchange[key].sum() / exchange["without"].sum() for key in RULES]
    note = "share by which the day's is lower [of kWh]"
    claims = [_claim("exchange with the grid is much lower", "yes", _text(less), min(less) > 0.0, note)]
    return save(out, "figure6d-grid-exchange", figure, rows), claims


PARTS: dict[str, Callable[[Days, Path], tuple[list[Path], Rows]]] = {
    "Figure 4": _figure4,
    "Figure 6a": _figure6a,
    "Figure 6b": _figure6b,
    "Figure 6c": _figure6c,
    "Figure 6d": _figure6d,
}
