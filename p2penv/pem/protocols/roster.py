"""What the parties of a window know beforehand, and what all of them get to know."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from p2penv.pem.protocols.channel import ProtocolError, Record
from p2penv.pem.protocols.market import Clearing, Window, names, taken
from p2penv.pem.rules import Prices


class Public(NamedTuple):
    """Known to all: who sells, who buys, and the grid's prices."""

    sellers: tuple[str, ...]  # parties, in the order of homes
    buyers: tuple[str, ...]
    prices: Prices  # [ticks]

    @property
    def homes(self) -> tuple[str, ...]:
        """All that trade."""
        return self.sellers + self.buyers


class Own(NamedTuple):
    """Known to one home alone."""

    net: int  # > 0 sells [mWh]
    preference: int  # k·10⁴, of sellers
    capacity: int  # S·10⁴, of sellers
    delivery: int  # once the price is known, of sellers [mWh]

    def allocation(self, published: Published) -> int:
        """What the home trades on the market [mWh]."""
        return int(taken(-self.net, published.fill) if self.net < 0 else taken(self.delivery, published.share))


class Published(NamedTuple):
    """Known to all after a window."""

    case: int
    price: int  # [ticks]
    fill: int  # of demand, in parts of 2¹⁶
    share: int  # of supply, in parts of 2¹⁶


def public(window: Window) -> Public:
    """What all know of a window."""
    homes = names(window.size)
    return Public(
        tuple(homes[home] for home in window.sellers), tuple(homes[home] for home in window.buyers), window.prices
    )


def own(window: Window) -> dict[str, Own]:
    """What each home that trades knows of itself, by name."""
    columns = (window.net, window.preference, window.capacity, window.supply)
    rows = np.stack(columns, axis=1)
    return {name: Own(*map(int, row)) for name, row in zip(names(window.size), rows, strict=True) if int(row[0]) != 0}


def assemble(window: Window, outcomes: Mapping[str, Any], record: Record) -> Clearing:
    """The clearing from what homes ended with, each a :class:`Published`.

    Raises:
        ProtocolError: homes ended with different results.
    """
    traders = public(window).homes
    published: Published = outcomes[traders[0]]
    for name in traders:
        if outcomes[name] != published:
            reason = f"ended with {tuple(outcomes[name])} where {traders[0]} has {tuple(published)}"
            raise ProtocolError(name, "end", reason)
    private: Mapping[str, Own] = own(window)
    homes: Sequence[str] = names(window.size)
    allocation = np.array([private[name].allocation(published) if name in private else 0 for name in homes], np.int64)
    return Clearing(*published[:4], allocation, record)
