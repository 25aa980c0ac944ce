"""What the parties of a deployment say about a window, and who is to blame when it cannot be settled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from p2penv.pem.protocols import control
from p2penv.pem.protocols.channel import ProtocolError, Timeout
from p2penv.pem.protocols.frames import Frame, FrameError
from p2penv.pem.protocols.roster import Published


class Failed(NamedTuple):
    """Why a window cannot be settled, as far as the coordinator has heard."""

    party: str
    phase: str
    reason: str
    late: bool = False


@dataclass
class Votes:
    """Reports of one window, up to the first that ends it."""

    window: int
    prepared: dict[str, dict[str, Any]] = field(default_factory=dict)
    failed: list[Failed] = field(default_factory=list)
    waiting: dict[str, dict[str, str]] = field(default_factory=dict)  # for whom, in which phase
    stale: list[str] = field(default_factory=list)  # who sent, instead of what is waited for, what is of no use
    lost: list[str] = field(default_factory=list)

    def hear(self, name: str, frame: Frame) -> None:
        """Take in a report; one of another window says nothing."""
        if frame.window != self.window:
            return
        try:
            said = control.values(frame)
            if frame.phase == control.PREPARED:
                traffic = {str(phase): (int(count), int(size)) for phase, (count, size) in said["traffic"].items()}
                self.prepared[name] = said | {"sent": int(said["sent"]), "traffic": traffic}
            elif frame.phase == control.FAILED:
                party, phase, reason = (str(said.get(key)) for key in ("party", "phase", "reason"))
                self.failed.append(Failed(party, phase, reason, bool(said.get("late"))))
            elif frame.phase == control.SETTLED and isinstance(said.get("waiting"), dict):
                self.waiting[name] = {str(who): str(phase) for who, phase in said["waiting"].items()}
                self.stale += [who for who in self.waiting[name] if who in said.get("stale", ())]
        except FrameError as error:
            self.failed.append(Failed(name, frame.phase, str(error)))
        except (AttributeError, KeyError, OverflowError, TypeError, ValueError):
            self.failed.append(Failed(name, frame.phase, "sent a report that cannot be read"))

    def compare(self, homes: Sequence[str]) -> None:
        """Blame the first home whose result is none, or not the first one's."""
        results = {name: self.prepared[name].get("published") for name in homes}
        for name, result in results.items():
            if result != results[homes[0]] or not _is_published(result):
                self.failed.append(Failed(name, control.PREPARED, f"ended with {result}, {homes[0]} with another"))
                return

    def result(self, homes: Sequence[str]) -> Published | None:
        """What all homes could settle by; None if any party cannot."""
        if self.failed or self.lost:
            return None
        return Published(*self.prepared[homes[0]]["published"])

    def blame(self) -> ProtocolError:
        """Who made the window fail: for whom do others wait who does not wait itself?"""
        # What was told after the first fault may be its consequence.
        certain = [failed for failed in self.failed if not failed.late]
        if self.lost:
            name = self.lost[0]
            told = [failed for failed in certain if failed.party == name]
            phases = [failed.phase for failed in told] + [on[name] for on in self.waiting.values() if name in on]
            phases += [phase for on in self.waiting.values() for phase in on.values()]  # where the others are
            reason = "its process has stopped or does not answer"
            return ProtocolError(name, (phases or [control.BEGIN])[0], reason)
        late = self.failed[0]
        if not late.late:
            return ProtocolError(*late[:3])
        if self.stale:
            name = self.stale[0]
            phase = next(on[name] for on in self.waiting.values() if name in on)
            return ProtocolError(name, phase, "sent only what is of a window that was given up")
        for waits in self.waiting.values():
            for name, phase in waits.items():
                if not self.waiting.get(name) and name not in self.prepared:
                    return Timeout(name, phase, late.reason)
        return Timeout(*late[:3])

    def traffic(self) -> tuple[int, int, dict[str, tuple[int, int]]]:
        """Bytes of frames, messages, and messages and bytes of payloads by phase."""
        sums: dict[str, tuple[int, int]] = {}
        for said in self.prepared.values():
            for phase, (messages, size) in said["traffic"].items():
                before = sums.get(phase, (0, 0))
                sums[phase] = before[0] + messages, before[1] + size
        sent = sum(said["sent"] for said in self.prepared.values())
        return sent, sum(messages for messages, _ in sums.values()), sums


def _is_published(result: Any) -> bool:
    return isinstance(result, list) and len(result) == 4 and all(type(value) is int for value in result)
