"""The paper's Protocols 2 to 4, with what they give away.

Two things differ from the paper's text, and neither changes what a party learns. The secure comparison is DGK's instead
of a garbled circuit. Sums of k and S travel in one ciphertext, and quotients are decrypted fifteen at a time. As fills
are published numbers here, one home announces the fill it works out.

Known to leak, and shown to by ``attacks``: who decrypts the quotients of Protocol 4 learns every home's energy on the
other side; who sets the price learns every seller's energy from what it is sent; a seller and a buyer together learn
everything.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence

from p2penv.pem.protocols import codec, encoding
from p2penv.pem.protocols.channel import Channel, Party, ProtocolError, play
from p2penv.pem.protocols.comparison import Holder, Initiating
from p2penv.pem.protocols.market import FULL, NET_BITS, Clearing, Window, closed, general_price
from p2penv.pem.protocols.member import Community, Member, elect
from p2penv.pem.protocols.roster import Own, Public, Published, assemble, own, public
from p2penv.pem.rules import EXTREME, GENERAL

MEMBERS: tuple[str, ...] = ()  # beside the homes
NONCE_BITS = 40
QUOTIENT = 1 << 64  # K in ⌊K/|sn|⌋
RATIO = 1 << 96  # of allocation ratios, which are fractions
WIDE, NARROW = 16, 4  # bytes of ratios and of what is published


class Home(Party):
    """A home that trades."""

    def __init__(self, name: str, public: Public, own: Own, member: Member, coin: bytes, answers: bool = False) -> None:
        super().__init__(name)
        encoding.check(name, public, own, answers)
        self.public, self.own, self.member, self.coin, self.answers = public, own, member, coin, answers
        self.nonce = 0

    async def run(self, channel: Channel) -> Published:
        """Protocol 1 for one window."""
        await self.member.introduce(channel, self.public.homes)
        case = side = await self.evaluate(channel, "evaluation", max(self.own.net, 0))
        price = await self.price(channel) if case == GENERAL else self.public.prices.low
        if self.answers:
            side = await self.evaluate(channel, "delivery", self.own.delivery)
        part = await self.distribute(channel, side)
        return Published(case, price, *((part, FULL) if side == GENERAL else (FULL, part)))

    def elected(self, task: str, among: tuple[str, ...]) -> str:
        """Who has a task."""
        return elect(self.coin, task, among)[0]

    async def evaluate(self, channel: Channel, protocol: str, supply: int) -> int:
        """Protocol 2: whether supply covers demand."""
        sellers, buyers = self.public.sellers, self.public.buyers
        first, second = self.elected(f"{protocol} seller", sellers), self.elected(f"{protocol} buyer", buyers)
        self.nonce = secrets.randbelow(1 << NONCE_BITS)
        demand = max(-self.own.net, 0)
        blinded_demand = await self._chain(channel, f"{protocol}.demand", [*buyers, *sellers], first, demand)
        blinded_supply = await self._chain(channel, f"{protocol}.supply", [*sellers, *buyers], second, supply)
        compare, announce = f"{protocol}.compare", f"{protocol}.case"
        bits = NONCE_BITS + 1 + len(self.public.homes).bit_length()
        if self.name == second:
            key = self.member.key(self.name)
            await channel.send(first, compare, key.write(key.encrypt(blinded_supply)))
            holder = Holder(self, self.member, first)
            await holder.start(channel)
            covers = await holder.compare(channel, compare, bits)
            await self._broadcast(channel, announce, [covers], self.public.homes)
        elif self.name == first:
            starter = Initiating(self, self.member, second)
            key = self.member.key(second)
            (y,) = key.read(await channel.receive(second, compare), 1, second, compare)
            await starter.start(channel)
            covers = await starter.compare(channel, compare, key.encrypt(blinded_demand), y, bits)
        if self.name != second:
            (covers,) = await self._hear(channel, announce, second, 1, NARROW, 1)
        return EXTREME if covers else GENERAL

    async def _chain(self, channel: Channel, phase: str, order: Sequence[str], last: str, value: int) -> int:
        """Lines 2 to 10 of Protocol 2: each in turn multiplies in its number and nonce; what ``last`` decrypts."""
        order = [name for name in order if name != last] + [last]
        place, key = order.index(self.name), self.member.key(last)
        if self.name != last:
            total = key.encrypt(value + self.nonce)
            if place:
                before = order[place - 1]
                total = key.read(await channel.receive(before, phase), 1, before, phase)[0] + total
            await channel.send(order[place + 1], phase, key.write(total))
            return 0
        before = order[place - 1]
        (total,) = key.read(await channel.receive(before, phase), 1, before, phase)
        return self.open(phase, "blinded", key.decrypt(total) + value + self.nonce)

    async def price(self, channel: Channel) -> int:
        """Protocol 3: the general price, worked out by a buyer from sums of k and S."""
        phase, announce = "pricing.sums", "pricing.price"
        sellers, buyer = self.public.sellers, self.elected("price", self.public.buyers)
        if self.name in sellers:
            key, place = self.member.key(buyer), sellers.index(self.name)
            total = key.encrypt(encoding.pack([self.own.preference, self.own.capacity]))
            if place:
                before = sellers[place - 1]
                total = key.read(await channel.receive(before, phase), 1, before, phase)[0] + total
            await channel.send(sellers[place + 1] if place + 1 < len(sellers) else buyer, phase, key.write(total))
        if self.name == buyer:
            key = self.member.key(buyer)
            (total,) = key.read(await channel.receive(sellers[-1], phase), 1, sellers[-1], phase)
            sums = encoding.unpack(key.decrypt(total), 2)
            k, capacity = (self.open(phase, name, value) for name, value in zip(("k", "S"), sums, strict=True))
            price = general_price(k, capacity, self.public.prices)
            await self._broadcast(channel, announce, [price], self.public.homes)
            return price
        return (await self._hear(channel, announce, buyer, 1, NARROW, int(self.public.prices.high)))[0]

    async def distribute(self, channel: Channel, side: int) -> int:
        """Protocol 4: the longer side is filled in proportion; the part of it that is."""
        sellers, buyers = self.public.sellers, self.public.buyers
        long, short = (buyers, sellers) if side == GENERAL else (sellers, buyers)
        decrypts = self.elected("ratios", short)
        energy = self.own.delivery if self.name in sellers else -self.own.net
        if self.name in short:
            return await self._give(channel, long, short, decrypts, energy)
        return await self._take(channel, long, short, decrypts, energy)

    async def _give(self, channel: Channel, long: Sequence[str], short: Sequence[str], decrypts: str, mine: int) -> int:
        """The shorter side: allocation ratios are decrypted, and each sends everybody its part of its energy."""
        phase, ratio_phase = "distribution.quotient", "distribution.ratio"
        if self.name == decrypts:
            key, found = self.member.key(self.name), []
            for name in long:
                found += key.read(await channel.receive(name, phase), 1, name, phase)
            quotients = [
                self.open(phase, f"quotient {n}", v) for n, v in zip(long, key.decrypt_all(found), strict=True)
            ]
            for name, quotient in zip(long, quotients, strict=True):
                # No home needs more than all together.
                if 0 < quotient < QUOTIENT // 2:
                    raise ProtocolError(name, phase, f"sent {quotient}, which is no quotient of a total by a part")
            # Rounded up: what is added up from them is never too little, and too much by less than makes a difference.
            ratios = [-(-RATIO * QUOTIENT // quotient) if quotient else 0 for quotient in quotients]
            await self._broadcast(channel, ratio_phase, ratios, short, WIDE)
            speaker = self._speaker(decrypts, long, ratios)
            await self._broadcast(channel, "distribution.speaker", [long.index(speaker)], long)
        else:
            ratios = await self._hear(channel, ratio_phase, decrypts, len(long), WIDE, 2 * RATIO)
        for name, ratio in zip(long, ratios, strict=True):
            await channel.send(name, "distribution.receipt", codec.numbers([ratio * mine], WIDE))
        return (await self._hear(channel, "distribution.fill", self._speaker(decrypts, long, ratios), 1, NARROW, FULL))[
            0
        ]

    async def _take(self, channel: Channel, long: Sequence[str], short: Sequence[str], decrypts: str, mine: int) -> int:
        """The longer side: quotients are formed on the encrypted total, and each adds up what it is sent."""
        phase, quotient_phase, key = "distribution.total", "distribution.quotient", self.member.key(decrypts)
        place, last = long.index(self.name), long[-1]
        total = key.encrypt(mine)
        if place:
            before = long[place - 1]
            total = key.read(await channel.receive(before, phase), 1, before, phase)[0] + total
        if self.name != last:
            await channel.send(long[place + 1], phase, key.write(total))
            (total,) = key.read(await channel.receive(last, phase), 1, last, phase)
        else:
            total.randomize()
            payload = key.write_as_is(total)
            for name in long[:-1]:
                await channel.send(name, phase, payload)
        quotient = QUOTIENT // mine if mine else 0
        await channel.send(decrypts, quotient_phase, key.write(total * quotient))
        speaker = long[(await self._hear(channel, "distribution.speaker", decrypts, 1, NARROW, len(long) - 1))[0]]
        received = 0
        for name in short:
            received += (await self._hear(channel, "distribution.receipt", name, 1, WIDE, 2 * RATIO << NET_BITS))[0]
        # The quotient's own rounding is known here, and is taken out: exact to the last bit that counts.
        part = received * quotient * FULL // (RATIO * QUOTIENT)
        if part > FULL:
            raise ProtocolError(decrypts, "distribution.receipt", "let more be received than is wanted")
        if self.name != speaker:
            (told,) = await self._hear(channel, "distribution.fill", speaker, 1, NARROW, FULL)
            if mine and told != part:
                raise ProtocolError(speaker, "distribution.fill", f"announced {told} where {self.name} finds {part}")
            return told
        await self._broadcast(channel, "distribution.fill", [part], self.public.homes)
        return part

    async def _broadcast(
        self, channel: Channel, phase: str, values: Sequence[int], to: Sequence[str], width: int = NARROW
    ) -> None:
        payload = codec.numbers(values, width)
        for name in to:
            if name != self.name:
                await channel.send(name, phase, payload)

    async def _hear(self, channel: Channel, phase: str, sender: str, count: int, width: int, most: int) -> list[int]:
        return codec.read_numbers(await channel.receive(sender, phase), count, width, sender, phase, most)

    @staticmethod
    def _speaker(decrypts: str, long: Sequence[str], ratios: Sequence[int]) -> str:
        """Who announces the fill: the first that has anything to be filled."""
        for name, ratio in zip(long, ratios, strict=True):
            if ratio:
                return name
        raise ProtocolError(decrypts, "distribution.ratio", "found nothing to distribute")


def party(
    name: str, public: Public, own: Own | None = None, *, member: Member, coin: bytes, answers: bool = False
) -> Party:
    """A home of a window; ``answers`` if sellers deliver other than their net energy once they know the price."""
    if own is None:
        raise ValueError(f"{name} must be a home with numbers of its own")
    if not public.sellers or not public.buyers:
        raise ValueError("a window needs a seller and a buyer")
    return Home(name, public, own, member, coin, answers)


def clear(window: Window, community: Community, timeout: float = 60.0) -> Clearing:
    """Clear a window in this process.

    Raises:
        ProtocolError: a party that does not keep to the protocol.
    """
    if not window.open:
        return closed(window)
    known, private = public(window), own(window)
    (coin, _), answers = community.next(), window.delivery is not None
    members = community.members
    parties = [
        party(name, known, each, member=members[name], coin=coin, answers=answers) for name, each in private.items()
    ]
    outcomes, record = play(parties, timeout)
    return assemble(window, outcomes, record)


assert NET_BITS + QUOTIENT.bit_length() + 10 < encoding.SLOT
