"""Messages about troubles: which are sent, when, how often, to which channel, and without personal data."""

import base64
import hashlib
import hmac
import json
import smtplib
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import StreamRequestHandler, ThreadingTCPServer
from threading import Event, Thread
from typing import Any
from unittest.mock import Mock

import pytest
from django.contrib.admin.models import LogEntry
from django.core import mail
from django.core.management import call_command
from django.core.management.base import CommandError
from django.db import connection, transaction
from django.test import Client
from django.urls import reverse
from django.utils.timezone import now
from pytest_django.fixtures import Settings

from audiences import checks, quiet_hours, redis_client
from audiences.delivery import drafts, holds
from audiences.front import retention
from audiences.front import troubles as front
from audiences.models import Audience, Install, Lane, Parked, Trouble, TroubleMessage, Twin
from audiences.operations import alert_messages, installs, mail_backend, troubles
from audiences.operations.troubles import Seen
from outgoing import webhooks
from tests.delivering import NOWHERE, make_audience
from tests.test_admin import hidden
from tests.threads import PATIENCE, eventually, together
from workers import tasks

pytestmark = pytest.mark.django_db

SECRET = "whsec_" + base64.b64encode(bytes(range(32))).decode()
PERSON = "anna.maria@example.com"
BLOCKED = Seen(kind="blocked", what="lytics_gold is blocked (Shop)", path="/admin/", cause="no such field")
START = datetime(2026, 11, 28, 12, 0, tzinfo=UTC)
SMTP = "audiences.operations.mail_backend.EmailBackend"


class Receiver(ThreadingHTTPServer):
    """A server that keeps what it gets, and answers ``status``."""

    status = 204
    block_on_close = False

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.got: list[tuple[str, dict[str, str], bytes]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def texts(self, path: str = "/slack") -> list[str]:
        return [json.loads(body)["text"] for where, _, body in self.got if where == path]

    def events(self) -> list[Any]:
        return [json.loads(body) for where, _, body in self.got if where == "/hook"]


class _Handler(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.got.append((self.path, {name.lower(): value for name, value in self.headers.items()}, body))
        self.send_response(self.server.status)
        self.send_header("Location", "/elsewhere")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *args: Any) -> None:
        """Not to the output of the tests."""


@pytest.fixture
def receiver(settings: Settings) -> Iterator[Receiver]:
    """All three channels are set."""
    with Receiver() as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        settings.ALERT_EMAILS = ["oncall@example.org"]
        settings.ALERT_SLACK_URL = f"{server.url}/slack"
        settings.ALERT_WEBHOOK_URL = f"{server.url}/hook"
        settings.ALERT_WEBHOOK_SECRET = SECRET
        settings.ALLOWED_ODP_HOSTS = ["127.0.0.1"]
        settings.PUBLIC_URL = "https://sync.example.org"
        yield server
        server.shutdown()
        thread.join()


def check(*seen: Seen, minute: float, unknown: tuple[str, ...] = ()) -> None:
    """One check, and what it has to send."""
    at = START + timedelta(minutes=minute)
    troubles.check(seen, unknown=unknown, at=at)
    alert_messages.send_due(seconds=PATIENCE, at=at)


# --- Which messages are sent ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("end", "status"), [("sent_at", 500), ("given_up_at", 204)])
def test_the_result_of_another_worker_is_kept(receiver: Receiver, end: str, status: int) -> None:
    """This worker was slower than its claim, and another one has sent the message, or replaced it by a newer one."""
    [message] = alert_messages.queue_test([TroubleMessage.Channel.SLACK])
    TroubleMessage.objects.update(**{end: START})
    receiver.status = status
    assert alert_messages.send(message) == (status == 204)
    kept = TroubleMessage.objects.get()
    assert {"sent_at": kept.sent_at, "given_up_at": kept.given_up_at, "problem": kept.problem} == {
        "sent_at": None,
        "given_up_at": None,
        "problem": "",
        end: START,
    }


def test_a_message_that_failed_lets_others_of_its_channel_go_first(receiver: Receiver) -> None:
    failed, new = (alert_messages.queue_test([TroubleMessage.Channel.SLACK])[0] for _ in range(2))
    TroubleMessage.objects.filter(pk=failed.pk).update(tries=3, next_try_at=START)
    assert alert_messages._claim(now(), without=set()) == new


def test_each_channel_gets_one_message_with_a_link_about_a_new_trouble(receiver: Receiver) -> None:
    check(BLOCKED, minute=0)
    (text,), (event,), (letter,) = receiver.texts(), receiver.events(), mail.outbox
    assert text.startswith("*Trouble:* lytics_gold is blocked (Shop)")
    assert "<https://sync.example.org/admin/|Open>" in text
    assert event["type"] == "trouble.opened"
    assert event["data"]["url"] == "https://sync.example.org/admin/"
    assert letter.subject == "[Lytics Sync] Trouble: lytics_gold is blocked (Shop)"
    assert letter.to == ["oncall@example.org"]
    assert "https://sync.example.org/admin/" in str(letter.body)


def test_a_message_says_where_since_when_why_and_what_to_do(receiver: Receiver, install: Install) -> None:
    words = {"what": "R&D <gold>\nis blocked", "why": "No such field.", "todo": "Press Unblock."}
    hour_ago = START - timedelta(hours=1)
    check(replace(BLOCKED, install=install.pk, since_at=hour_ago, **words), minute=0)
    (text,), (event,), (letter,) = receiver.texts(), receiver.events(), mail.outbox
    assert text.startswith("*Trouble:* R&amp;D &lt;gold&gt;\nis blocked\nNo such field.\nPress Unblock.\n")
    assert {name: event["data"][name] for name in words} == words
    assert (event["data"]["install"], event["data"]["since"]) == (str(install), hour_ago.isoformat())
    assert letter.subject == "[Lytics Sync] Trouble: R&D <gold> is blocked"
    assert str(letter.body).split("\n\n")[1:3] == ["No such field.", "Press Unblock."]


@pytest.mark.parametrize("tone", ["bad", "held"])
def test_an_unchanged_trouble_causes_no_second_message(receiver: Receiver, tone: str) -> None:
    for minute in range(5):
        check(replace(BLOCKED, what=f"{minute} audiences are blocked", tone=tone), minute=minute)
    assert len(receiver.events()) == len(receiver.texts()) == len(mail.outbox) == 1
    assert Trouble.objects.get().what == "4 audiences are blocked"


def test_a_trouble_that_two_checks_do_not_find_is_resolved(receiver: Receiver) -> None:
    check(BLOCKED, minute=0)
    check(minute=1)
    assert [event["type"] for event in receiver.events()] == ["trouble.opened"]
    check(minute=2)
    check(minute=3)
    assert [event["type"] for event in receiver.events()] == ["trouble.opened", "trouble.resolved"]
    assert [letter.subject.split(":")[0] for letter in mail.outbox] == [
        "[Lytics Sync] Trouble",
        "[Lytics Sync] Resolved",
    ]
    assert Trouble.objects.get().resolved_at == START + timedelta(minutes=2)


def test_a_flapping_trouble_causes_one_message(receiver: Receiver) -> None:
    for minute in range(0, 10, 2):
        check(BLOCKED, minute=minute)
        check(minute=minute + 1)
    assert [event["type"] for event in receiver.events()] == ["trouble.opened"]


def test_a_trouble_that_flaps_slowly_causes_few_messages(receiver: Receiver) -> None:
    """It is there for three minutes, and gone for three minutes, for an hour."""
    for minute in range(60):
        check(*([BLOCKED] if minute % 6 < 3 else []), minute=minute)
    assert [event["type"].partition(".")[2] for event in receiver.events()] == ["opened", "resolved", "opened"]
    for minute in range(60, 76):
        check(minute=minute)
    assert receiver.events()[-1]["type"] == "trouble.resolved"
    assert len(receiver.events()) == 4


def test_a_trouble_flaps_only_by_its_own_resolutions_within_an_hour(receiver: Receiver) -> None:
    for start, trouble in ((0, BLOCKED), (60, replace(BLOCKED, cause="another")), (70, BLOCKED)):
        check(trouble, minute=start)
        check(minute=start + 1)
        check(minute=start + 2)
        assert not Trouble.objects.filter(resolved_at=None).exists()
    assert not troubles.mute(Trouble.objects.latest("pk"), hours=1, by="kim")


def test_a_trouble_that_returned_soon_stays_a_flapping_one_however_long_it_lasts(receiver: Receiver) -> None:
    for minute, seen in ((0, [BLOCKED]), (1, []), (2, []), (10, [BLOCKED]), (130, [BLOCKED]), (131, []), (133, [])):
        check(*seen, minute=minute)
    assert Trouble.objects.filter(resolved_at=None).exists()
    check(minute=146)
    assert not Trouble.objects.filter(resolved_at=None).exists()


def test_checks_that_queued_up_do_not_resolve_a_trouble_at_once(receiver: Receiver) -> None:
    check(BLOCKED, minute=0)
    for second in range(5):
        check(minute=10 + second / 60)
    assert Trouble.objects.get().resolved_at is None


def test_a_resolved_trouble_that_returns_causes_a_new_message(receiver: Receiver) -> None:
    for minute, seen in enumerate(([BLOCKED], [], [], [BLOCKED])):
        check(*seen, minute=minute)
    assert [event["type"] for event in receiver.events()] == ["trouble.opened", "trouble.resolved", "trouble.opened"]
    assert Trouble.objects.count() == 2


def test_troubles_of_one_cause_are_one_message(receiver: Receiver) -> None:
    others = [replace(BLOCKED, what=f"lytics_{name} is blocked") for name in ("silver", "bronze")]
    check(BLOCKED, *others, minute=0)
    (event,) = receiver.events()
    assert event["data"]["what"] == "lytics_gold is blocked (Shop), and 2 more like it"
    check(*(replace(BLOCKED, kind="twin", tone=tone) for tone in ("held", "bad")), minute=1)
    assert receiver.events()[-1]["data"]["tone"] == "bad"


def test_another_cause_kind_or_install_is_another_message(receiver: Receiver, install: Install) -> None:
    others = [
        replace(BLOCKED, cause="no such list"),
        replace(BLOCKED, kind="paused"),
        replace(BLOCKED, install=install.pk),
    ]
    check(BLOCKED, *others, minute=0)
    assert len(receiver.events()) == len({event["data"]["key"] for event in receiver.events()}) == 4


def test_a_held_trouble_that_becomes_bad_causes_a_second_message(receiver: Receiver) -> None:
    for minute, tone in enumerate(("held", "bad", "held", "bad")):
        check(replace(BLOCKED, tone=tone), minute=minute)
    assert [event["data"]["tone"] for event in receiver.events()] == ["held", "bad"]


def test_one_of_ten_named_troubles_that_becomes_bad_causes_a_second_message(receiver: Receiver) -> None:
    held = [replace(BLOCKED, tone="held", cause=str(number)) for number in range(troubles.NAMED)]
    check(*held, minute=0)
    check(replace(held[0], tone="bad"), *held[1:], minute=1)
    assert [event["data"]["tone"] for event in receiver.events()] == [*(["held"] * troubles.NAMED), "bad"]


def test_of_many_troubles_those_found_first_are_named(receiver: Receiver) -> None:
    many = [replace(BLOCKED, what=f"audience {number}", cause=str(number)) for number in range(troubles.NAMED + 2)]
    check(*many, minute=0)
    assert [event["data"]["what"] for event in receiver.events()] == [one.what for one in many[: troubles.NAMED]]


def test_a_trouble_of_an_install_that_was_deleted_meanwhile_is_left_out(receiver: Receiver, install: Install) -> None:
    check(replace(BLOCKED, install=install.pk + 1), replace(BLOCKED, install=install.pk), BLOCKED, minute=0)
    assert {trouble.install_id for trouble in Trouble.objects.all()} == {install.pk, None}


def test_a_trouble_of_an_unknown_kind_is_not_resolved(receiver: Receiver) -> None:
    check(BLOCKED, minute=0)
    for minute in (1, 2, 3):
        check(minute=minute, unknown=("blocked",))
    assert Trouble.objects.get().resolved_at is None


def test_a_check_that_runs_twice_causes_one_message(receiver: Receiver) -> None:
    troubles.check([BLOCKED], at=START)
    troubles.check([BLOCKED], at=START)
    assert TroubleMessage.objects.filter(channel="webhook").count() == 1


def test_a_channel_that_is_set_later_gets_messages_about_open_troubles(settings: Settings) -> None:
    troubles.check([BLOCKED], at=START)
    assert Trouble.objects.get().notified_at is None
    settings.ALERT_EMAILS = ["oncall@example.org"]
    check(BLOCKED, minute=1)
    assert len(mail.outbox) == 1


def is_somebody_waiting() -> bool:
    with connection.cursor() as cursor:
        cursor.execute("SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted)")
        (found,) = cursor.fetchone()
    return bool(found)


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("is_known", [False, True])
def test_two_concurrent_checks_cause_one_message(receiver: Receiver, settings: Settings, is_known: bool) -> None:
    """Also about a trouble that is stored and has no message yet."""
    begun = Event()
    if is_known:
        settings.ALERT_QUIET_HOURS = "11:30-12:30"
        troubles.check([replace(BLOCKED, tone="held")], at=START)
        assert not TroubleMessage.objects.exists()

    def first() -> None:
        with transaction.atomic():
            troubles.check([BLOCKED], at=START)
            begun.set()
            eventually(is_somebody_waiting)

    def second() -> None:
        assert begun.wait(PATIENCE)
        troubles.check([BLOCKED], at=START)

    together(first, second)
    assert Trouble.objects.count() == TroubleMessage.objects.filter(channel="webhook").count() == 1


# --- Quiet hours and mute -------------------------------------------------------------------------------------


def test_in_quiet_hours_only_bad_troubles_cause_messages_and_the_others_afterwards(
    receiver: Receiver, settings: Settings
) -> None:
    settings.ALERT_QUIET_HOURS = "11:30-12:30"
    held = replace(BLOCKED, kind="paused", tone="held")
    check(BLOCKED, held, minute=0)
    assert [event["data"]["kind"] for event in receiver.events()] == ["blocked"]
    check(BLOCKED, held, minute=30)
    assert [event["data"]["kind"] for event in receiver.events()] == ["blocked", "paused"]


def test_a_trouble_without_a_message_causes_none_when_it_is_resolved(receiver: Receiver, settings: Settings) -> None:
    settings.ALERT_QUIET_HOURS = "11:30-12:30"
    for minute, seen in enumerate(([replace(BLOCKED, tone="held")], [], [])):
        check(*seen, minute=minute)
    check(minute=60)
    assert Trouble.objects.get().resolved_at is not None
    assert receiver.got == []


def test_the_resolution_of_a_held_trouble_is_sent_after_quiet_hours(receiver: Receiver, settings: Settings) -> None:
    check(replace(BLOCKED, tone="held"), minute=0)
    settings.ALERT_QUIET_HOURS = "11:30-12:30"
    check(minute=1)
    check(minute=2)
    bad = replace(BLOCKED, cause="another")
    for minute, seen in enumerate(([bad], [replace(bad, tone="held")], [], []), start=3):
        check(*seen, minute=minute)
    of_both = ["trouble.opened", "trouble.opened", "trouble.resolved"]
    assert [event["type"] for event in receiver.events()] == of_both, "at once where the news was of a bad trouble"
    check(minute=30)
    assert [event["type"] for event in receiver.events()] == [*of_both, "trouble.resolved"]


@pytest.mark.parametrize(
    ("setting", "at", "ends"),
    [
        ("", "2026-11-28T23:00", None),
        ("22:00-07:00", "2026-11-28T23:00", "2026-11-29T07:00"),
        ("22:00-07:00", "2026-11-29T06:59", "2026-11-29T07:00"),
        ("22:00-07:00", "2026-11-29T07:00", None),
        ("22:00-07:00 Europe/Berlin", "2026-11-28T21:30", "2026-11-29T06:00"),
        ("9:00-17:00", "2026-11-28T09:00", "2026-11-28T17:00"),
        ("0:00-9:00 Asia/Tokyo", "2026-11-28T15:30", "2026-11-29T00:00"),
        ("0:00-0:00", "2026-11-28T12:00", "2026-11-29T00:00"),
        # The hour from 02:00 comes twice, or not at all.
        ("22:00-02:30 Europe/Berlin", "2026-10-25T00:10", "2026-10-25T00:30"),
        ("22:00-02:30 Europe/Berlin", "2026-10-25T01:10", None),
        ("02:30-07:00 Europe/Berlin", "2026-10-25T01:10", "2026-10-25T06:00"),
        ("22:00-02:30 Europe/Berlin", "2026-03-29T01:40", None),
        ("02:30-07:00 Europe/Berlin", "2026-03-29T01:40", "2026-03-29T05:00"),
    ],
)
def test_quiet_hours_end(setting: str, at: str, ends: str | None) -> None:
    found = quiet_hours.end_of(setting, datetime.fromisoformat(at).replace(tzinfo=UTC))
    assert found == (datetime.fromisoformat(ends).replace(tzinfo=UTC) if ends else None)


def test_a_muted_trouble_causes_no_message_even_when_it_returns(receiver: Receiver, operator: Client) -> None:
    troubles.check([replace(BLOCKED, tone="held")], at=START)
    TroubleMessage.objects.all().delete()
    trouble = Trouble.objects.get()
    url = reverse("admin:audiences_trouble_mute", args=[trouble.pk])
    page = operator.get(url)
    operator.post(url, {"seen": page.context["hidden"]["seen"], "hours": "168", "reason": "ODP repairs it"})
    trouble.refresh_from_db()
    assert trouble.muted_by == "operator"
    assert trouble.muted_until is not None
    assert trouble.muted_until > now() + timedelta(hours=167)
    begin = (now() - START).total_seconds() / 60
    for step, seen in enumerate(([BLOCKED], [], [], [BLOCKED])):
        check(*seen, minute=begin + step)
    assert [event["type"] for event in receiver.events()] == ["trouble.resolved"]
    newest = Trouble.objects.order_by("pk").last()
    assert newest is not None
    assert (newest.muted_by, newest.mute_reason) == ("operator", "ODP repairs it")
    url = reverse("admin:audiences_trouble_unmute", args=[newest.pk])
    operator.post(url, {"seen": operator.get(url).context["hidden"]["seen"]})
    check(BLOCKED, minute=begin + 5)
    assert [event["type"] for event in receiver.events()] == ["trouble.resolved", "trouble.opened"]
    # The mute of the trouble before it has ended, too.
    for minute, found in ((6, []), (30, []), (31, [BLOCKED])):
        check(*found, minute=begin + minute)
    assert [event["type"] for event in receiver.events()][2:] == ["trouble.resolved", "trouble.opened"]


def test_a_trouble_that_outlasts_its_mute_causes_a_message(receiver: Receiver) -> None:
    begin = (now() - START).total_seconds() / 60
    check(BLOCKED, minute=begin)
    assert troubles.mute(Trouble.objects.get(), hours=1, by="kim")
    for minute, seen in ((1, []), (2, []), (30, [BLOCKED])):
        check(*seen, minute=begin + minute)
    assert [event["type"] for event in receiver.events()] == ["trouble.opened", "trouble.resolved"]
    check(BLOCKED, minute=begin + 61)
    assert [event["type"] for event in receiver.events()][2:] == ["trouble.opened"]


def test_a_trouble_that_returns_has_its_newest_mute(receiver: Receiver) -> None:
    begin = (now() - START).total_seconds() / 60
    for person, minute in (("kim", 0), ("lee", 60)):
        check(BLOCKED, minute=begin + minute)
        assert troubles.mute(Trouble.objects.latest("pk"), hours=12, by=person)
        check(minute=begin + minute + 1)
        check(minute=begin + minute + 30)
    check(BLOCKED, minute=begin + 120)
    assert [trouble.muted_by for trouble in Trouble.objects.order_by("pk")] == ["kim", "lee", "lee"]


def test_the_list_has_current_and_past_troubles(receiver: Receiver, viewer: Client) -> None:
    for minute, seen in enumerate(([BLOCKED], [], [], [replace(BLOCKED, what="Now it is silver")])):
        check(*seen, minute=minute)
    url = reverse("admin:audiences_trouble_changelist")
    shown = {words: viewer.get(f"{url}{words}").content.decode() for words in ("", "?state=open", "?state=resolved")}
    assert ["lytics_gold is blocked" in page for page in shown.values()] == [True, False, True]
    assert ["Now it is silver" in page for page in shown.values()] == [True, True, False]
    page = viewer.get(reverse("admin:audiences_trouble_change", args=[Trouble.objects.order_by("pk")[0].pk]))
    assert "resolved by webhook: sent" in page.content.decode()


# --- Sending --------------------------------------------------------------------------------------------------


def test_the_webhook_is_signed_by_the_standard_webhooks_specification(receiver: Receiver) -> None:
    check(BLOCKED, minute=0)
    ((_, headers, body),) = [one for one in receiver.got if one[0] == "/hook"]
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
    expected = base64.b64encode(hmac.new(bytes(range(32)), signed, hashlib.sha256).digest()).decode()
    assert headers["webhook-signature"] == f"v1,{expected}"
    assert abs(time.time() - int(headers["webhook-timestamp"])) < 60, "the attempt's; receivers reject an old one"
    assert headers["content-type"] == "application/json"


def test_the_signature_equals_the_example_of_the_specification() -> None:
    """From the specification's reference libraries."""
    headers = webhooks.signed(
        "msg_p5jXN8AQM9LWM0D4loKWxJek",
        b'{"test": 2432232314}',
        secret="whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
        at=1614265330,
    )
    assert headers["webhook-signature"] == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_a_receiver_that_does_not_respond_is_named_with_the_limit() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        assert webhooks.post(url, b"{}", name="The hook", seconds=0.05) == "The hook did not respond within 0.05 s"
    refused = webhooks.post(url, b"{}", name="The hook", seconds=9)
    assert refused == "The hook could not be reached: the host refuses connections"


@pytest.mark.parametrize("size", [24, 64])
def test_a_secret_of_any_size_in_the_specification_is_used(size: int) -> None:
    assert webhooks.key_of("whsec_" + base64.b64encode(bytes(size)).decode()) == bytes(size)


@pytest.mark.parametrize("status", [301, 400, 404, 410, 429, 500, 503])
def test_a_channel_that_is_down_gets_the_message_when_it_is_back(receiver: Receiver, status: int) -> None:
    receiver.status = status
    check(BLOCKED, minute=0)
    assert len(mail.outbox) == 1, "the other channels don't wait for it"
    assert {path for path, _, _ in receiver.got} == {"/slack", "/hook"}
    message = TroubleMessage.objects.get(channel="webhook")
    assert str(status) in message.problem
    assert receiver.url not in message.problem
    receiver.status = 200
    receiver.got.clear()
    check(BLOCKED, minute=0.25)
    assert receiver.got == [], "not before its time"
    check(BLOCKED, minute=1)
    check(BLOCKED, minute=2)
    assert len(receiver.events()) == len(receiver.texts()) == len(mail.outbox) == 1


@pytest.mark.parametrize(("tries", "pause"), [(1, 30), (2, 60), (7, 1920), (8, 3600), (2_000, 3600)])
def test_the_pause_after_a_failure_doubles_up_to_an_hour(receiver: Receiver, tries: int, pause: int) -> None:
    troubles.check([BLOCKED], at=START)
    message = TroubleMessage.objects.get(channel="slack")
    message.tries, receiver.status = tries, 500
    assert not alert_messages.send(message, at=START)
    message.refresh_from_db()
    assert message.next_try_at == START + timedelta(seconds=pause)


def test_a_failing_channel_is_tried_once_in_a_run(receiver: Receiver) -> None:
    receiver.status = 500
    check(BLOCKED, replace(BLOCKED, kind="paused"), replace(BLOCKED, kind="parked"), minute=0)
    assert sorted(path for path, _, _ in receiver.got) == ["/hook", "/slack"]
    assert len(mail.outbox) == 3


def test_a_resolved_message_waits_for_the_message_before_it(receiver: Receiver) -> None:
    receiver.status = 500
    for minute, seen in enumerate(([BLOCKED], [], [])):
        check(*seen, minute=minute)
    assert {event["type"] for event in receiver.events()} == {"trouble.opened"}
    receiver.status = 200
    receiver.got.clear()
    check(minute=60)
    assert [event["type"] for event in receiver.events()] == ["trouble.opened", "trouble.resolved"]


def test_a_failing_channel_is_a_trouble_that_the_others_report_until_it_is_back(
    receiver: Receiver, settings: Settings, viewer: Client
) -> None:
    troubles.check([BLOCKED], at=now() - timedelta(hours=1))
    settings.ALERT_SLACK_URL = NOWHERE

    def look() -> set[str]:
        """A minute passes, in which all messages are tried."""
        Trouble.objects.exclude(gone_at=None).update(gone_at=now() - timedelta(hours=1))
        tasks.check_troubles()
        TroubleMessage.objects.update(next_try_at=now())
        tasks.send_alerts()
        return {alert.what for alert in viewer.get(reverse("admin:index")).context["alerts"]}

    for _ in range(alert_messages.FAILING_AFTER - 1):
        assert look() == set()
    assert look() == {"Alerts by Slack fail"}
    look()
    assert [event["data"]["why"] for event in receiver.events() if event["data"]["kind"] == "channel"] == [
        "ALERT_SLACK_URL could not be reached: the host refuses connections. Nobody is notified there."
    ]
    settings.ALERT_SLACK_URL = f"{receiver.url}/slack"
    TroubleMessage.objects.filter(channel="slack").update(next_try_at=now())
    tasks.send_alerts()
    assert look() == set()
    look()
    assert Trouble.objects.get(kind="channel").resolved_at is not None


@pytest.mark.parametrize(
    ("event", "problem", "fails"),
    [("trouble.opened", "500", True), ("trouble.opened", "", False), ("trouble.resolved", "500", False)],
)
def test_only_the_news_of_a_trouble_that_was_rejected_makes_a_channel_fail(
    receiver: Receiver, settings: Settings, event: str, problem: str, fails: bool
) -> None:
    """A worker that stops during each attempt stores no problem. A channel without a setting gets no message."""
    TroubleMessage.objects.create(
        event=event, channel="slack", content={}, created_at=START, next_try_at=START, tries=5, problem=problem
    )
    assert bool(alert_messages.failing()) is fails
    settings.ALERT_SLACK_URL = ""
    assert alert_messages.failing() == []


def test_a_channel_that_rejects_the_news_of_many_troubles_fails_as_soon_as_with_one(receiver: Receiver) -> None:
    """One message is sent in a run, so each of them is tried less often."""
    receiver.status, at = 500, now() - alert_messages.FAILING_FOR - timedelta(seconds=1)
    troubles.check([replace(BLOCKED, cause=f"{number}") for number in range(5)], at=at)
    for _ in range(4):
        alert_messages.send_due(seconds=PATIENCE, at=at)
    assert alert_messages.failing() == []
    alert_messages.send_due(seconds=PATIENCE, at=at)
    assert {message.channel for message in alert_messages.failing()} == {"slack", "webhook"}
    TroubleMessage.objects.update(created_at=at + timedelta(seconds=30))
    assert alert_messages.failing() == []


def test_a_channel_that_is_back_gets_all_that_it_rejected_at_once(receiver: Receiver) -> None:
    receiver.status = 500
    for minute in (0, 1, 3, 7, 15):
        check(BLOCKED, minute=minute)
    receiver.status = 200
    receiver.got.clear()
    at = START + timedelta(minutes=16)
    alert_messages.send_due(seconds=PATIENCE, at=at)
    assert receiver.got == [], "the pause lasts"
    TroubleMessage.objects.filter(channel="webhook").update(next_try_at=at + alert_messages.CLAIM)
    for channel in (TroubleMessage.Channel.SLACK, TroubleMessage.Channel.WEBHOOK):
        alert_messages.send(alert_messages.queue_test([channel])[0], at=at)
    receiver.got.clear()
    alert_messages.send_due(seconds=PATIENCE, at=at)
    assert [path for path, _, _ in receiver.got] == ["/slack"], "another worker may be sending the other one"


def test_the_last_message_about_a_trouble_that_came_back_does_not_say_that_it_is_resolved(receiver: Receiver) -> None:
    """The message of its resolution failed, and would be sent after the news that it is back."""
    check(BLOCKED, minute=0)
    receiver.status = 500
    for minute in (1, 2):
        check(minute=minute)
    receiver.status = 200
    receiver.got.clear()
    for minute in (3, 4):
        check(BLOCKED, minute=minute)
    assert [event["type"] for event in receiver.events()] == ["trouble.opened"]
    assert [text.partition(":")[0] for text in receiver.texts()] == ["*Trouble"]


def test_the_news_that_a_trouble_got_worse_does_not_wait_for_an_older_message(receiver: Receiver) -> None:
    receiver.status = 500
    held = replace(BLOCKED, tone="held")
    for minute in (0, 1, 2, 4, 8):
        check(held, minute=minute)
    receiver.status = 200
    receiver.got.clear()
    check(BLOCKED, minute=9)
    check(BLOCKED, minute=60)
    assert [event["data"]["tone"] for event in receiver.events()] == ["bad"]


def test_a_channel_that_is_taken_out_for_a_while_keeps_its_message(receiver: Receiver, settings: Settings) -> None:
    """A newer message replaces it only where there is one."""
    receiver.status = 503
    check(replace(BLOCKED, tone="held"), minute=0)
    settings.ALERT_SLACK_URL = ""
    check(BLOCKED, minute=1)
    receiver.status = 204
    settings.ALERT_SLACK_URL = f"{receiver.url}/slack"
    receiver.got.clear()
    check(BLOCKED, minute=30)
    assert len(receiver.texts()) == 1


def test_messages_about_a_resolved_trouble_are_given_up_after_a_day_of_failed_attempts(receiver: Receiver) -> None:
    receiver.status = 500
    check(BLOCKED, minute=0)
    for hour in range(60):
        check(minute=hour * 61)
    assert not TroubleMessage.objects.filter(channel="webhook", given_up_at=None).exists()
    receiver.got.clear()
    check(minute=61 * 61)
    assert receiver.got == []


def test_a_channel_that_was_down_for_days_gets_the_messages_about_troubles_that_are_still_open(
    receiver: Receiver, settings: Settings
) -> None:
    receiver.status = 500
    for hour in range(0, 72, 2):
        check(BLOCKED, minute=hour * 60)
    receiver.status = 200
    receiver.got.clear()
    check(BLOCKED, minute=72 * 60)
    assert [event["type"] for event in receiver.events()] == ["trouble.opened"]
    receiver.status = 500
    check(BLOCKED, replace(BLOCKED, kind="paused"), minute=73 * 60)
    settings.ALERT_WEBHOOK_URL = ""
    check(BLOCKED, replace(BLOCKED, kind="paused"), minute=98 * 60)
    assert TroubleMessage.objects.get(channel="webhook", sent_at=None).given_up_at is not None
    assert TroubleMessage.objects.get(channel="slack", sent_at=None).given_up_at is None


def test_a_message_is_sent_again_if_its_worker_stops_before_storing_that(
    receiver: Receiver, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.ALERT_EMAILS, settings.ALERT_SLACK_URL = [], ""

    def stop(*args: object, **changes: object) -> None:
        raise SystemExit

    troubles.check([BLOCKED], at=START)
    with monkeypatch.context() as patched:
        patched.setattr("django.db.models.query.QuerySet.update", stop)
        with pytest.raises(SystemExit):
            alert_messages.send_due(seconds=PATIENCE, at=START)
    alert_messages.send_due(seconds=PATIENCE, at=START + timedelta(seconds=30))
    assert len(receiver.got) == 1, "its claim holds"
    for minute in (1, 2):
        alert_messages.send_due(seconds=PATIENCE, at=START + timedelta(minutes=minute))
    (_, first, body), (_, second, same_body) = receiver.got
    assert first["webhook-id"] == second["webhook-id"]
    assert body == same_body


def test_an_e_mail_keeps_its_message_id(receiver: Receiver) -> None:
    check(BLOCKED, minute=0)
    message = TroubleMessage.objects.get(channel="email")
    alert_messages.send(message)
    first, second = mail.outbox
    assert first.message()["Message-ID"] == second.message()["Message-ID"]


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (smtplib.SMTPAuthenticationError(535, b"no"), "the mail server rejects EMAIL_HOST_USER or EMAIL_HOST_PASSWORD"),
        (smtplib.SMTPRecipientsRefused({PERSON: (550, b"no")}), "the mail server rejects the addresses"),
        (smtplib.SMTPSenderRefused(550, b"no", PERSON), "the mail server answered 550"),
        (smtplib.SMTPServerDisconnected("gone"), "the mail server broke off"),
    ],
)
def test_the_reason_of_a_mail_server_has_no_address(error: smtplib.SMTPException, words: str) -> None:
    assert alert_messages.mail_problem(error) == words


def test_an_unreachable_mail_server_is_tried_again(receiver: Receiver, settings: Settings) -> None:
    settings.EMAIL_BACKEND, there = SMTP, settings.EMAIL_BACKEND
    settings.EMAIL_HOST, settings.EMAIL_PORT = "127.0.0.1", 1
    check(BLOCKED, minute=0)
    problem = TroubleMessage.objects.get(channel="email").problem
    assert problem == "the mail server could not be reached: the host refuses connections"
    settings.EMAIL_BACKEND = there
    check(BLOCKED, minute=1)
    assert len(mail.outbox) == 1


def test_a_mail_server_that_never_answers_is_not_said_to_break_off(receiver: Receiver, settings: Settings) -> None:
    settings.EMAIL_BACKEND, settings.EMAIL_TIMEOUT = SMTP, 0.05
    with socket.create_server(("127.0.0.1", 0)) as silent:
        settings.EMAIL_HOST, settings.EMAIL_PORT = silent.getsockname()
        check(BLOCKED, minute=0)
    problem = TroubleMessage.objects.get(channel="email").problem
    assert problem == "the mail server could not be reached: it did not respond in time"


class _MailHandler(StreamRequestHandler):
    """Accepts every command and letter, and every address but those that begin with ``gone``."""

    def handle(self) -> None:
        self.wfile.write(b"220 mail\r\n")
        is_letter = False
        for line in self.rfile:
            is_letter = line[:4] == b"data" or (is_letter and line != b".\r\n")
            if not is_letter or line[:4] == b"data":
                refused = b"550 nobody\r\n" if line.lower().startswith(b"rcpt to:<gone") else b"250 ok\r\n"
                self.wfile.write(b"354 go on\r\n" if is_letter else refused)


@pytest.fixture
def mail_server() -> Iterator[int]:
    """The port of a mail server."""
    with ThreadingTCPServer(("127.0.0.1", 0), _MailHandler) as server:
        server.daemon_threads = True
        Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1]
        server.shutdown()


def test_a_mail_server_gets_the_message(receiver: Receiver, mail_server: int, settings: Settings) -> None:
    settings.EMAIL_BACKEND = SMTP
    settings.EMAIL_HOST, settings.EMAIL_PORT = "127.0.0.1", mail_server
    check(BLOCKED, minute=0)
    assert TroubleMessage.objects.get(channel="email").sent_at is not None


def test_an_address_that_the_mail_server_rejects_beside_others_is_reported_and_nobody_gets_two(
    receiver: Receiver, mail_server: int, settings: Settings, operator: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    settings.EMAIL_BACKEND = SMTP
    settings.EMAIL_HOST, settings.EMAIL_PORT = "127.0.0.1", mail_server
    settings.ALERT_EMAILS = ["oncall@example.org", "gone@example.org"]
    problem = "the mail server rejects 1 of the 2 addresses in ALERT_EMAILS; the others got it"
    with pytest.raises(SystemExit):
        call_command("send_test_alert")
    assert f"e-mail: {problem}" in capsys.readouterr().out
    assert problem in operator.get(reverse("admin:audiences_trouble_changelist")).content.decode()
    message = TroubleMessage.objects.get(channel="email")
    assert (message.sent_at is not None, message.given_up_at, message.problem) == (True, None, problem)


class _DrippingHandler(StreamRequestHandler):
    """Sends a byte of its greeting now and then, until the client has enough."""

    def handle(self) -> None:
        wait = Event()
        with suppress(OSError):
            while not wait.wait(0.02):
                self.wfile.write(b"2")


@pytest.mark.parametrize("is_connected", [True, False])
def test_a_mail_server_that_drips_holds_a_worker_until_the_deadline(
    receiver: Receiver, settings: Settings, monkeypatch: pytest.MonkeyPatch, is_connected: bool
) -> None:
    """Each byte comes within EMAIL_TIMEOUT, so that no timeout of the socket ends the connection."""
    monkeypatch.setattr(mail_backend, "SECONDS", 0.2)
    if not is_connected:  # the deadline passes during a connect or a TLS handshake
        monkeypatch.setattr(mail_backend._Limited, "_is_over", True)
        monkeypatch.setattr(mail_backend._Limited, "_cut", lambda _: None)
    began = time.monotonic()
    settings.EMAIL_BACKEND = SMTP
    with ThreadingTCPServer(("127.0.0.1", 0), _DrippingHandler) as server:
        server.daemon_threads = True
        Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        settings.EMAIL_HOST, settings.EMAIL_PORT = "127.0.0.1", server.server_address[1]
        check(BLOCKED, minute=0)
        server.shutdown()
    assert time.monotonic() - began < 30
    assert TroubleMessage.objects.get(channel="email").problem == (
        "the mail server could not be reached: it did not respond in time"
    )
    assert len(receiver.texts()) == len(receiver.events()) == 1


@pytest.mark.parametrize(
    "values",
    [
        {"ALERT_EMAILS": [f"ops@{'ä' * 70}.com"]},
        {"ALERT_EMAILS": ["ops@example.com\nBcc: kim@example.com"]},
        {"EMAIL_HOST": "a" * 70},
        {"EMAIL_HOST": ".."},
        {"DEFAULT_FROM_EMAIL": "ops@example.com\nBcc: kim@example.com"},
    ],
)
def test_an_unusable_mail_setting_is_a_reason_and_delays_no_other_channel(
    receiver: Receiver, mail_server: int, settings: Settings, values: dict[str, Any]
) -> None:
    settings.EMAIL_BACKEND = SMTP
    settings.EMAIL_HOST, settings.EMAIL_PORT = "127.0.0.1", mail_server
    for name, value in values.items():
        setattr(settings, name, value)
    troubles.check([BLOCKED], at=now() - timedelta(days=2))
    TroubleMessage.objects.update(next_try_at=now())
    Trouble.objects.update(resolved_at=now())
    tasks.send_alerts()
    letter = TroubleMessage.objects.get(channel="email")
    assert letter.problem == "ALERT_EMAILS, DEFAULT_FROM_EMAIL or EMAIL_HOST can't be used"
    assert letter.given_up_at is not None
    assert not TroubleMessage.objects.exclude(channel="email").filter(sent_at=None).exists()


# --- From the page Now ----------------------------------------------------------------------------------------


def test_now_and_messages_show_the_same_troubles(receiver: Receiver, install: Install, viewer: Client) -> None:
    Install.objects.update(enabled=False)
    shown = {alert.what for alert in viewer.get(reverse("admin:index")).context["alerts"]}
    tasks.check_troubles()
    tasks.send_alerts()
    assert {event["data"]["what"] for event in receiver.events()} == shown != set()


def test_now_shows_who_muted_a_trouble_until_when_and_why(install: Install, operator: Client) -> None:
    Install.objects.update(enabled=False)
    tasks.check_troubles()
    trouble = Trouble.objects.get(kind="switched_off")
    mute = reverse("admin:audiences_trouble_mute", args=[trouble.pk])
    assert mute in operator.get(reverse("admin:index")).content.decode()
    assert troubles.mute(trouble, hours=8, by="kim", reason="The shop is closed until Monday")
    page = operator.get(reverse("admin:index")).content.decode()
    assert "Muted by kim until" in page
    assert "The shop is closed until Monday" in page
    assert mute not in page
    assert reverse("admin:audiences_trouble_unmute", args=[trouble.pk]) in page


def test_troubles_known_from_redis_are_not_resolved_while_redis_is_away(
    receiver: Receiver, install: Install, settings: Settings
) -> None:
    rejected = Seen(kind="rejected", what="3 calls to Shop rejected", path="/admin/", install=install.pk)
    troubles.check([rejected, BLOCKED], at=now() - timedelta(minutes=10))
    Trouble.objects.update(gone_at=now() - timedelta(minutes=5))
    settings.REDIS_URL = "redis://127.0.0.1:1/0"
    redis_client.client.cache_clear()
    try:
        tasks.check_troubles()
    finally:
        redis_client.client.cache_clear()
    resolved = Trouble.objects.filter(resolved_at__isnull=False)
    assert [trouble.kind for trouble in resolved] == ["blocked"]
    assert Trouble.objects.filter(kind="redis", resolved_at=None).exists()


def test_a_check_that_fails_is_reported_and_resolves_nothing(
    receiver: Receiver, install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise one error would silence all alerts."""
    troubles.check([BLOCKED], at=now() - timedelta(minutes=10))
    Trouble.objects.update(gone_at=now() - timedelta(minutes=5))
    with monkeypatch.context() as patched:
        patched.setattr(retention, "alerts", Mock(side_effect=RuntimeError("no such kind")))
        for _ in range(2):
            with pytest.raises(RuntimeError):
                tasks.check_troubles()
    tasks.send_alerts()
    assert [(event["data"]["kind"], event["data"]["what"]) for event in receiver.events()][1:] == [
        ("task", "The task check_troubles fails")
    ]
    assert "RuntimeError: no such kind" in receiver.events()[1]["data"]["why"]
    assert not Trouble.objects.exclude(resolved_at=None).exists()


def test_texts_that_people_wrote_are_not_sent(receiver: Receiver, install: Install) -> None:
    assert holds.pause(make_audience(install).lane, by="kim.lee", reason="Anna Miller asked for it")
    tasks.check_troubles()
    tasks.send_alerts()
    assert "paused" in {event["data"]["kind"] for event in receiver.events()}
    texts = [str(receiver.got), str(list(Trouble.objects.values())), *(str(letter.body) for letter in mail.outbox)]
    assert [text for text in texts if "Miller" in text or "kim.lee" in text] == []


def test_a_message_keeps_the_signs_of_a_text_that_look_like_a_tag(receiver: Receiver, install: Install) -> None:
    Install.objects.update(name="Shop <EU>", key_accepted_at=None)
    many_installs(1)
    tasks.check_troubles()
    tasks.send_alerts()
    (why,) = [event["data"]["why"] for event in receiver.events() if event["data"]["kind"] == "drafts"]
    assert "the API keys of Shop 0, Shop <EU> yet" in why


def test_the_key_of_a_trouble_has_no_counts_or_times(install: Install) -> None:
    def keys() -> set[str]:
        return {front._seen(alert).key for alert in front.alerts(front.facts()) if alert.kind == "parked"}

    Parked.objects.create(install=install, reason="no_identifier", parked_at=now())
    before = keys()
    Parked.objects.create(install=install, reason="no_identifier", parked_at=now(), detail="another")
    assert keys() == before != set()


def test_no_message_and_no_row_has_an_identifier(receiver: Receiver, install: Install, operator: Client) -> None:
    """Neither one that ODP quotes, nor one that a person wrote as a reason."""
    detail = f"fs_user_id '{PERSON}' is invalid"
    Parked.objects.create(install=install, reason="refused_by_odp", identifier=PERSON, parked_at=now(), detail=detail)
    Install.objects.update(
        backoff_until_at=now() + timedelta(hours=1),
        backoff_since_at=now(),
        backoff_failures=1,
        backoff_reason=f"400: the customer '{PERSON}' is wrong",
    )
    tasks.check_troubles()
    tasks.send_alerts()
    texts = [str(receiver.got), *(f"{letter.subject} {letter.body}" for letter in mail.outbox)]
    texts += [str(list(model.objects.values())) for model in (Trouble, TroubleMessage)]
    assert len(receiver.events()) >= 2
    assert [text for text in texts if "anna" in text] == []


@pytest.mark.parametrize(
    ("given", "sent"),
    [
        ("It doesn't answer, and can't be reached", "It doesn't answer, and can't be reached"),
        (f"ODP doesn't know '{PERSON}'", "ODP doesn't know '•••'"),
        ("ODP doesn't know 'kim' and can't take 'lee'", "ODP doesn't know '•••' and can't take '•••'"),
    ],
)
def test_quotes_are_masked_and_apostrophes_stay(receiver: Receiver, given: str, sent: str) -> None:
    check(replace(BLOCKED, what=given, why=given), minute=0)
    (event,) = receiver.events()
    assert (event["data"]["what"], event["data"]["why"]) == (sent, sent)


def test_an_install_with_a_trouble_can_be_deleted() -> None:
    install = Install(name="Mistake", odp_api_key="a.b", odp_host="http://127.0.0.1:9")
    installs.create(install)
    tasks.check_troubles()
    assert Trouble.objects.filter(install=install).exists()
    assert drafts.delete(install.pk)
    assert {trouble.install for trouble in Trouble.objects.all()} == {None}


# --- Tests of channels, and settings ---------------------------------------------------------------------------------


def test_the_command_tries_each_channel_and_prints_the_result(
    receiver: Receiver, capsys: pytest.CaptureFixture[str]
) -> None:
    call_command("send_test_alert")
    assert capsys.readouterr().out.splitlines() == ["e-mail: accepted", "Slack: accepted", "webhook: accepted"]
    assert [event["type"] for event in receiver.events()] == ["test"]
    delays = {message.next_try_at - message.created_at for message in TroubleMessage.objects.all()}
    assert delays == {3 * alert_messages.CLAIM}, "a worker sends none meanwhile, even if each channel is slow"
    receiver.status = 403
    with pytest.raises(SystemExit):
        call_command("send_test_alert")
    assert "webhook: ALERT_WEBHOOK_URL answered 403" in capsys.readouterr().out
    receiver.got.clear()
    alert_messages.send_due(seconds=5, at=now() + timedelta(hours=2))
    assert receiver.got == []


def test_the_command_fails_when_any_channel_does(
    receiver: Receiver, settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    settings.ALERT_SLACK_URL = NOWHERE
    with pytest.raises(SystemExit) as ended:
        call_command("send_test_alert")
    accepted = [line.endswith(": accepted") for line in capsys.readouterr().out.splitlines()]
    assert (ended.value.code, accepted) == (1, [True, False, True])


def test_the_button_queues_a_test_of_its_channel_and_the_list_shows_the_result(
    receiver: Receiver, operator: Client
) -> None:
    page, button = (
        reverse("admin:audiences_trouble_changelist"),
        reverse("admin:audiences_trouble_test", args=["slack"]),
    )
    assert button in operator.get(page).content.decode()
    asked = operator.get(button).content.decode()
    assert "One test message is sent by Slack" in asked
    assert not TroubleMessage.objects.exists()
    for _ in range(2):  # a double click
        operator.post(button, hidden(asked))
    assert LogEntry.objects.get().change_message == "Asked for a test message."
    assert receiver.got == []
    assert "to be sent" in operator.get(page).content.decode()
    tasks.send_alerts()
    assert receiver.texts() == [
        "*Test:* This is a test alert\nA person asked for it. Nothing is wrong.\n<https://sync.example.org|Open>"
    ]
    assert [where for where, _, _ in receiver.got] == ["/slack"]
    assert "delivered" in operator.get(page).content.decode()


def test_a_rejected_test_is_shown_with_its_reason_and_not_tried_again(receiver: Receiver, operator: Client) -> None:
    receiver.status = 403
    operator.post(reverse("admin:audiences_trouble_test", args=["webhook"]), {"seen": "None"})
    tasks.send_alerts()
    alert_messages.send_due(seconds=5, at=now() + timedelta(hours=2))
    assert len(receiver.got) == 1
    shown = operator.get(reverse("admin:audiences_trouble_changelist")).content.decode()
    assert "ALERT_WEBHOOK_URL answered 403" in shown


def test_a_channel_that_is_not_set_has_no_button_and_sends_nothing(operator: Client) -> None:
    page, button = (
        reverse("admin:audiences_trouble_changelist"),
        reverse("admin:audiences_trouble_test", args=["email"]),
    )
    assert "No channel for messages is set" in operator.get(page).content.decode()
    assert button not in operator.get(page).content.decode()
    operator.post(button)
    assert not TroubleMessage.objects.exists()


def test_a_viewer_sees_the_channels_without_their_buttons(receiver: Receiver, viewer: Client) -> None:
    button = reverse("admin:audiences_trouble_test", args=["slack"])
    shown = viewer.get(reverse("admin:audiences_trouble_changelist")).content.decode()
    assert "not tested" in shown
    assert button not in shown
    assert viewer.post(button).status_code == 403


def test_the_command_needs_a_channel() -> None:
    with pytest.raises(CommandError, match="No channel"):
        call_command("send_test_alert")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ALERT_WEBHOOK_SECRET", ""),
        ("ALERT_WEBHOOK_SECRET", "whsec_short"),
        ("ALERT_WEBHOOK_SECRET", "whsec_" + base64.b64encode(bytes(23)).decode()),
        ("ALERT_WEBHOOK_SECRET", "whsec_" + base64.b64encode(bytes(65)).decode()),
        ("ALERT_WEBHOOK_SECRET", "whsec_!" + base64.b64encode(bytes(32)).decode()),
        ("ALERT_QUIET_HOURS", "at night"),
        ("ALERT_QUIET_HOURS", "22:00-27:00"),
        ("ALERT_QUIET_HOURS", "22:00-07:00 Europe/Atlantis"),
    ],
)
def test_unusable_settings_are_named_before_a_process_starts(
    receiver: Receiver, settings: Settings, name: str, value: str
) -> None:
    assert checks.alert_channels_usable() == []
    setattr(settings, name, value)
    (error,) = checks.alert_channels_usable()
    assert name in error.msg


# --- Many troubles at once ------------------------------------------------------------------------------------


def many_installs(count: int, **values: Any) -> None:
    Install.objects.bulk_create(
        Install(name=f"Shop {place}", odp_host=NOWHERE, odp_api_key="x", **values) for place in range(count)
    )


ON_HOLD = {"backoff_failures": 1, "backoff_reason": "429"}


@pytest.mark.parametrize("kind", ["on_hold", "switched_off", "no_call", "parked", "parked_growth"])
def test_messages_name_at_most_ten_troubles_of_a_kind(receiver: Receiver, settings: Settings, kind: str) -> None:
    settings.DRAIN_SECONDS = PATIENCE
    at = now()
    match kind:
        case "on_hold":
            many_installs(14, key_accepted_at=at, backoff_until_at=at, backoff_since_at=at, **ON_HOLD)
        case "switched_off":
            many_installs(14, enabled=False)
        case "no_call":
            many_installs(14, key_accepted_at=at)
        case _:
            many_installs(14, key_accepted_at=at, parked_limit_per_hour=1)
            Parked.objects.bulk_create(
                Parked(install=install, reason="no_identifier", parked_at=at)
                for install in [*Install.objects.all()] * 2
            )
    tasks.check_troubles()
    tasks.send_alerts()
    sent = [event["data"]["what"] for event in receiver.events() if event["data"]["kind"] == kind]
    assert len(sent) == 11
    assert len([what for what in sent if "4 more " in what]) == 1
    tasks.check_troubles()
    assert len({message.trouble_id for message in TroubleMessage.objects.filter(trouble__kind=kind)}) == 11


def test_a_trouble_that_is_no_longer_among_those_followed_is_not_resolved(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Groups of parked items are listed by their number."""
    monkeypatch.setattr(front, "FOLLOWED", 10)
    many_installs(12, key_accepted_at=now())
    installs = list(Install.objects.order_by("pk"))
    park(installs[:10])
    front.check()
    park(installs[2:])
    later_checks()
    assert not Trouble.objects.filter(kind="parked").exclude(resolved_at=None).exists()


def park(installs: list[Install]) -> None:
    Parked.objects.bulk_create(
        Parked(install=install, reason="no_identifier", parked_at=now()) for install in installs for _ in range(3)
    )


def later_checks() -> None:
    for _ in range(3):
        Trouble.objects.exclude(gone_at=None).update(gone_at=now() - timedelta(minutes=2))
        front.check()


@pytest.mark.parametrize("kind", ["switched_off", "parked", "blocked", "paused", "creation", "error", "twin"])
def test_when_a_named_trouble_is_resolved_another_one_is_named(receiver: Receiver, kind: str) -> None:
    """*Now* lists ten of most kinds; the check reads all of them."""
    many_installs(12, key_accepted_at=now())
    installs, at = list(Install.objects.order_by("pk")), now()
    lanes = Lane.objects.filter(pk__in=[make_audience(one, "gold").lane.pk for one in installs])
    Audience.objects.update(last_sequence=9)
    match kind:
        case "switched_off":
            Install.objects.update(enabled=False)
        case "parked":
            park(installs)
        case "blocked":
            lanes.update(blocked_at=at, block_reason="no such field")
        case "paused":
            lanes.update(paused_at=at, paused_by="kim", pause_reason="Over.")
        case "creation":
            Audience.objects.update(hold_since_at=at, hold_until_at=at, hold_reason="HTTP 503", hold_failures=1)
        case "error":
            lanes.update(fault_since_at=at, fault_until_at=at, fault_reason="KeyError")
        case "twin":
            missing = {"finding": Twin.Finding.MISSING, "problem": "It is gone.", "since_at": at, "looked_at": at}
            Twin.objects.bulk_create(Twin(audience=lane.audience, **missing) for lane in lanes)
    front.check()
    told = Trouble.objects.filter(kind=kind, install__isnull=False).exclude(notified_at=None)
    first = list(told.order_by("pk").values_list("install", flat=True))
    assert len(first) == 10
    Parked.objects.filter(install=first[0]).delete()
    for row in (Twin, Lane):
        row.objects.filter(audience__install=first[0]).delete()
    Audience.objects.filter(install=first[0]).delete()
    Install.objects.filter(pk=first[0]).update(enabled=True)
    later_checks()
    named = set(told.filter(resolved_at=None).values_list("install", flat=True))
    assert len(named) == 10
    assert named > set(first[1:])
    assert told.get(install=first[0]).resolved_at is not None


def test_a_creation_that_fails_with_other_5xx_is_the_same_trouble(receiver: Receiver, install: Install) -> None:
    audience, at = make_audience(install, "gold"), now()
    held = {"provisioned_at": None, "hold_since_at": at, "hold_until_at": at, "hold_failures": 1}
    for reason in ("HTTP 503: down", "HTTP 502: Bad Gateway", "HTTP 503"):
        Audience.objects.filter(pk=audience.pk).update(**held, hold_reason=reason)
        front.check()
    assert Trouble.objects.filter(kind="creation").count() == 1


@pytest.mark.parametrize("kind", ["blocked", "creation"])
def test_the_message_about_the_rest_counts_audiences_where_a_trouble_has_several(receiver: Receiver, kind: str) -> None:
    many_installs(12, key_accepted_at=now())
    lanes = [make_audience(one, slug).lane for one in Install.objects.all() for slug in ("gold", "silver")]
    at = now()
    if kind == "blocked":
        Lane.objects.update(blocked_at=at, block_reason="no such field")
    else:
        Audience.objects.update(hold_since_at=at, hold_until_at=at, hold_reason="HTTP 503", hold_failures=1)
    front.check()
    rest = Trouble.objects.get(kind=kind, install=None)
    assert rest.what.startswith(f"{len(lanes)} audiences ")
    assert rest.what.endswith(". Messages name 10 of these 12 troubles")


@pytest.mark.parametrize(("limit", "items", "minutes_ago", "is_found"), [
    (3, 4, 0, True), (3, 3, 0, False), (0, 9, 0, False), (3, 9, 61, False), (10_000, 9, 0, False),
])  # fmt: skip
def test_many_new_parked_items_are_a_trouble(
    receiver: Receiver, install: Install, limit: int, items: int, minutes_ago: int, is_found: bool
) -> None:
    Install.objects.update(parked_limit_per_hour=limit)
    at = now() - timedelta(minutes=minutes_ago)
    Parked.objects.bulk_create(Parked(install=install, reason="no_identifier", parked_at=at) for _ in range(items))
    assert [alert.kind for alert in front.alerts(front.facts())].count("parked_growth") == is_found
