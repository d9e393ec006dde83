"""Converting a log from before the parts, while calls and deliveries go on."""

import re
from collections.abc import Callable
from threading import Event as Flag
from threading import Thread
from typing import Any
from unittest.mock import Mock

import pytest
from django.core.management import call_command
from django.core.management.base import CommandError
from django.db import connections
from django.db.utils import ProgrammingError
from pytest_django.fixtures import Settings

from audiences.insight import search_index
from audiences.models import Audience, Event
from audiences.operations import log_conversion, parts
from audiences.receiving import ingest
from sandbox.odp.testing import ThreadedSandbox
from tests.delivering import assert_all_is_well, drain_all, enter, make_delivered, make_install
from tests.messages import body, message
from tests.test_parts import (
    days_pass,
    next_part,
    only_the_first_part,
    parts_of,
    patience_with_autovacuum,
    sql,
    tables,
)
from tests.test_pruned_log import age, numbers, prune_wholly

pytestmark = pytest.mark.django_db

__all__ = ["only_the_first_part", "patience_with_autovacuum"]

# The log as one table, as it was before the parts.
ONE_TABLE = """
SET CONSTRAINTS ALL IMMEDIATE;
ALTER TABLE audiences_event DETACH PARTITION audiences_event_1;
DROP TABLE audiences_event;
DROP TABLE IF EXISTS audiences_event_0;
ALTER TABLE audiences_event_1 RENAME TO audiences_event;
ALTER INDEX audiences_event_1_pkey RENAME TO audiences_event_pkey;
ALTER INDEX audiences_event_1_identifier_idx RENAME TO events_of_a_customer;
ALTER INDEX audiences_event_1_occurred_ns_idx RENAME TO events_stored_ahead;
"""
INDEXES = """
SELECT array_agg(pg_relation_filenode(indexrelid) ORDER BY indexrelid) FROM pg_index WHERE indrelid = %s::regclass
"""


@pytest.fixture(autouse=True)
def kept_90_days(settings: Settings) -> None:
    settings.EVENTS_KEEP_DAYS = 90


@pytest.fixture
def gold(odp: ThreadedSandbox) -> Audience:
    return make_delivered(make_install(odp), "a")


def grants() -> Any:
    return sql(
        "SELECT table_name, grantee, privilege_type FROM information_schema.role_table_grants"
        " WHERE table_name LIKE 'audiences_event%%' AND grantee = 'reader' ORDER BY 1, 3"
    )


@pytest.mark.parametrize("done_before", range(5))
def test_a_conversion_goes_on_from_any_step(gold: Audience, done_before: int) -> None:
    enter(gold, "b", at=2)
    sql(ONE_TABLE)
    sql("CREATE ROLE reader; GRANT SELECT, INSERT ON audiences_event TO reader")
    (built,) = sql(INDEXES, "audiences_event")
    for _, step in log_conversion.steps()[:done_before]:
        step()
        enter(gold, "c", at=3)
        drain_all(gold.install)
        assert_all_is_well(gold)
    list(log_conversion.convert())
    assert log_conversion.steps() == []
    assert sql(INDEXES, "audiences_event_1") == [built], "an index was built anew"
    assert grants() == [("audiences_event", "reader", "INSERT"), ("audiences_event", "reader", "SELECT")]
    next_part()
    enter(gold, "d", at=4)
    drain_all(gold.install)
    assert parts_of(gold)[-1] == 2
    assert_all_is_well(gold)
    age(gold)
    days_pass(100)
    prune_wholly()
    assert "audiences_event_1" not in tables()
    assert_all_is_well(gold)


def test_a_log_of_one_table_is_pruned_row_by_row(gold: Audience) -> None:
    for at in (2, 3):
        enter(gold, "a", at=at)
        drain_all(gold.install)
    sql(ONE_TABLE)
    age(gold)
    days_pass(100)
    prune_wholly()
    assert (numbers(gold), parts_of(gold)) == ([3], [1])
    assert_all_is_well(gold)
    search_index.summarise()  # what other tests have left in the file of this table
    assert search_index.summarise() == 0
    # What was kept in place is moved before the table is dropped.
    list(log_conversion.convert())
    next_part()
    days_pass(100)
    prune_wholly()
    assert parts_of(gold) == [0]
    assert_all_is_well(gold)


def test_the_command_shows_what_is_to_do_and_does_it(gold: Audience, capsys: pytest.CaptureFixture[str]) -> None:
    sql(ONE_TABLE)
    sql("UPDATE pg_class SET reltuples = -1 WHERE oid = 'audiences_event'::regclass")
    call_command("partition_log")
    said = capsys.readouterr().out
    assert "to do: Validate the constraint" in said
    assert re.search(r"The log is one table of \d+ MB\.", said), "it was never analyzed"
    sql("ANALYZE audiences_event")
    call_command("partition_log")
    assert re.search(r"one table of about \d+ events, ", capsys.readouterr().out)
    assert not parts.has_parts()
    call_command("partition_log", "--yes")
    assert "The log has parts." in capsys.readouterr().out
    assert parts.has_parts()
    call_command("partition_log", "--yes")
    assert "Nothing is left to do" in capsys.readouterr().out


@pytest.mark.parametrize("error", [log_conversion.LockedError("in use"), ProgrammingError("must be owner of table")])
def test_the_command_reports_in_one_sentence_why_it_stops(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    monkeypatch.setattr(log_conversion, "progress", lambda: log_conversion.Progress(False, 1, 1, None))
    monkeypatch.setattr(log_conversion, "convert", Mock(side_effect=error))
    with pytest.raises(CommandError, match=str(error)):
        call_command("partition_log", "--yes")


@pytest.mark.django_db(transaction=True)
@pytest.mark.usefixtures("only_the_first_part")
def test_calls_are_stored_and_delivered_during_a_conversion(odp: ThreadedSandbox) -> None:
    install = make_install(odp)
    make_delivered(install, "a")
    sql(ONE_TABLE)
    stop, stored, errors = Flag(), [0], []

    def receive() -> None:
        stored[0] += ingest.receive(install, body(message(who=f"u{stored[0]}"))).queued

    def repeat(work: Callable[[], object]) -> None:
        try:
            while not stop.is_set():
                work()
        except Exception as error:
            errors.append(error)
            raise
        finally:
            connections.close_all()

    threads = [Thread(target=repeat, args=(work,)) for work in (receive, lambda: drain_all(install))]
    for thread in threads:
        thread.start()
    while stored[0] < 20 and not errors:
        pass
    list(log_conversion.convert(pause=lambda seconds: None))
    next_part()
    until = stored[0] + 20
    while stored[0] < until and not errors:
        pass
    stop.set()
    for thread in threads:
        thread.join()
    assert errors == []
    drain_all(install)
    assert Event.objects.count() == stored[0] + 1
    assert_all_is_well(*Audience.objects.filter(install=install))
