"""Encryption under somebody's Paillier key with zeros computed beforehand.

What costs time in an encryption is the random encryption of zero it is multiplied with. A pool holds such zeros; each
is used once, and one that comes back is refused: two ciphertexts with the same zero give away their difference. Pools
are not copied, and a forked process starts with an empty one.
"""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import NoReturn

import gmpy2
from tno.mpc.encryption_schemes.paillier import Paillier, PaillierCiphertext
from tno.mpc.encryption_schemes.paillier.paillier import PaillierPublicKey

from p2penv.pem.protocols import codec, encoding
from p2penv.pem.protocols.encoding import SLOT


class ReusedZeroError(ValueError):
    """An encryption of zero that has been used, or is in the pool already."""


class ZeroPool:
    """Encryptions of zero under one key, a source of randomness to the ``tno.mpc`` schemes.

    Args:
        party: whose pool.
        make: gives a new one.
    """

    def __init__(self, party: str, make: Callable[[], int]) -> None:
        self.party, self._make = party, make
        self._ready: deque[int] = deque()
        self._known: set[bytes] = set()  # fingerprints of all that are or were here
        self.nr_yielded = 0
        self.late = 0  # made only when they were needed
        self._target = self._since = 0
        self._process = os.getpid()

    def __reduce__(self) -> NoReturn:
        raise TypeError(f"zeros of {self.party} must not be copied: each is used once")

    def __len__(self) -> int:
        return len(self._ready)

    def add(self, zeros: Iterable[int]) -> None:
        """Take in zeros that were made elsewhere.

        Raises:
            ReusedZeroError: one has been here before; nothing is taken in.
        """
        zeros = list(zeros)
        new = {hashlib.blake2b(gmpy2.to_binary(gmpy2.mpz(zero)), digest_size=16).digest(): zero for zero in zeros}
        if len(new) < len(zeros) or new.keys() & self._known:
            raise ReusedZeroError(f"{self.party}: an encryption of zero must not be used twice")
        self._known.update(new)
        self._ready.extend(new.values())

    def fill(self, count: int) -> None:
        """Make zeros until so many are ready; work for idle time."""
        self.add(self._make() for _ in range(count - len(self._ready)))

    def idle(self) -> None:
        """Fill up to what the busiest window so far has used."""
        self._target, self._since = max(self._target, self._since), 0
        self.fill(self._target)

    def open(self) -> None:
        """Nothing to open; the schemes call it."""

    def close(self) -> None:
        """Nothing to close; the schemes call it."""

    def get_one(self) -> int:
        """A zero, never to be given again; made on the spot if none is ready."""
        if self._process != os.getpid():  # forked: these zeros are the other process's
            self._ready.clear()
            self._process = os.getpid()
        if not self._ready:
            self.late += 1
            self.fill(1)
        self.nr_yielded += 1
        self._since += 1
        return self._ready.popleft()


class Key:
    """A Paillier key as one party uses it.

    Args:
        party: who uses it.
        owner: whose key.
        scheme: with the secret key for its owner, without for others.

    Raises:
        ValueError: the scheme has an exponent.
    """

    def __init__(self, party: str, owner: str, scheme: Paillier) -> None:
        if scheme.precision != 0:
            raise ValueError(f"key of {owner} must encrypt with exponent 0, got {-scheme.precision}")
        self.party, self.owner, self.scheme = party, owner, scheme
        self.modulus = int(scheme.public_key.n)
        self.square = gmpy2.mpz(scheme.public_key.n) ** 2
        self.pool = ZeroPool(party, scheme._generate_randomness)
        scheme.register_randomness_source(self.pool, priority=100)

    @classmethod
    def of(cls, party: str, owner: str, modulus: int) -> Key:
        """Somebody's public key."""
        n = gmpy2.mpz(modulus)
        return cls(party, owner, Paillier(PaillierPublicKey(n, n + 1), None))

    def encrypt(self, value: int) -> PaillierCiphertext:
        """A number modulo the key's, not yet randomized: it is before it is written."""
        return self.scheme.unsafe_encrypt(gmpy2.mpz(value) % self.modulus, apply_encoding=False)

    def write(self, *values: PaillierCiphertext) -> bytes:
        """A payload of ciphertexts, each randomized."""
        for value in values:
            value.randomize()
        return self.write_as_is(*values)

    def write_as_is(self, *values: PaillierCiphertext) -> bytes:
        """A payload of ciphertexts that need no randomness of their own."""
        return codec.ciphertexts([value.get_value() for value in values], self.square)

    def read(self, payload: bytes, count: int, sender: str, phase: str) -> list[PaillierCiphertext]:
        """Ciphertexts of a payload.

        Raises:
            ProtocolError: not so many ciphertexts of this key.
        """
        found = codec.read_ciphertexts(payload, count, self.square, sender, phase)
        return [PaillierCiphertext(value, self.scheme) for value in found]

    def decrypt(self, value: PaillierCiphertext) -> int:
        """The number, with the secret key, in [0, modulus)."""
        return int(self.scheme.decrypt(value, apply_encoding=False))

    def decrypt_all(self, values: Sequence[PaillierCiphertext]) -> list[int]:
        """Numbers below 2¹²⁸: a decryption costs much more than moving a number to a slot beside others."""
        per, found = encoding.slots(self.modulus.bit_length()), []
        for start in range(0, len(values), per):
            group = values[start : start + per]
            packed = group[-1]
            for value in reversed(group[:-1]):
                packed = packed * (1 << SLOT) + value
            found += encoding.unpack(self.decrypt(packed), len(group))
        return found
