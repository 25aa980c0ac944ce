"""Clearing that gives away case, price, fill and share, and nothing else.

Homes add up what they report along a tree, encrypted under a key that a home at the tree's edge holds; each adds a
mask, and the masks of all add up to zero, so that no part of a sum says anything even to who can decrypt it. The root
holds the sums encrypted, the holder the key; together they compare, and search price and fill by halving. Every bit
they open follows from what is published. Energy is settled against the account of a pool, the utility that meters all
homes anyway; homes trade with nobody else, so that nobody learns from receipts.

Root and holder together learn the sums, and no home's own numbers. Parties follow the protocol; see the documentation
for what is not covered.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from typing import Any

from tno.mpc.encryption_schemes.paillier import PaillierCiphertext

from p2penv.pem.protocols import codec, encoding
from p2penv.pem.protocols.channel import Channel, Party, ProtocolError, play
from p2penv.pem.protocols.comparison import Holder, Initiating
from p2penv.pem.protocols.market import (
    CAPACITY_BITS,
    COALITION,
    FULL,
    NET_BITS,
    PREFERENCE_BITS,
    TICKS,
    Clearing,
    Window,
    case_of,
    closed,
)
from p2penv.pem.protocols.member import Community, Member, elect
from p2penv.pem.protocols.roster import Own, Public, Published, assemble, own, public
from p2penv.pem.rules import GENERAL, Prices

POOL = "pool"
MEMBERS = (POOL,)  # beside the homes
SUMS, DELIVERIES = ("supply", "demand", "k", "S"), ("supply",)
BLIND_BITS = 120  # of numbers that hide sums from the holder; sums have at most 41 bits
NUMBER = 4  # bytes of what is published
ACCOUNT = 8  # bytes of payments


def widths(homes: int, prices: Prices) -> tuple[int, int, int]:
    """Bits of the sums that are compared: of energies, in the search for the price, in that for the fill.

    n numbers below 2^b add up to less than 2^(b + ⌈log₂ n⌉).
    """
    size, high, limit = (homes - 1).bit_length(), int(prices.high), TICKS * int(prices.retail)
    price = max(PREFERENCE_BITS + limit.bit_length(), CAPACITY_BITS + (high * high).bit_length())
    return size + NET_BITS, size + price, size + NET_BITS + (FULL - 1).bit_length()


class Tree:
    """Homes in a random order as a binary tree: the root first, the holder of the key last, so that it is a leaf."""

    def __init__(self, public: Public, coin: bytes) -> None:
        self.order = elect(coin, "tree", public.homes)
        self.root, self.holder = self.order[0], self.order[-1]

    def parent(self, name: str) -> str:
        """To whom a home sends."""
        return self.order[(self.order.index(name) - 1) // 2]

    def children(self, name: str) -> Sequence[str]:
        """Who send to a home."""
        place = 2 * self.order.index(name) + 1
        return self.order[place : place + 2]


class Home(Party):
    """A home that trades; one of them is the root, one holds the key."""

    def __init__(
        self, name: str, public: Public, own: Own, member: Member, coin: bytes, number: int = 0, answers: bool = False
    ) -> None:
        super().__init__(name)
        encoding.check(name, public, own, answers)
        self.public, self.own, self.member, self.answers = public, own, member, answers
        self.tree, self.nonce = Tree(public, coin), coin + number.to_bytes(8, "big")
        self.homes = public.homes
        self.compare: Callable[..., Any]

    async def run(self, channel: Channel) -> Published:
        """One window."""
        member, tree, prices = self.member, self.tree, self.public.prices
        await member.introduce(channel, self.homes)
        if self.name == tree.holder:
            holder = Holder(self, member, tree.root)
            await holder.start(channel)
            self.compare = lambda phase, bits, *_: holder.compare(channel, phase, bits)
        elif self.name == tree.root:
            starter = Initiating(self, member, tree.holder)
            await starter.start(channel)
            self.compare = lambda phase, bits, x, y: starter.compare(channel, phase, x(), y(), bits)
        seller = self.name in self.public.sellers
        offer = [self.own.net, 0, self.own.preference, self.own.capacity] if seller else [0, -self.own.net, 0, 0]
        sums = await self.add_up(channel, "evaluation", SUMS, offer)
        energy, width, fill = widths(len(self.homes), prices)
        steps = "pricing.search"
        case = price = covers = part = 0
        if self.name in (tree.root, tree.holder):
            covers = await self.compare("evaluation.compare", energy, lambda: sums["demand"], lambda: sums["supply"])
            case, price = case_of(covers, 1), int(prices.low)
            if case == GENERAL:
                # (13), (14): the last tick t with t²·ΣS ≤ 10·ps·Σk.
                high, limit = int(prices.high), TICKS * int(prices.retail)
                price = await self.last(
                    steps, width, price, high, lambda tick: (sums["S"] * (tick * tick), sums["k"] * limit)
                )
        case, price = await self.publish(channel, "pricing.price", [case, price], [2, int(prices.high)])
        if self.answers:
            sums |= await self.add_up(channel, "delivery", DELIVERIES, [self.own.delivery])
        if self.name in (tree.root, tree.holder):
            if self.answers:
                covers = await self.compare("delivery.compare", energy, lambda: sums["demand"], lambda: sums["supply"])
            short, long = ("demand", "supply") if covers else ("supply", "demand")
            part = await self.last(
                "fill.search",
                fill,
                0,
                FULL if covers else FULL - 1,
                lambda part: (sums[long] * part, sums[short] * FULL),
            )
        covers, part = await self.publish(channel, "fill.part", [covers, part], [1, FULL])
        published = Published(case, price, *((FULL, part) if covers else (part, FULL)))
        await self.settle(channel, published)
        return published

    async def add_up(
        self, channel: Channel, protocol: str, names: Sequence[str], values: Sequence[int]
    ) -> dict[str, PaillierCiphertext]:
        """Sums of everybody's values, encrypted, at the root; nothing elsewhere."""
        tree, key, phase = self.tree, self.member.key(self.tree.holder), f"{protocol}.sums"
        mask = self.member.mask(self.homes, self.nonce + protocol.encode())
        total = key.encrypt(encoding.pack(values) + mask)
        for child in tree.children(self.name):
            total = total + key.read(await channel.receive(child, phase), 1, child, phase)[0]
        if self.name != tree.root:
            await channel.send(tree.parent(self.name), phase, key.write(total))
        if self.name == tree.root:
            return await self._spread(channel, f"{protocol}.spread", names, total)
        if self.name == tree.holder:
            (packed,) = key.read(await channel.receive(tree.root, phase := f"{protocol}.spread"), 1, tree.root, phase)
            found = encoding.unpack(key.decrypt(packed), len(names))
            spread = [key.encrypt(self.open(phase, f"blinded {name}", n)) for name, n in zip(names, found, strict=True)]
            await channel.send(tree.root, phase, key.write(*spread))
        return {}

    async def _spread(
        self, channel: Channel, phase: str, names: Sequence[str], total: PaillierCiphertext
    ) -> dict[str, PaillierCiphertext]:
        """One ciphertext a sum, from all of them in one: the holder decrypts them blinded and encrypts each anew."""
        key, holder = self.member.key(self.tree.holder), self.tree.holder
        blinds = [secrets.randbits(BLIND_BITS) for _ in names]
        await channel.send(holder, phase, key.write(total + key.encrypt(encoding.pack(blinds))))
        spread = key.read(await channel.receive(holder, phase), len(names), holder, phase)
        return {name: each + key.encrypt(-r) for name, each, r in zip(names, spread, blinds, strict=True)}

    async def last(self, phase: str, bits: int, low: int, high: int, sides: Callable[[int], tuple[Any, Any]]) -> int:
        """Last number in a range for which the first side is at most the second, or the range's first."""
        while low < high:
            middle = (low + high + 1) // 2
            holds = await self.compare(phase, bits, lambda m=middle: sides(m)[0], lambda m=middle: sides(m)[1])
            low, high = (middle, high) if holds else (low, middle - 1)
        return low

    async def publish(self, channel: Channel, phase: str, values: list[int], most: list[int]) -> list[int]:
        """Numbers that the root tells everybody, the pool included."""
        root = self.tree.root
        if self.name == root:
            payload = codec.numbers(values, NUMBER)
            for name in (*self.homes, POOL):
                if name != root:
                    await channel.send(name, phase, payload)
        else:
            values = codec.read_numbers(await channel.receive(root, phase), len(values), NUMBER, root, phase)
            if any(value > limit for value, limit in zip(values, most, strict=True)):
                raise ProtocolError(root, phase, f"published {values}, beyond {most}")
        return [self.open(phase, "published", value) for value in values]

    async def settle(self, channel: Channel, published: Published) -> None:
        """Claim from the pool what is allocated, and check its bill."""
        phase, amount = "settlement.claim", self.own.allocation(published)
        await channel.send(POOL, phase, codec.numbers([amount], NUMBER))
        (bill,) = codec.read_numbers(
            await channel.receive(POOL, "settlement.bill"), 1, ACCOUNT, POOL, "settlement.bill"
        )
        if bill != amount * published.price:
            # The error travels; what the home trades does not.
            raise ProtocolError(POOL, "settlement.bill", f"billed {self.name} another amount than it owes")


class Pool(Party):
    """The utility that meters homes: the other side of all trade."""

    def __init__(self, public: Public, coin: bytes) -> None:
        super().__init__(POOL)
        self.public, self.root = public, Tree(public, coin).root

    async def run(self, channel: Channel) -> int:
        """Take all claims, and bill them; what the pool is left with, to be sold to the grid [mWh]."""
        _, price = await self._hear(channel, self.root, "pricing.price", 2)
        covers, part = await self._hear(channel, self.root, "fill.part", 2)
        claims = {name: (await self._hear(channel, name, "settlement.claim", 1))[0] for name in self.public.homes}
        sold, bought = (sum(claims[name] for name in side) for side in self.public[:2])
        full, filled = (bought, sold) if covers else (sold, bought)
        # Claims of the longer side are rounded down to mWh, and their part to 2⁻¹⁶ of at most 2¹⁶·full/part.
        if not 0 <= full - filled <= len(claims) + full // max(part, 1) + 1:
            raise ProtocolError(POOL, "settlement.claim", "claims do not balance")
        for name, claim in claims.items():
            await channel.send(name, "settlement.bill", codec.numbers([claim * price], ACCOUNT))
        return sold - bought

    async def _hear(self, channel: Channel, sender: str, phase: str, count: int) -> list[int]:
        found = codec.read_numbers(await channel.receive(sender, phase), count, NUMBER, sender, phase)
        return [self.open(phase, f"{phase} {sender}", value) for value in found]


def party(
    name: str,
    public: Public,
    own: Own | None = None,
    *,
    member: Member | None = None,
    coin: bytes,
    number: int = 0,
    answers: bool = False,
) -> Party:
    """The pool, or a home with its own numbers.

    Args:
        name: of the party.
        public: what all know.
        own: what a home alone knows.
        member: what a home keeps from window to window.
        coin: the same bytes for all; what roles in the protocol are drawn by.
        number: of the window; coin and number together must be new.
        answers: whether sellers deliver other than their net energy once they know the price.

    Raises:
        ValueError: fewer than three sellers or buyers, or numbers that cannot be.
    """
    if min(len(public.sellers), len(public.buyers)) < COALITION:
        raise ValueError(
            f"the hardened protocol needs {COALITION} sellers and {COALITION} buyers, got {len(public.sellers)} and "
            f"{len(public.buyers)}"
        )
    if name == POOL:
        return Pool(public, coin)
    if own is None or member is None:
        raise ValueError(f"{name} must be the pool, or a home with keys and numbers of its own")
    return Home(name, public, own, member, coin, number, answers)


def clear(window: Window, community: Community, timeout: float = 60.0) -> Clearing:
    """Clear a window in this process.

    Raises:
        ProtocolError: a party that does not keep to the protocol.
        ValueError: coalitions of fewer than three are allowed.
    """
    if window.coalition < COALITION:
        raise ValueError(f"coalition must be at least {COALITION} for the hardened protocol, got {window.coalition}")
    if not window.open:
        return closed(window)
    known, private = public(window), own(window)
    (coin, number), answers = community.next(), window.delivery is not None
    parties = [party(POOL, known, coin=coin)]
    for name, each in private.items():
        member = community.members[name]
        parties.append(party(name, known, each, member=member, coin=coin, number=number, answers=answers))
    outcomes, record = play(parties, timeout)
    return assemble(window, outcomes, record)
