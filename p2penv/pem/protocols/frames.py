"""Frames in which messages travel over TCP: fixed, length-prefixed layout, checked field by field.

    magic 4 | size of what follows 4 | window 4 | size of sender 1 | size of phase 1 | sender | phase | payload

Numbers are unsigned and big-endian, names are lower-case ASCII. Whatever the bytes, reading ends in a frame, the end of
the stream or a :class:`FrameError`, and reads no more than a frame's size ahead.
"""

from __future__ import annotations

import asyncio
import re
import struct
from typing import NamedTuple

from p2penv.pem.protocols.channel import LIMIT

MAGIC = b"PEM\x01"  # the last byte is the version of the layout
HEAD = struct.Struct(">4sI")
FIELDS = struct.Struct(">IBB")
NAME = re.compile(rb"[a-z0-9_.]{1,64}", re.ASCII)
LONGEST = FIELDS.size + 2 * 64 + LIMIT


class FrameError(ValueError):
    """Bytes that are no frame."""


class Frame(NamedTuple):
    """One message."""

    window: int
    sender: str
    phase: str
    payload: bytes


def encode(frame: Frame) -> bytes:
    """A frame as bytes.

    Raises:
        FrameError: a field out of range.
    """
    sender, phase = (text.encode("ascii", "replace") for text in (frame.sender, frame.phase))
    for name, text in (("sender", sender), ("phase", phase)):
        if not NAME.fullmatch(text):
            raise FrameError(f"{name} must be 1 to 64 of a-z, 0-9, '_' and '.', got {getattr(frame, name)!r}")
    if not 0 <= frame.window < 1 << 32:
        raise FrameError(f"window must be in [0, {(1 << 32) - 1}], got {frame.window}")
    if len(frame.payload) > LIMIT:
        raise FrameError(f"payload must have at most {LIMIT} bytes, got {len(frame.payload)}")
    rest = FIELDS.pack(frame.window, len(sender), len(phase)) + sender + phase + frame.payload
    return HEAD.pack(MAGIC, len(rest)) + rest


def size(head: bytes) -> int:
    """Bytes that follow the head of a frame.

    Raises:
        FrameError: the head of no frame, or of one that is too long.
    """
    magic, follows = HEAD.unpack(head)
    if magic != MAGIC:
        raise FrameError(f"frame must start with {MAGIC!r}, got {magic!r}")
    if not FIELDS.size + 2 <= follows <= LONGEST:
        raise FrameError(f"frame must have {FIELDS.size + 2} to {LONGEST} bytes, got {follows}")
    return int(follows)


def decode(rest: bytes) -> Frame:
    """The frame whose head said that ``rest`` follows.

    Raises:
        FrameError: not well-formed.
    """
    if len(rest) < FIELDS.size:
        raise FrameError(f"fields must have {FIELDS.size} bytes, got {len(rest)}")
    window, of_sender, of_phase = FIELDS.unpack_from(rest)
    at = FIELDS.size + of_sender
    sender, phase, payload = rest[FIELDS.size : at], rest[at : at + of_phase], rest[at + of_phase :]
    for name, text, length in (("sender", sender, of_sender), ("phase", phase, of_phase)):
        if len(text) != length or not NAME.fullmatch(text):
            raise FrameError(f"{name} must be 1 to 64 of a-z, 0-9, '_' and '.', got {text!r}")
    if len(payload) > LIMIT:
        raise FrameError(f"payload must have at most {LIMIT} bytes, got {len(payload)}")
    return Frame(window, sender.decode("ascii"), phase.decode("ascii"), bytes(payload))


async def read(reader: asyncio.StreamReader) -> Frame | None:
    """Next frame of a stream, ``None`` at its end.

    Raises:
        FrameError: not well-formed, or the stream ends within it.
    """
    head = await _exactly(reader, HEAD.size, end=True)
    return None if head is None else decode(await _exactly(reader, size(head)) or b"")


async def _exactly(reader: asyncio.StreamReader, count: int, end: bool = False) -> bytes | None:
    try:
        return await reader.readexactly(count)
    except asyncio.IncompleteReadError as error:
        if end and not error.partial:
            return None
        raise FrameError(f"stream ended within a frame, {len(error.partial)} of {count} bytes") from None
