"""``GET /metrics``: who may read it, that its numbers are right with several processes, and what it costs."""

import ast
import importlib
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import redis
from django.conf import settings as django_settings
from django.db import connection
from django.http import HttpResponse
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils.timezone import now
from prometheus_client.parser import text_string_to_metric_families
from pytest_django.fixtures import Settings

from audiences import redis_client, tallies
from audiences.front import lines, troubles
from audiences.insight import delays, failures, heartbeats, trials
from audiences.models import (
    Audience,
    Audit,
    Delivery,
    Event,
    Install,
    Lane,
    Parked,
    Receipt,
    Run,
    Trial,
    Trouble,
    Worker,
)
from audiences.operations import troubles as stored_troubles
from audiences.receiving import disk_usage
from audiences.tallies import Sums, Tally
from lytics_sync.metrics import collector, states
from sandbox.odp.testing import ThreadedSandbox
from tests import metrics_page
from tests.delivering import drain_all, enter, make_audience, make_install
from tests.messages import body, message
from tests.test_lost_sessions import accept_connections, end_session
from tests.threads import eventually
from tests.web import Web
from workers import tasks

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("broker", "empty_totals")]

TOKEN = "a token for the metrics"
# Every label; each has values of a fixed set, or one per install.
LABELS = {"install", "kind", "name", "code", "outcome", "reason", "severity", "state", "task", "version", "le"}
UNITS = ("_seconds", "_bytes", "_ratio", "_total", "_info")


@pytest.fixture
def empty_totals(broker: redis.Redis) -> None:
    broker.delete(tallies.KEY, delays.MARK)


@pytest.fixture(autouse=True)
def token(settings: Settings) -> None:
    settings.METRICS_TOKEN = TOKEN


def answer(**headers: str) -> Any:
    return Client(headers={"Authorization": f"Bearer {TOKEN}", **headers}).get("/metrics")


def scrape() -> dict[str, dict[frozenset[tuple[str, str]], float]]:
    """Each sample by its name and labels, after this process has sent its sums."""
    assert tallies._sums.sender.send()
    return read(answer())


def read(response: Any) -> dict[str, dict[frozenset[tuple[str, str]], float]]:
    assert response.status_code == 200
    found: dict[str, dict[frozenset[tuple[str, str]], float]] = {}
    for family in text_string_to_metric_families(response.content.decode()):
        for sample in family.samples:
            labels = frozenset(sample.labels.items())
            assert labels not in found.setdefault(sample.name, {}), f"{sample} comes twice"
            found[sample.name][labels] = sample.value
    return found


def value(found: dict[str, dict[frozenset[tuple[str, str]], float]], name: str, **labels: str) -> float | None:
    return found.get(f"lytics_sync_{name}", {}).get(frozenset(labels.items()))


def call(install: Install, *, authorization: str = "") -> int:
    authorization = authorization or install.tokens.get().secret
    path = f"/webhooks/lytics/{install.public_id}"
    return Client(headers={"Authorization": authorization}).post(path, body(message()), "application/json").status_code


# --- Who may read it -----------------------------------------------------------------------------------------


def test_it_is_off_without_a_token(settings: Settings) -> None:
    settings.METRICS_TOKEN = ""
    for headers in ({}, {"Authorization": "Bearer "}, {"Authorization": "Bearer"}):
        assert Client(headers=headers).get("/metrics").status_code == 404


@pytest.mark.parametrize(
    "authorization", ["", TOKEN, f"Basic {TOKEN}", f"Bearer {TOKEN}x", f"Bearer {TOKEN[:-1]}", "Bearer", "Bearer é"]
)
def test_another_token_is_refused(install: Install, authorization: str) -> None:
    refused = answer(Authorization=authorization)
    assert (refused.status_code, refused["WWW-Authenticate"]) == (401, "Bearer")
    assert b"lytics_sync_" not in refused.content


def test_a_login_to_the_admin_does_not_open_it_and_is_not_needed(boss: Client, install: Install) -> None:
    assert boss.get("/metrics").status_code == 401
    assert answer().status_code == 200


def test_it_answers_under_any_host_as_health_checks_do(settings: Settings) -> None:
    settings.ALLOWED_HOSTS = ["sync.example.com"]
    assert answer(Host="10.0.0.7:8000").status_code == 200


def test_it_is_written_as_prometheus_reads_it(install: Install) -> None:
    response = answer()
    assert response["Content-Type"].startswith("text/plain; version=")
    assert response["Cache-Control"] == "no-store"


# --- States --------------------------------------------------------------------------------------------------


def test_the_backlog_and_its_age_are_those_of_each_install(install: Install) -> None:
    other, moving, paused = make_install(name="Other"), make_audience(install), make_audience(install, "silver")
    enter(moving, "kim")
    enter(paused, "kim", "lee")
    Event.objects.filter(audience=moving).update(received_at=now() - timedelta(seconds=50))
    Event.objects.filter(audience=paused).update(received_at=now() - timedelta(seconds=900))
    Lane.objects.filter(audience=paused).update(paused_at=now(), paused_by="kim", pause_reason="why", member_count=7)
    found = scrape()
    assert found["lytics_sync_install_info"][frozenset({("install", other.public_id), ("name", "Other")})] == 1
    assert value(found, "backlog_events", install=install.public_id) == 3
    ratio = value(found, "backlog_high_water_ratio", install=install.public_id)
    assert ratio == 1 / django_settings.BACKLOG_HIGH_WATER, "of the deliverable events"
    assert value(found, "backlog_deliverable_events", install=install.public_id) == 1
    assert value(found, "backlog_events", install=other.public_id) == 0
    oldest = value(found, "oldest_undelivered_seconds", install=install.public_id)
    deliverable = value(found, "oldest_deliverable_seconds", install=install.public_id)
    assert oldest is not None
    assert deliverable is not None
    assert 900 <= oldest < 1_500
    assert 50 <= deliverable < 650
    assert value(found, "oldest_deliverable_seconds", install=other.public_id) == 0
    assert value(found, "audiences_stopped", install=install.public_id, state="paused") == 1
    assert value(found, "audiences", install=install.public_id) == 2
    assert value(found, "events_logged_total", install=install.public_id) == 3
    assert value(found, "events_settled_total", install=install.public_id) == 0
    assert value(found, "members", install=install.public_id) == 7


@pytest.mark.parametrize("stopped", [{"enabled": False}, {"on hold": True}])
def test_no_worker_is_asked_for_by_an_install_that_delivers_nothing(install: Install, stopped: dict[str, bool]) -> None:
    enter(make_audience(install), "kim")
    Event.objects.update(received_at=now() - timedelta(seconds=50))
    values = {
        "backoff_since_at": now(),
        "backoff_until_at": now(),
        "backoff_failures": 1,
        "backoff_reason": "ODP is down",
    }
    Install.objects.update(**(values if "on hold" in stopped else stopped))
    found = scrape()
    assert value(found, "oldest_deliverable_seconds", install=install.public_id) == 0
    assert value(found, "backlog_events", install=install.public_id) == 1
    assert value(found, "install_on_hold", install=install.public_id) == float("on hold" in stopped)
    assert value(found, "install_enabled", install=install.public_id) == float("on hold" in stopped)


def test_stopped_audiences_are_counted_by_state(install: Install) -> None:
    """Each once: blocked and paused ones may have failed or been on hold before."""
    faulty = {"fault_since_at": now(), "fault_until_at": now(), "fault_reason": "ours"}
    held = {"hold_since_at": now(), "hold_until_at": now(), "hold_failures": 1, "hold_reason": "no"}
    for slug in ("blocked", "paused", "new", "failing"):
        audience = make_audience(install, slug)
        if slug != "new":
            Lane.objects.filter(audience=audience).update(**faulty)
        if slug != "failing":
            Audience.objects.filter(pk=audience.pk).update(provisioned_at=None, **held)
    Lane.objects.filter(audience__slug="blocked").update(blocked_at=now(), block_reason="no")
    Lane.objects.filter(audience__slug="paused").update(paused_at=now(), paused_by="kim", pause_reason="why")
    found = scrape()
    counted = {
        state: value(found, "audiences_stopped", install=install.public_id, state=state) for state in states._STOPPED
    }
    assert counted == {"blocked": 1, "paused": 1, "failing": 1, "on_hold": 1}


def test_parked_items_are_counted_by_reason(install: Install) -> None:
    for reason in ("no_identifier", "no_identifier", "unreadable_message"):
        Parked.objects.create(install=install, reason=reason)
    Parked.objects.create(install=install, reason="gone", closed_at=now(), resolution="discarded")
    found = scrape()
    assert found["lytics_sync_parked_items"] == {
        frozenset({("install", install.public_id), ("reason", "no_identifier")}): 2,
        frozenset({("install", install.public_id), ("reason", "unreadable_message")}): 1,
    }


def test_items_of_an_install_that_was_created_during_a_scrape_are_in_the_next_one(install: Install) -> None:
    Parked.objects.create(install=install, reason="no_identifier")
    samples = states.Samples(installs=[])
    states._parked(samples)
    assert samples.found == {}


def test_a_request_under_way_is_counted_until_it_ends(install: Install) -> None:
    values = {"install": install, "endpoint": "/v3/profiles", "opened_at": now(), "items": 1, "bytes": 9}
    Delivery.objects.create(**values)
    Delivery.objects.create(**values, closed_at=now(), outcome="delivered")
    Install.objects.update(max_in_flight=7)
    found = scrape()
    assert value(found, "odp_requests_in_flight", install=install.public_id) == 1
    assert value(found, "odp_requests_in_flight_limit", install=install.public_id) == 7


def test_a_probe_says_whether_odp_showed_the_test_customer(install: Install) -> None:
    assert value(scrape(), "probe_success", install=install.public_id) is None
    good = [{"leg": trials.OUT, "hop": trials.SHOWN, "how": "done", "words": "", "ms": 1}]
    closed_at = now() - timedelta(minutes=1)
    Trial.objects.create(install=install, identifier="x", started_by="schedule", closed_at=closed_at, hops=good)
    found = scrape()
    assert value(found, "probe_success", install=install.public_id) == 1
    shown_at = value(found, "probe_last_success_timestamp_seconds", install=install.public_id)
    assert shown_at == pytest.approx(closed_at.timestamp())
    bad = [{"leg": trials.OUT, "hop": trials.SHOWN, "how": trials.FAILED, "words": "no", "ms": 1}]
    Trial.objects.create(install=install, identifier="x", started_by="schedule", closed_at=now(), hops=bad)
    found = scrape()
    assert value(found, "probe_success", install=install.public_id) == 0
    assert value(found, "probe_last_success_timestamp_seconds", install=install.public_id) == shown_at


def test_audiences_with_a_bad_newest_audit_are_counted(install: Install) -> None:
    def audit(slug: str, **values: Any) -> None:
        Audit.objects.create(
            install=install, audience=make_audience(install, slug), mode="full", by="kim", ended_at=now(), **values
        )

    audit("equal", is_newest=True)
    audit("differs", is_newest=True, differing=3)
    audit("also-differs", is_newest=True, differing=1)
    audit("older", is_newest=False, differing=3)
    audit("failed", is_newest=True, problem="Lytics rejects the token", differing=1, only_in_odp=2)
    audit("both", is_newest=True, differing=1, only_in_odp=2)
    audit("strangers", is_newest=True, only_in_odp=2)
    audit("retired", is_newest=True, differing=1)
    Lane.objects.filter(audience__slug="retired").update(retired_sequence=1)
    found = scrape()
    states = {"differing": 3, "failed": 1, "only_odp": 1}
    assert {state: value(found, "audit_findings", install=install.public_id, state=state) for state in states} == states


def test_open_troubles_are_those_of_the_front_page(install: Install, viewer: Client) -> None:
    other = make_install(name="Other")
    at = now()
    Install.objects.update(key_accepted_at=at)
    for number, audience in enumerate(make_audience(install, slug) for slug in ("gold", "tin")):
        Lane.objects.filter(pk=audience.pk).update(blocked_at=at, block_reason=f"cause {number}")
    Lane.objects.filter(pk=make_audience(other, "gold").pk).update(paused_at=at, paused_by="kim", pause_reason="why")

    def troubles_found() -> dict[tuple[str, ...], float]:
        places = ("install", "kind", "severity", "state")
        rows = scrape().get("lytics_sync_troubles", {})
        return {tuple(dict(labels)[name] for name in places): many for labels, many in rows.items()}

    assert troubles_found() == {}
    troubles.check()
    shown = {(alert.kind, alert.tone) for alert in troubles.alerts(troubles.facts())}
    found = troubles_found()
    assert {(kind, severity == "bad") for _, kind, severity, _ in found} == {
        (kind, tone == "bad") for kind, tone in shown
    }
    assert found[install.public_id, "blocked", "bad", "open"] == 2
    assert found[other.public_id, "paused", "warning", "open"] == 1
    muted = Trouble.objects.filter(kind="blocked")[0]
    assert stored_troubles.mute(muted, hours=1, by="kim", reason="known")
    found = troubles_found()
    assert (
        found[install.public_id, "blocked", "bad", "open"],
        found[install.public_id, "blocked", "bad", "muted"],
    ) == (1, 1)
    Trouble.objects.filter(pk=muted.pk).update(muted_until=now())
    assert troubles_found()[install.public_id, "blocked", "bad", "open"] == 2
    Lane.objects.update(blocked_at=None, block_reason="")
    troubles.check()
    stored_troubles.check([], at=at + timedelta(minutes=5))
    assert [kind for _, kind, _, _ in troubles_found() if kind == "blocked"] == []


def test_kinds_of_troubles_are_a_fixed_list() -> None:
    """They are labels. A kind that depends on a name or a text would make a series of each."""
    kinds: set[str] = set()
    for file in (django_settings.BASE_DIR / "audiences" / "front").glob("*.py"):
        module = importlib.import_module(f"audiences.front.{file.stem}")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Alert":
                first = node.args[0]
                if isinstance(first, ast.Name) and first.id == "kind":  # of a helper, for the rest of a kind
                    continue
                assert isinstance(first, (ast.Constant, ast.Name)), f"{file.stem}: {ast.unparse(first)}"
                kinds.add(str(first.value if isinstance(first, ast.Constant) else getattr(module, first.id)))
    assert kinds >= set(lines.WORDS)
    assert all(re.fullmatch(r"[a-z_]{1,20}", kind) for kind in kinds)


def test_workers_are_counted_by_whether_their_heartbeats_arrive(install: Install) -> None:
    found = scrape()
    assert value(found, "workers", state="answering") == 0
    assert value(found, "worker_last_heartbeat_timestamp_seconds") is None
    heartbeats.note("one", worked_seconds_ago=3)
    heartbeats.note("two", worked_seconds_ago=9_000)
    Worker.objects.filter(name="two").update(beat_at=now() - timedelta(minutes=10))
    found = scrape()
    assert value(found, "workers", state="answering") == 1
    assert value(found, "workers", state="silent") == 1
    assert value(found, "worker_last_heartbeat_timestamp_seconds") == pytest.approx(now().timestamp(), abs=600)
    assert value(found, "worker_last_work_timestamp_seconds") == pytest.approx(now().timestamp(), abs=600)
    Worker.objects.update(beat_at=now() - timedelta(minutes=10))
    found = scrape()
    for name in ("worker_last_heartbeat_timestamp_seconds", "worker_last_work_timestamp_seconds"):
        assert value(found, name) is not None, "of silent workers, too"


def test_the_size_of_the_database_and_its_limit_are_there(install: Install, settings: Settings) -> None:
    settings.DATABASE_HIGH_WATER_BYTES = 7
    found = scrape()
    assert value(found, "database_high_water_bytes") == 7
    assert (value(found, "database_bytes") or 0) > 7


def test_ready_work_that_does_not_move_is_shown(install: Install, settings: Settings) -> None:
    assert value(scrape(), "work_stuck") == 0
    enter(make_audience(install), "kim")
    Event.objects.update(received_at=now() - timedelta(hours=2))
    Audience.objects.update(provisioned_at=now() - timedelta(hours=2))
    assert value(scrape(), "work_stuck") == 1


# --- Totals --------------------------------------------------------------------------------------------------


def test_calls_are_counted_by_install_and_status_code(install: Install) -> None:
    assert value(scrape(), "webhook_requests_total", install=install.public_id, code="200") == 0
    assert [call(install), call(install), call(install, authorization="wrong")] == [200, 200, 401]
    assert value(scrape(), "webhook_body_bytes_total", install=install.public_id) == 2 * len(body(message()))
    Install.objects.update(enabled=False)
    assert call(install) == 503
    found = scrape()
    assert value(found, "webhook_requests_total", install=install.public_id, code="200") == 2
    assert value(found, "webhook_requests_total", install=install.public_id, code="503") == 1
    assert value(found, "webhook_requests_total", install="unknown", code="401") == 1
    assert value(found, "rejected_calls_total", install=install.public_id) == 1
    assert value(found, "webhook_request_duration_seconds_count", install=install.public_id) == 3
    called_at = value(found, "last_call_timestamp_seconds", install=install.public_id)
    assert called_at == pytest.approx(Receipt.objects.latest("pk").received_at.timestamp())


def test_invented_addresses_and_methods_make_no_series(install: Install) -> None:
    series = sum(map(len, scrape().values()))
    for number in range(20):
        Client().post(f"/webhooks/lytics/invented-{number}", b"[]", "application/json")
        Client().post(f"/invented-{number}", b"[]", "application/json")
        Client().generic(f"INVENTED{number}", "/webhooks/lytics/x")
    found = scrape()
    names = (install.public_id, "unknown", "wrong-method")
    assert set(found["lytics_sync_rejected_calls_total"]) == {frozenset({("install", name)}) for name in names}
    assert sum(map(len, found.values())) < series + 25


def test_the_totals_are_those_of_all_processes(install: Install) -> None:
    processes = [Sums(is_automatic=False) for _ in range(3)]
    for number, process in enumerate(processes):
        process.add({tallies.SWEEPS.field(()): number + 1, tallies.ODP_SECONDS.field((install.public_id,), "sum"): 0.5})
        assert process.sender.send()
        assert process.sender.send(), "nothing is sent twice"
    found = scrape()
    assert value(found, "sweeps_total") == 6
    assert value(found, "odp_request_duration_seconds_sum", install=install.public_id) == 1.5


def test_the_buckets_of_a_histogram_are_cumulative(install: Install) -> None:
    for seconds in (0.05, 0.051, 3.0, 100.0):
        tallies.ODP_SECONDS.observe(seconds, install.public_id)
    found = scrape()
    buckets = {
        dict(labels)["le"]: count for labels, count in found["lytics_sync_odp_request_duration_seconds_bucket"].items()
    }
    assert buckets == {
        "0.05": 1,
        "0.1": 2,
        "0.25": 2,
        "0.5": 2,
        "1.0": 2,
        "2.0": 2,
        "4.0": 3,
        "8.0": 3,
        "+Inf": 4,
    }
    assert value(found, "odp_request_duration_seconds_count", install=install.public_id) == 4
    assert value(found, "odp_request_duration_seconds_sum", install=install.public_id) == pytest.approx(103.101)


def test_sums_that_redis_did_not_take_are_kept(
    install: Install, settings: Settings, nobody_there: str, broker: redis.Redis
) -> None:
    there, settings.REDIS_URL = settings.REDIS_URL, nobody_there
    redis_client.client.cache_clear()
    tallies.SWEEPS.add()
    assert not tallies._sums.sender.send()
    tallies.SWEEPS.add()
    settings.REDIS_URL = there
    redis_client.client.cache_clear()
    assert value(scrape(), "sweeps_total") == 2


def test_totals_of_another_version_and_of_a_removed_install_are_left_out(install: Install, broker: redis.Redis) -> None:
    for name in ("lytics_sync_gone_total|x|", f"{tallies.ODP_REQUESTS.name}|one|two|three|"):
        broker.hset(tallies.KEY, name, 1)
    tallies.LEASES_LOST.add("removed")
    found = scrape()
    assert set(found["lytics_sync_leases_lost_total"]) == {frozenset({("install", install.public_id)})}
    assert "lytics_sync_gone_total" not in found


def test_requests_to_odp_are_counted_by_outcome(odp: ThreadedSandbox) -> None:
    install = make_install(odp)
    enter(make_audience(install, provisioned=False), "kim", "lee")
    drain_all(install)
    found = scrape()
    assert value(found, "odp_requests_total", install=install.public_id, outcome="delivered") == 1
    assert value(found, "odp_requests_total", install=install.public_id, outcome="refused") == 0
    assert value(found, "odp_request_duration_seconds_count", install=install.public_id) == 1
    assert value(found, "events_settled_total", install=install.public_id) == 2
    assert value(found, "members", install=install.public_id) == 2


def test_failed_tasks_and_sweeps_are_counted(install: Install) -> None:
    assert value(scrape(), "task_failures_total", task="drain") == 0
    failures.note("workers.tasks.drain", ValueError("no"))
    tasks.sweep()
    found = scrape()
    assert value(found, "task_failures_total", task="drain") == 1
    assert value(found, "sweeps_total") == 1


# --- The delay -----------------------------------------------------------------------------------------------

NOON = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)


def delivered(audience: Audience, count: int, *, first: float, last: float, at: datetime = NOON) -> None:
    """A Run of new events, delivered at a time: seconds after its first and after its last event came."""
    audience.refresh_from_db()
    begin = audience.last_sequence + 1
    enter(audience, *(f"u{begin + number}" for number in range(count)))
    events = Event.objects.filter(audience=audience, sequence__gte=begin)
    events.update(received_at=at - timedelta(seconds=last))
    events.filter(sequence=begin).update(received_at=at - timedelta(seconds=first))
    Run.objects.create(
        audience=audience,
        first_sequence=begin,
        last_sequence=begin + count - 1,
        sent=count,
        folded=0,
        opened_at=at,
        closed_at=at,
        outcome="delivered",
    )


def delay_buckets(install: Install) -> dict[str, float]:
    found = scrape()["lytics_sync_delivery_delay_seconds_bucket"]
    return {dict(labels)["le"]: count for labels, count in found.items() if ("install", install.public_id) in labels}


def test_the_delay_is_counted_by_event_from_call_to_response(install: Install) -> None:
    audience = make_audience(install)
    delivered(audience, 10, first=40, last=0.7)
    delivered(audience, 1, first=3, last=3)
    delays.add_up(at=NOON + timedelta(seconds=90))
    buckets = delay_buckets(install)
    assert buckets["0.5"] == 0
    assert (buckets["1.0"], buckets["2.0"], buckets["5.0"]) == (5, 5, 6)
    assert (buckets["30.0"], buckets["60.0"], buckets["+Inf"]) == (6, 11, 11)
    seconds = value(scrape(), "delivery_delay_seconds_sum", install=install.public_id)
    assert seconds == pytest.approx(5 * 40 + 5 * 0.7 + 3)


def test_each_minute_is_added_once(install: Install) -> None:
    audience = make_audience(install)
    for minute in range(3):
        delivered(audience, 2, first=1, last=1, at=NOON + timedelta(minutes=minute))
        for _ in range(2):
            delays.add_up(at=NOON + timedelta(minutes=minute, seconds=90))
    assert delay_buckets(install)["+Inf"] == 6
    delivered(audience, 2, first=1, last=1, at=NOON + timedelta(minutes=5))
    delays.add_up(at=NOON + timedelta(minutes=30))
    assert delay_buckets(install)["+Inf"] == 8


def test_two_workers_that_add_the_same_minute_add_it_once(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    delivered(make_audience(install), 2, first=1, last=1)
    parts, at = delays._parts, NOON + timedelta(seconds=90)

    def overtaken(start: datetime, end: datetime) -> dict[str, float]:
        monkeypatch.setattr(delays, "_parts", parts)
        delays.add_up(at=at)
        return parts(start, end)

    monkeypatch.setattr(delays, "_parts", overtaken)
    delays.add_up(at=at)
    assert delay_buckets(install)["+Inf"] == 2


def test_runs_that_are_left_out_are_stood_for_by_others(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    audience = make_audience(install)
    for _ in range(20):
        delivered(audience, 1, first=1, last=1)
    monkeypatch.setattr(delays, "SAMPLED_RUNS", 6)
    delays.add_up(at=NOON + timedelta(seconds=90))
    assert delay_buckets(install)["+Inf"] == pytest.approx(20)


def test_an_event_that_the_log_has_no_longer_is_left_out(install: Install) -> None:
    audience = make_audience(install)
    delivered(audience, 2, first=1, last=1)
    Event.objects.filter(audience=audience, sequence=1).delete()
    delays.add_up(at=NOON + timedelta(seconds=90))
    assert delay_buckets(install)["+Inf"] == 1


# --- Servers that don't respond ------------------------------------------------------------------------------


def test_without_redis_the_states_are_there(install: Install, settings: Settings, nobody_there: str) -> None:
    settings.REDIS_URL = nobody_there
    redis_client.client.cache_clear()
    found = read(answer())
    assert (value(found, "redis_up"), value(found, "database_up")) == (0, 1)
    assert value(found, "backlog_events", install=install.public_id) == 0
    assert "lytics_sync_sweeps_total" not in found


@pytest.mark.django_db(transaction=True)
def test_without_postgresql_the_totals_are_there() -> None:
    tallies.SWEEPS.add()
    accept_connections(False)
    end_session()
    try:
        found = scrape()
    finally:
        accept_connections(True)
    assert (value(found, "redis_up"), value(found, "database_up")) == (1, 0)
    assert value(found, "sweeps_total") == 1
    assert "lytics_sync_backlog_events" not in found
    assert value(scrape(), "database_up") == 1


def test_states_that_take_too_long_are_left_out_as_a_whole(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(states, "SECONDS", -1.0)
    found = scrape()
    assert value(found, "database_up") == 0
    assert "lytics_sync_install_enabled" not in found


class Served:
    """A real web server with two processes."""

    def __init__(self, folder: Path) -> None:
        self.web = Web(folder, METRICS_TOKEN=TOKEN)

    def scrape(self) -> dict[str, dict[frozenset[tuple[str, str]], float]]:
        """On a new connection, which either process may accept; within the time that Prometheus waits."""
        line = self.web.http(timeout=10)
        line.request("GET", "/metrics", headers={"Authorization": f"Bearer {TOKEN}"})
        response = line.getresponse()
        content = response.read()
        line.close()
        return read(HttpResponse(content, status=response.status))

    def call(self, install: Install, number: int) -> int:
        headers = {"Authorization": install.tokens.get().secret}
        who = body(message(who=f"customer-{number}"))
        return self.web.call("POST", f"/webhooks/lytics/{install.public_id}", who, **headers).status


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    started = Served(tmp_path)
    yield started
    started.web.stop()


@pytest.mark.django_db(transaction=True)
def test_every_web_process_gives_the_numbers_of_all(install: Install, served: Served) -> None:
    assert [served.call(install, number) for number in range(40)] == [200] * 40

    def scrapes() -> list[tuple[float | None, float | None]]:
        names = ("webhook_requests_total", "events_logged_total")
        labels: list[dict[str, str]] = [{"install": install.public_id, "code": "200"}, {"install": install.public_id}]
        found = [served.scrape() for _ in range(8)]
        return [(value(one, names[0], **labels[0]), value(one, names[1], **labels[1])) for one in found]

    eventually(lambda: scrapes() == [(40, 40)] * 8)


@pytest.mark.django_db(transaction=True)
def test_a_frozen_database_ends_a_scrape_before_prometheus_gives_up(install: Install, served: Served) -> None:
    assert value(served.scrape(), "database_up") == 1
    with served.web.database.frozen():
        found = served.scrape()
        assert (value(found, "database_up"), value(found, "redis_up")) == (0, 1)
        assert "lytics_sync_backlog_events" not in found
    eventually(lambda: value(served.scrape(), "database_up") == 1)


# --- What it costs -------------------------------------------------------------------------------------------


def test_more_installs_and_audiences_take_no_more_queries(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk_usage, "FRESH_SECONDS", 0.0)

    def queries() -> int:
        with CaptureQueriesContext(connection) as found:
            assert answer().status_code == 200
        return len(found)

    enter(make_audience(install), "kim")
    queries()
    before = queries()
    for number in range(5):
        other = make_install(name=f"Other {number}")
        Parked.objects.create(install=other, reason="no_identifier")
        Trial.objects.create(install=other, identifier="x", started_by="schedule", closed_at=now())
        for slug in ("gold", "silver"):
            enter(make_audience(other, slug), "kim")
    assert queries() == before <= 25


# --- Names, labels, documents --------------------------------------------------------------------------------


def test_names_follow_the_convention() -> None:
    names = [metric.name for metric in collector.ALL]
    assert len(set(names)) == len(names)
    for metric in collector.ALL:
        is_counter = not metric.bounds if isinstance(metric, Tally) else metric.kind == "counter"
        assert re.fullmatch(r"lytics_sync_[a-z_]+", metric.name)
        assert metric.name.endswith("_total") == is_counter, metric.name
        assert not re.search(r"_(ms|millis|minutes|kb|mb|count|percent)(_|$)", metric.name), metric.name
        assert re.fullmatch(r"[A-Z“1].*\.", metric.help), metric.name
        assert "duration" not in metric.name or metric.name.endswith("_seconds")


def test_labels_are_of_a_fixed_set_and_name_no_audience_and_no_customer(install: Install) -> None:
    enter(make_audience(install, "secret_slug"), "secret-customer")
    call(install)
    tasks.sweep()
    text = answer().content.decode()
    assert {label for family in read(answer()).values() for labels in family for label, _ in labels} <= LABELS
    assert {label for metric in collector.ALL for label in metric.labels} <= LABELS
    for word in ("secret_slug", "secret-customer", "gold_club", "kim", install.odp_api_key):
        assert word not in text


def test_the_page_of_metrics_is_current() -> None:
    """Run ``make metrics`` when this fails."""
    assert metrics_page.PAGE.read_text(encoding="utf-8") == metrics_page.page()
    assert "`lytics_sync_build_info`" in metrics_page.page()
