"""A party's part of a community: its keys, the others' public ones, and what it computes in idle time."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Mapping, Sequence
from functools import cached_property, lru_cache
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from tno.mpc.encryption_schemes.dgk import DGK
from tno.mpc.encryption_schemes.dgk.dgk import DGKPublicKey

from p2penv.pem.protocols import codec
from p2penv.pem.protocols.channel import Channel, ProtocolError
from p2penv.pem.protocols.keys import SECURE_BITS, KeyStore, PublicKeys, check_modulus
from p2penv.pem.protocols.market import names
from p2penv.pem.protocols.paillier import Key, ZeroPool

SETUP = "setup.keys"
AGREEMENT_BYTES, MASK_BYTES = 32, 64


class Member:
    """What one party keeps from window to window.

    Args:
        store: its own keys.
        peers: public keys of the others; empty: they are exchanged when the first window starts.
    """

    def __init__(self, store: KeyStore, peers: Mapping[str, PublicKeys | _Peer] | None = None) -> None:
        self.name, self.store = store.party, store
        self.peers: Mapping[str, PublicKeys | _Peer] = {} if peers is None else peers
        self._keys: dict[str, Key] = {}
        self._schemes: dict[DGKPublicKey, DGK] = {}
        self._pools: list[ZeroPool] = []
        self._agreed: dict[str, bytes] = {}
        self._masked: set[bytes] = set()

    def key(self, owner: str) -> Key:
        """The Paillier key of a party, with the secret if it is this one's own.

        Raises:
            ValueError: it is too short.
        """
        found = self._keys.get(owner)
        if found is None:
            if owner == self.name:
                found = Key(owner, owner, self.store.paillier)
            else:
                modulus = self.peers[owner].modulus
                check_modulus(owner, modulus, self.store.bits, self.store.insecure)
                found = Key.of(self.name, owner, modulus)
            self._keys[owner] = found
            self._pools.append(found.pool)
        return found

    def dgk(self, public: DGKPublicKey | None = None) -> DGK:
        """Somebody's DGK key, or this party's own with its secret, with a pool of zeros."""
        key = self.store.dgk.public_key if public is None else public
        if key not in self._schemes:
            scheme = self.store.dgk if public is None else DGK(public, None, full_decryption=False)
            pool = ZeroPool(self.name, scheme._generate_randomness)
            scheme.register_randomness_source(pool, priority=100)
            self._schemes[key] = scheme
            self._pools.append(pool)
        return self._schemes[key]

    def mask(self, others: Sequence[str], nonce: bytes) -> int:
        """This party's mask: the masks of all parties add up to zero.

        Each pair shares a secret number, which one adds and the other takes off.

        Raises:
            ValueError: a nonce for the second time.
        """
        if nonce in self._masked:
            raise ValueError(f"{self.name}: masks of {nonce!r} must not be used twice")
        self._masked.add(nonce)
        total = 0
        for other in others:
            if other != self.name:
                drawn = hashlib.blake2b(nonce, key=self.agreed(other), digest_size=MASK_BYTES).digest()
                number = int.from_bytes(drawn, "big")
                total += number if self.name < other else -number
        return total

    def agreed(self, other: str) -> bytes:
        """The secret of this party and another."""
        found = self._agreed.get(other)
        if found is None:
            found = self._agreed[other] = self._agree(self.peers[other])
        return found

    def _agree(self, peer: PublicKeys | _Peer) -> bytes:
        shared = self.store.agreement.exchange(X25519PublicKey.from_public_bytes(peer.agreement))
        return HKDF(SHA256(), 32, salt=None, info=b"p2penv pairwise masks").derive(shared)

    def idle(self) -> None:
        """Make the zeros that another window like the busiest so far would need."""
        for pool in self._pools:
            pool.idle()

    @property
    def late(self) -> int:
        """Zeros that were made only when they were needed."""
        return sum(pool.late for pool in self._pools)

    async def introduce(self, channel: Channel, homes: Sequence[str]) -> None:
        """Exchange public keys with all other homes, if that has not been done; Protocol 1, line 2.

        Raises:
            ProtocolError: somebody's key does not fit.
        """
        others = [home for home in homes if home != self.name]
        if all(home in self.peers for home in others):
            return
        own = self.store.public()
        width = self.store.bits // 8
        mine = codec.numbers([own.modulus, int.from_bytes(own.agreement, "big")], width)
        for other in others:
            await channel.send(other, SETUP, mine)
        peers = dict(self.peers)
        for other in others:
            modulus, agreement = codec.read_numbers(await channel.receive(other, SETUP), 2, width, other, SETUP)
            try:
                check_modulus(other, modulus, self.store.bits, self.store.insecure)
                peers[other] = PublicKeys(modulus, agreement.to_bytes(AGREEMENT_BYTES, "big"))
                self._agreed[other] = self._agree(peers[other])
            except (ValueError, OverflowError) as error:
                raise ProtocolError(other, SETUP, str(error)) from None
        self.peers = peers


class _Peer:
    """Public keys of a party in this process, made when they are asked for."""

    def __init__(self, store: KeyStore) -> None:
        self._store = store

    @property
    def modulus(self) -> int:
        return int(self._store.paillier.public_key.n)

    @cached_property
    def agreement(self) -> bytes:
        return self._store.agreement.public_key().public_bytes_raw()


class Community:
    """Members of one process, for windows of up to so many homes.

    Args:
        size: number of homes.
        bits: of their keys.
        folder: of key stores, one file a home; None keeps keys in memory.
        insecure: allow keys of fewer than 2048 bits, for tests and timing only.
        coin: what those with a task are drawn by, the same in all windows; None: drawn anew for each window, so that
            zeros are rarely ready.
    """

    def __init__(
        self,
        size: int,
        bits: int = SECURE_BITS,
        *,
        folder: str | Path | None = None,
        insecure: bool = False,
        coin: bytes | None = None,
    ) -> None:
        self.names = names(size)
        stores = {name: KeyStore(name, folder, bits, insecure=insecure) for name in self.names}
        peers = {name: _Peer(store) for name, store in stores.items()}
        self.members = {name: Member(store, peers) for name, store in stores.items()}
        self._coin = coin

    def next(self) -> tuple[bytes, int]:
        """Coin and number of the next window; a number is drawn, so that none comes back with stored keys or a fork."""
        return self._coin or secrets.token_bytes(16), secrets.randbits(63)

    def idle(self) -> None:
        """What members compute between windows."""
        for member in self.members.values():
            member.idle()


@lru_cache(64)  # homes of one process all work out the same
def elect(coin: bytes, task: str, among: tuple[str, ...]) -> tuple[str, ...]:
    """Parties in a random order that all of them work out from the coin; the first has the task."""
    order = sorted(among, key=lambda name: hashlib.sha256(b"|".join((coin, task.encode(), name.encode()))).digest())
    return tuple(order)
