"""The doctor's checks of the Lytics job and its audiences, against the sandbox Lytics API over real HTTP."""

import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from django.utils.timezone import now
from pytest_django.fixtures import Settings

from audiences import lytics_account
from audiences.models import Audience, Install, Receipt, Token
from audiences.operations import doctor, installs, retiring
from audiences.operations.connect import connect
from audiences.operations.doctor.lytics_audiences import shortest_window
from audiences.operations.lytics_job import authorization_label, job_name
from audiences.receiving import ingest, tokens
from lytics.api.webhook_settings import LABELS, DifferentSetting, Harm, WebhookSettings
from sandbox.lytics.account import Account
from sandbox.lytics.api.server import LyticsServer
from tests.delivering import make_audience
from tests.lytics_sandbox import TOKEN, serving
from tests.messages import body, message, transition
from tests.test_doctor import lines, states, the

pytestmark = pytest.mark.django_db

GOLD = "segment-gold"
GOOD = {
    "segment_ids": [GOLD],
    "withbackfill": True,
    "batch_requests": True,
    "batch_size": 300,
    "batch_flush_duration": 3,
    "worker_count": 20,
    "user_fields": ["_id", "segment_events"],
}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[LyticsServer]:
    account = Account(tmp_path / "lytics.sqlite3")
    account.write("INSERT INTO audience (segment_id, slug) VALUES (?, ?)", GOLD, "gold")
    with serving(account) as running:
        yield running


@pytest.fixture
def shop(install: Install, server: LyticsServer, settings: Settings) -> Install:
    settings.LYTICS_API_URL = server.url
    settings.PUBLIC_URL = "https://sync.example.com"
    lytics_account.set_token(install, TOKEN)
    make_audience(install)
    return install


Job = Callable[..., str]


@pytest.fixture
def job(server: LyticsServer, shop: Install) -> Job:
    """Make a job as it should be, apart from what a test changes; or change it."""
    account = server.api.account

    def make(job_id: str = "job", **changes: Any) -> str:
        header = f"Authorization: Bearer {Token.objects.get().secret}"
        auth = {"id": "auth", "type": "header_param_auth", "webhook_request_headers": header}
        account.put("auth", auth, made_at=0)
        made: dict[str, Any] = {
            "id": job_id,
            "name": f"Sync {job_id}",
            "workflow": "webhook_triggers",
            "status": "running",
        }
        made |= {"auth_ids": ["auth"], "created": datetime.now(UTC).isoformat()}
        own = {name: changes.pop(name) for name in ("status", "auth_ids", "workflow", "name") if name in changes}
        made |= own | {"config": {**GOOD, "webhook_url": installs.webhook_url(shop), **changes}}
        account.put("job", made, made_at=0)
        return job_id

    return make


def tell_audience(server: LyticsServer, **fields: Any) -> None:
    """What the API says about the audience from now on."""
    told = {"id": GOLD, "slug_name": "gold", "name": "Gold", "table": "user", "kind": "segment", "size": 1, **fields}
    server.faults.clear()
    server.faults.add({"when": {"path": "/v2/segment"}, "then": {"status": 200, "body": {"data": [told]}}})


def add_member(server: LyticsServer, fields: dict[str, Any], *, who: str = "p1", segment_id: str = GOLD) -> None:
    account = server.api.account
    account.write("INSERT OR REPLACE INTO profile VALUES (?, ?)", who, json.dumps(fields))
    account.write("INSERT INTO membership VALUES (?, ?, 0)", segment_id, who)


# --- calls ---------------------------------------------------------------------------------------------------


def test_lytics_calls(shop: Install) -> None:
    assert states(shop, "lytics_calls") == ["bad"]
    ingest.receive(shop, body(message()))
    assert states(shop, "lytics_calls") == ["good"]
    Receipt.objects.update(received_at=now() - timedelta(hours=30))
    line = the(shop, "lytics_calls")
    assert line.state == "warning"
    assert line.age_seconds == pytest.approx(30 * 3_600, abs=60)
    ingest.receive(shop, body(message()))
    assert states(shop, "lytics_calls") == ["good"]


def test_lytics_identifier(shop: Install) -> None:
    assert states(shop, "lytics_identifier") == ["unknown"]
    ingest.receive(shop, body(message()))
    assert states(shop, "lytics_identifier") == ["good"]
    Receipt.objects.all().delete()
    Install.objects.update(identifier_field="user_id")
    shop.refresh_from_db()
    ingest.receive(shop, body(message()))
    line = the(shop, "lytics_identifier")
    assert (line.state, "Export Fields" in line.cure) == ("bad", True)


# --- the job -------------------------------------------------------------------------------------------------


def test_a_job_as_it_should_be_is_good_in_every_line(shop: Install, job: Job) -> None:
    job()
    ingest.receive(shop, body(message(transition(segment=GOLD, slug="gold"))))
    Token.objects.update(last_used_at=now())
    found = [line for line in doctor.examine(doctor.Case(shop)) if line.group == "Lytics"]
    assert [(line.check, line.evidence) for line in found if line.state != "good"] == []
    assert len(found) > 12


def test_a_job_is_examined_with_few_requests(shop: Install, job: Job, server: LyticsServer) -> None:
    """Each list is read once, and the log of each job."""
    job()
    asked = server.faults.add({"when": {"path": "/", "after": 10_000}, "then": {"status": 500}})
    doctor.examine(doctor.Case(shop))
    assert asked.met == 5


@pytest.mark.parametrize(
    ("status", "state"),
    [
        ("running", "good"),
        ("sleeping", "warning"),
        ("fault-2", "warning"),
        ("fault-3", "bad"),
        ("paused", "bad"),
        ("failed", "bad"),
        ("deleted", "bad"),
        ("", "unknown"),
    ],
)
def test_lytics_state(shop: Install, job: Job, status: str, state: str) -> None:
    assert states(shop, "lytics_state") == ["bad"], "there is no job"
    job(status=status)
    assert states(shop, "lytics_state") == [state]


def test_lytics_state_names_a_job_that_calls_this_server_at_another_path(shop: Install, job: Job) -> None:
    job(webhook_url="https://sync.example.com/webhooks/lytics/of-another")
    line = the(shop, "lytics_state")
    assert (line.state, "Sync job calls this server at another path" in line.evidence) == ("bad", True)
    job(name=job_name(shop), webhook_url="https://elsewhere.example.com/")
    assert "has this install's name, and another URL" in the(shop, "lytics_state").evidence


def test_a_completed_job_is_gone(shop: Install, job: Job) -> None:
    job(status="completed")
    line = the(shop, "lytics_state")
    assert (line.state, line.evidence, "Make the job again" in line.cure) == (
        "bad",
        "The job Sync job is completed.",
        True,
    )


def test_a_rejected_api_token_is_named_and_other_lines_stay(shop: Install, job: Job) -> None:
    job()
    lytics_account.set_token(shop, "expired")
    line = the(shop, "lytics_state")
    assert (line.state, "401" in line.evidence, "Press Lytics API token" in line.cure) == ("unknown", True, True)
    assert states(shop, "database") == ["good"]


def test_lytics_url(shop: Install, job: Job, settings: Settings) -> None:
    job()
    assert states(shop, "lytics_url") == ["good"]
    url = installs.webhook_url(shop).replace("sync.example.com", "old.example.com")
    job(webhook_url=f"{url}?key=secret")
    line = the(shop, "lytics_url")
    assert (line.state, "old.example.com" in line.evidence) == ("warning", True)
    assert "secret" not in line.evidence
    job(webhook_url=installs.webhook_url(shop).replace("sync.example.com", "Sync.Example.com:443"))
    assert states(shop, "lytics_url") == ["good"]


def test_lytics_header(shop: Install, job: Job, server: LyticsServer) -> None:
    job()
    assert states(shop, "lytics_header") == ["unknown"], "Lytics hides the header, and nothing was called"
    Token.objects.update(last_used_at=now() - timedelta(minutes=3))
    older = tokens.create(shop, name="older")
    Token.objects.filter(pk=older.pk).update(last_used_at=now() - timedelta(days=2))
    line = the(shop, "lytics_header")
    assert (line.state, round(line.age_seconds or 0, -2)) == ("good", 200)
    server.api.switches.change("auth_secrets", "shown")
    assert "sends a live token" in the(shop, "lytics_header").evidence
    other = {"id": "auth", "type": "header_param_auth", "webhook_request_headers": "Authorization: another"}
    server.api.account.put("auth", other, made_at=0)
    line = the(shop, "lytics_header")
    assert (line.state, "another" in line.evidence) == ("bad", False)
    server.api.account.put("auth", {"id": "auth", "type": "oauth2"}, made_at=0)
    assert states(shop, "lytics_header") == ["warning"]
    token = shop.tokens.exclude(pk=older.pk).get()
    label = authorization_label(shop, token)
    server.api.account.put("auth", {"id": "auth", "type": "header_param_auth", "label": label}, made_at=0)
    assert states(shop, "lytics_header") == ["good"]
    ended = label.replace(token.digest[:8], "0" * 8)
    server.api.account.put("auth", {"id": "auth", "type": "header_param_auth", "label": ended}, made_at=0)
    assert "a token that has ended" in the(shop, "lytics_header").evidence
    older.delete()
    for auth_ids in (["gone"], []):
        job(auth_ids=auth_ids)
        assert states(shop, "lytics_header") == ["bad"]
    Token.objects.update(revoked_at=now())
    assert "no live token" in the(shop, "lytics_header").evidence


CHANGES: dict[str, list[tuple[str, dict[str, Any]]]] = {
    "lytics_method": [("good", {"http_method": "put"}), ("bad", {"http_method": "GET"})],
    "lytics_triggers": [
        ("bad", {"template_id": "abc"}),
        ("bad", {"audience_events": "enters_only"}),
        ("bad", {"audience_events": "exits_only"}),
        ("warning", {"withbackfill": False}),
    ],
    "lytics_batches": [
        ("warning", {"batch_requests": False}),
        ("warning", {"batch_size": 1}),
        ("warning", {"batch_flush_duration": 300}),
        ("warning", {"batch_size": 10, "worker_count": 5}),
    ],
    "lytics_fields": [
        ("warning", {"user_fields": []}),
        ("bad", {"user_fields": ["email", "segment_events"]}),
        ("warning", {"user_fields": ["_id"]}),
    ],
    "lytics_limits": [
        ("bad", {"user_limit": 1000, "user_limit_frequency": "daily"}),
        ("warning", {"quiet_time_of_day": "22:00", "quiet_period": 8}),
        ("bad", {"quiet_time_of_day": "22:00", "drop_events_during_quiet_window": True}),
        ("good", {"drop_events_during_quiet_window": True}),
    ],
    "lytics_retries": [
        ("good", {"do_not_retry": [400, 404]}),
        ("bad", {"do_not_retry": [400, 401]}),
        ("bad", {"do_not_retry": "400, 503"}),
    ],
}


def assert_settings(shop: Install, job: Job, name: str) -> None:
    job()
    assert states(shop, name) == ["good"]
    for state, change in CHANGES[name]:
        job(**change)
        line = the(shop, name)
        assert (line.state, bool(line.cure)) == (state, state != "good"), change


def test_lytics_method(shop: Install, job: Job) -> None:
    assert_settings(shop, job, "lytics_method")


def test_lytics_triggers(shop: Install, job: Job) -> None:
    assert_settings(shop, job, "lytics_triggers")


def test_lytics_batches(shop: Install, job: Job) -> None:
    assert_settings(shop, job, "lytics_batches")


def test_lytics_fields(shop: Install, job: Job) -> None:
    assert_settings(shop, job, "lytics_fields")
    job(user_fields=["_id"])
    ingest.receive(shop, body(message()))
    assert states(shop, "lytics_fields") == ["good"], "messages come with segment_events all the same"
    Install.objects.update(identifier_field="_uids", forget_missing_identifiers=True)
    job(user_fields=["_uids"], field_changes=["_uids"])
    assert "Lytics ID (_id)" in the(shop, "lytics_fields").cure
    job(user_fields=["_uids", "_id", "segment_events"])
    assert "Fields to Trigger" in the(shop, "lytics_fields").cure


@pytest.mark.parametrize(("field", "value"), [("_id", "kim"), ("email", "kim@example.com"), ("_uids", ["kim", "k"])])
def test_a_job_that_connect_made_is_good_in_every_line_about_its_settings(
    shop: Install, server: LyticsServer, field: str, value: str | list[str]
) -> None:
    Install.objects.update(identifier_field=field)
    shop.refresh_from_db()
    add_member(server, {field: value})
    connect(shop, add=["gold"], start=True)
    found = doctor.examine(doctor.Case(shop), [doctor.CHECKS[name] for name in doctor.lytics_job.SETTINGS])
    assert [(line.check, line.evidence) for line in found if line.state != "good"] == []
    assert len(found) == len(doctor.lytics_job.SETTINGS)


def test_each_setting_that_connect_compares_is_in_one_line() -> None:
    """Lines of their own: the URL, and whether the audiences exist."""
    compared = [key for keys in doctor.lytics_job.SETTINGS.values() for key in keys]
    assert sorted(compared) == sorted(set(LABELS) - {"webhook_url"})


@pytest.mark.parametrize(
    ("harm", "state"), [(Harm.NONE, "good"), (Harm.RISK, "warning"), (Harm.LOSS, "bad"), (Harm.SILENCE, "bad")]
)
def test_a_setting_that_differs_is_as_bad_as_its_harm(
    shop: Install, job: Job, harm: Harm, state: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    job()
    found = DifferentSetting("HTTPMethod", "http_method", "POST", "PUT", "This is why.", harm)
    monkeypatch.setattr(WebhookSettings, "differences", lambda wanted, config: [found])
    line = the(shop, "lytics_method")
    assert (line.state, "HTTPMethod of Sync job is PUT instead of POST." in line.evidence) == (state, True)


def test_the_most_harmful_setting_decides_and_the_cure_names_no_harmless_one(
    shop: Install, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    job()
    harms = {"A": Harm.NONE, "B": Harm.LOSS, "C": Harm.RISK}
    found = [DifferentSetting(label, "http_method", "POST", "PUT", "", harm) for label, harm in harms.items()]
    monkeypatch.setattr(WebhookSettings, "differences", lambda wanted, config: found)
    line = the(shop, "lytics_method")
    assert (line.state, "set B to POST, and C to POST." in line.cure) == ("bad", True)


def test_whether_the_field_is_a_list_stays_open_without_members(shop: Install, job: Job, server: LyticsServer) -> None:
    Install.objects.update(identifier_field="email")
    job(user_fields=["email", "segment_events"])
    assert [line.state for line in lines(shop, "lytics_fields")] == ["good", "unknown"]
    assert "No audience has members yet" in lines(shop, "lytics_fields")[1].evidence
    job("second", user_fields=["email", "segment_events"], field_changes=["email"])
    assert "unknown" in states(shop, "lytics_fields"), "one of two jobs is not triggered by the field"
    job("second", status="deleted")
    add_member(server, {"email": ["kim@example.com", "k@example.com"]})
    server.faults.add({"when": {"path": f"/api/segment/{GOLD}/scan", "times": 1}, "then": {"status": 403}})
    assert "Members could not be read: 403" in lines(shop, "lytics_fields")[1].evidence
    line = the(shop, "lytics_fields")
    assert (line.state, "set Fields to Trigger to email" in line.cure) == ("bad", True)


def test_one_list_among_the_members_of_the_largest_audience_makes_the_field_a_list(
    shop: Install, job: Job, server: LyticsServer
) -> None:
    Install.objects.update(identifier_field="email")
    job(user_fields=["email", "segment_events"])
    server.api.account.write("INSERT INTO audience (segment_id, slug) VALUES ('segment-silver', 'silver')")
    add_member(server, {"email": ["kim@example.com", "k@example.com"]})
    for segment_id in (GOLD, "segment-silver"):
        add_member(server, {"email": "lee@example.com"}, who="p2", segment_id=segment_id)
    assert "set Fields to Trigger to email" in the(shop, "lytics_fields").cure


def test_lytics_limits(shop: Install, job: Job) -> None:
    assert_settings(shop, job, "lytics_limits")


def test_lytics_retries(shop: Install, job: Job) -> None:
    assert_settings(shop, job, "lytics_retries")


def test_lytics_omitted(shop: Install, job: Job, server: LyticsServer) -> None:
    job()
    assert states(shop, "lytics_omitted") == ["good"]

    def log(omitted: int, at: datetime) -> None:
        entry = {"job_id": "job", "timestamp": at.isoformat(), "context": {"added": 5, "omitted": omitted}}
        server.api.account.log("job", entry)

    log(0, now())
    assert states(shop, "lytics_omitted") == ["good"]
    log(300, now() - timedelta(days=9))
    assert states(shop, "lytics_omitted") == ["warning"]
    log(7, now() - timedelta(hours=1))
    line = the(shop, "lytics_omitted")
    assert (line.state, "307 omitted" in line.evidence) == ("bad", True)
    assert line.age_seconds == pytest.approx(3_600, abs=60)


def test_each_of_two_jobs_has_its_line(shop: Install, job: Job) -> None:
    job()
    job("second", http_method="GET", segment_ids=[])
    assert {(line.about, line.state) for line in lines(shop, "lytics_method")} == {
        ("Sync job", "good"),
        ("Sync second", "bad"),
    }


# --- its audiences -------------------------------------------------------------------------------------------


def test_lytics_audiences(shop: Install, job: Job, server: LyticsServer) -> None:
    job()
    assert states(shop, "lytics_audiences") == ["good"]
    tell_audience(server, invalid=True, invalid_reason="unknown field")
    line = the(shop, "lytics_audiences")
    assert (line.state, "gold invalid (unknown field)" in line.evidence) == ("bad", True)
    job(segment_ids=[GOLD, "gone"])
    line = lines(shop, "lytics_audiences")[0]
    assert (line.state, line.evidence) == ("warning", "Lytics doesn't list 1 audiences of the job: gone."), (
        "it is there"
    )
    server.faults.clear()
    assert "do not exist: gone" in the(shop, "lytics_audiences").evidence


def make_left(shop: Install, slug: str = "silver") -> Audience:
    """An audience of some days ago, which no job sends."""
    made = make_audience(shop, slug)
    Audience.objects.filter(pk=made.pk).update(created_at=now() - timedelta(days=2))
    return made


def test_lytics_left(shop: Install, job: Job, server: LyticsServer) -> None:
    job()
    assert states(shop, "lytics_left") == ["good"]
    make_left(shop)
    server.api.account.write("INSERT INTO audience (segment_id, slug) VALUES ('segment-silver', 'silver')")
    line = the(shop, "lytics_left")
    assert (line.state, ": silver." in line.evidence) == ("warning", True)
    assert "Choose audiences, or press Retire" in line.cure
    make_left(shop, "bronze")
    line = the(shop, "lytics_left")
    assert "bronze (deleted in Lytics)" in line.evidence
    assert "Choose audiences, or press Retire" in line.cure


def test_lytics_left_names_an_audience_that_lytics_deleted(shop: Install, job: Job) -> None:
    job()
    make_left(shop)
    line = the(shop, "lytics_left")
    assert (line.state, "silver (deleted in Lytics)" in line.evidence) == ("warning", True)
    assert line.cure.startswith("Press Retire")


def test_lytics_left_names_five_audiences_and_the_cure_is_for_all(shop: Install, job: Job) -> None:
    job()
    for slug in range(6):
        make_left(shop, f"left {slug}")
    line = the(shop, "lytics_left")
    assert "No job sends 6 audiences any more: " in line.evidence
    assert " and 1 more. " in line.evidence
    assert "Choose audiences, or press Retire" in line.cure, "whether Lytics deleted the sixth was not asked"


def test_an_audience_known_by_its_slug_alone_is_not_called_deleted(shop: Install, job: Job) -> None:
    job()
    Audience.objects.filter(pk=make_left(shop).pk).update(segment_id="slug:silver")
    assert ": silver. " in the(shop, "lytics_left").evidence


def test_an_audience_that_was_just_made_has_not_left(shop: Install, job: Job) -> None:
    """Its first call may have come after the jobs were read."""
    job()
    make_audience(shop, "silver")
    assert states(shop, "lytics_left") == ["good"]


def test_a_retired_audience_has_not_left(shop: Install, job: Job) -> None:
    job()
    silver = make_left(shop)
    assert retiring.retire(silver, by="kim", reason="no longer used")
    assert states(shop, "lytics_left") == ["good"]


def test_an_audience_that_calls_name_by_its_slug_is_found_in_the_job(shop: Install, job: Job) -> None:
    job()
    gold = Audience.objects.get(slug="gold")
    Audience.objects.filter(pk=gold.pk).update(segment_id="slug:gold", created_at=now() - timedelta(days=2))
    assert states(shop, "lytics_left") == ["good"]


@pytest.mark.parametrize("unreadable", [{"name": "without an id"}, {"id": "other", "workflow": "webhook_triggers"}])
def test_a_partial_list_of_jobs_is_no_evidence_that_an_audience_left(
    shop: Install, job: Job, server: LyticsServer, unreadable: dict[str, Any]
) -> None:
    job_id = job()
    make_left(shop)
    listed = [server.api.account.thing("job", job_id), unreadable]
    server.faults.add({"when": {"path": "/v2/job"}, "then": {"status": 200, "body": {"data": listed}}})
    line = the(shop, "lytics_left")
    assert (line.state, "can't be read" in line.evidence) == ("unknown", True)


@pytest.mark.parametrize("status", [401, 429, 500])
def test_a_failed_response_about_an_audience_is_no_evidence_that_it_was_deleted(
    shop: Install, job: Job, server: LyticsServer, status: int
) -> None:
    job()
    make_left(shop)
    server.faults.add({"when": {"path": "/v2/segment/segment-silver"}, "then": {"status": status}})
    line = the(shop, "lytics_left")
    assert (line.state, "deleted" in line.evidence) == ("unknown", False)


def test_lytics_changed(shop: Install, job: Job, server: LyticsServer) -> None:
    job()
    tell_audience(server, updated=(now() - timedelta(days=1)).isoformat())
    assert states(shop, "lytics_changed") == ["good"]
    tell_audience(server, updated=(now() + timedelta(minutes=1)).isoformat())
    line = the(shop, "lytics_changed")
    assert (line.state, ": gold." in line.evidence) == ("warning", True)


def test_lytics_windows(shop: Install, job: Job, server: LyticsServer) -> None:
    job()
    tell_audience(server, segment_ql='FILTER last_active > "now-30m" FROM user')
    assert states(shop, "lytics_windows") == ["good"]
    tell_audience(server, segment_ql='FILTER AND (last_active > "now-7d", clicked > "now-15m") FROM user')
    line = the(shop, "lytics_windows")
    assert (line.state, ": gold." in line.evidence) == ("warning", True)


@pytest.mark.parametrize(
    ("definition", "minutes"),
    [
        ("FILTER * FROM user", float("inf")),
        ('x > "now-90s"', 1.5),
        ('x > "now - 29m"', 29),
        ('x > "now+2h"', 120),
        ('x > "now-3M" AND y > "now-1y"', float("inf")),
        ('x > "now-0m"', float("inf")),
    ],
)
def test_windows_are_read_from_filterql(definition: str, minutes: float) -> None:
    assert shortest_window(definition) == minutes


def test_lytics_other_writers(shop: Install, job: Job) -> None:
    job()
    assert states(shop, "lytics_other_writers") == ["good"]
    job("native", workflow="optimizely_odp_export", segment_ids=[GOLD])
    line = the(shop, "lytics_other_writers")
    assert (line.state, line.about) == ("bad", "Sync native")
    Install.objects.update(mechanism="list")
    assert states(shop, "lytics_other_writers") == ["warning"], "a list has another name than the field"
    Install.objects.update(mechanism="attribute")
    job("native", workflow="optimizely_odp_export", segment_ids=["other"])
    assert states(shop, "lytics_other_writers") == ["warning"]
    job("native", workflow="optimizely_odp_export", status="fault-1")
    assert states(shop, "lytics_other_writers") == ["bad"], "Lytics retries after a fault"
    job("native", workflow="optimizely_odp_export", status="paused")
    assert states(shop, "lytics_other_writers") == ["good"]
    job("mail", workflow="mailchimp_export", name="Modpod emails")
    assert states(shop, "lytics_other_writers") == ["good"]
    hosted = {"webhook_url": "https://function.zaius.app/lytics/sync/1-2-3"}
    job("hosted", status="paused", **hosted)
    assert states(shop, "lytics_other_writers") == ["good"]
    job("hosted", segment_ids=["other"], **hosted)
    assert states(shop, "lytics_other_writers") == ["warning"]
    job("hosted", **hosted)
    line = the(shop, "lytics_other_writers")
    assert (line.state, "1 of them are ours" in line.evidence) == ("bad", True)
    job("hosted", status="paused")
    assert states(shop, "lytics_other_writers") == ["good"]
    job("twice")
    line = the(shop, "lytics_other_writers")
    assert (line.state, line.about) == ("warning", "Sync twice")
    job(status="paused")
    assert states(shop, "lytics_other_writers") == ["good"]
