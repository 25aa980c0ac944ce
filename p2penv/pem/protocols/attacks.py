"""What parties that follow the protocol can work out from what they saw; run on recorded views.

Each attack takes the record of a window, or some views of it, and gives estimates of homes' energy by name. None uses
anything that the attackers were not sent, did not decrypt or do not know as their own.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from fractions import Fraction

from p2penv.pem.protocols import codec
from p2penv.pem.protocols.channel import Message, View
from p2penv.pem.protocols.market import ENERGY, SCALE, TICKS
from p2penv.pem.protocols.paper import QUOTIENT, RATIO

Estimates = dict[str, int]
_EXACT = Fraction(1, 1 << 20)  # what comes so close to whole numbers is no accident


def divisors(view: View, others: Sequence[str]) -> Estimates:
    """Energy of ``others`` from numbers E·⌊K/|sn|⌋ that one party decrypted: their greatest common divisor is E.

    Tries every list of numbers that the party opened in one phase, in the order of ``others``.
    """
    opened: dict[str, list[int]] = defaultdict(list)
    for each in view.opened:
        opened[each.phase].append(each.value)
    for values in opened.values():
        if len(values) < len(others) or not (common := math.gcd(*values)):
            continue
        quotients = [value // common for value in values[: len(others)]]
        found = [QUOTIENT // quotient for quotient in quotients if quotient]
        # The others' energy must add up to the divisor, or it was not the total.
        if len(found) == len(others) and sum(found) == common:
            return dict(zip(others, found, strict=True))
    return {}


def receipts(view: View, sellers: Sequence[str], price: int, hours: float, own: int) -> Estimates:
    """Energy of sellers, and of all buyers as ``"demand"``, by the buyer that worked out the price.

    It knows Σk and ΣS, and so what sellers that answer the price deliver together, Σ(S − k/p). What each sent it is in
    proportion to what each delivers. Energies are whole numbers, which takes out all rounding.

    Args:
        view: of the buyer.
        sellers: by name.
        price: published [ticks].
        hours: of the window.
        own: demand of the buyer [mWh].
    """
    k, capacity = _opened(view, "k"), _opened(view, "S")
    sent = _from_each(view, sellers)
    if k is None or capacity is None or not sent or not sum(sent):
        return {}
    delivered = (capacity - Fraction(k * TICKS, price)) / SCALE * Fraction(hours) * ENERGY
    shares = [Fraction(amount, sum(sent)) for amount in sent]
    span = len(sellers) + 1
    totals = range(max(1, round(delivered) - span), round(delivered) + span + 1)
    total = min(totals, key=lambda total: max(abs(share * total - round(share * total)) for share in shares))
    if max(abs(share * total - round(share * total)) for share in shares) > _EXACT:
        return {}
    found = {name: round(share * total) for name, share in zip(sellers, shares, strict=True)}
    # What it was sent in all is its own part of the demand, of what is delivered.
    return found | {"demand": round(Fraction(own * RATIO * total, sum(sent)))}


def pooled(seller: View, buyer: str, own: int, buyers: Sequence[str]) -> Estimates:
    """Energy of all buyers by a seller, who is told their shares, and a buyer, who knows its own energy.

    Tries every list of as many numbers that the seller was sent.
    """
    place = list(buyers).index(buyer)
    for message in seller.received:
        values = numbers_in(message)
        if len(values) != len(buyers) or not values[place]:
            continue
        exact = [Fraction(own * value, values[place]) for value in values]
        found = [round(energy) for energy in exact]
        if max(abs(a - b) for a, b in zip(exact, found, strict=True)) < _EXACT:
            return dict(zip(buyers, found, strict=True))
    return {}


def recovered(estimates: Mapping[str, int], truth: Mapping[str, int]) -> bool:
    """Whether every number is found."""
    return all(estimates.get(name) == value for name, value in truth.items())


def numbers_in(message: Message) -> list[int]:
    """Numbers that a message holds in the clear."""
    return codec.peek(message.payload) or []


def _opened(view: View, name: str) -> int | None:
    """The last number opened under a name, blinded or not."""
    found = [each.value for each in view.opened if each.name.split()[-1] == name]
    return found[-1] if found else None


def _from_each(view: View, senders: Sequence[str]) -> list[int]:
    """Numbers of a phase in which each of some parties sent a single one."""
    sent: dict[str, dict[str, int]] = defaultdict(dict)
    for message in view.received:
        values = numbers_in(message)
        if len(values) == 1:
            sent[message.phase][message.sender] = values[0]
    for numbers in sent.values():
        if all(sender in numbers for sender in senders):
            return [numbers[sender] for sender in senders]
    return []
