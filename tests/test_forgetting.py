"""Forgetting a customer: out of every table, counts stay, and a later event is stored as usual."""

import io
import json
import re
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from cryptography.fernet import Fernet
from django.contrib.admin.models import LogEntry
from django.core.management import CommandError, call_command
from django.db import DatabaseError, connection, transaction
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils.timezone import now

from audiences.admin import forgetting as forgetting_pages
from audiences.delivery import holds
from audiences.front import unfinished_forgetting
from audiences.front.alerts import EVERYWHERE, Extent
from audiences.insight import customer_export, search_index
from audiences.models import (
    Audience,
    Audit,
    Delivery,
    Difference,
    Event,
    Forgotten,
    GuidedChange,
    Install,
    Lane,
    Membership,
    Parked,
    Resend,
    Retirement,
    ScannedMember,
)
from audiences.operations import audit, forgetting, forgetting_proofs, former_stores, reconcile, resends, retiring
from audiences.receiving import ingest
from odp.client import Client as OdpClient
from odp.outcomes import Answer, Outcome
from sandbox.odp.testing import ThreadedSandbox
from tests.delivering import (
    a_log,
    assert_all_is_well,
    claim,
    drain_all,
    enter,
    happen,
    make_audience,
    make_delivered,
    make_install,
)
from tests.messages import body, message
from tests.threads import PATIENCE, eventually, start, waiting_for_a_lock

pytestmark = pytest.mark.django_db(transaction=True)

KIM = "kim@example.com"
# The lists of an export.
HELD = ("memberships", "events", "requests", "parked", "profiles", "scanned", "differences")


@pytest.fixture
def gold(shop: Install) -> Audience:
    return make_delivered(shop, KIM, "lee")


def forget(shop: Install, **options: Any) -> Forgotten:
    asked = forgetting.ask(shop, KIM, **{"tell_odp": False, "by": "dpo", **options})
    assert asked is not None
    assert forgetting.advance(asked)
    return Forgotten.objects.get(pk=asked.pk)


def rows_that_name(text: str) -> list[str]:
    """Every row of every table of ours in which the text stands, requests unpacked."""
    found = []
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT relname FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace"
            " AND (relname LIKE 'audiences%' OR relname LIKE 'django_admin%')"
        )
        for (table,) in cursor.fetchall():
            cursor.execute(f"SELECT count(*) FROM {table} AS row WHERE row::text LIKE %s", [f"%{text}%"])
            if cursor.fetchone() != (0,):
                found.append(table)
    from audiences import request_bodies
    from audiences.encryption import decrypt
    from audiences.models import Delivery

    found += [
        f"request of delivery {pk}"
        for pk, packed in Delivery.objects.filter(request__isnull=False).values_list("pk", "request")
        if text in request_bodies.unpack(bytes(packed or b""))
    ]
    found += [
        f"parked {pk}"
        for pk, raw in Parked.objects.filter(raw__isnull=False).values_list("pk", "raw")
        if text in decrypt(bytes(raw or b"")).decode(errors="replace")
    ]
    return sorted(found)


# --- out of every table --------------------------------------------------------------------------------------


def test_no_table_has_the_person_afterwards(odp: ThreadedSandbox, shop: Install, gold: Audience) -> None:
    odp.fault({"path": "/v3/profiles"}, {"refuse_items": {"identifiers": [KIM], "named": True, "message": f"no {KIM}"}})
    happen(gold, (KIM, "exit", 2))
    drain_all(shop)
    odp.clear_faults()
    without_field = message(who=KIM)
    without_field["data"]["email"] = without_field["data"].pop("_id")
    ingest.receive(shop, body(without_field))
    report = Audit.objects.create(install=shop, audience=gold, mode="full", by="kim", after_identifier=KIM)
    Difference.objects.create(audit=report, identifier=KIM, kind="not_here", why="")
    ScannedMember.objects.create(audit=report, identifier=KIM)
    Difference.objects.create(audit=report, identifier="of a list", kind="not_here", profile=KIM)
    ScannedMember.objects.create(audit=report, identifier="of a list", profile=KIM)
    assert retiring.retire(gold, by="sam", reason="left the job")
    Retirement.objects.update(after_identifier=KIM)
    before = rows_that_name(KIM)
    assert {"audiences_event_1", "audiences_membership", "audiences_difference"} <= set(before)
    assert any(name.startswith("request of delivery") for name in before)
    assert any(name.startswith("parked") for name in before)

    done = forget(shop)

    assert rows_that_name(KIM) == []
    assert done.counts["events"] == 2
    assert done.counts["parked"] == 2
    assert Parked.objects.filter(closed_at=None).count() == 0


def test_numbers_and_counts_stay_and_every_invariant_holds(shop: Install, gold: Audience) -> None:
    happen(gold, (KIM, "exit", 2), (KIM, "enter", 3))
    drain_all(shop)
    events = Event.objects.count()
    forget(shop)
    assert Event.objects.count() == events
    assert Lane.objects.get(pk=gold.pk).member_count == 1
    assert audit.audit() == []
    assert_all_is_well(gold)


def test_other_customers_and_installs_are_untouched(odp: ThreadedSandbox, shop: Install, gold: Audience) -> None:
    other = make_audience(make_install(odp, name="Other"), "other", provisioned=False)
    enter(other, KIM)
    drain_all(other.install)
    happen(gold, (f"{KIM}.au", "enter", 1))
    drain_all(shop)
    forget(shop)
    assert Membership.objects.filter(audience=other, identifier=KIM).exists()
    assert Membership.objects.filter(audience=gold, identifier=f"{KIM}.au").exists()


def test_the_function_of_the_database_writes_nothing_but_a_token(gold: Audience) -> None:
    with connection.cursor() as cursor, pytest.raises(DatabaseError, match="not a token"):
        cursor.execute("SELECT forget_customer(%s, 'lee', 'kim', '{}', '{}')", [gold.install_id])


# --- ODP -----------------------------------------------------------------------------------------------------


def test_odp_keeps_the_person_without_exits(odp: ThreadedSandbox, shop: Install, gold: Audience) -> None:
    forget(shop)
    assert odp.members("lytics_gold") == [KIM, "lee"]


def test_with_exits_odp_gets_them_first(odp: ThreadedSandbox, shop: Install, gold: Audience) -> None:
    silver = make_audience(shop, "silver", provisioned=False)
    enter(silver, KIM)
    drain_all(shop)
    asked = forgetting.ask(shop, KIM, tell_odp=True, by="dpo")
    assert asked is not None
    assert not forgetting.advance(asked)
    assert not forgetting.advance(asked), "ODP has not been told yet"
    assert Event.objects.filter(identifier=KIM).count() == 4
    drain_all(shop)
    forgetting.advance_all()
    assert odp.members("lytics_gold") == ["lee"]
    assert odp.members("lytics_silver") == []
    assert rows_that_name(KIM) == []


def test_neither_waiting_nor_resent_events_bring_the_person_back(
    odp: ThreadedSandbox, shop: Install, gold: Audience
) -> None:
    enter(gold, KIM, "ann", at=5)
    forget(shop)
    drain_all(shop)
    assert odp.members("lytics_gold") == ["ann", KIM, "lee"]
    assert resends.resync(gold, by="kim", reason="try")
    resends.advance_all(shop.pk, seconds=PATIENCE)
    drain_all(shop)
    written = [request for request in odp.requests(bodies=True) if request["method"] == "POST"]
    assert not any("lytics-sync-forgotten-" in str(request.get("body")) for request in written)
    assert audit.audit() == []


def test_a_later_event_is_stored_like_that_of_a_new_customer(
    odp: ThreadedSandbox, shop: Install, gold: Audience
) -> None:
    forget(shop, tell_odp=False)
    enter(gold, KIM, at=9)
    drain_all(shop)
    assert Membership.objects.get(audience=gold, identifier=KIM).is_member
    assert odp.members("lytics_gold") == [KIM, "lee"]
    assert audit.audit() == []


# --- proof, waiting, trying again ----------------------------------------------------------------------------


def test_the_proof_does_not_reveal_the_person(shop: Install, gold: Audience) -> None:
    done = forget(shop, reason="request 7")
    assert (done.by, done.reason, done.identifier) == ("dpo", "request 7", "")
    (proof,) = forgetting_proofs.proofs(KIM)
    assert proof.startswith("This customer was forgotten in Shop on ")
    assert proof.endswith(f" UTC (number {done.pk}).")
    assert forgetting_proofs.proofs("lee") == forgetting_proofs.proofs(KIM, install=make_install()) == []


def test_the_proof_is_on_the_page_of_the_customer_and_in_the_command(
    shop: Install, gold: Audience, boss: Client
) -> None:
    with pytest.raises(CommandError, match=r"This customer was not forgotten in Shop\."):
        call_command("forget", "Shop", KIM, "--check")
    asked = forgetting.ask(shop, KIM, tell_odp=False, by="dpo")
    assert asked is not None
    with pytest.raises(CommandError, match="not forgotten in Other"):
        call_command("forget", make_install(name="Other").public_id, KIM, "--check")
    assert "is being forgotten in Shop" in boss.post(reverse("find_customer"), {"identifier": KIM}).content.decode()
    assert forgetting.advance(asked)
    out = io.StringIO()
    call_command("forget", "Shop", KIM, "--check", stdout=out)
    shown = boss.post(reverse("find_customer"), {"identifier": KIM}).content.decode()
    assert out.getvalue().strip() in shown
    assert "was forgotten in Shop" in out.getvalue()
    assert "forgotten" not in boss.post(reverse("find_customer"), {"identifier": "lee"}).content.decode()


def _pause(shop: Install, gold: Audience) -> None:
    Lane.objects.filter(pk=gold.pk).update(paused_at=now(), paused_by="kim", pause_reason="Later.")


def _block(shop: Install, gold: Audience) -> None:
    Lane.objects.filter(pk=gold.pk).update(blocked_at=now(), block_reason="Of another type.")


def _never_run(shop: Install, gold: Audience) -> None:
    Forgotten.objects.update(exits=None)


def _switch_off(shop: Install, gold: Audience) -> None:
    Install.objects.filter(pk=shop.pk).update(enabled=False)


def _change_account(shop: Install, gold: Audience) -> None:
    GuidedChange.objects.create(install=shop, kind=GuidedChange.Kind.ACCOUNT, by="kim", reason="Moved.")


def _reject(shop: Install, gold: Audience) -> None:
    Parked.objects.create(install=shop, audience=gold, identifier=KIM, reason="refused_by_odp")


def _take_over(shop: Install, gold: Audience) -> None:
    other = make_audience(shop, "silver")
    Membership.objects.filter(audience=gold, identifier=KIM).update(rejected=True)
    Resend.objects.create(install=shop, audience=other, kind="leave", upto=gold.pk, total=1, by="kim", reason="Merged.")


def _leave_unanswered(shop: Install, gold: Audience) -> None:
    Delivery.objects.update(outcome=Outcome.UNKNOWN, reconciled_at=None)


@pytest.mark.parametrize(
    ("hold_up", "says"),
    [
        (_pause, "ODP to get the exits (lytics_gold)"),
        (_block, "ODP to get the exits (lytics_gold)"),
        (_never_run, "the next run of the workers"),
        (_switch_off, "the install, which is switched off"),
        (_change_account, "the change to another ODP account"),
        (_reject, "an item of the customer that ODP rejected"),
        (_take_over, "a take-over that still has to read the customer"),
        (_leave_unanswered, "a response of ODP, or for the end of a request"),
    ],
)
def test_a_customer_who_is_not_forgotten_for_an_hour_is_on_now_with_the_reason(
    shop: Install, gold: Audience, boss: Client, hold_up: Callable[[Install, Audience], None], says: str
) -> None:
    """Such a request has a legal deadline. Until now only the page of that customer showed that it was unfinished."""
    asked = forgetting.ask(shop, KIM, tell_odp=True, by="dpo")
    assert asked is not None
    forgetting.advance(asked)
    if hold_up not in (_pause, _block, _switch_off):
        drain_all(shop)
    hold_up(shop, gold)
    if hold_up is not _never_run:
        forgetting.advance_all()
    assert list(unfinished_forgetting.alerts(EVERYWHERE)) == []
    Forgotten.objects.update(asked_at=now() - timedelta(hours=1, seconds=1))
    forgetting.ask(shop, "lee", tell_odp=True, by="dpo")
    (alert,) = unfinished_forgetting.alerts(Extent(install_id=shop.pk))
    assert (alert.what, alert.why) == (
        "1 customer isn't forgotten yet (Shop)",
        f"The oldest request waits for {says}.",
    )
    assert unfinished_forgetting.alerts(Extent(install_id=shop.pk + 1)) == []
    page = boss.get(reverse("admin:index")).content.decode()
    assert "1 customer isn&#x27;t forgotten yet (Shop)" in page
    assert KIM not in page
    assert (
        says.removesuffix(" (lytics_gold)") in boss.post(reverse("find_customer"), {"identifier": KIM}).content.decode()
    )


def test_now_names_an_unfinished_request_whose_customer_no_key_opens(
    shop: Install, gold: Audience, settings: Any
) -> None:
    forgetting.ask(shop, KIM, tell_odp=True, by="dpo")
    Forgotten.objects.update(asked_at=now() - timedelta(hours=2), exits={})
    settings.FIELD_ENCRYPTION_KEYS = [Fernet.generate_key().decode()]
    (alert,) = unfinished_forgetting.alerts(EVERYWHERE)
    assert alert.why == "The oldest request waits for the key that it was encrypted with."


def test_a_person_in_a_request_under_way_is_forgotten_after_it(shop: Install, gold: Audience) -> None:
    enter(gold, KIM, at=5)
    lease = claim(shop)
    asked = forgetting.ask(shop, KIM, tell_odp=False, by="dpo")
    assert asked is not None
    with pytest.raises(forgetting.BusyError):
        forgetting.advance(asked)
    forgetting.advance_all()
    assert Event.objects.filter(identifier=KIM).exists()
    holds.give_back(lease)
    forgetting.advance_all()
    assert rows_that_name(KIM) == []


def test_items_that_no_key_opens_keep_nobody_from_being_forgotten(shop: Install, gold: Audience, settings: Any) -> None:
    ingest.receive(shop, b"not json")
    with_the_old_key = Parked.objects.get()
    settings.FIELD_ENCRYPTION_KEYS = [Fernet.generate_key().decode()]
    ingest.receive(shop, b"not json, about " + KIM.encode())
    done = forget(shop)
    assert done.counts["parked"] == 1
    assert Parked.objects.get(pk=with_the_old_key.pk).raw is not None


def _resync(shop: Install, gold: Audience) -> None:
    assert resends.resync(gold, by="sam", reason="x")
    resends.advance_all(shop.pk, seconds=PATIENCE)


def _retire(shop: Install, gold: Audience) -> None:
    assert retiring.retire(gold, by="sam", reason="x")
    retiring.advance(Retirement.objects.get().pk)


def _take_back(shop: Install, gold: Audience) -> None:
    assert retiring.take_back(gold, by="sam", reason="x")
    retiring.advance(Retirement.objects.get().pk)


def _reconcile(shop: Install, gold: Audience) -> None:
    assert reconcile.reconcile() == 1


@pytest.mark.parametrize("append_again", [_resync, _retire, _take_back, _reconcile])
def test_a_customer_who_is_forgotten_while_events_are_appended_again_is_not_appended(
    shop: Install,
    gold: Audience,
    settings: Any,
    monkeypatch: pytest.MonkeyPatch,
    append_again: Callable[[Install, Audience], None],
) -> None:
    """What is appended was read before."""
    if append_again is _take_back:
        _retire(shop, gold)
        drain_all(shop)
    if append_again is _reconcile:
        settings.RECONCILE_AFTER_SECONDS = 0
        Delivery.objects.update(outcome=Outcome.UNKNOWN)
        happen(gold, (KIM, "exit", 2))
        drain_all(shop)
    asked = forgetting.ask(shop, KIM, tell_odp=False, by="dpo")
    assert asked is not None
    append, forgets = ingest.append, []

    def forget_first(*args: Any, **kwargs: Any) -> Any:
        forgets.extend(start(lambda: forgetting.advance_all()))
        eventually(lambda: forgets[0].done() or waiting_for_a_lock())
        return append(*args, **kwargs)

    monkeypatch.setattr(ingest, "append", forget_first)
    append_again(shop, gold)
    forgets[0].result(PATIENCE)
    monkeypatch.undo()
    drain_all(shop)
    forgetting.advance_all()
    asked.refresh_from_db()
    assert asked.ended_at is not None
    assert rows_that_name(KIM) == []
    assert_all_is_well(gold)


def test_one_request_per_person_at_a_time(shop: Install, gold: Audience) -> None:
    assert forgetting.ask(shop, KIM, tell_odp=True, by="dpo") is not None
    assert forgetting.ask(shop, KIM, tell_odp=True, by="dpo") is None


def test_a_request_without_exits_replaces_one_whose_exits_can_not_be_sent(
    odp: ThreadedSandbox, shop: Install, gold: Audience, boss: Client
) -> None:
    """An install whose account is gone stays off for good, and the customer could never be forgotten."""
    Install.objects.update(enabled=False)
    asked = forgetting.ask(shop, KIM, tell_odp=True, by="dpo", reason="request 7")
    assert asked is not None
    assert not forgetting.advance(asked)
    assert forgetting.ask(shop, KIM, tell_odp=True, by="dpo") is None
    other = forgetting.ask(make_install(odp, name="Other"), KIM, tell_odp=True, by="dpo")
    assert other is not None
    note = note_on(found_by(boss))
    answer = {"note": note, "forget": shop.pk, "reason": "request 7, account gone"}
    assert boss.post(reverse("find_customer"), answer, follow=True).status_code == 200
    other.refresh_from_db()
    assert other.tell_odp, "the other install has an account"
    other.delete()
    replaced = Forgotten.objects.get()
    assert (replaced.pk, replaced.tell_odp, replaced.reason) == (asked.pk, False, "request 7, account gone")
    forgetting.advance_all()
    assert (rows_that_name(KIM), odp.members("lytics_gold")) == ([], [KIM, "lee"])
    assert forgetting.ask(shop, KIM, tell_odp=False, by="dpo") is not None, "a later event begins anew"


def test_a_second_worker_does_not_forget_again(shop: Install, gold: Audience) -> None:
    first = forgetting.ask(shop, KIM, tell_odp=False, by="dpo")
    second = Forgotten.objects.get()
    assert first is not None
    assert forgetting.advance(first)
    assert forgetting.advance(second)
    assert Forgotten.objects.get().counts["events"] == 1


def test_a_failing_request_does_not_stop_the_others(
    shop: Install, gold: Audience, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = forgetting.ask(shop, KIM, tell_odp=False, by="dpo")
    second = forgetting.ask(shop, "lee", tell_odp=False, by="dpo")
    assert first is not None
    assert second is not None
    real = forgetting._take_out

    def fail_once(forgotten: Forgotten) -> None:
        if forgotten.pk == first.pk:
            raise ValueError
        real(forgotten)

    monkeypatch.setattr(forgetting, "_take_out", fail_once)
    forgetting.advance_all()
    assert Forgotten.objects.get(pk=second.pk).ended_at is not None


def test_an_account_that_does_not_answer_is_asked_once_in_a_run(
    shop: Install, gold: Audience, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request that gets no response takes 8 s, during which no other customer is forgotten."""
    GuidedChange.objects.create(
        install=shop, kind="mechanism", before="list", after="attribute", by="sam", reason="x", ended_at=now()
    )
    asked: list[str] = []

    def silent(client: OdpClient, method: str, path: str, **options: Any) -> Answer:
        asked.append(path)
        if len(asked) < 9:
            forgetting.advance_all()  # the next run begins
        return Answer(Outcome.RETRY_LATER, "no response")

    for who in (KIM, "lee"):
        forgetting.ask(shop, who, tell_odp=True, by="dpo")
    forgetting.advance_all()
    drain_all(shop)
    forgetting.ask(make_install(name="Other"), KIM, tell_odp=False, by="dpo")
    monkeypatch.setattr(OdpClient, "call", silent)
    forgetting.advance_all()
    assert len(asked) == 1
    assert Forgotten.objects.filter(ended_at__isnull=False).get().install.name == "Other"


def test_exits_for_an_earlier_mechanism_end_when_the_install_is_switched_off(
    shop: Install, gold: Audience, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = {"kind": "mechanism", "before": "list", "after": "attribute", "by": "sam", "reason": "x"}
    GuidedChange.objects.create(install=shop, **usual, ended_at=now())
    for audience in (gold, make_audience(shop, "silver")):
        row = {"audience": audience, "identifier": "sue", "is_member": False}
        Membership.objects.create(**row, occurred_ns=1, sequence=1)
    asked: list[str] = []

    def switch_off(client: OdpClient, method: str, path: str, **options: Any) -> Answer:
        asked.append(path)
        Install.objects.update(enabled=False)
        return Answer(Outcome.DELIVERED, "")

    monkeypatch.setattr(OdpClient, "call", switch_off)
    assert [former_stores.send_exits(shop.pk, "sue") for _ in range(2)] == [False, False]
    assert len(asked) == 1


@pytest.mark.parametrize("action", ["forget", "export"])
def test_a_small_part_of_the_log_is_read_however_long_it_is(shop: Install, action: str) -> None:
    """PostgreSQL would begin a joined query with all events of the install: half a minute with ten million."""
    audience = make_audience(shop)
    with transaction.atomic():  # an autovacuum of the committed log would summarise a part of it first
        a_log(audience, 300_000)
        assert search_index.summarise() > 300
    with CaptureQueriesContext(connection) as seen:
        if action == "export":
            assert len(customer_export.export(shop, "kim")["events"]) == 4
        else:
            asked = forgetting.ask(shop, "kim", tell_odp=False, by="dpo")
            assert asked is not None
            assert forgetting.advance(asked)
    texts = [one["sql"] or "" for one in seen.captured_queries]  # of a prepared statement, None
    searches = [text for text in texts if "identifier" in text and "'kim'" in text]
    of_the_log = [sql for sql in searches if "audiences_event" in sql and sql.startswith(("SELECT", "WITH"))]
    assert len(of_the_log) == 1
    with connection.cursor() as cursor, transaction.atomic():
        cursor.execute("SET LOCAL enable_seqscan = off")
        cursor.execute(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {of_the_log[0]}")
        ((told,),) = cursor.fetchall()
        cursor.execute("SELECT pg_relation_size('audiences_event_1') / current_setting('block_size')::int")
        ((blocks,),) = cursor.fetchall()
    plan = (told if isinstance(told, list) else json.loads(told))[0]["Plan"]
    assert (plan["Shared Hit Blocks"] + plan["Shared Read Blocks"]) / blocks < 0.2


# --- the commands --------------------------------------------------------------------------------------------


def run(*words: str) -> str:
    out = io.StringIO()
    call_command(*words, stdout=out)
    return out.getvalue()


def test_the_command_forgets_and_prints_the_counts(shop: Install, gold: Audience) -> None:
    said = run("forget", "Shop", KIM, "--yes", "--reason", "request 7")
    assert "events 1, deliveries 1, memberships 1" in said
    assert KIM not in said
    assert rows_that_name(KIM) == []


def test_the_command_asks_and_takes_one_word_for_a_yes(
    shop: Install, gold: Audience, monkeypatch: pytest.MonkeyPatch
) -> None:
    for typed in ("", "no", "yes"):
        monkeypatch.setattr("builtins.input", lambda _, typed=typed: typed)
        with pytest.raises(CommandError, match="Nothing was done"):
            run("forget", "Shop", KIM)
    assert rows_that_name(KIM) != []
    monkeypatch.setattr("builtins.input", lambda _: "forget ")
    assert "events 1" in run("forget", "Shop", KIM)


def test_the_command_has_exits_sent_first(shop: Install, gold: Audience, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("audiences.management.commands.forget.WAIT_SECONDS", -1)
    with pytest.raises(CommandError, match="ODP has not accepted the exits yet"):
        run("forget", "Shop", KIM, "--yes", "--tell-odp", "--reason", "request 7")
    asked = Forgotten.objects.get()
    assert (asked.tell_odp, asked.ended_at, asked.reason) == (True, None, "request 7")
    with pytest.raises(CommandError, match="is being forgotten already"):
        run("forget", "Shop", KIM, "--yes", "--tell-odp")

    def busy(_: Forgotten) -> bool:
        raise forgetting.BusyError

    monkeypatch.setattr(forgetting, "advance", busy)
    with pytest.raises(CommandError, match="The workers finish it"):
        run("forget", "Shop", "lee", "--yes")


def test_with_exits_an_install_that_is_off_forgets_when_it_is_on(
    odp: ThreadedSandbox, shop: Install, gold: Audience, boss: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    Install.objects.update(enabled=False)
    page = boss.post(reverse("find_customer"), {"note": note_on(found_by(boss)), "forget": shop.pk})
    assert "The install is off: with exits" in page.content.decode()
    monkeypatch.setattr("audiences.management.commands.forget.WAIT_SECONDS", 0)
    with pytest.raises(CommandError, match=r"Shop is switched off\. .* when it is on again"):
        run("forget", "Shop", KIM, "--yes", "--tell-odp")
    drain_all(shop)
    forgetting.advance_all()
    assert (odp.members("lytics_gold"), Forgotten.objects.get().ended_at) == ([KIM, "lee"], None)
    Install.objects.update(enabled=True)
    drain_all(shop)
    forgetting.advance_all()
    assert (odp.members("lytics_gold"), rows_that_name(KIM)) == (["lee"], [])
    Install.objects.update(enabled=False)
    assert "Forgotten" in run("forget", "Shop", "lee", "--yes")  # without exits at once


@pytest.mark.parametrize(
    ("words", "says"), [(["Nowhere", KIM], "No install is called 'Nowhere'"), (["Shop", ""], "The identifier is empty")]
)
def test_the_command_names_the_mistake(gold: Audience, words: list[str], says: str) -> None:
    with pytest.raises(CommandError, match=says):
        run("forget", "--yes", *words)


def test_everything_about_a_customer_can_be_exported(odp: ThreadedSandbox, shop: Install, gold: Audience) -> None:
    report = Audit.objects.create(install=shop, audience=gold, mode="full", by="kim", ended_at=now())
    Difference.objects.create(audit=report, identifier=KIM, kind="not_here", why="Lytics has not sent the entry.")
    odp.fault({"path": "/v3/profiles"}, {"refuse_items": {"identifiers": [KIM], "named": True}})
    happen(gold, (KIM, "exit", 2))
    drain_all(shop)
    told = json.loads(run("export_customer", "Shop", KIM))
    assert told == json.loads(json.dumps(customer_export.export(shop, KIM)))
    assert [event["event"] for event in told["events"]] == ["enter", "exit"]
    assert told["memberships"][0]["audience"] == "lytics_gold"
    assert len(told["parked"]) == 1
    assert told["differences"][0]["why"] == "Lytics has not sent the entry."
    forget(shop)
    after = customer_export.export(shop, KIM)
    assert [after[name] for name in HELD] == [[]] * len(HELD)


# --- the page ------------------------------------------------------------------------------------------------


def found_by(client: Client) -> str:
    return client.post(reverse("find_customer"), {"identifier": KIM}).content.decode()


def note_on(page: str) -> str:
    found = re.search(r'name="note" value="([^"]+)"', page)
    assert found is not None
    return found[1]


def test_the_page_of_a_customer_forgets_after_a_confirmation(shop: Install, gold: Audience, boss: Client) -> None:
    note = note_on(found_by(boss))
    asked = boss.post(reverse("find_customer"), {"note": note, "forget": shop.pk})
    assert "can&#x27;t be undone" in asked.content.decode()
    assert asked.context["form"]["tell_odp"].value() is True, "without exits ODP keeps the person"
    assert not Forgotten.objects.exists()
    answer = {"note": note, "forget": shop.pk, "reason": "request 7"}
    told = [boss.post(reverse("find_customer"), answer, follow=True).content.decode() for _ in range(2)]
    assert [forgetting_pages.UNDER_WAY in page for page in told] == [False, True]
    forgetting.advance_all()
    assert Forgotten.objects.get().ended_at is not None
    assert LogEntry.objects.filter(change_message="Asked to forget a customer. Reason: request 7").count() == 1
    assert rows_that_name(KIM) == []
    assert "Forget</button>" not in found_by(boss)


def test_the_page_of_a_customer_downloads_all_stored_data(shop: Install, gold: Audience, boss: Client) -> None:
    note = note_on(found_by(boss))
    answered = boss.post(reverse("find_customer"), {"note": note, "export": shop.pk})
    assert json.loads(answered.content) == json.loads(json.dumps(customer_export.export(shop, KIM)))
    assert LogEntry.objects.latest("pk").change_message == "Downloaded everything about one customer."


@pytest.mark.parametrize("what", ["forget", "export"])
def test_only_admins_may_forget_and_export(shop: Install, gold: Audience, operator: Client, what: str) -> None:
    page = found_by(operator)
    assert "Forget</button>" not in page
    answered = operator.post(reverse("find_customer"), {"note": note_on(page), what: shop.pk, "reason": "x"})
    assert answered.status_code == 403
    assert not Forgotten.objects.exists()
