"""Retention: what is deleted, what stays because something needs it, and steps that end midway."""

from collections.abc import Callable
from datetime import datetime, timedelta
from threading import Thread
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db import ProgrammingError, connection, connections, transaction
from django.test import Client
from django.urls import reverse
from django.utils.timezone import now
from pytest_django.fixtures import Settings

from audiences.insight import horizons, rollup, trials
from audiences.models import (
    Audience,
    Audit,
    Delivery,
    Difference,
    Horizon,
    Install,
    Lane,
    Minute,
    Parked,
    Pruning,
    Receipt,
    Resend,
    Retirement,
    Run,
    Skip,
    Trouble,
    TroubleMessage,
)
from audiences.operations import pruning, retiring
from audiences.receiving import ingest
from sandbox.odp.testing import ThreadedSandbox
from tests.delivering import (
    assert_all_is_well,
    broken_truths,
    drain_all,
    enter,
    make_audience,
    make_delivered,
    make_install,
)
from tests.messages import body, message
from tests.threads import PATIENCE

pytestmark = pytest.mark.django_db

TIMES = """
UPDATE audiences_receipt SET received_at = received_at - %(by)s::interval;
UPDATE audiences_event SET received_at = received_at - %(by)s::interval;
UPDATE audiences_delivery SET opened_at = opened_at - %(by)s::interval, closed_at = closed_at - %(by)s::interval;
UPDATE audiences_run SET opened_at = opened_at - %(by)s::interval, closed_at = closed_at - %(by)s::interval;
UPDATE audiences_parked SET parked_at = parked_at - %(by)s::interval, closed_at = closed_at - %(by)s::interval;
UPDATE audiences_audit SET asked_at = asked_at - %(by)s::interval, ended_at = ended_at - %(by)s::interval;
UPDATE audiences_trouble SET first_seen_at = first_seen_at - %(by)s::interval,
    resolved_at = resolved_at - %(by)s::interval;
UPDATE audiences_troublemessage SET created_at = created_at - %(by)s::interval, sent_at = sent_at - %(by)s::interval,
    given_up_at = given_up_at - %(by)s::interval;
"""


def days_pass(days: int = 100) -> None:
    """All that is in the tables happened that much earlier, and no pass over them has begun today."""
    with connection.cursor() as cursor:
        cursor.execute(TIMES, {"by": f"{days} days"})
    Pruning.objects.update(horizon_at=now() - timedelta(days=5000), is_done=True)


def prune() -> int:
    return pruning.prune(seconds=60, pause=lambda seconds: None)


def delivery_of(install: Install, **values: Any) -> Delivery:
    usual = {"endpoint": "/v3/profiles", "items": 1, "bytes": 2, "worker": "w", "version": "0", "outcome": "delivered"}
    at = {"opened_at": now(), "closed_at": now()}
    return Delivery.objects.create(install=install, **{**usual, **at, **values})


def run_of(audience: Audience, number: int, delivery: Delivery | None, **values: Any) -> Run:
    usual = {"sent": 1, "folded": 0, "opened_at": now(), "closed_at": now(), "outcome": "delivered"}
    numbers = {"first_sequence": number, "last_sequence": number}
    return Run.objects.create(audience=audience, delivery=delivery, **{**numbers, **usual, **values})


def receive(install: Install, *messages: Any) -> Receipt:
    ingest.receive(install, body(*messages))
    return Receipt.objects.latest("pk")


# --- What stays ----------------------------------------------------------------------------------------------


def test_history_is_deleted_and_the_newest_run_of_a_lane_stays(odp: ThreadedSandbox) -> None:
    install = make_install(odp)
    audience = make_delivered(install, "a")
    enter(audience, "b", at=2)
    drain_all(install)
    days_pass()
    enter(audience, "c", at=3)
    drain_all(install)
    before = Run.objects.count()
    assert prune() > 0
    assert Run.objects.count() == Delivery.objects.count() == 1 < before
    assert Horizon.objects.get().runs_to == 2
    assert_all_is_well(audience)
    days_pass()
    prune()
    assert Run.objects.count() == Delivery.objects.count() == 1
    enter(audience, "d", at=4)
    drain_all(install)
    assert_all_is_well(audience)


def test_an_audit_finds_a_run_that_is_missing_after_the_horizon(odp: ThreadedSandbox) -> None:
    install = make_install(odp)
    audience = make_delivered(install, "a")
    days_pass()
    for number in range(2, 5):
        enter(audience, f"u{number}", at=number)
        drain_all(install)
    prune()
    assert Horizon.objects.get().runs_to == 1
    Run.objects.get(first_sequence=3).delete()
    assert [finding[0] for finding in broken_truths()] == ["every delivered event lies in a run"]


@pytest.mark.parametrize(
    ("values", "stays"),
    [
        ({}, False),
        ({"outcome": "refused"}, False),
        ({"outcome": "", "closed_at": None}, True),
        ({"outcome": "unknown"}, True),
        ({"outcome": "retry_later"}, True),
        ({"outcome": "retry_later", "reconciled_at": now()}, False),
    ],
)
def test_a_delivery_stays_until_it_is_closed_and_confirmed(values: dict[str, Any], stays: bool) -> None:
    delivery_of(make_install(), request=b"body", **values)
    days_pass()
    prune()
    assert Delivery.objects.count() == stays
    assert not Delivery.objects.filter(request__isnull=False).exists()


def test_a_delivery_and_a_run_stay_while_something_that_stays_refers_to_them() -> None:
    install = make_install()
    audience = make_audience(install)
    rejected, waiting, newest, gone = (delivery_of(install, request=b"body", answer="words") for _ in range(4))
    Parked.objects.create(install=install, delivery=rejected, reason="refused_by_odp", audience=audience, sequence=1)
    run_of(audience, 1, gone)
    run_of(audience, 2, waiting, outcome="refused")
    run_of(audience, 1, newest)
    Lane.objects.update(delivered_sequence=1)
    days_pass()
    prune()
    assert set(Delivery.objects.all()) == {rejected, waiting, newest}
    assert set(Delivery.objects.values_list("request", "answer", "reason")) == {(None, "", "")}
    assert set(Run.objects.values_list("delivery", flat=True)) == {waiting.pk, newest.pk}


def test_a_run_stays_as_long_as_its_delivery(settings: Settings) -> None:
    settings.DELIVERIES_KEEP_DAYS = 0
    install = make_install()
    audience = make_audience(install)
    for number in (1, 2, 3):
        said = {"answer" if number == 1 else "reason": "words"}
        run_of(audience, number, delivery_of(install, **said) if number < 3 else None)
    run_of(audience, 4, None)
    Lane.objects.update(delivered_sequence=4)
    days_pass()
    prune()
    assert sorted(Run.objects.values_list("first_sequence", flat=True)) == [1, 2, 4]
    settings.DELIVERIES_KEEP_DAYS = 90
    days_pass()
    prune()
    assert Run.objects.get().first_sequence == 4
    # The horizon never goes back, or an audit of the log would miss Run 3.
    assert Horizon.objects.get().runs_to == 3


def test_a_run_stays_while_odp_may_still_apply_its_request() -> None:
    """Its Delivery has no text, but only the Run says whom it was about."""
    install = make_install()
    audience = make_audience(install)
    run_of(audience, 1, delivery_of(install, outcome="unknown"), outcome="unknown")
    run_of(audience, 2, None)
    Lane.objects.update(delivered_sequence=2)
    days_pass()
    prune()
    assert Run.objects.count() == 2
    Delivery.objects.update(reconciled_at=now())
    days_pass()
    prune()
    assert Run.objects.get().first_sequence == 2


def test_a_run_of_skipped_events_stays_as_long_as_they_do(settings: Settings) -> None:
    settings.EVENTS_KEEP_DAYS = 0
    install = make_install()
    audience = make_audience(install)
    skip = Skip.objects.create(install=install, by="kim", reason="a restored backup")
    run_of(audience, 1, None, outcome="skipped", sent=0, skip=skip)
    run_of(audience, 2, None)
    run_of(audience, 3, None)
    Lane.objects.update(delivered_sequence=3)
    days_pass()
    prune()
    assert sorted(Run.objects.values_list("first_sequence", flat=True)) == [1, 3]
    Horizon.objects.update(events_to=1)
    days_pass()
    prune()
    assert Run.objects.get().first_sequence == 3


def test_a_call_stays_with_its_parked_items_and_its_undelivered_events(
    odp: ThreadedSandbox, settings: Settings
) -> None:
    install = make_install(odp)
    with_open = receive(install, message(who=None))
    with_closed = receive(install, message(who=None))
    delivered = receive(install, message())
    drain_all(install)
    Parked.objects.filter(receipt=with_closed).update(closed_at=now(), resolution="discarded")
    days_pass()
    waiting = receive(install, message())
    days_pass()
    assert prune() > 0
    assert set(Receipt.objects.all()) == {with_open, waiting}
    assert not Receipt.objects.filter(pk=delivered.pk).exists()
    drain_all(install)
    days_pass()
    receive(install, message())
    prune()
    assert set(Receipt.objects.all()) == {with_open, Receipt.objects.latest("pk")}
    assert Parked.objects.count() == 1


def test_a_call_from_shortly_before_the_oldest_waiting_event_stays() -> None:
    """Numbers follow the time of receipt only approximately: it may have brought a later number."""
    install, other = make_install(), make_install(name="Other")
    first = receive(install, message())
    Receipt.objects.update(received_at=first.received_at - timedelta(minutes=4))
    receive(other, message())
    Lane.objects.filter(audience__install=other).update(delivered_sequence=1)
    days_pass()
    last = [receive(install, message()), receive(other, message())]
    prune()
    assert list(Receipt.objects.order_by("pk")) == [first, *last], "the delivered call of the other install is deleted"


def test_events_after_the_end_of_a_retired_audience_keep_no_call(odp: ThreadedSandbox) -> None:
    install = make_install(odp)
    receive(install, message())
    drain_all(install)
    Lane.objects.update(retired_sequence=1)
    receive(install, message())
    days_pass()
    last = receive(install, message(who=None))
    prune()
    assert Lane.objects.get().delivered_sequence < Audience.objects.get().last_sequence
    assert list(Receipt.objects.all()) == [last]


def test_waiting_events_of_an_audience_that_was_retired_before_odp_had_it_keep_no_call() -> None:
    install = make_install()
    receive(install, message())
    assert retiring.retire(Audience.objects.get(), by="sam", reason="rejected")
    retiring.advance(Retirement.objects.get().pk)
    days_pass()
    last = receive(install, message(who=None))
    prune()
    assert Lane.objects.get().delivered_sequence < Audience.objects.get().last_sequence
    assert list(Receipt.objects.all()) == [last]


def test_the_last_call_of_an_install_stays() -> None:
    one, other = make_install(), make_install(name="Other")
    receive(one, message())
    last = [receive(one, message()), receive(other, message())]
    receive(one, message())
    Receipt.objects.filter(pk=Receipt.objects.latest("pk").pk).update(job=trials.JOB)
    Lane.objects.update(delivered_sequence=9)
    Audience.objects.update(last_sequence=9)
    days_pass()
    prune()
    assert list(Receipt.objects.order_by("pk")) == last


def test_a_rejected_change_stays_as_long_as_its_event() -> None:
    install = make_install()
    audience = make_audience(install)
    enter(audience, "a")
    for number in (1, 2):
        Parked.objects.create(
            install=install, audience=audience, sequence=number, identifier=f"u{number}", reason="refused_by_odp",
            closed_at=now(), resolution="superseded",
        )  # fmt: skip
    days_pass()
    prune()
    assert [row.sequence for row in Parked.objects.all()] == [1]


def test_the_newest_audit_stays_and_differences_go_before_their_audit() -> None:
    audience = make_audience(make_install())
    values = {"install": audience.install, "audience": audience, "mode": "full", "by": "kim", "ended_at": now()}
    old, repaired, newest = (Audit.objects.create(**values, is_newest=newest) for newest in (False, False, True))
    for one in (old, repaired, newest):
        Difference.objects.create(audit=one, identifier="a", kind="not_here")
    Resend.objects.create(
        install=audience.install, audience=audience, kind="repair", upto=repaired.pk, total=1, by="kim", reason="why"
    )
    days_pass()
    prune()
    assert set(Audit.objects.all()) == {repaired, newest}
    assert Difference.objects.count() == 2
    Resend.objects.update(ended_at=now())
    days_pass(0)
    prune()
    assert set(Audit.objects.all()) == {newest}


def test_resolved_troubles_go_with_their_messages_once_these_have_ended() -> None:
    at = now()
    usual = {"kind": "blocked", "what": "blocked", "tone": "bad", "path": "/", "since_at": at, "last_seen_at": at}
    lasting, queued, told = (Trouble.objects.create(key=key, **usual) for key in ("a", "b", "c"))
    Trouble.objects.exclude(pk=lasting.pk).update(resolved_at=at)
    for trouble, ends in (
        (lasting, {"sent_at": at}),
        (queued, {}),
        (told, {"given_up_at": at}),
        (None, {"sent_at": at}),
    ):
        TroubleMessage.objects.create(
            trouble=trouble, event="trouble.opened", channel="slack", content={}, created_at=at, next_try_at=at, **ends
        )
    days_pass()
    prune()
    assert set(Trouble.objects.all()) == {lasting, queued}
    assert {message.trouble for message in TroubleMessage.objects.all()} == {lasting, queued}


@pytest.mark.parametrize("setting", sorted({*horizons.KINDS.values()} - {"EVENTS_KEEP_DAYS"}))
def test_zero_days_keep_the_rows(setting: str, settings: Settings) -> None:
    install = make_install()
    audience = make_audience(install)
    for name in horizons.KINDS.values():
        setattr(settings, name, 90 if name == setting else 0)
    receive(install, message(who=None))
    receive(install)
    Parked.objects.update(closed_at=now(), resolution="discarded", receipt=None)
    run_of(audience, 1, None)
    run_of(audience, 2, None)
    Lane.objects.filter(audience=audience).update(delivered_sequence=2)
    delivery_of(install, request=b"body")
    Audit.objects.create(install=install, audience=audience, mode="full", by="kim", ended_at=now())
    at = now()
    Trouble.objects.create(
        key="a", kind="b", what="c", tone="bad", path="/", since_at=at, last_seen_at=at, resolved_at=at
    )
    days_pass()
    assert prune() == 1
    kinds = {kind for kind, name in horizons.KINDS.items() if name == setting}
    assert {row.kind for row in Pruning.objects.all()} == kinds
    assert sum(row.pruned for row in Pruning.objects.all()) == 1


def test_minutes_stay_for_their_own_days(settings: Settings) -> None:
    install = make_install()
    for days in (3, 10):
        at = now() - timedelta(days=days)
        Minute.objects.create(install=install, minute=at, received=1, parked=0, delivered=0)
    settings.STATISTICS_KEEP_DAYS = 0
    rollup.roll_up()
    assert Minute.objects.count() == 2
    settings.STATISTICS_KEEP_DAYS = 7
    rollup.roll_up()
    assert Minute.objects.count() == 1


# --- Steps ---------------------------------------------------------------------------------------------------


@pytest.fixture
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pruning, "ROWS", 3)


@pytest.mark.usefixtures("small_steps")
def test_a_run_that_dies_midway_is_continued_after_its_last_step() -> None:
    install = make_install()
    for _ in range(10):
        delivery_of(install)
    days_pass()
    pauses = iter(range(10))

    def die_after_some(seconds: float) -> None:
        next(pauses)

    with pytest.raises(StopIteration):
        pruning.prune(seconds=60, pause=die_after_some)
    left = Delivery.objects.count()
    row = Pruning.objects.get(kind="deliveries")
    assert 0 < left < 10
    assert not row.is_done
    assert row.pruned == 10 - left
    assert row.position < Delivery.objects.order_by("pk")[0].pk
    prune()
    assert not Delivery.objects.exists()
    assert Pruning.objects.get(kind="deliveries").pruned == 10


@pytest.mark.usefixtures("small_steps")
def test_a_step_that_fails_deletes_nothing_and_is_taken_again(monkeypatch: pytest.MonkeyPatch) -> None:
    install = make_install()
    for _ in range(4):
        delivery_of(install)
    days_pass()

    class Crash(Exception):
        pass

    def fail(*args: Any, **values: Any) -> Any:
        raise Crash

    with monkeypatch.context() as patched, transaction.atomic():
        patched.setattr(pruning, "F", fail)
        with pytest.raises(Crash), transaction.atomic():
            prune()
    assert Delivery.objects.count() == 4
    prune()
    assert not Delivery.objects.exists()


def test_a_pass_is_done_once_a_day() -> None:
    install = make_install()
    delivery_of(install)
    days_pass()
    prune()
    row = Pruning.objects.get(kind="deliveries")
    assert row.is_done
    assert row.horizon_at is not None
    assert row.horizon_at.time() == datetime.min.time()
    long_ago = now() - timedelta(days=200)
    delivery_of(install, opened_at=long_ago, closed_at=long_ago)
    assert prune() == 0
    Pruning.objects.update(horizon_at=row.horizon_at - timedelta(days=1))
    assert prune() == 1


@pytest.mark.usefixtures("small_steps")
def test_a_pass_that_takes_longer_than_a_day_reaches_the_last_rows() -> None:
    """Begun again each day it would stay among the first ones, and never be late."""
    prune()
    install, old, older = make_install(), now() - timedelta(days=95), now() - timedelta(days=200)
    for at in (old, old, old, older):
        delivery_of(install, opened_at=at, closed_at=at)
    third = Delivery.objects.order_by("pk")[2]
    begun = now() - timedelta(days=100)
    Pruning.objects.filter(kind="deliveries").update(horizon_at=begun, is_done=False, position=third.pk)
    assert pruning.prune(seconds=60, pause=lambda seconds: None) == 1
    row = Pruning.objects.get(kind="deliveries")
    assert (row.horizon_at, row.is_done, Delivery.objects.count()) == (begun, True, 3)
    assert prune() == 3


def test_a_kind_that_fails_stops_no_other_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    delivery_of(make_install())
    days_pass()
    step = pruning._step

    def fail(kind: str, needs: dict[str, Any]) -> pruning.Step | None:
        if kind == "requests":
            raise ProgrammingError("permission denied for function prune_rows")
        return step(kind, needs)

    monkeypatch.setattr(pruning, "_step", fail)
    with pytest.raises(ProgrammingError, match="permission denied"):
        prune()
    assert not Delivery.objects.exists()


def test_more_days_than_before_delete_nothing(settings: Settings) -> None:
    delivery_of(make_install())
    days_pass(50)
    prune()
    settings.DELIVERIES_KEEP_DAYS = 365
    Pruning.objects.update(is_done=False, position=0)
    with connection.cursor() as cursor:
        cursor.execute(TIMES, {"by": "100 days"})
    prune()
    assert Delivery.objects.count() == 1


def test_a_clock_that_was_ahead_stops_no_later_pass() -> None:
    prune()
    Pruning.objects.update(horizon_at=now() + timedelta(days=200))
    long_ago = now() - timedelta(days=100)
    delivery_of(make_install(), opened_at=long_ago, closed_at=long_ago)
    assert prune() == 1
    assert not Delivery.objects.exists()


def in_another_session(work: Callable[[], Any]) -> Any:
    found: list[Any] = []

    def run() -> None:
        try:
            found.append(work())
        finally:
            connections.close_all()

    thread = Thread(target=run)
    thread.start()
    thread.join(PATIENCE)
    assert found, "it waited for a lock"
    return found[0]


@pytest.mark.django_db(transaction=True)
def test_nothing_waits_for_a_row_that_is_locked() -> None:
    install = make_install()
    kept, gone = delivery_of(install, request=b"body"), delivery_of(install, request=b"body")
    days_pass()
    with transaction.atomic():
        Delivery.objects.select_for_update().get(pk=kept.pk)
        in_another_session(prune)
        assert list(Delivery.objects.all()) == [kept]
    assert not Delivery.objects.filter(pk=gone.pk).exists()
    days_pass(0)
    prune()
    assert not Delivery.objects.exists()


@pytest.mark.django_db(transaction=True)
def test_a_locked_body_is_deleted_by_the_next_pass(settings: Settings) -> None:
    settings.DELIVERIES_KEEP_DAYS = 0
    install = make_install()
    locked, _ = delivery_of(install, request=b"body"), delivery_of(install, request=b"body")
    days_pass()
    with transaction.atomic():
        Delivery.objects.select_for_update().get(pk=locked.pk)
        in_another_session(prune)
    assert [row.pk for row in Delivery.objects.filter(request__isnull=False)] == [locked.pk]
    days_pass(0)
    prune()
    assert not Delivery.objects.filter(request__isnull=False).exists()


@pytest.mark.django_db(transaction=True)
def test_two_workers_do_not_wait_for_each_other() -> None:
    delivery_of(make_install())
    days_pass()
    Pruning.objects.get_or_create(kind="deliveries")
    with transaction.atomic():
        Pruning.objects.select_for_update().get(kind="deliveries")
        assert in_another_session(lambda: pruning._step("deliveries", {}) is None)
    prune()
    assert not Delivery.objects.exists()


# --- What pages say ------------------------------------------------------------------------------------------


def test_a_horizon_is_one_sentence_with_its_date_and_days(settings: Settings) -> None:
    assert horizons.words("receipts") == ""
    Pruning.objects.create(kind="receipts", horizon_at=datetime.fromisoformat("2026-08-30T00:00:00+00:00"))
    assert horizons.words("receipts") == "Calls before 30 August 2026 are deleted after 90 days."
    settings.RECEIPTS_KEEP_DAYS = 0
    assert horizons.words("receipts") == "Calls before 30 August 2026 were deleted."


@pytest.mark.parametrize("model", ["receipt", "delivery", "run", "parked", "audit", "trouble"])
def test_lists_say_from_when_on_they_are_complete(model: str) -> None:
    client = Client()
    client.force_login(User.objects.create_superuser("boss"))
    url = reverse(f"admin:audiences_{model}_changelist")
    assert "are deleted after" not in client.get(url).content.decode()
    days_pass()
    prune()
    assert "are deleted after 90 days" in client.get(url).content.decode()


def test_a_csv_file_has_the_horizon_in_its_name() -> None:
    client = Client()
    client.force_login(User.objects.create_superuser("boss"))
    prune()
    response = client.post(reverse("admin:audiences_receipt_csv"))
    day = horizons.day("receipts")
    assert f"calls-from-{day}-until-" in response.headers["Content-Disposition"]


def test_pages_show_a_run_whose_delivery_is_deleted(odp: ThreadedSandbox, settings: Settings) -> None:
    settings.RUNS_KEEP_DAYS = 0
    install = make_install(odp)
    audience = make_delivered(install, "a")
    enter(audience, "b", at=2)
    drain_all(install)
    days_pass()
    prune()
    lost = Run.objects.exclude(delivery__in=Delivery.objects.all()).get()
    client = Client()
    client.force_login(User.objects.create_superuser("boss"))
    for url in (
        reverse("admin:audiences_run_changelist"),
        reverse("admin:audiences_run_change", args=[lost.pk]),
        reverse("admin:audiences_audience_change", args=[audience.pk]),
    ):
        assert client.get(url).status_code == 200
    assert client.post(reverse("find_customer"), {"identifier": "a"}, follow=True).status_code == 200


def test_metrics_count_the_deleted_rows(settings: Settings) -> None:
    settings.METRICS_TOKEN = "a token for the metrics"
    settings.RUNS_KEEP_DAYS = 0
    install = make_install()
    for _ in range(3):
        delivery_of(install)
    days_pass()
    prune()
    Pruning.objects.filter(kind="parked").update(is_done=False)
    page = Client(headers={"Authorization": f"Bearer {settings.METRICS_TOKEN}"}).get("/metrics").content.decode()
    assert 'lytics_sync_pruned_rows_total{kind="deliveries"} 3.0' in page
    assert 'lytics_sync_prune_pending{kind="deliveries"} 0.0' in page
    assert 'lytics_sync_prune_pending{kind="parked"} 1.0' in page
    assert '{kind="runs"}' not in page
    settings.PARKED_KEEP_DAYS = 0
    page = Client(headers={"Authorization": f"Bearer {settings.METRICS_TOKEN}"}).get("/metrics").content.decode()
    assert 'lytics_sync_prune_pending{kind="parked"} 0.0' in page
