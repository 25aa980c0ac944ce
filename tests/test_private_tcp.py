"""Private clearing by processes over TCP: whatever a party does, the window ends in time and for everybody alike."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from private_market import PRICES

from p2penv.pem.protocols import certificates, plain
from p2penv.pem.protocols.channel import ProtocolError, Timeout
from p2penv.pem.protocols.deployment import PROGRAM, Deployment, Outcome, Settled
from p2penv.pem.protocols.market import Window
from p2penv.pem.protocols.roster import Own

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="processes of parties need a system with fork")

LIMIT, GRACE = 5.0, 2.0
FAULTY = (sys.executable, str(Path(__file__).with_name("private_faults.py")))
HOMES = [
    Own(5000, 4_200_000, 50_000, 5000),
    Own(6000, 4_000_000, 50_000, 6000),
    Own(-9000, 0, 0, 0),
    Own(-8000, 0, 0, 0),
]
# In each window what goes wrong with whom, and what is said of it; home_1 sells, home_2 and home_3 buy.
OFFERS = "committee.offers"
FAULTS = [
    ("none", "", "", ""),
    ("truncated", "home_1", OFFERS, "stream ended within a frame"),
    ("oversized", "home_2", OFFERS, "frame must have 8 to"),
    ("replayed", "home_1", OFFERS, "replayed a message of window 1 in window 4"),
    ("leftover", "home_1", OFFERS, "sent only what is of a window that was given up"),
    ("phase", "home_1", OFFERS, "sent committee_0 a message of phase 'committee.fill'"),
    ("name", "home_1", OFFERS, "sent a frame in the name of home_0"),
    ("garbage", "home_2", OFFERS, "frame must start with"),
    ("payload", "home_1", OFFERS, ""),
    ("certificate", "home_2", OFFERS, "refused its connection"),
    ("late", "home_1", OFFERS, f"could not settle within {LIMIT:g} s"),
    ("none", "", "", ""),
    ("stopped", "home_3", OFFERS, "its process has stopped or does not answer"),
    ("killed", "home_1", "committee.", "its process has stopped or does not answer"),
    ("none", "", "", ""),
    ("killed", "committee_2", "committee.", "its process has stopped or does not answer"),
    ("gone", "committee_2", "control.ask", "is gone"),
]


class Story(NamedTuple):
    """What happened, window by window."""

    outcomes: list[Outcome]
    alive: list[list[str]]  # after each window
    ledgers: dict[str, list[Settled]]
    left: list[str]  # parties whose processes are still there in the end


def running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


async def play(folder: Path) -> Story:
    plan: dict[str, dict[str, str]] = {}
    for window, (fault, party, *_) in enumerate(FAULTS, 1):
        plan.setdefault(party, {})[str(window)] = fault
    outcomes, alive = [], []
    market = Deployment(
        {f"home_{home}": [own] for home, own in enumerate(HOMES)},
        PRICES,
        "committee",
        limit=LIMIT,
        grace=GRACE,
        coalition=1,
        folder=folder,
        program=(*FAULTY, json.dumps(plan)),
    )
    async with market:
        for _ in FAULTS:
            outcomes.append(await market.clear())
            alive.append(market.alive)
        processes = {name: market.process_id(name) for name in (*market.helpers, *market.homes)}
    ledgers = {name: market.ledger(name) for name in market.homes}
    return Story(outcomes, alive, ledgers, [name for name, number in processes.items() if running(number)])


@pytest.fixture(scope="module")
def story(tmp_path_factory):
    return asyncio.run(play(tmp_path_factory.mktemp("market")))


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(FAULTS)), ids=[" ".join(each[:2]).strip() for each in FAULTS])
def test_a_window_ends_in_time_and_for_everybody_alike(story, number):
    fault, party, phase, reason = FAULTS[number]
    outcome, window = story.outcomes[number], number + 1
    assert outcome.window == window
    assert outcome.seconds < LIMIT + GRACE + 1.0
    took_part = {name for name in story.ledgers if number == 0 or name in story.alive[number - 1]}
    if fault == "none":
        homes = [int(name.removeprefix("home_")) for name in sorted(took_part)]
        rows = np.array([HOMES[home] for home in homes])
        clear = plain.clear(Window(*rows[:, :3].T, PRICES, coalition=1))
        assert outcome.error is None
        assert outcome.published == clear.published
        traded = dict(zip(sorted(took_part), clear.allocation.tolist(), strict=True))
    else:
        assert outcome.published is None
        assert outcome.error.party == party
        assert outcome.error.phase.startswith(phase)
        assert reason in outcome.error.reason
        assert isinstance(outcome.error, Timeout) == (fault == "late")
        traded = dict.fromkeys(took_part, 0)
    if fault in {"killed", "stopped"}:
        assert party not in story.alive[number]
        took_part.discard(party)
    elif number:
        assert story.alive[number] == story.alive[number - 1]
    for name in story.ledgers:
        lines = [line for line in story.ledgers[name] if line.window == window]
        ends = [line for line in lines if line.state != "prepared"]
        assert len(ends) == (name in took_part), lines
        for line in ends:
            own = HOMES[int(name.removeprefix("home_"))]
            assert (line.state, line.traded) == ("market" if fault == "none" else "grid", traded[name])
            assert line.energy == abs(own.net)
            inside = PRICES.retail if outcome.published is None else outcome.published.price
            outside = PRICES.buyback if own.net > 0 else PRICES.retail
            paid = inside * line.traded + outside * (line.energy - line.traded)
            assert line.payment == (-paid if own.net > 0 else paid)


@pytest.mark.slow
def test_no_process_is_left(story):
    assert story.left == []
    assert story.alive[-1] == ["committee_0", "committee_1", "home_0", "home_2"]


def test_a_party_with_another_certificate_cannot_join(tmp_path, monkeypatch):
    """An authority of its own signs what the coordinator has to trust."""
    issue, stranger = certificates.Authority.issue, certificates.Authority()

    def wrong(self, name, folder):
        issue(stranger if name == "home_1" else self, name, folder)
        if name == "home_1":
            (folder / certificates.AUTHORITY).unlink()
            issue(self, name, folder / "right")
            (folder / "right" / certificates.AUTHORITY).rename(folder / certificates.AUTHORITY)

    monkeypatch.setattr(certificates.Authority, "issue", wrong)

    async def start():
        homes = {f"home_{home}": [own] for home, own in enumerate(HOMES[:2])}
        async with Deployment(homes, PRICES, "committee", grace=GRACE, folder=tmp_path):
            pass

    with pytest.raises(ProtocolError, match=r"home_1 in phase 'control\.join'"):
        asyncio.run(start())


COORDINATOR = """
import asyncio, sys
from pathlib import Path
from p2penv.pem.protocols.deployment import Deployment
from p2penv.pem.protocols.roster import Own
from p2penv.pem.rules import Prices

async def main():
    homes = {"home_0": [Own(5, 1, 1, 5)], "home_1": [Own(-5, 0, 0, 0)]}
    async with Deployment(homes, Prices(800, 900, 1100, 1200), "committee", folder=Path(sys.argv[1])) as market:
        names = (*market.helpers, *market.homes)
        print(*(market.process_id(name) for name in names), market._starter.pid, flush=True)
        await asyncio.sleep(60)

asyncio.run(main())
"""


def test_processes_end_with_their_coordinator(tmp_path):
    command = [sys.executable, "-c", COORDINATOR, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as coordinator:
        numbers = [int(number) for number in coordinator.stdout.readline().split()]
        assert len(numbers) == 6
        assert all(map(running, numbers))
        coordinator.send_signal(signal.SIGKILL)
    until = time.monotonic() + 30.0
    while any(map(running, numbers)) and time.monotonic() < until:
        time.sleep(0.05)
    assert not any(map(running, numbers))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"homes": {}}, "homes must be at least 1"),
        ({"homes": {"home_0": []}}, "at least 1 window"),
        ({"backend": "plain"}, "backend"),
        ({"bits": 512}, "at least 2048 bits"),
        ({"limit": 0.0}, "limit"),
        ({"grace": -1.0}, "grace"),
        ({"coalition": 0}, "coalition"),
        ({"backend": "hardened", "coalition": 2}, "coalition must be at least 3 for the hardened protocol"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Deployment(**({"homes": {"home_0": [HOMES[0]]}, "prices": PRICES} | options))
    assert PROGRAM[0] == sys.executable
