"""What is encrypted: whole numbers in known ranges, alone or side by side in slots of 128 bits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tno.mpc.encryption_schemes.utils import FixedPoint

from p2penv.pem.protocols.market import CAPACITY_BITS, NET_BITS, PREFERENCE_BITS
from p2penv.pem.protocols.roster import Own, Public

SLOT = 128  # bits


def whole(party: str, name: str, value: Any, bits: int) -> int:
    """A number to be encrypted, in [0, 2^bits) and without exponent.

    Raises:
        TypeError: no whole number.
        ValueError: out of range, or with an exponent other than 0.
    """
    if isinstance(value, FixedPoint):
        if value.precision != 0:
            raise ValueError(f"{name} of {party} must have exponent 0, got {-value.precision}")
        value = int(value.value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} of {party} must be a whole number, got {value!r}")
    if not 0 <= value < 1 << bits:
        raise ValueError(f"{name} of {party} must be in [0, {(1 << bits) - 1}], got {value}")
    return value


def check(name: str, public: Public, own: Own, answers: bool) -> None:
    """Refuse numbers of a home that are out of range or against its role.

    Raises:
        ValueError: names home, field and value.
    """
    whole(name, "net", abs(own.net), NET_BITS)
    whole(name, "preference", own.preference, PREFERENCE_BITS)
    whole(name, "capacity", own.capacity, CAPACITY_BITS)
    whole(name, "delivery", own.delivery, NET_BITS)
    if own.net == 0 or (own.net > 0) != (name in public.sellers) or (own.net < 0) != (name in public.buyers):
        raise ValueError(f"net of {name} must have the sign of its role, got {own.net}")
    if not answers and own.delivery != max(own.net, 0):
        raise ValueError(f"delivery of {name} must be its net supply unless sellers answer prices, got {own.delivery}")


def pack(values: Sequence[int]) -> int:
    """Numbers in slots, the first lowest."""
    return sum(value << (SLOT * slot) for slot, value in enumerate(values))


def unpack(packed: int, count: int) -> list[int]:
    """The numbers in so many slots."""
    return [(int(packed) >> (SLOT * slot)) & ((1 << SLOT) - 1) for slot in range(count)]


def slots(bits: int) -> int:
    """How many slots a key of so many bits has."""
    return (bits - 1) // SLOT
