"""How parties of a protocol talk, and the record of what each of them saw.

A party is a coroutine that sends and receives bytes by phase through a :class:`Channel`. The same code runs in one
process over :class:`LocalNetwork` and in one process a home over any other transport with this interface. Messages
between two parties arrive in the order in which they were sent; one of another phase than expected is an error.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

# Larger messages are refused [bytes].
LIMIT = 1 << 22


class ProtocolError(RuntimeError):
    """A window cannot be cleared: ``party`` did in ``phase`` what the protocol does not allow, for ``reason``."""

    def __init__(self, party: str, phase: str, reason: str) -> None:
        super().__init__(party, phase, reason)
        self.party, self.phase, self.reason = party, phase, reason

    def __str__(self) -> str:
        return f"{self.party} in phase {self.phase!r}: {self.reason}"


class Timeout(ProtocolError):
    """Nothing came from ``party`` in time."""


class Message(NamedTuple):
    """What a party received."""

    phase: str
    sender: str
    payload: bytes


class Opened(NamedTuple):
    """A number that a party got to know in the clear."""

    phase: str
    name: str
    value: int


class Traffic(NamedTuple):
    """Sums over a phase."""

    messages: int
    size: int  # of payloads [bytes]
    hops: int  # messages in the longest chain in which each had to wait for the one before


@dataclass
class View:
    """All a party saw of a window, in order; the raw material of attacks."""

    received: list[Message] = field(default_factory=list)
    opened: list[Opened] = field(default_factory=list)

    def values(self, name: str) -> list[int]:
        """What was opened under a name."""
        return [each.value for each in self.opened if each.name == name]


@dataclass
class Record:
    """Views of all parties and traffic by phase of one window."""

    views: dict[str, View] = field(default_factory=dict)
    traffic: dict[str, Traffic] = field(default_factory=dict)

    def add(self, phase: str, size: int, hops: int) -> None:
        """Count a message of ``size`` bytes that ends a chain of ``hops`` messages."""
        seen = self.traffic.get(phase, Traffic(0, 0, 0))
        self.traffic[phase] = Traffic(seen.messages + 1, seen.size + size, max(seen.hops, hops))

    def by_protocol(self) -> dict[str, Traffic]:
        """Traffic summed by what precedes the dot in names of phases; hops add up as phases follow each other."""
        sums: dict[str, Traffic] = {}
        for phase, traffic in self.traffic.items():
            seen = sums.get(name := phase.split(".")[0], Traffic(0, 0, 0))
            sums[name] = Traffic(*(a + b for a, b in zip(seen, traffic, strict=True)))
        return sums

    @property
    def size(self) -> int:
        """All payloads [bytes]."""
        return sum(traffic.size for traffic in self.traffic.values())


class Channel(Protocol):
    """A party's connection to the others; ``name`` is the party's own."""

    name: str

    async def send(self, to: str, phase: str, payload: bytes) -> None:
        """Send a message; does not wait until it is read."""

    async def receive(self, sender: str, phase: str) -> bytes:
        """Next message from a sender.

        Raises:
            ProtocolError: it is of another phase, or not well-formed.
            Timeout: nothing came in time.
        """


class Party(ABC):
    """One role in a protocol; collects what it opens."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.opened: list[Opened] = []

    def open(self, phase: str, name: str, value: int) -> int:
        """Record that the party knows ``value`` from here on; returns it."""
        self.opened.append(Opened(phase, name, int(value)))
        return value

    @abstractmethod
    async def run(self, channel: Channel) -> Any:
        """Play the role through one window; returns the party's own outcome."""


class _Endpoint:
    """A party's channel in a :class:`LocalNetwork`."""

    def __init__(self, network: LocalNetwork, name: str) -> None:
        self.name = name
        self._network = network
        self._hops: dict[str, int] = defaultdict(int)
        self.view = View()

    async def send(self, to: str, phase: str, payload: bytes) -> None:
        if to not in self._network.endpoints:
            raise ProtocolError(self.name, phase, f"addressed unknown party {to!r}")
        if len(payload) > LIMIT:
            raise ProtocolError(self.name, phase, f"message of {len(payload)} bytes exceeds {LIMIT}")
        hops = self._hops[phase] + 1
        self._network.record.add(phase, len(payload), hops)
        self._network.queue(self.name, to).put_nowait((phase, bytes(payload), hops))

    async def receive(self, sender: str, phase: str) -> bytes:
        queue = self._network.queue(sender, self.name)
        try:
            # Waiting costs more than reading what is there.
            item = queue.get_nowait()
        except asyncio.QueueEmpty:
            try:
                async with asyncio.timeout(self._network.timeout):
                    item = await queue.get()
            except TimeoutError:
                limit = f"nothing received by {self.name} within {self._network.timeout:g} s"
                raise Timeout(sender, phase, limit) from None
        found, payload, hops = item
        if found != phase:
            raise ProtocolError(sender, phase, f"sent {self.name} a message of phase {found!r}")
        self._hops[phase] = max(self._hops[phase], hops)
        self.view.received.append(Message(phase, sender, payload))
        return payload


class LocalNetwork:
    """Channels between parties of one process: queues in one event loop, with counts and views.

    Args:
        names: of all parties.
        timeout: longest wait for a message [s].
    """

    def __init__(self, names: Iterable[str], timeout: float = 60.0) -> None:
        self.timeout = timeout
        self.record = Record()
        self.endpoints = {name: _Endpoint(self, name) for name in names}
        self._queues: dict[tuple[str, str], asyncio.Queue[tuple[str, bytes, int]]] = {}

    def queue(self, sender: str, to: str) -> asyncio.Queue[tuple[str, bytes, int]]:
        """Messages on their way from one party to another."""
        found = self._queues.get((sender, to))
        if found is None:
            found = self._queues[sender, to] = asyncio.Queue()
        return found

    def channel(self, name: str) -> Channel:
        """The channel of a party."""
        return self.endpoints[name]

    async def play(self, parties: Sequence[Party]) -> dict[str, Any]:
        """Run all parties to their ends; outcomes by name.

        Raises:
            ProtocolError: the first one that a party raises; the others are stopped.
        """
        tasks = {party.name: asyncio.create_task(party.run(self.channel(party.name))) for party in parties}
        try:
            await asyncio.gather(*tasks.values())
        finally:
            for task in tasks.values():
                task.cancel()
            await asyncio.gather(*tasks.values(), return_exceptions=True)
            self._collect(parties)
        for (sender, to), queue in self._queues.items():
            if not queue.empty():
                raise ProtocolError(sender, queue.get_nowait()[0], f"sent {to} a message that nobody reads")
        return {name: task.result() for name, task in tasks.items()}

    def _collect(self, parties: Sequence[Party]) -> None:
        for party in parties:
            view = self.endpoints[party.name].view
            self.record.views[party.name] = View(list(view.received), list(party.opened))


def play(parties: Sequence[Party], timeout: float = 60.0) -> tuple[Mapping[str, Any], Record]:
    """Run parties in this process; outcomes by name, and the record.

    Raises:
        ProtocolError: whatever a party raises.
    """
    network = LocalNetwork([party.name for party in parties], timeout)

    async def main() -> dict[str, Any]:
        return await network.play(parties)

    return _run(main), network.record


def _run(main: Any) -> Any:
    """``asyncio.run``, also where a loop runs already (notebooks): then in a thread of its own."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(main())
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(lambda: asyncio.run(main())).result()
