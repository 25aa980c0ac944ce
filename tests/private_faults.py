"""Parties of private clearing that do something wrong in some windows; takes the place of their usual program."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import tempfile
from pathlib import Path

from p2penv.pem.protocols import certificates, frames
from p2penv.pem.protocols.frames import Frame
from p2penv.pem.protocols.process import Process, main
from p2penv.pem.protocols.tcp import Node

PLAN: dict[str, dict[str, str]] = {}  # faults by party and window


class FaultyNode(Node):
    """Does what the plan says at its first message of a window."""

    def begin(self, window):
        super().begin(window)
        self.fault = PLAN.get(self.name, {}).get(str(window), "")
        folder = self.wrong if self.fault == "certificate" else self.folder
        for context in (self.accepts, self.opens):
            context.load_cert_chain(folder / certificates.CERTIFICATE, folder / certificates.KEY)

    async def send(self, to, phase, payload):
        fault, self.fault = self.fault, ""
        frame = Frame(self.window, self.name, phase, payload)
        data = frames.encode(frame)
        if fault == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        elif fault == "stopped":
            os.kill(os.getpid(), signal.SIGSTOP)
        elif fault == "late":
            self.later = asyncio.create_task(self._later(to, phase, data))
            await asyncio.Event().wait()
        elif fault == "truncated":
            await self.write(to, phase, data[:-1])
            self._writers.pop(to).close()
            await asyncio.Event().wait()
        elif fault == "oversized":
            await self.write(to, phase, frames.HEAD.pack(frames.MAGIC, frames.LONGEST + 1) + data)
        elif fault == "replayed":
            await self.write(to, phase, self.sent_in[1])
        elif fault == "leftover":
            await self.write(to, phase, self.sent_in[3])
        elif fault == "phase":
            await self.write(to, phase, frames.encode(frame._replace(phase="committee.fill")))
        elif fault == "name":
            await self.write(to, phase, frames.encode(frame._replace(sender="home_0")))
        elif fault == "garbage":
            await self.write(to, phase, os.urandom(100))
        elif fault == "payload":
            await self.write(to, phase, frames.encode(frame._replace(payload=payload[:-1])))
        else:
            self.sent_in.setdefault(self.window, data)
            await super().send(to, phase, payload)

    async def _later(self, to, phase, data):
        await asyncio.sleep(self.patience + 0.2)
        await self.write(to, phase, data)


class Faulty(Process):
    """A party that does what the plan says."""

    def make_node(self, patience):
        node = FaultyNode(self.name, self.folder, patience)
        node.sent_in, node.folder, node.wrong = {}, self.folder, Path(tempfile.mkdtemp(dir=self.folder))
        certificates.Authority().issue(self.name, node.wrong)
        return node


if __name__ == "__main__":
    PLAN.update(json.loads(sys.argv.pop(1)))
    main(Faulty)
