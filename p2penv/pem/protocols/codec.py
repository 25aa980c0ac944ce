"""Payloads: lists of whole numbers of a fixed width, checked when they are read.

A payload is a kind, an exponent, a count and a width, then the numbers, big-endian. Exponents other than 0 are those of
fixed-point encodings; no protocol here has them. Whatever is wrong with a payload is a :class:`ProtocolError`.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

import gmpy2

from p2penv.pem.protocols.channel import ProtocolError

_HEAD = struct.Struct(">BBHH")
NUMBERS, CIPHERTEXTS = 1, 2


def numbers(values: Sequence[int], width: int) -> bytes:
    """Whole numbers ≥ 0, each in ``width`` bytes."""
    return _write(NUMBERS, values, width)


def read_numbers(payload: bytes, count: int, width: int, sender: str, phase: str, most: int | None = None) -> list[int]:
    """As many numbers of that width, none above ``most``.

    Raises:
        ProtocolError: anything else; names sender and phase.
    """
    found = _read(NUMBERS, payload, count, width, sender, phase)
    if most is not None and max(found, default=0) > most:
        raise ProtocolError(sender, phase, f"sent {max(found)}, more than the {most} that is possible")
    return found


def ciphertexts(values: Sequence[int], modulus: int) -> bytes:
    """Ciphertexts modulo ``modulus``."""
    return _write(CIPHERTEXTS, values, _width(modulus))


def read_ciphertexts(payload: bytes, count: int, modulus: int, sender: str, phase: str) -> list[gmpy2.mpz]:
    """As many invertible numbers below the modulus.

    Raises:
        ProtocolError: anything else; names sender and phase.
    """
    found = [gmpy2.mpz(value) for value in _read(CIPHERTEXTS, payload, count, _width(modulus), sender, phase)]
    for value in found:
        if not 0 < value < modulus or gmpy2.gcd(value, modulus) != 1:
            raise ProtocolError(sender, phase, "sent a number that is no ciphertext")
    return found


def _width(modulus: int) -> int:
    return (int(modulus).bit_length() + 7) // 8


def _write(kind: int, values: Sequence[int], width: int) -> bytes:
    head = _HEAD.pack(kind, 0, len(values), width)
    return head + b"".join([int(value).to_bytes(width, "big") for value in values])


def _read(kind: int, payload: bytes, count: int, width: int, sender: str, phase: str) -> list[int]:
    if len(payload) < _HEAD.size:
        raise ProtocolError(sender, phase, f"sent {len(payload)} bytes, fewer than a header has")
    head = _HEAD.unpack_from(payload)
    if head[1] != 0:
        raise ProtocolError(sender, phase, f"sent numbers with exponent {head[1]}; it must be 0")
    if head != (kind, 0, count, width):
        raise ProtocolError(
            sender, phase, f"sent kind, exponent, count, width {head}, expected {(kind, 0, count, width)}"
        )
    if len(payload) != _HEAD.size + count * width:
        raise ProtocolError(sender, phase, f"sent {len(payload)} bytes, expected {_HEAD.size + count * width}")
    return [int.from_bytes(payload[at : at + width], "big") for at in range(_HEAD.size, len(payload), width)]


def peek(payload: bytes) -> list[int] | None:
    """Numbers of a payload of whatever count and width; None if it is none of :func:`numbers`."""
    if len(payload) < _HEAD.size:
        return None
    kind, _, count, width = _HEAD.unpack_from(payload)
    if kind != NUMBERS or len(payload) != _HEAD.size + count * width:
        return None
    return [int.from_bytes(payload[at : at + width], "big") for at in range(_HEAD.size, len(payload), width)]
