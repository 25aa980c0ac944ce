"""Rules of the private energy market: pure array functions, batched over leading axes.

Source: Xie, Wang, Hong, Thai, "Privacy preserving distributed energy trading" (PEM); numbers in brackets are that
paper's. Per-home arrays are ``(..., n)``, power in average kW over a window, prices in cents/kWh.

A home with generation g, load l and battery power b (> 0 charging) has net power g − l − b. With S = g + 1 + eb − b its
utility k·log(1 + l + eb) plus sales at p is best at the load l = k/p − 1 − eb, that is, at the supply S − k/p: the e
beside k in the paper's (9), (10), (15) is spurious, (11) to (13) are right. The paper's price (13), (14) takes the set
of sellers as given; here every seller starts to sell at k/S and has nothing more to sell from k/(S − G) on, and the
price is exact.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from p2penv.core.arrays import Array, clip, gather, namespace, row_sum, running_sum, safe_divide

# Cases of a window: no supply is offered at any price in range, it is short, it covers demand at the lowest price.
NO_MARKET, GENERAL, EXTREME = 0, 1, 2
# The logarithm of a home's utility stays this far from its end [kW].
MARGIN = 0.1


class Prices(NamedTuple):
    """Public prices, buyback < low ≤ high < retail [cents/kWh]."""

    buyback: Array  # pb, of the grid for what is left over
    low: Array  # p_l
    high: Array  # p_h
    retail: Array  # ps, of the grid for what is missing


class Offers(NamedTuple):
    """What sellers report; zero ``most`` for who does not sell; ``(..., n)``."""

    preference: Array  # k > 0 [cents/h]
    capacity: Array  # S [kW]
    most: Array  # G ≥ 0, generation less battery less least load [kW]


class Curve(NamedTuple):
    """Supply E(p) = level − scale/p, piece by piece; piece j lies between points j − 1 and j."""

    points: Array  # (..., 2n) prices at which a seller starts or saturates, sorted, infinite if never
    level: Array  # (..., 2n + 1) [kW]
    scale: Array  # (..., 2n + 1) [cents/h]
    supply: Array  # (..., 2n) E at the points [kW]


class Market(NamedTuple):
    """Outcome of a window's pricing."""

    price: Array  # (...) of trades [cents/kWh]
    case: Array  # (...) NO_MARKET, GENERAL or EXTREME
    saving: Array  # (...) of all buyers against the grid, at the supply answered to the price [cents/h]


def discharge_limit(most: Array, least: Array, loss: Array) -> Array:
    """Largest discharge −b ``(..., n)``, up to ``most``, at which 1 + l + eb stays ``MARGIN`` above 0 [kW].

    At the least load, so that loads may still answer the price: −b ≤ (least + 1 − MARGIN)/e.

    Args:
        most: ``(..., n)`` ≥ 0, what the battery could give [kW].
        least: ``(..., n)`` ≥ 0, least load [kW].
        loss: ``(..., n)`` e ≥ 0; in single precision it may be 0.
    """
    xp = namespace(most, least)
    reach = least + 1.0 - MARGIN
    beyond = most * loss > reach
    return xp.where(beyond, reach / xp.where(beyond, loss, 1.0), most)


def charging_limits(
    charge: Array,
    capacity: Array,
    charge_efficiency: Array,
    discharge_efficiency: Array,
    least: Array,
    loss: Array,
    hours: Array,
) -> tuple[Array, Array]:
    """Lowest and highest battery power b ``(..., n)`` that charge, room and the logarithm allow [kW].

    Args:
        charge: ``(..., n)`` in [0, capacity], at the start of the window [kWh].
        capacity: ``(..., n)`` [kWh].
        charge_efficiency: ``(..., n)`` in (0, 1].
        discharge_efficiency: ``(..., n)`` in (0, 1].
        least: ``(..., n)`` least load [kW].
        loss: ``(..., n)`` e.
        hours: of the window.
    """
    stored = charge * discharge_efficiency / hours
    return -discharge_limit(stored, least, loss), (capacity - charge) / (charge_efficiency * hours)


def charge_change(charging: Array, charge_efficiency: Array, discharge_efficiency: Array, hours: Array) -> Array:
    """What a window at battery power b ``(..., n)`` adds to the charge, η_c·b⁺ − b⁻/η_d times its hours [kWh]."""
    xp, none = namespace(charging), 0.0 * charging
    taken, given = xp.maximum(charging, none), xp.maximum(-charging, none)
    return hours * (charge_efficiency * taken - given / discharge_efficiency)


def supply(offers: Offers, price: Array) -> Array:
    """Supply ``(..., n)`` answered to prices ``(..., 1)`` or ``(..., n)``: S − k/p within [0, G], 0 at price 0 [kW]."""
    answer = offers.capacity - safe_divide(offers.preference, price, np.inf)
    return clip(answer, 0.0 * offers.most, offers.most)


def curve(offers: Offers) -> Curve:
    """Supply of all sellers as a function of the price, by one sort of the 2n prices where a seller changes."""
    xp = namespace(offers.preference)
    k, capacity, most = offers
    sells = (most > 0.0) & (capacity > 0.0)
    rest = capacity - most
    start = xp.where(sells, k / xp.where(sells, capacity, 1.0), xp.inf)
    full = sells & (rest > 0.0)
    saturate = xp.where(full, k / xp.where(full, rest, 1.0), xp.inf)
    points = xp.concat([start, saturate], axis=-1)
    order = xp.argsort(points, axis=-1)
    points = gather(points, order)
    # What never happens changes nothing; products take a fraction of the time of choices.
    starts, saturates = (xp.astype(each, k.dtype) for each in (sells, full))
    levels = xp.concat([starts * capacity, -saturates * rest], axis=-1)
    scales = xp.concat([starts * k, -saturates * k], axis=-1)
    zero = 0.0 * k[..., :1]
    level = xp.concat([zero, running_sum(gather(levels, order))], axis=-1)
    scale = xp.concat([zero, running_sum(gather(scales, order))], axis=-1)
    return Curve(points, level, scale, level[..., 1:] - scale[..., 1:] / points)


def supply_at(table: Curve, price: Array) -> Array:
    """Supply ``(...)`` of all sellers at prices ``(...)`` [kW]."""
    xp = namespace(price, table.points)
    piece = xp.sum(xp.astype(table.points <= price[..., None], xp.int32), axis=-1)[..., None]
    return (gather(table.level, piece) - gather(table.scale, piece) / price[..., None])[..., 0]


def clearing_price(table: Curve, demand: Array) -> Array:
    """Lowest price ``(...)`` at which supply covers demand ``(...)``, infinite if none does [cents/kWh]."""
    xp = namespace(demand, table.points)
    piece = xp.sum(xp.astype(table.supply < demand[..., None], xp.int32), axis=-1)[..., None]
    missing = gather(table.level, piece) - demand[..., None]
    price = gather(table.scale, piece) / xp.where(missing > 0.0, missing, 1.0)
    price = _within(table, piece, xp.where(missing > 0.0, price, xp.inf))
    return xp.where(demand > 0.0, price, 0.0 * demand)


def _within(table: Curve, piece: Array, price: Array) -> Array:
    """Prices ``(..., 1)`` of pieces, kept between their ends ``(...)``.

    Where supply is flat what is left of a sum that cancels decides the quotient: it may be anywhere.
    """
    xp = namespace(price, table.points)
    last = table.points.shape[-1] - 1
    start = xp.where(piece > 0, gather(table.points, clip(piece - 1, 0 * piece, 0 * piece + last)), 0.0)
    stop = xp.where(piece <= last, gather(table.points, clip(piece, 0 * piece, 0 * piece + last)), xp.inf)
    return clip(price, start, stop)[..., 0]


def _root(values: Array) -> Array:
    """Square root of what is positive, else 0: the root of zero has no derivative."""
    xp = namespace(values)
    positive = values > 0.0
    return xp.where(positive, xp.sqrt(xp.where(positive, values, 1.0)), 0.0)


def _case(table: Curve, demand: Array, prices: Prices) -> tuple[Array, Array]:
    """Supply at the lowest price, and the case it makes, ``(...)`` each."""
    xp = namespace(demand, table.points)
    at_low = supply_at(table, 0.0 * demand + prices.low)
    covered = xp.where(at_low >= demand, EXTREME, GENERAL)
    return at_low, xp.where(supply_at(table, 0.0 * demand + prices.high) > 0.0, covered, NO_MARKET)


def exact_price(offers: Offers, demand: Array, prices: Prices, table: Curve | None = None) -> Market:
    """Price at which buyers as a coalition pay least when every seller answers it; exact, ``O(n log n)``.

    The saving against the grid, (ps − p)·min(E(p), E_b), is concave between the prices where sellers start or saturate
    but not across them: the best price of every piece is √(ps·scale/level) within the piece, and never above the price
    at which supply covers demand. Supply that covers demand at p_l makes the market extreme, with price p_l; without
    supply at p_h nothing is traded and the price is ps.

    Args:
        offers: ``(..., n)``.
        demand: ``(...)`` E_b ≥ 0 [kW].
        prices: ``(...)`` or scalars.
        table: :func:`curve` of the offers, if it is at hand.
    """
    xp = namespace(demand, offers.preference)
    table = curve(offers) if table is None else table
    at_low, case = _case(table, demand, prices)
    low, retail = (0.0 * demand + price for price in (prices.low, prices.retail))
    ceiling = clip(clearing_price(table, demand), low, 0.0 * demand + prices.high)
    inner = clip(table.points, low[..., None], ceiling[..., None])
    ends = xp.concat([low[..., None], inner, ceiling[..., None]], axis=-1)
    # Pieces without supply keep rounding of sums that cancel.
    live = (table.level > 0.0) & (table.scale >= 0.0)
    ratio = xp.where(live, table.scale, 0.0) / xp.where(live, table.level, 1.0)
    price = clip(_root(retail[..., None] * ratio), ends[..., :-1], ends[..., 1:])
    # Pieces out of range are squeezed to one of its ends, where their formula says nothing.
    valid = live & (ends[..., :-1] < ends[..., 1:])
    saving = xp.where(valid, (retail[..., None] - price) * (table.level - table.scale / price), -xp.inf)
    best = xp.argmax(saving, axis=-1)[..., None]
    at_floor = (retail - low) * xp.minimum(at_low, demand)
    better = (case == GENERAL) & (gather(saving, best)[..., 0] > at_floor)
    found = xp.where(case == NO_MARKET, retail, xp.where(better, gather(price, best)[..., 0], low))
    gained = xp.where(case == NO_MARKET, 0.0 * demand, xp.where(better, gather(saving, best)[..., 0], at_floor))
    return Market(found, case, gained)


def extreme_price(offers: Offers, demand: Array, prices: Prices, table: Curve | None = None) -> Array:
    """Price ``(...)`` that sellers get on average in an extreme market: p̄ = pb + (p_l − pb)·E_b/E(p̄), exact.

    What is left over goes to the grid at pb, and sellers answer p̄, not p_l: answering p_l would leave them worse off
    than the grid alone. (p − pb)·E(p) rises with the price, so the root is unique; within a piece it is quadratic.
    Where supply at p_l does not cover demand, p_l. ``table`` is :func:`curve` of the offers, if it is at hand.
    """
    xp = namespace(demand, offers.preference)
    table = curve(offers) if table is None else table
    pb, low = (0.0 * demand + price for price in (prices.buyback, prices.low))
    target = ((low - pb) * demand)[..., None]
    finite = xp.where(table.points < xp.inf, table.points, 0.0)
    reached = xp.where(table.points < xp.inf, (finite - pb[..., None]) * xp.maximum(table.supply, 0.0), xp.inf)
    piece = xp.sum(xp.astype(reached < target, xp.int32), axis=-1)[..., None]
    level, scale = gather(table.level, piece), gather(table.scale, piece)
    middle = level * pb[..., None] + scale + target
    inside = middle * middle - 4.0 * level * pb[..., None] * scale
    root = _within(table, piece, safe_divide(0.5 * (middle + _root(inside)), level))
    return xp.where(supply_at(table, low) >= demand, clip(root, pb, low), low)


def paper_price(offers: Offers, nominal: Array, demand: Array, prices: Prices) -> Market:
    """The paper's price: (13) over everybody who nominally sells, held in [p_l, p_h] (14); extreme by nominal supply.

    Right only if every nominal seller is inside its limits at that price, it is in range, and supply does not exceed
    demand there.

    Args:
        offers: ``(..., n)``.
        nominal: ``(..., n)`` net power at the loads as they are, > 0 for sellers [kW].
        demand: ``(...)`` E_b ≥ 0 [kW].
        prices: ``(...)`` or scalars.

    Returns:
        ``saving`` at the supply answered to the price, or at p̄ in an extreme market.
    """
    xp = namespace(demand, offers.preference)
    sells = nominal > 0.0
    total = row_sum(xp.where(sells, nominal, 0.0 * nominal))
    k = row_sum(xp.where(sells, offers.preference, 0.0 * nominal))
    capacity = row_sum(xp.where(sells, offers.capacity, 0.0 * nominal))
    low, high, retail = (0.0 * demand + price for price in (prices.low, prices.high, prices.retail))
    wanted = _root(retail * k / xp.where(capacity > 0.0, capacity, 1.0))
    price = xp.where(capacity > 0.0, clip(wanted, low, high), high)
    case = xp.where(total <= 0.0, NO_MARKET, xp.where(total >= demand, EXTREME, GENERAL))
    price = xp.where(case == NO_MARKET, retail, xp.where(case == EXTREME, low, price))
    own = Offers(offers.preference, offers.capacity, xp.where(sells, offers.most, 0.0 * nominal))
    answered = xp.where(case == EXTREME, extreme_price(own, demand, prices), price)
    sold = xp.minimum(row_sum(supply(own, answered[..., None])), demand)
    return Market(price, case, (retail - price) * sold)
