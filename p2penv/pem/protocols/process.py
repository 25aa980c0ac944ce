"""Parties as processes of their own, one for each folder this program reads, a line each; it writes their numbers.

It forks: what takes seconds is imported once. Nothing secret is made before that; keys and shares come from the
operating system's generator, which forks do not share the state of.

A folder holds its party's certificate and key, ``party.json`` and, for a home, the ledger it writes: a line when it
could settle a window, and one when it has, with the market or with the grid. Only the coordinator's word after all
parties could settle makes it the market. When the coordinator is gone, the process ends; what was prepared stays
unsettled.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
import traceback
from importlib import import_module
from pathlib import Path
from typing import Any

from p2penv.pem.protocols import control, frames
from p2penv.pem.protocols.backends import Maker
from p2penv.pem.protocols.certificates import private
from p2penv.pem.protocols.channel import Party, ProtocolError, Timeout
from p2penv.pem.protocols.frames import Frame
from p2penv.pem.protocols.roster import Own, Public, Published
from p2penv.pem.protocols.tcp import HOST, Node
from p2penv.pem.rules import Prices

CONFIG, LEDGER, ERRORS = "party.json", "ledger.jsonl", "errors.txt"


class Process:
    """A party under a coordinator's orders."""

    def __init__(self, folder: Path) -> None:
        config = json.loads((folder / CONFIG).read_text())
        self.folder = folder
        self.name: str = config["name"]
        self.maker = Maker(config["backend"], self.name, folder, config["options"])
        self.prices = Prices(*config["prices"])
        self.rows = [Own(*row) for row in config["windows"]]  # none for who does not trade
        self.coordinator: int = config["port"]
        self.node = self.make_node(config["patience"])
        self.published: Published | None = None
        self._task: asyncio.Task[None] | None = None

    def make_node(self, patience: float) -> Node:
        """The party's end of its connections."""
        return Node(self.name, self.folder, patience)

    def make_party(self, window: int, public: Public) -> Party:
        """The party in a window."""
        return self.maker.party(window, public, self.own(window))

    async def run(self) -> None:
        """Join, and follow orders until the last."""
        port = await self.node.listen()
        reader, self.writer = await asyncio.open_connection(
            HOST, self.coordinator, ssl=self.node.opens, server_hostname=control.COORDINATOR
        )
        try:
            await self.tell(0, control.JOIN, port=port)
            while (order := await frames.read(reader)) is not None and order.phase != control.STOP:
                await self.follow(order)
        finally:
            await self.cancel()
            await control.close(self.writer)
            await self.node.close()

    async def tell(self, window: int, kind: str, /, **values: Any) -> None:
        """Report to the coordinator."""
        self.writer.write(control.encode(window, self.name, kind, **values))
        await self.writer.drain()

    async def follow(self, order: Frame) -> None:
        """Do what the coordinator says."""
        window, said = order.window, control.values(order)
        if order.phase == control.PEERS:
            self.node.ports = said
        elif order.phase == control.ASK:
            own = self.own(window)
            await self.tell(window, control.ROLE, role=0 if own is None else (own.net > 0) - (own.net < 0))
        elif order.phase == control.BEGIN:
            public = Public(tuple(said["sellers"]), tuple(said["buyers"]), self.prices)
            self.node.begin(window)
            self._task = asyncio.create_task(self.play(window, public))
        elif order.phase == control.COMMIT:
            await self.cancel()
            self.settle(window, self.published)
            await self.tell(window, control.SETTLED)
            self.maker.idle()
        elif order.phase == control.ABORT:
            waiting = {} if self._task is None or self._task.done() else dict(self.node.waiting)
            await self.cancel()
            await self.node.give_up()
            self.settle(window, None)
            stale = sorted(self.node.stale & waiting.keys())
            await self.tell(window, control.SETTLED, waiting=waiting, stale=stale)
        else:
            raise frames.FrameError(f"order must be one of the known, got {order.phase!r}")

    def own(self, window: int) -> Own | None:
        """What the party brings to a window; windows are counted from 1."""
        return self.rows[(window - 1) % len(self.rows)] if self.rows else None

    async def play(self, window: int, public: Public) -> None:
        """Take part in a window and report how it went."""
        node = self.node
        self.published = None
        try:
            if self.rows and self.name not in public.homes:
                result = None  # neither sells nor buys
            else:
                result = await self.make_party(window, public).run(self.node)
                node.end()
            self.published = result if self.rows else None
            if self.rows:
                self.note(window, "prepared")
            traffic = {phase: (count.messages, count.size) for phase, count in node.record.traffic.items()}
            await self.tell(window, control.PREPARED, published=result, sent=node.sent, traffic=traffic)
        except ProtocolError as error:
            late = isinstance(error, Timeout)
            await self.tell(
                window, control.FAILED, party=error.party, phase=error.phase, reason=error.reason, late=late
            )
        except Exception as error:
            traceback.print_exc()  # for the party's own eyes: messages of errors may hold its numbers
            reason = f"failed with {type(error).__name__}"
            await self.tell(window, control.FAILED, party=self.name, phase=node.phase, reason=reason, late=False)

    async def cancel(self) -> None:
        """Stop taking part in the window."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    def settle(self, window: int, published: Published | None) -> None:
        """Settle with the market, or without a result with the grid alone."""
        own = self.own(window)
        if own is None:
            return
        energy = own.delivery if own.net > 0 else -own.net
        traded = 0 if published is None else own.allocation(published)
        price = int(self.prices.retail) if published is None else published.price
        if own.net > 0:
            payment = -price * traded - int(self.prices.buyback) * (energy - traded)
        else:
            payment = price * traded + int(self.prices.retail) * (energy - traded)
        self.note(window, "grid" if published is None else "market", traded=traded, energy=energy, payment=payment)

    def note(self, window: int, state: str, **values: int) -> None:
        """Write to the ledger, and to the disk."""
        with open(self.folder / LEDGER, "a", opener=private) as file:
            file.write(json.dumps({"window": window, "state": state} | values) + "\n")
            file.flush()
            os.fsync(file.fileno())


def main(process: type[Process] = Process) -> None:
    """Start parties until there are no more folders to read."""
    import_module(f"p2penv.pem.protocols.{sys.argv[1]}")
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for parties
    for line in sys.stdin:
        number = os.fork()
        if number == 0:
            _run(process, Path(line.rstrip("\n")))
        print(number, flush=True)


def _run(process: type[Process], folder: Path) -> None:
    """Be a party, with what goes wrong in a file of its folder; does not return."""
    status = 1
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        nothing = os.open(os.devnull, os.O_RDWR)
        errors = private(str(folder / ERRORS), os.O_WRONLY | os.O_CREAT)
        for target, source in enumerate((nothing, nothing, errors)):
            os.dup2(source, target)
        with contextlib.suppress(ConnectionError):  # the coordinator is gone
            asyncio.run(process(folder).run())
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    main()
