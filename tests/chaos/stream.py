"""Lytics in a chaos run: the sandbox's sender, and a record of all calls that were answered 200."""

import json
import threading
from collections import defaultdict
from datetime import datetime
from typing import Any

from sandbox.lytics.audiences import Audience, audiences
from sandbox.lytics.calls import Call, calls
from sandbox.lytics.sender import Job, Sender
from sandbox.lytics.stream import Plan, Stream
from tests.chaos.house import Install

EXIT, ENTER, CHANGE = 0, 1, 2
KINDS = {"exit": EXIT, "enter": ENTER, "change": CHANGE}
# Messages in a call, calls at once per install, and how much faster than Lytics the sender tries again.
BATCH, CALLERS, RETRY_SCALE = 100, 5, 0.05
LATE, REPEATED = 0.08, 0.05
CUSTOMER_FIELD = "_id"

# When and what, in one number that sorts as the later truth does: at one instant an exit comes last.
Mark = int


def mark(occurred_ns: int, kind: int) -> Mark:
    return occurred_ns * 4 + (3 if kind == EXIT else kind)


def is_in(the_mark: Mark) -> bool:
    return the_mark % 4 != 3


class Source:
    """One Lytics account. ``accepted`` holds by segment and identifier each transition as often as it got a 200."""

    def __init__(
        self, install: Install, *, events: int, how_many: int, seed: int, rate: float, retry_scale: float = RETRY_SCALE
    ) -> None:
        self.install = install
        self.audiences: list[Audience] = audiences(how_many=how_many, seed=seed)
        self.accepted: defaultdict[str, defaultdict[str, list[Mark]]] = defaultdict(lambda: defaultdict(list))
        self.events = 0
        self.job = Job(retry_scale=retry_scale, notice=lambda words: None)
        self._rate = rate
        plan = Plan(
            events=events, audiences=self.audiences, seed=seed, customers=max(1, events // 4),
            identifier_field=CUSTOMER_FIELD,
        )  # fmt: skip
        self._calls = calls(Stream(plan), batch=BATCH, late=LATE, repeat=REPEATED, seed=seed)
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._send, daemon=True)

    def start(self) -> None:
        self._thread.start()

    @property
    def is_done(self) -> bool:
        return not self._thread.is_alive()

    def _send(self) -> None:
        sender = Sender(
            url=self.install.url,
            authorization=self.install.authorization,
            job=self.job,
            timeout=10,
            done=self._remember,
        )
        sender.send(self._calls, callers=CALLERS, rate=self._rate)

    def _remember(self, call: Call) -> None:
        """Called when a call was answered 200 (or given up, which the judge asks the tally about)."""
        told: Any = json.loads(call.body)
        with self._lock:
            for message in told:
                for transition in message["data"]["segment_events"]:
                    what = transition["event"]
                    at = transition.get(what) if what != "change" else message["meta"]["timestamp"]
                    known = self.accepted[transition["id"]][str(message["data"][CUSTOMER_FIELD])]
                    known.append(mark(nanoseconds(at), KINDS[what]))
                    self.events += 1


def nanoseconds(text: str) -> int:
    """A time as Lytics writes it. Python's own reader stops at microseconds."""
    day = text.replace("Z", "+00:00")
    seconds, zone = day[:19], day[-6:]
    fraction = day[19:-6].lstrip(".").ljust(9, "0")
    return round(datetime.fromisoformat(seconds + zone).timestamp()) * 1_000_000_000 + int(fraction)
