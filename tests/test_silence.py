"""Senders that are silent, and events that wait, beyond the limits of their install."""

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.contrib.admin.models import CHANGE, LogEntry
from django.contrib.auth.models import User
from django.contrib.contenttypes.models import ContentType
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils.timezone import now
from pytest_django.fixtures import Settings

from audiences.delivery import drafts
from audiences.front import delays, silence
from audiences.front import troubles as front
from audiences.insight import rhythm, trials
from audiences.insight.stalled_work import Stuck
from audiences.models import Audience, Event, Install, Lane, Receipt, Rhythm, Trial
from audiences.receiving import disk_usage, rejected_calls
from tests.delivering import enter, make_audience, make_install

pytestmark = pytest.mark.django_db

HOUR, DAY = timedelta(hours=1), timedelta(days=1)
# A Monday.
START = datetime(2026, 11, 2, tzinfo=UTC)


def call(install: Install, at: datetime, *, job: str = "job") -> None:
    Receipt.objects.create(
        install=install, received_at=at, source="127.0.0.1", job=job, bytes=1, messages=1, queued=1, parked=0, skipped=0
    )


def calls(install: Install, *moments: datetime) -> None:
    for at in moments:
        call(install, at)


def every(pause: timedelta, *, start: datetime, end: datetime) -> Iterator[datetime]:
    while start < end:
        yield start
        start += pause


def limit(install: Install) -> timedelta | None:
    return rhythm.limits([install]).get(install.pk)


def a_sender(install: Install, *, last: datetime, pause: timedelta = timedelta(minutes=30), days: int = 10) -> None:
    """Learned from calls with one pause between them, up to ``last``."""
    rhythm.learn(at=last - days * DAY)
    calls(install, *every(pause, start=last - days * DAY, end=last), last)
    rhythm.learn(at=last)


def kinds() -> set[str]:
    return {alert.kind for alert in front.alerts(front.facts())}


# --- What is learned ------------------------------------------------------------------------------------------


def test_the_limit_is_three_times_the_longest_pause_and_at_least_an_hour(install: Install) -> None:
    a_sender(install, last=START, pause=timedelta(minutes=5))
    assert limit(install) == HOUR
    calls(install, START + timedelta(minutes=90))
    rhythm.learn()
    assert limit(install) == timedelta(minutes=270)


def test_the_time_in_which_an_install_is_off_is_not_learned(install: Install) -> None:
    a_sender(install, last=START)
    new = make_install(name="New")
    a_sender(new, last=START, days=2)
    Install.objects.update(enabled=False)
    for hours in (1, 20, 200):
        rhythm.learn(at=START + hours * HOUR)
    Install.objects.update(enabled=True)
    for shop in (install, new):
        calls(shop, START + 201 * HOUR)
    rhythm.learn(at=START + 201 * HOUR)
    assert limit(install) == 3 * HOUR
    assert limit(new) is None, "it has called on three days"


def test_an_install_without_a_week_of_calls_has_no_limit(install: Install) -> None:
    assert limit(install) is None
    rhythm.learn(at=START)
    assert limit(install) is None
    calls(install, *every(HOUR, start=START, end=START + 6 * DAY))
    rhythm.learn()
    assert limit(install) is None
    calls(install, *every(HOUR, start=START + 6 * DAY, end=START + 7 * DAY + HOUR))
    rhythm.learn()
    assert limit(install) == 3 * HOUR


def test_calls_before_the_first_pass_are_not_read(install: Install) -> None:
    """There may be millions of these calls. Only the newest is read: the first pause begins with it."""
    calls(install, START - 30 * DAY, START - HOUR)
    rhythm.learn(at=START)
    assert limit(install) is None
    calls(install, *every(HOUR, start=START, end=START + 8 * DAY))
    rhythm.learn()
    assert limit(install) == 3 * HOUR


def test_an_install_that_a_concurrent_pass_has_begun_is_left_to_the_next_pass(install: Install) -> None:
    rhythm.learn(at=START)
    calls(install, *every(HOUR, start=START, end=START + 8 * DAY))
    others: list[Install] = []

    def concurrent_pass(execute: Any, statement: str, params: Any, many: bool, context: Any) -> Any:
        if "FROM paused" in statement and not others:
            others.append(make_install(name="New"))
            Rhythm.objects.create(install=others[0])
            call(others[0], START + 8 * DAY)
        return execute(statement, params, many, context)

    with connection.execute_wrapper(concurrent_pass):
        rhythm.learn()
    assert limit(install) == 3 * HOUR
    rhythm.learn()
    assert Rhythm.objects.get(install=others[0]).called_at == START + 8 * DAY


def test_a_sender_of_working_days_is_not_silent_at_the_weekend(install: Install) -> None:
    """Two weeks of calls every ten minutes from Monday to Friday, nine to five."""
    rhythm.learn(at=START)
    for day in (0, 1, 2, 3, 4, 7, 8, 9, 10, 11):
        morning = START + day * DAY + 9 * HOUR
        calls(install, *every(timedelta(minutes=10), start=morning, end=morning + 8 * HOUR))
        rhythm.learn()
        # Until the first weekend is over, nothing is known.
        assert (limit(install) is None) == (day < 7)
    known = limit(install)
    assert known is not None
    assert known > 3 * 63 * HOUR


def test_a_pause_counts_for_two_weeks(install: Install) -> None:
    a_sender(install, last=START)
    calls(install, START + 10 * HOUR)
    rhythm.learn()
    assert limit(install) == 30 * HOUR
    calls(install, START + 11 * HOUR)
    rhythm.learn()
    assert limit(install) == 30 * HOUR, "a shorter pause of the same day doesn't replace it"
    calls(install, *every(HOUR, start=START + 12 * HOUR, end=START + 16 * DAY))
    rhythm.learn()
    assert limit(install) == 3 * HOUR


def test_test_customers_do_not_count_as_calls(install: Install) -> None:
    a_sender(install, last=START, pause=2 * HOUR)
    call(install, START + HOUR, job=trials.JOB)
    calls(install, START + 4 * HOUR)
    rhythm.learn()
    assert limit(install) == 12 * HOUR


def test_a_pass_reads_a_bounded_number_of_calls_and_the_next_one_goes_on(
    install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rhythm, "CALLS", 10)
    rhythm.learn(at=START)
    calls(install, *every(12 * HOUR, start=START, end=START + 8 * DAY))
    rhythm.learn()
    assert limit(install) is None
    rhythm.learn()
    assert limit(install) == 36 * HOUR


def test_a_pass_without_new_calls_changes_nothing(install: Install) -> None:
    a_sender(install, last=START)
    before = Rhythm.objects.values().get()
    rhythm.learn()
    assert Rhythm.objects.values().get() == before


def test_each_install_has_its_own_rhythm(install: Install) -> None:
    other = make_install(name="Other")
    for one, pause in ((install, HOUR), (other, 5 * HOUR)):
        a_sender(one, last=START, pause=pause)
    assert rhythm.limits([install, other]) == {install.pk: 3 * HOUR, other.pk: 15 * HOUR}


# --- What Now shows -------------------------------------------------------------------------------------------


def test_now_names_a_sender_that_is_silent_for_too_long(install: Install, viewer: Client) -> None:
    a_sender(install, last=now() - timedelta(minutes=89))
    assert silence.KIND not in kinds()
    Receipt.objects.all().delete()
    a_sender(install, last=now() - 5 * HOUR)
    assert silence.KIND in kinds()
    shown = viewer.get(reverse("admin:index")).content.decode()
    assert "Lytics has been silent for 5 h" in shown


def probed(install: Install, *hours_ago: float) -> None:
    for hours in hours_ago:
        at = now() - hours * HOUR
        values = {"started_at": at, "moved_at": at, "closed_at": now(), "is_probe": True}
        Trial.objects.create(install=install, identifier="x", **values)


@pytest.mark.parametrize(
    ("hours_ago", "is_silent"),
    [
        ((5.1, 0.9, 0.6, 0.3), False),
        ((5.1, 2.9, 2.6, 2.3, 2.0, 1.7, 1.4, 1.1, 0.8, 0.5, 0.2), True),
        ((9.0, 5.1, *(hours / 3 for hours in range(15))), True),
        ((9.0, 5.3, 5.1, 1.4, 1.1, 0.8, 0.5, 0.2), False),
        ((5.1, 4.8, 4.5, 1.2, 0.9, 0.6, 0.3), True),
        ((), True),
    ],
    ids=[
        "until an hour ago",
        "until three hours ago",
        "before the last call",
        "before and after",
        "in between",
        "unknown",
    ],
)
def test_the_time_in_which_this_service_did_not_run_is_no_silence(
    install: Install, hours_ago: tuple[float, ...], is_silent: bool
) -> None:
    a_sender(install, last=now() - 5 * HOUR)
    probed(install, *hours_ago)
    assert (silence.KIND in kinds()) == is_silent


@pytest.mark.parametrize("is_probed", [True, False])
def test_nobody_is_called_silent_before_the_first_test_customer_after_an_outage(
    install: Install, is_probed: bool, settings: Settings
) -> None:
    a_sender(install, last=now() - 5 * HOUR)
    probed(install, 5.1)
    make_audience(install)
    Install.objects.update(key_accepted_at=now() if is_probed else None)
    assert (silence.KIND not in kinds()) == is_probed
    settings.PROBE_MINUTES = 0
    assert silence.KIND in kinds()


def test_a_call_ends_the_silence(install: Install) -> None:
    a_sender(install, last=now() - 5 * HOUR)
    call(install, now())
    assert silence.KIND not in kinds()


def test_an_install_that_is_off_or_rejects_calls_is_not_called_silent(install: Install, broker: Any) -> None:
    a_sender(install, last=now() - 5 * HOUR)
    Install.objects.update(enabled=False)
    assert silence.KIND not in kinds()
    Install.objects.update(enabled=True)
    assert silence.KIND in kinds()
    rejected_calls.note(install.public_id, "203.0.113.7")
    rejected_calls._counter.sender.send()
    assert silence.KIND not in kinds()


def test_the_time_in_which_an_install_was_off_is_no_silence(install: Install, operator: Client) -> None:
    a_sender(install, last=now() - 5 * DAY)
    assert silence.KIND in kinds()
    kind = ContentType.objects.get_for_model(Install)
    entry = {"user": User.objects.get(username="operator"), "content_type": kind, "object_id": str(install.pk)}
    on = LogEntry.objects.create(**entry, action_flag=CHANGE, change_message='[{"changed": {"fields": ["Enabled"]}}]')
    assert silence.KIND not in kinds()
    LogEntry.objects.filter(pk=on.pk).update(action_time=now() - 2 * HOUR)
    (told,) = [alert for alert in front.alerts(front.facts()) if alert.kind == silence.KIND]
    assert "silent for 2 h" in told.what
    call(install, now() - timedelta(minutes=100))
    (told,) = [alert for alert in front.alerts(front.facts()) if alert.kind == silence.KIND]
    assert "silent for 100 min" in told.what, "a call came since it was switched on"


def test_the_queries_about_installs_that_are_silent_off_or_rejected_do_not_grow_with_their_number(
    operator: Client, broker: Any
) -> None:
    """All with a history, a wrong token, and calls that could not be stored."""
    kind = ContentType.objects.get_for_model(Install)

    def queries(more: int) -> int:
        for number in range(more):
            silent, off = (make_install(name=f"{what} {more} {number}") for what in ("silent", "off"))
            Install.objects.filter(pk__in=(silent.pk, off.pk)).update(silence_limit_hours=1)
            Install.objects.filter(pk=off.pk).update(enabled=False)
            for shop in (silent, off):
                call(shop, now() - 5 * HOUR)
                entry = {"user": User.objects.get(username="operator"), "content_type": kind, "action_flag": CHANGE}
                on = LogEntry.objects.create(**entry, object_id=str(shop.pk), change_message='{"fields": ["Enabled"]}')
                LogEntry.objects.filter(pk=on.pk).update(action_time=now() - 3 * HOUR)
            rejected_calls.note(off.public_id, "203.0.113.7")
            rejected_calls.note_not_stored(off.public_id, "203.0.113.7", cause=rejected_calls.TOO_LARGE)
        rejected_calls._counter.sender.send()
        with CaptureQueriesContext(connection) as seen:
            found = [alert.kind for alert in front.alerts(front.facts())]
        assert {silence.KIND, "switched_off", "rejected", "not_stored"} <= set(found)
        return len(seen)

    queries(1)  # what is kept in memory is read
    assert queries(1) == queries(7)


def test_the_check_of_troubles_learns_the_rhythm(install: Install) -> None:
    front.check()
    assert Rhythm.objects.filter(install=install).exists()


# --- Limits that a person sets --------------------------------------------------------------------------------


def test_a_person_can_set_the_limit_or_switch_it_off(install: Install) -> None:
    a_sender(install, last=now() - 5 * HOUR)
    Install.objects.update(silence_limit_hours=6)
    assert silence.KIND not in kinds()
    Install.objects.update(silence_limit_hours=4)
    assert "the limit of the install: 4 h" in next(
        alert.why for alert in front.alerts(front.facts()) if alert.kind == silence.KIND
    )
    Rhythm.objects.all().delete()
    assert silence.KIND in kinds()
    Install.objects.update(silence_limit_hours=0)
    assert silence.KIND not in kinds()


def test_an_install_with_a_limit_is_not_called_silent_before_its_first_call(install: Install) -> None:
    Install.objects.update(silence_limit_hours=4)
    assert {"no_call"} == {silence.KIND, "no_call"} & kinds()


def late(install: Install) -> bool:
    return delays.KIND in {alert.kind for alert in front.alerts(front.facts()) if alert.install == install.pk}


def test_now_names_an_install_whose_events_wait_beyond_its_limit(install: Install) -> None:
    audience = make_audience(install)
    enter(audience, "anna")
    drafts.note_key(install.pk, problem="")
    Event.objects.update(received_at=now() - timedelta(minutes=14))
    assert not late(install)
    Event.objects.update(received_at=now() - timedelta(minutes=16))
    assert late(install)
    Install.objects.update(delay_limit_minutes=20)
    assert not late(install)
    Install.objects.update(delay_limit_minutes=0)
    Event.objects.update(received_at=now() - 5 * DAY)
    assert not late(install)


@pytest.mark.parametrize(
    "values",
    [
        {"enabled": False},
        {"key_accepted_at": None},
        {
            "backoff_since_at": START,
            "backoff_until_at": START,
            "backoff_failures": 1,
            "backoff_reason": "503: away",
        },
    ],
)
def test_an_install_that_has_another_trouble_is_not_called_late(install: Install, values: dict[str, Any]) -> None:
    audience = make_audience(install)
    enter(audience, "anna")
    drafts.note_key(install.pk, problem="")
    Event.objects.update(received_at=now() - HOUR)
    assert late(install)
    Install.objects.update(**values)
    assert not late(install)


def test_an_install_without_progress_is_not_called_late_and_one_with_an_error_is(install: Install) -> None:
    """The alert about an error names its audience alone."""
    for audience in (make_audience(install, slug) for slug in ("gold", "silver")):
        enter(audience, "anna")
    drafts.note_key(install.pk, problem="")
    Event.objects.update(received_at=now() - HOUR)
    Audience.objects.update(provisioned_at=now() - HOUR)
    assert not late(install)
    failing = Lane.objects.filter(pk=audience.pk)
    failing.update(fault_since_at=now() - HOUR, fault_until_at=now(), fault_reason="KeyError")
    assert late(install)


def test_events_of_a_paused_audience_are_not_late(install: Install) -> None:
    audience = make_audience(install)
    enter(audience, "anna")
    drafts.note_key(install.pk, problem="")
    Event.objects.update(received_at=now() - HOUR)
    Lane.objects.update(paused_at=now(), paused_by="kim", pause_reason="later")
    assert not late(install)


def test_an_install_whose_calls_are_answered_503_is_neither_silent_nor_late(
    install: Install, settings: Settings
) -> None:
    a_sender(install, last=now() - 5 * HOUR)
    enter(make_audience(install), "anna")
    drafts.note_key(install.pk, problem="")
    Event.objects.update(received_at=now() - HOUR)
    assert {silence.KIND, delays.KIND} <= kinds()
    settings.BACKLOG_HIGH_WATER = 0
    assert "backlog" in kinds()
    assert not {silence.KIND, delays.KIND} & kinds()


def test_nobody_is_called_silent_while_the_database_is_too_large_for_calls(
    install: Install, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    a_sender(install, last=now() - 5 * HOUR)
    monkeypatch.setattr(disk_usage, "_read", None)
    settings.DATABASE_HIGH_WATER_BYTES = 1024
    assert silence.KIND not in kinds()


@pytest.mark.parametrize("in_part", [False, True])
def test_an_install_whose_work_stands_still_is_late_only_if_a_part_of_it_does(install: Install, in_part: bool) -> None:
    """Its alert says both, unless it is about some audiences."""
    enter(make_audience(install), "anna")
    drafts.note_key(install.pk, problem="")
    Event.objects.update(received_at=now() - HOUR)
    facts = replace(front.facts(), stuck=[Stuck(str(install), now(), "", in_part)])
    assert (delays.KIND in {alert.kind for alert in front.alerts(facts)}) is in_part
