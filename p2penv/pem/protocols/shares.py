"""Three parties that compute on Shamir shares (threshold 1) with MPyC, over any :class:`Channel`.

MPyC is written for one party a process, with connections of its own. Here it sends and receives over channels, and
several of its runtimes may live in one process: what it keeps in globals is looked up in the current context, of which
each party's task has its own. Only numbers of fixed width are sent: MPyC's arrays and `transfer`, which pickle, are not
used. Each window has a fresh runtime with fresh keys.
"""

from __future__ import annotations

import asyncio
import os
import struct
from collections.abc import Awaitable, Sequence
from contextvars import ContextVar
from functools import cache
from types import TracebackType
from typing import Any

from p2penv.pem.protocols.channel import Channel, ProtocolError


def _import() -> Any:
    """MPyC, without what it does on import: read the command line, set up logging, make an event loop."""
    # Where documentation is built it does none of that; without NumPy it imports no names that are deprecated.
    wanted = {"READTHEDOCS": "True", "MPYC_NONUMPY": "1"}
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        import mpyc.asyncoro
        import mpyc.finfields
        import mpyc.mpctools
        import mpyc.runtime
        import mpyc.sectypes
        import mpyc.thresha
    except ImportError as error:
        raise ImportError("the committee needs mpyc: pip install 'p2penv[private]'") from error
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
    return mpyc


mpyc = _import()

PARTIES, THRESHOLD = 3, 1
BITS = 64  # of values and of what is compared, with sign
MASK = 64  # what is opened under masks tells apart two inputs with probability at most about 2⁻⁶⁴
HEADER = struct.Struct("<qI")  # of MPyC's messages: program counter, size of what follows
KEY = 16  # of pseudorandom secret sharing [bytes]


class _Current:
    """MPyC's global runtime: the one of the current context."""

    def __init__(self, before: Any) -> None:
        object.__setattr__(self, "_found", ContextVar("runtime", default=before))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._found.get(), name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._found.get(), name, value)


_current = _Current(mpyc.asyncoro.runtime)
for _module in (mpyc.asyncoro, mpyc.sectypes, mpyc.mpctools):
    _module.runtime = _current


class _Runtime(mpyc.runtime.Runtime):  # type: ignore[name-defined]
    """One party's runtime."""

    def __init__(self, party: int) -> None:
        options = mpyc._get_arg_parser().parse_args([])
        options.threshold, options.sec_param, options.no_log = THRESHOLD, MASK, True
        loop = asyncio.get_running_loop()
        handler = loop.get_exception_handler()
        super().__init__(party, [mpyc.runtime.Party(each) for each in range(PARTIES)], options)
        loop.set_exception_handler(handler)
        self.failure: asyncio.Future[None] = loop.create_future()

    def fail(self, error: BaseException) -> None:
        """End the session with an error, the first one if there are several."""
        if not self.failure.done():
            self.failure.set_exception(error)

    @mpyc.asyncoro.mpc_coro
    async def is_zero_public(self, a: Any) -> asyncio.Future[Any]:
        """Whether a secret is zero, and nothing more.

        MPyC 0.11 opens the product with a random number on shares that it does not mask, the product of two lines: from
        its roots and its own share a party finds the secret. A random sharing of zero closes that.
        """
        field = type(a).field
        prfs = self.prfs(field.order)
        zero = mpyc.thresha.pseudorandom_share_zero(field, PARTIES, self.pid, prfs, self._prss_uci(), 1)
        factor = self._random(field)
        a = await self.gather(a)
        return await self.output(a * factor + zero[0], threshold=2 * THRESHOLD) == 0


def _reconcile(decl: Any, task: asyncio.Task[Any]) -> None:
    """As MPyC's own, but an error fails the session and leaves the event loop alone."""
    if task.cancelled():
        return
    runtime = _current._found.get()
    error = task.exception()
    if error is not None and isinstance(runtime, _Runtime):
        runtime.fail(error)
    else:
        _as_written(decl, task)


_as_written, mpyc.asyncoro._reconcile = mpyc.asyncoro._reconcile, _reconcile


@cache
def modulus() -> int:
    """Of the field, in which homes share too: a prime that leaves room for masks."""
    return int(mpyc.finfields.find_prime_root(BITS + MASK + 2)[0])


def width() -> int:
    """Of a number of the field [bytes]."""
    return (modulus().bit_length() + 7) // 8


class _Link:
    """What one party writes to another, in the shape of an asyncio transport."""

    def __init__(self) -> None:
        self.buffer = bytearray()
        self.closed = False
        self.ready = asyncio.Event()

    def write(self, data: bytes) -> None:
        self.buffer += data
        self.ready.set()

    def writelines(self, parts: Sequence[bytes]) -> None:
        self.write(b"".join(parts))

    def close(self) -> None:
        self.closed = True
        self.ready.set()


class Session:
    """One party's part in a computation: ``async with Session(channel, members, phase) as session``.

    Args:
        channel: of the party.
        members: names of the three parties.
        phase: of all messages.
    """

    def __init__(self, channel: Channel, members: Sequence[str], phase: str) -> None:
        self.channel, self.members, self.phase = channel, members, phase

    async def __aenter__(self) -> Session:
        party = self.members.index(self.channel.name)
        self.runtime = runtime = _Runtime(party)
        self._token = _current._found.set(runtime)
        self._links: list[_Link] = []
        self._tasks: list[asyncio.Task[None]] = []
        for other in runtime.parties:
            other.protocol = asyncio.get_running_loop().create_future() if other.pid == party else None
        for other in range(PARTIES):
            if other != party:
                link = _Link()
                first = party < other  # as MPyC's clients, who send keys
                exchanger = mpyc.asyncoro.MessageExchanger(runtime, other if first else None)
                exchanger.connection_made(link)
                self._links.append(link)
                self._tasks.append(asyncio.create_task(self._write(self.members[other], link)))
                self._tasks.append(asyncio.create_task(self._read(other, exchanger, first)))
        try:
            await self.wait(runtime.parties[party].protocol)
        except BaseException:
            await self._stop()
            raise
        self.integer = runtime.SecInt(BITS, modulus())
        return self

    async def __aexit__(self, kind: type[BaseException] | None, _: Any, __: TracebackType | None) -> None:
        if kind is None:
            for link in self._links:
                link.close()
            try:
                await self.wait(asyncio.gather(*self._tasks))
            finally:
                await self._stop()
        else:
            await self._stop()

    async def wait(self, result: Awaitable[Any]) -> Any:
        """A result, or the error that ends the session."""
        future = asyncio.ensure_future(result)
        await asyncio.wait({future, self.runtime.failure}, return_when=asyncio.FIRST_COMPLETED)
        if self.runtime.failure.done():
            self._raise(self.runtime.failure.exception())
        return future.result()

    def sums(self, values: Sequence[int]) -> list[Any]:
        """Secret sums over the three parties of a number of values each brings."""
        brought = [self.integer(self.integer.field(value)) for value in values]
        shares = self.runtime.input(brought, senders=list(range(PARTIES)))
        return [sum(each[1:], each[0]) for each in zip(*shares, strict=True)]

    async def at_least(self, secret: Any, bits: int) -> int:
        """Whether a secret in [−2ᵇ⁻¹, 2ᵇ⁻¹), b the number of bits, is 0 or more; opened to all three."""
        return 1 - int(await self.wait(self.runtime.output(self.runtime.sgn(secret, l=bits, LT=True))))

    def _raise(self, error: BaseException | None) -> None:
        if isinstance(error, ProtocolError):
            raise ProtocolError(error.party, error.phase, error.reason) if type(error) is ProtocolError else error
        raise ProtocolError(self.channel.name, self.phase, f"computation failed: {error!r}") from error

    async def _write(self, to: str, link: _Link) -> None:
        try:
            while True:
                await link.ready.wait()
                link.ready.clear()
                if link.buffer:
                    data, link.buffer = bytes(link.buffer), bytearray()
                    await self.channel.send(to, self.phase, data)
                if link.closed:
                    return await self.channel.send(to, self.phase, b"")
        except Exception as error:
            self.runtime.fail(error)

    async def _read(self, other: int, exchanger: Any, started: bool) -> None:
        sender = self.members[other]
        try:
            while data := await self.channel.receive(sender, self.phase):
                self._check(data, other, started)
                started = True
                exchanger.data_received(data)
        except Exception as error:
            self.runtime.fail(error)

    def _check(self, data: bytes, other: int, started: bool) -> None:
        """Refuse what MPyC does not send: it would wait for the rest for ever."""
        at = 0
        if not started:
            at = 2 + self.runtime._prss_keys_from_peer(other)
            if len(data) < at or int.from_bytes(data[:2], "little") != other:
                raise ProtocolError(self.members[other], self.phase, "sent keys that are not well-formed")
        while at < len(data):
            size = HEADER.unpack_from(data, at)[1] if at + HEADER.size <= len(data) else 0
            at += HEADER.size + size
            if size == 0 or size % width() or at > len(data):
                raise ProtocolError(self.members[other], self.phase, "sent shares that are not well-formed")

    async def _stop(self) -> None:
        # Tasks of MPyC's own carry a mark of where they were called; after a failure they would wait for ever.
        left = [task for task in asyncio.all_tasks() if hasattr(task, "f_back")]
        for task in (tasks := self._tasks + left):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self.runtime.failure.done():
            self.runtime.failure.exception()  # seen
        _current._found.reset(self._token)
