"""The real code on a real database in thousands of random steps, with every kind of failure.

``make fuzz EXAMPLES=500`` tries more sequences; see docs/decisions/0024-models.md.
"""

import os
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from django.conf import settings
from django.db import IntegrityError, connection, transaction
from hypothesis import HealthCheck, seed
from hypothesis import settings as hypothesis_settings
from hypothesis.stateful import run_state_machine_as_test

from audiences.delivery import claims, fold, provision, request_records, settling, unconfirmed
from audiences.models import Audience
from audiences.receiving import audience_lookup, ingest, plain_calls
from tests.delivering import happen, lane_of
from tests.messages import AT_NS
from tests.model.machine import Bridge
from tests.model.players import TIMES, Worker
from tests.threads import PATIENCE, eventually, start, waiting_for_a_lock
from workers import tasks

pytestmark = pytest.mark.django_db(transaction=True)

# A new seed per run: with few examples Hypothesis would spend most of them on variations of the first.
SEEDS = range(int(os.environ.get("MODEL_EXAMPLES", 10)))
BUDGET = hypothesis_settings(
    max_examples=2,
    stateful_step_count=50,
    deadline=None,
    database=None,
    report_multiple_bugs=False,
    suppress_health_check=list(HealthCheck),
)
Twin = Callable[[pytest.MonkeyPatch], None]


@pytest.fixture
def bridge(settings: Any) -> Iterator[type[Bridge]]:
    for name, seconds in TIMES.items():
        setattr(settings, name, seconds)
    workers = Worker(), Worker()
    yield type("Bridge", (Bridge,), {"workers": workers})
    for worker in workers:
        worker.end()


def test_odp_ends_up_with_the_memberships_of_lytics(bridge: type[Bridge]) -> None:
    for number in SEEDS:
        run_state_machine_as_test(seed(number)(bridge), settings=BUDGET)


# --- Mutation tests -------------------------------------------------------------------------------------------


def settle_without_the_token(patched: pytest.MonkeyPatch) -> None:
    theirs, anybodys = "lane.lease_token = %(token)s", "%(token)s::uuid IS NOT NULL"
    patched.setattr(settling, "_MOVE", settling._MOVE.replace(theirs, anybodys))


def a_request_without_its_lease(patched: pytest.MonkeyPatch) -> None:
    theirs = "lease_token = %(token)s AND lease_expires_at > clock_timestamp()"
    patched.setattr(request_records, "_OPEN", request_records._OPEN.replace(theirs, "%(token)s::uuid IS NOT NULL"))


def open_runs_left_open(patched: pytest.MonkeyPatch) -> None:
    patched.setattr(request_records, "close_abandoned", lambda lease: None)


def fold_by_arrival(patched: pytest.MonkeyPatch) -> None:
    patched.setattr(fold, "_rank", lambda entry: entry.sequence)
    patched.setattr(fold, "_decides", lambda entry, held: True)


def claim_of_one_more_than_there_is(patched: pytest.MonkeyPatch) -> None:
    one_more = claims._CLAIM.replace("packed.cursor + 1 AS first, packed.last,", "packed.cursor + 1, packed.last + 1,")
    patched.setattr(claims, "_CLAIM", one_more)


def lease_shorter_than_the_deadline(patched: pytest.MonkeyPatch) -> None:
    patched.setattr(settings, "LEASE_SECONDS", settings.DELIVERY_DEADLINE_SECONDS - 300)
    patched.setattr(Bridge, "margin", -settings.DELIVERY_DEADLINE_SECONDS)


def no_sweep(patched: pytest.MonkeyPatch) -> None:
    patched.setattr(tasks, "sweep", lambda: None)


def nothing_affirmed(patched: pytest.MonkeyPatch) -> None:
    patched.setattr(unconfirmed, "_OVERTAKEN", unconfirmed._OVERTAKEN.replace("WHERE ", "WHERE false AND "))


def refusals_not_parked(patched: pytest.MonkeyPatch) -> None:
    patched.setattr(settling, "_park", lambda install, results, delivery_id: None)


_KNOWN = "(SELECT coalesce(max(sequence), 0) FROM audiences_event AS e WHERE e.audience_id = audience.id)"


def _number_by(patched: pytest.MonkeyPatch, numbered: str) -> None:
    """Another way to number, for calls with one event of an audience. It waits for no other call."""
    for module, name in ((ingest, "_STORE"), (plain_calls, "_STORE_NAMED")):
        statement = getattr(module, name)
        before, _, rest = statement.text.partition("numbered AS (")
        _, found, after = rest.partition("AS before, audience.part\n)")
        assert found
        patched.setattr(module, name, replace(statement, text=f"{before} numbered AS ({numbered}) {after}"))
    patched.setattr(audience_lookup, "_LOCK", audience_lookup._LOCK.replace("FOR NO KEY UPDATE", ""))
    patched.setattr(plain_calls, "_LOCK_NAMED", plain_calls._LOCK_NAMED.replace("FOR NO KEY UPDATE OF audience", ""))


def numbering_without_the_lock(patched: pytest.MonkeyPatch) -> None:
    """The last number is read, and then written."""
    read = "SELECT id, number, last_sequence AS before, part FROM audiences_audience JOIN grown USING (id)"
    write = "UPDATE audiences_audience AS a SET last_sequence = before + 1 FROM numbered WHERE a.id = numbered.id"
    _number_by(patched, f"{read}), written AS ({write}")


def cursor_over_ids(patched: pytest.MonkeyPatch) -> None:
    """Numbers come from a serial, and a lane ends where its last visible event is."""
    with connection.cursor() as cursor:
        cursor.execute("DROP SEQUENCE IF EXISTS serial; CREATE SEQUENCE serial")
    drawn = "SELECT id, number, nextval('serial') - 1 AS before, 1 AS part FROM grown"
    _number_by(patched, drawn)
    for module, statement in ((claims, "_DUE"), (claims, "_WORK"), (claims, "_CLAIM"), (provision, "_CLAIM")):
        patched.setattr(module, statement, getattr(module, statement).replace("audience.last_sequence", _KNOWN))


# --- and what happens when they are tried ---------------------------------------------------------------------


def a_late_settle(now: Bridge) -> None:
    """It comes while the next worker's request is under way, and then its worker would claim again."""
    now.until(0, "after the answer")
    now.time_passes(1_200)
    now.receive([("gold", "ben", "enter", 1)])
    now.until(1, "in flight")
    now.receive([("gold", "cyd", "enter", 1)])
    now.until(0, "in flight")


def a_late_request(now: Bridge) -> None:
    now.until(0, "after read")
    now.time_passes(1_200)
    now.until(1, "in flight")
    now.until(0, "in flight")


def a_death_in_the_middle_of_a_request(now: Bridge) -> None:
    now.until(0, "in flight")
    now.kill(0, False)
    now.time_passes(1_200)
    now.until(1, "idle")


def a_slow_answer(now: Bridge) -> None:
    now.until(0, "in flight")
    now.time_passes(600)
    now.until(1, "in flight")


def events_in_the_wrong_order(now: Bridge) -> None:
    now.receive([("gold", "ann", "exit", 5), ("gold", "ann", "enter", 4)])
    now.until(0, "idle")


def a_lost_hint(now: Bridge) -> None:
    now.lose_hints()


def a_request_applied_late(now: Bridge) -> None:
    now.until(0, "in flight")
    now.alert("connection lost", 0)
    now.until(0, "idle")
    now.time_passes(500)
    now.receive([("gold", "ann", "exit", 5)])
    now.until(1, "idle")
    now.apply_late(0)


def a_customer_whom_odp_refuses(now: Bridge) -> None:
    now.odp_takes_no_more({"ben"}, set(), True, 500)
    now.receive([("gold", "ben", "enter", 1)])
    now.until(0, "idle")


def two_calls_at_once(now: Bridge) -> None:
    """One has its number and has not committed; the other commits if it can, and a worker looks."""
    now.until(0, "idle")
    gold = Audience.objects.get(slug="gold")
    numbered, commit = threading.Event(), threading.Event()

    def first() -> None:
        with transaction.atomic():
            happen(gold, ("ben", "enter", AT_NS))
            numbered.set()
            assert commit.wait(PATIENCE)

    def second() -> None:
        assert numbered.wait(PATIENCE)
        happen(gold, ("cyd", "enter", AT_NS))

    calls = start(first, second)
    eventually(lambda: calls[1].done() or waiting_for_a_lock())
    now.until(0, "idle")
    commit.set()
    for call in calls:
        call.result(PATIENCE)
    now.accepted["gold"] += [("ben", 1, AT_NS), ("cyd", 1, AT_NS)]
    now.until(0, "idle")
    assert now.odp.is_member("lytics_gold", "ben"), lane_of(gold).block_reason


Scene = Callable[[Bridge], None]
SCENES: dict[Twin, tuple[Scene, str]] = {
    numbering_without_the_lock: (two_calls_at_once, "duplicate key"),
    cursor_over_ids: (two_calls_at_once, "are not all there"),
    settle_without_the_token: (a_late_settle, "two requests in flight"),
    a_request_without_its_lease: (a_late_request, "one_open_run_per_lane"),
    open_runs_left_open: (a_death_in_the_middle_of_a_request, "one_open_run_per_lane"),
    fold_by_arrival: (events_in_the_wrong_order, "the ledger says|ledger is the fold"),
    claim_of_one_more_than_there_is: (a_lost_hint, "it never comes to an end"),
    lease_shorter_than_the_deadline: (a_slow_answer, "two requests in flight"),
    no_sweep: (a_lost_hint, "it never comes to an end"),
    nothing_affirmed: (a_request_applied_late, "ann in gold"),
    refusals_not_parked: (a_customer_whom_odp_refuses, "who is refused is parked"),
}


def play(bridge: type[Bridge], scene: Scene) -> None:
    now = bridge()
    try:
        now.connect(batch_size=6, max_in_flight=2, first=[("gold", "ann", "enter", 1)], bad=set())
        scene(now)
        now.every_truth_holds()
        now.to_the_end()
    finally:
        now.leave()


def test_an_expired_lease_is_not_renewed_even_if_its_lane_is_unclaimed(bridge: type[Bridge]) -> None:
    """Another has got the install's one place meanwhile."""
    now = bridge()
    try:
        now.connect(batch_size=6, max_in_flight=1, first=[("gold", "ann", "enter", 1)], bad=set())
        now.until(0, "idle")
        now.receive([("gold", "ann", "exit", 2)])
        now.until(0, "after read")
        now.act("gold", "pause", 1)
        now.time_passes(1_200)
        now.receive([("silver", "ann", "enter", 1)])
        now.until(1, "in flight")
        now.until(0, "in flight")
        now.every_truth_holds()
        now.to_the_end()
    finally:
        now.leave()


@pytest.mark.parametrize("twin", SCENES, ids=lambda twin: twin.__name__)
def test_it_catches(twin: Twin, bridge: type[Bridge]) -> None:
    scene, words = SCENES[twin]
    play(bridge, scene)
    # A context, which ends before the fixture of the settings does.
    with pytest.MonkeyPatch.context() as patched:
        twin(patched)
        with pytest.raises((AssertionError, IntegrityError)) as caught:
            play(bridge, scene)
    assert re.search(words, f"{caught.value} {caught.value.__cause__}")
