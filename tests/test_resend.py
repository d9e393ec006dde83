"""Replay, resync, and the release of all items of a reason: in chunks, exact after crashes, without delaying others."""

import os
import random
import re
import subprocess
import sys
from collections.abc import Callable
from datetime import datetime, timedelta
from functools import partial
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
from django.conf import settings
from django.db import OperationalError, connection, transaction
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils.timezone import now
from pytest_django.fixtures import Settings

from audiences import ledger_size, sessions, wake
from audiences.admin.resends import progress
from audiences.delivery import backoff, holds
from audiences.insight import failures, state
from audiences.models import Audience, Event, Install, Lane, Membership, Parked, Resend
from audiences.operations import attempts, parked_items, resends
from audiences.receiving import backlog, disk_usage, ingest, log_range
from audiences.receiving.ingest import receive
from lytics.facts import Fact, Kind
from sandbox.odp.testing import ROOT, ThreadedSandbox
from tests.delivering import (
    assert_all_is_well,
    drain_all,
    enter,
    happen,
    ledger_of,
    make_audience,
    make_install,
    numbered,
    sandbox,
)
from tests.messages import body, message
from tests.test_admin import hidden, press, url
from tests.threads import PATIENCE, eventually, start, together, waiting_for_a_lock
from workers import drain, tasks

pytestmark = pytest.mark.django_db
at_once = pytest.mark.django_db(transaction=True)

BASE = datetime.fromisoformat("2026-03-02T09:00:00+00:00")
ENTER, EXIT = Kind.ENTER, Kind.EXIT


@pytest.fixture(autouse=True)
def woken(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """The wake-ups sent: install and task."""
    told: list[tuple[str, int]] = []
    for module in (parked_items, ingest, resends, wake):
        monkeypatch.setattr(module, "wake", lambda install_id: told.append(("drain", install_id)))
    for module in (resends, wake):
        monkeypatch.setattr(module, "wake_resend", lambda install_id: told.append(("resend", install_id)))
    return told


@pytest.fixture
def shop(db: None) -> Install:
    return make_install()


@pytest.fixture
def gold(shop: Install) -> Audience:
    return make_audience(shop)


def accepted(audience: Audience, *moments: datetime) -> None:
    """One event for each moment, received then: customer u0000, u0001 and so on."""
    before = Event.objects.filter(audience=audience).count()
    for nth, at in enumerate(moments):
        with transaction.atomic():
            fact = Fact("", "", f"u{before + nth:04}", ENTER, before + nth)
            ingest.append({audience.pk: [fact]}, received_at=at)


def seconds(*offsets: float) -> list[datetime]:
    return [BASE + timedelta(seconds=offset) for offset in offsets]


def in_the_ledger(audience: Audience, *identifiers: str, is_member: bool = True) -> None:
    Membership.objects.bulk_create(
        Membership(audience=audience, identifier=who, is_member=is_member, occurred_ns=nth, sequence=1)
        for nth, who in enumerate(identifiers)
    )


def ask_replay(audience: Audience, start: datetime = BASE, end: datetime = BASE + timedelta(days=1)) -> Resend:
    last = Audience.objects.get(pk=audience.pk).last_sequence
    stretch = log_range.find(audience.pk, start, end, upto=last)
    assert resends.replay(audience, stretch, start=start, end=end, by="ada", reason="ODP lost it")
    return Resend.objects.latest("pk")


def ask_resync(audience: Audience) -> Resend:
    assert resends.resync(audience, by="ada", reason="ODP lost it")
    return Resend.objects.latest("pk")


def ask_release(install: Install, reason: str = "no_identifier") -> Resend:
    open_items = Parked.objects.filter(reason=reason, closed_at=None).order_by("-pk")
    assert resends.release_all(install, reason, upto=open_items[0].pk, total=open_items.count(), by="ada")
    return Resend.objects.latest("pk")


def advance(install: Install) -> None:
    resends.advance_all(install.pk, seconds=60)


def again(resend: Resend) -> Resend:
    return Resend.objects.get(pk=resend.pk)


def has_done(resend: Resend, least: int) -> bool:
    return again(resend).done >= least


def forced(audience: Audience) -> list[str]:
    """The customers whose events were appended again, in order."""
    rows = Event.objects.filter(audience=audience, forced=True).order_by("sequence")
    return list(rows.values_list("identifier", flat=True))


# --- Resync ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [1, 2, 100])
def test_a_resync_appends_the_whole_ledger(
    shop: Install, gold: Audience, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resends, "CHUNK", chunk)
    names = ["a", "B", "b", "ä", "Z z", '"', "💛"]
    Membership.objects.bulk_create(
        Membership(audience=gold, identifier=who, is_member=nth % 2 == 0, occurred_ns=nth, sequence=1)
        for nth, who in enumerate(names)
    )
    asked = ask_resync(gold)
    assert forced(gold) == [], "a button does nothing but ask"
    advance(shop)
    rows = Event.objects.values_list("identifier", "kind", "occurred_ns", "forced")
    assert sorted(rows) == sorted((who, EXIT if nth % 2 else ENTER, nth, True) for nth, who in enumerate(names))
    done = again(asked)
    assert (done.total, done.done, done.stopped_by) == (len(names), len(names), "")
    assert state.of_resend(done).word == "done"


def test_the_size_of_a_large_ledger_is_estimated(
    shop: Install, gold: Audience, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counting ten million rows takes longer than DATABASE_WEB_SECONDS."""
    monkeypatch.setattr(ledger_size, "COUNTED", 2)
    in_the_ledger(gold, *numbered(5))
    Lane.objects.filter(pk=gold.pk).update(member_count=400_000)
    with CaptureQueriesContext(connection) as queries:
        asked = ask_resync(gold)
    assert all("LIMIT 2" in one["sql"] for one in queries if "COUNT(*)" in one["sql"])
    assert asked.total == 400_000
    assert progress(asked) == "0 of about 400,000 queued again"
    advance(shop)
    assert (again(asked).total, again(asked).done) == (5, 5)
    assert progress(again(asked)) == "5 of 5 queued again"


def test_the_estimate_of_newer_rows_is_at_most_the_number_of_newer_events(
    gold: Audience, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_the_ledger(gold, *numbered(5))
    Audience.objects.filter(pk=gold.pk).update(last_sequence=4)
    assert [ledger_size.of(gold, since=since) for since in (0, 1)] == [5, 0]
    monkeypatch.setattr(ledger_size, "COUNTED", 2)
    # More than PostgreSQL's estimate, which depends on its statistics.
    Lane.objects.filter(pk=gold.pk).update(member_count=5)
    assert [ledger_size.of(gold, since=since) for since in (1, 9)] == [3, 0]


def test_a_resync_of_newer_rows_leaves_out_those_of_the_number_itself(shop: Install, gold: Audience) -> None:
    in_the_ledger(gold, *numbered(3))
    Membership.objects.filter(identifier=numbered(3)[0]).update(sequence=2)
    assert resends.resync(gold, by="ada", reason="x", since=1)
    advance(shop)
    assert Resend.objects.get().done == 1


def test_an_empty_ledger_is_resynced_with_nothing(shop: Install, gold: Audience) -> None:
    asked = ask_resync(gold)
    advance(shop)
    assert (again(asked).done, Event.objects.count()) == (0, 0)
    assert again(asked).ended_at is not None


@at_once
def test_a_change_between_two_chunks_of_a_resync_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether its customer's row was copied before or is copied after, and whether it is delivered before or after."""
    monkeypatch.setattr(resends, "CHUNK", 2)
    with sandbox() as odp:
        shop = make_install(odp)
        gold = make_audience(shop, provisioned=False)
        enter(gold, *numbered(6), at=1)
        drain_all(shop)
        asked = ask_resync(gold)
        resends.advance(asked.pk)
        happen(gold, ("u0000", "exit", 5), ("u0004", "exit", 5), ("new", "enter", 5))
        drain_all(shop)
        resends.advance(asked.pk)
        happen(gold, ("u0001", "exit", 6), ("u0005", "exit", 6))
        advance(shop)
        drain_all(shop)
        assert again(asked).ended_at is not None
        assert odp.members("lytics_gold") == ["new", "u0002", "u0003"]
        assert_all_is_well(gold)


# --- Replay ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [1, 2, 3, 100])
def test_a_replay_appends_the_events_of_its_span_again_at_their_old_times(
    shop: Install, gold: Audience, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resends, "CHUNK", chunk)
    accepted(gold, *seconds(0, 10, 20, 30, 40))
    asked = ask_replay(gold, *seconds(10, 40))
    advance(shop)
    rows = Event.objects.filter(forced=True).order_by("sequence").values_list("identifier", "occurred_ns")
    assert list(rows) == [("u0001", 1), ("u0002", 2), ("u0003", 3)]
    assert (again(asked).total, again(asked).done) == (3, 3)


@pytest.mark.parametrize("chunk", [1, 2, 3, 100])
def test_a_replay_up_to_the_present_does_not_replay_itself(
    shop: Install, gold: Audience, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resends, "CHUNK", chunk)
    accepted(gold, *[now() - timedelta(seconds=9)] * 5)
    ask_replay(gold, now() - timedelta(hours=1), now() + timedelta(hours=1))
    enter(gold, "late")
    advance(shop)
    assert forced(gold) == numbered(5)


@pytest.mark.parametrize("seed", range(12))
def test_a_replay_is_exact_where_events_were_not_received_in_the_order_of_their_numbers(
    shop: Install, gold: Audience, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A call may be numbered long after its time was read, by up to the slack."""
    chance = random.Random(seed)
    slack = chance.choice([5, 60, 400])
    monkeypatch.setattr(log_range, "SLACK", timedelta(seconds=slack))
    monkeypatch.setattr(resends, "CHUNK", 7)
    moments = seconds(*(nth * 10 - chance.uniform(0, slack) for nth in range(80)))
    accepted(gold, *moments)
    for _ in range(12):
        begin, length = chance.uniform(-500, 900), chance.choice([0.5, 20, 90, 500, 2_000])
        begins, ends = seconds(begin, begin + length)
        stretch = log_range.find(gold.pk, begins, ends, upto=80)
        expected = [f"u{nth:04}" for nth, at in enumerate(moments) if begins <= at < ends]
        assert stretch.events == len(expected)
        assert not [who for who in expected if not stretch.first - 1 <= int(who[1:]) <= stretch.last - 1]
    if expected:
        ask_replay(gold, begins, ends)
        advance(shop)
    assert forced(gold) == expected


@pytest.mark.parametrize("late", [1, 30, 290])
def test_a_replay_finds_events_whose_call_took_minutes(gold: Audience, late: int) -> None:
    """The slack of the product itself: a call may wait that long for its locks, and a machine's clock be that wrong."""
    accepted(gold, *seconds(0, 400, 400 - late, 800))
    stretch = log_range.find(gold.pk, *seconds(300, 399), upto=4)
    assert stretch.events == int(1 < late < 100)
    span = seconds(400 - late, 400 - late + 0.5)
    found = log_range.find(gold.pk, *span, upto=4)
    assert (found.events, found.first <= 3 <= found.last) == (1, True)


def test_the_span_is_found_by_a_few_numbers_and_not_by_reading_the_log(
    gold: Audience, django_assert_max_num_queries: Callable[[int], Any]
) -> None:
    accepted(gold, *seconds(*range(0, 500_000, 1_000)))
    with django_assert_max_num_queries(40) as seen:
        stretch = log_range.find(gold.pk, *seconds(100_000, 300_000), upto=500)
    assert stretch.events == 200
    for query in seen.captured_queries:
        if "BETWEEN" in query["sql"]:
            first, last = map(int, re.findall(r"BETWEEN (\d+) AND (\d+)", query["sql"])[0])
            assert last - first < 3, "only the edges are looked at one by one"


def test_numbers_that_were_pruned_are_before_every_span(shop: Install, gold: Audience) -> None:
    accepted(gold, *seconds(0, 10, 20, 30))
    Event.objects.filter(sequence__lte=2).delete()
    assert log_range.find(gold.pk, *seconds(-100, 100), upto=4).events == 2
    ask_replay(gold, *seconds(-100, 100))
    advance(shop)
    assert forced(gold) == ["u0002", "u0003"]


@at_once
def test_a_replay_of_events_in_delivery_sends_them_twice_and_changes_nothing() -> None:
    with sandbox() as odp:
        shop = make_install(odp, batch_size=2)
        gold = make_audience(shop, provisioned=False)
        enter(gold, *numbered(6), at=1)
        happen(gold, ("u0001", "exit", 2))
        ask_replay(gold, now() - timedelta(hours=1), now() + timedelta(hours=1))
        for _ in range(3):
            drain.turn(shop.pk)
        advance(shop)
        happen(gold, ("u0002", "exit", 3))
        drain_all(shop)
        assert odp.members("lytics_gold") == ["u0000", "u0003", "u0004", "u0005"]
        assert_all_is_well(gold)


# --- Release of all of a reason -------------------------------------------------------------------------------


def without_identifier(install: Install, *people: str) -> None:
    receive(install, body(*(message(who=who, field="user_id") for who in people)))


@at_once
def test_a_release_reads_each_item_again_with_the_present_settings(shop: Install) -> None:
    without_identifier(shop, "kim", "lee", "")
    Install.objects.update(identifier_field="user_id")
    asked = ask_release(shop)
    without_identifier(Install.objects.get(), "")
    advance(shop)
    assert set(Event.objects.values_list("identifier", "forced")) == {("kim", False), ("lee", False)}
    assert (again(asked).total, again(asked).done, again(asked).stayed) == (3, 2, 1)
    released = Parked.objects.filter(resolution="released")
    assert set(released.values_list("reason", "closed_by")) == {("no_identifier", "ada")}
    still = set(Parked.objects.filter(closed_at=None).values_list("reason", flat=True))
    assert still == {"no_identifier", "unusable_identifier"}


def test_a_release_covers_its_own_reason_and_install_only(shop: Install) -> None:
    other = make_install(name="Other")
    for install in (shop, other):
        without_identifier(install, "kim")
        receive(install, b"not json")
    Install.objects.update(identifier_field="user_id")
    last = Parked.objects.latest("pk").pk
    assert resends.release_all(shop, "no_identifier", upto=last, total=1, by="ada")
    Parked.objects.create(install=shop, reason="no_identifier", raw=b"", parked_at=now())
    advance(shop)
    assert set(Resend.objects.values_list("done", "stayed")) == {(1, 0)}
    still = Parked.objects.filter(closed_at=None).values_list("install__name", "reason")
    reasons = ("no_identifier", "not_json")
    assert sorted(still) == [(name, reason) for name in ("Other", "Shop") for reason in reasons]


def test_a_lost_database_session_counts_no_item_as_unreadable(shop: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    without_identifier(shop, "kim", "lee")
    Install.objects.update(identifier_field="user_id")
    asked = ask_release(shop)

    def gone(parked: Parked, **values: str) -> None:
        raise OperationalError("the connection is closed")

    with monkeypatch.context() as patched:
        patched.setattr(parked_items, "_close", gone)
        advance(shop)
    assert (again(asked).done, again(asked).stayed) == (0, 0)
    advance(shop)
    assert (again(asked).done, again(asked).stayed) == (2, 0)


def test_an_item_that_fails_stays_parked_and_later_items_continue(
    shop: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_identifier(shop, "kim", "lee", "mo")
    Install.objects.update(identifier_field="user_id")
    first = Parked.objects.order_by("pk")[0]
    real = parked_items._close

    def fails(parked: Parked, **values: str) -> None:
        if parked.pk == first.pk:
            raise ValueError("a bug")
        real(parked, **values)

    monkeypatch.setattr(parked_items, "_close", fails)
    asked = ask_release(shop)
    advance(shop)
    assert set(Event.objects.values_list("identifier", flat=True)) == {"lee", "mo"}
    assert (again(asked).done, again(asked).stayed) == (2, 1)
    assert list(Parked.objects.filter(closed_at=None)) == [first]


# --- Death ----------------------------------------------------------------------------------------------------


class Killed(BaseException):
    """What kill -9 is to the code that runs: nothing after it happens."""


@pytest.mark.parametrize("where", ["before the append", "before the move", "after the move"])
@pytest.mark.parametrize("kind", ["replay", "resync", "release"])
@at_once
def test_wherever_a_worker_dies_nothing_is_appended_twice_or_left_out(
    shop: Install, gold: Audience, kind: str, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resends, "CHUNK", 3)
    people = numbered(10)
    if kind == "release":
        without_identifier(shop, *people)
        Install.objects.update(identifier_field="user_id")
        asked = ask_release(shop)
    elif kind == "replay":
        accepted(gold, *seconds(*range(10)))
        asked = ask_replay(gold)
    else:
        in_the_ledger(gold, *people)
        asked = ask_resync(gold)
    deaths = 0
    for _ in range(30):
        with monkeypatch.context() as patched:
            name = "_step" if where == "before the append" else "_move"
            real = getattr(resends, name)

            def dies(*args: Any, at: str = where, function: Any = real) -> None:
                if at == "after the move":
                    function(*args)
                raise Killed

            patched.setattr(resends, name, dies)
            try:
                resends.advance(asked.pk)
            except Killed:
                deaths += 1
        # The next worker.
        resends.advance(asked.pk)
    assert deaths >= 4
    appended = Event.objects.order_by("audience_id", "sequence")
    if kind != "release":
        appended = appended.filter(forced=True)
    assert list(appended.values_list("identifier", flat=True)) == people
    assert (again(asked).done, again(asked).ended_at is not None) == (10, True)
    assert [audience.last_sequence for audience in Audience.objects.all() if audience.last_sequence] == [
        20 if kind == "replay" else 10
    ]


WORKER = """
import sys, time
import django
django.setup()
from audiences.operations import resends
resends.CHUNK = 2
real = resends._move
def slowly(*args):
    time.sleep(0.02)
    real(*args)
resends._move = slowly
resends.advance_all(int(sys.argv[1]), seconds=60)
"""


@at_once
def test_a_worker_killed_with_9_costs_a_chunk_that_the_next_one_does(
    shop: Install, gold: Audience, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is paused mostly where a crash would hurt: with a chunk appended and the Resend not yet moved."""
    monkeypatch.setattr(resends, "CHUNK", 2)
    people = numbered(400)
    in_the_ledger(gold, *people)
    asked = ask_resync(gold)
    made = connection.settings_dict
    address = f"postgres://{made['USER']}:{made['PASSWORD']}@{made['HOST']}:{made['PORT']}/{made['NAME']}"
    env = {**os.environ, "DATABASE_URL": address, "DJANGO_SETTINGS_MODULE": "lytics_sync.settings"}
    env["FIELD_ENCRYPTION_KEYS"] = ",".join(settings.FIELD_ENCRYPTION_KEYS)
    for _ in range(3):
        begun = again(asked).done + 2
        process = subprocess.Popen([sys.executable, "-c", WORKER, str(shop.pk)], env=env, cwd=ROOT)
        try:
            eventually(partial(has_done, asked, begun))
        finally:
            process.kill()
            process.wait()
        # PostgreSQL notices that its client is gone, and rolls back.
        eventually(lambda: resends.advance(asked.pk))
    assert again(asked).ended_at is None
    advance(shop)
    assert forced(gold) == people
    assert again(asked).done == Audience.objects.get(pk=gold.pk).last_sequence == len(people)


# --- Two at once ----------------------------------------------------------------------------------------------


def test_resends_take_turns_and_leave_the_slot_to_others_who_wait(
    shop: Install, gold: Audience, woken: list[tuple[str, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resends, "CHUNK", 1)
    for audience in (gold, make_audience(shop, "silver")):
        in_the_ledger(audience, "ann", "kim", "lee")
        assert resends.resync(audience, by="sam", reason="x")
    woken.clear()
    resends.advance_all(shop.pk, seconds=5, gives_way=lambda: True)
    assert list(Resend.objects.values_list("done", flat=True)) == [1, 1]
    assert woken == [("resend", shop.pk)], "the rest has a hint of its own"
    resends.advance_all(shop.pk, seconds=0)
    assert list(Resend.objects.values_list("done", flat=True)) == [2, 2]
    assert woken == [("resend", shop.pk)] * 2


@at_once
def test_while_one_worker_does_a_chunk_another_does_not_wait_for_it(shop: Install, gold: Audience) -> None:
    in_the_ledger(gold, *numbered(5))
    asked = ask_resync(gold)
    with transaction.atomic():
        Audience.objects.select_for_update().get(pk=gold.pk)
        (busy,) = start(lambda: resends.advance(asked.pk))
        eventually(waiting_for_a_lock)
        assert together(lambda: resends.advance(asked.pk)) == [False]
    busy.result(PATIENCE)
    assert forced(gold) == numbered(5)


@at_once
def test_many_workers_do_each_chunk_once_and_in_order(
    shop: Install, gold: Audience, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resends, "CHUNK", 3)
    people = numbered(100)
    in_the_ledger(gold, *people)
    asked = ask_resync(gold)

    def work() -> None:
        while again(asked).ended_at is None:
            resends.advance_all(shop.pk, seconds=0)

    together(work, work, work, work)
    assert forced(gold) == people
    assert again(asked).done == 100


@at_once
def test_two_operators_who_press_at_once_start_one_resend(shop: Install, gold: Audience) -> None:
    in_the_ledger(gold, "kim")
    pressed = together(*[lambda: resends.resync(gold, by="ada", reason="why not")] * 4)
    assert sorted(pressed) == [False, False, False, True]
    advance(shop)
    assert forced(gold) == ["kim"]
    assert resends.resync(gold, by="ada", reason="once more")


def test_a_failing_resend_is_shown_and_does_not_delay_others(
    shop: Install, gold: Audience, monkeypatch: pytest.MonkeyPatch
) -> None:
    silver = make_audience(shop, "silver")
    for audience in (gold, silver):
        in_the_ledger(audience, "kim")
    bad, good = ask_resync(gold), ask_resync(silver)
    real, tries, at = resends._resync, [], [1_000.0]

    def fails(resend: Resend, limit: int) -> Any:
        if resend.pk == bad.pk:
            tries.append(at[0])
            raise ValueError("a bug")
        return real(resend, limit)

    monkeypatch.setattr(resends, "_resync", fails)
    monkeypatch.setattr(attempts, "time", SimpleNamespace(monotonic=lambda: at[0]))
    for _ in range(300):
        advance(shop)
        at[0] += 1
    assert again(good).ended_at is not None
    assert again(bad).ended_at is None
    waits = [later - earlier for earlier, later in pairwise(tries)]
    assert waits == [1, 1, 2, 4, 8, 16, 32, 60, 60, 60], "the log isn't flooded, and Now shows it all the time"
    (shown,) = (failure for failure in failures.recent() if failure.task == "resend")
    assert shown.words == "ValueError: a bug"
    monkeypatch.setattr(resends, "_resync", real)
    at[0] += attempts.MOST_SECONDS
    advance(shop)
    assert again(bad).ended_at is not None


# --- Stop -----------------------------------------------------------------------------------------------------


def test_a_stopped_one_appends_nothing_more(shop: Install, gold: Audience, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resends, "CHUNK", 2)
    in_the_ledger(gold, *numbered(9))
    asked = ask_resync(gold)
    resends.advance(asked.pk)
    assert resends.stop(asked, by="bob")
    assert not resends.stop(asked, by="a third")
    advance(shop)
    assert forced(gold) == numbered(2)
    assert (again(asked).done, state.of_resend(again(asked)).word, again(asked).stopped_by) == (2, "stopped", "bob")
    assert resends.due() == []


@at_once
def test_stopping_during_a_chunk_waits_for_that_chunk(
    shop: Install, gold: Audience, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resends, "CHUNK", 2)
    in_the_ledger(gold, *numbered(9))
    asked = ask_resync(gold)
    with transaction.atomic():
        Audience.objects.select_for_update().get(pk=gold.pk)
        (chunk,) = start(lambda: resends.advance(asked.pk))
        eventually(waiting_for_a_lock)
        (stopped,) = start(lambda: resends.stop(asked, by="bob"))
        eventually(lambda: waiting_for_a_lock() >= 2)
    assert (chunk.result(PATIENCE), stopped.result(PATIENCE)) == (True, True)
    advance(shop)
    assert forced(gold) == numbered(2)
    assert again(asked).done == 2


# --- Effect on others -----------------------------------------------------------------------------------------


def delivered(audience: Audience) -> None:
    Lane.objects.filter(pk=audience.pk).update(delivered_sequence=Audience.objects.get(pk=audience.pk).last_sequence)


def test_a_resend_runs_ahead_of_its_lane_by_a_bounded_number_of_events(
    shop: Install, gold: Audience, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A concurrent change is behind the appended chunks only, and not behind all future chunks."""
    monkeypatch.setattr(resends, "CHUNK", 2)
    monkeypatch.setattr(backlog, "AHEAD", 5)
    in_the_ledger(gold, *numbered(20))
    asked = ask_resync(gold)
    advance(shop)
    assert len(forced(gold)) == 6
    assert state.of_resend(again(asked)).word == "under way"
    assert "6 events of this audience are yet to be delivered" in state.of_resend(again(asked)).why
    assert holds.pause(Lane.objects.get(pk=gold.pk), by="kim", reason="on purpose")
    assert state.of_resend(again(asked)).word == "waiting"
    holds.resume(Lane.objects.get(pk=gold.pk))
    enter(gold, "live")
    delivered(gold)
    assert state.of_resend(again(asked)).word == "under way"
    for _ in range(4):
        advance(shop)
        delivered(gold)
    assert forced(gold) == numbered(20)


def test_it_keeps_half_of_the_high_water_mark_for_lytics(shop: Install, gold: Audience, settings: Settings) -> None:
    settings.BACKLOG_HIGH_WATER = 20
    silver = make_audience(shop, "silver")
    enter(silver, *numbered(7))
    in_the_ledger(gold, *numbered(12))
    asked = ask_resync(gold)
    advance(shop)
    assert (len(forced(gold)), backlog.of(shop.pk)) == (3, 10)
    assert "high-water mark" in state.of_resend(again(asked)).why
    delivered(silver)
    advance(shop)
    assert (len(forced(gold)), backlog.of(shop.pk)) == (10, 10)
    delivered(gold)
    advance(shop)
    assert forced(gold) == numbered(12)


def test_it_waits_while_the_database_is_over_its_mark(
    shop: Install, gold: Audience, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Calls are answered 503 then, so that the disk doesn't fill up. A Resend would fill it instead."""
    monkeypatch.setattr(disk_usage, "FRESH_SECONDS", 0.0)
    in_the_ledger(gold, *numbered(3))
    asked = ask_resync(gold)
    settings.DATABASE_HIGH_WATER_BYTES = 1
    advance(shop)
    assert forced(gold) == []
    assert "DATABASE_HIGH_WATER_BYTES" in state.of_resend(again(asked)).why
    settings.DATABASE_HIGH_WATER_BYTES = 0
    advance(shop)
    assert forced(gold) == numbered(3)


def test_a_release_waits_for_the_mark_as_well(shop: Install, gold: Audience, settings: Settings) -> None:
    without_identifier(shop, "kim")
    Install.objects.update(identifier_field="user_id")
    asked = ask_release(shop)
    settings.BACKLOG_HIGH_WATER = 2
    enter(gold, "lee")
    advance(shop)
    assert Parked.objects.filter(closed_at=None).exists()
    delivered(gold)
    advance(shop)
    assert again(asked).done == 1


@at_once
def test_the_sweep_finds_it_after_a_lost_wake_up(shop: Install, gold: Audience, woken: list[tuple[str, int]]) -> None:
    make_audience(make_install(name="Idle"))
    in_the_ledger(gold, "kim")
    ask_resync(gold)
    assert woken == [("resend", shop.pk)]
    woken.clear()  # lost
    tasks.sweep()
    # The drain is for the look at ODP that a resync begins with.
    assert woken == [("drain", shop.pk), ("resend", shop.pk)]
    woken.clear()
    tasks.resend(shop.pk)
    assert woken == [("drain", shop.pk)]
    woken.clear()
    tasks.sweep()
    assert woken == [("drain", shop.pk)]


def test_a_task_that_ran_out_of_time_enqueues_the_next(
    shop: Install, gold: Audience, woken: list[tuple[str, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resends, "CHUNK", 1)
    in_the_ledger(gold, *numbered(3))
    ask_resync(gold)
    resends.advance_all(shop.pk, seconds=0)
    assert (forced(gold), woken) == (numbered(1), [("resend", shop.pk)])


def test_a_hint_of_one_kind_does_not_silence_the_other() -> None:
    assert wake._pending(7) != wake._pending(7, wake.RESEND)
    assert wake._resend_waker._task == wake.RESEND


@at_once
def test_a_whole_audience_that_odp_has_lost_comes_back_while_changes_come_in(
    monkeypatch: pytest.MonkeyPatch, odp: ThreadedSandbox
) -> None:
    monkeypatch.setattr(resends, "CHUNK", 5)
    monkeypatch.setattr(backlog, "AHEAD", 10)
    shop = make_install(odp, batch_size=4)
    gold = make_audience(shop, provisioned=False)
    enter(gold, *numbered(60), at=1)
    drain_all(shop)
    odp.reset(keep_schema=True)
    asked = ask_resync(gold)
    nth = 0
    while again(asked).ended_at is None:
        tasks.resend(shop.pk)
        happen(gold, (f"u{nth:04}", "exit", 9))
        for _ in range(3):
            drain.turn(shop.pk)
        nth += 1
    drain_all(shop)
    assert odp.members("lytics_gold") == numbered(60)[nth:]
    assert {who for who, (is_member, *_) in ledger_of(gold).items() if is_member} == set(numbered(60)[nth:])
    assert_all_is_well(gold)


# --- On the pages ---------------------------------------------------------------------------------------------


def page(person: Client, thing: Any) -> str:
    return person.get(url("change", thing)).content.decode()


def told(person: Client, address: str, answers: dict[str, str]) -> str:
    """What the page says after a press."""
    answered = person.post(address, answers, follow=True)
    return " ".join(str(message) for message in answered.context["messages"])


def test_a_resync_is_started_watched_and_stopped_on_the_page_of_its_audience(
    operator: Client,
    gold: Audience,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(resends, "CHUNK", 2)
    accepted(gold, BASE)
    in_the_ledger(gold, *numbered(1_000))
    said = press(operator, "resync", gold, reason="ODP was restored")
    assert "1,000 customers" in said
    assert "2 requests" in said
    asked = Resend.objects.get()
    assert (asked.kind, asked.by, asked.reason, asked.total) == ("resync", "operator", "ODP was restored", 1_000)
    resends.advance(asked.pk)
    shown = page(operator, gold)
    assert "2 of 1,000 queued again" in shown
    assert "ODP was restored" in shown
    assert "every 3s" in shown
    assert url("stop-resync", asked) in shown
    assert url("resync", gold) not in shown
    said = press(operator, "stop-resync", asked)
    assert "998 of 1,000" in said
    assert again(asked).stopped_by == "operator"
    shown = page(operator, gold)
    assert "stopped by operator" in shown
    assert "every 3s" not in shown
    history = operator.get(reverse("admin:audiences_audience_history", args=[gold.pk])).content.decode()
    assert "ODP was restored" in history
    assert "Stopped the resync" in history


def test_pressing_again_while_one_is_under_way_shows_its_progress(
    operator: Client,
    shop: Install,
    gold: Audience,
) -> None:
    accepted(gold, BASE)
    in_the_ledger(gold, "kim", "lee")
    asked = operator.get(url("resync", gold)).content.decode()
    ask_resync(gold)
    said = told(operator, url("resync", gold), {**hidden(asked), "reason": "me too"})
    assert "A resync is already running: 0 of 2 queued again" in said
    assert Resend.objects.count() == 1


def test_a_stop_that_comes_too_late_does_nothing(
    operator: Client,
    shop: Install,
    gold: Audience,
) -> None:
    in_the_ledger(gold, "kim")
    resync = ask_resync(gold)
    asked = operator.get(url("stop-resync", resync)).content.decode()
    advance(shop)
    assert "nothing was done" in told(operator, url("stop-resync", resync), hidden(asked))
    assert again(resync).stopped_by == ""


def test_a_viewer_sees_resends_under_way_and_can_not_stop_them(
    viewer: Client,
    shop: Install,
    gold: Audience,
) -> None:
    accepted(gold, BASE)
    without_identifier(shop, "kim")
    for asked in (ask_resync(gold), ask_replay(gold), ask_release(shop)):
        stop = url(f"stop-{asked.kind}", asked)
        assert viewer.get(stop).status_code == 403
        assert viewer.post(stop).status_code == 403
        assert stop not in page(viewer, gold)
        assert again(asked).ended_at is None
    assert "queued again" in page(viewer, gold)
    assert viewer.get(reverse("admin:audiences_resend_changelist")).status_code == 200


def span_of(begin: float, end: float) -> dict[str, str]:
    starts, ends = seconds(begin, end)
    return {"start": f"{starts:%Y-%m-%dT%H:%M}", "end": f"{ends:%Y-%m-%dT%H:%M}", "reason": "ODP lost an hour"}


def test_a_replay_shows_its_exact_numbers_before_it_is_confirmed(
    operator: Client,
    shop: Install,
    gold: Audience,
) -> None:
    Install.objects.update(batch_size=2, requests_per_second=1)
    accepted(gold, *seconds(0, 60, 61, 62, 119, 120))
    happen(gold, ("u0001", "exit", 99))
    Event.objects.filter(sequence=7).update(received_at=BASE + timedelta(seconds=70))
    asked = operator.get(url("replay", gold)).content.decode()
    assert 'type="datetime-local"' in asked
    foreseen = operator.post(url("replay", gold), {**hidden(asked), **span_of(60, 120)}).content.decode()
    for words in ("5 events of lytics_gold", "4 customers", "3 requests", "about 3 s", "2026-03-02 09:01"):
        assert words in foreseen
    assert not Resend.objects.exists()
    accepted(gold, BASE + timedelta(seconds=90))  # received later; not part of the confirmed range
    assert "Replaying 5 events" in told(operator, url("replay", gold), hidden(foreseen))
    resend = Resend.objects.get()
    assert (resend.total, resend.by, resend.reason) == (5, "operator", "ODP lost an hour")
    advance(shop)
    assert forced(gold) == ["u0001", "u0002", "u0003", "u0004", "u0001"]
    assert "replay of 2026-03-02 09:01 – 2026-03-02 09:02 UTC" in page(operator, gold)
    history = operator.get(reverse("admin:audiences_audience_history", args=[gold.pk])).content.decode()
    assert "ODP lost an hour" in history


@pytest.mark.parametrize(
    ("answers", "words"),
    [
        (span_of(3_600, 7_200), "Nothing of lytics_gold was received in this time range."),
        (span_of(120, 60), "This must be later than the start."),
        ({**span_of(0, 60), "reason": ""}, "This field is required."),
        ({**span_of(0, 60), "start": "yesterday"}, "Enter a valid date/time."),
        (
            {"start": "9999-12-31T23:58", "end": "9999-12-31T23:59", "reason": "x"},
            "Nothing of lytics_gold was received",
        ),
        (
            {"start": "0001-01-01T00:00", "end": "1999-01-01T00:00", "reason": "x"},
            "Nothing of lytics_gold was received",
        ),
    ],
)
def test_a_replay_of_no_events_is_rejected_with_a_reason(
    operator: Client,
    gold: Audience,
    answers: dict[str, str],
    words: str,
) -> None:
    accepted(gold, *seconds(0, 10))
    answered = operator.post(url("replay", gold), answers).content.decode()
    assert words in answered
    assert 'name="seen"' not in answered
    assert not Resend.objects.exists()


def test_a_replay_is_not_begun_on_other_facts_than_were_agreed_to(
    operator: Client,
    shop: Install,
    gold: Audience,
) -> None:
    accepted(gold, *seconds(0, 10, 20))
    foreseen = hidden(operator.post(url("replay", gold), span_of(0, 60)).content.decode())
    Event.objects.filter(sequence=2).update(received_at=BASE - timedelta(hours=1))
    assert "nothing was done" in told(operator, url("replay", gold), foreseen)
    other = hidden(operator.post(url("replay", gold), span_of(0, 60)).content.decode())
    ask_replay(gold)
    assert "A replay is already running" in told(operator, url("replay", gold), other)
    assert Resend.objects.count() == 1


def test_a_replay_of_more_than_anybody_counts_says_so(
    operator: Client,
    gold: Audience,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("audiences.admin.replay.COUNTED", 2)
    accepted(gold, *seconds(0, 10, 20))
    foreseen = operator.post(url("replay", gold), span_of(0, 60)).content.decode()
    assert "3 events" in foreseen
    assert "too many customers to count" in foreseen


def test_all_items_of_a_reason_are_released_by_workers_while_the_page_shows_progress(
    operator: Client,
    shop: Install,
) -> None:
    without_identifier(shop, "kim", "lee")
    Install.objects.update(identifier_field="user_id")
    group = reverse("admin:audiences_parked_release_group", args=[shop.pk, "no_identifier"])
    asked = operator.get(group).content.decode()
    assert "2 items" in asked
    allowed = set()

    def execute(proceed: Callable[..., Any], sql: str, *rest: Any) -> Any:
        if sql.startswith('SELECT COUNT(*) AS "__count" FROM "audiences_parked"'):
            allowed.add(sessions._extra_seconds.get())
        return proceed(sql, *rest)

    with connection.execute_wrapper(execute):
        assert "Releasing 2 items" in told(operator, group, hidden(asked))
    assert allowed == {20}, "counting millions may take longer than DATABASE_WEB_SECONDS"
    assert Parked.objects.filter(closed_at=None).count() == 2
    assert "A release is already running: 0 of 2 released" in told(operator, group, hidden(asked))
    parked = reverse("admin:audiences_parked_changelist")
    resend = Resend.objects.get()
    shown = operator.get(parked).content.decode()
    assert "0 of 2 released" in shown
    assert url("stop-release", resend) in shown
    assert group not in shown
    assert group not in operator.get(reverse("admin:index")).content.decode()
    resends.advance(resend.pk)
    press(operator, "stop-release", resend)
    assert (again(resend).done, Parked.objects.filter(closed_at=None).count()) == (1, 1)
    assert "stopped by operator" in operator.get(parked).content.decode()


def test_a_group_that_changed_since_the_confirmation_page_is_not_released(
    operator: Client,
    shop: Install,
) -> None:
    without_identifier(shop, "kim", "lee")
    group = reverse("admin:audiences_parked_release_group", args=[shop.pk, "no_identifier"])
    asked = operator.get(group).content.decode()
    parked_items.discard([Parked.objects.order_by("pk")[0].pk], by="somebody else")
    assert "nothing was done" in told(operator, group, hidden(asked))
    assert not Resend.objects.exists()


def test_a_viewer_releases_no_group(viewer: Client, shop: Install) -> None:
    without_identifier(shop, "kim")
    group = reverse("admin:audiences_parked_release_group", args=[shop.pk, "no_identifier"])
    assert group not in viewer.get(reverse("admin:audiences_parked_changelist")).content.decode()
    assert viewer.get(group).status_code == 403
    assert viewer.post(group, {"seen": "1-1", "upto": "1"}).status_code == 403


def test_only_a_bounded_number_of_ticked_items_is_released_in_the_request(
    operator: Client,
    shop: Install,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("audiences.admin.parked.AT_ONCE", 1)
    without_identifier(shop, "kim", "lee")
    ticked = {"action": "release_selected", "_selected_action": list(Parked.objects.values_list("pk", flat=True))}
    answered = operator.post(reverse("admin:audiences_parked_changelist"), ticked, follow=True)
    assert "at most 1 at a time" in " ".join(str(message) for message in answered.context["messages"])


def test_full_batches_are_tried_again_after_a_smaller_size_was_learned(
    operator: Client,
    viewer: Client,
    shop: Install,
) -> None:
    button = url("full-batches", shop)
    assert button not in page(operator, shop)
    backoff.learn_batch_size(shop, 120)
    shown = page(operator, shop)
    assert "At most 120 items in a request" in shown
    assert button in shown
    assert viewer.post(button).status_code == 403
    said = press(operator, "full-batches", shop)
    assert "at most 120 items" in said
    assert "up to 500" in said
    shop.refresh_from_db()
    assert shop.learned_batch_size is None
    history = operator.get(reverse("admin:audiences_install_history", args=[shop.pk])).content.decode()
    assert "tries up to 500" in history


def test_full_batches_are_not_tried_on_a_page_that_is_out_of_date(
    operator: Client,
    shop: Install,
) -> None:
    backoff.learn_batch_size(shop, 120)
    asked = operator.get(url("full-batches", shop)).content.decode()
    backoff.learn_batch_size(shop, 60)
    assert "nothing was done" in told(operator, url("full-batches", shop), hidden(asked))
    shop.refresh_from_db()
    assert shop.learned_batch_size == 60
