"""The fold: the memberships don't depend on the order, repeats or division into runs."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from audiences.delivery.fold import EARLIEST_NS, Entry, Held, disbelieve, fold, newest
from lytics.facts import Kind

Memberships = dict[str, tuple[bool, int]]


def model(entries: Iterable[Entry]) -> Memberships:
    """What must result: the latest transition decides, and an exit decides a tie."""
    latest: dict[str, tuple[int, bool]] = {}
    for entry in entries:
        rank = entry.occurred_ns, entry.kind == Kind.EXIT
        latest[entry.identifier] = max(rank, latest.get(entry.identifier, rank))
    return {identifier: (not is_exit, at) for identifier, (at, is_exit) in latest.items()}


@dataclass
class Lane:
    """A ledger and what ODP holds, moved on by the real fold one run at a time."""

    ledger: dict[str, Held] = field(default_factory=dict)
    odp: dict[str, bool] = field(default_factory=dict)
    sent: list[Entry] = field(default_factory=list)

    def take(self, run: Sequence[Entry]) -> "Lane":
        folded = fold(run, self.ledger)
        assert len({entry.identifier for entry in folded.send}) == len(folded.send)
        for entry in folded.send:
            self.odp[entry.identifier] = entry.kind != Kind.EXIT
        for entry in (*folded.send, *folded.unchanged):
            self.ledger[entry.identifier] = Held(entry.kind != Kind.EXIT, entry.occurred_ns)
        self.sent += folded.send
        return self

    @property
    def memberships(self) -> Memberships:
        return {identifier: (held.is_member, held.occurred_ns) for identifier, held in self.ledger.items()}


def after(*runs: Sequence[Entry]) -> Lane:
    lane = Lane()
    for run in runs:
        lane.take(run)
    return lane


# Few identifiers and few times, so that ties and repeats are frequent.
entries = st.builds(
    Entry,
    sequence=st.integers(1, 50),
    identifier=st.sampled_from(["kim", "lee", "mo"]),
    kind=st.sampled_from([int(kind) for kind in Kind]),
    occurred_ns=st.integers(-2, 4),
    forced=st.booleans(),
)
streams = st.lists(entries, max_size=25)


def cut(stream: Sequence[Entry], places: Iterable[int]) -> list[Sequence[Entry]]:
    edges = sorted({0, len(stream), *(place for place in places if place < len(stream))})
    return [stream[start:end] for start, end in pairwise(edges)]


@given(streams, st.data())
@settings(max_examples=300)
def test_order_repeats_and_cutting_make_no_difference(stream: list[Entry], data: st.DataObject) -> None:
    repeats = data.draw(st.lists(st.sampled_from(stream), max_size=10)) if stream else []
    shuffled = data.draw(st.permutations([*stream, *repeats]))
    runs = cut(shuffled, data.draw(st.lists(st.integers(0, 40), max_size=6)))
    lane = after(*runs)
    assert lane.memberships == model(stream)
    assert lane.odp == {identifier: is_member for identifier, (is_member, _) in model(stream).items()}


@given(streams, streams)
def test_it_is_commutative(one: list[Entry], other: list[Entry]) -> None:
    assert after(one, other).memberships == after(other, one).memberships


@given(streams, streams, streams)
def test_it_is_associative(first: list[Entry], second: list[Entry], third: list[Entry]) -> None:
    assert after([*first, *second], third).memberships == after(first, [*second, *third]).memberships


@given(streams)
def test_it_is_idempotent_and_a_repeat_sends_nothing(stream: list[Entry]) -> None:
    plain = [entry._replace(forced=False) for entry in stream]
    lane = after(plain)
    before, sent = lane.memberships, len(lane.sent)
    lane.take(plain)
    assert lane.memberships == before
    assert len(lane.sent) == sent


@given(streams, streams)
def test_a_forced_event_is_sent_again_unless_another_state_is_newer(first: list[Entry], again: list[Entry]) -> None:
    lane = after([entry._replace(forced=False) for entry in first])
    known, before = lane.memberships, len(lane.sent)
    lane.take([entry._replace(forced=True) for entry in again])
    resent = {entry.identifier for entry in lane.sent[before:]}
    for identifier, (is_member, at) in model(again).items():
        held_member, held_at = known.get(identifier, (True, -(2**63)))
        stale = (at, not is_member) < (held_at, not held_member)
        assert (identifier in resent) is (not stale or is_member == held_member)


def entry(kind: Kind, at: int, *, who: str = "kim", forced: bool = False) -> Entry:
    return Entry(1, who, kind, at, forced)


def test_a_late_enter_does_not_readd_a_member_who_left() -> None:
    lane = after([entry(Kind.EXIT, 5)], [entry(Kind.ENTER, 4)], [entry(Kind.CHANGE, 3)])
    assert lane.memberships == {"kim": (False, 5)}
    assert [one.kind for one in lane.sent] == [Kind.EXIT]


def test_an_exit_wins_a_tie_in_either_order() -> None:
    enter, leave = entry(Kind.ENTER, 5), entry(Kind.EXIT, 5)
    for runs in ([[enter, leave]], [[leave, enter]], [[enter], [leave]], [[leave], [enter]]):
        assert after(*runs).odp == {"kim": False}


def test_of_equal_events_an_enter_speaks_before_a_change_and_the_last_before_the_first() -> None:
    """Which of them speaks is which one the history shows, and what a later refusal is parked with."""
    enter, change = entry(Kind.ENTER, 5)._replace(sequence=1), entry(Kind.CHANGE, 5)._replace(sequence=2)
    assert newest([enter, change]) == newest([change, enter]) == {"kim": enter}
    again = enter._replace(sequence=3)
    assert newest([enter, again]) == newest([again, enter]) == {"kim": again}


def test_an_exit_of_a_customer_without_a_row_is_sent() -> None:
    assert after([entry(Kind.EXIT, 5)]).odp == {"kim": False}


def test_a_change_is_sent_for_a_customer_without_a_row_and_not_for_a_member() -> None:
    lane = after([entry(Kind.CHANGE, 5)], [entry(Kind.CHANGE, 6), entry(Kind.CHANGE, 6, who="lee")])
    assert [(one.identifier, one.occurred_ns) for one in lane.sent] == [("kim", 5), ("lee", 6)]
    assert lane.memberships == {"kim": (True, 6), "lee": (True, 6)}


def test_a_newer_entry_of_a_member_is_sent() -> None:
    """Lytics sends existing users as entries, and ODP may have lost them."""
    assert after([entry(Kind.ENTER, 5)], [entry(Kind.ENTER, 6)]).sent[-1].occurred_ns == 6


def test_a_change_that_moved_the_ledger_on_hides_nothing_that_has_to_be_said_again() -> None:
    """Such a change was never sent, so it can't replace the repeated event."""
    again = entry(Kind.ENTER, 5, forced=True)
    for runs in (
        [[entry(Kind.CHANGE, 6)], [again]],
        [[entry(Kind.CHANGE, 6), again]],
        [[again, entry(Kind.CHANGE, 6)]],
    ):
        lane = after([entry(Kind.ENTER, 5)], *runs)
        assert [(one.kind != Kind.EXIT, one.occurred_ns) for one in lane.sent] == [(True, 5), (True, 6)]
        assert lane.memberships == {"kim": (True, 6)}


def test_a_change_is_sent_when_a_failed_request_may_have_applied_an_exit() -> None:
    held = {"kim": Held(True, 5)}
    run = [entry(Kind.EXIT, 6), entry(Kind.ENTER, 7), entry(Kind.CHANGE, 8)]
    assert [one.occurred_ns for one in fold(run, held).send] == [8]
    assert fold([entry(Kind.EXIT, 4), entry(Kind.CHANGE, 8)], held).send == []


def test_a_forced_event_is_dropped_once_another_state_was_sent() -> None:
    lane = after([entry(Kind.ENTER, 5)], [entry(Kind.EXIT, 6)], [entry(Kind.ENTER, 5, forced=True)])
    assert [one.kind for one in lane.sent] == [Kind.ENTER, Kind.EXIT]


def test_a_change_after_an_exit_lets_the_member_in_again() -> None:
    assert after([entry(Kind.EXIT, 5)], [entry(Kind.CHANGE, 6)]).odp == {"kim": True}


def test_a_change_is_sent_when_odp_rejected_the_member() -> None:
    folded = fold([entry(Kind.CHANGE, 6)], {"kim": Held(True, 5, rejected=True)})
    assert [one.occurred_ns for one in folded.send] == [6]


def test_of_two_equal_events_the_forced_one_speaks() -> None:
    held = {"kim": Held(True, 5)}
    for run in ([entry(Kind.ENTER, 5), entry(Kind.ENTER, 5, forced=True)], [entry(Kind.CHANGE, 5, forced=True)]):
        for order in (run, run[::-1]):
            assert [one.forced for one in fold(order, held).send] == [True]


def test_a_time_ahead_of_the_clock_decides_where_only_such_times_are_known() -> None:
    """The ledger's is one of them, and is read as the earliest time."""
    ahead = entry(Kind.ENTER, 10**18)._replace(sequence=7)
    for held_ns, believed_ns in ((EARLIEST_NS, 10**18), (5, EARLIEST_NS)):
        (read,) = disbelieve([ahead], {7}, {"kim": Held(False, held_ns)})
        assert read.occurred_ns == believed_ns
