"""Keys of parties: how they are made, and the store each party keeps its own in.

Paillier keys are made of the primes of ``cryptography``'s RSA keys, which the operating system's generator seeds. No
package makes primes of the shape that Damgård, Geisler and Krøigaard's scheme (DGK) needs from a secure generator, so
these are made here, from ``secrets``, and tested for primality by gmpy2. Everything else about both schemes is in the
``tno.mpc`` packages.
"""

from __future__ import annotations

import json
import os
import secrets
import stat
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import gmpy2
import numpy as np
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from tno.mpc.encryption_schemes.dgk import DGK
from tno.mpc.encryption_schemes.dgk.dgk import DGKPublicKey, DGKSecretKey
from tno.mpc.encryption_schemes.paillier import Paillier
from tno.mpc.encryption_schemes.paillier.paillier import PaillierPublicKey, PaillierSecretKey

# Shorter keys need ``insecure=True``.
SECURE_BITS = 2048
# Numbers that are compared have at most so many bits; fixes the plaintext space of DGK keys.
LENGTH = 57
_SPAN = 1 << 17


class PublicKeys(NamedTuple):
    """What others need of a party's keys; a DGK key is sent when it is used."""

    modulus: int  # of Paillier
    agreement: bytes  # X25519, 32 bytes


class KeyStore:
    """Keys of one party, made when they are first needed, and kept in its own file if there is a folder.

    Args:
        party: whose keys.
        folder: where ``<party>.json`` is, readable by its owner only; None keeps keys in memory.
        bits: of Paillier and DGK moduli.
        insecure: allow fewer than 2048 bits, for tests and timing only.

    Raises:
        ValueError: too few bits.
        PermissionError: the file can be read by others.
    """

    def __init__(
        self, party: str, folder: str | Path | None = None, bits: int = SECURE_BITS, *, insecure: bool = False
    ) -> None:
        check_bits(party, bits, insecure)
        self.party, self.bits, self.insecure = party, bits, insecure
        self.path = None if folder is None else Path(folder) / f"{party}.json"
        self._kept: dict[str, Any] = self._read()

    def __reduce__(self) -> NoReturn:
        raise TypeError(f"keys of {self.party} must not be copied; another process reads them from their folder")

    @cached_property
    def paillier(self) -> Paillier:
        """Paillier scheme with its secret key."""
        p, q = self._numbers("paillier", lambda: rsa_primes(self.bits))
        n, order = p * q, (p - 1) * (q - 1)
        check_modulus(self.party, n, self.bits, self.insecure)
        return Paillier(PaillierPublicKey(n, n + 1), PaillierSecretKey(order, gmpy2.invert(order, n), n))

    @cached_property
    def dgk(self) -> DGK:
        """DGK scheme with its secret key."""
        g, h, u, n, t, v_p, v_q, p, q = self._numbers("dgk", lambda: dgk_numbers(self.bits))
        check_modulus(self.party, n, self.bits, self.insecure)
        return DGK(DGKPublicKey(g, h, int(u), n, int(t)), DGKSecretKey(v_p, v_q, p, q), full_decryption=False)

    @cached_property
    def agreement(self) -> X25519PrivateKey:
        """Secret that pairwise masks are derived from."""
        made = self._numbers("agreement", lambda: [int.from_bytes(X25519PrivateKey.generate().private_bytes_raw())])
        return X25519PrivateKey.from_private_bytes(int(made[0]).to_bytes(32))

    def public(self) -> PublicKeys:
        """Public keys."""
        return PublicKeys(int(self.paillier.public_key.n), self.agreement.public_key().public_bytes_raw())

    def _numbers(self, kind: str, make: Any) -> list[gmpy2.mpz]:
        if kind not in self._kept:
            self._kept[kind] = [format(int(number), "x") for number in make()]
            self._write()
        return [gmpy2.mpz(number, 16) for number in self._kept[kind]]

    def _read(self) -> dict[str, Any]:
        if self.path is None or not self.path.exists():
            return {}
        if os.name == "posix" and stat.S_IMODE(self.path.stat().st_mode) & 0o077:
            raise PermissionError(f"keys of {self.party} in {self.path} can be read by others; set its mode to 600")
        kept = json.loads(self.path.read_text())
        if kept.pop("party", None) != self.party or kept.pop("bits", None) != self.bits:
            raise ValueError(f"{self.path} does not hold keys of {self.bits} bits of {self.party}")
        return kept

    def _write(self) -> None:
        if self.path is None:
            return
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Never readable by others, not even for a moment; replaced in one step.
        draft = self.path.with_suffix(f".{secrets.token_hex(8)}")
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            json.dump({"party": self.party, "bits": self.bits, **self._kept}, file)
        os.replace(draft, self.path)


def check_bits(party: str, bits: int, insecure: bool = False) -> None:
    """Refuse keys that are too short."""
    least = 256 if insecure else SECURE_BITS
    if isinstance(bits, bool) or not isinstance(bits, int) or bits < least or bits % 2:
        hint = "" if insecure else " (insecure=True allows shorter keys, for tests and timing only)"
        raise ValueError(f"keys of {party} must have an even number of at least {least} bits, got {bits!r}{hint}")


def check_modulus(party: str, modulus: int, bits: int, insecure: bool = False) -> None:
    """Refuse a modulus of another length, or too short a one."""
    check_bits(party, bits, insecure)
    if int(modulus).bit_length() != bits or not modulus % 2:
        raise ValueError(f"key of {party} must be odd and have {bits} bits, got {int(modulus).bit_length()}")


def check_dgk(party: str, key: DGKPublicKey, bits: int, insecure: bool = False) -> None:
    """Refuse a DGK key of another length or plaintext space."""
    check_modulus(party, key.n, bits, insecure)
    units = all(1 < number < key.n and gmpy2.gcd(number, key.n) == 1 for number in (key.g, key.h))
    if key.u != plaintexts() or key.t != order_bits(bits) or not units:
        raise ValueError(
            f"DGK key of {party} must have u = {plaintexts()}, t = {order_bits(bits)} and generators that are units"
        )


def plaintexts() -> int:
    """Plaintext space u of DGK keys, a prime."""
    return int(gmpy2.next_prime(1 << (LENGTH + 2)))


def order_bits(bits: int) -> int:
    """Length t of the secret orders: 160 bits as the scheme has it; insecure keys have no room for them."""
    return 160 if bits >= SECURE_BITS else bits // 8


def rsa_primes(bits: int) -> tuple[int, int]:
    """Two primes whose product has exactly so many bits."""
    if bits >= 1024:
        numbers = rsa.generate_private_key(65537, bits).private_numbers()
        return numbers.p, numbers.q
    p = random_prime(bits // 2)
    while (q := random_prime(bits // 2)) == p:
        pass
    return p, q


def random_prime(bits: int) -> int:
    """A random prime with its two highest bits set."""
    while not gmpy2.is_prime(found := secrets.randbits(bits) | (3 << (bits - 2)) | 1, 40):
        pass
    return found


def dgk_numbers(bits: int) -> tuple[int, ...]:
    """Numbers g, h, u, n, t, v_p, v_q, p, q of a DGK key: u·v_p divides p − 1 and u·v_q divides q − 1."""
    u, t = plaintexts(), order_bits(bits)
    v_p = random_prime(t)
    while (v_q := random_prime(t)) == v_p:
        pass
    p, p_rest = _prime_over(2 * u * v_p, bits // 2)
    q, q_rest = _prime_over(2 * u * v_q, bits // 2)
    if p == q or p_rest == q_rest or (q - 1) % v_p == 0 or (p - 1) % v_q == 0:
        return dgk_numbers(bits)
    n, rest = p * q, 2 * p_rest * q_rest
    factors = (2, u, v_p, p_rest), (2, u, v_q, q_rest)
    g, h = (DGK.get_composite_generator(p, q, *factors) for _ in range(2))
    return int(gmpy2.powmod(g, rest, n)), int(gmpy2.powmod(h, rest * u, n)), u, n, t, v_p, v_q, p, q


def _prime_over(base: int, bits: int) -> tuple[int, int]:
    """A prime p = base·r + 1 of so many bits, the highest two set, with r prime; p and r.

    Searches odd r from a random start; a sieve takes out most that have small factors, or whose p has.
    """
    low, high = -(-(3 << (bits - 2)) // base), ((1 << bits) - 1) // base
    small = _small_primes()
    while True:
        start = (low + secrets.randbelow(high - low - 2 * _SPAN)) | 1
        keep = np.ones(_SPAN, bool)
        for prime in small:
            half = (prime + 1) // 2
            keep[(-start * half) % prime :: prime] = False
            if base % prime:
                keep[((-pow(base, -1, prime) - start) * half) % prime :: prime] = False
        for step in np.flatnonzero(keep):
            r = start + 2 * int(step)
            if gmpy2.is_strong_prp(r, 2) and gmpy2.is_strong_prp(base * r + 1, 2):
                p = base * r + 1
                if p.bit_length() == bits and gmpy2.is_prime(r, 40) and gmpy2.is_prime(p, 40):
                    return p, r


def _small_primes(limit: int = 1 << 14) -> list[int]:
    """Odd primes up to a limit."""
    flags = np.ones(limit, bool)
    flags[:2] = False
    for number in range(2, int(limit**0.5) + 1):
        flags[number * number :: number] = False
    return [int(prime) for prime in np.flatnonzero(flags)[1:]]
