"""A transition time ahead of the clock decides nothing for long, and it is said where people look."""

import json
import time
from datetime import timedelta
from typing import Any
from unittest.mock import Mock

import pytest
from django.db import connection
from django.db.models import F
from django.test import Client
from django.urls import reverse
from django.utils.timezone import now

from audiences.delivery import leases
from audiences.front import items
from audiences.insight import customers, future_times, state
from audiences.models import Audience, Event, FutureTime, Install, Membership
from audiences.operations import audit
from audiences.receiving import ingest
from lytics import times
from sandbox.odp.testing import ThreadedSandbox
from tests.delivering import assert_all_is_well, drain_all, enter, happen, make_audience
from tests.messages import body, message, transition

pytestmark = pytest.mark.django_db(transaction=True)


def at(**ahead: float) -> str:
    return times.text(times.from_moment(now() + timedelta(**ahead)))


def receive(install: Install, event: str, told: Any, *, message_at: Any = None) -> None:
    meta = {"object": "user", "subscription_id": "job-7", "timestamp": message_at or at(seconds=-1)}
    ingest.receive(install, body(message(transition(event, at=told), meta=meta)))


FUTURE_NS = times.nanoseconds("2199-01-01T00:00:00Z")

AHEAD = [
    "2199-01-01T00:00:00Z",
    "9999-12-31T23:59:59Z",
    lambda: at(hours=1),
    lambda: at(minutes=6),
    lambda: time.time() + 3600,
    lambda: str(round((time.time() + 3600) * 1000)),
    lambda: round((time.time() + 7200) * 1_000_000),
    10_413_792_000,
]


@pytest.mark.parametrize("told", AHEAD)
def test_the_real_exit_wins_over_an_enter_from_the_future(odp: ThreadedSandbox, shop: Install, told: Any) -> None:
    receive(shop, "enter", told() if callable(told) else told)
    drain_all(shop)
    assert odp.members("lytics_gold_club") == ["kim"]
    receive(shop, "exit", at())
    drain_all(shop)
    assert odp.members("lytics_gold_club") == []
    assert_all_is_well(Audience.objects.get())


def test_the_real_enter_wins_over_an_exit_from_the_future(odp: ThreadedSandbox, shop: Install) -> None:
    receive(shop, "exit", "2199-01-01T00:00:00Z")
    receive(shop, "enter", at())
    drain_all(shop)
    assert odp.members("lytics_gold_club") == ["kim"]


def test_the_time_of_the_message_counts_instead(shop: Install) -> None:
    receive(shop, "enter", "2199-01-01T00:00:00Z", message_at="2026-03-02T09:15:00.000000007Z")
    assert Event.objects.get().occurred_ns == times.nanoseconds("2026-03-02T09:15:00.000000007Z")


def test_the_moment_of_the_call_counts_where_the_message_is_ahead_too(shop: Install) -> None:
    before = times.from_moment(now())
    receive(shop, "enter", "2199-01-01T00:00:00Z", message_at="2198-01-01T00:00:00Z")
    assert before <= Event.objects.get().occurred_ns <= times.from_moment(now())


@pytest.mark.parametrize(("ahead", "believed"), [(290, True), (-10, True), (330, False)])
def test_a_clock_may_be_a_little_ahead(shop: Install, ahead: float, believed: bool) -> None:
    told = at(seconds=ahead)
    receive(shop, "enter", told)
    assert (Event.objects.get().occurred_ns == times.nanoseconds(told)) is believed
    assert FutureTime.objects.exists() is not believed


def test_the_tolerance_is_a_setting(shop: Install, settings: Any) -> None:
    settings.CLOCK_TOLERANCE_SECONDS = 10_000
    receive(shop, "enter", told := at(hours=2))
    assert Event.objects.get().occurred_ns == times.nanoseconds(told)


@pytest.mark.parametrize("is_known", [False, True])
def test_the_event_shows_the_time_that_was_sent(shop: Install, is_known: bool) -> None:
    """Also in the middle of a call, where neighbours have good times, and for an audience with earlier calls."""
    if is_known:
        ingest.receive(shop, body(message(who="z")))
    future = transition(at="2199-01-01T00:00:00Z")
    messages = [message(who="a"), message(future, who="b"), message(who="c"), message(future, who=["d", "e"])]
    ingest.receive(shop, body(*messages))
    told = {event.identifier for event in Event.objects.all() if FutureTime.objects.filter(pk=event.pk).exists()}
    assert told == {"b", "d", "e"}
    assert {row.claimed_ns for row in FutureTime.objects.all()} == {times.nanoseconds("2199-01-01T00:00:00Z")}
    assert {event.occurred_ns for event in Event.objects.filter(identifier__in="abc")} == {
        times.nanoseconds("2026-03-02T09:15:00Z"),
        times.nanoseconds("2026-03-02T09:15:04.25Z"),
    }


def test_find_a_customer_and_the_front_page_say_so(shop: Install, admin_client: Client) -> None:
    receive(shop, "enter", "2199-01-01T00:00:00Z")
    (status,) = customers.customer_history("kim").statuses
    assert "2199-01-01" in state.of_event(status).why
    page = admin_client.get(reverse("admin:index")).content.decode()
    assert "1 transition time was ahead of the clock" in page
    assert "173 years" in page or "172 years" in page
    yesterday = now() - timedelta(hours=23)
    FutureTime.objects.update(received_at=yesterday)
    receive(shop, "exit", "2199-01-01T00:00:00Z")
    (told,) = items.ignored_times()
    assert (told.what, told.since) == ("2 transition times were ahead of the clock", yesterday)


def test_how_far_ahead_a_time_was_is_measured_from_its_call(shop: Install) -> None:
    """Later it is no longer ahead, and the number is what CLOCK_TOLERANCE_SECONDS is chosen by."""
    at = now() + timedelta(minutes=10)
    receive(shop, "enter", f"{at:%Y-%m-%dT%H:%M:%SZ}")
    receive(shop, "enter", f"{at - timedelta(minutes=2):%Y-%m-%dT%H:%M:%SZ}")
    hours = timedelta(hours=20)
    FutureTime.objects.update(
        received_at=F("received_at") - hours, claimed_ns=F("claimed_ns") - hours // timedelta(microseconds=1) * 1000
    )
    (told,) = items.ignored_times()
    assert "the furthest by 10 min." in told.why


# --- what older versions stored --------------------------------------------------------------------------------


@pytest.mark.parametrize("member", [True, False])
def test_a_ledger_from_the_future_is_found_and_set_right_by_the_next_event(
    odp: ThreadedSandbox, shop: Install, member: bool
) -> None:
    gold = make_audience(shop, "gold_club", provisioned=False)
    Audience.objects.update(segment_id="s1", slug="gold_club", latest_slug="gold_club")
    enter(gold, "kim", at=times.nanoseconds("2026-01-01T00:00:00Z"))
    drain_all(shop)
    future = times.nanoseconds("2199-01-01T00:00:00Z")
    Event.objects.filter(audience=gold).update(occurred_ns=future)
    Membership.objects.filter(audience=gold).update(occurred_ns=future, is_member=member)
    assert "no membership is ahead of the clock" in {finding.truth for finding in audit.audit()}
    Membership.objects.filter(audience=gold).update(is_member=True)
    receive(shop, "exit", told := at())
    drain_all(shop)
    assert odp.members("lytics_gold_club") == []
    assert Membership.objects.get().occurred_ns == times.nanoseconds(told)
    assert_all_is_well(gold)


def test_the_front_page_counts_stored_future_times_until_real_events_correct_them(
    shop: Install, viewer: Client
) -> None:
    """Whether its event is a day old or years: only the stored time counts."""
    gold = make_audience(shop, provisioned=False)
    happen(gold, ("kim", "exit", FUTURE_NS - 1), ("kim", "enter", FUTURE_NS), ("lee", "exit", FUTURE_NS))
    happen(gold, ("sam", "enter", times.from_moment(now())))
    Event.objects.update(received_at=now() - timedelta(days=400))
    drain_all(shop)

    def told() -> list[Any]:
        page = viewer.get(reverse("admin:index"))
        return [one for one in page.context["alerts"] if "ahead of the clock" in one.what]

    (alert,) = told()
    assert alert.what == "2 memberships have times ahead of the clock"
    assert "by 172 years" in alert.why or "by 173 years" in alert.why
    happen(gold, ("kim", "exit", times.from_moment(now())))
    drain_all(shop)
    (alert,) = told()
    assert alert.what == "1 membership has a time ahead of the clock"
    happen(gold, ("lee", "change", times.from_moment(now())))
    drain_all(shop)
    assert told() == []
    assert_all_is_well(gold)


def test_the_search_for_stored_times_reads_an_index_and_not_the_log(shop: Install) -> None:
    """With rows enough for the planner to mind."""
    gold = make_audience(shop, provisioned=False)
    happen(gold, *((f"c{number}", "enter", times.from_moment(now())) for number in range(3_000)))
    drain_all(shop)
    with connection.cursor() as cursor:
        cursor.execute("ANALYZE audiences_event, audiences_membership")
        values = {"latest_ns": leases.latest_ns(), "counted": future_times.COUNTED}
        cursor.execute(f"EXPLAIN {future_times._STORED.text}", values)
        plan = "\n".join(row[0] for row in cursor.fetchall())
    assert "audiences_event_1_occurred_ns_idx" in plan
    # The part of kept events is empty.
    assert "Seq Scan" not in plan.replace("Seq Scan on audiences_event_0", "")


def test_a_ledger_of_now_still_wins_over_a_late_event(odp: ThreadedSandbox, shop: Install) -> None:
    receive(shop, "exit", at())
    drain_all(shop)
    receive(shop, "enter", at(minutes=-10))
    drain_all(shop)
    assert odp.members("lytics_gold_club") == []


@pytest.mark.parametrize(("first", "later"), [(-30, 0), (0, -30)])
def test_a_worker_whose_clock_is_behind_believes_the_times_that_were_stored(
    odp: ThreadedSandbox, shop: Install, monkeypatch: pytest.MonkeyPatch, first: int, later: int
) -> None:
    monkeypatch.setattr(leases, "time", Mock(time=lambda: time.time() - 900))
    receive(shop, "exit" if first == 0 else "enter", at(minutes=first))
    drain_all(shop)
    receive(shop, "exit" if later == 0 else "enter", at(minutes=later))
    drain_all(shop)
    assert odp.members("lytics_gold_club") == []
    assert_all_is_well(Audience.objects.get())


def test_a_page_whose_clock_is_behind_reports_no_time_that_has_passed(
    shop: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    gold = make_audience(shop)
    happen(gold, ("kim", "enter", times.from_moment(now() - timedelta(hours=1))))
    event = Event.objects.get()
    Event.objects.update(received_at=now() - timedelta(hours=3))
    Membership.objects.create(
        audience=gold, identifier="kim", is_member=True, occurred_ns=event.occurred_ns, sequence=event.sequence
    )
    monkeypatch.setattr(leases, "time", Mock(time=lambda: time.time() - 2 * 3600))
    assert future_times.stored() is None


def test_a_released_item_with_a_future_time_is_noted_too(shop: Install) -> None:
    from audiences.models import Parked
    from audiences.operations import parked_items

    one = message(transition(at="2199-01-01T00:00:00Z"))
    del one["data"]["_id"]
    one["data"]["other"] = "kim"
    ingest.receive(shop, json.dumps([one]).encode())
    Install.objects.update(identifier_field="other")
    assert parked_items.release([Parked.objects.get().pk], by="me") == (1, 0)
    assert FutureTime.objects.get().pk == Event.objects.get().pk


@pytest.mark.parametrize(("stuck", "real"), [("enter", "exit"), ("exit", "enter")])
@pytest.mark.parametrize("future_first", [True, False])
def test_a_waiting_event_from_the_future_loses_to_a_real_one_of_its_run(
    odp: ThreadedSandbox, shop: Install, stuck: str, real: str, future_first: bool
) -> None:
    """An older version stored it, and the upgrade came before it was delivered."""
    gold = make_audience(shop, provisioned=False)
    events = [("kim", stuck, FUTURE_NS), ("kim", real, times.from_moment(now()))]
    happen(gold, *(events if future_first else events[::-1]))
    drain_all(shop)
    assert odp.members("lytics_gold") == (["kim"] if real == "enter" else [])
    assert_all_is_well(gold)
    statuses = {status.event.get_kind_display(): status.end for status in customers.customer_history("kim").statuses}
    assert statuses == {real: customers.End.DELIVERED, stuck: customers.End.FOLDED}


def test_an_event_from_the_future_that_is_sent_again_does_not_undo_a_real_one(
    odp: ThreadedSandbox, shop: Install
) -> None:
    """A replay appends what the log holds, with its times."""
    gold = make_audience(shop, provisioned=False)
    happen(gold, ("kim", "exit", times.from_moment(now())))
    drain_all(shop)
    happen(gold, ("kim", "enter", FUTURE_NS), forced=True)
    drain_all(shop)
    assert odp.members("lytics_gold") == []
    assert_all_is_well(gold)


def test_a_real_event_after_one_with_a_future_time_is_delivered(shop: Install) -> None:
    gold = make_audience(shop, provisioned=False)
    happen(gold, ("kim", "enter", FUTURE_NS))
    drain_all(shop)
    happen(gold, ("kim", "exit", times.from_moment(now())))
    drain_all(shop)
    assert {status.end for status in customers.customer_history("kim").statuses} == {customers.End.DELIVERED}


def test_an_event_from_the_future_decides_where_nothing_else_is_known(odp: ThreadedSandbox, shop: Install) -> None:
    gold = make_audience(shop, provisioned=False)
    enter(gold, "kim", at=FUTURE_NS)
    drain_all(shop)
    assert odp.members("lytics_gold") == ["kim"]
    assert Membership.objects.get().occurred_ns == FUTURE_NS
