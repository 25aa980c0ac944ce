"""Keys, zeros, masks, encodings and payloads of private clearing, and what is refused."""

from __future__ import annotations

import contextlib
import copy
import json
import multiprocessing
import os
import pickle
import random
import stat
import time
from pathlib import Path

import gmpy2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from private_market import PRICES

pytest.importorskip("tno.mpc.protocols.secure_comparison", reason="needs the private extra")

from tno.mpc.encryption_schemes.paillier import Paillier
from tno.mpc.encryption_schemes.utils import FixedPoint

from p2penv.pem.protocols import codec, encoding, hardened, paper
from p2penv.pem.protocols.channel import LocalNetwork, Party, ProtocolError, play
from p2penv.pem.protocols.clearing import clear
from p2penv.pem.protocols.comparison import Holder, Initiating
from p2penv.pem.protocols.keys import LENGTH, KeyStore, check_dgk, dgk_numbers, rsa_primes
from p2penv.pem.protocols.market import Window
from p2penv.pem.protocols.member import Community, Member, elect
from p2penv.pem.protocols.paillier import Key, ReusedZeroError, ZeroPool
from p2penv.pem.protocols.roster import Own, Public


@pytest.fixture(scope="module")
def community() -> Community:
    return Community(8, 512, insecure=True)


def own_key(community: Community, name: str = "home_0") -> Key:
    return community.members[name].key(name)


# Keys


@pytest.mark.parametrize("bits", [1024, 2046, 2047, 512, True, 2048.0])
def test_short_keys_need_a_flag(bits: int) -> None:
    with pytest.raises(
        ValueError, match=r"keys of home_0 must have an even number of at least 2048 bits.*insecure=True"
    ):
        KeyStore("home_0", bits=bits)


def test_keys_of_256_bits_are_refused_even_so() -> None:
    with pytest.raises(ValueError, match="at least 256 bits, got 128"):
        KeyStore("home_0", bits=128, insecure=True)


@pytest.mark.parametrize("bits", [512, 1024])
def test_paillier_primes(bits: int) -> None:
    p, q = rsa_primes(bits)
    assert p != q
    assert gmpy2.is_prime(p)
    assert gmpy2.is_prime(q)
    assert (p * q).bit_length() == bits


def test_dgk_numbers_are_what_the_scheme_asks_for() -> None:
    g, h, u, n, t, v_p, v_q, p, q = dgk_numbers(512)
    assert n == p * q
    assert n.bit_length() == 512
    assert u > 1 << (LENGTH + 2)
    assert all(gmpy2.is_prime(prime) for prime in (u, v_p, v_q, p, q))
    assert v_p.bit_length() == v_q.bit_length() == t
    for prime, order in ((p, v_p), (q, v_q)):
        assert (prime - 1) % (u * order) == 0
        # h has order v_p·v_q, g has order u·v_p·v_q.
        assert pow(h, order, prime) == 1 != h % prime
        assert pow(g, u * order, prime) == 1
        assert pow(g, order, prime) != 1
    assert (p - 1) % v_q
    assert (q - 1) % v_p


def _numbers(_: int) -> tuple[int, int, int]:
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002  # on purpose: keys must not depend on it
    store = KeyStore("home_0", bits=512, insecure=True)
    return int(store.public().modulus), rsa_primes(1024)[0], int(store.dgk.public_key.n)


@pytest.mark.slow
def test_keys_made_in_spawned_workers_differ() -> None:
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        made = pool.map(_numbers, range(6), chunksize=1)
    assert all(len(set(column)) == 6 for column in zip(*made, strict=True))


def test_keys_do_not_come_from_seeded_generators() -> None:
    assert all(one != other for one, other in zip(_numbers(0), _numbers(0), strict=True))


def test_nothing_secret_comes_from_the_generators_of_simulations() -> None:
    """Keys, zeros, nonces, masks, comparisons: Python's and NumPy's global generators stay where they are."""
    before = random.getstate(), np.random.get_state()  # noqa: NPY002
    community = Community(6, 512, insecure=True)
    net = np.array([50, 60, 70, -80, -90, -100])
    window = Window(net, 800_000 * (net > 0), 10_000 * (net > 0), PRICES)
    for backend in ("paper", "hardened"):
        assert clear(window, backend, community=community).record.traffic  # type: ignore[arg-type]
    rsa_primes(2048)
    after = random.getstate(), np.random.get_state()  # noqa: NPY002
    assert after[0] == before[0]
    np.testing.assert_equal(after[1], before[1])


def test_a_store_keeps_keys_for_its_owner_only(tmp_path: Path) -> None:
    store = KeyStore("home_0", tmp_path / "keys", 512, insecure=True)
    public, dgk = store.public(), store.dgk.public_key
    path = tmp_path / "keys" / "home_0.json"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    again = KeyStore("home_0", tmp_path / "keys", 512, insecure=True)
    assert again.public() == public
    assert again.dgk.public_key == dgk
    assert [file.name for file in path.parent.iterdir()] == ["home_0.json"]


def test_keys_are_neither_shown_nor_copied(tmp_path: Path) -> None:
    community = Community(3, 512, insecure=True, folder=tmp_path)
    member = community.members["home_0"]
    store, secrets = member.store, []
    for scheme in (store.paillier, store.dgk):
        assert scheme.secret_key is not None
        secrets += [int(number) for number in vars(scheme.secret_key).values()]
    secrets.append(int.from_bytes(store.agreement.private_bytes_raw(), "big"))
    stored = json.loads((tmp_path / "home_0.json").read_text())
    kept = {int(number, 16) for numbers in stored.values() if isinstance(numbers, list) for number in numbers}
    shown = " ".join(str(each) + repr(each) for each in (store, member, community, member.key("home_0"), member.dgk()))
    for number in [*secrets, *kept]:
        # Small ones may be part of anything; g, h and n are public.
        assert number < 1 << 60 or (str(number) not in shown and f"{number:x}" not in shown)
    for copied in (copy.deepcopy, pickle.dumps):
        for owner in (store, member, community):
            with pytest.raises(TypeError, match="must not be copied"):
                copied(owner)


@pytest.mark.skipif(os.name != "posix", reason="modes of files")
def test_a_store_that_others_can_read_is_refused(tmp_path: Path) -> None:
    store = KeyStore("home_0", tmp_path, 512, insecure=True)
    store.public()
    (tmp_path / "home_0.json").chmod(0o640)
    with pytest.raises(PermissionError, match=r"keys of home_0 .* can be read by others"):
        KeyStore("home_0", tmp_path, 512, insecure=True)


def test_a_store_of_somebody_else_or_of_other_keys_is_refused(tmp_path: Path) -> None:
    KeyStore("home_0", tmp_path, 512, insecure=True).public()
    with pytest.raises(ValueError, match="does not hold keys of 1024 bits of home_0"):
        KeyStore("home_0", tmp_path, 1024, insecure=True)
    kept = json.loads((tmp_path / "home_0.json").read_text())
    kept["paillier"] = [format(number, "x") for number in rsa_primes(768)]
    (tmp_path / "home_0.json").write_text(json.dumps(kept))
    with pytest.raises(ValueError, match="key of home_0 must be odd and have 512 bits, got 768"):
        KeyStore("home_0", tmp_path, 512, insecure=True).public()


def test_a_short_key_of_another_is_refused_before_anything_is_encrypted(community: Community) -> None:
    member = Member(KeyStore("home_9", bits=1024, insecure=True), community.members["home_1"].peers)
    with pytest.raises(ValueError, match="key of home_1 must be odd and have 1024 bits, got 512"):
        member.key("home_1")


def test_a_dgk_key_of_another_shape_is_refused(community: Community) -> None:
    key = community.members["home_0"].store.dgk.public_key
    check_dgk("home_0", key, 512, insecure=True)
    for wrong in ({"u": 101}, {"t": 8}, {"g": 1}, {"n": key.n >> 1}):
        with pytest.raises(ValueError, match="home_0"):
            check_dgk("home_0", type(key)(**{**vars(key), **wrong}), 512, insecure=True)


# Zeros


def test_no_zero_is_used_twice(community: Community) -> None:
    key = Key.of("home_1", "home_0", own_key(community).modulus)
    key.pool.fill(3)
    kept = list(key.pool._ready)
    assert len({key.pool.get_one() for _ in range(3)}) == 3
    with pytest.raises(ReusedZeroError, match="home_1: an encryption of zero must not be used twice"):
        key.pool.add(kept[:1])
    with pytest.raises(ReusedZeroError):
        key.pool.add([gmpy2.mpz(5), gmpy2.mpz(5)])
    assert len(key.pool) == 0


def test_zeros_are_not_copied(community: Community) -> None:
    pool = own_key(community).pool
    for copied in (copy.deepcopy, copy.copy, pickle.dumps):
        with pytest.raises(TypeError, match="zeros of home_0 must not be copied"):
            copied(pool)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_process_does_not_use_the_zeros_of_its_parent(monkeypatch: pytest.MonkeyPatch) -> None:
    made = iter(range(100, 200))
    pool = ZeroPool("home_0", lambda: next(made))
    pool.fill(3)
    monkeypatch.setattr(os, "getpid", lambda: -1)  # as a forked process would find
    assert pool.get_one() == 103
    assert pool.late == 1
    assert not len(pool)


def test_zeros_are_taken_in_quickly_however_many_there_were() -> None:
    pool = ZeroPool("home_0", iter(range(1, 10**6)).__next__)
    times = []
    for _ in range(2):
        start = time.process_time()
        for _ in range(2000):
            pool.get_one()
        times.append(time.process_time() - start)
        pool.fill(100_000)
        pool._ready.clear()
    assert times[1] < 10 * times[0] + 0.1


def test_zeros_that_are_missing_are_made_and_counted() -> None:
    made = iter(range(100, 200))
    pool = ZeroPool("home_0", lambda: next(made))
    pool.fill(2)
    assert [pool.get_one() for _ in range(5)] == [100, 101, 102, 103, 104]
    assert pool.late == 3
    pool.idle()  # as many as were used since the last time
    assert len(pool) == 5
    pool.get_one()
    pool.idle()
    assert len(pool) == 5


def test_encryption_uses_the_pool(community: Community) -> None:
    secret, key = own_key(community), Key.of("home_1", "home_0", own_key(community).modulus)
    key.pool.fill(1)
    (zero,) = key.pool._ready
    (sent,) = secret.read(key.write(key.encrypt(7)), 1, "home_1", "test")
    assert sent.get_value() == (1 + 7 * key.modulus) * zero % key.square
    assert secret.decrypt(sent) == 7
    assert len(key.pool) == key.pool.late == 0


def test_decryption_in_slots(community: Community) -> None:
    key, rng = own_key(community), random.Random(1)
    for count in (1, 3, 4, 7):
        values = [rng.randrange(1 << 128) for _ in range(count)]
        sent = key.read(key.write(*map(key.encrypt, values)), count, "home_0", "test")
        assert key.decrypt_all(sent) == values
    assert encoding.slots(2048) == 15


# Masks


def test_masks_add_up_to_nothing_and_are_used_once(community: Community) -> None:
    homes = list(community.names)
    masks = [community.members[name].mask(homes, b"window 1") for name in homes]
    assert sum(masks) == 0
    assert min(abs(mask).bit_length() for mask in masks) > 500
    assert masks != [community.members[name].mask(homes, b"window 2") for name in homes]
    with pytest.raises(ValueError, match="masks of b'window 1' must not be used twice"):
        community.members["home_0"].mask(homes, b"window 1")


def test_stored_keys_never_make_the_same_masks_again(tmp_path: Path) -> None:
    """A fixed coin and stored keys, as after a restart: the numbers of windows are new."""
    masks = []
    for _ in range(2):
        again = Community(3, 512, insecure=True, coin=b"fixed", folder=tmp_path)
        coin, number = again.next()
        masks.append(again.members["home_0"].mask(again.names, coin + number.to_bytes(8, "big")))
    assert masks[0] != masks[1]


class _Introduces(Party):
    """Sends some bytes as its keys."""

    def __init__(self, name: str, payload: bytes) -> None:
        super().__init__(name)
        self.payload = payload

    async def run(self, channel: object) -> None:
        await channel.send("home_0", "setup.keys", self.payload)  # type: ignore[attr-defined]
        await channel.receive("home_0", "setup.keys")  # type: ignore[attr-defined]


class _Meets(Party):
    def __init__(self, member: Member) -> None:
        super().__init__(member.name)
        self.member = member

    async def run(self, channel: object) -> bytes:
        await self.member.introduce(channel, ["home_0", "home_1"])  # type: ignore[arg-type]
        return self.member.agreed("home_1")


@pytest.mark.parametrize(
    ("modulus", "agreement", "message"),
    [
        (0, 5, "must be odd and have 512 bits, got 0"),
        ((1 << 512) - 2, 5, "must be odd"),
        ((1 << 500) - 1, 5, "got 500"),
        ((1 << 512) - 1, 1 << 300, "int too big"),
        ((1 << 512) - 1, 0, "home_1 in phase 'setup.keys'"),  # of low order: the secret would be zero
    ],
)
def test_public_keys_that_cannot_be_stop_the_introduction(modulus: int, agreement: int, message: str) -> None:
    member = Member(KeyStore("home_0", bits=512, insecure=True))
    sent = codec.numbers([modulus, agreement], 64)
    with pytest.raises(ProtocolError, match=message):
        play([_Meets(member), _Introduces("home_1", sent)], timeout=2.0)
    assert not member.peers


def test_elections_follow_the_coin_alone() -> None:
    homes = tuple(f"home_{k}" for k in range(40))
    assert elect(b"a", "price", homes) == elect(b"a", "price", homes[::-1])
    firsts = {elect(bytes([coin]), "price", homes)[0] for coin in range(200)}
    assert len(firsts) > 35


# What is encrypted


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        (1 << 24, ValueError, r"net of home_0 must be in \[0, 16777215\], got 16777216"),
        (-1, ValueError, "net of home_0 must be in"),
        (1.0, TypeError, "net of home_0 must be a whole number, got 1.0"),
        (True, TypeError, "whole number"),
        (FixedPoint(15, 1), ValueError, "net of home_0 must have exponent 0, got -1"),
    ],
)
def test_numbers_are_checked(value: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        encoding.whole("home_0", "net", value, 24)
    assert encoding.whole("home_0", "net", FixedPoint(15, 0), 24) == 15


def test_a_scheme_with_an_exponent_is_refused(community: Community) -> None:
    scheme = community.members["home_0"].store.paillier
    with pytest.raises(ValueError, match="key of home_0 must encrypt with exponent 0, got -2"):
        Key("home_1", "home_0", Paillier(scheme.public_key, None, precision=2))


SELLERS, BUYERS = ("home_0", "home_1", "home_2"), ("home_3", "home_4", "home_5")
PUBLIC = Public(SELLERS, BUYERS, PRICES)


@pytest.mark.parametrize(
    ("own", "message"),
    [
        (Own(1 << 24, 1, 1, 1 << 24), "net of home_0 must be in"),
        (Own(5, 1 << 32, 1, 5), "preference of home_0"),
        (Own(5, 1, 1 << 24, 5), "capacity of home_0"),
        (Own(5, 1, 1, -5), "delivery of home_0"),
        (Own(-5, 1, 1, 0), "net of home_0 must have the sign of its role, got -5"),
        (Own(0, 1, 1, 0), "net of home_0 must have the sign of its role, got 0"),
        (Own(5, 1, 1, 4), "delivery of home_0 must be its net supply unless sellers answer prices, got 4"),
    ],
)
@pytest.mark.parametrize("module", [paper, hardened])
def test_homes_are_refused_before_anything_is_encrypted(module: object, own: Own, message: str) -> None:
    fresh = Community(1, 512, insecure=True)
    with pytest.raises(ValueError, match=message):
        module.party("home_0", PUBLIC, own, member=fresh.members["home_0"], coin=b"")  # type: ignore[attr-defined]
    assert not fresh.members["home_0"].store._kept  # not even a key


def test_small_coalitions_are_refused_by_hardened_parties(community: Community) -> None:
    few = Public(SELLERS[:2], BUYERS, PRICES)
    with pytest.raises(ValueError, match="needs 3 sellers and 3 buyers, got 2 and 3"):
        hardened.party("home_0", few, Own(5, 1, 1, 5), member=community.members["home_0"], coin=b"")


# Comparison


class _Compare(Party):
    def __init__(self, name: str, member: Member, other: str, pairs: list[tuple[int, int]], bits: int) -> None:
        super().__init__(name)
        self.member, self.other, self.pairs, self.bits = member, other, pairs, bits

    async def run(self, channel: object) -> list[int]:
        found = []
        if self.name == "home_0":
            holder = Holder(self, self.member, self.other)
            await holder.start(channel)  # type: ignore[arg-type]
            return [await holder.compare(channel, "c", self.bits) for _ in self.pairs]  # type: ignore[arg-type]
        starter = Initiating(self, self.member, self.other)
        await starter.start(channel)  # type: ignore[arg-type]
        key = self.member.key(self.other)
        for x, y in self.pairs:
            found.append(await starter.compare(channel, "c", key.encrypt(x), key.encrypt(y), self.bits))  # type: ignore[arg-type]
        return found


@pytest.mark.parametrize("bits", [1, 8, LENGTH])
def test_comparisons(bits: int, community: Community) -> None:
    rng, top = random.Random(bits), (1 << bits) - 1
    pairs = [(0, 0), (0, top), (top, 0), (top, top), (top - 1, top)]
    pairs += [(x, max(0, min(top, x + rng.randint(-2, 2)))) for x in (rng.randint(0, top) for _ in range(20))]
    parties = [
        _Compare(name, community.members[name], other, pairs, bits)
        for name, other in (("home_0", "home_1"), ("home_1", "home_0"))
    ]
    outcomes, record = play(parties)
    assert outcomes["home_0"] == outcomes["home_1"] == [int(x <= y) for x, y in pairs]
    # What the holder decrypts on the way is uniform below its modulus.
    blinded = record.views["home_0"].values("blinded")
    assert len(set(blinded)) == len(pairs)
    assert max(blinded) > own_key(community).modulus >> 4


def test_numbers_too_long_to_compare_are_refused(community: Community) -> None:
    starter = Initiating(
        _Compare("home_1", community.members["home_1"], "home_0", [], 1), community.members["home_1"], "home_0"
    )
    network = LocalNetwork(["home_0", "home_1"])
    with pytest.raises(ValueError, match="numbers of more than 57 bits cannot be compared, got 58"):
        starter.compare(network.channel("home_1"), "c", None, None, LENGTH + 1).send(None)  # type: ignore[arg-type]


# Payloads


def test_payloads_keep_numbers() -> None:
    values = [0, 1, 255, 2**96]
    assert codec.read_numbers(codec.numbers(values, 13), 4, 13, "ann", "a") == values
    assert codec.peek(codec.numbers(values, 13)) == values


@settings(max_examples=1000, deadline=None)
@given(st.binary(max_size=80))
def test_no_payload_does_more_than_raise_a_protocol_error(payload: bytes) -> None:
    for read in (
        lambda: codec.read_numbers(payload, 2, 3, "ann", "a", 1 << 20),
        lambda: codec.read_ciphertexts(payload, 2, (1 << 61) - 1, "ann", "a"),
    ):
        with contextlib.suppress(ProtocolError):
            assert len(read()) == 2
    codec.peek(payload)


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 200), st.integers(0, 255))
def test_every_changed_byte_of_a_header_is_noticed(at: int, byte: int) -> None:
    good = codec.numbers([1, 2], 3)
    at %= 6
    bad = good[:at] + bytes([byte]) + good[at + 1 :]
    if bad != good:
        with pytest.raises(ProtocolError, match="ann in phase 'a'"):
            codec.read_numbers(bad, 2, 3, "ann", "a")


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        (b"\x01", "sent 1 bytes, fewer than a header has"),
        (b"\x02\x03\x00\x01\x00\x08" + bytes(8), "exponent 3; it must be 0"),
        (b"\x02\x00\x00\x01\x00\x08" + bytes(7), "sent 13 bytes, expected 14"),
        (b"\x02\x00\x00\x01\x00\x08" + bytes(8), "no ciphertext"),
        (b"\x02\x00\x00\x01\x00\x08" + b"\xff" * 8, "no ciphertext"),
        (b"\x02\x00\x00\x01\x00\x08" + (15).to_bytes(8, "big"), "no ciphertext"),
        (b"\x01\x00\x00\x01\x00\x08" + bytes(8), "kind, exponent, count, width"),
    ],
)
def test_bad_ciphertexts_are_refused(payload: bytes, message: str) -> None:
    with pytest.raises(ProtocolError, match=message):
        codec.read_ciphertexts(payload, 1, 3**2 * (1 << 60) + 3 * 5, "ann", "a")


# Parties that are sent nonsense


class _Mutant(Party):
    """A party of which one message, by count, is changed on its way."""

    def __init__(self, inner: Party, rng: random.Random, at: int) -> None:
        super().__init__(inner.name)
        self.inner, self.rng, self.left = inner, rng, at
        self.name = inner.name

    async def run(self, channel: object) -> object:
        self.channel = channel
        return await self.inner.run(self)  # type: ignore[arg-type]

    async def send(self, to: str, phase: str, payload: bytes) -> None:
        self.left -= 1
        if self.left == 0:
            payload = self.changed(payload)
        await self.channel.send(to, phase, payload)  # type: ignore[attr-defined]

    async def receive(self, sender: str, phase: str) -> bytes:
        return await self.channel.receive(sender, phase)  # type: ignore[attr-defined, no-any-return]

    def changed(self, payload: bytes) -> bytes:
        at = self.rng.randrange(len(payload))
        return self.rng.choice(
            [
                payload[:at],
                payload + self.rng.randbytes(3),
                payload[:at] + self.rng.randbytes(1) + payload[at + 1 :],
                payload[:6] + self.rng.randbytes(len(payload) - 6),
                payload[:6] + bytes(len(payload) - 6),
                self.rng.randbytes(len(payload)),
            ]
        )


@pytest.mark.parametrize(("module", "runs"), [(paper, 100), (hardened, 20)])
def test_a_changed_message_stops_the_window_or_changes_numbers_only(module: object, runs: int) -> None:
    rng, community = random.Random(5), Community(6, 512, insecure=True, coin=b"c")
    net = dict(zip(SELLERS + BUYERS, (50, 60, 70, -80, -90, -100), strict=True))
    stopped = 0
    for number in range(runs):
        parties = []
        for name in (*SELLERS, *BUYERS, *module.MEMBERS):  # type: ignore[attr-defined]
            own = Own(net[name], 800_000, 10_000, max(net[name], 0)) if name in net else None
            more = {"number": number} if module is hardened else {}
            member = community.members.get(name)
            parties.append(module.party(name, PUBLIC, own, member=member, coin=b"c", **more))  # type: ignore[attr-defined]
        place = rng.randrange(len(parties))
        parties[place] = _Mutant(parties[place], rng, rng.randint(1, 12))
        try:
            play(parties, timeout=1.0)
        except ProtocolError:
            stopped += 1
    assert runs // 4 < stopped <= runs
