"""The sandbox Lytics API, over real HTTP, through the product's own client: what it says is what was sent."""

import base64
import json
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lytics.api.audiences import audience, audiences
from lytics.api.authorizations import authorizations, create_authorization
from lytics.api.client import Client
from lytics.api.jobs import bounce, create_job, job, job_logs, jobs, pause, replace_job, resume
from lytics.api.members import MemberPage, scan
from lytics.api.outcomes import Outcome
from lytics.api.people import person
from sandbox.lytics.account import Account
from sandbox.lytics.api.__main__ import arguments, main
from sandbox.lytics.api.server import LyticsServer
from sandbox.lytics.api.switches import CHOICES, Switches
from sandbox.lytics.audiences import audiences as some_audiences
from sandbox.lytics.model import Memberships
from sandbox.lytics.stream import Plan, Stream
from tests.lytics_sandbox import TOKEN, serving

ROOT = Path(__file__).resolve().parent.parent
EVERY_AUDIENCE = some_audiences(how_many=4, seed=3)
VIP = EVERY_AUDIENCE[0].segment_id


def told(account: Account, **more: Any) -> Memberships:
    """Send a story past the account; the memberships that must result, by code of its own."""
    expected = Memberships("_id")
    plan = Plan(events=3_000, audiences=EVERY_AUDIENCE, seed=3, customers=700, **more)
    for message in account.recorded(Stream(plan), "_id"):
        expected.see(message)
    return expected


@pytest.fixture
def server(tmp_path: Path) -> Iterator[LyticsServer]:
    account = Account(tmp_path / "lytics.sqlite3")
    with serving(account) as running:
        yield running


def client(server: LyticsServer, token: str = TOKEN) -> Client:
    return Client(token=token, url=server.url)


def control(server: LyticsServer, name: str, body: Any = None, method: str = "POST") -> Any:
    data = json.dumps(body or {}).encode()
    request = urllib.request.Request(f"{server.url}/sandbox/{name}", data, method=method)  # noqa: S310 - our own URL
    with urllib.request.urlopen(request, timeout=10) as response:  # noqa: S310
        return json.loads(response.read())


def walk(server: LyticsServer, token: str = "", *, audience_id: str = VIP) -> list[MemberPage]:
    return list(scan(client(server), audience_id, fields=["_id"], token=token))


def everyone(pages: list[MemberPage]) -> list[str]:
    return sorted(name for page in pages for member in page.members for name in member.identifiers("_id"))


@pytest.mark.parametrize("story", [{}, {"array_identifiers": True}, {"cloudevents": True}, {"full_profiles": True}])
def test_members_and_sizes_are_what_the_sent_events_mean(server: LyticsServer, story: dict[str, Any]) -> None:
    expected = told(server.api.account, **story)
    assert len(audiences(client(server)).items) == len(EVERY_AUDIENCE)
    for each in EVERY_AUDIENCE:
        pages = walk(server, audience_id=each.segment_id)
        assert pages[-1].is_last
        assert everyone(pages) == expected.members(each.segment_id)
        known = audience(client(server), each.slug).item
        assert known is not None
        assert known.size == sum(len(page.members) for page in pages) == pages[-1].total


def test_a_person_is_in_the_audiences_of_the_scan(server: LyticsServer) -> None:
    expected = told(server.api.account)
    who, other = expected.members(VIP)[0], expected.others(VIP)[0]
    for identifier, is_in in ((who, True), (other, False)):
        found = person(client(server), "_id", identifier).item
        assert found is not None
        assert found.is_in(segment_id=VIP, slug=EVERY_AUDIENCE[0].slug) is is_in
    for value in ("200", "404"):
        control(server, "switches", {"missing_person": value})
        assert person(client(server), "_id", "nobody/here").answer.outcome is Outcome.NOT_FOUND


def test_a_membership_changed_without_an_event_shows_in_scan_size_and_person(server: LyticsServer) -> None:
    expected = told(server.api.account)
    who = expected.members(VIP)[0]
    control(server, "members", {"audience": VIP, "identifier": who, "member": False})
    pages = walk(server)
    assert everyone(pages) == expected.members(VIP)[1:]
    assert pages[-1].total == expected.size(VIP) - 1
    found = person(client(server), "_id", who).item
    assert found is not None
    assert not found.is_in(segment_id=VIP, slug=EVERY_AUDIENCE[0].slug)


@pytest.mark.parametrize("value", ["400", "404", "410"])
def test_a_scan_token_expires_and_the_scan_begins_again(server: LyticsServer, value: str) -> None:
    expected = told(server.api.account)
    control(server, "switches", {"old_scan": value})
    first = next(scan(client(server), VIP, fields=["_id"]))
    assert everyone([first, *walk(server, first.next_token)]) == expected.members(VIP), "a recent token goes on"
    control(server, "clock", {"advance_seconds": 61})
    (page,) = walk(server, first.next_token)
    assert page.is_expired
    assert everyone(walk(server)) == expected.members(VIP)


@pytest.mark.parametrize("text", ["5", "null", "{}", '["x", 1]', f'["{VIP}", "", "soon"]', "[" * 100_000, "\xff"])
def test_a_token_of_another_form_has_expired(server: LyticsServer, text: str) -> None:
    told(server.api.account)
    token = base64.urlsafe_b64encode(text.encode("latin-1")).decode()
    answer = server.api.answer("GET", f"/api/segment/{VIP}/scan", {"start": token}, {"authorization": TOKEN}, b"")
    assert answer.status == 400


def test_an_old_token_may_end_the_scan_early_and_only_the_total_tells(server: LyticsServer) -> None:
    told(server.api.account)
    control(server, "switches", {"old_scan": "end", "scan_token_seconds": 0})
    control(server, "clock", {"advance_seconds": 1})
    first = next(scan(client(server), VIP, fields=["_id"]))
    control(server, "clock", {"advance_seconds": 1})
    (page,) = walk(server, first.next_token)
    assert page.is_last
    assert page.total is not None
    assert page.total > len(first.members) + len(page.members)


@pytest.mark.parametrize("style", CHOICES["error_style"])
def test_errors_come_in_both_styles_and_a_401_always_in_one(server: LyticsServer, style: str) -> None:
    control(server, "switches", {"error_style": style})
    for answer in (audience(client(server), "gone").answer, walk(server, audience_id="gone")[0].answer):
        assert answer.outcome is Outcome.NOT_FOUND
        assert "segment not found" in answer.reason
    assert ("errors" in audience(client(server), "gone").answer.json) is (style != "api")
    rejected = audiences(client(server, "wrong")).answer
    assert (rejected.outcome, rejected.json["message"]) == (Outcome.UNAUTHORISED, "Not authorized")


def test_above_the_quota_comes_a_429_without_headers(server: LyticsServer) -> None:
    control(server, "switches", {"requests_per_second": 1})
    answers = [audiences(client(server)).answer for _ in range(5)]
    limited = [answer for answer in answers if answer.is_rate_limited]
    assert limited
    assert {answer.retry_after for answer in limited} == {None}


@pytest.mark.parametrize(
    ("then", "outcome"),
    [
        ({"status": 503, "html": True}, Outcome.RETRY_LATER),
        ({"status": 400, "body": "plain words"}, Outcome.REJECTED),
        ({"close": "before"}, Outcome.RETRY_LATER),
    ],
)
def test_a_fault_strikes_once(server: LyticsServer, then: dict[str, Any], outcome: Outcome) -> None:
    control(server, "faults", {"when": {"times": 1}, "then": then})
    assert audiences(client(server)).answer.outcome is outcome
    assert audiences(client(server)).answer.is_ok


def test_a_job_is_made_held_started_changed_and_kept(server: LyticsServer) -> None:
    told(server.api.account)
    api = client(server)
    auth = create_authorization(api, label="To ODP", header="Bearer secret-of-ours").item
    assert auth is not None
    assert "secret-of-ours" not in json.dumps([dict(one.fields) for one in authorizations(api).items])
    config = {"segment_ids": [VIP], "webhook_url": "https://sync.example/hook", "future": {"a": 1}}
    made = create_job(api, name="To ODP", auth_ids=[auth.auth_id], config=config).item
    assert made is not None
    assert made.state == "paused"
    for verb, state in ((resume, "running"), (pause, "paused"), (bounce, "running")):
        assert verb(api, made.job_id).is_ok
        assert [one.state for one in jobs(api).items] == [state]
    changed = replace_job(api, made, config={**made.config, "batch_size": 300}).item
    assert changed is not None
    assert (dict(changed.config), changed.state) == ({**config, "batch_size": 300}, "running")
    other = replace_job(api, changed, config=changed.config, auth_ids=["another"]).item
    assert other is not None
    assert (other.auth_ids, dict(other.config)) == (("another",), dict(changed.config))
    assert len(job_logs(api, made.job_id).items) == 6
    server.api.account = Account(server.api.account._file)  # as after a restart
    kept = job(api, made.job_id).item
    assert kept is not None
    assert dict(kept.config) == {**config, "batch_size": 300}


@pytest.mark.parametrize(
    "changed",
    [
        {"segment_ids": []},
        {"segment_ids": ["unknown"]},
        {"segment_ids": 5},
        {"webhook_url": "http://sync.example"},
        {"webhook_url": ""},
    ],
)
def test_a_job_that_lytics_could_not_run_is_rejected(server: LyticsServer, changed: dict[str, Any]) -> None:
    told(server.api.account)
    api = client(server)
    auth = create_authorization(api, label="x", header="y-1234").item
    assert auth is not None
    config = {"segment_ids": [VIP], "webhook_url": "https://sync.example/hook", **changed}
    assert create_job(api, name="x", auth_ids=[auth.auth_id], config=config).answer.outcome is Outcome.REJECTED


def test_authorizations_that_are_no_list_are_rejected(server: LyticsServer) -> None:
    told(server.api.account)
    job = {"name": "x", "auth_ids": 5, "config": {"segment_ids": [VIP], "webhook_url": "https://sync.example/hook"}}
    answer = client(server).post("v2", "job", "webhook_triggers", content=job)
    assert answer.outcome is Outcome.REJECTED


def test_ten_integrations_an_hour_may_be_made(server: LyticsServer) -> None:
    api = client(server)
    made = [create_authorization(api, label="x", header="y-1234").answer for _ in range(11)]
    assert [answer.is_ok for answer in made] == [True] * 10 + [False]
    control(server, "clock", {"advance_seconds": 3_601})
    assert create_authorization(api, label="x", header="y-1234").answer.is_ok


@pytest.mark.parametrize("body", [{"old_scan": "500"}, {"nonsense": 1}, {"scan_token_seconds": "soon"}])
def test_a_switch_that_does_not_exist_is_an_error(server: LyticsServer, body: dict[str, Any]) -> None:
    with pytest.raises(urllib.error.HTTPError):
        control(server, "switches", body)


def test_the_sender_and_the_api_are_processes_that_share_a_file(tmp_path: Path) -> None:
    state, expected = tmp_path / "lytics.sqlite3", tmp_path / "expected.json"
    sender = ["--dry-run", "--events", "2000", "--audiences", "3", "--seed", "5", "--memberships", str(expected)]
    run = [sys.executable, "-m"]
    api = subprocess.Popen(
        [*run, "sandbox.lytics.api", "--port", "0", "--state", str(state)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert api.stdout is not None
        url = api.stdout.readline().split()[-1]
        command = [*run, "sandbox.lytics", *sender, "--state", str(state)]
        subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
        known = json.loads(expected.read_text())["audiences"]
        for slug, lists in known.items():
            pages = list(scan(Client(token=TOKEN, url=url), slug, fields=["_id"]))
            assert everyone(pages) == lists["members"]
        assert len(known) == 3
    finally:
        api.terminate()
        api.communicate(timeout=30)
    assert api.returncode == 0


@pytest.mark.parametrize("words", [["--state", "no/such/folder/state"], ["--state", "state", "--port", "99999"]])
def test_what_keeps_it_from_starting_is_one_sentence(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    assert main(words) == 1
    assert capsys.readouterr().err.startswith("The sandbox can't start: ")


def test_the_readme_names_every_switch_and_flag() -> None:
    from dataclasses import fields

    readme = (ROOT / "sandbox" / "README.md").read_text(encoding="utf-8")
    flags = [flag for action in arguments()._actions for flag in action.option_strings if flag.startswith("--")]
    wanted = [*flags, *(f"`{field.name}`" for field in fields(Switches))]
    assert [word for word in wanted if word not in readme and word != "--help"] == []
