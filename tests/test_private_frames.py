"""Frames and certificates of private clearing over TCP: what is not right ends in one error, never in anything else."""

import asyncio
import contextlib
import ssl
import stat

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2penv.pem.protocols import certificates, control, frames
from p2penv.pem.protocols.channel import LIMIT
from p2penv.pem.protocols.frames import FIELDS, HEAD, LONGEST, MAGIC, Frame, FrameError

FUZZED = 10_000
NAMES = st.text("abcdefghijklmnopqrstuvwxyz0123456789_.", min_size=1, max_size=64)
FRAMES = st.builds(Frame, st.integers(0, 2**32 - 1), NAMES, NAMES, st.binary(max_size=2000))


async def read_all(data: bytes) -> list[Frame]:
    """Frames of a stream up to its end or the first error."""
    reader = asyncio.StreamReader()
    reader.feed_data(data)
    reader.feed_eof()
    found = []
    while (frame := await frames.read(reader)) is not None:
        found.append(frame)
    return found


@given(st.lists(FRAMES, max_size=4))
def test_what_is_written_is_read(sent):
    assert asyncio.run(read_all(b"".join(map(frames.encode, sent)))) == sent


@given(st.binary(max_size=300))
def test_any_bytes_end_in_frames_or_an_error(data):
    for start in (b"", HEAD.pack(MAGIC, len(data))):
        try:
            found = asyncio.run(read_all(start + data))
        except FrameError:
            continue
        assert b"".join(map(frames.encode, found)) == start + data  # there is one way to write a frame


def test_ten_thousand_fuzzed_frames_neither_crash_nor_hang():
    rng = np.random.default_rng(0)

    async def main() -> tuple[int, int]:
        good = bad = 0
        for _ in range(FUZZED):
            payload = rng.bytes(int(rng.integers(0, 200)))
            data = bytearray(frames.encode(Frame(int(rng.integers(1 << 32)), "home_1", "hardened.sum", payload)))
            kind = rng.integers(4)
            if kind == 0:  # flip bytes, most in head, fields and names
                for at in rng.integers(0, min(len(data), 40), int(rng.integers(1, 4))):
                    data[at] ^= int(rng.integers(1, 256))
            elif kind == 1:
                del data[int(rng.integers(1, len(data))) :]
            elif kind == 2:
                at = int(rng.integers(0, len(data)))
                data[at:at] = rng.bytes(int(rng.integers(1, 9)))
            else:
                data += rng.bytes(int(rng.integers(1, 30)))
            try:
                await asyncio.wait_for(read_all(bytes(data)), 5.0)
                good += 1
            except FrameError:
                bad += 1
        return good, bad

    good, bad = asyncio.run(main())
    assert good + bad == FUZZED
    assert bad > FUZZED // 2
    assert good > 0  # a flipped byte of window or name still makes a frame


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"HTTP/1.1 200 OK", "must start with"),
        (HEAD.pack(MAGIC[:3] + b"\x02", 20), "must start with"),  # another version
        (HEAD.pack(MAGIC, LONGEST + 1), "must have 8 to"),
        (HEAD.pack(MAGIC, 0xFFFFFFFF), "must have 8 to"),
        (HEAD.pack(MAGIC, 3), "must have 8 to"),
        (HEAD.pack(MAGIC, 8) + FIELDS.pack(1, 0, 1) + b"aa", "sender must be"),
        (HEAD.pack(MAGIC, 8) + FIELDS.pack(1, 1, 9) + b"aa", "phase must be"),
        (HEAD.pack(MAGIC, 8) + FIELDS.pack(1, 1, 1) + b"A ", "sender must be"),
        (HEAD.pack(MAGIC, 8) + b"abc", "ended within a frame, 3 of 8"),
        (MAGIC, "ended within a frame, 4 of 8"),
    ],
)
def test_what_is_no_frame_is_named(data, message):
    with pytest.raises(FrameError, match=message):
        asyncio.run(read_all(data))


def test_what_cannot_be_a_frame_is_not_written():
    assert len(frames.encode(Frame(0, "a" * 64, "b" * 64, bytes(LIMIT)))) == HEAD.size + LONGEST
    for frame, field in (
        (Frame(-1, "a", "b", b""), "window"),
        (Frame(1 << 32, "a", "b", b""), "window"),
        (Frame(1, "", "b", b""), "sender"),
        (Frame(1, "a", "ß", b""), "phase"),
        (Frame(1, "a", "b" * 65, b""), "phase"),
        (Frame(1, "a", "b", bytes(LIMIT + 1)), "payload"),
    ):
        with pytest.raises(FrameError, match=field):
            frames.encode(frame)


@given(st.binary(max_size=60))
def test_reports_are_objects_or_an_error(payload):
    with contextlib.suppress(FrameError):
        assert isinstance(control.values(Frame(1, "a", "control.join", payload)), dict)


def test_reports_nested_too_deep_are_an_error():
    with pytest.raises(FrameError, match=r"control\.join"):
        control.values(Frame(1, "a", "control.join", b"[" * 100_000))


def handshake(server_side: ssl.SSLContext, client_side: ssl.SSLContext, hostname: str) -> str:
    """Connect in memory; the name of the client as the server knows it."""
    buffers = [ssl.MemoryBIO() for _ in range(4)]
    client = client_side.wrap_bio(buffers[0], buffers[1], server_hostname=hostname)
    server = server_side.wrap_bio(buffers[2], buffers[3], server_side=True)
    for _ in range(4):
        for end, out, to in ((client, buffers[1], buffers[2]), (server, buffers[3], buffers[0])):
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                pass
            finally:
                to.write(out.read())
    assert client.version() == "TLSv1.3"
    return certificates.name_of(server)


def test_both_ends_of_a_connection_show_certificates_of_the_run(tmp_path):
    ours, others = certificates.Authority(), certificates.Authority()
    for name in ("home_0", "home_1"):
        ours.issue(name, tmp_path / name)
    others.issue("home_2", tmp_path / "home_2")
    accepts, opens = (certificates.contexts(tmp_path / name) for name in ("home_0", "home_1"))
    assert handshake(accepts[0], opens[1], "home_0") == "home_1"
    with pytest.raises(ssl.SSLCertVerificationError, match="home_3"):
        handshake(accepts[0], opens[1], "home_3")  # another's name
    stranger = certificates.contexts(tmp_path / "home_2")
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(stranger[0], opens[1], "home_2")  # a server of another authority
    (tmp_path / "home_2" / certificates.AUTHORITY).unlink()
    of_ours = (tmp_path / "home_0" / certificates.AUTHORITY).read_bytes()
    certificates.write(tmp_path / "home_2" / certificates.AUTHORITY, of_ours)
    stranger = certificates.contexts(tmp_path / "home_2")
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(accepts[0], stranger[1], "home_0")  # a client of another authority
    anonymous = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    anonymous.load_verify_locations(tmp_path / "home_0" / certificates.AUTHORITY)
    with pytest.raises(ssl.SSLError, match=r"(?i)certificate"):
        handshake(accepts[0], anonymous, "home_0")  # a client without


def test_keys_are_readable_by_their_owner_alone(tmp_path):
    certificates.Authority().issue("home_0", tmp_path / "home_0")
    assert stat.S_IMODE((tmp_path / "home_0").stat().st_mode) == 0o700
    for path in (tmp_path / "home_0").iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
    with pytest.raises(FileExistsError):
        certificates.Authority().issue("home_0", tmp_path / "home_0")
