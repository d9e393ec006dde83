"""Health checks are true: calls can be stored, deliverable work moves, and invalid settings are rejected at start."""

import json
import os
import subprocess
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any
from unittest.mock import Mock

import psycopg
import pytest
import redis
from cryptography.fernet import Fernet
from django.contrib.admin.models import CHANGE, LogEntry
from django.contrib.auth.models import User
from django.contrib.contenttypes.models import ContentType
from django.core.checks import run_checks
from django.core.exceptions import ImproperlyConfigured
from django.db import OperationalError, connection
from django.db.models import Model
from django.test import Client
from django.utils.timezone import now
from pytest_django.fixtures import Settings

from audiences import readiness, start_checks
from audiences.delivery import backoff, holds, provision
from audiences.encryption import UNREADABLE, opened
from audiences.insight import backlogs, failures, heartbeats, stalled_work
from audiences.models import Audience, Delivery, Event, Install, Lane, Membership, Parked, Resend, Trouble
from audiences.sessions import NoAnswerError
from local.processes import Program
from local.stack import Memory, Stack
from tests.delivering import enter, make_audience, make_install, sandbox
from workers import drain, heartbeat_monitor, tasks
from workers.app import app
from workers.heartbeat_monitor import HeartbeatMonitor

pytestmark = pytest.mark.django_db(transaction=True)

ADMIN_PAGES = ("/admin/", "/admin/audiences/install/", "/admin/audiences/token/", "/admin/audiences/parked/")


@pytest.fixture
def wrong_key(settings: Settings, install: Install) -> Iterator[None]:
    """A valid key that isn't the one the data was written with, in a process that has opened nothing yet."""
    readiness._opened.clear()
    settings.FIELD_ENCRYPTION_KEYS = [Fernet.generate_key().decode()]
    yield
    readiness._opened.clear()


def reason() -> str:
    answer = Client().get("/health/ready")
    assert answer.status_code == 503
    return str(answer.json()["reason"])


# --- ready ----------------------------------------------------------------------------------------------------


def test_it_is_ready_when_a_call_can_be_stored(install: Install) -> None:
    assert Client().get("/health/ready").status_code == 200


def test_it_is_not_ready_on_a_read_only_database() -> None:
    name = connection.settings_dict["NAME"]
    with connection.cursor() as cursor:
        cursor.execute(f'ALTER DATABASE "{name}" SET default_transaction_read_only = on')
        connection.close()
    try:
        assert "takes no writes" in reason()
    finally:
        connection.close()
        url = os.environ["DATABASE_URL"].rsplit("/", 1)[0] + "/postgres"
        with psycopg.connect(url, autocommit=True) as admin:
            admin.execute(f'ALTER DATABASE "{name}" RESET default_transaction_read_only')
    assert Client().get("/health/ready").status_code == 200


def test_it_is_not_ready_when_a_stored_secret_does_not_open(wrong_key: None) -> None:
    assert UNREADABLE in reason()


def test_it_is_not_ready_after_migrating_back(install: Install) -> None:
    assert Client().get("/health/ready").status_code == 200
    with connection.cursor() as cursor:
        cursor.execute("UPDATE django_migrations SET name = 'x' || name WHERE app = 'audiences' AND name LIKE '0014%'")
    try:
        assert "audiences.0014" in reason()
    finally:
        with connection.cursor() as cursor:
            cursor.execute("UPDATE django_migrations SET name = substr(name, 2) WHERE name LIKE 'x0014%'")


def test_it_is_not_ready_when_the_schema_lacks_a_column(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readiness, "_columns_fit", False)
    with connection.cursor() as cursor:
        cursor.execute("ALTER TABLE audiences_pace RENAME COLUMN line_at TO next_at")
    try:
        assert "audiences_pace.line_at" in reason()
    finally:
        with connection.cursor() as cursor:
            cursor.execute("ALTER TABLE audiences_pace RENAME COLUMN next_at TO line_at")


@pytest.mark.parametrize("path", ["live", "ready", "workers"])
def test_the_health_urls_accept_any_host(path: str) -> None:
    assert Client().get(f"/health/{path}", HTTP_HOST="10.1.2.3:8000").status_code != 400


# --- workers --------------------------------------------------------------------------------------------------


@pytest.fixture
def waiting(install: Install) -> Audience:
    """An audience with an event that has been ready for two minutes, and a worker that answers."""
    heartbeats.note("worker", worked_seconds_ago=None)
    audience = make_audience(install)
    enter(audience, "kim")
    Audience.objects.update(provisioned_at=now() - timedelta(hours=1))
    with connection.cursor() as cursor:
        cursor.execute("UPDATE audiences_event SET received_at = clock_timestamp() - interval '2 minutes'")
    return audience


def status() -> tuple[int, str]:
    answer = Client().get("/health/workers")
    return answer.status_code, str(answer.json()["status"])


def test_ready_work_without_progress_is_red_despite_heartbeats(waiting: Audience) -> None:
    assert status() == (503, "stuck")
    own = HeartbeatMonitor("w", send=lambda: None, every=10)
    own.heard()
    assert "ready work has not moved" in own.problem()
    Lane.objects.update(delivered_sequence=1)
    own.heard()
    assert (status(), own.problem()) == ((200, "answering"), "")


def test_work_stands_still_since_the_newest_response(waiting: Audience) -> None:
    times = [now() - timedelta(seconds=seconds) for seconds in (100, 90)]
    for at in times:
        delivery_that("delivered", at)
    found = stalled_work.stuck()
    assert found is not None
    assert found.since == times[1]


def test_an_install_that_never_made_or_delivered_anything_can_be_stuck(waiting: Audience) -> None:
    Audience.objects.update(provisioned_at=None)
    assert status() == (503, "stuck")


def test_the_longest_without_progress_is_named(waiting: Audience) -> None:
    """By all that counts as progress: the other install has waited longer, but its audience was made a moment ago."""
    other = make_audience(make_install(name="Other"))
    enter(other, "kim")
    Event.objects.filter(audience=other).update(received_at=now() - timedelta(hours=2))
    Audience.objects.filter(pk=other.pk).update(provisioned_at=now() - timedelta(seconds=1))
    found = stalled_work.stuck()
    assert found is not None
    assert (found.install, stalled_work.all_stuck(None, backlogs.by_install())) == (waiting.install.name, [found])
    Audience.objects.filter(pk=other.pk).update(provisioned_at=now() - timedelta(hours=3))
    both = stalled_work.all_stuck(None, backlogs.by_install())
    assert [one.install for one in both] == ["Other", waiting.install.name]
    assert both[0] == stalled_work.stuck()


def _held(**values: Any) -> dict[str, Any]:
    return {"since_at": now() - timedelta(hours=1), "until_at": now() + timedelta(hours=1), "failures": 9, **values}


HELD = [
    *("off", "in backoff", "backoff just ended", "paused", "blocked", "on hold", "hold just ended", "fresh"),
    *("retired", "after its end", "a request just ended"),
]


@pytest.mark.parametrize("how", HELD)
def test_work_that_is_held_on_purpose_is_not_stuck(waiting: Audience, how: str) -> None:
    lanes, installs, held = Lane.objects.all(), Install.objects.all(), _held(reason="503: busy")
    match how:
        case "off":
            installs.update(enabled=False)
        case "in backoff":
            installs.update(**{f"backoff_{name}": value for name, value in held.items()})
        case "backoff just ended":
            held["until_at"] = now()
            installs.update(**{f"backoff_{name}": value for name, value in held.items()})
        case "paused":
            lanes.update(paused_at=now(), paused_by="boss", pause_reason="x")
        case "blocked":
            lanes.update(blocked_at=now(), block_reason="x")
        case "on hold":
            Audience.objects.update(provisioned_at=None, **{f"hold_{name}": value for name, value in held.items()})
        case "hold just ended":
            held["until_at"] = now()
            Audience.objects.update(provisioned_at=None, **{f"hold_{name}": value for name, value in held.items()})
        case "retired":  # before it was made
            holds.end_log(waiting.pk, 1)
            holds.retire(waiting.pk)
        case "after its end":
            holds.end_log(waiting.pk, 0)
        case "fresh":
            Event.objects.update(received_at=now())
        case "a request just ended":
            delivery_that("delivered")
    assert status() == (200, "answering")
    assert stalled_work.all_stuck(None, backlogs.by_install()) == []


def test_the_backlog_is_that_of_all_lanes(install: Install) -> None:
    """PostgreSQL counts ready, retired and failing audiences in separate rows, which have to be added up."""
    moving, leaving, failing = (make_audience(install, slug) for slug in ("gold", "silver", "bronze"))
    for audience in (moving, leaving, failing):
        enter(audience, "kim")
    holds.end_log(leaving.pk, 0)
    Lane.objects.filter(pk=failing.pk).update(fault_since_at=now(), fault_until_at=now(), fault_reason="KeyError")
    times = [now() - timedelta(hours=hours) for hours in (3, 2, 1)]
    for order, oldest_free_at in (((moving, leaving, failing), times[0]), ((failing, leaving, moving), times[1])):
        for audience, at in zip(order, times, strict=True):
            Event.objects.filter(audience=audience).update(received_at=at)
        found = backlogs.by_install()[install.pk]
        assert found == backlogs.Backlog(3, times[0], 2, oldest_free_at, has_ready=True, ready_at=times[0])


@pytest.mark.parametrize("is_made", [True, False])
def test_a_hold_excuses_only_a_creation_and_until_it_ends(waiting: Audience, is_made: bool) -> None:
    long_ago = now() - timedelta(hours=1)
    held = _held(reason="503: busy") if is_made else _held(until_at=long_ago, reason="503: busy")
    held = {f"hold_{name}": value for name, value in held.items()}
    Audience.objects.update(provisioned_at=long_ago if is_made else None, **held)
    assert status() == (503, "stuck")


def pressed(about: type[Model]) -> None:
    kind = ContentType.objects.get_for_model(about)
    boss, _ = User.objects.get_or_create(username="boss")
    LogEntry.objects.create(user=boss, action_flag=CHANGE, content_type=kind)


@pytest.mark.parametrize("about", [Install, Audience, Parked, Resend])
def test_a_button_about_what_is_sent_was_just_pressed(waiting: Audience, about: type[Model]) -> None:
    pressed(about)
    pressed(Membership)
    assert status() == (200, "answering")


@pytest.mark.parametrize("about", [Membership, Trouble, User])
def test_a_search_or_a_mute_is_no_progress(waiting: Audience, about: type[Model]) -> None:
    """Otherwise an office that looks up customers during an outage would keep it green."""
    pressed(about)
    assert status() == (503, "stuck")


def delivery_that(outcome: str, closed_at: datetime | None = None) -> None:
    Delivery.objects.create(
        install=Install.objects.get(),
        endpoint="/v3/profiles",
        items=1,
        bytes=2,
        worker="w",
        version="0",
        outcome=outcome,
        opened_at=now(),
        closed_at=closed_at or now(),
    )


@pytest.mark.parametrize("outcome", ["unknown", "retry_later"])
def test_a_request_without_a_final_response_is_no_progress(waiting: Audience, outcome: str) -> None:
    delivery_that(outcome)
    assert status() == (503, "stuck")


def test_a_backoff_for_our_own_error_does_not_excuse_stuck_work(waiting: Audience) -> None:
    held = _held(reason=f"{backoff.UNEXPECTED}KeyError")
    Install.objects.update(**{f"backoff_{name}": value for name, value in held.items()})
    assert status() == (503, "stuck")


@pytest.mark.parametrize("fails", ["delivery", "creation"])
@pytest.mark.parametrize(
    ("held", "is_stuck"),
    [
        *((held, True) for held in ("", "our backoff just ended")),
        *((held, False) for held in ("off", "paused", "blocked", "retired", "delivered", "made", "backoff just ended")),
    ],
)
def test_an_audience_that_fails_for_our_own_error_is_red_while_others_progress(
    waiting: Audience, fails: str, held: str, is_stuck: bool
) -> None:
    lanes, since = Lane.objects.all(), now() - timedelta(minutes=2)
    if fails == "delivery":
        lanes.update(fault_since_at=since, fault_until_at=now(), fault_reason="KeyError")
    else:
        ours = _held(since_at=since, reason=f"{provision.UNEXPECTED}KeyError")
        Audience.objects.update(provisioned_at=None, **{f"hold_{name}": value for name, value in ours.items()})
    delivery_that("delivered")
    match held:
        case "off":
            Install.objects.update(enabled=False)
        case "paused":
            lanes.update(paused_at=now(), paused_by="boss", pause_reason="x")
        case "blocked":
            lanes.update(blocked_at=now(), block_reason="x")
        case "retired":
            holds.end_log(waiting.pk, 0)
            holds.retire(waiting.pk)
        case "delivered":
            lanes.update(delivered_sequence=1)
        case "made":
            lanes.update(fault_since_at=None, fault_until_at=None, fault_reason="")
            Audience.objects.update(provisioned_at=now())
        case "backoff just ended" | "our backoff just ended":
            braked = _held(until_at=now(), reason="503" if held == "backoff just ended" else backoff.UNEXPECTED)
            Install.objects.update(**{f"backoff_{name}": value for name, value in braked.items()})
    assert status() == ((503, "stuck") if is_stuck else (200, "answering"))


def test_the_error_that_has_lasted_longest_is_named_for_its_install_alone(waiting: Audience) -> None:
    other = make_install(name="Other")
    audiences = [waiting, make_audience(waiting.install, "silver"), make_audience(other)]
    times = [now() - timedelta(seconds=seconds) for seconds in (100, 90, 10)]
    for audience, at in zip(audiences, times, strict=True):
        enter(audience, "kim")
        Lane.objects.filter(pk=audience.pk).update(fault_since_at=at, fault_until_at=now(), fault_reason=f"at {at}")
    Audience.objects.update(provisioned_at=now() - timedelta(hours=1))
    named = [stalled_work.Stuck(waiting.install.name, times[0], f"at {times[0]}", in_part=True)]
    assert stalled_work.all_stuck(None, {}) == stalled_work.all_stuck(waiting.install_id, {}) == named
    assert stalled_work.all_stuck(None, backlogs.by_install()) == named, "not as an install without an error, too"
    assert stalled_work.all_stuck(other.pk, {}) == []


def test_with_a_wrong_key_workers_are_red(settings: Settings) -> None:
    """The drain may handle the error in any way."""
    with sandbox() as odp:
        audience = make_audience(make_install(odp))
        heartbeats.note("worker", worked_seconds_ago=None)
        enter(audience, "kim")
        with connection.cursor() as cursor:
            cursor.execute("UPDATE audiences_event SET received_at = clock_timestamp() - interval '2 minutes'")
        Audience.objects.update(provisioned_at=now() - timedelta(hours=1))
        settings.FIELD_ENCRYPTION_KEYS = [Fernet.generate_key().decode()]
        with pytest.raises(ImproperlyConfigured):
            drain.drain(audience.install_id, seconds=1)
        assert status() == (503, "stuck")
        assert odp.requests() == []


# --- a key that opens nothing ---------------------------------------------------------------------------------


@pytest.fixture
def boss() -> Client:
    client = Client()
    client.force_login(User.objects.create_superuser("boss", password="a-long-password"))
    return client


def test_every_page_opens_with_a_wrong_key(wrong_key: None, install: Install, boss: Client) -> None:
    token = install.tokens.get()
    own = (f"/admin/audiences/install/{install.pk}/change/", f"/admin/audiences/token/{token.pk}/change/")
    assert {boss.get(path, follow=True).status_code for path in (*ADMIN_PAGES, *own)} == {200}
    assert "stored secret can&#x27;t be decrypted" in boss.get("/admin/").content.decode()
    assert "be decrypted with the present" in boss.get(own[0], follow=True).content.decode()


def test_saving_a_row_keeps_a_secret_that_can_not_be_read(
    wrong_key: None, install: Install, settings: Settings
) -> None:
    read = Install.objects.get(pk=install.pk)
    assert read.odp_api_key == UNREADABLE
    with pytest.raises(ImproperlyConfigured):
        opened(read.odp_api_key)
    read.name = "Shop 2"
    read.full_clean()
    read.save()
    settings.FIELD_ENCRYPTION_KEYS = os.environ["FIELD_ENCRYPTION_KEYS"].split(",")
    assert Install.objects.get(pk=install.pk).odp_api_key == "odp-key"


def test_the_database_check_finds_a_secret_that_does_not_open(install: Install, settings: Settings) -> None:
    assert "audiences.E012" not in {found.id for found in run_checks(databases=["default"])}
    readiness._opened.clear()
    settings.FIELD_ENCRYPTION_KEYS = [Fernet.generate_key().decode()]
    assert "audiences.E012" in {found.id for found in run_checks(databases=["default"])}
    assert "audiences.E012" not in {found.id for found in run_checks()}


# --- start ----------------------------------------------------------------------------------------------------


PROGRAMS = ("web", "worker", "beat")
# The first is found by a system check. With the second, the settings can't be read.
BAD_SETTINGS = [
    ("FIELD_ENCRYPTION_KEYS", "abc", "no Fernet key"),
    ("DATABASE_URL", "mysql://h/db", "must start with postgres"),
]


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize(("name", "value", "words"), BAD_SETTINGS)
def test_each_process_refuses_bad_settings_in_one_sentence(
    tmp_path: Any, program: str, name: str, value: str, words: str
) -> None:
    """Each process and each setting is tried with both log formats."""
    place = PROGRAMS.index(program) + BAD_SETTINGS.index((name, value, words))
    form = "json" if place % 2 else "text"
    stack = Stack(folder=tmp_path, port=0, host="127.0.0.1", memory=Memory(file=tmp_path / "env", values={}))
    programs: dict[str, Program] = {"web": stack.web(), "worker": next(iter(stack.workers())), "beat": stack.beat()}
    chosen = programs[program]
    (tmp_path / "run").mkdir()  # beat's schedule
    ended = subprocess.run(
        chosen.command,
        env={**os.environ, **chosen.env, name: value, "LOG_FORMAT": form},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ended.returncode != 0
    if form == "json":
        # One refusal per process, and web has two.
        refusals = [json.loads(line) for line in ended.stderr.splitlines() if "Not started: " in line]
        assert {line["level"] for line in refusals} == {"critical"}
    assert words in ended.stderr
    assert "Not started: " in ended.stderr


@pytest.mark.parametrize("form", ["text", "json"])
def test_a_refusal_is_one_write_because_processes_share_the_file(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    shared = Mock()
    monkeypatch.setenv("LOG_FORMAT", form)
    monkeypatch.setattr("sys.stderr", shared)
    with pytest.raises(SystemExit):
        start_checks.refuse("no key")
    ((line,),) = [call.args for call in shared.write.call_args_list]
    assert line.endswith("\n")


# --- Now ------------------------------------------------------------------------------------------------------


def test_now_names_a_failing_task_with_its_first_line(boss: Client) -> None:
    failures.note("workers.tasks.roll_up", ValueError('no column "line_at": "kim@example.com"\nDETAIL: kim'))
    failures.note("workers.tasks.roll_up", ValueError("key 'kim@example.com' exists"))
    page = boss.get("/admin/").content.decode()
    assert "The task roll_up fails" in page
    assert "ValueError: key … exists" in page
    assert "2 times" in page
    assert "kim" not in page


def refused() -> OperationalError:
    error = OperationalError("connection refused")
    error.__cause__ = psycopg.OperationalError("connection refused")
    return error


def test_a_restart_of_postgresql_is_no_failing_task_until_it_lasts(monkeypatch: pytest.MonkeyPatch) -> None:
    at = now()
    monkeypatch.setattr(failures, "now", lambda: at)
    failures.note("workers.tasks.drain", refused())
    failures.note("workers.tasks.sweep", refused())
    assert failures.recent() == []
    failures.note("workers.tasks.sweep", ValueError("a bug"))
    assert [failure.task for failure in failures.recent()] == ["sweep"]
    at += timedelta(seconds=failures.BRIEF_SECONDS)
    failures.note("workers.tasks.drain", refused())
    assert [(failure.task, failure.times) for failure in failures.recent()] == [("drain", 2), ("sweep", 2)]


def test_a_statement_without_an_answer_is_a_failing_task_at_once() -> None:
    error = OperationalError("PostgreSQL gave no answer for 60 s")
    error.__cause__ = NoAnswerError("PostgreSQL gave no answer for 60 s")
    failures.note("workers.tasks.prune", error)
    assert [failure.task for failure in failures.recent()] == ["prune"]


@pytest.mark.parametrize(
    ("task", "seconds"),
    [("drain", 300), ("roll_up", 360), ("look", 1_200), ("try_out", 1_500), ("look_at_certificate", 900)],
)
def test_a_failure_is_kept_until_the_task_has_run_again(
    broker: redis.Redis, settings: Settings, task: str, seconds: int
) -> None:
    """Until now a failure of a task that runs every ten minutes was reported as resolved before the next one."""
    settings.LOOK_MINUTES, settings.PROBE_MINUTES = 15, 20
    failures.note(f"workers.tasks.{task}", ValueError("no"))
    assert seconds - 5 <= broker.ttl(failures._key(f"workers.tasks.{task}")) <= seconds


def test_each_task_can_be_named() -> None:
    assert set(failures.TASKS) == {name for name in app.tasks if name.startswith("workers.tasks.")}


@pytest.mark.parametrize(("maxmemory", "words"), [("1", "its memory is full"), ("0", "")])
def test_the_front_page_says_why_redis_rejects_writes(maxmemory: str, words: str) -> None:
    server = redis.Redis.from_url(os.environ["REDIS_URL"])
    server.config_set("maxmemory", maxmemory)
    try:
        assert words in failures.broker_problem()
        assert bool(words) == bool(failures.broker_problem())
    finally:
        server.config_set("maxmemory", "0")


# --- tasks and the heart --------------------------------------------------------------------------------------


def test_a_drain_clears_its_hint_so_that_the_next_one_is_sent_at_once(install: Install) -> None:
    from audiences.wake import _pending, _redis

    _redis().set(_pending(install.pk), 1, px=60_000)
    tasks.drain(install.pk)
    assert not _redis().exists(_pending(install.pk))


def test_heartbeats_from_before_an_outage_of_the_broker_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    moment, ended, broker_is_there = [1_000.0], list[int](), [True]
    monkeypatch.setattr("workers.heartbeat_monitor.time.monotonic", lambda: moment[0])

    def send() -> None:
        if not broker_is_there[0]:
            raise ConnectionError

    own = HeartbeatMonitor("w", send=send, every=10, end=ended.append)
    for _ in range(heartbeat_monitor.SENT_IN_VAIN):
        own.beat()
    broker_is_there[0] = False
    moment[0] += 1_000
    own.beat()
    broker_is_there[0] = True
    for _ in range(heartbeat_monitor.SENT_IN_VAIN):
        own.beat()
    assert ended == []
    own.beat()
    assert ended == [1]


def test_a_heartbeat_of_another_worker_says_nothing_about_this_one(monkeypatch: pytest.MonkeyPatch) -> None:
    own = HeartbeatMonitor("this", send=lambda: None, every=10)
    monkeypatch.setattr(heartbeat_monitor, "_own", own)
    before = own.heard_at
    tasks.heartbeat("other")
    assert own.heard_at == before
    tasks.heartbeat("this")
    assert own.heard_at > before


def test_expired_sessions_are_deleted(boss: Client) -> None:
    from django.contrib.sessions.models import Session

    Session.objects.update(expire_date=now() - timedelta(days=1))
    tasks.clear_sessions()
    assert not Session.objects.exists()
