"""Windows of the environment that are cleared by a cryptographic protocol and settled on what it publishes.

Published: the price in ticks, and fill and share in parts of 2¹⁶. A buyer is allocated ⌊F·D̂/2¹⁶⌋ mWh, a seller
⌊Ψ·ŝ/2¹⁶⌋; from there on it is settled as ever, and what rounding leaves over is traded with the grid.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, get_args

import numpy as np

from p2penv.core import validation
from p2penv.core.arrays import Array, row_sum
from p2penv.pem import rules, settlement
from p2penv.pem.protocols import plain
from p2penv.pem.protocols.backends import need
from p2penv.pem.protocols.market import ENERGY, FULL, HOMES, PRICE_BITS, TICKS, Backend, Clearing, Window, price_ticks
from p2penv.pem.rules import EXTREME, GENERAL, NO_MARKET, Prices
from p2penv.pem.settlement import Homes, Reports, Settlement, Terms

if TYPE_CHECKING:
    from p2penv.pem.protocols.member import Community

BACKENDS: tuple[str, ...] = get_args(Backend)
EVERY = 60  # windows between two that are cleared privately, by default


class PrivateClearing:
    """Clears every so many windows by a protocol.

    Args:
        backend: ``"paper"``, ``"hardened"`` or ``"committee"``.
        every: windows from one to the next.
        size: number of homes.
        prices: public prices [cents/kWh].
        community: keys of homes; None: made with 2048 bits when they are first needed.

    Raises:
        ValueError: too many homes, prices that are no whole ticks, or too small a community.
        ImportError: the extra is not installed.
    """

    def __init__(
        self, backend: Backend, every: int, size: int, prices: Prices, community: Community | None = None
    ) -> None:
        need()
        self.backend, self.every, self.size = backend, validation.count("private_every", every), size
        if size > HOMES:
            raise ValueError(f"clearing {backend!r} takes at most {HOMES} homes, got {size}")
        for name, price in zip(Prices._fields, prices, strict=True):
            if price_ticks(name, price) >= 1 << PRICE_BITS:
                raise ValueError(f"{name} must be below {(1 << PRICE_BITS) / TICKS:g} cents/kWh, got {price!r}")
        if community is not None and len(community.members) < size:
            raise ValueError(f"keys must be of at least {size} homes, got {len(community.members)}")
        self.community = community
        self.observer: Callable[[Window, Clearing], None] | None = None
        """called with every window that a protocol has cleared"""

    def __getstate__(self) -> dict[str, Any]:
        # Keys are never copied: another process makes its own.
        return self.__dict__ | {"community": None, "observer": None}

    def due(self, time: Array) -> Array:
        """Which of the windows ``(E,)`` are cleared privately: the last of every so many."""
        return (time + 1) % self.every == 0

    def settle(
        self, homes: Homes, reports: Reports, prices: Prices, hours: float, response: str
    ) -> tuple[Terms, Array, Settlement]:
        """Clear and settle one window, arrays ``(1, n)``, by the paper's mechanism.

        Raises:
            ValueError: a report beyond what is encrypted; names field and home.
            RuntimeError: the protocol's result is not that of the published integers.
            ProtocolError: a party that does not keep to the protocol.
        """
        window = _nominal(homes, reports, prices, hours)
        terms = _terms(window, homes, reports, prices)
        net = homes.nominal
        if response == "best":
            net = settlement.best_net(homes, reports, terms, prices, "paper")
        schedule = settlement.schedules(homes, reports, terms.case, terms.answered, net, "paper")
        # Who offers less than half a mWh is off the market.
        delivery = np.where(window.net > 0, np.rint(schedule[0] * hours * ENERGY), 0.0)
        if not np.array_equal(delivery, np.maximum(window.net, 0)):
            window = Window(window.net, window.preference, window.capacity, window.prices, delivery, window.coalition)
        cleared = self._clear(window)
        kw = cleared.allocation[None, :] / (ENERGY * hours)
        bought, sold = np.where(homes.nominal < 0.0, kw, 0.0), np.where(homes.nominal > 0.0, kw, 0.0)
        fill, share = np.full(1, cleared.fill / FULL), np.full(1, cleared.share / FULL)
        return terms, net, settlement.settle_at(terms, net, prices, schedule, fill, share, bought, sold)

    def _clear(self, window: Window) -> Clearing:
        from p2penv.pem.protocols.clearing import clear
        from p2penv.pem.protocols.member import Community

        if self.community is None and self.backend != "committee":
            self.community = Community(self.size)
        cleared, expected = clear(window, self.backend, community=self.community), plain.clear(window)
        if not cleared.same(expected):
            raise RuntimeError(f"{self.backend} cleared {cleared.published} where {expected.published} is right")
        if self.observer is not None:
            self.observer(window, cleared)
        return cleared


def _nominal(homes: Homes, reports: Reports, prices: Prices, hours: float) -> Window:
    """What homes report at loads as they are."""
    claim = settlement.claimed(homes, reports, homes.nominal)[0]
    net = claim - settlement.wanted(homes, reports)[0]
    preference, capacity = (np.where(claim > 0.0, told[0], 0.0) for told in (reports.preference, reports.capacity))
    return Window.of(net, preference, capacity, prices, hours)


def _terms(window: Window, homes: Homes, reports: Reports, prices: Prices) -> Terms:
    """Case and price in whole ticks, ``(1,)``."""
    case, tick = plain.evaluate(window) if window.open else (NO_MARKET, int(window.prices.retail))
    one = np.ones_like(homes.nominal[:, 0])
    offers = settlement.offered(homes, reports, "paper")
    demand = row_sum(settlement.wanted(homes, reports))
    answered = {
        NO_MARKET: prices.buyback * one,
        GENERAL: tick / TICKS * one,
        EXTREME: rules.extreme_price(offers, demand, prices),
    }[case]
    price = tick / TICKS * one
    saving = (prices.retail - price) * np.minimum(row_sum(rules.supply(offers, answered[:, None])), demand)
    return Terms(price, np.full(1, case), saving * (case != NO_MARKET), answered)


def with_row(old: Any, new: Any, row: int) -> Any:
    """A batch ``(E, …)`` in which one row is another's only one, in tuples of arrays too."""
    if isinstance(old, tuple):
        return type(old)(*(with_row(a, b, row) for a, b in zip(old, new, strict=True)))
    changed = old.copy()
    changed[row] = new[0]
    return changed


def of_row(batch: Any, row: int) -> Any:
    """One row of a batch as a batch of one, in double precision."""
    if isinstance(batch, tuple):
        rows = [of_row(each, row) for each in batch]
        return tuple(rows) if type(batch) is tuple else type(batch)(*rows)
    return np.asarray(batch[row : row + 1], dtype=np.float64)
