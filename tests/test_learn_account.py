"""``learn_account``: against a sandbox ODP with each assumption turned, it finds each, and leaves nothing behind."""

import io
import itertools
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from django.core.management import call_command
from django.core.management.base import CommandError
from django.utils.timezone import now
from pytest_django.fixtures import Settings

from audiences import lytics_account
from audiences.learning import events, experiments, registry, report
from audiences.learning import lab as laboratory
from audiences.learning.lab import Clock, Lab, Spacing
from audiences.models import Install
from audiences.operations import installs
from lytics.api.authorizations import create_authorization
from lytics.api.client import Client as LyticsClient
from lytics.api.jobs import create_job
from odp.client import Client
from sandbox.lytics.account import Account as LyticsAccount
from sandbox.lytics.audiences import audiences as some_audiences
from sandbox.lytics.stream import Plan, Stream
from sandbox.odp.account.assumptions import Assumptions
from sandbox.odp.testing import ThreadedSandbox
from sandbox.odp.world import Options
from tests.delivering import UNLIMITED, make_audience, make_install
from tests.lytics_sandbox import serving
from workers import pace
from workers.management.commands import learn_account

pytestmark = pytest.mark.django_db

ROOT = Path(__file__).resolve().parent.parent
FIELD = "lytics_sync_learn"
PRIVATE_KEY = "learnpublic.learnprivate"
LYTICS_TOKEN = "lytics-learn-token"

AUDIENCE = some_audiences(how_many=1, seed=3)[0]
CreateJob = Callable[[dict[str, Any]], None]

# Assumptions that can't be learned from outside with small and reversible experiments.
UNSEEN = {
    "too_many_items": "needs 501 items; a tenth of the limit is 50",
    "rate_limiter": "needs more than ten requests a second, which would slow down deliveries",
    "retry_after": "needs a 429, so more than ten requests a second",
    "field_limit": "needs as many fields as the account may have, and a field can't be deleted",
    "segment_limit": "needs as many audiences as the account may have",
    "revoked_key_seconds": "needs to revoke the key of the install",
}
# Values to try of the assumptions that aren't a choice of words.
NUMBERS: dict[str, tuple[Any, ...]] = {
    "max_body_bytes": (100_000, 700_000),
    "field_delay_seconds": (0, 5),
    "passthrough_key": ("passthrough", "external"),
}
TURNED = [
    (each.name, value)
    for each in fields(Assumptions)
    if each.name not in UNSEEN
    for value in NUMBERS.get(each.name) or each.metadata["choices"]
]


class MovedClock(Clock):
    """Moves the sandbox's clock in place of waiting."""

    def __init__(self, odp: ThreadedSandbox) -> None:
        self.odp = odp
        self.at = 0.0

    def now(self) -> float:
        return self.at

    def sleep(self, seconds: float) -> None:
        self.at += seconds
        world = self.odp.world
        world.clock.advance(seconds)
        if any(write.due_at <= world.clock.now() for write in world.visibility._waiting):
            with world.lock:
                waiting, now = world.visibility._waiting, world.clock.now()
                if all(write.due_at <= now for write in waiting):
                    world.visibility.apply_all()


@pytest.fixture
def odp() -> Iterator[ThreadedSandbox]:
    with ThreadedSandbox(Options(private_key=PRIVATE_KEY, settings=UNLIMITED)) as running:
        yield running


@pytest.fixture
def clock(odp: ThreadedSandbox, monkeypatch: pytest.MonkeyPatch) -> MovedClock:
    moved = MovedClock(odp)
    monkeypatch.setattr(learn_account.Command, "clock", moved)
    return moved


@pytest.fixture(autouse=True)
def fewer_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The wait for an effect that never comes would take 40 to 60 requests, and a run has several of these waits."""
    monkeypatch.setattr(laboratory, "LOOK_SECONDS", 2.0)


@pytest.fixture
def install(db: None, odp: ThreadedSandbox, clock: MovedClock) -> Install:
    return make_install(odp, odp_api_key=PRIVATE_KEY)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "learned.json"


@pytest.fixture
def create(tmp_path: Path, settings: Settings) -> Iterator[CreateJob]:
    """Creates a job of ``AUDIENCE`` with this configuration in a sandbox Lytics, which the settings name."""
    account = LyticsAccount(tmp_path / "lytics.sqlite3")
    list(account.recorded(Stream(Plan(events=10, audiences=[AUDIENCE], seed=3, customers=5)), "_id"))
    with serving(account, token=LYTICS_TOKEN) as server:
        settings.LYTICS_API_URL = server.url
        client = LyticsClient(token=LYTICS_TOKEN, url=server.url)
        auth = create_authorization(client, label="Sync", header="Bearer lysync_secret").item
        assert auth is not None

        def create_one(config: dict[str, Any]) -> None:
            config = {**config, "segment_ids": [AUDIENCE.segment_id]}
            assert create_job(client, name="Secret name", auth_ids=[auth.auth_id], config=config).item

        yield create_one


def learn(file: Path, *words: str) -> str:
    said = io.StringIO()
    call_command("learn_account", "Shop", "--yes", "--patience", "20", "--file", str(file), *words, stdout=said)
    return said.getvalue()


def answers(file: Path) -> dict[str, str]:
    return {each["question"]: each["answer"] for each in json.loads(file.read_text())["answers"]}


def evidence(file: Path) -> dict[str, dict[str, str]]:
    """Each answer whole, by its question."""
    return {each["question"]: each for each in json.loads(file.read_text())["answers"]}


def make_lab(odp: ThreadedSandbox, clock: Clock) -> Lab:
    client = Client(host=odp.url, api_key=odp.private_key)
    public = Client(host=odp.url, api_key=odp.public_key)
    return Lab(client=client, public_client=public, clock=clock, install_id="abc", patience=20, with_lists=True)


def assert_clean(odp: ThreadedSandbox) -> None:
    """Nothing but the marked field and list, and customers who are in nothing."""
    (account,) = odp.world.accounts
    assert set(account.segments) - {"lytics_vip"} == set()
    assert {each.name for each in account.schema.fields.values() if not each.built_in} <= {FIELD}
    for customer in account.customers:
        assert customer.record.get(FIELD) is not True
        assert not any(subscribed for subscribed, *_ in (customer.lists or {}).values())


# --- what it finds --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "value"), TURNED)
def test_each_assumption_is_found(
    odp: ThreadedSandbox, install: Install, file: Path, settings: Settings, name: str, value: Any
) -> None:
    odp.assume(**{name: value})
    if name == "consent_effect":
        odp.settings(consent="opted_out")
    if name == "passthrough_order":
        settings.ODP_PASSTHROUGH_DEFINITION = {"passthrough": {}}
    if name == "passthrough_key":
        body = {"description": "VIP", "metadata": {}, "definition": {value: {"audience": "any"}}}
        assert odp.odp("PUT", "/v3/segments/lytics_vip", body)[0] == 201
    learn(file, "--lists")
    found = answers(file)[name]
    if name == "max_body_bytes":
        assert value * 7 / 8 <= int(found) <= value
    elif name == "field_delay_seconds":
        assert value <= int(found) <= value + 2
    else:
        assert found == value
    assert_clean(odp)


def test_an_exit_by_event_may_take_as_long_to_show_as_the_entry(odp: ThreadedSandbox, clock: MovedClock) -> None:
    """Longer than a write of an attribute. Until it shows, the older exit seems to be ignored."""
    odp.assume(passthrough_order="arrival")
    lab = make_lab(odp, clock)
    lab.patience, lab.passthrough_definition = 120, {"passthrough": {}}
    odp.world.visibility.delay = (50, 50)
    (found,) = events._passthrough_order(lab)
    assert found.answer == "arrival"


def test_each_assumption_is_a_question_or_has_a_reason_why_it_is_none() -> None:
    names = {each.name for each in fields(Assumptions)}
    assert set(UNSEEN) <= names
    assert names - set(UNSEEN) <= set(registry.QUESTIONS)
    assert set(UNSEEN).isdisjoint(registry.QUESTIONS)


@pytest.mark.parametrize("fs", ["high", "low"])
@pytest.mark.parametrize("web", ["high", "low"])
def test_the_confidence_of_each_identifier_is_told_from_that_of_the_other(
    odp: ThreadedSandbox, install: Install, file: Path, fs: str, web: str
) -> None:
    odp.assume(fs_user_id_confidence=fs, web_user_id_confidence=web)
    learn(file)
    found = answers(file)
    assert (found["fs_user_id_confidence"], found["web_user_id_confidence"]) == (fs, web)


def test_where_no_write_shows_nothing_is_said_about_what_writes_do(
    odp: ThreadedSandbox, install: Install, file: Path
) -> None:
    odp.assume(consent_effect="everything")
    odp.settings(consent="opted_out")
    learn(file)
    found = answers(file)
    unseen = "batch_rejection", "fs_user_id_confidence", "web_user_id_confidence", "new_vuid", "field_delay_seconds"
    assert {found[name] for name in unseen} == {""}


@pytest.mark.parametrize("at", [2, True])
def test_items_that_are_named_behind_an_accepted_write_are_rejected(
    odp: ThreadedSandbox, install: Install, file: Path, at: int
) -> None:
    """``True`` equals 1 in Python, and it is no position."""
    odp.assume(batch_rejection="drop")
    invalids = [{"is_item": True, "profile": at, "reason": "odd"}]
    when = {"path": "/v3/profiles", "method": "POST", "body_contains": "good1"}
    odp.fault(when, {"status": 202, "body": {"detail": {"invalids": invalids}}, "apply": True})
    learn(file)
    found = answers(file)
    assert found["batch_rejection"] == "partial"
    assert (found["bad_items"], found.get("invalids_key")) == (("named", "profile") if at == 2 else ("bare", ""))


def test_a_delay_until_writes_show_is_measured_and_waited_for(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with ThreadedSandbox(Options(private_key=PRIVATE_KEY, settings=UNLIMITED, delay=(4, 4))) as slow:
        monkeypatch.setattr(learn_account.Command, "clock", MovedClock(slow))
        make_install(slow, odp_api_key=PRIVATE_KEY)
        slow.assume(batch_rejection="partial", web_user_id_confidence="low")
        learn(file)
    found = answers(file)
    assert 4 <= int(found["visible_seconds"]) <= 6
    assert 4 <= int(found["gone_seconds"]) <= 6
    assert (found["batch_rejection"], found["web_user_id_confidence"]) == ("partial", "low")


@pytest.mark.parametrize(("field", "found"), [(10, 10), (0, 6)])
def test_a_delay_of_a_new_field_is_told_from_the_delay_of_writes(
    file: Path, monkeypatch: pytest.MonkeyPatch, field: int, found: int
) -> None:
    """If no write was refused, the first one may have been lost, so the time until one shows counts."""
    with ThreadedSandbox(Options(private_key=PRIVATE_KEY, settings=UNLIMITED, delay=(6, 6))) as slow:
        monkeypatch.setattr(learn_account.Command, "clock", MovedClock(slow))
        make_install(slow, odp_api_key=PRIVATE_KEY)
        slow.assume(field_delay_seconds=field)
        learn(file)
    answer = evidence(file)["field_delay_seconds"]
    assert found <= int(answer["answer"]) <= found + 3
    refused, accepted, shown = map(int, re.findall(r"\d+", answer["evidence"]))
    assert (refused > 0) is (field > 0)
    assert field <= accepted <= field + 3
    assert shown >= accepted + 4


def test_a_field_that_a_write_makes_has_no_delay_that_can_be_measured(
    odp: ThreadedSandbox, install: Install, file: Path
) -> None:
    odp.assume(unknown_field="create")
    learn(file)
    answer = evidence(file)["field_delay_seconds"]
    assert (answer["answer"], "was there before" in answer["evidence"]) == ("", True)


def test_a_field_that_can_not_be_made_ends_the_run(odp: ThreadedSandbox, install: Install, file: Path) -> None:
    odp.fault({"path": "/v3/schema/objects/customers/fields", "method": "POST"}, {"status": 422})
    learn(file)
    assert evidence(file)["consent_effect"]["evidence"].startswith("stopped: The field and the audience")


@pytest.mark.parametrize(
    ("definition", "kind"),
    [
        ({"path_reference": {"value": "customer.lytics_vip"}}, "attribute"),
        ({"path_reference": {"value": "customer.lytics_other"}}, "another"),
    ],
)
def test_existing_audiences_say_which_mechanism_made_them(
    odp: ThreadedSandbox, install: Install, file: Path, definition: dict[str, Any], kind: str
) -> None:
    for name in ("lytics_vip", "lytics_other"):
        made = {"name": name, "display_name": name, "type": "boolean"}
        assert odp.odp("POST", "/v3/schema/objects/customers/fields", made)[0] == 200
    body = {"definition": {"root_condition": {"customer_condition": {"customer_filter": definition}}}}
    assert odp.odp("PUT", "/v3/segments/lytics_vip", body)[0] == 201
    learn(file)
    assert answers(file)["existing_audiences"] == kind
    assert "lytics_vip" not in file.read_text()
    assert "none of the 1 existing audiences that were read" in file.read_text(), "there may be more than are read"


def test_audiences_of_this_service_tell_nothing_about_the_hosted_app(
    odp: ThreadedSandbox, install: Install, file: Path
) -> None:
    odp.odp(
        "POST", "/v3/schema/objects/customers/fields", {"name": "lytics_vip", "display_name": "V", "type": "boolean"}
    )
    condition = {"path_reference": {"value": "customer.lytics_vip"}}
    body = {"definition": {"root_condition": {"customer_condition": {"customer_filter": condition}}}}
    assert odp.odp("PUT", "/v3/segments/lytics_vip", body)[0] == 201
    make_audience(install, "vip")
    learn(file)
    assert answers(file)["existing_audiences"] == "none"


@pytest.mark.parametrize("token", ["stored", "given", "typed"])
def test_the_job_is_described_without_its_texts(
    install: Install, file: Path, create: CreateJob, monkeypatch: pytest.MonkeyPatch, token: str
) -> None:
    monkeypatch.setattr("audiences.management.arguments.input_line", lambda _: LYTICS_TOKEN)
    if token == "stored":
        lytics_account.set_token(install, LYTICS_TOKEN)
    words = {"stored": [], "given": ["--lytics-token", LYTICS_TOKEN], "typed": ["--lytics-token", "-"]}[token]
    config = {"batching_enabled": True, "batch_size": 250, "jane@example.com": 1}
    create({"webhook_url": f"{installs.webhook_url(install)}?x=1", **config})
    learn(file, *words)
    found, text = answers(file), file.read_text()
    assert (found["job_of_install"], found["audience_sizes"]) == ("found", "all")
    assert (found["missing_audience"], found["missing_person"]) == ("404", "200")
    assert "batch_size=250, batching_enabled=true, ?=1, segment_ids=[text], webhook_url=text" in text
    for secret in (
        LYTICS_TOKEN,
        "jane",
        "lysync_secret",
        "Secret name",
        AUDIENCE.segment_id,
        "webhooks/lytics",
    ):
        assert secret not in text


@pytest.mark.parametrize("with_lists", [True, False])
def test_what_was_not_tried_is_said_and_what_odp_keeps_is_named(
    odp: ThreadedSandbox, install: Install, file: Path, with_lists: bool
) -> None:
    said = learn(file, *["--lists"] * with_lists)
    assert (f"can't delete it: the list {FIELD}" in said) is with_lists
    assert ("wasn't tried" in evidence(file)["consent_effect"]["evidence"]) is not with_lists


@pytest.mark.parametrize("is_ours_there", [True, False])
def test_the_job_of_the_install_is_described_and_not_another(
    install: Install, file: Path, create: CreateJob, is_ours_there: bool
) -> None:
    create({"webhook_url": "https://else.example.com", "batch_size": 111})
    if is_ours_there:
        create({"webhook_url": installs.webhook_url(install), "batch_size": 222})
    learn(file, "--lytics-token", LYTICS_TOKEN)
    found = evidence(file)
    assert found["job_of_install"]["answer"] == ("found" if is_ours_there else "missing")
    assert f"batch_size={222 if is_ours_there else 111}" in found["job_config"]["evidence"]


# --- settings that follow -------------------------------------------------------------------------------------


@pytest.mark.parametrize("body", ["", " \n"])
def test_an_empty_response_to_writes_leads_to_the_setting(
    odp: ThreadedSandbox, install: Install, file: Path, body: str
) -> None:
    odp.fault({"path": "/v3/profiles", "method": "POST"}, {"status": 202, "body": body, "apply": True})
    said = learn(file)
    assert answers(file)["accepted_answer"] == "empty"
    assert "\nODP_EMPTY_IS_ACCEPTED=true\n" in said


@pytest.mark.parametrize(("inner", "follows"), [("any audience's", True), ("lytics_vip", False)])
def test_an_existing_passthrough_audience_leads_to_the_setting_unless_it_names_itself(
    odp: ThreadedSandbox, install: Install, file: Path, inner: str, follows: bool
) -> None:
    body = {"description": "VIP", "definition": {"passthrough": {"of": inner}}}
    assert odp.odp("PUT", "/v3/segments/lytics_vip", body)[0] == 201
    said = learn(file)
    lines = [line for line in said.splitlines() if line.startswith("ODP_PASSTHROUGH_DEFINITION=")]
    assert [json.loads(shlex.split(line)[0].partition("=")[2]) for line in lines] == [body["definition"]] * follows
    assert inner not in file.read_text()
    assert ("ODP_PASSTHROUGH_DEFINITION={passthrough: {of: text}}" in file.read_text()) is follows


def test_a_small_body_limit_lowers_the_batch_size_only_with_a_yes(
    odp: ThreadedSandbox, install: Install, file: Path
) -> None:
    odp.assume(max_body_bytes=100_000)
    said = learn(file)
    install.refresh_from_db()
    assert (install.batch_size, "Set for the install: batch_size=" in said) == (500, True)
    learn(file, "--apply")
    install.refresh_from_db()
    assert 120 <= install.batch_size <= 142
    odp.assume(max_body_bytes=700_000)
    learn(file, "--apply")
    install.refresh_from_db()
    assert install.batch_size <= 142, "a larger limit raises nothing"


@pytest.mark.parametrize(("typed", "size"), [("y", 130), ("n", 500)])
def test_a_person_is_asked_about_each_setting_of_the_install(
    install: Install, monkeypatch: pytest.MonkeyPatch, typed: str, size: int
) -> None:
    monkeypatch.setattr("builtins.input", lambda _: typed)
    found = experiments.Found("max_body_bytes", "100000", "", experiments.Setting("install", "batch_size", "130"))
    learn_account.Command(stdout=io.StringIO())._settings(install, [found], apply=False, may_ask=True)
    install.refresh_from_db()
    assert install.batch_size == size


# --- consent, pace and secrets --------------------------------------------------------------------------------


@pytest.mark.parametrize("typed", ["n", "", "maybe"])
def test_nothing_is_sent_without_a_yes(
    odp: ThreadedSandbox, install: Install, file: Path, monkeypatch: pytest.MonkeyPatch, typed: str
) -> None:
    monkeypatch.setattr("builtins.input", lambda _: typed)
    said = io.StringIO()
    with pytest.raises(CommandError, match="Nothing was sent"):
        call_command("learn_account", "Shop", "--lists", "--file", str(file), stdout=said)
    assert f"customer field {FIELD}" in said.getvalue()
    assert f"the list {FIELD}, which ODP can't delete again" in said.getvalue()
    assert odp.requests() == []
    assert not file.exists()


def test_it_stays_below_a_tenth_of_the_documented_limits(
    odp: ThreadedSandbox, install: Install, file: Path, clock: MovedClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    starts: list[tuple[str, float]] = []
    wait = Spacing.wait

    def recorded(spacing: Spacing, path: str) -> None:
        wait(spacing, path)
        starts.append((path.split("/")[2], clock.now()))

    monkeypatch.setattr(Spacing, "wait", recorded)
    learn(file, "--lists")
    for group, shortest in (("profiles", 1.0), ("lists", 1.0), ("graphql", 0.02)):
        times = [at for name, at in starts if name == group]
        assert len(times) > 2
        assert min(later - earlier for earlier, later in itertools.pairwise(times)) >= shortest - 1e-6
    assert len(starts) == len(odp.requests())
    assert max(request["items"] for request in odp.requests()) <= 50


def test_the_file_has_no_secret_and_no_identifier_even_if_odp_quotes_them(
    odp: ThreadedSandbox, install: Install, file: Path
) -> None:
    customer = f"lytics-sync-learn-{install.public_id}-1-good1"
    quoted = {
        "learnprivate": customer,
        customer: "learnpublic.learnprivate",
        "title": install.public_id,
        install.name: 1,
        "jane@example.com": 1,
    }
    odp.fault({"path": "/v3/profiles", "method": "POST", "body_contains": "good1"}, {"status": 400, "body": quoted})
    odp.fault({"path": f"/v3/segments/{FIELD}_none"}, {"status": 404, "body": {install.public_id: 1}})
    learn(file, "--lists")
    text = file.read_text()
    names = ("learnpublic", "learnprivate", install.public_id, install.name, odp.url, "lytics-sync-learn-", "jane")
    for secret in names:
        assert secret not in text
    assert "title: text" in text


def test_a_secret_that_is_part_of_another_leaves_no_rest_of_it(file: Path) -> None:
    found = experiments.Found(next(iter(registry.QUESTIONS)), "of gold_club_vip", "")
    names = ("gold_club", "gold_club_vip", "club")
    report.write(file, [found], at=now(), about={"account": "a"}, secrets=names)
    assert json.loads(file.read_text())["answers"][0]["answer"] == "of •••"


@pytest.mark.parametrize(
    "name", ["jane@example.com", "jane doe", "jane-doe", "jane\n", "Zoë", "4711", "8e1f", "x" * 41, "lytics_vip", ""]
)
def test_a_name_that_may_be_of_a_person_or_an_audience_is_left_out(name: str) -> None:
    assert experiments.shape({name: [name, 1]}) == "{?: [text | number]}"
    assert experiments.shape({"user_2": name}) == "{user_2: text}"


# --- nothing is left behind -----------------------------------------------------------------------------------


@pytest.mark.parametrize("question", registry.QUESTIONS)
def test_an_exception_after_any_answer_leaves_nothing_behind(odp: ThreadedSandbox, question: str) -> None:
    def note(found: experiments.Found) -> None:
        if found.question == question:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        registry.run(make_lab(odp, MovedClock(odp)), note)
    assert_clean(odp)


KILLED = """
import os, signal, sys
from audiences.learning import lab, registry
from odp.client import Client

class Quick(lab.Clock):
    at = 0.0
    def now(self): return self.at
    def sleep(self, seconds): self.at += seconds

def note(found):
    if found.question == sys.argv[4]:
        os.kill(os.getpid(), signal.SIGKILL)

client = Client(host=sys.argv[1], api_key=sys.argv[2])
registry.run(lab.Lab(client=client, public_client=None, clock=Quick(), install_id=sys.argv[3], with_lists=True), note)
"""


@pytest.mark.parametrize(
    "question", ["field_delay_seconds", "visible_seconds", "bad_items", "new_vuid", "list_identifiers"]
)
def test_what_a_killed_run_left_is_removed_and_the_next_run_answers_everything(
    odp: ThreadedSandbox, install: Install, file: Path, question: str
) -> None:
    odp.assume(batch_rejection="partial")
    command = [sys.executable, "-c", KILLED, odp.url, PRIVATE_KEY, install.public_id, question]
    assert subprocess.run(command, cwd=ROOT, timeout=120).returncode == -signal.SIGKILL
    (account,) = odp.world.accounts
    assert account.segments
    assert "removed" in learn(file, "--clean-up", "--lists")
    assert_clean(odp)
    learn(file, "--lists", "--field", f"{FIELD}_again")
    found = answers(file)
    assert (found["batch_rejection"], found["fs_user_id_confidence"], found["unknown_field"]) == (
        "partial",
        "high",
        "refuse",
    )


def test_a_second_run_keeps_answers_that_only_the_first_could_find(
    odp: ThreadedSandbox, install: Install, file: Path
) -> None:
    assert f"Left in ODP, which can't delete it: the customer field {FIELD}\n" in learn(file)
    first = answers(file)
    said = learn(file)
    assert "answers of an earlier run to: unknown_field" in said
    second = answers(file)
    assert {name: answer for name, answer in second.items() if answer != first[name]} == {}
    assert second["unknown_field"] == "refuse"
    assert_clean(odp)


def test_a_file_of_another_account_lends_no_answers(odp: ThreadedSandbox, install: Install, file: Path) -> None:
    learn(file)
    with ThreadedSandbox(Options(private_key=PRIVATE_KEY, settings=UNLIMITED)) as other:
        Install.objects.update(odp_host=other.url)
        name = {"name": FIELD, "display_name": FIELD, "type": "boolean"}
        assert other.odp("POST", "/v3/schema/objects/customers/fields", name)[0] == 200
        assert "answers of an earlier run" not in learn(file)
    assert answers(file)["unknown_field"] == ""


@pytest.mark.parametrize("after", [0, 1])
def test_graphql_that_does_not_know_a_new_audience_at_once_is_asked_again(
    odp: ThreadedSandbox, install: Install, file: Path, after: int
) -> None:
    errors = {"data": None, "errors": [{"message": "unknown audience"}]}
    when = {"path": "/v3/graphql", "body_contains": '"among"', "after": after, "times": 3}
    odp.fault(when, {"status": 200, "body": errors})
    learn(file)
    found = answers(file)
    assert (found["batch_rejection"], found["new_vuid"]) == ("whole", "ignored")
    assert int(found["field_delay_seconds"]) + int(found["visible_seconds"]) > 0


def test_a_terminated_run_cleans_up_and_writes_what_it_knows(
    odp: ThreadedSandbox, install: Install, file: Path, clock: MovedClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = iter(range(60))

    def sleep(seconds: float) -> None:
        MovedClock.sleep(clock, seconds)
        if next(left, None) == 59:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0)

    monkeypatch.setattr(clock, "sleep", sleep)
    with pytest.raises(CommandError, match=r"^Interrupted\. ODP is cleaned up\.$"):
        learn(file)
    assert answers(file)["segment_errors"] == "grpc"
    assert_clean(odp)
    (account,) = odp.world.accounts
    made = {str(customer.record.get("fs_user_id")).rpartition("-")[2] for customer in account.customers}
    assert "visible" in made
    assert "x2" not in made, "the clean-up makes no customer that the run did not reach"


def test_an_interrupted_run_keeps_the_earlier_answers_to_the_rest(file: Path) -> None:
    """And none to a question of another version."""
    first, second = (experiments.Found(name, "yes", "") for name in list(registry.QUESTIONS)[:2])
    about = {"account": "a"}
    report.write(file, [first, second], at=now(), about=about, secrets=())
    file.write_text(file.read_text().replace("}\n  ]", '}, {"question": "gone", "answer": "yes"}]'))
    assert report.write(file, [first], at=now(), about=about, secrets=()) == [second.question]
    assert answers(file) == {first.question: "yes", second.question: "yes"}


def test_an_odp_that_goes_away_ends_the_run_and_the_report_says_so(
    odp: ThreadedSandbox, install: Install, file: Path
) -> None:
    odp.fault({"path": "/v3/", "after": 40}, {"status": 503})
    said = learn(file)
    found = evidence(file)
    assert set(found) == set(registry.QUESTIONS)
    assert found["consent_effect"]["evidence"] == "stopped: ODP answered 503"
    assert "may still be in ODP" in said
    odp.clear_faults()
    learn(file, "--clean-up")
    assert_clean(odp)


def test_a_field_of_another_type_is_never_written(odp: ThreadedSandbox, install: Install, file: Path) -> None:
    odp.odp("POST", "/v3/schema/objects/customers/fields", {"name": FIELD, "display_name": "L", "type": "string"})
    with pytest.raises(CommandError, match="isn't boolean"):
        learn(file)
    assert not [each for each in odp.requests() if each["path"] == "/v3/profiles"]


def test_an_audience_that_can_not_be_deleted_is_named(odp: ThreadedSandbox, install: Install, file: Path) -> None:
    odp.fault({"method": "DELETE", "path": "/v3/segments/"}, {"status": 409})
    assert f"may still be in ODP: ODP answered 409 to deleting {FIELD}" in learn(file)


def test_an_audience_of_somebody_else_is_never_touched(odp: ThreadedSandbox, install: Install, file: Path) -> None:
    odp.odp("POST", "/v3/schema/objects/customers/fields", {"name": FIELD, "display_name": "L", "type": "boolean"})
    definition = {
        "root_condition": {
            "customer_condition": {"customer_filter": {"path_reference": {"value": f"customer.{FIELD}"}}}
        }
    }
    odp.odp("PUT", f"/v3/segments/{FIELD}", {"description": "mine", "definition": definition})
    with pytest.raises(CommandError, match="isn't of these experiments"):
        learn(file)
    assert odp.odp("GET", f"/v3/segments/{FIELD}")[1]["description"] == "mine"
    assert not [each for each in odp.requests() if each["path"] == "/v3/profiles"]


def test_an_audience_of_the_install_with_the_same_id_stops_it(
    odp: ThreadedSandbox, install: Install, file: Path
) -> None:
    audience = make_audience(install, "sync_learn")
    for odp_id in (FIELD, f"{FIELD}_list"):
        audience.odp_id = odp_id
        audience.save()
        with pytest.raises(CommandError, match=f"^{odp_id} is the audience of sync_learn"):
            learn(file)
    assert odp.requests() == []


def test_it_stops_when_the_deliveries_leave_no_room(install: Install) -> None:
    install.requests_per_second = 10
    with pytest.raises(experiments.Stopped, match="on hold"):
        learn_account._gate(Spacing(Clock()), install, "/v3/profiles", 0.0)


def test_it_waits_a_minute_for_room(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr(pace, "pass_gate", lambda install, path, until: waits.append(until - time.monotonic()))
    learn_account._gate(Spacing(Clock()), install, "/v3/profiles", float("inf"))
    assert waits == [pytest.approx(60, abs=5)]
