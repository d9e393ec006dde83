"""The commands: what they print for people, and what for programs."""

import io
import json
import os
from typing import Any
from unittest.mock import Mock

import pytest
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.core.management import call_command, get_commands, load_command_class
from django.core.management.base import CommandError
from django.db import OperationalError, connection
from django.utils.timezone import now

import manage
from audiences.delivery import holds
from audiences.management import arguments
from audiences.models import Audience, Install, Lane
from tests.delivering import enter, make_audience, make_install

pytestmark = pytest.mark.django_db(transaction=True)


def run(*words: str) -> str:
    said = io.StringIO()
    call_command(*words, stdout=said)
    return said.getvalue()


def told(*words: str) -> Any:
    return json.loads(run(*words, "--json"))


def test_create_install_prints_the_values_for_lytics() -> None:
    facts = told("create_install", "Shop", "--odp-host", "http://127.0.0.1:9/", "--odp-api-key", "public.private")
    install = Install.objects.get()
    token = install.tokens.get()
    assert facts == {
        "install_id": install.public_id,
        "webhook_url": f"{settings.PUBLIC_URL}/webhooks/lytics/{install.public_id}",
        "authorization": f"Bearer {token.secret}",
        "authorization_header": f"Authorization: Bearer {token.secret}",
    }
    assert (install.odp_host, install.odp_api_key) == ("http://127.0.0.1:9", "public.private")


def test_create_install_accepts_what_the_admin_accepts() -> None:
    words = [
        "--identifier-field",
        "_uids",
        "--mechanism",
        "list",
        "--batch-size",
        "100",
        "--requests-per-second",
        "5",
        "--region",
        "eu",
    ]
    text = run("create_install", "Shop", "--odp-api-key", "k", *words)
    install = Install.objects.get()
    assert (install.identifier_field, install.mechanism, install.batch_size) == ("_uids", "list", 100)
    assert (install.requests_per_second, install.region) == (5, "eu")
    assert "Authorization: Bearer lysync_" in text


def test_an_install_needs_more_than_a_blank_name() -> None:
    with pytest.raises(CommandError, match="name"):
        run("create_install", " ", "--odp-api-key", "k")


@pytest.mark.parametrize(
    "words",
    [
        *(["--batch-size", "501"], ["--odp-host", "nowhere"]),
        *(["--identifier-field", field] for field in ("two words", '"email"', "a\\b")),
    ],
)
def test_create_install_reports_errors_and_stores_nothing(words: list[str]) -> None:
    with pytest.raises(CommandError):
        run("create_install", "Shop", "--odp-api-key", "k", *words)
    assert not Install.objects.exists()


@pytest.fixture
def gold() -> Audience:
    made = make_audience(make_install(), "gold")
    enter(made, "a", "b")
    return made


def test_lane_status_prints_backlog_state_and_reason(gold: Audience) -> None:
    Lane.objects.update(blocked_at=now(), block_reason="wrong type")
    report = told("lane_status")
    (lane,) = report["lanes"]
    assert (report["backlog"], lane["backlog"], lane["odp_id"]) == (2, 2, "lytics_gold")
    assert (lane["state"], lane["why"]) == ("blocked", "wrong type")
    assert "blocked — wrong type" in run("lane_status")


def test_lane_status_shows_an_edited_slug(gold: Audience) -> None:
    Audience.objects.update(latest_slug="platinum")
    (lane,) = told("lane_status")["lanes"]
    assert "platinum" in lane["warnings"][0]


def test_audit_log_ends_well_or_with_a_list(gold: Audience) -> None:
    assert told("audit_log")["clean"] is True
    Lane.objects.update(delivered_sequence=9)
    said = io.StringIO()
    with pytest.raises(SystemExit) as ended:
        call_command("audit_log", "--json", stdout=said)
    assert ended.value.code == 1
    report = json.loads(said.getvalue())
    assert report["clean"] is False
    assert {"cursor not past the last number"} <= {finding["truth"] for finding in report["findings"]}


def test_a_paused_lane_names_who_paused_it(gold: Audience) -> None:
    holds.pause(Lane.objects.get(), by="kim", reason="campaign moved")
    assert "by kim: campaign moved" in run("lane_status")


# --- what the commands share -----------------------------------------------------------------------------------


OF_AN_INSTALL = {
    "audit_audiences": [],
    "change_account": [],
    "change_identifier": ["--to", "email"],
    "change_mechanism": ["--to", "list"],
    "connect": ["--dry-run"],
    "doctor": [],
    "export_customer": ["kim@example.com"],
    "forget": ["kim@example.com", "--yes"],
    "learn_account": ["--yes"],
    "skip_backlog": ["--reason", "restored"],
    "switch_install": ["--to", "off"],
}


def test_every_command_about_an_install_is_listed_here() -> None:
    own = [name for name, app in get_commands().items() if app in ("audiences", "workers")]
    parsers = {name: load_command_class(get_commands()[name], name).create_parser("manage.py", name) for name in own}
    assert {name for name in own if "the install's id" in parsers[name].format_help()} == set(OF_AN_INSTALL)


@pytest.mark.parametrize("command", OF_AN_INSTALL)
def test_an_unknown_or_ambiguous_install_is_one_sentence_in_every_command(command: str) -> None:
    twice = sorted(make_install(name="Twice").public_id for _ in range(2))
    with pytest.raises(CommandError, match="No install is called 'Nowhere'"):
        run(command, "Nowhere", *OF_AN_INSTALL[command])
    with pytest.raises(CommandError, match="2 installs are called 'Twice'") as ambiguous:
        run(command, "Twice", *OF_AN_INSTALL[command])
    assert all(public_id in str(ambiguous.value) for public_id in twice)
    assert Install.objects.filter(enabled=True).count() == 2


def test_an_id_comes_before_a_name() -> None:
    first = make_install(name="Shop")
    make_install(name=first.public_id)
    assert arguments.install_named(first.public_id) == first


@pytest.mark.parametrize("command", ["export_customer", "forget"])
@pytest.mark.parametrize(
    ("identifier", "says"), [("", "is empty"), ("-", "is empty"), (" ", "is empty"), ("\udcff", "is not UTF-8")]
)
def test_an_unusable_identifier_is_rejected(
    command: str, identifier: str, says: str, gold: Audience, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("\n"))
    with pytest.raises(CommandError, match=says):
        run(command, gold.install.public_id, identifier)


def test_blanks_around_an_identifier_keep_nobody_from_being_forgotten(gold: Audience) -> None:
    """Those in calls are trimmed too."""
    enter(gold, "kim")
    assert "events 1" in run("forget", gold.install.public_id, " kim\t", "--yes")


@pytest.mark.parametrize(("command", "words"), [("forget", ["a"]), ("learn_account", [])])
def test_a_question_without_anybody_to_answer_is_one_sentence(
    command: str, words: list[str], gold: Audience, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    with pytest.raises(CommandError, match="Nobody is there to answer"):
        run(command, gold.install.public_id, *words)


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("create_install", ["Shop", "--odp-api-key", "-"]),
        ("export_customer", ["{id}", "-"]),
        ("forget", ["{id}", "-"]),
        ("change_account", ["{id}", "--yes", "--reason", "moved"]),
        ("learn_account", ["{id}", "--lytics-token", "-"]),
    ],
)
@pytest.mark.parametrize(("given", "says"), [(b"\xff\xfe\n", "not UTF-8"), (b"", r"empty|blank|key yet")])
def test_an_input_that_is_no_text_is_one_sentence(
    command: str, words: list[str], given: bytes, says: str, gold: Audience, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(given), encoding="utf-8"))
    with pytest.raises(CommandError, match=says):
        run(command, *(word.format(id=gold.install.public_id) for word in words))


def test_an_argument_that_is_no_text_is_one_sentence_in_every_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["manage.py", "switch_install", "\udcff", "--to", "off"])
    with pytest.raises(SystemExit, match="not UTF-8"):
        manage.main()


def test_ctrl_c_ends_a_command_without_a_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def wait(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("django.core.management.execute_from_command_line", wait)
    with pytest.raises(SystemExit) as ended:
        manage.main()
    assert (ended.value.code, "Interrupted" in capsys.readouterr().err) == (130, True)


@pytest.mark.parametrize("buffered", [True, False])
def test_a_command_ends_quietly_when_nobody_reads_its_output(
    monkeypatch: pytest.MonkeyPatch, *, buffered: bool
) -> None:
    """As in ``manage.py lane_status | head``, also with PYTHONUNBUFFERED."""
    reader, writer = os.pipe()
    os.close(reader)
    with io.TextIOWrapper(
        os.fdopen(writer, "wb", buffering=-1 if buffered else 0), write_through=not buffered
    ) as output:
        monkeypatch.setattr("sys.stdout", output)
        monkeypatch.setattr("django.core.management.execute_from_command_line", lambda argv: print("a line"))
        with pytest.raises(SystemExit) as ended:
            manage.main()
    assert ended.value.code == 141


def test_a_pipe_that_breaks_elsewhere_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks(argv: list[str]) -> None:
        raise BrokenPipeError

    monkeypatch.setattr("django.core.management.execute_from_command_line", breaks)
    with open(os.devnull, "w") as output:
        monkeypatch.setattr("sys.stdout", output)
        with pytest.raises(BrokenPipeError):
            manage.main()


@pytest.mark.parametrize(
    "words",
    [
        *(["--patience", seconds] for seconds in ("0", "-1", "nan", "inf")),
        *(["--file", str(settings.BASE_DIR)], ["--file", ""], ["--file", "/no/such/folder"]),
        *(["--field", "lytics_sync_learn x"], ["--field", "other"]),
    ],
    ids=str,
)
def test_learn_account_rejects_an_unusable_argument_before_it_begins(words: list[str], gold: Audience) -> None:
    with pytest.raises(CommandError, match=r"--field|--patience|folder|can't be written"):
        run("learn_account", gold.install.public_id, "--yes", *words)


@pytest.mark.parametrize(
    ("words", "missing"),
    [
        (["change_account", "{id}"], "--reason and --yes"),
        (["change_account", "{id}", "--reason", "moved"], "--yes"),
        (["change_mechanism", "{id}", "--to", "list"], "--reason and --yes"),
        (["change_identifier", "{id}"], ""),
        (["change_mechanism", "{id}", "--to", "passthrough"], ""),
    ],
)
def test_a_dry_run_names_the_options_that_begin_the_change_or_that_none_does(
    words: list[str], missing: str, gold: Audience
) -> None:
    Install.objects.update(key_accepted_at=now())
    said = run(*(word.format(id=gold.install.public_id) for word in words)).strip().splitlines()[-1]
    assert said == (
        f"Nothing was changed. Add {missing} to begin it."
        if missing
        else "Nothing was changed. The change can't begin until its problem, above, is solved."
    )


def test_stopping_a_change_needs_no_reason(gold: Audience) -> None:
    with pytest.raises(CommandError, match="No change is under way"):
        run("change_mechanism", gold.install.public_id, "--stop", "--yes")


@pytest.mark.parametrize("role", ["public", "", settings.DATABASES["default"]["USER"]])
def test_the_rights_of_the_processes_are_given_to_no_owner_and_not_to_everybody(role: str) -> None:
    with pytest.raises(CommandError, match=r"another role|not all roles"):
        run("grant_role", role)


def test_a_container_without_a_user_name_can_run_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody(*_: object) -> str:
        raise KeyError("uid not found: 12345")

    monkeypatch.setattr("getpass.getuser", nobody)
    assert arguments.who().startswith(f"uid {os.getuid()}@")
    monkeypatch.setattr("getpass.getuser", lambda: "x" * 200)
    assert len(arguments.who()) == 150, "the length of the columns"


@pytest.mark.parametrize("error", [ImproperlyConfigured("PORT is no number."), OperationalError("connection failed\n")])
def test_a_command_that_cannot_work_ends_with_one_sentence(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["manage.py", "check"])
    monkeypatch.setattr("django.core.management.execute_from_command_line", Mock(side_effect=error))
    with pytest.raises(SystemExit, match=str(error).strip()) as ended:
        manage.main()
    assert ended.value.code == str(error).strip()


@pytest.mark.django_db  # in a transaction that ends without a commit
@pytest.mark.parametrize("lacking", ["RENAME TO lanes", "RENAME blocked_at TO blocked"])
def test_a_command_says_that_migrations_are_missing(lacking: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with connection.cursor() as cursor:
        cursor.execute(f"ALTER TABLE audiences_lane {lacking}")
    monkeypatch.setattr("sys.argv", ["manage.py", "lane_status"])
    with pytest.raises(SystemExit, match=r"The database isn't that of this version: .*Run: python manage\.py migrate"):
        manage.main()
