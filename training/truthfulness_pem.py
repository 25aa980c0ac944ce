"""Is truth optimal in the private energy market? Worked deviations, and exact regret on a scenario.

Source: Xie et al. (PEM), Theorem 2, claims incentive compatibility: nobody gains by an untrue report. Each deviation
below gains by the paper's own rules, and beside it stands what the best report gains and what none exceeds, for that
rule, the exact price, and the exact price with delivery bound to what was reported.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray
from rich import box
from rich.console import Console
from rich.table import Table

from p2penv.core import validation
from p2penv.pem import PEM, settlement
from p2penv.pem.equilibrium import FIELDS, best_misreport, regret
from p2penv.pem.misreport import Field
from p2penv.pem.rules import Prices
from p2penv.pem.settlement import Homes, Pricing, Reports, Response
from training.evaluate import HELD_OUT

Floats = NDArray[np.float64]

PRICINGS: tuple[Pricing, ...] = get_args(Pricing)
# What Theorem 2 says any misreport gains.
CLAIM = 0.0
# Of the paper's section VII [cents/kWh].
PRICES = Prices(*map(np.array, (80.0, 90.0, 110.0, 120.0)))
# Homes and windows if not told otherwise; the logarithm of the largest multiple that is reported.
HOMES, WINDOWS, CAP = 20, 20, 3.0
# Best gains are certified to this in worked deviations, on a scenario, and for fields together [cents/h].
WORKED_TOLERANCE, TOLERANCE, JOINT_TOLERANCE = 1e-3, 1e-2, 0.3
# Marks bounds of searches that ended short of their tolerance.
LOOSE = "*"
# S of sellers in the worked deviations [kW].
CAPACITY = 5.0


class Deviation(NamedTuple):
    """One home's misreport in one window, the others truthful."""

    name: str
    homes: Homes
    agent: int
    scales: Mapping[Field, float]  # what it reports, as multiples of the truth
    response: Response = "best"
    cap: float = float(np.log(100.0))  # of the logarithm of such multiples, for the best one
    pricings: tuple[Pricing, ...] = PRICINGS
    slow: bool = False  # whether the search over all its fields takes long


@dataclass(frozen=True)
class Gain:
    """What a deviation gains, as a share of what the home is paid or pays at the truth."""

    case: str
    pricing: Pricing
    response: Response
    price: float
    """at the truth [cents/kWh]"""
    price_told: float
    """at the deviation [cents/kWh]"""
    gain: float
    best: float | None
    """of the best report in the range; None if not searched for"""
    bound: float | None
    """no report in the range gains more; None if not searched for"""
    certified: bool | None
    """whether the search reached its tolerance; None if not searched for"""

    def row(self) -> dict[str, Any]:
        """Plain data."""
        return {**self.__dict__, "claim": CLAIM}


@dataclass(frozen=True)
class Regret:
    """Regret in C windows of a scenario under P rules, everybody truthful; money in cents/h."""

    agents: list[str]
    pricings: tuple[Pricing, ...]
    windows: NDArray[np.int64]
    """(C,) windows of the scenario"""
    role: Floats
    """(C, n) 1 sells, −1 buys, 0 stays off the market"""
    payment: Floats
    """(P, C, n) at the truth, negative where a home earns"""
    gain: Floats
    """(P, C, n) of the best misreport"""
    bound: Floats
    """(P, C, n) no misreport gains more"""
    certified: NDArray[np.bool_]
    """(P, C, n) whether all searches reached their tolerance"""

    @property
    def interval(self) -> Floats:
        """(P, n) half width of the 95 % interval of the mean regret over windows; 0 with one window."""
        count = len(self.windows)
        if count < 2:
            return np.zeros(self.gain[:, 0].shape)
        return np.asarray(1.96 * self.gain.std(axis=1, ddof=1) / np.sqrt(count))

    def share(self, values: Floats, role: float) -> Floats:
        """Sum ``(P,)`` of ``values (P, C, n)`` over homes in a role, as a share of what they are paid or pay; or 0."""
        ours = self.role == role
        turnover = np.abs(np.where(ours, self.payment, 0.0)).sum(axis=(1, 2))
        total = np.where(ours, values, 0.0).sum(axis=(1, 2))
        return np.divide(total, turnover, out=np.zeros_like(total), where=turnover > 0.0)

    def rows(self) -> list[dict[str, Any]]:
        """One row an agent, averages over the windows."""
        found = []
        for n, agent in enumerate(self.agents):
            row: dict[str, Any] = {"agent": agent, "sells": float((self.role[:, n] > 0.0).mean())}
            for p, pricing in enumerate(self.pricings):
                row |= {
                    f"regret_{pricing}": float(self.gain[p, :, n].mean()),
                    f"interval_95_{pricing}": float(self.interval[p, n]),
                    f"certificate_{pricing}": float(self.bound[p, :, n].mean()),
                }
            found.append(row)
        return found

    def totals(self) -> list[dict[str, Any]]:
        """One row a rule: what sellers and buyers gain of what they are paid or pay, and the most anybody gains."""
        shares = {
            f"{who}_{name}": self.share(values, role)
            for who, role in (("sellers", 1.0), ("buyers", -1.0))
            for name, values in (("gain", self.gain), ("certificate", self.bound))
        }
        return [
            {"pricing": pricing, "claim": CLAIM}
            | {name: float(values[p]) for name, values in shares.items()}
            | {"most": float(self.gain[p].max()), "most_certificate": float(self.bound[p].max())}
            | {"short_of_tolerance": int((~self.certified[p]).sum())}
            for p, pricing in enumerate(self.pricings)
        ]

    def summary(self) -> dict[str, Any]:
        """Numbers as plain data."""
        return {"windows": self.windows.tolist(), "rules": self.totals(), "agents": self.rows()}


def identical(sellers: int, buyers: int, ratio: float, supply: float, demand: float) -> Homes:
    """A window of equal sellers, S = 5 kW and k = ratio·S, that may sell all but 1 kW of it, then of equal buyers.

    Args:
        sellers: how many.
        buyers: how many.
        ratio: k/S, the price at which a seller starts to sell [cents/kWh].
        supply: nominal, of each seller [kW].
        demand: of each buyer [kW].
    """
    return Homes(
        np.repeat([ratio * CAPACITY, 100.0], [sellers, buyers]),
        np.repeat([CAPACITY, 2.0], [sellers, buyers]),
        np.repeat([CAPACITY - 1.0, 0.0], [sellers, buyers]),
        np.repeat([supply, -demand], [sellers, buyers]),
    )


def deviations() -> list[Deviation]:
    """The worked deviations; each is of one home among identical ones.

    In all but one the price by (13) is inside its range, √(ps·k/S) = 100.4 at k = 84 S. The first two use it, the third
    the shares of Section III-D, the next two the jump of the price to p_l where supply covers demand (Section III-C);
    those two hold loads, so that all that moves is the case. The last two say the supply that is true at the price, but
    with a curve so steep that the price rises: what is left to gain where delivery is bound.
    """
    price = float(np.sqrt(PRICES.retail * 84.0))
    supply = CAPACITY - 84.0 * CAPACITY / price
    # Who buys does not matter to sellers, only how much in all.
    short, at_low = (identical(100, 1, ratio, 1.0, 2000.0) for ratio in (84.0, 60.0))
    filled = identical(100, 100, 84.0, 1.0, supply / 0.3)
    just_short, just_covered = identical(10, 10, 84.0, 0.99, 1.0), identical(10, 10, 84.0, 1.0, 1.0)
    # A gap of .1 kW between supply and demand; a hair more, so that rounding does not decide the case.
    gap = 0.1 * (1.0 + 1e-9)
    held = (CAPACITY - gap) / CAPACITY
    bound: tuple[Pricing, ...] = ("exact_bound",)
    return [
        Deviation("seller reports 20 k, k = 84 S", short, 0, {"preference": 20.0}),
        Deviation("seller reports 100 k, k = 60 S", at_low, 0, {"preference": 100.0}),
        Deviation("buyer reports demand/.3, fill .3", filled, 150, {"demand": 1.0 / 0.3}),
        Deviation(
            "pivotal buyer reports .1 kW less, fill .99, loads held", just_short, 15, {"demand": 1.0 - gap},
            "agent", 1.0,
        ),
        Deviation(
            "pivotal seller holds .1 kW back, loads held", just_covered, 0, {"preference": held, "capacity": held},
            "agent", 1.0,
        ),
        Deviation(
            "seller reports 25.5 k, 21.14 S, k = 84 S", short, 0, {"preference": 25.5, "capacity": 21.14},
            pricings=bound, slow=True,
        ),
        Deviation(
            "seller reports 61 k, 40.64 S, k = 60 S", at_low, 0, {"preference": 61.0, "capacity": 40.64},
            pricings=bound, slow=True,
        ),
    ]  # fmt: skip


def gains(deviation: Deviation, *, search: bool = True) -> list[Gain]:
    """What a deviation gains under each of its rules, and what the best report of the same fields does.

    Args:
        deviation: home, report and window.
        search: whether to look for the best report, too.
    """
    _, homes, agent, scales, response, cap, *_ = deviation
    truth, fields = settlement.truthful(homes), tuple(scales)
    told = Reports(*(each * _one_hot(agent, each.size, scales.get(f, 1.0)) for f, each in _items(truth)))
    tolerance = WORKED_TOLERANCE if len(fields) == 1 else JOINT_TOLERANCE
    found = []
    for pricing in deviation.pricings:
        before, after = (settlement.price(homes, each, PRICES, pricing) for each in (truth, told))
        turnover = abs(float(_payment(homes, truth, PRICES, pricing, response)[agent]))
        gain = regret(homes, agent, told, PRICES, pricing, response)
        best, bound, certified = None, None, None
        if search:
            most = best_misreport(homes, agent, truth, PRICES, fields, pricing, response, cap, tolerance)
            # The search may stop short of the deviation itself, by its tolerance.
            best, bound, certified = max(most.gain, gain) / turnover, most.bound / turnover, most.certified
        found.append(
            Gain(
                deviation.name,
                pricing,
                response,
                float(before.price),
                float(after.price),
                gain / turnover,
                best,
                bound,
                certified,
            )
        )
    return found


def worked(*, joint: bool = False, report: Callable[[str], None] = lambda part: None) -> list[Gain]:
    """All worked deviations.

    Args:
        joint: also certify those over two fields that take long.
        report: called with the name of each before it is made.
    """
    found = []
    for deviation in deviations():
        report(deviation.name)
        found += gains(deviation, search=joint or not deviation.slow)
    return found


def audit(
    env: PEM,
    windows: int | None = None,
    seed: int = 0,
    *,
    pricings: Sequence[Pricing] = PRICINGS,
    joint: bool = False,
    report: Callable[[str], None] = lambda part: None,
) -> Regret:
    """Exact regret of every home in sampled windows, everybody truthful, batteries at rest, base loads reported.

    A home misreports one of its fields at a time, within the environment's caps; what has no cap is not misreported.

    Args:
        env: scenario, response and caps are its own.
        windows: how many to sample; 20, or all if there are fewer, if not given.
        seed: of the sample.
        pricings: rules to compare.
        joint: sellers misreport their fields together, to a coarser tolerance; takes long.
        report: called with the name of each part before it is made.

    Raises:
        ValueError: more windows than the scenario has, seed out of range, or an agent sets the price.
    """
    if env.led:
        raise ValueError("leader must be 'rule' to measure misreports to it, got 'agent'")
    count = min(WINDOWS, env.horizon) if windows is None else validation.count("windows", windows)
    if count > env.horizon:
        raise ValueError(f"windows must be at most the {env.horizon} of scenario {env.scenario.name!r}, got {count}")
    validation.number("seed", seed, 0, 2**31 - 1)
    rng = np.random.default_rng(HELD_OUT + seed)
    chosen = np.sort(rng.choice(env.horizon, count, replace=False))
    state = env.initial(env.params, {name: np.zeros((count, *draw.shape)) for name, draw in env.noise.items()}, count)
    idle = np.zeros((count, env.scenario.size, len(env.action_names)))
    homes, truth, _ = env.decode(env.params, state._replace(time=chosen.astype(np.int32)), idle)
    cap = dict(zip(Reports._fields, env.caps, strict=True))
    shape = (len(pricings), *homes.nominal.shape)
    payment, gain, bound, certified = np.zeros(shape), np.zeros(shape), np.zeros(shape), np.ones(shape, bool)
    for p, pricing in enumerate(pricings):
        payment[p] = _payment(homes, truth, env.params.prices, pricing, env.response)
        for c, window in enumerate(chosen):
            report(f"best misreports, {pricing}, window {window}")
            row, told = Homes(*(each[c] for each in homes)), Reports(*(each[c] for each in truth))
            for agent in np.flatnonzero(row.nominal):
                free = tuple(field for field in FIELDS[bool(row.nominal[agent] > 0.0)] if cap[field] > 0.0)
                for fields in [free] if joint and free else [(field,) for field in free]:
                    best = best_misreport(
                        row, int(agent), told, env.scenario, fields, pricing, env.response,
                        tuple(cap[field] for field in fields), TOLERANCE if len(fields) == 1 else JOINT_TOLERANCE,
                    )  # fmt: skip
                    gain[p, c, agent] = max(gain[p, c, agent], best.gain)
                    bound[p, c, agent] = max(bound[p, c, agent], best.bound)
                    certified[p, c, agent] &= best.certified
    agents = env.scenario.agents
    return Regret(agents, tuple(pricings), chosen, np.sign(homes.nominal), payment, gain, bound, certified)


def _payment(homes: Homes, reports: Reports, prices: Prices, pricing: Pricing, response: Response) -> Floats:
    """Payments ``(..., n)`` [cents/h]."""
    terms = settlement.price(homes, reports, prices, pricing)
    best = response == "best"
    net = settlement.best_net(homes, reports, terms, prices, pricing) if best else homes.nominal
    return np.asarray(settlement.settle(homes, reports, terms, net, prices, pricing).payment)


def _items(reports: Reports) -> list[tuple[Field, Floats]]:
    return list(zip(get_args(Field), reports, strict=True))


def _one_hot(agent: int, size: int, scale: float) -> Floats:
    """Ones, but ``scale`` for one agent."""
    return np.where(np.arange(size) == agent, scale, 1.0)


def print_worked(found: Sequence[Gain], console: Console) -> None:
    """The worked deviations, a row each with a line for every rule."""
    title = f"gain of one home's misreport, % of its sales or bill; the paper claims {CLAIM:g}"
    caption = f"{LOOSE} the search ended short of its tolerance" if any(x.certified is False for x in found) else None
    table = Table(title=title, caption=caption, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_lines=True)
    table.add_column("deviation", width=20)
    table.add_column("pricing", no_wrap=True)
    for column in ("price", "with it", "gains", "best\ngains", "at\nmost"):
        table.add_column(column, justify="right", no_wrap=True)
    for name in dict.fromkeys(each.case for each in found):
        lines = []
        for each in found:
            if each.case == name:
                prices = (f"{price:.2f}" for price in (each.price, each.price_told))
                best, most = (
                    "--joint" if part is None else f"{_percent(part):.3f}" for part in (each.best, each.bound)
                )
                loose = LOOSE if each.certified is False else ""
                lines.append((each.pricing, *prices, f"{_percent(each.gain):+.2f}", best, f"{most}{loose}"))
        table.add_row(name, *("\n".join(column) for column in zip(*lines, strict=True)))
    console.print(table)


def _percent(share: float) -> float:
    """A share in %, rounded so that no −0 is printed."""
    return round(100.0 * share, 3) + 0.0


def print_regret(found: Regret, console: Console) -> None:
    """Regret of homes, and in all."""
    count = len(found.windows)
    table = Table(
        title=f"regret of misreporting, cents/h; windows: {count}; the paper claims {CLAIM:g}",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    table.add_column("agent")
    for column in ("sells", *(name for pricing in found.pricings for name in (pricing, "at\nmost"))):
        table.add_column(column, justify="right", no_wrap=True)
    for row in found.rows():
        cells = []
        for pricing in found.pricings:
            spread = f"±{row[f'interval_95_{pricing}']:.2f}" if count > 1 else ""
            cells += [f"{row[f'regret_{pricing}']:.2f}{spread}", f"{row[f'certificate_{pricing}']:.2f}"]
        table.add_row(row["agent"], f"{row['sells']:.0%}", *cells)
    console.print(table)
    short = int((~found.certified).sum())
    table = Table(
        title="best misreports of each home alone, added up",
        caption=f"{short} of {found.certified.size} searches ended short of their tolerance" if short else None,
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    table.add_column("pricing", no_wrap=True)
    for column in ("sellers,\n% of sales", "buyers,\n% of bill", "most,\ncents/h"):
        table.add_column(column, justify="right", no_wrap=True)
        table.add_column("at\nmost", justify="right", no_wrap=True)
    for row in found.totals():
        shares = ("sellers_gain", "sellers_certificate", "buyers_gain", "buyers_certificate")
        table.add_row(
            row["pricing"],
            *(f"{_percent(row[name]):.3f}" for name in shares),
            *(f"{row[name]:.3f}" for name in ("most", "most_certificate")),
        )
    console.print(table)
