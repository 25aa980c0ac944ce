"""What the coordinator of a deployment and its parties tell each other: JSON objects in frames."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from p2penv.pem.protocols import frames
from p2penv.pem.protocols.frames import Frame, FrameError

COORDINATOR = "coordinator"
# From a party: it is there; its role; it could settle; it cannot go on; it has settled.
JOIN, ROLE, PREPARED, FAILED, SETTLED = (
    f"control.{step}" for step in ("join", "role", "prepared", "failed", "settled")
)
# From the coordinator: where the others are; who trades; a window's end; the end of all.
PEERS, ASK, BEGIN, COMMIT, ABORT, STOP = (
    f"control.{step}" for step in ("peers", "ask", "begin", "commit", "abort", "stop")
)


def encode(window: int, sender: str, kind: str, /, **values: Any) -> bytes:
    """An order or a report as a frame."""
    return frames.encode(Frame(window, sender, kind, json.dumps(values).encode()))


def values(frame: Frame) -> dict[str, Any]:
    """What an order or a report says.

    Raises:
        FrameError: not a JSON object.
    """
    try:
        found = json.loads(frame.payload)
    except (ValueError, RecursionError) as error:
        raise FrameError(f"{frame.phase} must hold JSON: {error}") from None
    if not isinstance(found, dict):
        raise FrameError(f"{frame.phase} must hold an object, got {type(found).__name__}")
    return found


async def close(writer: asyncio.StreamWriter) -> None:
    """Close a connection, whatever its state."""
    writer.close()
    await asyncio.gather(writer.wait_closed(), return_exceptions=True)
