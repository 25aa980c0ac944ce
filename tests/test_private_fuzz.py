"""Parties and coordinator under arbitrary frames from others: an error that names the sender, never anything else."""

import asyncio
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2penv.pem.protocols import certificates, control, frames
from p2penv.pem.protocols.channel import ProtocolError
from p2penv.pem.protocols.frames import Frame
from p2penv.pem.protocols.tcp import HOST, WELCOME, Node
from p2penv.pem.protocols.votes import Votes

FUZZED, BURST = 10_000, 25
PHASE = "hardened.sum"
# After each of these the party reads no more of a connection.
ENDS = (
    "closed the",
    "lost the",
    "frame must",
    "stream ended",
    "sender must",
    "phase must",
    "sent a frame",
    "fields must",
)


def fuzzed(rng: np.random.Generator, window: int, last: bool) -> bytes:
    """A frame as it should be but for one thing; the last of a connection is of this window, and may be no frame."""
    frame = Frame(window, "home_1", PHASE, rng.bytes(int(rng.integers(0, 200))))
    kind = rng.integers(14, 20) if last else rng.integers(15)
    if kind < 8:
        frame = frame._replace(window=int(rng.integers(1 << 32)) if kind < 4 else window + int(rng.integers(-2, 3)))
    elif kind < 14:
        frame = frame._replace(phase=f"{PHASE}{rng.integers(10)}")
    elif kind == 15:
        frame = frame._replace(sender="home_2")
    data = bytearray(frames.encode(frame))
    if kind == 16:
        for at in rng.integers(0, min(len(data), 40), 2):
            data[at] ^= int(rng.integers(1, 256))
    elif kind == 17:
        del data[int(rng.integers(1, len(data))) :]
    elif kind == 18:
        data[:0] = rng.bytes(int(rng.integers(1, 9)))
    return bytes(data)


async def attack(node: Node, data: bytes, opens) -> list[ProtocolError]:
    """Send bytes to a node over a connection of their own; the errors it finds up to the connection's end."""
    reader, writer = await asyncio.open_connection(HOST, node.port, ssl=opens, server_hostname=node.name)
    assert await reader.readexactly(len(WELCOME)) == WELCOME
    writer.write(data)
    await control.close(writer)
    errors: list[ProtocolError] = []
    while not errors or not errors[-1].reason.startswith(ENDS):
        try:
            await node.receive("home_1", PHASE)
        except ProtocolError as error:
            errors.append(error)
    return errors


@pytest.mark.slow
def test_a_party_that_is_sent_ten_thousand_fuzzed_frames_goes_on(tmp_path):
    authority = certificates.Authority()
    for name in ("home_0", "home_1", "home_2"):
        authority.issue(name, tmp_path / name)
    rng, (_, opens) = np.random.default_rng(0), certificates.contexts(tmp_path / "home_1")

    async def main() -> list[ProtocolError]:
        node, honest = (Node(name, tmp_path / name, 20.0) for name in ("home_0", "home_2"))
        node.port = await node.listen()
        await honest.listen()
        honest.ports = {"home_0": node.port}
        errors, loop = [], asyncio.get_running_loop()
        unexpected: list[object] = []
        loop.set_exception_handler(lambda _, context: unexpected.append(context))
        try:
            for window in range(3, FUZZED // BURST + 3):
                node.begin(window)
                data = b"".join(fuzzed(rng, window, each == BURST - 1) for each in range(BURST))
                errors += await asyncio.wait_for(attack(node, data, opens), 30.0)
                await node.give_up()
            window += 1
            for each in (node, honest):
                each.begin(window)
            await honest.send("home_0", PHASE, b"still here")
            assert await asyncio.wait_for(node.receive("home_2", PHASE), 30.0) == b"still here"
            node.end()
        finally:
            await node.close()
            await honest.close()
        assert unexpected == []
        return errors

    errors = asyncio.run(main())
    assert len(errors) > FUZZED // 3
    assert {error.party for error in errors} == {"home_1"}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
KEYS = ("published", "sent", "traffic", "party", "phase", "reason", "late", "waiting", "stale")
REPORTS = st.dictionaries(st.sampled_from(KEYS), JSON).map(lambda said: json.dumps(said).encode()) | st.binary()
KINDS = st.sampled_from([control.PREPARED, control.FAILED, control.SETTLED, control.ROLE, "anything"])


@given(st.lists(st.tuples(st.sampled_from(["home_0", "home_1"]), KINDS, REPORTS), max_size=6))
def test_a_coordinator_that_is_told_anything_settles_nothing_or_what_all_agree_on(said):
    votes, homes = Votes(1), ["home_0", "home_1"]
    for name, kind, payload in said:
        votes.hear(name, Frame(1, name, kind, payload))
    if not votes.failed and set(votes.prepared) >= set(homes):
        votes.compare(homes)
    result = votes.result(homes) if set(votes.prepared) >= set(homes) else None
    votes.traffic()
    if result is None and votes.failed:
        assert isinstance(votes.blame(), ProtocolError)
    if result is not None:
        assert all(votes.prepared[home]["published"] == list(result) for home in homes)


@pytest.mark.parametrize("sent", ["Infinity", "NaN", "[]", "null"])
def test_reports_with_numbers_that_are_none_are_faults(sent):
    votes = Votes(1)
    votes.hear("home_0", Frame(1, "home_0", control.PREPARED, f'{{"sent": {sent}, "traffic": {{}}}}'.encode()))
    assert votes.blame().party == "home_0"
    assert "cannot be read" in votes.blame().reason


def test_reports_of_another_window_say_nothing():
    votes = Votes(2)
    votes.hear("home_0", Frame(1, "home_0", control.FAILED, b"{}"))
    assert votes == Votes(2)
