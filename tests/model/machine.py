"""The state machine of tests/test_state_machine.py: its steps, and the invariants that hold after each step."""

from collections.abc import Sequence
from contextlib import ExitStack
from datetime import timedelta
from typing import Any

from django.conf import settings
from django.db import connection
from django.utils.timezone import now
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from audiences.delivery import claims, holds
from audiences.delivery.fold import FORGOTTEN
from audiences.models import Audience, Delivery, Event, Install, Lane, Parked, Resend, Run
from audiences.operations import audit, parked_items, resends
from audiences.operations.reconcile import reconcile
from audiences.receiving import ingest
from audiences.receiving.log_range import Stretch
from lytics import times
from sandbox.odp.world import DEFAULT_PRIVATE_KEY
from tests.delivering import lane_of
from tests.messages import AT_NS, body, message, transition
from tests.model.players import LEASE_MARGIN, TROUBLES, Clock, Odp, Worker, stage
from workers import tasks

# Audience, customer, what happened, when.
Happening = tuple[str, str, str, int]

SLUGS = ("gold", "silver")
CUSTOMERS = ("ann", "ben", "cyd", "dee")
KINDS = {"enter": 1, "exit": 0, "change": 2}
TABLES = ("resend", "parked", "run", "delivery", "membership", "event", "lane", "receipt", "audience", "install")

# The invariants of the audit and two more, in one statement, because it runs after every step.
TRUTHS = {
    **{truth: statement.text for truth, statement in audit.TRUTHS.items()},
    "no more leases at a time than requests allowed": """
        SELECT '', format('%%s leases', count(DISTINCT lease_token))
        FROM audiences_lane WHERE lease_expires_at > clock_timestamp()
        HAVING count(DISTINCT lease_token) > (SELECT max_in_flight FROM audiences_install)
    """,
    "no more audiences are made at a time than may be": f"""
        SELECT '', format('%%s makings', count(*))
        FROM audiences_audience WHERE making_until_at > clock_timestamp() HAVING count(*) > {claims.MAKING_AT_ONCE}
    """,
    "who is refused is parked": """
        SELECT '', held.identifier FROM audiences_membership AS held WHERE held.refused AND NOT EXISTS (
            SELECT FROM audiences_parked AS parked WHERE parked.audience_id = held.audience_id
            AND parked.identifier = held.identifier AND parked.sequence = held.sequence
        )
    """,
}
EVERY_TRUTH = " UNION ALL ".join(
    f"SELECT '{truth}', truth.* FROM ({statement}) AS truth" for truth, statement in TRUTHS.items()
)

what_happens = st.tuples(
    st.sampled_from(SLUGS), st.sampled_from(CUSTOMERS), st.sampled_from(list(KINDS)), st.integers(0, 9)
)
some_happen = st.lists(what_happens, min_size=1, max_size=6)
a_worker = st.sampled_from([0, 1])
a_lane = st.sampled_from(SLUGS)


class Bridge(RuleBasedStateMachine):
    """One install, two audiences, four customers, two workers."""

    margin: float = LEASE_MARGIN
    workers: Sequence[Worker] = ()

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.odp = Odp(self.clock)
        self.hints: set[int] = set()
        # What Lytics was answered 200 for, by segment and in order: customer, kind, time.
        self.accepted: dict[str, list[tuple[str, int, int]]] = {slug: [] for slug in SLUGS}
        self.stack = ExitStack()
        self.stack.enter_context(stage(self.odp, self.hints, margin=self.margin))
        with connection.cursor() as cursor:
            for table in TABLES:
                cursor.execute(f"DELETE FROM audiences_{table}")

    @initialize(
        batch_size=st.sampled_from([3, 6]),
        max_in_flight=st.sampled_from([1, 2]),
        first=some_happen,
        bad=st.sets(st.sampled_from(CUSTOMERS), max_size=1),
    )
    def connect(self, batch_size: int, max_in_flight: int, first: list[Happening], bad: set[str]) -> None:
        self.install = Install.objects.create(
            name="Shop",
            odp_api_key=DEFAULT_PRIVATE_KEY,
            requests_per_second=0,
            batch_size=batch_size,
            max_in_flight=max_in_flight,
        )
        self.odp.bad_customers = bad
        self.receive(first)

    # --- Lytics --------------------------------------------------------------------------------------------------

    @rule(happenings=some_happen)
    def receive(self, happenings: list[Happening]) -> None:
        told = [
            message(transition(kind, segment=f"id of {slug}", slug=slug, at=_at(moment)), who=who, meta=_meta(moment))
            for slug, who, kind, moment in happenings
        ]
        assert ingest.receive(self.install, body(*told)).queued == len(happenings)
        for slug, who, kind, moment in happenings:
            self.accepted[slug].append((who, KINDS[kind], AT_NS + moment))

    # --- workers -------------------------------------------------------------------------------------------------

    @rule(which=a_worker, steps=st.integers(1, 5))
    def work(self, which: int, steps: int) -> None:
        """An idle worker acknowledges a hint and continues for some steps with a healthy ODP."""
        worker = self.workers[which]
        for _ in range(steps):
            if worker.at != "idle":
                worker.go()
            elif self.hints:
                self.hints.clear()
                worker.start(self.install.pk)

    @rule(alert=st.sampled_from(list(TROUBLES)), which=a_worker)
    def alert(self, alert: str, which: int) -> None:
        worker = self.workers[which]
        if worker.at in ("in flight", "making an audience"):
            worker.answer = TROUBLES[alert]
            worker.go()

    @rule(which=a_worker, inside=st.booleans())
    def kill(self, which: int, inside: bool) -> None:
        """Kill the worker where it is paused, or in the middle of its next transaction."""
        worker = self.workers[which]
        if inside:
            worker.dies_inside = True
        elif worker.at != "idle":
            worker.go(dies=True)

    def until(self, which: int, place: str) -> None:
        """The worker continues to that place, or until it has no more work."""
        tasks.sweep()
        for _ in range(50):
            self.work(which, 1)
            if self.workers[which].at in (place, "idle"):
                return
        raise AssertionError(f"it never comes to {place}")

    @rule(happenings=some_happen, which=a_worker, steps=st.integers(1, 14))
    def receive_and_work(self, happenings: list[Happening], which: int, steps: int) -> None:
        self.receive(happenings)
        self.work(which, steps)

    @rule(which=a_worker, steps=st.integers(1, 14))
    def sweep_and_work(self, which: int, steps: int) -> None:
        tasks.sweep()
        self.work(which, steps)

    @rule(happenings=some_happen, which=a_worker, alert=st.sampled_from(list(TROUBLES)))
    def work_until_there_is_trouble(self, happenings: list[Happening], which: int, alert: str) -> None:
        self.receive(happenings)
        for _ in range(9):
            if self.workers[which].at != "in flight":
                self.work(which, 1)
        self.alert(alert, which)

    @rule()
    def lose_hints(self) -> None:
        self.hints.clear()

    # --- time, and ODP -------------------------------------------------------------------------------------------

    @rule(seconds=st.sampled_from([150, 500, 900, 1_200]))
    def time_passes(self, seconds: float) -> None:
        self.clock.advance(seconds)
        for worker in self.workers:
            request = self.odp.flying.get(id(worker))
            if request and self.clock.now - request.began_at >= settings.DELIVERY_DEADLINE_SECONDS:
                worker.go()  # its timer cuts the connection
        self.odp.forget_the_oldest()

    @rule(which=st.integers(0, 9))
    def apply_late(self, which: int) -> None:
        if self.odp.late:
            self.odp.apply(self.odp.late.pop(which % len(self.odp.late)), late=True)

    @rule(
        customers=st.sets(st.sampled_from(CUSTOMERS), max_size=2),
        audiences=st.sets(st.sampled_from([f"lytics_{slug}" for slug in SLUGS]), max_size=1),
        named=st.booleans(),
        limit=st.sampled_from([500, 500, 2]),
    )
    def odp_takes_no_more(self, customers: set[str], audiences: set[str], named: bool, limit: int) -> None:
        self.odp.bad_customers, self.odp.bad_audiences, self.odp.limit = customers, audiences, limit
        self.odp.names_them = named

    @rule()
    def minutes_pass(self) -> None:
        """Let enough time pass for abandoned requests to be reconciled."""
        for _ in range(4):
            self.time_passes(8_000)
        reconcile()

    # --- people --------------------------------------------------------------------------------------------------

    @rule(slug=a_lane, act=st.sampled_from(["pause", "resume", "unblock", "resync", "replay"]), first=st.integers(1, 5))
    def act(self, slug: str, act: str, first: int) -> None:
        audience = Audience.objects.filter(install=self.install, latest_slug=slug).first()
        if audience is None:
            return
        lane = lane_of(audience)
        if act == "pause":
            holds.pause(lane, by="kim", reason="holiday")
        elif act == "resync":
            resends.resync(audience, by="kim", reason="doubt")
        elif act == "replay" and first <= audience.last_sequence:
            last = min(first + 2, audience.last_sequence)
            stretch = Stretch(first, last, last - first + 1)
            ever = {"start": now() - timedelta(days=9_999), "end": now() + timedelta(days=9_999)}
            resends.replay(audience, stretch, **ever, by="kim", reason="doubt")
        else:
            (holds.resume if act == "resume" else holds.unblock)(lane)

    @rule(stops=st.booleans())
    def resend(self, stops: bool) -> None:
        """One chunk of a Resend, or its end."""
        unfinished = Resend.objects.filter(ended_at=None).first()
        if unfinished is not None:
            resends.stop(unfinished, by="kim") if stops else resends.advance(unfinished.pk)

    @rule(release=st.booleans())
    def release_or_discard(self, release: bool) -> None:
        first = Parked.objects.filter(closed_at=None).order_by("pk").values_list("pk", flat=True)[:1]
        (parked_items.release if release else parked_items.discard)(list(first), by="kim")

    @rule(enabled=st.booleans())
    def switch(self, enabled: bool) -> None:
        Install.objects.update(enabled=enabled)

    # --- Invariants after each step -------------------------------------------------------------------------------

    @invariant()
    def every_truth_holds(self) -> None:
        with connection.cursor() as cursor:
            cursor.execute(EVERY_TRUTH, {"tolerance_seconds": settings.CLOCK_TOLERANCE_SECONDS, "forgotten": FORGOTTEN})
            broken = cursor.fetchall()
        assert not broken, broken

    def the_log_is_what_was_accepted(self) -> None:
        log: dict[str, list[tuple[str, int, int]]] = {slug: [] for slug in SLUGS}
        for event in Event.objects.filter(forced=False).select_related("audience").order_by("audience", "sequence"):
            log[event.audience.slug].append((event.identifier, event.kind, event.occurred_ns))
        assert log == self.accepted

    # --- in the end ------------------------------------------------------------------------------------------------

    def teardown(self) -> None:
        try:
            self.to_the_end()
        finally:
            self.leave()

    def to_the_end(self) -> None:
        self.heal()
        self.come_to_an_end()
        self.every_truth_holds()
        self.the_log_is_what_was_accepted()
        self.odp_holds_what_lytics_said()

    def leave(self) -> None:
        for worker in self.workers:
            worker.failed = None
            while worker.at != "idle":
                worker.go(dies=True)
        self.stack.close()

    def heal(self) -> None:
        while self.odp.late:
            self.apply_late(0)
        self.odp_takes_no_more(set(), set(), True, 500)
        self.switch(True)
        for lane in Lane.objects.all():
            holds.resume(lane)

    def come_to_an_end(self) -> None:
        for _ in range(15):
            self.lose_hints()
            for lane in Lane.objects.filter(blocked_at__isnull=False):
                holds.unblock(lane)
            parked_items.release(Parked.objects.filter(closed_at=None).values_list("pk", flat=True), by="kim")
            resends.advance_all(self.install.pk, seconds=60)
            for which in range(len(self.workers)):
                tasks.sweep()
                self.work(which, 200)
            while self.odp.late:
                self.apply_late(0)
            if all(worker.at == "idle" for worker in self.workers) and not reconcile() and not self._waits():
                return
            self.minutes_pass()
        raise AssertionError("it never comes to an end")

    def _waits(self) -> bool:
        if Resend.objects.filter(ended_at=None).exists():
            return True
        doubtful = Delivery.objects.filter(reconciled_at=None, outcome__in=["unknown", "retry_later"])
        return doubtful.union(Delivery.objects.filter(closed_at=None)).exists() or any(
            lane.delivered_sequence < lane.audience.last_sequence for lane in Lane.objects.select_related("audience")
        )

    def odp_holds_what_lytics_said(self) -> None:
        given_up = set(Parked.objects.filter(resolution="discarded").values_list("audience__slug", "identifier"))
        for slug, told in self.accepted.items():
            newest: dict[str, tuple[int, bool]] = {}
            for who, kind, at in told:
                newest[who] = max(newest.get(who, (0, False)), (at, kind == 0))
            for who, (_, has_left) in newest.items():
                if (slug, who) not in given_up:
                    assert self.odp.is_member(f"lytics_{slug}", who) is not has_left, f"{who} in {slug}"
        assert not Run.objects.filter(closed_at=None).exists()


def _at(moment: int) -> str:
    return f"{times.moment(AT_NS):%Y-%m-%dT%H:%M:%S}.{moment:09d}Z"


def _meta(moment: int) -> dict[str, Any]:
    """A change has no separate time: it happens when its message is created."""
    return {"object": "user", "subscription_id": "job-7", "timestamp": _at(moment)}
