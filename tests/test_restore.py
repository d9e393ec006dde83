"""Restoring a backup: from the dump to memberships as right as they can be, by the steps of docs/operating.md."""

import io
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from django.core.management import call_command
from django.core.management.base import CommandError
from django.db import connection, connections
from django.utils.timezone import now
from pytest_django.fixtures import Settings

from audiences import lytics_account
from audiences.agreement import audits
from audiences.delivery import request_records, unconfirmed
from audiences.insight import customers, state
from audiences.models import Audience, Audit, Delivery, Install, Lane, Resend, Run, Skip
from audiences.operations import audit, resends, skips
from local import embedded
from sandbox.odp.testing import ThreadedSandbox
from tests.delivering import (
    assert_all_is_well,
    claim,
    cursor_of,
    drain_all,
    enter,
    happen,
    ledger_of,
    make_audience,
    make_install,
    numbered,
    runs_of,
)
from tests.lytics_api import Lytics
from tests.test_pruning import delivery_of
from tests.threads import PATIENCE

pytestmark = pytest.mark.django_db(transaction=True)


def run(*words: str) -> str:
    said = io.StringIO()
    call_command(*words, stdout=said)
    return said.getvalue()


def switch_off(install: Install) -> None:
    run("switch_install", install.public_id, "--to", "off")


# --- the command ----------------------------------------------------------------------------------------------


@pytest.fixture
def gold(odp: ThreadedSandbox) -> Audience:
    """An audience with two members delivered and three events waiting."""
    made = make_audience(make_install(odp), "gold", provisioned=False)
    enter(made, "a", "b")
    drain_all(made.install)
    happen(made, ("a", "exit", 2), ("c", "enter", 2), ("d", "enter", 2))
    return made


def test_a_dry_run_reports_the_backlog_and_changes_nothing(gold: Audience) -> None:
    switch_off(gold.install)
    (told,) = json.loads(run("skip_backlog", "Shop", "--reason", "restored", "--json"))
    assert (told["events"], told["audiences"], told["skipped"]) == (3, {"lytics_gold": 3}, False)
    assert "Nothing was changed" in run("skip_backlog", "--all", "--reason", "restored")
    assert cursor_of(gold) == 2
    assert not Skip.objects.exists()


def test_skipped_events_are_never_sent_and_stay_in_the_log_with_who_and_why(
    gold: Audience, odp: ThreadedSandbox
) -> None:
    switch_off(gold.install)
    (told,) = json.loads(run("skip_backlog", gold.install.public_id, "--reason", "restored", "--yes", "--json"))
    assert (told["events"], told["skipped"]) == (3, True)
    run("switch_install", "Shop", "--to", "on")
    assert drain_all(gold.install) == 0
    assert odp.members("lytics_gold") == ["a", "b"]
    assert (cursor_of(gold), set(ledger_of(gold))) == (5, {"a", "b"})
    assert runs_of(gold)[-1] == (3, 5, 0, 0, "skipped")
    skip = Run.objects.latest("pk").skip
    assert skip is not None
    assert skip.reason == "restored"
    assert skip.by
    assert audit.audit() == []
    assert_all_is_well(gold)


def test_a_skip_of_nothing_is_not_recorded(gold: Audience) -> None:
    switch_off(gold.install)
    assert [skips.skip(gold.install_id, by="me", reason="restored").total for _ in range(2)] == [3, 0]
    assert Skip.objects.count() == 1


def test_later_events_are_delivered_after_a_skip(gold: Audience, odp: ThreadedSandbox) -> None:
    switch_off(gold.install)
    skips.skip(gold.install_id, by="me", reason="restored")
    Install.objects.update(enabled=True)
    happen(gold, ("b", "exit", 9), ("c", "enter", 9))
    drain_all(gold.install)
    assert odp.members("lytics_gold") == ["a", "c"]
    assert_all_is_well(gold)


def test_find_a_customer_says_that_an_event_was_skipped(gold: Audience) -> None:
    switch_off(gold.install)
    skips.skip(gold.install_id, by="me", reason="restored")
    newest, older = customers.customer_history("a").statuses
    assert (state.of_event(newest).word, state.of_event(older).word) == ("skipped", "delivered")
    assert "skipped by me: restored" in state.of_event(newest).why
    (only,) = customers.customer_history("d").statuses
    assert state.of_event(only).word == "skipped"


def test_an_active_install_is_not_skipped(gold: Audience) -> None:
    with pytest.raises(CommandError, match="Switch it off first"):
        run("skip_backlog", "Shop", "--reason", "restored", "--yes")
    assert cursor_of(gold) == 2


def test_an_install_that_can_not_be_skipped_keeps_no_other_from_being_skipped_and_reported(gold: Audience) -> None:
    switch_off(gold.install)
    make_install(name="Active")
    Install.objects.filter(pk=make_install(name="Later").pk).update(enabled=False)
    said = io.StringIO()
    with pytest.raises(CommandError, match=r"^Active: The install is active\. [^\n]*$"):
        call_command("skip_backlog", "--all", "--reason", "restored", "--yes", stdout=said)
    assert said.getvalue().splitlines() == [
        "Shop: 3 events of 1 audiences skipped, 0 unfinished resends stopped",
        "  lytics_gold  3",
        "Later: 0 events of 0 audiences skipped, 0 unfinished resends stopped",
    ]


def test_a_lane_that_a_worker_holds_is_not_skipped(gold: Audience) -> None:
    claim(gold.install)
    switch_off(gold.install)
    with pytest.raises(CommandError, match="A worker still holds"):
        run("skip_backlog", "Shop", "--reason", "restored", "--yes")
    assert cursor_of(gold) == 2
    assert not Skip.objects.exists()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "Name one install"),
        (["Shop", "--all"], "Name one install"),
        (["Nobody"], "No install is called 'Nobody'"),
        (["Twice"], "2 installs are called 'Twice'"),
        (["Shop", "--reason", " "], "must say something"),
    ],
)
def test_a_slip_in_the_words_is_one_sentence(gold: Audience, words: list[str], says: str) -> None:
    for _ in range(2):
        make_install(name="Twice")
    with pytest.raises(CommandError, match=says):
        run("skip_backlog", "--reason", "restored", *words)


def test_unfinished_resends_stop_and_open_requests_are_not_sent_again(gold: Audience) -> None:
    lease = claim(gold.install)
    request_records.open_delivery(
        lease, endpoint="/v3/profiles", items=3, size=2, sent={gold.pk: 3}, of={gold.pk: 3}, body=b"[]"
    )
    Lane.objects.update(lease_expires_at=now())
    Resend.objects.create(install=gold.install, audience=gold, kind="resync", total=2, by="me", reason="why")
    other = make_install(name="Other")
    others = [delivery_of(other, closed_at=None, outcome=""), delivery_of(other, outcome="unknown")]
    switch_off(gold.install)
    found = skips.skip(gold.install_id, by="me", reason="restored")
    assert (found.total, found.resends) == (3, 1)
    assert Resend.objects.get().stopped_by == "me"
    assert Delivery.objects.get(closed_at=None) == others[0], "a skip ends no request of another install"
    assert unconfirmed.doubtful(seconds=0) == [others[1].pk]
    assert [outcome for *_, outcome in runs_of(gold)] == ["delivered", "unknown", "skipped"]


# --- the whole way, with pg_dump and pg_restore ---------------------------------------------------------------


class Servers:
    """The database of the test, and a second one into which its dump is restored, on the same server."""

    NAME = "restored"

    def __init__(self, folder: Path) -> None:
        self.dump = folder / "lytics-sync.dump"
        self.binaries = embedded._postgres_binaries()

    def take(self) -> None:
        self._pg("pg_dump", "--format=custom", f"--file={self.dump}", self._url(connection.settings_dict["NAME"]))

    def restore(self) -> None:
        """Replace the current database, as a restore into a new cluster does."""
        with connection.cursor() as cursor:
            cursor.execute(f"CREATE DATABASE {self.NAME}")
        self._pg("pg_restore", "--no-owner", f"--dbname={self._url(self.NAME)}", str(self.dump))
        connections["default"].close()
        connection.settings_dict["NAME"] = self.NAME

    def _pg(self, program: str, *words: str) -> None:
        subprocess.run([str(self.binaries / program), *words], check=True, capture_output=True)

    def _url(self, name: str) -> str:
        return os.environ["DATABASE_URL"].rpartition("/")[0] + f"/{name}"


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[Servers]:
    before = connection.settings_dict["NAME"]
    made = Servers(tmp_path)
    yield made
    connection.close()
    connection.settings_dict["NAME"] = before
    with connection.cursor() as cursor:
        cursor.execute(f"DROP DATABASE IF EXISTS {made.NAME}")


def test_a_restore_by_the_runbook_loses_only_what_the_database_lost(odp: ThreadedSandbox, servers: Servers) -> None:
    """Lytics' truth is kept beside; each step of the runbook is one line."""
    shop = make_install(odp)
    gold = make_audience(shop, "gold", provisioned=False)
    lytics: set[str] = set()

    def change(at: int, joined: list[str], left: list[str]) -> None:
        happen(gold, *((name, "enter", at) for name in joined), *((name, "exit", at) for name in left))
        lytics.update(joined)
        lytics.difference_update(left)

    people = numbered(60)
    change(1, people[:40], [])
    drain_all(shop)
    change(2, people[40:50], people[:10])
    servers.take()  # with a backlog of 20 events
    drain_all(shop)
    # After the dump and delivered: half of the backlog's people change their minds again.
    change(3, [*people[:5], *people[50:60]], people[40:45])
    drain_all(shop)
    assert set(odp.members("lytics_gold")) == lytics
    # Accepted and never delivered: lost with the database.
    change(4, [], people[20:23])
    lost = set(people[20:23])

    servers.restore()
    assert skips.backlog(shop.pk).total == 20
    run("switch_install", "--all", "--to", "off")
    run("skip_backlog", "--all", "--reason", "restored from the dump of 02:00", "--yes")
    run("switch_install", "--all", "--to", "on")
    happen(gold, *((name, "enter", 5) for name in sorted(lytics)))  # Lytics sends existing users again
    drain_all(Install.objects.get())

    assert set(odp.members("lytics_gold")) == lytics | lost
    assert audit.audit() == []


def test_an_audit_and_a_repair_after_a_restore_make_both_ends_equal(
    odp: ThreadedSandbox, servers: Servers, lytics: Lytics, settings: Settings
) -> None:
    """What was accepted and lost with the database is known to Lytics alone."""
    settings.AUDIT_SETTLE_SECONDS = 0
    settings.AUDIT_LYTICS_REQUESTS_PER_SECOND = settings.AUDIT_ODP_REQUESTS_PER_SECOND = 1_000
    shop = make_install(odp)
    lytics_account.set_token(shop, "api-token")
    gold = make_audience(shop, "gold", provisioned=False)
    enter(gold, "stays", "leaves", "returns")
    drain_all(shop)
    happen(gold, ("returns", "exit", 2))
    servers.take()
    happen(gold, ("leaves", "exit", 3), ("returns", "enter", 3))
    drain_all(shop)
    happen(gold, ("joins", "enter", 4), ("stays", "exit", 4))
    lytics.members = ["joins", "returns"]

    servers.restore()
    run("switch_install", "--all", "--to", "off")
    run("skip_backlog", "--all", "--reason", "restored", "--yes")
    run("switch_install", "--all", "--to", "on")
    restored = Audience.objects.select_related("install").get()
    found = audits.ask(restored, mode="full", by="kim")
    assert found is not None
    assert next(audits.finish([found])).differing == 3
    assert resends.repair(Audit.objects.get(pk=found.pk), by="kim", reason="restored")
    resends.advance_all(restored.install_id, seconds=PATIENCE)
    drain_all(restored.install)

    again = Audit.objects.latest("pk")
    assert next(audits.finish([again])).differing == 0
    assert odp.members("lytics_gold") == ["joins", "returns"]
    assert audit.audit() == []


def test_without_the_runbook_the_restored_backlog_makes_wrong_members(odp: ThreadedSandbox, servers: Servers) -> None:
    """Shows why the runbook is needed: if this passes without it, the page can be shorter."""
    shop = make_install(odp)
    gold = make_audience(shop, "gold", provisioned=False)
    enter(gold, "stays", "returns")
    drain_all(shop)
    happen(gold, ("returns", "exit", 2), ("visits", "enter", 2))
    servers.take()
    happen(gold, ("returns", "enter", 3), ("visits", "exit", 3))
    drain_all(shop)
    assert odp.members("lytics_gold") == ["returns", "stays"]
    servers.restore()
    drain_all(Install.objects.get())
    assert odp.members("lytics_gold") == ["stays", "visits"]
