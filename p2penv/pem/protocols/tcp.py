"""A party's channels over TCP with mutual TLS.

A connection carries frames one way, from the party that opened it, and is opened at the first message. The name in its
certificate is the sender; a frame in another's name, of another window or phase, or not well-formed, is an error of
that sender's. After a window that was given up all connections are closed, so that nothing of it is left over.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import defaultdict, deque
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from p2penv.pem.protocols import certificates, frames
from p2penv.pem.protocols.channel import Message, ProtocolError, Record, Timeout, View
from p2penv.pem.protocols.frames import Frame, FrameError

HOST = "127.0.0.1"
WAITING = 1 << 26  # bytes from one sender that nobody has read yet
OVERHEAD = 1 << 8  # of a frame among these
# The accepting end's one byte. In TLS 1.3 whoever opens a connection hears only now whether its certificate will do.
WELCOME = b"\x01"


class _Broken(NamedTuple):
    """A sender's fault, in the place of a frame."""

    window: int
    reason: str
    payload: bytes = b""


class _Inbox:
    """What came from one sender and has not been read."""

    def __init__(self) -> None:
        self.items: deque[Frame | _Broken] = deque()
        self.size = 0
        self.ready = asyncio.Event()

    def put(self, item: Frame | _Broken) -> None:
        self.items.append(item)
        self.size += len(item.payload) + OVERHEAD
        self.ready.set()

    def take(self) -> Frame | _Broken:
        item = self.items.popleft()
        self.size -= len(item.payload) + OVERHEAD
        if not self.items:
            self.ready.clear()
        return item


class Node:
    """A party's end of all its connections; the channel of its protocols.

    Args:
        name: of the party.
        folder: with its certificate and key.
        patience: longest wait for a message or a connection [s].
    """

    def __init__(self, name: str, folder: Path, patience: float) -> None:
        self.name, self.patience = name, patience
        self.accepts, self.opens = certificates.contexts(folder)
        self.ports: Mapping[str, int] = {}
        self.window = 0
        self.phase = ""  # of the latest message
        self.waiting: dict[str, str] = {}  # phase in which a message is waited for, by sender
        self.stale: set[str] = set()  # senders of messages of windows that were given up
        self.record, self.view = Record(), View()
        self.sent = 0  # frames with their heads, without what TLS adds [bytes]
        self._given_up: set[int] = set()
        self._inboxes: dict[str, _Inbox] = defaultdict(_Inbox)
        self._writers: dict[str, asyncio.StreamWriter] = {}
        self._locks: dict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._accepted: set[asyncio.StreamWriter] = set()

    async def listen(self) -> int:
        """Accept connections; returns the port."""
        self._server = await asyncio.start_server(
            self._accept, HOST, 0, ssl=self.accepts, ssl_handshake_timeout=self.patience
        )
        return int(self._server.sockets[0].getsockname()[1])

    def begin(self, window: int) -> None:
        """Channels are of this window from here on."""
        self.window, self.sent, self.phase = window, 0, ""
        self.record, self.view = Record(), View()
        self.waiting.clear()
        self.stale.clear()

    def end(self) -> None:
        """The window is over for this party.

        Raises:
            ProtocolError: someone sent what nobody reads.
        """
        for sender, inbox in self._inboxes.items():
            for item in inbox.items:
                if isinstance(item, Frame) and item.window == self.window:
                    raise ProtocolError(sender, item.phase, f"sent {self.name} a message that nobody reads")

    async def give_up(self) -> None:
        """Forget the window: close all connections and drop what is unread."""
        self._given_up.add(self.window)
        self.waiting.clear()
        self._inboxes.clear()
        writers = [*self._writers.values(), *self._accepted]
        self._writers.clear()
        for writer in writers:
            writer.transport.abort()  # to close it properly would take the other's help
        await asyncio.gather(*(writer.wait_closed() for writer in writers), return_exceptions=True)

    async def close(self) -> None:
        """Stop listening, close all connections."""
        self._server.close()
        await self.give_up()

    async def send(self, to: str, phase: str, payload: bytes) -> None:
        """Send a message; opens a connection if there is none.

        Raises:
            ProtocolError: the other party cannot be reached, or is not who it should be.
        """
        data = frames.encode(Frame(self.window, self.name, phase, payload))
        self.phase = phase
        await self.write(to, phase, data)
        self.record.add(phase, len(payload), 0)
        self.sent += len(data)

    async def write(self, to: str, phase: str, data: bytes) -> None:
        """Send bytes as they are."""
        try:
            async with asyncio.timeout(self.patience), self._locks[to]:
                writer = self._writers.get(to)
                if writer is None:
                    writer = self._writers[to] = await self._open(to, phase)
                writer.write(data)
                await writer.drain()
        except TimeoutError:
            raise Timeout(to, phase, f"took nothing from {self.name} within {self.patience:g} s") from None
        except ssl.SSLCertVerificationError as error:
            raise ProtocolError(to, phase, f"showed {self.name} a wrong certificate: {error.verify_message}") from None
        except OSError as error:
            raise ProtocolError(to, phase, f"cannot be reached by {self.name}: {error}") from None

    async def receive(self, sender: str, phase: str) -> bytes:
        """Next message of this window from a sender.

        Raises:
            ProtocolError: it is of another phase or window, or not well-formed, or the sender is gone.
            Timeout: nothing came in time.
        """
        while True:
            self.phase = phase
            item = await self._next(sender, phase)
            if item.window in self._given_up or (isinstance(item, _Broken) and item.window < self.window):
                if isinstance(item, Frame):
                    self.stale.add(sender)
                continue  # left over from a window that was given up, or the end of a connection used in an earlier one
            if isinstance(item, _Broken):
                raise ProtocolError(sender, phase, item.reason)
            if item.window != self.window:
                kind = "replayed a message" if item.window < self.window else "sent a message"
                raise ProtocolError(sender, phase, f"{kind} of window {item.window} in window {self.window}")
            if item.phase != phase:
                raise ProtocolError(sender, phase, f"sent {self.name} a message of phase {item.phase!r}")
            self.view.received.append(Message(phase, sender, item.payload))
            return item.payload

    async def _next(self, sender: str, phase: str) -> Frame | _Broken:
        inbox = self._inboxes[sender]
        if not inbox.items:
            self.waiting[sender] = phase
            try:
                async with asyncio.timeout(self.patience):
                    await inbox.ready.wait()
            except TimeoutError:
                reason = f"nothing received by {self.name} within {self.patience:g} s"
                raise Timeout(sender, phase, reason) from None
            self.waiting.pop(sender, None)
        return inbox.take()

    async def _open(self, to: str, phase: str) -> asyncio.StreamWriter:
        if to not in self.ports:
            raise ProtocolError(self.name, phase, f"addressed unknown party {to!r}")
        reader, writer = await asyncio.open_connection(HOST, self.ports[to], ssl=self.opens, server_hostname=to)
        try:
            await reader.readexactly(len(WELCOME))
        except (ssl.SSLError, asyncio.IncompleteReadError):
            raise ProtocolError(self.name, phase, f"{to} refused its connection") from None
        return writer

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._accepted.add(writer)
        peer, latest = "", 0
        try:
            peer = certificates.name_of(writer.get_extra_info("ssl_object"))
            inbox = self._inboxes[peer]
            writer.write(WELCOME)
            while (frame := await frames.read(reader)) is not None:
                inbox, latest = self._inboxes[peer], frame.window
                if frame.sender != peer:
                    raise FrameError(f"sent a frame in the name of {frame.sender}")
                if inbox.size + len(frame.payload) > WAITING:
                    raise FrameError(f"sent more than {WAITING} bytes that nobody reads")
                inbox.put(frame)
            inbox.put(_Broken(latest, "closed the connection"))
        except FrameError as error:
            self._inboxes[peer].put(_Broken(self.window, str(error)))
        except OSError as error:
            if peer:
                self._inboxes[peer].put(_Broken(latest, f"lost the connection: {error}"))
        finally:
            self._accepted.discard(writer)
            writer.close()
