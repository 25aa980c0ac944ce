"""Clearing by a committee of three, on shares of what homes report; needs MPyC.

Homes split each number into three random parts that add up to it, one for each member. Members add up what they get
and compute on shares of the sums. They open the case, the price, whether delivered supply covers demand, and fill and
share: each bit that is opened on the way follows from these. A member alone learns no more. Two that collude learn the
sums, and all three every home's numbers. Members and homes follow the protocol; false inputs are not detected.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from p2penv.pem.protocols.channel import Channel, Party, ProtocolError, play
from p2penv.pem.protocols.market import (
    CAPACITY_BITS,
    FULL,
    HOMES,
    NET_BITS,
    PREFERENCE_BITS,
    TICKS,
    Clearing,
    Window,
    case_of,
    closed,
)
from p2penv.pem.protocols.roster import Own, Public, Published, assemble, own, public
from p2penv.pem.protocols.shares import BITS, PARTIES, Session, modulus, width
from p2penv.pem.rules import GENERAL

MEMBERS = tuple(f"committee_{member}" for member in range(PARTIES))
OFFERS, COMPUTE, PRICE, DELIVERY, FILL = (
    f"committee.{step}" for step in ("offers", "compute", "price", "delivery", "fill")
)
OF_SELLERS, OF_BUYERS = 3, 1  # numbers in an offer: energy, preference and capacity; energy
ENERGY_BITS = NET_BITS + HOMES.bit_length()  # of sums, with sign
NUMBER = 4  # of what is published [bytes]


def split(value: int) -> list[int]:
    """Random parts of a number, one a member, that add up to it in the field."""
    parts = [secrets.randbelow(modulus()) for _ in range(PARTIES - 1)]
    return [*parts, (value - sum(parts)) % modulus()]


def pack(values: Sequence[int], size: int) -> bytes:
    """Numbers, each of ``size`` bytes."""
    return b"".join(value.to_bytes(size, "big") for value in values)


def unpack(payload: bytes, count: int, size: int) -> list[int]:
    """Numbers of a payload.

    Raises:
        ValueError: another length.
    """
    if len(payload) != count * size:
        raise ValueError(f"payload must have {count * size} bytes, got {len(payload)}")
    return [int.from_bytes(payload[at : at + size], "big") for at in range(0, len(payload), size)]


class Home(Party):
    """A home that trades."""

    def __init__(self, name: str, public: Public, own: Own) -> None:
        super().__init__(name)
        self.seller, self.own = name in public.sellers, own
        limits = {"net": NET_BITS, "preference": PREFERENCE_BITS, "capacity": CAPACITY_BITS, "delivery": NET_BITS}
        for field, bits in limits.items():
            value = abs(own.net) if field == "net" else getattr(own, field)
            if not 0 <= value < 1 << bits:
                raise ValueError(f"{field} of {name} must be in [0, {(1 << bits) - 1}], got {value}")
        if (own.net > 0) != self.seller or own.net == 0:
            raise ValueError(f"net of {name} must have the sign of its role, got {own.net}")

    async def run(self, channel: Channel) -> Published:
        """Hand in shares, learn what is published."""
        own = self.own
        await self._share(channel, OFFERS, [own.net, own.preference, own.capacity] if self.seller else [-own.net])
        case, price = await self._agreed(channel, PRICE, "case", "price")
        if self.seller:
            await self._share(channel, DELIVERY, [own.delivery])
        fill, share = await self._agreed(channel, FILL, "fill", "share")
        return Published(case, price, fill, share)

    async def _share(self, channel: Channel, phase: str, values: Sequence[int]) -> None:
        for member, parts in zip(MEMBERS, zip(*map(split, values), strict=True), strict=True):
            await channel.send(member, phase, pack(parts, width()))

    async def _agreed(self, channel: Channel, phase: str, *names: str) -> list[int]:
        found: list[list[int]] = []
        for member in MEMBERS:
            payload = await channel.receive(member, phase)
            try:
                found.append(unpack(payload, len(names), NUMBER))
            except ValueError as error:
                raise ProtocolError(member, phase, str(error)) from None
            if found[-1] != found[0]:
                raise ProtocolError(member, phase, f"sent {found[-1]} where {MEMBERS[0]} sent {found[0]}")
        return [self.open(phase, name, value) for name, value in zip(names, found[0], strict=True)]


class Member(Party):
    """One of the committee."""

    def __init__(self, name: str, public: Public) -> None:
        super().__init__(name)
        self.public = public

    async def run(self, channel: Channel) -> Published:
        """Collect shares, compute, publish."""
        sellers, buyers, prices = self.public
        offered = await self._collect(channel, OFFERS, sellers, OF_SELLERS)
        wanted = await self._collect(channel, OFFERS, buyers, OF_BUYERS)
        async with Session(channel, MEMBERS, COMPUTE) as session:
            supply, preference, capacity, demand = session.sums([*offered, *wanted])
            case = case_of(await self._covers(session, "case", supply, demand), 1)
            price = prices.low
            if case == GENERAL:
                # (13), (14): the last tick t with t²·ΣS ≤ 10·ps·Σk.
                limit = TICKS * prices.retail * preference
                price = await self._last(
                    session, "price", lambda tick: limit - tick * tick * capacity, BITS, prices.low, prices.high
                )
            await self._publish(channel, PRICE, case, price)
            (delivered,) = session.sums(await self._collect(channel, DELIVERY, sellers, 1))
            covers = await self._covers(session, "covers", delivered, demand)
            short, long = (demand, delivered) if covers else (delivered, demand)
            bits = ENERGY_BITS + FULL.bit_length()
            part = await self._last(session, "part", lambda part: FULL * short - part * long, bits, 0, FULL)
            published = Published(case, price, *((FULL, part) if covers else (part, FULL)))
            await self._publish(channel, FILL, published.fill, published.share)
        return published

    async def _collect(self, channel: Channel, phase: str, homes: Sequence[str], count: int) -> list[int]:
        """This member's parts of the sums over homes."""
        sums = [0] * count
        for home in homes:
            try:
                parts = unpack(await channel.receive(home, phase), count, width())
                if max(parts) >= modulus():
                    raise ValueError("a part exceeds the field")
            except ValueError as error:
                raise ProtocolError(home, phase, str(error)) from None
            sums = [(a + b) % modulus() for a, b in zip(sums, parts, strict=True)]
        return sums

    async def _covers(self, session: Session, name: str, supply: Any, demand: Any) -> int:
        return self.open(COMPUTE, name, await session.at_least(supply - demand, ENERGY_BITS))

    async def _last(
        self, session: Session, name: str, slack: Callable[[int], Any], bits: int, low: int, high: int
    ) -> int:
        """Last whole number in a range whose slack is not negative, or the first; slack falls. Opens its bits."""
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if await session.at_least(slack(middle), bits) else (low, middle - 1)
        return self.open(COMPUTE, name, low)

    async def _publish(self, channel: Channel, phase: str, *values: int) -> None:
        payload = pack(values, NUMBER)
        for home in self.public.homes:
            await channel.send(home, phase, payload)


def party(name: str, public: Public, own: Own | None = None) -> Party:
    """A party by name: a member, or a home with its own numbers."""
    if name in MEMBERS:
        return Member(name, public)
    assert own is not None, name
    return Home(name, public, own)


def parties(public: Public, own: Mapping[str, Own]) -> list[Party]:
    """All parties of a window."""
    return [party(name, public, own.get(name)) for name in (*MEMBERS, *public.homes)]


def clear(window: Window, timeout: float = 60.0) -> Clearing:
    """Clear a window with homes and committee in this process.

    Raises:
        ProtocolError: a party that does not keep to the protocol.
    """
    if not window.open:
        return closed(window)
    outcomes, record = play(parties(public(window), own(window)), timeout)
    return assemble(window, outcomes, record)
