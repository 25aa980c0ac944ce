"""Every protocol gives what clearing in the clear gives, and that is the paper's mechanism."""

from __future__ import annotations

import asyncio
import math
from fractions import Fraction

import numpy as np
import pytest
from private_market import HOURS, PRICES, random_window

from p2penv.pem.protocols import plain
from p2penv.pem.protocols.market import FULL, Window, general_price
from p2penv.pem.rules import EXTREME, GENERAL, NO_MARKET, Offers, Prices, paper_price

pytest.importorskip("tno.mpc.protocols.secure_comparison", reason="needs the private extra")

from p2penv.pem.protocols import hardened
from p2penv.pem.protocols.channel import LocalNetwork, Party, ProtocolError, Record, Timeout
from p2penv.pem.protocols.clearing import clear
from p2penv.pem.protocols.keys import LENGTH
from p2penv.pem.protocols.member import Community
from p2penv.pem.protocols.roster import Published, assemble

MARKETS = 500  # with every protocol


@pytest.fixture(scope="module")
def community() -> Community:
    return Community(30, 512, insecure=True)


def hand() -> Window:
    """Three sellers of 100, 200, 300 and three buyers of 500, 250, 250 mWh."""
    net = np.array([100, -500, 200, -250, 300, -250])
    capacity = np.array([10_000, 0, 20_000, 0, 20_000, 0])
    preference = np.array([850_000, 0, 1_700_000, 0, 1_700_000, 0])
    return Window(net, preference, capacity, PRICES)


def test_a_window_by_hand() -> None:
    # √(120·425/5) = 100.99 cents; 600 of 1000 mWh: F = ⌊.6·65536⌋ = 39321.
    cleared = plain.clear(hand())
    assert cleared.published == (GENERAL, 1009, 39321, FULL)
    assert cleared.allocation.tolist() == [100, 299, 200, 149, 300, 149]


@pytest.mark.parametrize("backend", ["paper", "hardened"])
def test_protocols_by_hand(backend: str, community: Community) -> None:
    cleared = clear(hand(), backend, community=community)
    assert cleared.published == (GENERAL, 1009, 39321, FULL)
    assert cleared.allocation.tolist() == [100, 299, 200, 149, 300, 149]


def test_plain_clearing_is_the_papers_mechanism() -> None:
    rng = np.random.default_rng(1)
    for _ in range(300):
        window = random_window(rng, int(rng.integers(6, 30)))
        if not window.open:
            continue
        kw = window.net / (HOURS * 1e6)
        offers = Offers(window.preference / 1e4, window.capacity / 1e4, np.maximum(kw, 0.0))
        market = paper_price(offers, kw, np.maximum(-kw, 0.0).sum(), Prices(80.0, 90.0, 110.0, 120.0))
        cleared = plain.clear(window)
        assert cleared.case == market.case
        assert -1e-6 <= 10.0 * market.price - cleared.price < 1.0 + 1e-6
        ratio = Fraction(int(window.supply.sum()), int(window.demand.sum()))
        assert cleared.fill == math.floor(FULL * min(Fraction(1), ratio))
        assert cleared.share == math.floor(FULL * min(Fraction(1), 1 / ratio))
        bought, sold = (cleared.allocation[side].sum() for side in (window.buyers, window.sellers))
        longer = max(window.supply.sum(), window.demand.sum())
        assert abs(bought - sold) <= window.size + longer / FULL


def test_general_price_is_the_last_tick_that_is_not_above() -> None:
    rng = np.random.default_rng(2)
    for _ in range(200):
        k, capacity = int(rng.integers(1, 1 << 41)), int(rng.integers(1, 1 << 33))
        holds = [tick for tick in range(900, 1101) if tick * tick * capacity <= 12_000 * k]
        assert general_price(k, capacity, PRICES) == (holds[-1] if holds else 900)
    assert general_price(5, 0, PRICES) == 1100


@pytest.mark.slow
@pytest.mark.parametrize("chunk", range(5))
@pytest.mark.parametrize("backend", ["paper", "hardened"])
def test_protocols_equal_plain_on_random_markets(backend: str, chunk: int, community: Community) -> None:
    rng = np.random.default_rng(200 + chunk)
    seen = set()
    for _ in range(MARKETS // 5):
        window = random_window(
            rng,
            int(rng.integers(3, 31)),
            coalition=3 if backend == "hardened" else int(rng.integers(1, 4)),
            answers=rng.random() < 0.5,
        )
        expected = plain.clear(window)
        assert clear(window, backend, community=community).same(expected)
        seen.add((expected.case, expected.fill < FULL))
    assert {case for case, _ in seen} == {NO_MARKET, GENERAL, EXTREME}
    # Sellers answer the price across the balance.
    assert (GENERAL, False) in seen
    assert (EXTREME, True) in seen


@pytest.mark.slow
def test_protocols_equal_plain_with_keys_of_2048_bits() -> None:
    rng = np.random.default_rng(3)
    # Always the same homes have a task, so that only their keys are made.
    community = Community(100, coin=b"stored")
    for backend, tilt, answers in (("paper", -0.3, False), ("hardened", -0.2, True), ("paper", 0.4, False)):
        window = random_window(rng, 100, answers=answers, tilt=tilt)
        expected = plain.clear(window)
        assert expected.case == (GENERAL if tilt < 0 else EXTREME)
        assert clear(window, backend, community=community).same(expected)


@pytest.mark.parametrize("backend", ["plain", "paper", "hardened"])
@pytest.mark.parametrize(
    "net",
    [
        [0, 0, 0, 0],
        [5, 6, 7, 8],
        [-5, -6, -7, -8],
        [1000, 1000, -10, -10, -10],
        [1000, 1000, 1000, -10, -10, 0, 0],
    ],
)
def test_small_coalitions_settle_with_the_grid(backend: str, net: list[int], community: Community) -> None:
    some = np.full(len(net), 1000)
    cleared = clear(Window(np.array(net), some, some, PRICES), backend, community=community)
    assert cleared.published == (NO_MARKET, 1200, 0, 0)
    assert not cleared.allocation.any()
    assert not cleared.record.traffic


@pytest.mark.parametrize("backend", ["paper", "hardened"])
@pytest.mark.parametrize(
    "net",
    [
        [10, 20, 30, -10, -20, -30],  # balance: extreme, all filled
        [1, 1, 1, -(2**24 - 1), -(2**24 - 1), -(2**24 - 1)],  # F = 0
        [2**24 - 1, 2**24 - 1, 2**24 - 1, -1, -1, -1],  # Ψ = 0
    ],
)
def test_edges_of_the_range(backend: str, net: list[int], community: Community) -> None:
    largest = np.full(6, 2**24 - 1)
    window = Window(np.array(net), 255 * largest, largest, PRICES)
    assert clear(window, backend, community=community).same(plain.clear(window))


@pytest.mark.parametrize("backend", ["paper", "hardened"])
def test_sellers_that_deliver_nothing(backend: str, community: Community) -> None:
    window = hand()
    none = Window(window.net, window.preference, window.capacity, PRICES, delivery=np.zeros(6, int))
    cleared = clear(none, backend, community=community)
    assert cleared.published == (GENERAL, 1009, 0, FULL)
    assert not cleared.allocation.any()


def test_homes_that_end_with_different_results_are_named(community: Community) -> None:
    window = hand()
    homes = [f"home_{home}" for home in range(6)]
    ends = {name: Published(GENERAL, 1009, 39321, FULL) for name in homes}
    assert assemble(window, ends, Record()).same(plain.clear(window))
    ends["home_3"] = Published(GENERAL, 1010, 39321, FULL)
    with pytest.raises(ProtocolError, match="home_3 in phase 'end': ended with"):
        assemble(window, ends, Record())


@pytest.mark.parametrize("homes", [6, 7, 256, 257, 511, 512])
def test_sums_of_the_largest_numbers_can_be_compared(homes: int) -> None:
    """At the range's edge, 512 homes and a retail price of 409.5 cents included."""
    prices = Prices(0, 1, 4094, 4095)
    energy, price, fill = hardened.widths(homes, prices)
    largest = homes * (2**24 - 1)
    assert largest < 2**energy
    assert max(homes * (2**32 - 1) * 40_950, largest * 4094**2) < 2**price
    assert largest * FULL < 2**fill
    assert max(energy, price, fill) <= LENGTH


def test_record_counts_bytes_and_hops(community: Community) -> None:
    record = clear(hand(), "hardened", community=community).record
    assert record.size == sum(len(m.payload) for view in record.views.values() for m in view.received)
    total = sum(traffic.messages for traffic in record.by_protocol().values())
    assert total == sum(len(view.received) for view in record.views.values())
    assert record.traffic["evaluation.sums"].messages == 5
    assert record.traffic["evaluation.sums"].hops == 2  # six homes make a tree of three levels
    assert clear(hand(), "paper", community=community).record.traffic["evaluation.demand"].hops == 5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"net": [2**24, -1]}, r"net\[0\] must be in \[-16777215, 16777215\], got 16777216 \(home 0\)"),
        ({"net": [1, -(2**24)]}, r"net\[1\]"),
        ({"preference": [-1, 0]}, r"preference\[0\] must be in \[0, 4294967295\], got -1"),
        ({"capacity": [0, 2**24]}, r"capacity\[1\]"),
        ({"capacity": [0, 1, 2]}, r"capacity must have shape \(2,\)"),
        ({"delivery": [1, 1]}, r"delivery\[1\] must be 0"),
        ({"prices": Prices(800, 900, 1100, 4096)}, "whole ticks"),
        ({"prices": Prices(900, 900, 1100, 1200)}, "whole ticks"),
        ({"coalition": 0}, "coalition must be a whole number"),
    ],
)
def test_bad_windows_are_refused(change: dict[str, object], message: str) -> None:
    fields: dict[str, object] = {"net": [5, -5], "preference": [1, 1], "capacity": [1, 1], "prices": PRICES}
    fields |= change
    fields = {name: np.array(value) if isinstance(value, list) else value for name, value in fields.items()}
    with pytest.raises(ValueError, match=message):
        Window(**fields)  # type: ignore[arg-type]


def test_windows_of_powers() -> None:
    cents = Prices(80.0, 90.0, 110.0, 120.0)
    window = Window.of([0.06, -0.120000026], [100.00004, 0], [1.5, 0], cents, 1 / 60)
    assert window.net.tolist() == [1000, -2000]
    assert window.preference.tolist() == [1_000_000, 0]
    assert window.prices == PRICES
    with pytest.raises(ValueError, match=r"low must be a multiple of 0.1 cents/kWh"):
        Window.of([0.0], [0], [0], cents._replace(low=90.05), 1.0)
    with pytest.raises(ValueError, match=r"net\[1\] must be finite"):
        Window.of([0.0, np.nan], [0, 0], [0, 0], cents, 1.0)


def test_what_a_backend_needs(community: Community) -> None:
    with pytest.raises(ValueError, match="backend must be one of"):
        clear(hand(), "secret")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="needs a community of at least 6 homes, got none"):
        clear(hand(), "paper")
    with pytest.raises(ValueError, match="coalition must be at least 3"):
        clear(
            Window(*(getattr(hand(), f) for f in ("net", "preference", "capacity", "prices")), None, 2),
            "hardened",
            community=community,
        )


class _Says(Party):
    def __init__(self, name: str, to: str, phases: list[str], hears: list[str]) -> None:
        super().__init__(name)
        self.to, self.phases, self.hears = to, phases, hears

    async def run(self, channel: object) -> int:
        for phase in self.phases:
            await channel.send(self.to, phase, b"")  # type: ignore[attr-defined]
        for phase in self.hears:
            await channel.receive(self.to, phase)  # type: ignore[attr-defined]
        return 1


@pytest.mark.parametrize(
    ("says", "hears", "error", "message"),
    [
        ([], ["a"], Timeout, "ann in phase 'a': nothing received by bob within 0.05 s"),
        (["b"], ["a"], ProtocolError, "ann in phase 'a': sent bob a message of phase 'b'"),
        (["a"], [], ProtocolError, "ann in phase 'a': sent bob a message that nobody reads"),
    ],
)
def test_networks_name_party_and_phase(says: list[str], hears: list[str], error: type, message: str) -> None:
    network = LocalNetwork(["ann", "bob"], timeout=0.05)
    parties = [_Says("ann", "bob", says, []), _Says("bob", "ann", [], hears)]
    with pytest.raises(error, match=message):
        asyncio.run(network.play(parties))
