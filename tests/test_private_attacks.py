"""What parties work out from what they saw: everything under the paper's protocols, nothing under the hardened ones."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
from private_market import HOURS, PRICES, answered_window, random_window

pytest.importorskip("tno.mpc.protocols.secure_comparison", reason="needs the private extra")

from p2penv.pem.protocols import attacks, hardened, paper, plain
from p2penv.pem.protocols.channel import Opened, Record, View
from p2penv.pem.protocols.market import FULL, SCALE, Clearing, Window, names
from p2penv.pem.protocols.member import Community
from p2penv.pem.protocols.roster import public
from p2penv.pem.rules import EXTREME, GENERAL


@pytest.fixture(scope="module")
def community() -> Community:
    return Community(30, 512, insecure=True)


def truth(window: Window) -> tuple[dict[str, int], dict[str, int]]:
    """Energy of sellers and of buyers by name."""
    homes = names(window.size)
    return (
        {homes[home]: int(window.net[home]) for home in window.sellers},
        {homes[home]: -int(window.net[home]) for home in window.buyers},
    )


def by_divisors(window: Window, record: Record) -> bool:
    sellers, buyers = truth(window)
    long = buyers if plain.clear(window).case == GENERAL else sellers
    return any(attacks.recovered(attacks.divisors(view, list(long)), long) for view in record.views.values())


def by_receipts(window: Window, cleared: Clearing, view_of: str) -> bool:
    sellers, buyers = truth(window)
    view, own = cleared.record.views[view_of], buyers[view_of]
    found = attacks.receipts(view, list(sellers), cleared.price, HOURS, own)
    return attacks.recovered(found, sellers | {"demand": sum(buyers.values())})


def other_numbers(rng: np.random.Generator, window: Window, me: int) -> Window:
    """Other homes report otherwise, home ``me`` reports the same, and what is published is the same.

    All k/S are equal, so is the price; demand is twice the supply.
    """
    net, capacity = window.net.copy(), window.capacity.copy()
    for home in range(window.size):
        if home != me:
            net[home] = rng.integers(500, 90_000) * np.sign(net[home])
            capacity[home] = rng.integers(SCALE, 6 * SCALE) * (net[home] > 0)
    last = next(home for home in reversed(window.buyers) if home != me)
    net[last] = 0
    net[last] = -2 * net[net > 0].sum() - net[net < 0].sum()
    if net[last] >= 0:
        return other_numbers(rng, window, me)
    return Window(net, 85 * capacity, capacity, PRICES)


def in_the_clear(view: View) -> list[object]:
    """All of a view but ciphertexts and what is blinded: of these only who sent them, when, and how long they are."""
    told: list[object] = [(m.phase, m.sender, len(m.payload), attacks.numbers_in(m)) for m in view.received]
    return told + [each._replace(value=0) if each.name.startswith("blinded") else each for each in view.opened]


def by_pooling(window: Window, record: Record) -> bool:
    sellers, buyers = truth(window)
    buyer = next(iter(buyers))
    return any(
        attacks.recovered(attacks.pooled(record.views[seller], buyer, buyers[buyer], list(buyers)), buyers)
        for seller in sellers
    )


@pytest.mark.slow
def test_all_attacks_succeed_on_the_papers_protocols(community: Community) -> None:
    rng = np.random.default_rng(7)
    markets, wins = 100, np.zeros(3)
    for _ in range(markets):
        buyers = int(rng.integers(10, 16))
        window = answered_window(rng, int(rng.integers(3, 12)), buyers)
        cleared = paper.clear(window, community)
        assert cleared.case == GENERAL
        pricer = next(name for name, view in cleared.record.views.items() if view.values("k"))
        wins += (
            by_divisors(window, cleared.record),
            by_receipts(window, cleared, pricer),
            by_pooling(window, cleared.record),
        )
    assert (wins >= 0.99 * markets).all(), wins


def test_the_divisor_attack_works_on_sellers_in_extreme_markets(community: Community) -> None:
    rng = np.random.default_rng(8)
    window = random_window(rng, 30, tilt=0.6)
    cleared = paper.clear(window, community)
    assert cleared.case == EXTREME
    assert by_divisors(window, cleared.record)


def test_a_lone_buyer_is_safe_from_divisors(community: Community) -> None:
    rng = np.random.default_rng(9)
    capacity, preference = np.array([30_000, 40_000, 0]), np.array([2_400_000, 3_100_000, 0])
    for _ in range(5):
        net = np.array([100, 200, -int(rng.integers(500, 90_000))])
        window = Window(net, preference, capacity, PRICES, coalition=1)
        cleared = paper.clear(window, community)
        assert cleared.case == GENERAL
        assert sum(len(view.values("quotient home_2")) for view in cleared.record.views.values()) == 1
        assert not by_divisors(window, cleared.record)


@pytest.mark.slow
def test_no_attack_succeeds_on_the_hardened_protocols(community: Community) -> None:
    rng = np.random.default_rng(10)
    for _ in range(20):
        window = answered_window(rng, int(rng.integers(3, 12)), int(rng.integers(10, 16)))
        cleared = hardened.clear(window, community)
        assert cleared.case == GENERAL
        _, buyers = truth(window)
        assert not by_divisors(window, cleared.record)
        assert not by_pooling(window, cleared.record)
        assert not any(by_receipts(window, cleared, name) for name in buyers)


@pytest.mark.parametrize("role", ["seller", "buyer"])
def test_hardened_receipts_would_give_everything_away_to_who_saw_them(role: str, community: Community) -> None:
    """What the receipts attack lacks are claims, which the pool alone sees, and sums, which nobody sees."""
    window = answered_window(np.random.default_rng(13), 5, 12)
    cleared = hardened.clear(window, community)
    sellers, buyers = truth(window)
    name, own = next(iter((sellers if role == "seller" else buyers).items()))
    view, pool = cleared.record.views[name], cleared.record.views[hardened.POOL]
    assert not attacks.receipts(view, list(sellers), cleared.price, HOURS, own)
    view.received += pool.received
    assert not attacks.receipts(view, list(sellers), cleared.price, HOURS, own)
    view.opened += [
        Opened("", "k", int(window.preference.sum())),
        Opened("", "S", int(window.capacity.sum())),
    ]
    assert attacks.recovered(attacks.receipts(view, list(sellers), cleared.price, HOURS, own), sellers)


@pytest.mark.slow
def test_hardened_views_follow_from_own_numbers_and_what_is_published() -> None:
    """Other homes' numbers may change: what a home sees in the clear stays the same, the rest is uniform."""
    rng, homes = np.random.default_rng(14), 9
    community, seen = Community(homes, 512, insecure=True, coin=b"fixed"), set()
    signs = np.array([1, -1, 1, 1, -1, -1, -1, 1, -1])
    start = Window(signs * 1000, 850_000 * (signs > 0), 10_000 * (signs > 0), PRICES)
    sums, blinded = [], []
    for me, name in enumerate(community.names):
        views = []
        for _ in range(2):
            window = other_numbers(rng, start, me)
            cleared = hardened.clear(window, community)
            assert cleared.published == (GENERAL, 1009, FULL // 2, FULL)
            views.append(cleared.record.views[name])
            payloads = {m.payload for m in views[-1].received if not attacks.numbers_in(m)}
            assert not payloads & seen  # the same ciphertext never comes back
            seen |= payloads
        assert in_the_clear(views[0]) == in_the_clear(views[1])
        for view in views:
            sums += [each.value for each in view.opened if each.name.startswith("blinded ")]
            blinded += view.values("blinded")
    holder = hardened.Tree(public(start), b"fixed").holder
    modulus = community.members[holder].key(holder).modulus
    assert len(sums) == 2 * 4
    assert len(blinded) > 2 * 17
    for values, top in ((sums, 1 << hardened.BLIND_BITS), (blinded, modulus)):
        assert scipy.stats.kstest([value / top for value in values], "uniform").pvalue > 1e-6


def test_views_under_the_papers_protocols_do_not() -> None:
    rng, homes = np.random.default_rng(15), 9
    community = Community(homes, 512, insecure=True, coin=b"fixed")
    signs = np.array([1, -1, 1, 1, -1, -1, -1, 1, -1])
    start = Window(signs * 1000, 850_000 * (signs > 0), 10_000 * (signs > 0), PRICES)
    for me, name in enumerate(community.names):
        one, other = (paper.clear(other_numbers(rng, start, me), community).record.views[name] for _ in range(2))
        # Sellers are told ratios, buyers are sent their parts of each seller's energy.
        assert in_the_clear(one) != in_the_clear(other), name


def test_hardened_views_hold_no_home_energy_but_the_pools(community: Community) -> None:
    """Nobody is sent or decrypts a number from which another home's energy can be read off."""
    rng = np.random.default_rng(11)
    window = random_window(rng, 20)
    cleared = hardened.clear(window, community)
    sellers, buyers = truth(window)
    totals = {sum(sellers.values()), sum(buyers.values())}
    energies = set(sellers.values()) | set(buyers.values()) | totals
    for name, view in cleared.record.views.items():
        own = {abs(int(window.net[int(name.removeprefix("home_"))]))} if name != hardened.POOL else energies
        seen = {each.value for each in view.opened}
        seen |= {value for message in view.received for value in attacks.numbers_in(message) if value > 1}
        assert not seen & (energies - own), name


def test_masked_contributions_say_nothing_even_to_the_holder_of_the_key(community: Community) -> None:
    """What a leaf of the tree sends decrypts to its number plus its mask; masks of equal homes differ and are wide."""
    rng = np.random.default_rng(12)
    window = random_window(rng, 20)
    cleared = hardened.clear(window, community)
    holder = next(name for name, view in cleared.record.views.items() if view.values("blinded supply"))
    key = community.members[holder].key(holder)
    decrypted = []
    for view in cleared.record.views.values():
        for message in view.received:
            if message.phase == "evaluation.sums":
                (value,) = key.read(message.payload, 1, message.sender, message.phase)
                decrypted.append(key.decrypt(value))
    assert len(decrypted) == len(window.sellers) + len(window.buyers) - 1
    assert len({value >> 400 for value in decrypted}) == len(decrypted)
    # The masks of all add up to nothing: only the sum of everybody's numbers is small.
    assert min(value.bit_length() for value in decrypted) > 480
