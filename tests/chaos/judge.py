"""The judge compares the events that got a 200 with the tables and with the state and requests of ODP.

It shares no code with the service: fold, order and pace are implemented again here.
"""

import json
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby, pairwise

from tests.chaos.faults import REFUSED
from tests.chaos.house import House
from tests.chaos.stream import Mark, Source, is_in, mark
from tests.chaos.wire import Wire

# Findings of one kind that are printed; further ones are only counted.
FINDINGS_LISTED = 5
# After a crash of PostgreSQL the pace starts again, and one request may arrive too early (docs/crashes.md).
PACE_AFTER_CRASH_SECONDS = 30.0


@dataclass
class Check:
    """One promise: the number of facts checked, and the violations."""

    promise: str
    looked_at: int = 0
    wrong: list[str] = field(default_factory=list)
    excused: int = 0

    def find(self, words: str) -> None:
        self.wrong.append(words)


@dataclass(frozen=True)
class Lane:
    """One audience, as the tables have it."""

    pk: int
    install: str
    segment_id: str
    odp_id: str
    last: int
    cursor: int
    blocked: str


class Judge:
    def __init__(self, house: House, sources: Sequence[Source], wire: Wire, crashes: Sequence[float]) -> None:
        self.house = house
        self.sources = {source.install.name: source for source in sources}
        self.wire = wire
        self.crashes = sorted(crashes)
        self.lanes = [
            Lane(*row)
            for row in house.sql(
                "SELECT a.id, i.name, a.segment_id, a.odp_id, a.last_sequence, l.delivered_sequence, l.block_reason"
                " FROM audiences_audience a JOIN audiences_install i ON i.id = a.install_id"
                " JOIN audiences_lane l ON l.audience_id = a.id ORDER BY a.id"
            )
        ]
        self.parked: defaultdict[int, set[str]] = defaultdict(set)
        for audience, identifier in house.sql(
            "SELECT audience_id, identifier FROM audiences_parked WHERE closed_at IS NULL AND sequence IS NOT NULL"
        ):
            self.parked[audience].add(identifier)

    def checks(self) -> list[Check]:
        looks: tuple[Callable[[], Check], ...] = (
            self.lytics_lost_nothing,
            self.everything_is_in_the_log,
            self.everything_has_come_to_an_end,
            self.odp_holds_the_truth,
            self.no_lane_was_in_two_requests,
            self.nothing_went_back,
            self.runs_follow_each_other,
            self.the_pace_was_kept,
            self.the_audit_is_clean,
        )
        return [look() for look in looks]

    # --- nothing lost ----------------------------------------------------------------------------------------

    def lytics_lost_nothing(self) -> Check:
        check = Check("every call of Lytics was taken in the end")
        for source in self.sources.values():
            check.looked_at += source.job.tally.calls
            if source.job.failed or not source.is_done:
                check.find(f"{source.install.name}: {source.job.failed or 'the stream has not ended'}")
            if source.job.tally.omitted:
                check.find(f"{source.install.name}: {source.job.tally.omitted} calls given up for good")
        return check

    def everything_is_in_the_log(self) -> Check:
        """Each transition as often as it got a 200, or more often: a call may be stored and its 200 be lost."""
        check = Check("every accepted event is in the log, and nothing else is")
        segments = {(lane.install, lane.segment_id) for lane in self.lanes}
        for name, source in self.sources.items():
            check.looked_at += source.events
            for segment_id in source.accepted.keys() - {segment for install, segment in segments if install == name}:
                check.find(f"{name}: nothing of the audience {segment_id} is there")
        for lane in self.lanes:
            accepted = self.sources[lane.install].accepted[lane.segment_id]
            missing = {who: list(marks) for who, marks in accepted.items()}
            for sequence, who, kind, occurred_ns, forced in self._events(lane):
                if forced:
                    continue
                the_mark = mark(occurred_ns, kind)
                if the_mark not in accepted.get(who, ()):
                    check.find(f"{lane.odp_id}: event {sequence} was never sent by Lytics")
                elif the_mark in missing[who]:
                    missing[who].remove(the_mark)
            for who, marks in missing.items():
                for lost in marks:
                    check.find(f"{lane.odp_id}: {who} at {lost // 4} was answered 200 and is not there")
        return check

    def _events(self, lane: Lane) -> Iterator[tuple[int, str, int, int, bool]]:
        yield from self.house.sql(
            "SELECT sequence, identifier, kind, occurred_ns, forced FROM audiences_event WHERE audience_id = %s",
            lane.pk,
        )

    def everything_has_come_to_an_end(self) -> Check:
        """Number by number: from one to the last, in runs that were delivered, folded or parked."""
        check = Check("every number is delivered, folded or parked")
        runs: defaultdict[int, list[tuple[int, int]]] = defaultdict(list)
        for audience, first, last in self.house.sql(
            "SELECT audience_id, first_sequence, last_sequence FROM audiences_run"
            " WHERE outcome IN ('delivered', 'refused') ORDER BY first_sequence, last_sequence"
        ):
            runs[audience].append((first, last))
        for lane in self.lanes:
            check.looked_at += lane.last
            reached = 0
            for first, last in runs[lane.pk]:
                if first > reached + 1:
                    check.find(f"{lane.odp_id}: {reached + 1}–{first - 1} lie in no run that came to an end")
                reached = max(reached, last)
            if not lane.last == lane.cursor <= reached:
                check.find(f"{lane.odp_id}: {lane.last} accepted, cursor {lane.cursor}, runs up to {reached}")
            if lane.blocked:
                check.find(f"{lane.odp_id}: blocked, {lane.blocked}")
            for who in self.parked[lane.pk]:
                if REFUSED not in who:
                    check.find(f"{lane.odp_id}: {who} is parked, and ODP was not told to refuse them")
        return check

    def odp_holds_the_truth(self) -> Check:
        """The newest accepted transition decides, and an exit wins at the same instant."""
        check = Check("memberships at ODP are the fold of what was accepted")
        for lane in self.lanes:
            truth = {who: max(marks) for who, marks in self._accepted(lane).items()}
            should = {who for who, newest in truth.items() if is_in(newest)} - self.parked[lane.pk]
            path = f"/sandbox/memberships/{lane.odp_id}?account={lane.install}"
            found = set(self.house.odp.control(path)["members"]) - self.parked[lane.pk]
            check.looked_at += len(truth)
            for who in should ^ found:
                found_so = "is not there" if who in should else "should not be there"
                history = self._last_told(lane, who) if len(check.wrong) < FINDINGS_LISTED else ""
                check.find(f"{lane.odp_id}: {who} {found_so}{history}")
        return check

    def _last_told(self, lane: Lane, who: str) -> str:
        """The last states that ODP received for these customers, with times, to find the cause after the run."""
        known = self.house.odp.control(f"/sandbox/customers/{who}?account={lane.install}")
        story = [f"{each // 4}{'+' if is_in(each) else '-'}" for each in sorted(self._accepted(lane)[who])[-5:]]
        numbers = self.house.sql(
            "SELECT e.sequence, e.kind, e.occurred_ns, e.forced, (SELECT array_agg(r.delivery_id || ' ' || r.outcome)"
            " FROM audiences_run r WHERE r.audience_id = e.audience_id"
            " AND e.sequence BETWEEN r.first_sequence AND r.last_sequence)"
            " FROM audiences_event e WHERE e.audience_id = %s AND e.identifier = %s ORDER BY e.sequence",
            lane.pk,
            who,
        )
        writes = [
            f"{write['number']} {write['arrived']:.2f}–{write['ended'] or 0:.2f} {write['status']} {write['item']}"
            for write in known["writes"][-6:]
            if lane.odp_id in str(write["item"])
        ]
        return f"; the story {story}; in the log {numbers}; told {writes}"

    def _accepted(self, lane: Lane) -> dict[str, list[Mark]]:
        return self.sources[lane.install].accepted[lane.segment_id]

    # --- nothing out of order --------------------------------------------------------------------------------

    def no_lane_was_in_two_requests(self) -> Check:
        check = Check("no lane was in two requests at once")
        for (_, odp_id), requests in self.wire.requests.items():
            check.looked_at += len(requests)
            for one, next_one in pairwise(sorted(requests)):
                if one[1] > next_one[0]:
                    both = f"{one[2]} and {next_one[2]}"
                    check.find(f"{odp_id}: requests {both} overlap by {one[1] - next_one[0]:.3f} s")
        return check

    def nothing_went_back(self) -> Check:
        """The states that ODP received for a customer are a subsequence of the states that Lytics sent."""
        check = Check("no customer went back to an older state")
        for lane in self.lanes:
            accepted = self._accepted(lane)
            for who, told in self.wire.told[lane.install, lane.odp_id].items():
                check.looked_at += 1
                story = [state for state, _ in groupby(is_in(each) for each in sorted(accepted.get(who, ())))]
                if not _is_part_of(told, story):
                    check.find(f"{lane.odp_id}: {who} was told as {_written(told)}, the story is {_written(story)}")
        return check

    def runs_follow_each_other(self) -> Check:
        check = Check("no Delivery of a lane began before where an earlier one did")
        for audience, rows in groupby(
            self.house.sql(
                "SELECT audience_id, first_sequence, delivery_id FROM audiences_run WHERE delivery_id IS NOT NULL"
                " ORDER BY audience_id, delivery_id"
            ),
            key=lambda row: row[0],
        ):
            for (_, one, _), (_, next_one, delivery) in pairwise(rows):
                check.looked_at += 1
                if next_one < one:
                    check.find(f"audience {audience}: Delivery {delivery} begins at {next_one}, after one at {one}")
        return check

    def the_pace_was_kept(self) -> Check:
        check = Check("the pace was kept in every second")
        for name, source in self.sources.items():
            rate = source.install.requests_per_second
            arrivals = sorted(self.wire.arrivals[name]) if rate else []
            check.looked_at += len(arrivals)
            for nth, first in enumerate(arrivals[rate:]):
                if first - arrivals[nth] < 1:
                    if nth + rate + 1 < len(arrivals) and arrivals[nth + rate + 1] - arrivals[nth] < 1:
                        check.find(f"{name}: {rate + 2} requests in one second")
                    elif self._pace_was_lost(arrivals[nth]):
                        check.excused += 1
                    else:
                        check.find(f"{name}: {rate + 1} requests in {first - arrivals[nth]:.3f} s")
        return check

    def _pace_was_lost(self, moment: float) -> bool:
        nth = bisect_left(self.crashes, moment)
        return nth > 0 and moment - self.crashes[nth - 1] < PACE_AFTER_CRASH_SECONDS

    def the_audit_is_clean(self) -> Check:
        check = Check("audit_log finds nothing", looked_at=len(self.lanes))
        said = json.loads(self.house.manage("audit_log", "--json") or "{}")
        for finding in said.get("findings", []):
            check.find(str(finding))
        return check


def _is_part_of(told: Sequence[bool], story: Sequence[bool]) -> bool:
    """Whether ``told`` is a subsequence of ``story``."""
    rest = iter(story)
    return all(any(state == each for each in rest) for state in told)


def _written(states: Sequence[bool]) -> str:
    return " ".join("in" if state else "out" for state in states) or "nothing"
