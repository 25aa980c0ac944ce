"""The integers a window is cleared on, and what clearing gives.

Energy is in whole mWh, prices in ticks of a tenth of a cent per kWh, preferences and capacities in 1/10,000 of cents/h
and kW. All backends work on these, so that they can agree to the last digit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from p2penv.core import validation
from p2penv.pem.protocols.channel import Record
from p2penv.pem.rules import EXTREME, GENERAL, NO_MARKET, Prices

Integers = NDArray[np.int64]
Backend = Literal["plain", "paper", "hardened", "committee"]

TICKS = 10  # to the cent
SCALE = 10_000  # of preferences and capacities
ENERGY = 1_000_000  # mWh to the kWh
FULL = 1 << 16  # of fills
HOMES = 512  # at most
NET_BITS, PREFERENCE_BITS, CAPACITY_BITS, PRICE_BITS = 24, 32, 24, 12
# A coalition of fewer settles with the grid: a lone seller could work out what all buyers want together.
COALITION = 3


@dataclass(frozen=True, eq=False)
class Window:
    """What n ≤ 512 homes bring to a window, and the public prices.

    Raises:
        ValueError: a value out of range; names field and home.
    """

    net: Integers
    """(n,) reported net energy at loads as they are, > 0 for sellers, |net| < 2²⁴ [mWh]"""
    preference: Integers
    """(n,) reported k·10⁴ in [0, 2³²), of sellers [cents/h]"""
    capacity: Integers
    """(n,) reported S·10⁴ in [0, 2²⁴), of sellers [kW]"""
    prices: Prices
    """buyback < low ≤ high < retail < 2¹² [ticks]"""
    delivery: Integers | None = None
    """(n,) what sellers deliver once they know the price, in [0, 2²⁴), 0 for others; None: net [mWh]"""
    coalition: int = COALITION
    """≥ 1, sellers and buyers below which everybody settles with the grid"""

    def __post_init__(self) -> None:
        count = len(np.atleast_1d(np.asarray(self.net)))
        if not 1 <= count <= HOMES:
            raise ValueError(f"homes must be 1 to {HOMES} in number, got {count}")
        self._set("net", _integers("net", self.net, count, 1 - (1 << NET_BITS), NET_BITS))
        self._set("preference", _integers("preference", self.preference, count, 0, PREFERENCE_BITS))
        self._set("capacity", _integers("capacity", self.capacity, count, 0, CAPACITY_BITS))
        if self.delivery is not None:
            delivery = _integers("delivery", self.delivery, count, 0, NET_BITS)
            if (wrong := (delivery > 0) & (self.net <= 0)).any():
                home = int(np.argmax(wrong))
                raise ValueError(
                    f"delivery[{home}] must be 0 for who does not sell, got {delivery[home]} (home {home})"
                )
            self._set("delivery", delivery)
        prices = Prices(*(int(price) for price in self.prices))
        if not 0 <= prices.buyback < prices.low <= prices.high < prices.retail < 1 << PRICE_BITS:
            raise ValueError(
                f"prices must be whole ticks with 0 <= buyback < low <= high < retail < {1 << PRICE_BITS}, got {prices}"
            )
        self._set("prices", prices)
        self._set("coalition", validation.count("coalition", self.coalition))

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), tuple(getattr(self, each.name) for each in fields(self))

    @classmethod
    def of(
        cls,
        net: Any,
        preference: Any,
        capacity: Any,
        prices: Prices,
        hours: float,
        delivery: Any = None,
        coalition: int = COALITION,
    ) -> Window:
        """A window from powers [kW], preferences [cents/h] and prices [cents/kWh], rounded to the nearest integers.

        Raises:
            ValueError: a value out of range or not finite, a price that is no whole tick.
        """
        ticks = [price_ticks(name, price) for name, price in zip(Prices._fields, prices, strict=True)]
        energy = ENERGY * validation.number("hours", hours, 0.0, open_low=True)
        return cls(
            _rounded("net", net, energy),
            _rounded("preference", preference, SCALE),
            _rounded("capacity", capacity, SCALE),
            Prices(*ticks),
            None if delivery is None else _rounded("delivery", delivery, energy),
            coalition,
        )

    @property
    def size(self) -> int:
        """Number of homes."""
        return len(self.net)

    @property
    def sellers(self) -> list[int]:
        """Homes with net energy to sell."""
        return [int(home) for home in np.flatnonzero(self.net > 0)]

    @property
    def buyers(self) -> list[int]:
        """Homes that need energy."""
        return [int(home) for home in np.flatnonzero(self.net < 0)]

    @property
    def open(self) -> bool:
        """Whether both coalitions are large enough for a market."""
        return min(len(self.sellers), len(self.buyers)) >= self.coalition

    @property
    def supply(self) -> Integers:
        """(n,) what sellers deliver, 0 for others [mWh]."""
        return np.maximum(self.net, 0) if self.delivery is None else self.delivery

    @property
    def demand(self) -> Integers:
        """(n,) what buyers need, 0 for others [mWh]."""
        return np.maximum(-self.net, 0)


@dataclass(frozen=True, eq=False)
class Clearing:
    """Outcome of a window."""

    case: int
    """NO_MARKET, GENERAL or EXTREME; the last if supply at loads as they are covers demand"""
    price: int
    """of trades; retail without a market [ticks]"""
    fill: int
    """⌊2¹⁶φ⌋, the part of demand that supply covers, at most 2¹⁶"""
    share: int
    """⌊2¹⁶ψ⌋, the part of supply that demand takes, at most 2¹⁶; with a market one of both is 2¹⁶"""
    allocation: Integers
    """(n,) bought by buyers or sold by sellers on the market; the rest is with the grid [mWh]"""
    record: Record = field(default_factory=Record)

    def same(self, other: Clearing) -> bool:
        """Whether case, price, fill, share and every allocation are equal."""
        return self.published == other.published and np.array_equal(self.allocation, other.allocation)

    @property
    def published(self) -> tuple[int, int, int, int]:
        """Case, price, fill and share."""
        return self.case, self.price, self.fill, self.share


def closed(window: Window) -> Clearing:
    """Everybody settles with the grid."""
    return Clearing(NO_MARKET, int(window.prices.retail), 0, 0, np.zeros(window.size, np.int64))


def case_of(supply: int, demand: int) -> int:
    """Case of an open market by nominal supply and demand."""
    return EXTREME if supply >= demand else GENERAL


def general_price(preference: int, capacity: int, prices: Prices) -> int:
    """Price (13), (14) from sums of k·10⁴ and S·10⁴: the last tick t with t²·ΣS ≤ 10·ps·Σk, held in [p_l, p_h]."""
    if capacity == 0:
        return int(prices.high)
    wanted = math.isqrt(TICKS * int(prices.retail) * preference // capacity)
    return int(min(max(wanted, prices.low), prices.high))


def part(amount: int, of: int) -> int:
    """⌊2¹⁶·min(1, amount/of)⌋; all of nothing."""
    return FULL if amount >= of else (FULL * amount) // of


def taken(energy: Any, part: int) -> Any:
    """⌊part·energy/2¹⁶⌋ of energies [mWh]."""
    return (energy * part) >> 16


def price_ticks(name: str, price: Any) -> int:
    """A price in cents/kWh as ticks.

    Raises:
        ValueError: it is no whole tick.
    """
    exact = TICKS * validation.number(name, price, 0.0)
    ticks = round(exact)
    if abs(ticks - exact) > 1e-6:
        raise ValueError(f"{name} must be a multiple of {1 / TICKS:g} cents/kWh for private clearing, got {price!r}")
    return ticks


def _rounded(name: str, values: Any, scale: float) -> Any:
    array = validation.floats(name, values)
    if not np.isfinite(array).all():
        home = int(np.argmin(np.isfinite(np.atleast_1d(array))))
        raise ValueError(f"{name}[{home}] must be finite, got {array.reshape(-1)[home]!r} (home {home})")
    return np.rint(array * scale)


def _integers(name: str, values: Any, size: int, low: int, bits: int) -> Integers:
    array = np.asarray(values)
    if array.shape != (size,):
        raise ValueError(f"{name} must have shape ({size},), got {array.shape}")
    if array.dtype.kind not in "iuf" or (array.dtype.kind == "f" and (array != np.rint(array)).any()):
        raise TypeError(f"{name} must hold whole numbers, got {values!r}")
    wrong = (array < low) | (array >= 1 << bits)
    if wrong.any():
        home = int(np.argmax(wrong))
        raise ValueError(f"{name}[{home}] must be in [{low}, {(1 << bits) - 1}], got {array[home]:.0f} (home {home})")
    result = array.astype(np.int64)
    result.flags.writeable = False
    return result


def names(size: int) -> Sequence[str]:
    """Names of homes as parties."""
    return [f"home_{home}" for home in range(size)]
