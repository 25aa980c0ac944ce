"""Windows cleared by processes: one a home and one a helper, over TCP with mutual TLS, under one coordinator.

The coordinator starts and stops the processes and carries out the two phases of a settlement: all parties could settle
by the same result, or the window is given up and everybody settles with the grid. It sees roles and what is published.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from p2penv.core import validation
from p2penv.pem.protocols import certificates, control, frames
from p2penv.pem.protocols.backends import Options, helpers
from p2penv.pem.protocols.channel import ProtocolError
from p2penv.pem.protocols.keys import check_bits
from p2penv.pem.protocols.market import COALITION
from p2penv.pem.protocols.process import CONFIG, ERRORS, LEDGER
from p2penv.pem.protocols.roster import Own, Published
from p2penv.pem.protocols.tcp import HOST
from p2penv.pem.protocols.votes import Failed, Votes
from p2penv.pem.rules import NO_MARKET, Prices

JOINING, POLL = 60.0, 0.2  # longest start of all processes, and between looks whether they run [s]
PROGRAM = (sys.executable, "-m", "p2penv.pem.protocols.process")


class Outcome(NamedTuple):
    """How a window went; without a result, everybody has settled with the grid."""

    window: int
    published: Published | None
    error: ProtocolError | None
    seconds: float
    size: int  # frames between parties, without what TLS adds [bytes]
    messages: int
    traffic: dict[str, tuple[int, int]]  # messages and bytes of payloads by phase


class Settled(NamedTuple):
    """A line of a home's ledger."""

    window: int
    state: str  # prepared; then market or grid
    traded: int = 0  # with other homes [mWh]
    energy: int = 0  # delivered or used [mWh]
    payment: int = 0  # > 0 pays [mWh times ticks/kWh]


@dataclass
class _Child:
    """A party's process and the connection to it."""

    process: int
    writer: asyncio.StreamWriter | None = None


class Deployment:
    """Processes of a private market: ``async with Deployment(homes, prices) as market: await market.clear()``.

    Args:
        homes: what each home brings to the windows, which are gone through from the first, again and again.
        prices: of the grid [ticks].
        backend: which protocol.
        bits: of keys; the committee has none.
        insecure: allow keys of fewer than 2048 bits, for tests and timing only.
        limit: longest time for a window [s].
        grace: longest wait for a process to give a window up, or to stop, before it is killed [s].
        coalition: sellers and buyers below which everybody settles with the grid; at least 3 for ``"hardened"``.
        folder: of keys and ledgers, made if missing; by default one that is removed in the end.
        program: starts the processes.

    Raises:
        ValueError: an option out of range.
    """

    def __init__(
        self,
        homes: Mapping[str, Sequence[Own]],
        prices: Prices,
        backend: str = "hardened",
        *,
        bits: int = 2048,
        insecure: bool = False,
        limit: float = 30.0,
        grace: float = 2.0,
        coalition: int = COALITION,
        folder: Path | None = None,
        program: Sequence[str] = PROGRAM,
    ) -> None:
        if not homes or any(len(rows) == 0 for rows in homes.values()):
            raise ValueError("homes must be at least 1 in number, with at least 1 window each")
        self.homes, self.prices, self.backend = dict(homes), prices, backend
        self.helpers = helpers(backend)
        check_bits("homes", bits, insecure)
        answers = any(row.net > 0 and row.delivery != row.net for rows in homes.values() for row in rows)
        self.options = Options(bits=bits, insecure=insecure, answers=answers, coin=secrets.token_hex(16))
        self.limit = validation.number("limit", limit, 0.0, open_low=True)
        self.grace = validation.number("grace", grace, 0.0, open_low=True)
        self.coalition = validation.count("coalition", coalition)
        if backend == "hardened" and self.coalition < COALITION:
            raise ValueError(f"coalition must be at least {COALITION} for the hardened protocol, got {self.coalition}")
        self.window = 0
        self._temporary = folder is None
        self._given, self._program = folder, program
        self._server: asyncio.Server | None = None
        self._starter: asyncio.subprocess.Process | None = None
        self._children: dict[str, _Child] = {}
        self._events: asyncio.Queue[tuple[str, frames.Frame | str]] = asyncio.Queue()

    @property
    def alive(self) -> list[str]:
        """Parties that take part."""
        return [name for name, child in self._children.items() if child.writer is not None]

    def process_id(self, name: str) -> int:
        """Of a party's process."""
        return self._children[name].process

    async def __aenter__(self) -> Deployment:
        self.folder = self._given or Path(tempfile.mkdtemp(prefix="p2penv-"))
        try:
            await self._start()
        except BaseException:
            await self.stop()
            raise
        return self

    async def __aexit__(self, kind: type[BaseException] | None, _: Any, __: TracebackType | None) -> None:
        await self.stop()

    async def _start(self) -> None:
        authority = certificates.Authority()
        own = self.folder / control.COORDINATOR
        authority.issue(control.COORDINATOR, own)
        accepts, _ = certificates.contexts(own)
        if not hasattr(os, "fork"):
            raise OSError("processes of parties need a system with fork")
        self._server = await asyncio.start_server(self._accept, HOST, 0, ssl=accepts)
        port = self._server.sockets[0].getsockname()[1]
        patience = self.limit + self.grace  # the coordinator is the first to lose it
        prices = [int(price) for price in self.prices]
        shared = {"backend": self.backend, "options": self.options, "prices": prices, "patience": patience}
        for name in (*self.helpers, *self.homes):
            folder = self.folder / name
            authority.issue(name, folder)
            config = shared | {"name": name, "port": port, "windows": self.homes.get(name, [])}
            certificates.write(folder / CONFIG, json.dumps(config).encode())
        # In a session of its own, so that an interrupt from the keyboard reaches the coordinator alone.
        self._starter = await asyncio.create_subprocess_exec(
            *self._program,
            self.backend,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env=os.environ | {"OPENBLAS_NUM_THREADS": "1"},
            start_new_session=True,
        )
        into, out = self._starter.stdin, self._starter.stdout
        assert into is not None
        assert out is not None
        for name in (*self.helpers, *self.homes):
            into.write(f"{self.folder / name}\n".encode())
            number = (await out.readline()).strip()
            if not number.isdigit():
                raise ProtocolError(name, control.JOIN, "cannot be started; see above")
            self._children[name] = _Child(int(number))
        joined: dict[str, dict[str, Any]] = {}
        missing, until = list(self._children), time.perf_counter() + JOINING
        while missing and time.perf_counter() < until:
            ended = [name for name in missing if not _running(self._children[name].process)]
            joined |= await self._gather(control.JOIN, 0, missing, POLL)
            missing = [name for name in self._children if name not in joined]
            if any(name in missing for name in ended):
                missing = [name for name in missing if name in ended]
                break
        if missing:
            errors_ = (self.folder / missing[0] / ERRORS).read_text(errors="replace").strip()
            raise ProtocolError(missing[0], control.JOIN, f"did not start: {errors_[-500:] or 'nothing heard of it'}")
        self._tell(joined, 0, control.PEERS, **{name: said["port"] for name, said in joined.items()})

    async def clear(self) -> Outcome:
        """Clear the next window."""
        self.window += 1
        start = time.perf_counter()
        votes = Votes(self.window)
        for name in (*self.helpers, *self.homes):
            if name in self.helpers and name not in self.alive:
                votes.failed.append(Failed(name, control.ASK, "is gone"))
        homes = [name for name in self.alive if name in self.homes]
        self._tell(homes, self.window, control.ASK)
        roles = await self._gather(control.ROLE, self.window, homes, self.limit)
        sellers = [name for name in homes if name in roles and roles[name].get("role") == 1]
        buyers = [name for name in homes if name in roles and roles[name].get("role") == -1]
        votes.failed += [Failed(name, control.ROLE, "did not say its role") for name in homes if name not in roles]
        closed = min(len(sellers), len(buyers)) < self.coalition
        if closed or votes.failed:
            await self._abort(votes)
            error = None if not votes.failed else votes.blame()
            published = None if error else Published(NO_MARKET, int(self.prices.retail), 0, 0)
            return Outcome(self.window, published, error, time.perf_counter() - start, 0, 0, {})
        start = time.perf_counter()  # what parties did since the window before has been idle time
        self._tell(self.alive, self.window, control.BEGIN, sellers=sellers, buyers=buyers)
        await self._vote(votes, start + self.limit, [*sellers, *buyers])
        result = votes.result([*sellers, *buyers])
        if result is None:
            await self._abort(votes)
            error = votes.blame()
            return Outcome(self.window, None, error, time.perf_counter() - start, *votes.traffic())
        names = self.alive
        self._tell(names, self.window, control.COMMIT)
        settled = await self._gather(control.SETTLED, self.window, names, self.grace)
        for name in set(names) - set(settled):
            await self._lose(name)
        return Outcome(self.window, result, None, time.perf_counter() - start, *votes.traffic())

    async def _vote(self, votes: Votes, until: float, homes: Sequence[str]) -> None:
        """Hear all parties, up to the first that cannot go on."""
        expected = set(self.alive)
        while expected - set(votes.prepared):
            try:
                async with asyncio.timeout(until - time.perf_counter()):
                    name, frame = await self._events.get()
            except TimeoutError:
                late = sorted(expected - set(votes.prepared))
                votes.failed.append(
                    Failed(late[0], control.BEGIN, f"could not settle within {self.limit:g} s", late=True)
                )
                return
            await self._hear(votes, name, frame)
            if votes.failed or votes.lost:
                return
        votes.compare(homes)

    async def _hear(self, votes: Votes, name: str, frame: frames.Frame | str) -> None:
        if isinstance(frame, str):
            await self._lose(name)
            votes.lost.append(name)
        else:
            votes.hear(name, frame)

    async def _abort(self, votes: Votes) -> None:
        """All that are left settle with the grid; who does not say so in time is killed."""
        names = self.alive
        self._tell(names, self.window, control.ABORT)
        until = time.perf_counter() + self.grace
        heard: set[str] = set()
        while set(names) - heard - set(votes.lost):
            try:
                async with asyncio.timeout(until - time.perf_counter()):
                    name, frame = await self._events.get()
            except TimeoutError:
                break
            await self._hear(votes, name, frame)
            if isinstance(frame, frames.Frame) and frame.phase == control.SETTLED and frame.window == self.window:
                heard.add(name)
        for name in set(names) - heard:
            await self._lose(name)
            if name not in votes.lost:
                votes.lost.append(name)

    async def _gather(self, phase: str, window: int, names: Sequence[str], limit: float) -> dict[str, dict[str, Any]]:
        """Reports of one kind from parties, as far as they come in time."""
        found: dict[str, dict[str, Any]] = {}
        until, gone = time.perf_counter() + limit, set[str]()
        while set(names) - set(found) - gone:
            try:
                async with asyncio.timeout(until - time.perf_counter()):
                    name, frame = await self._events.get()
            except TimeoutError:
                break
            if isinstance(frame, str):
                await self._lose(name)
                gone.add(name)
            elif (frame.phase, frame.window) == (phase, window):
                try:
                    found[name] = control.values(frame)
                except frames.FrameError:
                    gone.add(name)
        return found

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Take a party's reports; the end of the connection is one too."""
        name = certificates.name_of(writer.get_extra_info("ssl_object"))
        child = self._children.get(name)
        if child is None or child.writer is not None:
            return writer.close()
        child.writer, reason = writer, "closed its connection"
        try:
            while (frame := await frames.read(reader)) is not None:
                self._events.put_nowait((name, frame))
        except (frames.FrameError, OSError) as error:
            reason = str(error)
        finally:
            self._events.put_nowait((name, reason))

    def _tell(self, names: Iterable[str], window: int, kind: str, /, **values: Any) -> None:
        data = control.encode(window, control.COORDINATOR, kind, **values)
        for name in names:
            writer = self._children[name].writer
            if writer is not None and not writer.is_closing():
                writer.write(data)

    async def _lose(self, name: str) -> None:
        """A party takes no further part."""
        child = self._children[name]
        if child.writer is not None:
            child.writer.transport.abort()  # to close it properly would take the party's help
            child.writer = None
        if _running(child.process):
            os.kill(child.process, signal.SIGKILL)
            await _ended(child.process, JOINING)

    async def stop(self) -> None:
        """Stop all processes; who does not follow in time is killed."""
        self._tell(self.alive, self.window, control.STOP)
        until = time.perf_counter() + self.grace
        for child in self._children.values():
            if child.writer is not None:
                await _ended(child.process, until - time.perf_counter())
        for name in self._children:
            await self._lose(name)
        if self._starter is not None:
            assert self._starter.stdin is not None
            self._starter.stdin.close()
            await self._starter.wait()
            self._starter = None
        if self._server is not None:
            self._server.close()
        if self._temporary:
            shutil.rmtree(self.folder, ignore_errors=True)

    def ledger(self, home: str) -> list[Settled]:
        """What a home has written; read it before the folder is gone."""
        path = self.folder / home / LEDGER
        if not path.exists():
            return []
        return [Settled(**json.loads(line)) for line in path.read_text().splitlines()]


def _running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


async def _ended(process: int, limit: float) -> None:
    """Wait for the end of a process that the starter reaps."""
    until = time.perf_counter() + limit
    while _running(process) and time.perf_counter() < until:
        await asyncio.sleep(0.01)
