"""The parts of the log: created ahead, filled in the order of the numbers, dropped when nothing needs them."""

import random
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import psycopg
import pytest
from django.db import DatabaseError, connection, transaction
from django.utils.timezone import now
from pytest_django.fixtures import Settings

from audiences.delivery import reading
from audiences.insight import backlogs, customer_export, customers, search_index
from audiences.models import Audience, Event, Horizon, Lane, LogPart, Membership, Pruning
from audiences.operations import forgetting, parts, pruning
from sandbox.odp.testing import ThreadedSandbox
from tests.delivering import (
    assert_all_is_well,
    broken_truths,
    claim,
    drain_all,
    enter,
    happen,
    ledger_of,
    make_audience,
    make_delivered,
    make_install,
    sandbox,
    writes,
)
from tests.test_pruned_log import age, numbers, prune, prune_wholly, resync, what_happens

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def kept_90_days(settings: Settings) -> None:
    settings.EVENTS_KEEP_DAYS = 90


@pytest.fixture(autouse=True)
def patience_with_autovacuum(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait for locks on the log: an autovacuum may hold one, until PostgreSQL cancels it after a second."""
    monkeypatch.setattr(parts, "LOCK_MILLISECONDS", 30_000)


def sql(statement: str, *values: Any) -> Any:
    with connection.cursor() as cursor:
        cursor.execute(statement, values or None)
        return cursor.fetchall() if cursor.description else None


def days_pass(days: int = 4) -> None:
    """All parts were opened this much earlier."""
    sql("UPDATE audiences_logpart SET opened_at = opened_at - make_interval(days => %s)", days)


def advance() -> None:
    parts.advance(pause=lambda seconds: None)


def next_part() -> int:
    """A part is due: the next one is opened and all audiences move to it."""
    advance()
    days_pass()
    advance()
    return newest()


def newest() -> int:
    return max(LogPart.objects.exclude(opened_at=None).values_list("number", flat=True))


def tables() -> set[str]:
    found = sql("SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = 'audiences_event'::regclass")
    return {name for (name,) in found}


def parts_of(audience: Audience) -> list[int]:
    return list(Event.objects.filter(audience=audience).order_by("sequence").values_list("part", flat=True))


@pytest.fixture
def gold(odp: ThreadedSandbox) -> Audience:
    return make_delivered(make_install(odp), "a")


@pytest.fixture
def only_the_first_part() -> Iterator[None]:
    """For a test with transactions of its own, whose parts are not rolled back."""
    yield
    for name in tables() - {"audiences_event_0", "audiences_event_1"}:
        sql(f"DROP TABLE {name}")
    sql("DELETE FROM audiences_event; DELETE FROM audiences_lane; DELETE FROM audiences_audience")
    LogPart.objects.exclude(number=1).delete()
    LogPart.objects.update(opened_at=now())


# --- New parts -----------------------------------------------------------------------------------------------


def test_a_part_is_created_ahead_and_opened_when_it_is_due(gold: Audience) -> None:
    assert tables() == {"audiences_event_0", "audiences_event_1"}
    advance()
    assert (newest(), "audiences_event_2" in tables()) == (1, True)
    advance()
    assert (newest(), LogPart.objects.count()) == (1, 2)
    days_pass()
    advance()
    assert (newest(), "audiences_event_3" in tables()) == (2, True)
    enter(gold, "b", "c", at=2)
    assert parts_of(gold) == [1, 2, 2]
    gold.refresh_from_db()
    assert (gold.part, gold.part_after, gold.waiting_part) == (2, 1, 2)
    drain_all(gold.install)
    assert_all_is_well(gold)


def test_a_part_that_was_opened_by_a_clock_ahead_is_no_longer_open_than_others(gold: Audience) -> None:
    next_part()
    days_pass(-300)
    advance()
    assert newest() == 2
    days_pass()
    advance()
    assert newest() == 3
    assert parts.closed(now() + timedelta(seconds=1)) == [1, 2]


def test_no_default_partition_is_needed(gold: Audience) -> None:
    """Without beat, and so without a next part, the present one takes all events."""
    days_pass(1000)
    enter(gold, "b", at=2)
    assert parts_of(gold) == [1, 1]
    assert sql("SELECT partdefid FROM pg_partitioned_table WHERE partrelid = 'audiences_event'::regclass") == [(0,)]


def test_no_part_is_opened_while_events_are_kept_for_ever(gold: Audience, settings: Settings) -> None:
    settings.EVENTS_KEEP_DAYS = 0
    assert next_part() == 1
    assert tables() == {"audiences_event_0", "audiences_event_1"}


def test_the_planner_knows_the_whole_log(gold: Audience, settings: Settings) -> None:
    settings.EVENTS_KEEP_DAYS = 0
    sql("SELECT pg_stat_reset_single_table_counters('audiences_event'::regclass), pg_stat_clear_snapshot()")
    advance()
    assert sql("SELECT count(*) FROM pg_stats WHERE tablename = 'audiences_event' AND inherited") != [(0,)]


@pytest.mark.parametrize(("kept", "days"), [(0, 0), (1, 1), (30, 1), (31, 2), (90, 3), (365, 13)])
def test_thirty_parts_are_kept(kept: int, days: int, settings: Settings) -> None:
    settings.EVENTS_KEEP_DAYS = kept
    assert parts.days() == days


def test_a_new_audience_begins_in_the_newest_part_and_all_move_to_the_next(
    gold: Audience, monkeypatch: pytest.MonkeyPatch
) -> None:
    next_part()
    blue = make_audience(gold.install, "blue", provisioned=False)
    enter(blue, "a")
    drain_all(gold.install)
    assert parts_of(blue) == [2]
    assert_all_is_well(blue)
    monkeypatch.setattr(parts, "AUDIENCES", 1)
    next_part()
    assert list(Audience.objects.values_list("part", "waiting_part")) == [(3, 3)] * 2


def test_a_waiting_event_is_found_in_the_part_before(gold: Audience) -> None:
    enter(gold, "b", at=2)
    next_part()
    enter(gold, "c", at=3)
    gold.refresh_from_db()
    assert (gold.part, gold.part_after, gold.waiting_part) == (2, 2, 1)
    assert backlogs.by_install()[gold.install_id].oldest_at == Event.objects.get(sequence=2).received_at
    assert [(span.first, span.last, span.low, span.high) for span in claim(gold.install).spans] == [(2, 3, 1, 2)]
    Lane.objects.update(lease_token=None, lease_expires_at=None)
    drain_all(gold.install)
    advance()
    gold.refresh_from_db()
    assert gold.waiting_part == 2
    assert_all_is_well(gold)


def test_events_that_an_older_version_stored_in_the_first_part_are_delivered(gold: Audience) -> None:
    next_part()
    enter(gold, "b", at=2)
    sql("UPDATE audiences_event SET part = 1 WHERE sequence = 2")
    drain_all(gold.install)
    assert ledger_of(gold)["b"]
    assert "disorder" not in str(broken_truths())


def test_a_claim_reads_no_other_part(gold: Audience) -> None:
    next_part()
    enter(gold, "b", at=2)
    lease = claim(gold.install)
    text = reading._READ.text
    with connection.cursor() as cursor:
        cursor.execute(f"EXPLAIN {text}", reading._places(lease.spans))
        plan = "\n".join(line for (line,) in cursor.fetchall())
    assert "audiences_event_2" in plan
    assert "audiences_event_1" not in plan


@pytest.mark.django_db(transaction=True)
@pytest.mark.usefixtures("only_the_first_part")
def test_an_audience_in_use_moves_with_the_next_run(odp: ThreadedSandbox) -> None:
    install = make_install(odp)
    gold, blue = (make_audience(install, slug, provisioned=False) for slug in ("gold", "blue"))
    with psycopg.connect(
        **connection.get_connection_params() | {"context": None, "cursor_factory": psycopg.Cursor}
    ) as other:
        other.execute("SELECT FROM audiences_audience WHERE id = %s FOR NO KEY UPDATE", [gold.pk])
        next_part()
        assert dict(Audience.objects.values_list("pk", "part")) == {gold.pk: 1, blue.pk: 2}
        enter(blue, "a")
    enter(gold, "a")
    advance()
    enter(gold, "b", at=2)
    assert parts_of(gold) == [1, 2]
    drain_all(install)
    assert_all_is_well(gold, blue)


# --- Dropping ------------------------------------------------------------------------------------------------


def test_an_old_part_is_dropped_and_the_deciding_events_are_kept(gold: Audience) -> None:
    for at in range(2, 6):
        enter(gold, "a", f"u{at}", at=at)
        drain_all(gold.install)
    next_part()
    happen(gold, ("a", "exit", 9))
    drain_all(gold.install)
    before = ledger_of(gold)
    age(gold)
    Event.objects.filter(sequence=10).update(received_at=now())
    days_pass(100)
    prune_wholly()
    assert "audiences_event_1" not in tables()
    assert not LogPart.objects.filter(number=1).exists()
    assert parts_of(gold) == [0, 0, 0, 0, 2]
    assert ledger_of(gold) == before
    assert_all_is_well(gold)


def run(audience: Audience, seed: int, *, dropping: bool) -> None:
    chance = random.Random(seed)
    for round_ in range(8):
        what_happens(audience, chance, round_)
        drain_all(audience.install)
        if chance.random() < 0.3:
            resync(audience)
            drain_all(audience.install)
        if chance.random() < 0.3:
            what_happens(audience, chance, round_)  # waits while a part is dropped
        if dropping:
            next_part()
            age(audience)
            days_pass(100)
            prune() if round_ % 3 else prune_wholly()
            assert broken_truths() == []
    drain_all(audience.install)


@pytest.mark.parametrize("seed", range(4))
def test_dropped_parts_and_a_full_log_give_the_same_deliveries(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pruning, "ROWS", 7)
    with sandbox() as odp_of_full, sandbox() as odp_of_dropped:
        full = make_audience(make_install(odp_of_full, name="Full"), provisioned=False)
        run(full, seed, dropping=False)
        next_part()
        dropped = make_audience(make_install(odp_of_dropped, name="Dropped"), provisioned=False)
        run(dropped, seed, dropping=True)
        assert writes(odp_of_dropped) == writes(odp_of_full)
        assert odp_of_dropped.members("lytics_gold") == odp_of_full.members("lytics_gold")
        assert ledger_of(dropped) == ledger_of(full)
        assert_all_is_well(full, dropped)
        gone = set(range(1, newest())) - set(LogPart.objects.values_list("number", flat=True))
        assert len(gone) >= 3
        assert {f"audiences_event_{number}" for number in gone} & tables() == set()


def old_first_part(gold: Audience) -> None:
    """The events of the first part are old and delivered, and a newer one is in the second part."""
    enter(gold, "a", at=2)
    drain_all(gold.install)
    next_part()
    enter(gold, "a", at=3)
    drain_all(gold.install)
    age(gold)
    Event.objects.filter(sequence=3).update(received_at=now())
    days_pass(91)


def test_a_part_with_a_waiting_event_of_one_audience_stays(gold: Audience) -> None:
    blue = make_audience(gold.install, "blue", provisioned=False)
    enter(blue, "a")
    drain_all(gold.install)
    enter(blue, "b", at=2)
    Lane.objects.filter(audience=blue).update(blocked_at=now(), block_reason="why")
    old_first_part(gold)
    prune()
    assert (numbers(gold), parts_of(blue)) == ([1, 2, 3], [1, 1])
    assert "audiences_event_1" in tables()
    # After a week the events of the other audience don't wait any longer.
    days_pass(8)
    prune_wholly()
    assert (numbers(gold), numbers(blue)) == ([3], [1, 2])
    Lane.objects.filter(audience=blue).update(blocked_at=None, block_reason="")
    drain_all(gold.install)
    age(blue)
    prune_wholly()
    assert "audiences_event_1" not in tables()
    assert_all_is_well(gold, blue)


def test_an_audience_without_calls_holds_no_part(gold: Audience) -> None:
    blue = make_audience(gold.install, "blue", provisioned=False)
    enter(blue, "a", "b")
    drain_all(gold.install)
    old_first_part(gold)
    age(blue)
    prune_wholly()
    assert "audiences_event_1" in tables()
    days_pass(3)
    prune_wholly()
    assert "audiences_event_1" not in tables()
    assert parts_of(blue) == [0, 0]
    happen(blue, ("a", "exit", 5))
    drain_all(gold.install)
    assert parts_of(blue) == [0, 0, newest()]
    assert_all_is_well(gold, blue)


def dropping(number: int, days: int = 90) -> parts.Dropped:
    found = parts._DROP.run(number=number, horizon=now() - timedelta(days=days)).one()
    assert found is not None
    return found


def test_the_database_itself_drops_nothing_that_is_needed(gold: Audience) -> None:
    old_first_part(gold)
    with pytest.raises(DatabaseError, match="last day"), transaction.atomic():
        dropping(1, days=0)
    assert dropping(1) == (None, "2 events are needed")
    Horizon.objects.create(audience=gold, events_to=2)
    Membership.objects.update(sequence=2, occurred_ns=2)
    assert dropping(1) == (None, "an event of it decides a row of the ledger")
    Membership.objects.update(sequence=3, occurred_ns=3)
    for number in (0, 3, 9):
        assert dropping(number) == (None, "there is no such part")
    assert dropping(2) == (None, "new events go to it")
    Audience.objects.update(part=1)
    assert dropping(1) == (None, "new events go to it")
    Audience.objects.update(part=2)
    assert dropping(1) == (2, None)
    assert tables() == {"audiences_event_0", "audiences_event_2", "audiences_event_3"}


@pytest.mark.django_db(transaction=True)
@pytest.mark.usefixtures("only_the_first_part")
def test_a_drop_gives_way_to_a_long_transaction_and_is_tried_again(
    odp: ThreadedSandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    gold = make_delivered(make_install(odp), "a")
    next_part()
    age(gold)
    days_pass(100)
    with psycopg.connect(
        **connection.get_connection_params() | {"context": None, "cursor_factory": psycopg.Cursor}
    ) as other:
        other.execute("SELECT count(*) FROM audiences_event")
        with monkeypatch.context() as usual:
            usual.setattr(parts, "LOCK_MILLISECONDS", 100)
            prune()
        assert "audiences_event_1" in tables()
    try:
        prune_wholly()
        assert "audiences_event_1" not in tables()
        assert_all_is_well(gold)
    finally:
        sql("SELECT make_part(1); INSERT INTO audiences_logpart VALUES (1, now())")


@pytest.mark.django_db(transaction=True)
@pytest.mark.usefixtures("only_the_first_part")
def test_nothing_waits_for_the_reading_of_an_old_part(odp: ThreadedSandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    gold = make_delivered(make_install(odp), "a")
    next_part()
    age(gold)
    prune()
    Pruning.objects.update(horizon_at=now() - timedelta(days=5000), is_done=True)
    with psycopg.connect(
        **connection.get_connection_params() | {"context": None, "cursor_factory": psycopg.Cursor}
    ) as other:
        other.execute("SELECT FROM audiences_pruning WHERE kind = 'events' FOR UPDATE")
        horizon = now() - timedelta(days=90)
        assert other.execute("SELECT reason FROM drop_part(1, %s)", [horizon]).fetchone() == ("1 events are needed",)
        sql("SET lock_timeout = '1s'")
        try:
            pruning.prune(seconds=120, pause=lambda seconds: None)
        finally:
            sql("RESET lock_timeout")
    assert not Pruning.objects.exclude(kind="events").filter(horizon_at__lt=now() - timedelta(days=1000)).exists()


# --- What looks in all parts ---------------------------------------------------------------------------------


def test_an_audit_finds_a_gap_and_a_number_twice_across_parts(gold: Audience) -> None:
    enter(gold, "b", "c", at=2)
    next_part()
    enter(gold, "d", "e", at=3)
    drain_all(gold.install)
    assert_all_is_well(gold)
    with transaction.atomic():
        Event.objects.filter(sequence=4).delete()
        assert "no gap in a lane" in {finding[0] for finding in broken_truths()}
        transaction.set_rollback(True)
    # One number twice in place of another one: the count is right.
    Event.objects.filter(sequence=4).update(sequence=3)
    assert "no gap in a lane" in {finding[0] for finding in broken_truths()}


def test_a_customer_is_found_exported_and_forgotten_in_all_parts(gold: Audience) -> None:
    next_part()
    happen(gold, ("a", "exit", 2), ("b", "enter", 2))
    next_part()
    enter(gold, "a", at=3)
    drain_all(gold.install)
    assert [status.event.sequence for status in customers.customer_history("a").statuses] == [4, 2, 1]
    assert len(customer_export.export(gold.install, "a")["events"]) == 3
    asked = forgetting.ask(gold.install, "a", tell_odp=False, by="kim")
    assert asked is not None
    assert forgetting.advance(asked)
    assert not Event.objects.filter(identifier="a").exists()
    assert numbers(gold) == [1, 2, 3, 4]
    assert broken_truths() == []


def test_the_search_index_of_an_old_part_is_summarised_to_its_end(gold: Audience) -> None:
    # In a file without the room that other tests have left; and an autovacuum, which would summarise it too, waits.
    sql("SET CONSTRAINTS ALL IMMEDIATE")
    sql("TRUNCATE audiences_event_1")
    sql(
        "INSERT INTO audiences_event (audience_id, sequence, identifier, kind, occurred_ns, received_at, forced)"
        " SELECT %s, n, md5(n::text), 1, n, now(), false FROM generate_series(2, 3000) AS n",
        gold.pk,
    )
    search_index.summarise()
    assert search_index.summarise() == 0
    next_part()
    assert search_index.summarise() > 0
