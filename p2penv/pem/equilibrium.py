"""Leader's price, and what misreports gain in a window of the private energy market; exact or certified.

Source: Xie et al. (PEM), Section III; Theorem 2 claims incentive compatibility, which is false: a seller that
overstates its preference raises the price of (13) for everybody, a buyer that overstates its demand is served first,
and whoever is pivotal flips the case and with it the price.

What an agent cannot gain is shown by branch and bound over its report (:mod:`p2penv.pem.misreport`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from p2penv.core import validation
from p2penv.pem import rules
from p2penv.pem.misreport import ROUNDING, Case, Field, Floats, as_prices
from p2penv.pem.rules import Market, Offers, Prices
from p2penv.pem.settlement import CAP, Homes, Pricing, Reports, Response

if TYPE_CHECKING:
    from p2penv.core.arrays import Array

# Best gains are certified to this precision [cents/h], if MOST boxes are enough.
TOLERANCE = 1e-4
# Boxes the range of reports is cut into at first, by number of fields; halved at most in a round; and looked at in all.
START, ROUND, MOST = {1: 64, 2: 16}, 2**13, 2**16
# What homes report by role.
FIELDS: dict[bool, tuple[Field, ...]] = {True: ("preference", "capacity"), False: ("demand",)}


class Misreport(NamedTuple):
    """The best misreport of one home within a range."""

    scale: Floats  # (f,) reports as multiples of the truth, field by field
    gain: float  # over the report it was asked about, ≥ 0 [cents/h]
    bound: float  # no report in the range gains more [cents/h]
    certified: bool  # whether bound − gain is within the tolerance; False: the bound holds, but is looser


class _Boxes(NamedTuple):
    low: Floats  # (B, f) scales
    high: Floats
    bound: Floats  # (B,) on the payoff

    def take(self, index: NDArray[Any]) -> _Boxes:
        return _Boxes(*(each[index] for each in self))


def leader_price(preference: Array, supply_capacity: Array, max_supply: Array, demand: Array, scenario: Any) -> Market:
    """Exact price of the buyers' coalition when every seller answers it; see :func:`rules.exact_price`.

    Args:
        preference: ``(..., n)`` k > 0 of sellers [cents/h].
        supply_capacity: ``(..., n)`` S = g + 1 + eb − b ≥ 0 [kW].
        max_supply: ``(..., n)`` G ≥ 0; 0 for homes that do not sell [kW].
        demand: ``(...)`` E_b ≥ 0 [kW].
        scenario: a scenario or its prices.

    Returns:
        ``price (...)``, ``case (...)``: NO_MARKET, GENERAL or EXTREME, ``saving (...)`` against the grid [cents/h].

    Raises:
        ValueError: wrong shape, not finite, out of range.
    """
    offers, demand, prices = _checked(preference, supply_capacity, max_supply, demand, scenario)
    return rules.exact_price(offers, demand, prices)


def paper_price(
    preference: Array, supply_capacity: Array, max_supply: Array, nominal: Array, demand: Array, scenario: Any
) -> Market:
    """The paper's price (13), (14) over nominal sellers; see :func:`rules.paper_price`.

    ``nominal (..., n)`` is net power at the loads as they are [kW]; the rest as in :func:`leader_price`.
    """
    offers, demand, prices = _checked(preference, supply_capacity, max_supply, demand, scenario)
    (nominal,) = validation.per_agent(offers.preference.shape[-1], nominal=nominal)
    return rules.paper_price(offers, nominal, demand, prices)


def extreme_price(preference: Array, supply_capacity: Array, max_supply: Array, demand: Array, scenario: Any) -> Array:
    """Average price ``(...)`` that sellers answer in an extreme market, p_l where supply is short at p_l.

    See :func:`rules.extreme_price`; arguments and errors as in :func:`leader_price`.
    """
    offers, demand, prices = _checked(preference, supply_capacity, max_supply, demand, scenario)
    return rules.extreme_price(offers, demand, prices)


def regret(
    homes: Homes, agent: int, reports: Reports, scenario: Any, pricing: Pricing = "paper", response: Response = "best"
) -> float:
    """What a home gains by its report in ``reports`` over its truth, the others' reports fixed [cents/h].

    Arguments and errors as in :func:`best_misreport`.
    """
    case = Case.of(homes, agent, reports, scenario, pricing, response)
    honest = case._replace(fields=FIELDS[case.selling])
    return float(case.payoff(case.reports) - honest.payoffs(np.ones((1, len(honest.fields))))[0])


def best_misreport(
    homes: Homes,
    agent: int,
    reports: Reports,
    scenario: Any,
    fields: tuple[Field, ...] | None = None,
    pricing: Pricing = "paper",
    response: Response = "best",
    cap: float | tuple[float, ...] = 3.0,
    tolerance: float = TOLERANCE,
) -> Misreport:
    """Best report of one home against the reports of the others; certified.

    Args:
        homes: the truth about one window, ``(n,)``.
        agent: home.
        reports: of everybody, ``(n,)``.
        scenario: a scenario or its prices.
        fields: what it may misreport, of ``"preference"``, ``"capacity"`` (sellers) and ``"demand"`` (buyers); all that
            its role reports if not given. The rest stays as reported.
        pricing: the rule.
        response: ``"agent"``: loads stay as they are; ``"best"``: every seller's load is its best
            (:func:`settlement.best_net`).
        cap: reports are within e^±cap of the truth, in [0, 10]; one for all fields, or one for each.
        tolerance: bound − gain is at most this, or rounding if that is more, unless the search is cut short or the
            leader is indifferent between prices at a report; ``certified`` says so [cents/h].

    Returns:
        The report, its gain over the report in ``reports``, and what none in the range exceeds. Where a jump is open a
        gain is approached, not attained.

    Raises:
        ValueError: wrong shape, not finite, out of range, no such home, home off the market, field of the other role.
    """
    case = Case.of(homes, agent, reports, scenario, pricing, response)
    fields = FIELDS[case.selling] if fields is None else fields
    for field in fields:
        validation.choice("field", field, FIELDS[case.selling])
    if not fields or len(set(fields)) < len(fields):
        raise ValueError(f"fields must be different ones, at least one; got {fields!r}")
    caps = validation.vector("cap", cap, len(fields), 0.0, CAP)
    tolerance = validation.number("tolerance", tolerance, 0.0, open_low=True)
    case = case._replace(fields=tuple(fields))
    now, scale = float(case.payoff(case.reports)), case.scales
    ends = np.exp(caps[:, None] * np.linspace(-1.0, 1.0, START[len(fields)] + 1))
    low, high = _grid(ends[:, :-1]), _grid(ends[:, 1:])
    best, scale = _better(case, np.concatenate([np.ones((1, len(fields))), _grid(ends)]), now, scale)
    boxes, settled, seen = _Boxes(low, high, case.bounds(low, high)), -np.inf, len(low)
    while True:
        slack = max(tolerance, ROUNDING * (1.0 + abs(best) + case.turnover))
        # Neighbouring floats cannot be told apart.
        done = (boxes.bound <= best + slack) | (boxes.high <= boxes.low * (1.0 + 4e-16)).all(axis=1)
        settled = max(settled, boxes.bound[done].max(initial=-np.inf))
        boxes = boxes.take(~done)
        if not len(boxes.low) or seen >= MOST:
            break
        order = np.argsort(-boxes.bound)
        chosen, rest = boxes.take(order[:ROUND]), boxes.take(order[ROUND:])
        halves = _halves(chosen)
        best, scale = _better(case, 0.5 * (halves.low + halves.high), best, scale)
        best, scale = _better(case, halves.high, best, scale)
        bound = np.minimum(case.bounds(halves.low, halves.high), halves.bound)
        boxes = _Boxes(*map(np.concatenate, zip(halves._replace(bound=bound), rest, strict=True)))
        seen += len(bound)
    settled = max(settled, boxes.bound.max(initial=-np.inf))
    ceiling = float(max(best, settled))
    return Misreport(scale, best - now, ceiling - now, ceiling <= best + slack)


def exploitability_of(
    homes: Homes,
    reports: Reports,
    scenario: Any,
    pricing: Pricing = "paper",
    response: Response = "best",
    caps: tuple[float, ...] = (3.0, 3.0, 3.0),
    tolerance: float = 1e-2,
) -> Floats:
    """Gain ``(..., n)`` of each home's best unilateral misreport over its report, ≥ 0 [cents/h].

    One window after the other, home by home: for evaluation. ``caps`` of reported preference, capacity and demand, 0
    for what is not misreported; the rest as in :func:`best_misreport`.
    """
    shape = np.broadcast_shapes(*(np.shape(each) for each in (*homes, *reports)))
    flat = [np.broadcast_to(each, shape).reshape(-1, shape[-1]) for each in (*homes, *reports)]
    size = dict(zip(Reports._fields, caps, strict=True))
    found = np.zeros(flat[0].shape)
    for window, agent in np.ndindex(*found.shape):
        row = [each[window] for each in flat]
        truth, told = Homes(*row[: len(Homes._fields)]), Reports(*row[len(Homes._fields) :])
        fields = tuple(field for field in FIELDS[bool(truth.nominal[agent] > 0.0)] if size[field] > 0.0)
        if truth.nominal[agent] != 0.0 and fields:
            cap = tuple(size[field] for field in fields)
            best = best_misreport(truth, agent, told, scenario, fields, pricing, response, cap, tolerance)
            found[window, agent] = best.gain
    return found.reshape(shape)


def _grid(marks: Floats) -> Floats:
    """All combinations ``(B, f)`` of marks ``(f, m)``."""
    return np.stack(np.meshgrid(*marks, indexing="ij"), axis=-1).reshape(-1, len(marks))


def _better(case: Case, scales: Floats, best: float, scale: Floats) -> tuple[float, Floats]:
    values = case.payoffs(scales)
    top = int(values.argmax())
    return (float(values[top]), scales[top]) if values[top] > best else (best, scale)


def _halves(boxes: _Boxes) -> _Boxes:
    """Boxes ``(2B,)``, each halved along its relatively longest side."""
    side = np.argmax(boxes.high / boxes.low, axis=1)[:, None] == np.arange(boxes.low.shape[1])
    middle = 0.5 * (boxes.low + boxes.high)
    return _Boxes(
        np.concatenate([boxes.low, np.where(side, middle, boxes.low)]),
        np.concatenate([np.where(side, middle, boxes.high), boxes.high]),
        np.tile(boxes.bound, 2),
    )


def _checked(
    preference: Array, capacity: Array, most: Array, demand: Array, scenario: Any
) -> tuple[Offers, Array, Prices]:
    """Arguments as arrays, NumPy ones within their ranges."""
    size = np.shape(preference)[-1] if np.ndim(preference) else 0
    if not size:
        raise ValueError(f"preference must have shape (..., n) of n >= 1 homes, got {np.shape(preference)}")
    offers = Offers(*validation.per_agent(size, preference=preference, supply_capacity=capacity, max_supply=most))
    for name, array in (
        ("preference", offers.preference),
        ("supply_capacity", offers.capacity),
        ("max_supply", offers.most),
    ):
        if isinstance(array, np.ndarray):
            bad = (array <= 0.0) if name == "preference" else (array < 0.0)
            if bad.any():
                where = tuple(int(i) for i in np.argwhere(bad)[0])
                allowed = "> 0" if name == "preference" else ">= 0"
                raise ValueError(f"{name} of agent {where[-1]} must be {allowed}, got {float(array[where])!r}")
    demand = demand if hasattr(demand, "shape") else validation.floats("demand", demand)
    if isinstance(demand, np.ndarray | np.generic):
        values = np.atleast_1d(demand)
        if values.dtype.kind not in "fiub":
            raise TypeError(f"demand must hold numbers, got an array of {values.dtype}")
        wrong = ~((values >= 0.0) & (values < np.inf))
        if wrong.any():
            raise ValueError(f"demand must be finite and >= 0, got {float(values[wrong][0])!r}")
    return offers, demand, as_prices(scenario)
