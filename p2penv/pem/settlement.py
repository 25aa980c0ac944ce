"""Clearing and settlement of one window of the private energy market: pure array functions, batched over leading axes.

Source: Xie et al. (PEM), (5) and Section III-D, with reports that need not be true. Per-home arrays are ``(..., n)``,
power in average kW over the window, prices in cents/kWh, money in cents/h: times the window's hours, kWh and cents.

What a seller says it delivers is its reported capacity less what it consumes, ŝ = Ŝ − (1 + l + eb):

* ``"paper"`` and ``"exact"`` do not hold it to its reported preference. Consumption is what is metered, so that
  ŝ = s + Ŝ − S. The price follows the reports, delivery does not: this is how lying about k pays.
* ``"exact_bound"`` takes the consumption that the report implies, k̂/p, so that ŝ = Ŝ − k̂/p.

Either way it is paid the market's price for no more than its share of ŝ, and pays for what is missing from it.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from p2penv.core.arrays import Array, clip, namespace, row_sum, safe_divide
from p2penv.pem import rules
from p2penv.pem.rules import EXTREME, NO_MARKET, Offers, Prices

Pricing = Literal["paper", "exact", "exact_bound"]
Response = Literal["agent", "best"]
# Largest logarithm of a reported multiple: single precision holds squares of what is reported.
CAP = 10.0


class Homes(NamedTuple):
    """The truth about homes in a window, ``(..., n)``."""

    preference: Array  # k > 0 [cents/h]
    capacity: Array  # S = g + 1 + eb − b [kW]
    most: Array  # G = g − b less the least load [kW]
    nominal: Array  # net power at the load as it is: > 0 sells, < 0 buys, 0 stays off the market [kW]


class Reports(NamedTuple):
    """What homes report, ``(..., n)``: the first two count for sellers, the last for buyers."""

    preference: Array  # k̂ > 0 [cents/h]
    capacity: Array  # Ŝ ≥ 0 [kW]
    demand: Array  # D̂ ≥ 0 [kW]


class Terms(NamedTuple):
    """Outcome of a window's pricing, ``(...)``."""

    price: Array  # of trades; retail if there is no market
    case: Array  # NO_MARKET, GENERAL or EXTREME
    saving: Array  # of all buyers against the grid, if everybody did as reported [cents/h]
    answered: Array  # price that sellers answer: p̄ in an extreme market, buyback if there is no market


class Settlement(NamedTuple):
    """Energy and money of a window; energy as power [kW], money per hour [cents/h]."""

    schedule: Array  # (..., n) ŝ, what sellers say they deliver
    fill: Array  # (...) φ, part of reported demand that is scheduled
    share: Array  # (...) ψ, part of the schedules that is wanted
    bought: Array  # (..., n) x, from the market
    sold: Array  # (..., n) y, to the market
    fee: Array  # (..., n) for shortfall, part of the payment
    payment: Array  # (..., n) net payment of each home, negative where it earns
    grid_power: Array  # (...) from the grid to the homes, negative the other way
    grid_account: Array  # (...) what the grid takes in on balance, fees included


def truthful(homes: Homes) -> Reports:
    """Reports that are true."""
    xp = namespace(homes.nominal)
    return Reports(homes.preference, homes.capacity, xp.maximum(-homes.nominal, 0.0 * homes.nominal))


def claimed(homes: Homes, reports: Reports, net: Array) -> Array:
    """Supply ``(..., n)`` that sellers claim while their net power is ``net``: reported capacity less consumption."""
    xp = namespace(net, homes.nominal)
    least = 0.0 * net
    claim = clip(net + (reports.capacity - homes.capacity), least, homes.most)
    return xp.where(homes.nominal > 0.0, claim, least)


def offered(homes: Homes, reports: Reports, pricing: Pricing) -> Offers:
    """Reported offers of nominal sellers; others offer nothing, nor do sellers that claim no supply to (13)."""
    xp = namespace(homes.nominal, reports.capacity)
    sells = homes.nominal > 0.0
    if pricing == "paper":
        sells = claimed(homes, reports, homes.nominal) > 0.0
    return Offers(reports.preference, reports.capacity, xp.where(sells, homes.most, 0.0 * homes.most))


def wanted(homes: Homes, reports: Reports) -> Array:
    """Reported demand ``(..., n)`` of nominal buyers, 0 for others."""
    xp = namespace(homes.nominal)
    return xp.where(homes.nominal < 0.0, reports.demand, 0.0 * homes.nominal)


def price(homes: Homes, reports: Reports, prices: Prices, pricing: Pricing) -> Terms:
    """Case and price of a window.

    ``"paper"`` takes the case from the supply claimed at nominal loads and reported demand, the price from (13), (14);
    ``"exact"`` and ``"exact_bound"`` take both from the reported supply curves (:func:`rules.exact_price`).
    """
    xp = namespace(homes.nominal, reports.demand)
    offers, demand = offered(homes, reports, pricing), row_sum(wanted(homes, reports))
    table = rules.curve(offers)
    if pricing == "paper":
        market = rules.paper_price(offers, claimed(homes, reports, homes.nominal), demand, prices)
    else:
        market = rules.exact_price(offers, demand, prices, table)
    extreme = rules.extreme_price(offers, demand, prices, table)
    answered = xp.where(market.case == EXTREME, extreme, market.price)
    answered = xp.where(market.case == NO_MARKET, 0.0 * demand + prices.buyback, answered)
    return Terms(market.price, market.case, market.saving, answered)


def schedules(
    homes: Homes, reports: Reports, case: Array, answered: Array, net: Array | None, pricing: Pricing
) -> Array:
    """What sellers say they deliver ``(..., n)``; ``net`` does not matter if delivery is bound."""
    xp = namespace(homes.nominal, answered)
    if pricing == "exact_bound":
        schedule = rules.supply(offered(homes, reports, pricing), answered[..., None])
    else:
        schedule = claimed(homes, reports, net)
    return xp.where((case == NO_MARKET)[..., None], 0.0 * schedule, schedule)


def part(amount: Array, of: Array, otherwise: float = 1.0) -> Array:
    """min(1, amount/of) ``(...)`` of amounts ≥ 0; ``otherwise`` where there is nothing to divide."""
    return safe_divide(namespace(amount, of).minimum(amount, of), of, otherwise)


def best_net(homes: Homes, reports: Reports, terms: Terms, prices: Prices, pricing: Pricing) -> Array:
    """Net power ``(..., n)`` at every seller's best load, given price and schedules; buyers keep theirs.

    Without bound delivery the load answers the price, k/p̄ − 1 − eb. With it, more than the share of the schedule
    earns only buyback and less costs retail: a seller delivers its share unless its own marginal value is beyond
    these. Told the truth in a general market, both are the same.
    """
    xp = namespace(homes.nominal, terms.price)
    true = Offers(homes.preference, homes.capacity, homes.most)
    if pricing == "exact_bound":
        schedule = schedules(homes, reports, terms.case, terms.answered, None, pricing)
        share = part(row_sum(wanted(homes, reports)), row_sum(schedule))
        best = bound_supply(true, share[..., None] * schedule, prices)
    else:
        best = rules.supply(true, terms.answered[..., None])
    return xp.where(homes.nominal > 0.0, best, homes.nominal)


def bound_supply(true: Offers, due: Array, prices: Prices) -> Array:
    """Best supply ``(..., n)`` of sellers that owe ``due``: that, within what buyback and retail prices draw."""
    one = 1.0 + 0.0 * due
    return clip(due, rules.supply(true, prices.buyback * one), rules.supply(true, prices.retail * one))


def settle(homes: Homes, reports: Reports, terms: Terms, net: Array, prices: Prices, pricing: Pricing) -> Settlement:
    """Allocation and payments of a window from metered net power; energy and money balance, the grid's included.

    With φ = min(1, Σŝ/ΣD̂) and ψ = min(1, ΣD̂/Σŝ) buyer j gets min(d, φD̂) and seller i sells min(s, ψŝ), the longer
    side scaled down to the shorter. A buyer pays p·x + ps·(d − x); a seller gets p·y + pb·(s − y), less
    (ps − p)·max(0, ψŝ − s), what the shortfall costs the buyers who turn to the grid; that goes to the grid's account.
    The fee is the same rule in every pricing; without bound delivery only an overstated capacity incurs it.

    Args:
        homes: the truth.
        reports: what was reported.
        terms: of :func:`price`.
        net: ``(..., n)`` metered net power [kW]; what a home takes or gives against its role is with the grid.
        prices: public prices, scalars or ``(...)``.
        pricing: the rule.
    """
    schedule = schedules(homes, reports, terms.case, terms.answered, net, pricing)
    demand = wanted(homes, reports)
    fill = part(row_sum(schedule), row_sum(demand))
    share = part(row_sum(demand), row_sum(schedule))
    return settle_at(terms, net, prices, schedule, fill, share, fill[..., None] * demand, share[..., None] * schedule)


def settle_at(
    terms: Terms, net: Array, prices: Prices, schedule: Array, fill: Array, share: Array, bought: Array, sold: Array
) -> Settlement:
    """Settlement of a window in which ``bought`` and ``sold`` ``(..., n)`` are allocated; see :func:`settle`."""
    xp = namespace(net, schedule)
    none = 0.0 * net
    given, taken = xp.maximum(net, none), xp.maximum(-net, none)
    bought, sold = xp.minimum(taken, bought), xp.minimum(given, sold)
    total_bought, total_sold = row_sum(bought), row_sum(sold)
    bought = bought * part(total_sold, total_bought)[..., None]
    sold = sold * part(total_bought, total_sold)[..., None]
    p = terms.price[..., None]
    pb, ps = ((0.0 * terms.price + each)[..., None] for each in (prices.buyback, prices.retail))
    fee = (ps - p) * xp.maximum(share[..., None] * schedule - given, none)
    with_grid = ps * (taken - bought) - pb * (given - sold) + fee
    payment = p * (bought - sold) + with_grid
    return Settlement(schedule, fill, share, bought, sold, fee, payment, -row_sum(net), row_sum(with_grid))


def bill(homes: Homes, payment: Array) -> Array:
    """What all buyers pay ``(..., 1)`` [cents/h]."""
    return row_sum(namespace(payment).where(homes.nominal < 0.0, payment, 0.0 * payment))[..., None]


def reward(preference: Array, consumed: Array, payment: Array) -> Array:
    """Reward of homes: k·log(1 + (l + eb)/u) − payment with u = 1 kW and ``consumed`` l + eb > −1 [kW]; (4) and (5)."""
    return preference * namespace(consumed).log1p(consumed) - payment


def rewards(homes: Homes, net: Array, payment: Array) -> Array:
    """:func:`reward` ``(..., n)`` from net power: l + eb = S − 1 − net."""
    return reward(homes.preference, homes.capacity - net - 1.0, payment)
