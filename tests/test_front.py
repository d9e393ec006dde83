"""The front page: calls that are refused, the charts of the last hours, and what each trouble leads to."""

import json
import re
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import redis
from django.db import OperationalError, connection
from django.http.request import UnreadablePostError
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils.timezone import now
from psycopg.errors import LockNotAvailable
from pytest_django.fixtures import Settings
from structlog.testing import capture_logs

from audiences import redis_client, sessions
from audiences.delivery import backoff, holds
from audiences.front import charts
from audiences.insight import heartbeats, rollup, schedule
from audiences.models import Audience, Event, Install, Lane, Minute, Parked, Receipt, Run, Worker
from audiences.operations import resends
from audiences.receiving import body as body_of_call
from audiences.receiving import disk_usage, ingest, rejected_calls, tokens
from odp.outcomes import Answer, Outcome
from tests.delivering import enter, make_audience, make_install
from tests.messages import body, message, transition
from tests.test_admin import url
from tests.threads import PATIENCE, eventually

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("broker")]

NOON = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
MINUTE = timedelta(minutes=1)


def call(install: Install | None, authorization: str = "wrong", **extra: Any) -> int:
    path = f"/webhooks/lytics/{install.public_id if install else 'nobody'}"
    extra = {"HTTP_AUTHORIZATION": authorization, **extra}
    return Client().post(path, body(message()), "application/json", **extra).status_code


def page(client: Client) -> Any:
    """The front page, after the counts of rejected calls were sent to Redis."""
    rejected_calls._counter.sender.send()
    shown = client.get(reverse("admin:index"))
    assert shown.status_code == 200
    return shown


def number(client: Client, label: str) -> Any:
    return next(one for one in page(client).context["numbers"] if one.label == label)


def alert(client: Client, words: str) -> Any:
    return next((one for one in page(client).context["alerts"] if words in one.what), None)


def labels(one: Any) -> list[str]:
    return [button.label for button in one.buttons]


# --- Refused calls --------------------------------------------------------------------------------------------


def test_rejected_calls_are_counted_with_the_last_address_and_the_fix(operator: Client, install: Install) -> None:
    assert (number(operator, "rejected calls").value, number(operator, "rejected calls").well) == ("0", True)
    for address in ("192.0.2.1", "192.0.2.2"):
        assert call(install, REMOTE_ADDR=address) == 401
    assert (number(operator, "rejected calls").value, number(operator, "rejected calls").well) == ("2", False)
    told = alert(operator, "2 calls to Shop rejected")
    assert told.tone == "bad"
    assert "192.0.2.2" in told.why
    assert "ago" in told.since
    assert labels(told) == ["Show the header", "Install instructions"]
    assert "Shop has had no call yet" not in page(operator).content.decode()


def test_a_viewer_sees_rejected_calls_without_buttons(viewer: Client, install: Install) -> None:
    call(install)
    assert labels(alert(viewer, "1 call to Shop rejected")) == []


def test_without_a_live_token_the_button_makes_one(operator: Client, install: Install) -> None:
    tokens.revoke(install.tokens.get())
    call(install)
    assert labels(alert(operator, "1 call to Shop rejected")) == ["New token", "Install instructions"]


def test_a_call_that_gets_in_afterwards_calms_the_trouble(viewer: Client, install: Install) -> None:
    call(install)
    assert alert(viewer, "1 call to Shop rejected").tone == "bad"
    assert call(install, install.tokens.get().secret) == 200
    told = alert(viewer, "1 call to Shop rejected")
    assert (told.tone, "valid token" in told.why) == ("held", True)


def test_a_call_over_the_body_limit_is_a_trouble_until_calls_are_stored_again(
    viewer: Client, install: Install, settings: Settings
) -> None:
    """Lytics waits as long as the 503 asks and then repeats the same call. Its job sends nothing else meanwhile."""
    token, limit = install.tokens.get().secret, settings.WEBHOOK_BODY_LIMIT
    settings.WEBHOOK_BODY_LIMIT = 10
    assert (call(install, token), call(install, token)) == (503, 503)
    told = alert(viewer, "2 calls to Shop got 503 and could not be stored")
    assert (told.tone, "WEBHOOK_BODY_LIMIT, 10" in told.why, "Batch Size" in told.todo) == ("bad", True, True)
    assert alert(viewer, "Shop has had no call yet") is None
    settings.WEBHOOK_BODY_LIMIT = limit
    assert call(install, token) == 200
    assert alert(viewer, "2 calls to Shop got 503").tone == "held"


def locked() -> OperationalError:
    error = OperationalError("canceling statement due to lock timeout")
    error.__cause__ = LockNotAvailable()
    return error


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ValueError("a bug"), "ended in an error of this service."),
        (body_of_call.TooSlowError(), "took longer than WEBHOOK_READ_SECONDS"),
        (locked(), "that another transaction locks"),
        (UnreadablePostError("it broke off"), None),
        (OperationalError("PostgreSQL restarts"), None),
    ],
    ids=str,
)
def test_a_call_that_gets_503_for_long_is_a_trouble(
    viewer: Client, install: Install, monkeypatch: pytest.MonkeyPatch, error: Exception, words: str | None
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    module = ingest if sessions.state_of(error) else body_of_call
    monkeypatch.setattr(module, "receive" if module is ingest else "read", fail)
    assert call(install, install.tokens.get().secret) == 503
    told = alert(viewer, "1 call to Shop got 503")
    assert told is None if words is None else words in told.why


def test_a_call_that_fails_before_its_install_is_known_is_counted_for_nobody(
    install: Install, broker: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokens, "authenticate", lambda **_: 1 / 0)
    assert call(install) == 503
    rejected_calls._counter.sender.send()
    assert not broker.keys(f"{rejected_calls._PREFIX}*")


def test_a_call_that_broke_off_is_no_error_in_the_log(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks_off(_: Any) -> Any:
        raise UnreadablePostError("it broke off")

    monkeypatch.setattr(body_of_call, "read", breaks_off)
    with capture_logs() as lines:
        assert call(install, install.tokens.get().secret) == 503
    assert [line["log_level"] for line in lines] == ["info"]


def test_calls_to_unknown_urls_are_counted_together(viewer: Client, install: Install, broker: Any) -> None:
    for path in ("/webhooks/lytics/a", "/webhooks/lytics/b", "/webhooks/other", "/webhooks/"):
        assert Client().post(path, b"[]", "application/json").status_code == 401
    assert alert(viewer, "4 calls rejected: no install has the URL").tone == "held"
    assert len(broker.keys(f"{rejected_calls._PREFIX}:of:*")) == 1, "strangers choose URLs, so none of them makes a key"


def test_rejected_calls_store_nothing_in_the_database(install: Install) -> None:
    call(install)
    call(None)
    assert not Receipt.objects.exists()
    assert not Parked.objects.exists()


def test_calls_older_than_an_hour_are_not_counted(
    viewer: Client, install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    call(install)
    page(viewer)
    later = time.time() + 3601
    monkeypatch.setattr(time, "time", lambda: later)
    assert number(viewer, "rejected calls").value == "0"


def test_counts_of_rejected_calls_expire(install: Install, broker: Any) -> None:
    call(install)
    rejected_calls._counter.sender.send()
    keys = broker.keys(f"{rejected_calls._PREFIX}*")
    assert len(keys) == 2
    assert all(0 < broker.ttl(key) <= rejected_calls.KEPT_SECONDS for key in keys)


def test_a_spell_of_rejected_calls_may_be_gone_or_from_a_version_that_stored_less(
    install: Install, broker: Any
) -> None:
    call(install)
    rejected_calls._counter.sender.send()
    spell = rejected_calls._spell(install.public_id)
    broker.hdel(spell, "since", "source", "what")
    told = (rejected_calls.last_hour([install.public_id]) or {})[install.public_id]
    assert (told.count, told.since_at, told.source, told.what) == (1, told.last_at, "", "")
    broker.delete(spell)  # evicted
    assert rejected_calls.last_hour([install.public_id]) == {}


def test_the_page_says_that_redis_is_unavailable(
    viewer: Client, install: Install, settings: Settings, nobody_there: str
) -> None:
    settings.REDIS_URL = nobody_there
    redis_client.client.cache_clear()
    assert call(install) == 401
    assert (number(viewer, "rejected calls").value, number(viewer, "rejected calls").well) == ("unknown", False)
    assert "REDIS_URL" in alert(viewer, "Redis does not answer").todo


def test_counts_that_redis_rejected_are_sent_again(install: Install, settings: Settings, nobody_there: str) -> None:
    alive = settings.REDIS_URL
    settings.REDIS_URL = nobody_there
    redis_client.client.cache_clear()
    call(install)
    assert not rejected_calls._counter.sender.send()
    call(install)
    settings.REDIS_URL = alive
    redis_client.client.cache_clear()
    assert rejected_calls._counter.sender.send()
    assert (rejected_calls.last_hour([install.public_id]) or {})[install.public_id].count == 2


def test_a_redis_that_never_answers_holds_no_answer_up(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    """One thread is stuck in it; those who answer aren't, and it stays one thread."""
    stuck, go_on = threading.Event(), threading.Event()

    def write(*_: Any) -> None:
        assert threading.current_thread().name == "rejected-calls"
        stuck.set()
        go_on.wait(PATIENCE)

    counter = rejected_calls._Counter()
    monkeypatch.setattr(rejected_calls, "_counter", counter)
    monkeypatch.setattr(rejected_calls, "_write", write)
    call(install)
    assert stuck.wait(PATIENCE)
    sender = counter.sender.thread
    assert [call(install) for _ in range(20)] == [401] * 20
    assert counter.sender.thread is sender
    go_on.set()


def test_during_an_outage_of_redis_an_hour_of_counts_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    counter = rejected_calls._Counter(is_automatic=False)

    def write(*_: Any) -> None:
        counter.note("shop", "192.0.2.2", "")
        raise redis.RedisError

    monkeypatch.setattr(rejected_calls, "_write", write)
    counter.note("shop", "192.0.2.1", "")
    counter._counts[int(time.time() // 60) - rejected_calls.MINUTES, "shop"] = 7
    first_at = counter._first["shop"]
    with pytest.raises(redis.RedisError):
        counter._attempt()
    assert sum(counter._counts.values()) == 2
    assert (counter._first["shop"], counter._newest["shop"].source) == (first_at, "192.0.2.2")


def test_the_counting_thread_sends_without_a_request(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rejected_calls, "_counter", rejected_calls._Counter())
    call(install)
    assert eventually(lambda: rejected_calls.last_hour([install.public_id]))


def test_what_no_test_customer_has_shown_yet_is_not_green(viewer: Client, install: Install) -> None:
    shown = number(viewer, "ODP shows what is sent")
    assert (shown.value, shown.well) == ("none yet", None)
    assert "ls-number ls-well" in viewer.get("/admin/").content.decode()
    of_install = viewer.get("/admin/", {"install": install.public_id}).content.decode()
    assert re.search(r'class="ls-number"[^>]*>\s*<span>confirmed', of_install)


# --- Calls answered 503 ---------------------------------------------------------------------------------------


def test_a_disabled_install_names_who_disabled_it_and_links_to_the_switch(
    operator: Client, viewer: Client, install: Install
) -> None:
    address = reverse("admin:audiences_install_change", args=[install.pk])
    form = operator.get(address).context["adminform"].form
    told = {name: value for name, value in form.initial.items() if value not in (None, False) and name != "enabled"}
    operator.post(address, {**told, "odp_api_key": ""})
    off = alert(operator, "Shop is switched off")
    assert "503" in off.why
    assert "operator changed that last in the admin" in off.why
    assert off.buttons[0].url == f"{address}#id_enabled"
    assert labels(alert(viewer, "Shop is switched off")) == []


def test_of_a_disabled_install_nothing_is_said_to_be_tried_again(operator: Client, install: Install) -> None:
    ingest.receive(install, body(message(), message(transition(slug="other", segment="s2"))))
    backoff.apply(install, Answer(Outcome.RETRY_LATER, "ODP could not be reached: refused"))
    on_hold()
    Lane.objects.filter(audience__latest_slug="other").update(
        fault_since_at=now(), fault_until_at=now(), fault_reason="ValueError"
    )
    held = ("Shop is on hold", "can't be created in ODP (Shop)", "can't be delivered (Shop)")
    assert all(alert(operator, words) for words in held)
    assert number(operator, "installs on hold").value == "1"
    retry_all = [f"{reverse('admin:audiences_install_changelist')}{install.pk}/retry-alike/"]
    retry_all += [f"{reverse('admin:audiences_audience_changelist')}{Lane.objects.latest('pk').pk}/retry-alike/"]
    assert [operator.get(address).status_code for address in retry_all] == [200, 200]
    Install.objects.update(enabled=False)
    assert [alert(operator, words) for words in held] == [None, None, None]
    assert number(operator, "installs on hold").value == "0"
    assert [operator.get(address).status_code for address in retry_all] == [302, 302]


def test_a_backlog_over_the_mark_says_that_calls_are_answered_503(
    viewer: Client, install: Install, settings: Settings
) -> None:
    ingest.receive(install, body(message(), message(who="lee"), message(who="mo")))
    settings.BACKLOG_HIGH_WATER = 3
    assert alert(viewer, "answered 503") is None
    settings.BACKLOG_HIGH_WATER = 2
    told = alert(viewer, "Calls to Shop are answered 503: 3 events wait")
    assert "Events of paused and blocked audiences aren't counted" in told.todo
    holds.pause(Lane.objects.get(), by="kim", reason="on purpose")
    assert alert(viewer, "answered 503") is None, "calls are let in, so nothing says otherwise"


def test_a_database_over_its_mark_says_that_all_calls_are_answered_503(
    viewer: Client, install: Install, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk_usage, "_read", None)
    assert alert(viewer, "All calls are answered 503") is None
    settings.DATABASE_HIGH_WATER_BYTES = 1024
    told = alert(viewer, "All calls are answered 503: the database has")
    assert "DATABASE_HIGH_WATER_BYTES, 1.0\xa0KB" in told.why
    assert "larger disk" in told.todo
    Install.objects.update(enabled=False)  # then none is answered 503 for this
    assert alert(viewer, "All calls are answered 503") is None


# --- What troubles lead to ------------------------------------------------------------------------------------


def test_a_rejected_key_links_to_the_field_of_the_key(operator: Client, viewer: Client, install: Install) -> None:
    backoff.apply(install, Answer(Outcome.UNAUTHORISED, "403: Forbidden", 403, fixed_backoff=True))
    told = alert(operator, "Shop is on hold: ODP rejects its API key")
    assert labels(told) == ["Enter a key", "Retry now", "Check the key"]
    opened = operator.get(told.buttons[0].url).content.decode()
    assert f'id="{told.buttons[0].url.partition("#")[2]}"' in opened
    assert labels(alert(viewer, "Shop is on hold")) == []


def test_a_server_that_is_down_asks_for_no_key(operator: Client, install: Install) -> None:
    ingest.receive(install, body(message()))
    backoff.apply(install, Answer(Outcome.RETRY_LATER, "ODP could not be reached: refused"))
    told = alert(operator, "Shop is on hold")
    assert "Enter a key" not in labels(told)
    assert "1 event waiting; nothing is lost" in told.why


def test_missing_identifiers_list_the_received_fields_and_release_all_returns_here(
    operator: Client, install: Install
) -> None:
    ingest.receive(install, body(message(who="kim@example.com", field="email")))
    told = alert(operator, "1 parked: no identifier")
    assert "expected in '_id'; fields seen: email, segment_events" in told.why
    assert labels(told) == ["Identifier field", "Release all"]
    Install.objects.update(identifier_field="email")
    asked = operator.get(told.buttons[1].url).content.decode()
    pairs = dict(re.findall(r'type="hidden" name="([^"]+)" value="([^"]*)"', asked))
    answered = operator.post(told.buttons[1].url, pairs)
    assert answered["Location"] == reverse("admin:index")
    assert "Being released now" in alert(operator, "parked").todo
    assert labels(alert(operator, "parked")) == ["Identifier field"]
    resends.advance_all(install.pk, seconds=PATIENCE)
    assert alert(operator, "parked") is None
    assert Event.objects.get().identifier == "kim@example.com"


def test_a_blocked_audience_shows_the_reason_of_odp_and_its_backlog(operator: Client, install: Install) -> None:
    ingest.receive(install, body(message()))
    Lane.objects.update(blocked_at=now(), block_reason="field lytics_gold_club is of type string")
    told = alert(operator, "lytics_gold_club is blocked (Shop)")
    assert "field lytics_gold_club is of type string. 1 event waiting" in told.why
    assert labels(told) == ["Unblock", "Use another ODP id", "Set aside"]


def on_hold(reason: str = "503: down", **values: Any) -> None:
    held = {"hold_failures": 2, "hold_reason": reason, "hold_since_at": now(), "hold_until_at": now()}
    Audience.objects.update(**{**held, **values})


def test_an_audience_that_can_not_be_made_says_why_and_when_and_has_a_button(
    operator: Client, viewer: Client, install: Install
) -> None:
    ingest.receive(install, body(message()))
    on_hold()
    told = alert(operator, "lytics_gold_club can't be created in ODP (Shop)")
    assert "503: down — 2 in a row" in told.why
    assert "1 event waiting; nothing is lost" in told.why
    assert labels(told) == ["Retry now"]
    assert labels(alert(viewer, "can't be created in ODP")) == []
    assert alert(operator, "are not sent") is None


def test_many_that_can_not_be_made_for_one_reason_are_one_line(operator: Client, install: Install) -> None:
    items = [message(transition(slug=f"club_{number}", segment=f"s{number}")) for number in range(12)]
    ingest.receive(install, body(*items))
    on_hold("403: Forbidden")
    told = alert(operator, "12 audiences can't be created in ODP (Shop)")
    assert "the account's private key" in told.todo
    assert labels(told) == ["Enter a key"]
    assert len([one for one in page(operator).context["alerts"] if "created in ODP" in one.what]) == 1


def test_an_audience_that_can_not_be_checked_is_reported_and_delivers(operator: Client, install: Install) -> None:
    ingest.receive(install, body(message()))
    on_hold(provisioned_at=now())
    told = alert(operator, "lytics_gold_club can't be checked in ODP")
    assert (told.tone, "Deliveries continue" in told.why) == ("held", True)


def test_errors_are_listed_before_warnings(viewer: Client, install: Install) -> None:
    ingest.receive(install, body(message()))
    Lane.objects.update(blocked_at=now(), block_reason="no")
    Install.objects.update(key_accepted_at=now())  # a draft would be an item too
    call(None)
    assert [one.tone for one in page(viewer).context["alerts"]] == ["bad", "held"]


# --- Adding up the minutes ------------------------------------------------------------------------------------


def received(install: Install, at: datetime, *, queued: int = 0, parked: int = 0) -> Receipt:
    return Receipt.objects.create(
        install=install, received_at=at, bytes=1, messages=1, queued=queued, parked=parked, skipped=0
    )


def delivered(
    audience: Audience,
    first: int,
    last: int,
    *,
    at: datetime,
    took: timedelta = timedelta(),
    outcome: Outcome = Outcome.DELIVERED,
    sent: int = 1,
) -> None:
    """A run that was closed at ``at``, of events which had come ``took`` before."""
    for sequence in {first, last}:
        Event.objects.get_or_create(
            audience=audience,
            sequence=sequence,
            defaults={"identifier": "x", "kind": 1, "occurred_ns": 1, "received_at": at - took},
        )
    Run.objects.create(
        audience=audience,
        first_sequence=first,
        last_sequence=last,
        sent=sent,
        folded=0,
        opened_at=at,
        closed_at=at,
        outcome=outcome,
    )


def minutes() -> list[tuple[int, int, int, int, int | None, int | None]]:
    """How long before noon each minute is, and what it holds."""
    rows = Minute.objects.order_by("minute").values_list(
        "minute", "received", "parked", "delivered", "delay_p50_ms", "delay_p99_ms"
    )
    return [((NOON - row[0]) // MINUTE, *row[1:]) for row in rows]


def test_a_minute_has_its_received_and_delivered_events(install: Install) -> None:
    audience = make_audience(install)
    received(install, NOON - MINUTE, queued=5, parked=1)
    received(install, NOON - timedelta(seconds=1), queued=2)
    received(install, NOON, queued=100)
    delivered(audience, 1, 3, at=NOON - timedelta(seconds=2), took=timedelta(seconds=1))
    delivered(audience, 4, 4, at=NOON, took=timedelta(seconds=1))
    rollup.roll_up(at=NOON + timedelta(seconds=59))
    assert minutes() == [(1, 7, 1, 3, 1000, 1000)]
    rollup.roll_up(at=NOON + MINUTE)
    assert minutes() == [(1, 7, 1, 3, 1000, 1000), (0, 100, 0, 1, 1000, 1000)]


def test_a_minute_has_the_changes_that_odp_accepted_of_all_attempts(install: Install) -> None:
    audience = make_audience(install)
    delivered(audience, 1, 500, at=NOON - timedelta(seconds=30), sent=120)
    delivered(audience, 1, 500, at=NOON - timedelta(seconds=20), sent=80)
    delivered(audience, 501, 600, at=NOON - timedelta(seconds=10), sent=100, outcome=Outcome.RETRY_LATER)
    rollup.roll_up(at=NOON)
    assert Minute.objects.values_list("delivered", "sent").get() == (500, 200)


def test_rolling_up_again_is_idempotent_and_includes_late_commits(install: Install) -> None:
    received(install, NOON - MINUTE, queued=5)
    for _ in range(2):
        rollup.roll_up(at=NOON)
    received(install, NOON - MINUTE, queued=3)
    rollup.roll_up(at=NOON + MINUTE)
    assert minutes() == [(1, 8, 0, 0, None, None)]


def test_after_beat_was_away_a_day_is_made_up_for_and_no_more(install: Install) -> None:
    for hours in (1, 23, 25):
        received(install, NOON - timedelta(hours=hours), queued=hours)
    rollup.roll_up(at=NOON)
    assert [row[:2] for row in minutes()] == [(23 * 60, 23), (60, 1)]


def test_a_run_that_went_out_in_halves_counts_once(install: Install) -> None:
    audience = make_audience(install)
    for second in (10, 20, 30):
        delivered(audience, 1, 500, at=NOON - timedelta(seconds=second))
    delivered(audience, 501, 600, at=NOON - timedelta(seconds=5))
    rollup.roll_up(at=NOON)
    assert minutes()[0][3] == 600


def test_undelivered_events_are_not_counted_as_delivered(install: Install) -> None:
    audience = make_audience(install)
    delivered(audience, 1, 9, at=NOON - timedelta(seconds=9), outcome=Outcome.RETRY_LATER)
    rollup.roll_up(at=NOON)
    assert minutes() == []


def test_the_delay_is_weighted_by_events_and_not_by_requests(install: Install) -> None:
    audience = make_audience(install)
    at = NOON - timedelta(seconds=30)
    delivered(audience, 1, 1000, at=at, took=timedelta(milliseconds=200))
    for sequence in range(1001, 1006):
        delivered(audience, sequence, sequence, at=at, took=timedelta(seconds=60))
    rollup.roll_up(at=NOON)
    assert minutes()[0][4:] == (200, 200)
    delivered(audience, 1006, 1025, at=at, took=timedelta(seconds=60))
    rollup.roll_up(at=NOON)
    assert minutes()[0][4:] == (200, 60_000)


def test_installs_are_added_up_apart(install: Install) -> None:
    other = Install.objects.create(name="Other", odp_api_key="k")
    received(install, NOON - MINUTE, queued=5)
    received(other, NOON - MINUTE, queued=7)
    rollup.roll_up(at=NOON)
    assert sorted(Minute.objects.values_list("install__name", "received")) == [("Other", 7), ("Shop", 5)]


def test_old_minutes_go(install: Install) -> None:
    for days in (6, 8):
        Minute.objects.create(install=install, minute=NOON - timedelta(days=days), received=1, parked=0, delivered=0)
    rollup.roll_up(at=NOON)
    assert [(NOON - minute).days for minute in Minute.objects.values_list("minute", flat=True)] == [6]


def test_a_pass_reads_a_part_of_big_tables_and_never_all_events(install: Install) -> None:
    """By what PostgreSQL really reads. The tables are large enough that reading all of one would be seen at once."""
    first = NOON - timedelta(days=10)
    with connection.cursor() as cursor:
        # In the free space of other tests' pages, rows would have no order in time, and a BRIN index would find all.
        cursor.execute("TRUNCATE audiences_receipt, audiences_run CASCADE")
        audience = make_audience(install)
        cursor.execute(
            "INSERT INTO audiences_receipt (install_id, received_at, job, bytes, messages, queued, parked, skipped,"
            " parked_reasons) SELECT %s, %s + n * interval '17280 ms', '', 1, 1, 1, 0, 0, '{}'"
            " FROM generate_series(1, 50000) AS n",
            [install.pk, first],
        )
        cursor.execute(
            "INSERT INTO audiences_run (audience_id, first_sequence, last_sequence, sent, folded, opened_at, closed_at,"
            " outcome) SELECT %s, n, n, 1, 0, at, at, 'delivered'"
            " FROM generate_series(1, 50000) AS n, LATERAL (SELECT %s + n * interval '17280 ms' AS at) AS x",
            [audience.pk, first],
        )
        cursor.execute(
            "INSERT INTO audiences_event (audience_id, sequence, identifier, kind, occurred_ns, received_at, forced)"
            " SELECT %s, n, 'x', 1, 1, %s + n * interval '17280 ms' - interval '1 s', false"
            " FROM generate_series(1, 50000) AS n",
            [audience.pk, first],
        )
        for table in ("receipt", "run", "event"):
            cursor.execute(f"ANALYZE audiences_{table}")
        for index in ("receipts_by_time", "runs_by_time"):
            cursor.execute("SELECT brin_summarize_new_values(%s)", [index])
        start = NOON - timedelta(days=5)
        cursor.execute(
            "EXPLAIN (ANALYZE, FORMAT JSON) " + rollup._STORE.text,
            {"start": start, "end": start + 5 * MINUTE, "sampled": rollup.SAMPLED_RUNS},
        )
        (plan,) = cursor.fetchone() or ("[]",)
    read = list(scans(json.loads(plan)[0]["Plan"] if isinstance(plan, str) else plan[0]["Plan"]))
    assert {table for table, _ in read} >= {"audiences_receipt", "audiences_run", "audiences_event_1"}
    big = [
        (table, rows) for table, rows in read if table in ("audiences_receipt", "audiences_run", "audiences_event_1")
    ]
    assert max(rows for _, rows in big) < 10_000, big
    assert Minute.objects.count() == 5


def scans(node: dict[str, Any]) -> Iterator[tuple[str, float]]:
    """The rows read of each table."""
    if "Relation Name" in node:
        counts = ("Actual Rows", "Rows Removed by Filter", "Rows Removed by Index Recheck")
        yield node["Relation Name"], sum(node.get(name, 0) for name in counts) * node["Actual Loops"]
    for child in node.get("Plans", ()):
        yield from scans(child)


# --- The charts -----------------------------------------------------------------------------------------------


def happened(install: Install, ago: int, **values: Any) -> None:
    """A minute that began ``minutes`` ago."""
    usual = {"received": 0, "parked": 0, "delivered": 0}
    minute = now().replace(second=0, microsecond=0) - timedelta(minutes=ago)
    Minute.objects.create(install=install, minute=minute, **{**usual, **values})


def charts_of(viewer: Client) -> Any:
    return viewer.get(reverse("admin:index"), headers={"HX-Target": "front-charts"})


def test_before_the_first_call_a_text_replaces_the_charts(viewer: Client, install: Install) -> None:
    shown = charts_of(viewer)
    assert shown.context["charts"] == []
    assert "The charts begin with the first call" in shown.content.decode()
    ingest.receive(install, body(message()))
    assert "The charts appear in two minutes" in charts_of(viewer).content.decode()
    happened(install, 600, received=1)
    # A minute after the first calls of a demo it said that there was nothing in the last 6 hours.
    shown = charts_of(viewer).content.decode()
    until = r"in the 6 hours until \d\d:\d\d UTC\. Newer events appear in two minutes"
    assert re.search(f"Nothing was received or delivered {until}", shown)


def test_the_charts_have_a_text_and_a_table_alternative(viewer: Client, install: Install) -> None:
    happened(install, 30, received=1200, parked=3, delivered=900, delay_p50_ms=400, delay_p99_ms=2_500)
    throughput, delay = charts_of(viewer).context["charts"]
    assert throughput.summary == "In the last 6 hours: 1,200 events received, 900 of them delivered, 3 items parked."
    assert [row[1:] for row in throughput.rows] == [("1,200", "900", "0", "0", "3")]
    assert "half of the events were delivered within 400 ms and 99 of 100 within 2.5 s" in delay.summary
    shown = charts_of(viewer).content.decode()
    assert throughput.summary in shown
    assert shown.count('role="img"') == 2


def test_how_much_is_shown_can_be_chosen(viewer: Client, install: Install) -> None:
    happened(install, 300, received=10)
    for hours, some in (("1", False), ("6", True), ("24", True), ("7", True), ("x", True)):
        shown = viewer.get(reverse("admin:index"), {"hours": hours})
        assert bool(shown.context["charts"]) == some
        assert shown.context["hours"] == (int(hours) if hours in ("1", "24") else 6)


def test_the_charts_of_one_install_are_on_its_page(viewer: Client, install: Install) -> None:
    other = Install.objects.create(name="Other", odp_api_key="k")
    happened(install, 10, received=305, delivered=300, delay_p50_ms=100, delay_p99_ms=200)
    happened(other, 10, received=107, delivered=100, delay_p50_ms=500, delay_p99_ms=9_000)
    address = f"{reverse('admin:index')}?install={other.public_id}"
    assert address in viewer.get(url("change", other)).content.decode()
    part = viewer.get(address, headers={"HX-Target": "front-charts"})
    assert "107 events received, 100 of them delivered" in part.content.decode()
    assert "of Other" in part.content.decode()
    assert f"?hours=24&amp;install={other.public_id}" in part.content.decode()
    assert "alerts" not in part.context  # Now isn't read for a part of another page
    assert "412 events received" in viewer.get(f"{reverse('admin:index')}?install=none&hours=6").content.decode()


def test_installs_are_shown_together(install: Install) -> None:
    other = Install.objects.create(name="Other", odp_api_key="k")
    happened(install, 10, received=305, delivered=300, delay_p50_ms=100, delay_p99_ms=200)
    happened(other, 10, received=107, delivered=100, delay_p50_ms=500, delay_p99_ms=9_000)
    third = Install.objects.create(name="Third", odp_api_key="k")
    happened(third, 10, received=50, delivered=50)  # without a delay, it doesn't count in the median
    point = next(point for point in charts.read(hours=1) if point.received)
    assert (point.received, point.delivered, point.p50, point.p99) == (462, 450, 200, 9_000)


def test_a_line_is_broken_where_nothing_was_sent(install: Install) -> None:
    for ago in (10, 11, 20):
        happened(install, ago, delivered=1, delay_p50_ms=100, delay_p99_ms=100)
    delay = charts._delay(charts.read(hours=1), 1)
    assert delay.lines[0].path.count("M") == 2


def test_the_end_is_not_drawn_before_it_is_added_up(install: Install) -> None:
    points = charts.read(hours=1, at=NOON + timedelta(seconds=30))
    assert (points[-1].at, len(points)) == (NOON - 2 * MINUTE, 60)


def test_the_troubles_do_not_wait_for_the_charts(viewer: Client, install: Install) -> None:
    happened(install, 30, received=1200)
    assert "charts" not in viewer.get(reverse("admin:index"), headers={"HX-Target": "front-now"}).context
    with CaptureQueriesContext(connection) as captured:
        shown = page(viewer).content.decode()
    assert not any(Minute._meta.db_table in query["sql"] for query in captured)
    charts = shown.partition('id="front-history"')[2]
    assert 'hx-get="/admin/?hours=6" hx-trigger="load"' in charts
    assert 'href="/admin/?hours=6#front-history"' in charts  # without scripts
    assert 'role="img"' in viewer.get("/admin/?hours=6").content.decode()


@pytest.mark.parametrize(
    ("largest", "top"), [(0, 1), (0.2, 1), (1, 1), (1.1, 2), (3, 5), (7, 10), (1001, 2000), (16_000, 20_000)]
)
def test_the_top_of_a_scale_is_a_round_number(largest: float, top: float) -> None:
    assert charts._nice(largest) == top


@pytest.mark.parametrize(
    ("ms", "words"), [(None, "—"), (7, "7 ms"), (999, "999 ms"), (1500, "1.5 s"), (90_000, "1.5 min"), (4e7, "11 h")]
)
def test_a_delay_is_shown_in_one_unit(ms: float | None, words: str) -> None:
    assert charts.delay(ms) == words


def test_the_page_fetches_nothing_from_elsewhere(viewer: Client, install: Install) -> None:
    happened(install, 30, received=1, delivered=1, delay_p50_ms=1, delay_p99_ms=400_000)
    shown = page(viewer).content.decode()
    assert not re.findall(r'(?:src|href)="(?:https?:)?//', shown)


def test_the_front_page_asks_a_bounded_number_of_times(
    viewer: Client, install: Install, django_assert_max_num_queries: Any
) -> None:
    call(install)
    ingest.receive(install, body(message(), message(who="x", field="email")))
    page(viewer)
    with django_assert_max_num_queries(47):
        page(viewer)


def test_the_oldest_event_of_all_installs_is_shown(viewer: Client, install: Install) -> None:
    assert (number(viewer, "oldest undelivered").value, number(viewer, "oldest undelivered").well) == ("none", True)
    for shop, minutes in ((install, 15), (make_install(name="Other"), 2)):
        audience = make_audience(shop)
        enter(audience, "kim")
        Event.objects.filter(audience=audience).update(received_at=now() - timedelta(minutes=minutes))
    oldest = number(viewer, "oldest undelivered")
    assert (oldest.value, oldest.well, oldest.note) == ("15 min", False, "2 events waiting")
    Event.objects.all().delete()
    oldest = number(viewer, "oldest undelivered")
    assert (oldest.value, oldest.well) == ("unknown", False)  # the log lacks what waits


# --- Workers --------------------------------------------------------------------------------------------------


def beat(name: str, *, seconds_ago: float = 0) -> None:
    heartbeats.note(name, worked_seconds_ago=5)
    Worker.objects.filter(name=name).update(beat_at=now() - timedelta(seconds=seconds_ago))


def test_the_workers_that_answer_are_counted(viewer: Client) -> None:
    assert (number(viewer, "workers answering").value, number(viewer, "workers answering").well) == ("none yet", True)
    beat("worker-1@here")
    beat("worker-2@here")
    page = viewer.get(reverse("admin:index"))
    assert [one.value for one in page.context["numbers"] if one.label == "workers answering"] == ["2"]
    assert "is silent" not in page.content.decode()


def test_a_worker_that_was_killed_is_named_until_it_is_back(viewer: Client) -> None:
    beat("worker-1@here")
    beat("worker-2@here", seconds_ago=120)
    page = viewer.get(reverse("admin:index")).content.decode()
    assert "The worker worker-2@here is silent" in page
    assert "Still answering: 1." in page
    assert alert(viewer, "worker-2@here is silent").tone == "held"
    beat("worker-2@here")
    assert "is silent" not in viewer.get(reverse("admin:index")).content.decode()


def test_a_stopped_beat_is_named_while_workers_answer(viewer: Client, broker: redis.Redis) -> None:
    schedule.note()
    broker.expire(schedule.KEY, schedule.KEPT_SECONDS - 200)
    assert "all workers were stopped" in alert(viewer, "No worker runs").why, "until now all was well"
    assert (number(viewer, "workers answering").value, number(viewer, "workers answering").well) == ("none", False)
    beat("worker-1@here", seconds_ago=120)
    assert (alert(viewer, "beat"), alert(viewer, "No worker runs")) == (None, None), "their own line says so"
    beat("worker-1@here")
    assert "ran 3 min ago" in alert(viewer, "The beat process is silent").why
    broker.expire(schedule.KEY, schedule.KEPT_SECONDS - 30)
    assert alert(viewer, "beat") is None


def test_a_fleet_that_is_gone_is_bad_though_nothing_waits(viewer: Client) -> None:
    beat("worker-1@here", seconds_ago=120)
    page = viewer.get(reverse("admin:index")).content.decode()
    assert "No other worker answers" in page
    assert "Other workers take over" not in page, "there is none"
    assert "<strong>silent</strong>" in page
    assert alert(viewer, "worker-1@here is silent").tone == "bad"
