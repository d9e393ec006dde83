"""The protocol of docs/lanes.md in every order of its steps: it holds, and each of its promises is needed for that."""

import os

import pytest

from tests.model.explore import explore
from tests.model.protocol import BrokenError, start

# Events of each lane, and how many crashes, failures, repeats and pauses that are too long may come between them.
SMALL = {"two events": ((2,), 1), "two lanes": ((1, 1), 1)}
# Some minutes: make fuzz.
LARGE = {"three events": ((3,), 1), "two troubles": ((2,), 2), "two lanes, three events": ((2, 1), 0)}
SIZES = {**SMALL, **(LARGE if "MODEL_EXAMPLES" in os.environ else {})}

# The mutation, and the violation that it leads to by the shortest sequence of steps.
TWINS = {
    "numbering without the lock": "an accepted event is lost",
    "cursor over ids": "the ledger is not the fold of what is delivered",
    "fold by arrival": "the ledger is not the fold of what is delivered",
    "claim of one more than there is": "a gap in the log",
    "open runs left open": "two open runs in a lane",
    "a request without its lease": "two open runs in a lane",
    "a request begun too late": "two requests in flight for a lane",
    "lease shorter than the deadline": "two requests in flight for a lane",
    "settle without the token": "two requests in flight for a lane",
    "no sweep": "it never comes to an end",
    "nothing affirmed": "all is done and ODP is wrong",
    "affirmed too soon": "all is done and ODP is wrong",
}


@pytest.mark.parametrize("size", SIZES)
def test_every_promise_holds_in_every_order_of_the_steps(size: str) -> None:
    lanes, alerts = SIZES[size]
    states = explore(start(*lanes, alerts=alerts))
    print(f"{size}: {states:,} states")
    assert states > 10_000, "smaller than it was"


@pytest.mark.parametrize("twin", TWINS)
def test_no_promise_can_be_left_out(twin: str) -> None:
    with pytest.raises(BrokenError, match=TWINS[twin]):
        explore(start(2), twin=twin)
