"""What a home's report is worth to it in a window, and what no report in a range is worth more than.

The payoff of a home in its own report is piecewise smooth with jumps: where the case flips, where the leader prefers
another piece of the supply curve, where a seller drops out. A box of reports meets few branches (a case and, with the
exact price, a piece of the others' supply curve and whether the home is idle, active or saturated there). On each the
price is monotone in the report, so two corners of the box bound it, and the settlement is bounded from the ends of what
goes into it. The leader's best saving is monotone, too: branches that cannot reach it fall away.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from p2penv.core import validation
from p2penv.core.arrays import namespace, safe_divide
from p2penv.pem import rules, settlement
from p2penv.pem.rules import EXTREME, GENERAL, NO_MARKET, Offers, Prices
from p2penv.pem.settlement import Homes, Pricing, Reports, Response

Floats = NDArray[np.float64]
Field = Literal["preference", "capacity", "demand"]
# Whether more of it raises the price (and lowers supply).
RAISES = {"preference": True, "capacity": False, "demand": True}
# Rounding allowance, relative.
ROUNDING = 1e-12


class _Branches(NamedTuple):
    """Outcomes that boxes of reports may have, ``(R,)``; the lower and upper end of prices."""

    box: NDArray[np.int64]
    case: NDArray[np.int64]
    price: tuple[Floats, Floats]
    answered: tuple[Floats, Floats]


class _Pieces(NamedTuple):
    """Pieces of the supply curve at one report a box, ``(B, R)``."""

    level: Floats
    scale: Floats
    start: Floats  # prices between which the piece holds and does not exceed demand; start > stop: nowhere
    stop: Floats
    price: Floats  # best on the piece
    demand: Floats  # (B, 1)


class Case(NamedTuple):
    """One home's problem."""

    homes: Homes
    reports: Reports
    agent: int
    prices: Prices
    pricing: Pricing
    response: Response
    fields: tuple[Field, ...] = ()

    @classmethod
    def of(
        cls, homes: Homes, agent: int, reports: Reports, scenario: Any, pricing: Pricing, response: Response
    ) -> Case:
        """The problem of a home, checked."""
        validation.choice("pricing", pricing, ("paper", "exact", "exact_bound"))
        validation.choice("response", response, ("agent", "best"))
        size = np.shape(homes.preference)[-1] if np.ndim(homes.preference) == 1 else 0
        if not size:
            raise ValueError(f"homes must be of one window, (n,), got shape {np.shape(homes.preference)}")
        lows = {"preference": np.finfo(float).tiny, "capacity": -np.inf, "most": 0.0, "nominal": -np.inf}
        homes = Homes(*(validation.vector(n, v, size, lows[n]) for n, v in zip(Homes._fields, homes, strict=True)))
        reports = Reports(
            *(
                validation.vector(f"reported {n}", v, size, max(lows.get(n, 0.0), 0.0))
                for n, v in zip(Reports._fields, reports, strict=True)
            )
        )
        bad = ~(homes.capacity > homes.nominal)
        if bad.any():
            first = int(np.argmax(bad))
            raise ValueError(
                f"capacity[{first}] must be above nominal, {homes.nominal[first]:g} kW, for a positive consumption, "
                f"got {homes.capacity[first]:g} (agent {first})"
            )
        if not 0 <= agent < size:
            raise ValueError(f"agent must be in 0..{size - 1}, got {agent}")
        if homes.nominal[agent] == 0.0:
            raise ValueError(f"agent {agent} is off the market: its nominal net power is 0")
        return cls(homes, reports, agent, as_prices(scenario), pricing, response)

    @property
    def truth(self) -> Reports:
        """What everybody would report who tells the truth."""
        return settlement.truthful(self.homes)

    @property
    def selling(self) -> bool:
        """Whether the home is a seller."""
        return bool(self.homes.nominal[self.agent] > 0.0)

    @property
    def scales(self) -> Floats:
        """Multiples ``(f,)`` of the truth that the home reports."""
        pairs = ((getattr(each, field)[self.agent] for each in (self.reports, self.truth)) for field in self.fields)
        return np.array([reported / true for reported, true in pairs])

    @property
    def turnover(self) -> float:
        """Scale of the home's money [cents/h]."""
        size = self.homes.capacity[self.agent] + abs(self.homes.nominal[self.agent])
        return float(self.prices.retail * size + self.homes.preference[self.agent])

    def at(self, scales: Floats) -> Reports:
        """Reports ``(B, n)`` with the home's own fields at multiples ``(B, f)`` of the truth."""
        shape = (len(scales), self.homes.nominal.size)
        reports = {name: np.broadcast_to(each, shape) for name, each in self.reports._asdict().items()}
        for column, field in enumerate(self.fields):
            own = scales[:, column] * getattr(self.truth, field)[self.agent]
            reports[field] = _put(reports[field], self.agent, own)
        return Reports(**reports)

    def payoffs(self, scales: Floats) -> Floats:
        """The home's reward ``(B,)`` at :meth:`at`."""
        return self.payoff(self.at(scales))

    def payoff(self, reports: Reports) -> Floats:
        """The home's reward ``(...)``."""
        homes, prices, pricing = self.homes, self.prices, self.pricing
        terms = settlement.price(homes, reports, prices, pricing)
        best = self.response == "best"
        net = settlement.best_net(homes, reports, terms, prices, pricing) if best else homes.nominal
        net = np.broadcast_to(net, (*np.shape(terms.price), homes.nominal.size))
        payment = settlement.settle(homes, reports, terms, net, prices, pricing).payment
        return settlement.rewards(homes, net, payment)[..., self.agent]

    def bounds(self, low: Floats, high: Floats) -> Floats:
        """What the payoff does not exceed anywhere in boxes of scales ``(B, f)``, ``(B,)``."""
        # The corners with the lowest and the highest price.
        raises = np.array([RAISES[field] for field in self.fields])
        prices, ends = self.prices, (self.at(np.where(raises, low, high)), self.at(np.where(raises, high, low)))
        markets = [settlement.price(self.homes, each, prices, self.pricing) for each in ends]
        cases = np.stack([market.case for market in markets])
        extreme, none = (np.flatnonzero((cases == case).any(axis=0)) for case in (EXTREME, NO_MARKET))
        at_low, retail, buyback = (np.full(len(low), price) for price in (prices.low, prices.retail, prices.buyback))
        answers = self._answers(ends)
        met = [
            _branch(extreme, EXTREME, (at_low[extreme],) * 2, (answers[0][extreme], answers[1][extreme])),
            _branch(none, NO_MARKET, (retail[none],) * 2, (buyback[none],) * 2),
        ]
        # The case goes from none to general to extreme, or back, as the report moves.
        general = np.flatnonzero((cases == GENERAL).any(axis=0) | (cases[0] != cases[1]))
        if general.size:
            inner = _rows(ends[0], general), _rows(ends[1], general)
            saving = np.minimum(markets[0].saving, markets[1].saving)[general]
            found = self._paper(inner) if self.pricing == "paper" else self._exact(inner, saving)
            met += [branch._replace(box=general[branch.box]) for branch in found]
        bound = np.full(len(low), -np.inf)
        for branch in met:
            first, last = (_rows(each, branch.box) for each in ends)
            np.maximum.at(bound, branch.box, self._settled(branch, first, last))
        return bound

    def _answers(self, ends: tuple[Reports, Reports]) -> tuple[Floats, Floats]:
        """Ends of p̄, which is monotone in the report."""
        found = [rules.extreme_price(*self._offers(reports), self.prices) for reports in ends]
        return np.minimum(*found), np.maximum(*found)

    def _offers(self, reports: Reports) -> tuple[Offers, Floats]:
        offers = settlement.offered(self.homes, reports, self.pricing)
        return offers, settlement.wanted(self.homes, reports).sum(axis=-1)

    def _paper(self, ends: tuple[Reports, Reports]) -> list[_Branches]:
        """General market by (13), (14): with the home where it may claim supply, without where it may claim none."""
        agent = self.agent
        claims = [settlement.claimed(self.homes, reports, self.homes.nominal) for reports in ends]
        own = np.stack([claim[:, agent] for claim in claims])
        found = []
        # Without anybody else there is no market.
        others = _put(claims[0], agent, np.zeros(len(claims[0]))).max(axis=-1) > 0.0
        for stand_in, met in ((1.0, self.selling & (own.max(axis=0) > 0.0)), (0.0, others & (own.min(axis=0) <= 0.0))):
            box = np.flatnonzero(met)
            price = []
            for reports, claim in zip(ends, claims, strict=True):
                counted = _put(claim[box], agent, stand_in)
                offers = Offers(reports.preference[box], reports.capacity[box], self.homes.most)
                # Demand above the claims makes the market general.
                price.append(rules.paper_price(offers, counted, counted.sum(axis=-1) + 1.0, self.prices).price)
            found.append(_branch(box, GENERAL, (np.minimum(*price), np.maximum(*price))))
        return found

    def _exact(self, ends: tuple[Reports, Reports], saving: Floats) -> list[_Branches]:
        """General market by the exact price: pieces on which the leader may reach its best saving ``(B,)``."""
        prices = self.prices
        offers, _ = self._offers(self.reports)
        # Pieces between the prices where another seller changes.
        table = rules.curve(offers._replace(most=_put(offers.most, self.agent, 0.0)))
        inside = table.points[(table.points > prices.low) & (table.points < prices.high)]
        edges = np.unique(np.concatenate([[prices.low], inside, [prices.high]]))
        pieces = (edges[:-1], edges[1:]) if edges.size > 1 else (edges, edges)
        index = np.searchsorted(table.points, pieces[0], side="right")
        sides = [self._pieces(each, pieces, table.level[index], table.scale[index]) for each in ends]
        low, high = (pick(*(side.price for side in sides)) for pick in (np.minimum, np.maximum))
        # At an end of the box where the piece is out of reach its price says nothing.
        start = np.minimum(*(side.start for side in sides))
        low = np.maximum(low, np.minimum(start, prices.high))
        high = np.maximum(high, low)
        # The most the leader can save on each piece, whichever end of the report favours it.
        demand = np.maximum(*(side.demand for side in sides))
        reach = np.maximum(*(side.level for side in sides)) - np.minimum(*(side.scale for side in sides)) / high
        most = (prices.retail - low) * np.clip(reach, 0.0, demand)
        alive = most >= saving[:, None] - ROUNDING * (1.0 + prices.retail * demand)
        alive &= start <= np.maximum(*(side.stop for side in sides)) * (1 + ROUNDING)
        box, which = np.nonzero(alive)
        return [_branch(box, GENERAL, (low[box, which], high[box, which]))]

    def _pieces(self, reports: Reports, ends: tuple[Floats, Floats], level: Floats, scale: Floats) -> _Pieces:
        """Pieces ``(B, R)`` at one end of the boxes: those of the others, by what the home does on them."""
        offers, demand = self._offers(reports)
        k, capacity, most = (np.broadcast_to(each, reports.demand.shape)[:, self.agent, None] for each in offers)
        never, none = np.full(k.shape, np.inf), np.zeros(k.shape)
        states = [(none, none, none, never)]
        if self.selling:
            opens = np.divide(k, capacity, out=never.copy(), where=(capacity > 0.0) & (most > 0.0))
            closes = np.divide(k, capacity - most, out=never.copy(), where=(capacity > most) & (most > 0.0))
            states = [(none, none, none, opens), (capacity, k, opens, closes), (most, none, closes, never)]
        level, scale, start, stop = (
            np.concatenate(each, axis=1)
            for each in zip(
                *(
                    (level + more, scale + weight, np.maximum(ends[0], since), np.minimum(ends[1], until))
                    for more, weight, since, until in states
                ),
                strict=True,
            )
        )
        # Never above the price at which supply covers demand; where it is flat at demand, rounding must not decide.
        spare = level - demand[:, None]
        over = spare > ROUNDING * (1.0 + level)
        stop = np.minimum(stop, np.where(over, scale / np.where(over, spare, 1.0), np.inf))
        root = np.sqrt(self.prices.retail * np.maximum(scale, 0.0) / np.where(level > 0.0, level, np.inf))
        price = np.maximum(np.minimum(np.maximum(root, start), stop), self.prices.low)
        return _Pieces(level, scale, start, stop, price, demand[:, None])

    def _settled(self, branches: _Branches, first: Reports, last: Reports) -> Floats:
        """Bound ``(R,)`` on the payoff from the ends of prices and own report, along the steps of the settlement."""
        homes, prices, agent = self.homes, self.prices, self.agent
        bound, best = self.pricing == "exact_bound", self.response == "best"
        true = Offers(homes.preference, homes.capacity, homes.most)
        selling = homes.nominal > 0.0
        # Reports that make the most and the least of own supply and demand.
        ends = []
        for pick in (np.minimum, np.maximum):
            other = np.maximum if pick is np.minimum else np.minimum
            ends.append(
                Reports(
                    other(first.preference, last.preference),
                    pick(first.capacity, last.capacity),
                    pick(first.demand, last.demand),
                )
            )
        net: list[Floats] = []
        schedule: list[Floats] = []
        for reports, answered in zip(ends, branches.answered, strict=True):
            meant = np.where(selling, rules.supply(true, answered[:, None]), homes.nominal) if best else homes.nominal
            net.append(np.broadcast_to(meant, (answered.size, homes.nominal.size)))
            schedule.append(settlement.schedules(homes, reports, branches.case, answered, net[-1], self.pricing))
        demand: list[Floats] = [settlement.wanted(homes, each) for each in ends]
        supply, want = ([each.sum(axis=-1)[:, None] for each in both] for both in (schedule, demand))
        due, granted = _portions(schedule, want), _portions(demand, supply)
        if bound and best:
            answers: list[Floats] = [settlement.bound_supply(true, each, prices) for each in due]
            net = [np.where(selling, each, homes.nominal) for each in answers]
        taken = np.maximum(-homes.nominal, 0.0)
        bought = [np.minimum(taken, each) for each in granted]
        sold = [np.minimum(np.maximum(each, 0.0), part) for each, part in zip(net, due, strict=True)]
        supply, want = ([each.sum(axis=-1)[:, None] for each in both] for both in (sold, bought))
        low, high = branches.price
        if self.selling:
            least, most, owed = net[0][:, agent], net[1][:, agent], _portions(sold, want)[1][:, agent]
            # Worth of supply within its ends, as much as possible of it sold at the price: concave.
            k, capacity = homes.preference[agent], homes.capacity[agent]
            kept = np.clip(
                np.clip(owed, capacity - safe_divide(k, prices.buyback, np.inf), capacity - k / high), least, most
            )
            value = settlement.reward(k, capacity - kept - 1.0, -prices.buyback * kept)
            fee = (prices.retail - high) * np.maximum(due[0][:, agent] - most, 0.0)
            return value + (high - prices.buyback) * np.minimum(kept, owed) - fee
        paid = prices.retail * taken[agent] - (prices.retail - low) * _portions(bought, supply)[1][:, agent]
        value = settlement.rewards(homes, homes.nominal, 0.0 * homes.nominal)[agent]
        return value - paid


def _portions(amounts: list[Floats], total: list[Floats]) -> list[Floats]:
    """Lower and upper ends ``(R, n)`` of amounts, scaled down where they add up to more than a total ``(R, 1)``.

    What a home gets rises with its own amount and the total, and falls with the others' amounts.
    """
    ends = []
    for own, other, limit in ((amounts[0], amounts[1], total[0]), (amounts[1], amounts[0], total[1])):
        ends.append(own * settlement.part(limit, other.sum(axis=-1)[:, None] - other + own))
    return ends


def as_prices(scenario: Any) -> Prices:
    """Prices of a scenario, or prices as they are.

    Raises:
        ValueError: prices out of order, if they are NumPy's.
        TypeError: neither a scenario nor prices.
    """
    prices = scenario if isinstance(scenario, Prices) else getattr(scenario, "prices", None)
    if not isinstance(prices, Prices):
        raise TypeError(f"scenario must be a scenario or its prices, got {scenario!r}")
    if namespace(*prices) is np:
        buyback, low, high, retail = np.broadcast_arrays(*prices)
        bad = ~((buyback >= 0.0) & (buyback < low) & (low <= high) & (high < retail) & (retail < np.inf))
        if bad.any():
            first = tuple(float(each[bad][0]) for each in (buyback, low, high, retail))
            raise ValueError(f"prices must have 0 <= buyback < low <= high < retail, got {first}")
    return prices


def _branch(
    box: NDArray[np.int64], case: int, price: tuple[Floats, Floats], answered: tuple[Floats, Floats] | None = None
) -> _Branches:
    return _Branches(box, np.full(box.size, case), price, price if answered is None else answered)


def _rows(reports: Reports, index: NDArray[np.int64]) -> Reports:
    return Reports(*(each[index] for each in reports))


def _put(values: Floats, agent: int, own: Any) -> Floats:
    """``values (..., n)`` with one home's replaced."""
    return np.where(np.arange(values.shape[-1]) == agent, np.asarray(own)[..., None], values)
