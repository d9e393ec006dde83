"""Groups messages into HTTP calls, and sends some calls late or twice."""

import heapq
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import count, islice
from random import Random
from typing import Any

Message = dict[str, Any]

# The most calls that overtake a late or repeated call. It also limits the calls held in memory.
LONGEST_DELAY = 60
# The most seconds that a call is late at a given rate: Lytics' API shows a transition when it is made, so the audits of
# the bridge would take a call that comes minutes later for a missing one.
LATE_SECONDS = 20


@dataclass(frozen=True, kw_only=True)
class Call:
    body: bytes
    events: int
    late: bool = False
    repeated: bool = False


def calls(
    messages: Iterable[Message], *, batch: int, late: float, repeat: float, seed: int, rate: float | None = None
) -> Iterator[Call]:
    random = Random(f"{seed}/calls")
    longest_delay = min(LONGEST_DELAY, max(1, int(LATE_SECONDS * rate / batch))) if rate else LONGEST_DELAY
    held: list[tuple[int, int, Call]] = []
    ticket = count()

    def hold(call: Call) -> None:
        heapq.heappush(held, (number + random.randint(1, longest_delay), next(ticket), call))

    for number, some in enumerate(_batches(messages, batch)):
        while held and held[0][0] <= number:
            yield heapq.heappop(held)[2]
        call = _call(some, single=batch == 1)
        if random.random() < repeat:
            hold(replace(call, repeated=True))
        if random.random() < late:
            random.shuffle(some)
            hold(replace(_call(some, single=batch == 1), late=True))
        else:
            yield call
    while held:
        yield heapq.heappop(held)[2]


def _batches(messages: Iterable[Message], size: int) -> Iterator[list[Message]]:
    messages = iter(messages)
    while some := list(islice(messages, size)):
        yield some


def _call(messages: list[Message], *, single: bool) -> Call:
    body = json.dumps(messages[0] if single else messages, separators=(",", ":"), ensure_ascii=False)
    return Call(body=body.encode(), events=sum(len(one["data"]["segment_events"]) for one in messages))
