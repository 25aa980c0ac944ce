"""The committee clears as in the clear, and gives away to one member nothing, to two the sums, to three everything."""

import asyncio
import logging
import os
import sys

import numpy as np
import pytest
from private_market import PRICES, random_window

from p2penv.pem.protocols import channel, committee, plain, shares
from p2penv.pem.protocols.channel import ProtocolError
from p2penv.pem.protocols.clearing import clear
from p2penv.pem.protocols.committee import COMPUTE, MEMBERS, OFFERS, Home, Member, pack, unpack
from p2penv.pem.protocols.market import FULL, Window
from p2penv.pem.protocols.roster import own, public
from p2penv.pem.rules import EXTREME, GENERAL, NO_MARKET, Prices

mpyc = shares.mpyc
MARKETS = 500


def equal(window: Window) -> int:
    found, expected = committee.clear(window), plain.clear(window)
    assert found.same(expected), (found.published, expected.published)
    return found.case


@pytest.mark.slow
@pytest.mark.parametrize("chunk", range(5))
def test_random_markets_clear_as_in_the_clear(chunk):
    rng = np.random.default_rng(chunk)
    cases = [
        equal(random_window(rng, int(rng.integers(3, 31)), int(rng.integers(1, 4)), answers=bool(n % 2)))
        for n in range(MARKETS // 5)
    ]
    assert {NO_MARKET, GENERAL, EXTREME} == set(cases)


def window(sells, buys, delivery=None, prices=PRICES, preference=None, capacity=None, coalition=1) -> Window:
    net = np.array([*sells, *(-value for value in buys)])
    none = np.zeros(len(buys), int)
    columns = (
        np.concatenate([np.full(len(sells), 1) if each is None else each, none]) for each in (preference, capacity)
    )
    whole = None if delivery is None else np.concatenate([delivery, none])
    return Window(net, *columns, prices, whole, coalition)


@pytest.mark.parametrize(
    "case",
    [
        window([5, 5], [10]),  # supply is demand: extreme, both all filled
        window([5, 5], [11]),
        window([1], [2**24 - 1]),
        window([2**24 - 1], [1]),
        window([5], [6], preference=[2**32 - 1], capacity=[1]),  # the root is beyond p_h
        window([5], [6], preference=[0], capacity=[2**24 - 1]),
        window([5], [6], preference=[7], capacity=[0]),  # no capacity: p_h
        window([5], [6], preference=[83 * 83 * 4], capacity=[12 * 4], prices=Prices(0, 1, 4094, 4095)),
        window([9, 9], [6, 6], delivery=[0, 0]),  # nothing is delivered
        window([1, 1], [6, 6], delivery=[9, 9]),  # more than nominal
        window([3], [7], prices=Prices(800, 1000, 1000, 1200)),  # one price
    ],
)
def test_borders_clear_as_in_the_clear(case):
    equal(case)


@pytest.mark.slow
def test_largest_sums_fit():
    most = np.full(256, 2**24 - 1)
    big = window(most, most, prices=Prices(0, 1, 4094, 4095), preference=np.full(256, 2**32 - 1), capacity=most)
    assert equal(big) == EXTREME
    less = window(most, most + 0, preference=np.full(256, 2**32 - 1), capacity=most, delivery=most - 1)
    assert committee.clear(less).fill < FULL
    more = window(most - 1, most, preference=np.full(256, 2**32 - 1), capacity=most, delivery=most)
    assert equal(more) == GENERAL


def test_small_coalitions_settle_with_the_grid():
    closed = committee.clear(window([5, 5], [9, 9, 9], coalition=3))
    assert (closed.case, closed.price, closed.record.size) == (NO_MARKET, PRICES.retail, 0)
    assert not closed.allocation.any()


def test_members_open_what_is_published_and_nothing_else():
    cleared = clear(random_window(np.random.default_rng(3), 12, tilt=-0.4), "committee")
    for member in MEMBERS:
        opened = {each.name: each.value for each in cleared.record.views[member].opened}
        assert set(opened) - {"price"} == {"case", "covers", "part"}
        assert opened["case"] == (cleared.case == EXTREME)
        assert opened.get("price", PRICES.low) == cleared.price
        assert opened["covers"] == (cleared.fill == FULL)
        assert opened["part"] == (cleared.share if opened["covers"] else cleared.fill)
    for name, view in cleared.record.views.items():
        if name not in MEMBERS:
            assert tuple(each.value for each in view.opened) == cleared.published
            assert {message.sender for message in view.received} == set(MEMBERS)


def test_homes_are_hidden_from_two_members_and_open_to_three():
    market = random_window(np.random.default_rng(4), 9, coalition=1, tilt=-0.4)
    views = committee.clear(market).record.views
    private = own(market)
    for name, numbers in private.items():
        count = 3 if numbers.net > 0 else 1
        received = [
            unpack(message.payload, count, shares.width())
            for member in MEMBERS
            for message in views[member].received
            if (message.phase, message.sender) == (OFFERS, name)
        ]
        expected = [numbers.net, numbers.preference, numbers.capacity] if numbers.net > 0 else [-numbers.net]
        assert [sum(parts) % shares.modulus() for parts in zip(*received, strict=True)] == expected
        for two in ((0, 1), (0, 2), (1, 2)):
            # What two hold is as likely with any other number: the third part makes up for it.
            assert all(
                (received[two[0]][i] + received[two[1]][i]) % shares.modulus() != expected[i] for i in range(count)
            )


def inputs(record, member: int, of: int) -> list[int]:
    """A member's shares of another's four sums: its first message of that many numbers after the keys."""
    (first, *rest) = [
        message.payload
        for message in record.views[MEMBERS[member]].received
        if (message.phase, message.sender) == (COMPUTE, MEMBERS[of])
    ]
    stream = b"".join([first, *rest])
    at = 2 + 16 * (of < member) if of < member else 0
    while True:
        size = shares.HEADER.unpack_from(stream, at)[1]
        body = stream[at + shares.HEADER.size : at + shares.HEADER.size + size]
        at += shares.HEADER.size + size
        if size == 4 * shares.width():
            return [int.from_bytes(body[i : i + shares.width()], "little") for i in range(0, size, shares.width())]


def test_two_members_that_collude_learn_the_sums_and_one_does_not():
    market = random_window(np.random.default_rng(5), 12, tilt=-0.4)
    record = committee.clear(market).record
    sells = market.net > 0
    sums = [
        int(market.net[sells].sum()),
        int(market.preference[sells].sum()),
        int(market.capacity[sells].sum()),
        int(market.demand.sum()),
    ]
    field = shares.modulus()

    def collected(member: int) -> list[int]:
        totals = [0, 0, 0, 0]
        for message in record.views[MEMBERS[member]].received:
            if message.phase == OFFERS:
                seller = message.sender in public(market).sellers
                numbers = unpack(message.payload, 3 if seller else 1, shares.width())
                for i, value in zip((0, 1, 2) if seller else (3,), numbers, strict=True):
                    totals[i] = (totals[i] + value) % field
        return totals

    # Members 0 and 1 know what they collected, and hold shares f(1), f(2) of what member 2 did: f(0) = 2f(1) − f(2).
    first, second = inputs(record, 0, 2), inputs(record, 1, 2)
    third = [(2 * a - b) % field for a, b in zip(first, second, strict=True)]
    assert third == collected(2)
    assert [sum(parts) % field for parts in zip(collected(0), collected(1), third, strict=True)] == sums
    # Member 0 alone holds one share of each: any line through it, and so any sum, is as likely.
    assert first != third
    assert [(a + b) % field for a, b in zip(collected(0), first, strict=True)] != sums


def test_zero_tests_open_no_product_of_two_lines():
    """MPyC 0.11 opens a·r on shares that are a product of lines: whoever factors it finds a from its own share."""
    field = mpyc.finfields.GF(shares.modulus())
    secret = 123456789

    def roots(values: list[int]) -> list[int]:
        """Of the parabola through (1, ·), (2, ·), (3, ·)."""
        y1, y2, y3 = (field(value) for value in values)
        a = (y1 - 2 * y2 + y3) / field(2)
        b = y2 - y1 - 3 * a
        c = y1 - a - b
        square = b * b - 4 * a * c
        if not square.is_sqr():
            return []
        root = square.sqrt()
        return [int((sign - b) / (2 * a)) % shares.modulus() for sign in (root, -root)]

    def attack(masked: bool) -> bool:
        """Does member 0 find the secret from the shares that are opened and its own?"""
        seen: dict[int, int] = {}  # by member, of the latest opening
        mine: list[int] = []

        class Watching(channel.Party):
            async def run(self, link):
                async with shares.Session(link, MEMBERS, COMPUTE) as session:
                    runtime = session.runtime
                    if not masked:
                        runtime.is_zero_public = mpyc.runtime.Runtime.is_zero_public.__get__(runtime)
                    (value,) = session.sums([secret if self.name == MEMBERS[0] else 0])
                    share = await session.wait(runtime.gather(value))
                    output = runtime.output

                    def recorded(x, *args, **options):
                        if options.get("threshold") == 2 and not isinstance(x, list):
                            seen[runtime.pid] = int(x.value) % shares.modulus()
                        return output(x, *args, **options)

                    runtime.output = recorded
                    if self.name == MEMBERS[0]:
                        mine.append(int(share.value))
                    assert not await session.wait(runtime.is_zero_public(value))

        channel.play([Watching(name) for name in MEMBERS])
        opened = [seen[member] for member in range(3)]
        found = [mine[0] * root * pow(root - 1, -1, shares.modulus()) % shares.modulus() for root in roots(opened)]
        return secret in found

    assert attack(masked=False)
    assert not any(attack(masked=True) for _ in range(4))


class Liar(Home):
    """Sends one member what it should not."""

    def __init__(self, *args, payload: bytes) -> None:
        super().__init__(*args)
        self.payload = payload

    async def run(self, link):
        await link.send(MEMBERS[0], OFFERS, self.payload)
        return await super().run(link)


@pytest.mark.parametrize("payload", [b"", b"x" * 50, pack([shares.modulus()] * 3, shares.width())])
def test_shares_that_are_not_well_formed_are_refused(payload):
    market = window([5, 5], [8, 8])
    known, private = public(market), own(market)
    parties = [committee.party(name, known, private.get(name)) for name in (*MEMBERS, *known.homes)]
    parties[3] = Liar("home_0", known, private["home_0"], payload=payload)
    with pytest.raises(ProtocolError, match=r"home_0 in phase 'committee\.offers'"):
        channel.play(parties)


class Babbler(Member):
    """Joins the computation with bytes of its own."""

    def __init__(self, name, known, data: bytes) -> None:
        super().__init__(name, known)
        self.data = data

    async def run(self, link):
        for home in self.public.homes:
            await link.receive(home, OFFERS)
        for other in MEMBERS:
            if other != self.name:
                await link.send(other, COMPUTE, self.data)
        await asyncio.sleep(30)


@pytest.mark.parametrize("member", [0, 1, 2])
def test_garbage_from_a_member_names_it_and_leaves_nothing_behind(member, caplog):
    market = window([5, 5], [8, 8])
    known, private = public(market), own(market)
    rng = np.random.default_rng(member)
    keys = member.to_bytes(2, "little") + rng.bytes(16)
    for data in (b"x", rng.bytes(40), keys + rng.bytes(70), keys + shares.HEADER.pack(1, 1 << 30)):
        parties = [committee.party(name, known, private.get(name)) for name in (*MEMBERS, *known.homes)]
        parties[member] = Babbler(MEMBERS[member], known, data)
        with pytest.raises(ProtocolError, match=rf"committee_{member} in phase 'committee\.compute'"):
            channel.play(parties, timeout=1.0)
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


def test_a_wrong_number_of_shares_ends_the_window():
    """It is well-formed, so that MPyC itself fails: that must not stop the event loop others use."""
    market = window([5, 5], [8, 8])
    known, private = public(market), own(market)

    class Short(Member):
        async def run(self, link):
            session = shares.Session
            try:
                shares_sums = session.sums
                session.sums = lambda this, values: shares_sums(this, values[:2] if link.name == MEMBERS[1] else values)
                return await super().run(link)
            finally:
                session.sums = shares_sums

    parties = [committee.party(name, known, private.get(name)) for name in (*MEMBERS, *known.homes)]
    parties[1] = Short(MEMBERS[1], known)
    with pytest.raises((ProtocolError, ValueError)):
        channel.play(parties, timeout=1.0)


@pytest.mark.parametrize(
    ("field", "value"),
    [("net", 1 << 24), ("net", -3), ("preference", 1 << 32), ("capacity", -1), ("delivery", 1 << 24)],
)
def test_numbers_out_of_range_are_refused(field, value):
    market = window([5, 5], [8, 8])
    with pytest.raises(ValueError, match=f"{field} of home_0"):
        Home("home_0", public(market), own(market)["home_0"]._replace(**{field: value}))


def test_importing_leaves_the_program_alone():
    """MPyC reads the command line and sets up logging when it is imported as usual."""
    assert "MPYC_NONUMPY" not in os.environ
    assert "READTHEDOCS" not in os.environ
    assert "mpyc.numpy" in sys.modules
    assert mpyc.numpy.np is None
