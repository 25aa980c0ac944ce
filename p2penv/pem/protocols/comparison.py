"""Comparison of two encrypted numbers between who holds them and who holds the key.

The steps are those of ``tno.mpc.protocols.secure_comparison`` (Veugen's correction of Damgård, Geisler and Krøigaard's
protocol), which in that package also sends Python objects and starts processes; here they go over a channel as bytes.
"""

from __future__ import annotations

from tno.mpc.encryption_schemes.dgk import DGK, DGKCiphertext
from tno.mpc.encryption_schemes.dgk.dgk import DGKPublicKey
from tno.mpc.encryption_schemes.paillier import PaillierCiphertext
from tno.mpc.protocols.secure_comparison import Initiator, KeyHolder

from p2penv.pem.protocols import codec
from p2penv.pem.protocols.channel import Channel, Party, ProtocolError
from p2penv.pem.protocols.keys import LENGTH, check_dgk
from p2penv.pem.protocols.member import Member

KEY = "comparison.key"


class Holder:
    """The side that holds the secret keys; learns no more than the bits that are opened."""

    def __init__(self, party: Party, member: Member, other: str) -> None:
        self.party, self.other = party, other
        self.paillier, self.dgk = member.key(member.name), member.dgk()
        self.width = member.store.bits // 8

    async def start(self, channel: Channel) -> None:
        """Send the DGK key to the other side."""
        key = self.dgk.public_key
        await channel.send(self.other, KEY, codec.numbers([key.g, key.h, key.u, key.n, key.t], self.width))

    async def compare(self, channel: Channel, phase: str, bits: int) -> int:
        """Help to find out whether x ≤ y; returns the bit."""
        key, other = self.paillier, self.other
        (sent,) = key.read(await channel.receive(other, phase), 1, other, phase)
        z, beta = KeyHolder.step_2(sent, bits, key.scheme)
        self.party.open(phase, "blinded", z)
        d = KeyHolder.step_4a(z, self.dgk, key.scheme, bits)
        betas = KeyHolder.step_4b(beta, bits, self.dgk)
        await channel.send(other, phase, _write(self.dgk, [d, *betas]))
        c = _read(self.dgk, await channel.receive(other, phase), bits + 1, other, phase)
        delta = KeyHolder.step_4j(c, self.dgk)
        await channel.send(other, phase, key.write(*KeyHolder.step_5(z, bits, delta, key.scheme)))
        (result,) = key.read(await channel.receive(other, phase), 1, other, phase)
        bit = key.decrypt(result)
        if bit not in (0, 1):
            raise ProtocolError(other, phase, "sent a comparison that is neither true nor false")
        await channel.send(other, phase, codec.numbers([bit], 1))
        return self.party.open(phase, "bit", bit)


class Initiating:
    """The side that holds the ciphertexts; learns the bits that are opened."""

    def __init__(self, party: Party, member: Member, other: str) -> None:
        self.party, self.member, self.other = party, member, other
        self.paillier = member.key(other)
        self.dgk: DGK

    async def start(self, channel: Channel) -> None:
        """Get the DGK key of the other side.

        Raises:
            ProtocolError: it does not fit.
        """
        width = self.member.store.bits // 8
        g, h, u, n, t = codec.read_numbers(await channel.receive(self.other, KEY), 5, width, self.other, KEY)
        try:
            check_dgk(
                self.other, key := DGKPublicKey(g, h, u, n, t), self.member.store.bits, self.member.store.insecure
            )
        except ValueError as error:
            raise ProtocolError(self.other, KEY, str(error)) from None
        self.dgk = self.member.dgk(key)

    async def compare(
        self, channel: Channel, phase: str, x: PaillierCiphertext, y: PaillierCiphertext, bits: int
    ) -> int:
        """Whether x ≤ y, both in [0, 2^bits)."""
        if bits > LENGTH:
            raise ValueError(f"numbers of more than {LENGTH} bits cannot be compared, got {bits}")
        key, dgk, other = self.paillier, self.dgk, self.other
        z, r = Initiator.step_1(x, y, bits, key.scheme)
        await channel.send(other, phase, key.write(z))
        alpha = Initiator.step_3(r, bits)
        d, *betas = _read(dgk, await channel.receive(other, phase), bits + 1, other, phase)
        d = Initiator.step_4c(d, r, dgk, key.scheme)
        xor = Initiator.step_4d(alpha, betas)
        w, alpha_tilde = Initiator.step_4e(r, alpha, xor, d, key.scheme)
        w = Initiator.step_4f(w)
        s, delta = Initiator.step_4g()
        c = Initiator.step_4h(s, alpha, alpha_tilde, d, betas, w, delta, dgk)
        await channel.send(other, phase, _write(dgk, Initiator.step_4i(c, dgk)))
        zeta_1, zeta_2, delta_b = key.read(await channel.receive(other, phase), 3, other, phase)
        result = Initiator.step_7(zeta_1, zeta_2, r, bits, Initiator.step_6(delta, delta_b), key.scheme)
        await channel.send(other, phase, key.write(result))
        (bit,) = codec.read_numbers(await channel.receive(other, phase), 1, 1, other, phase, 1)
        return self.party.open(phase, "bit", bit)


def _write(dgk: DGK, values: list[DGKCiphertext]) -> bytes:
    for value in values:
        value.randomize()
    return codec.ciphertexts([value.get_value() for value in values], dgk.public_key.n)


def _read(dgk: DGK, payload: bytes, count: int, sender: str, phase: str) -> list[DGKCiphertext]:
    found = codec.read_ciphertexts(payload, count, dgk.public_key.n, sender, phase)
    return [DGKCiphertext(value, dgk) for value in found]
