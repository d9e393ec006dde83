"""The doctor: each check seen good and seen bad, against the sandboxes and real servers; the command and the page.

The checks of the Lytics job are in test_doctor_lytics.py, those of the public address in test_doctor_public.py.
"""

import io
import json
import os
import shutil
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import redis
from django.core.management import call_command
from django.db import connection
from django.db.models import F
from django.test import Client
from django.urls import reverse
from django.utils.timezone import now
from pytest_django.fixtures import Settings

from audiences.agreement import audits
from audiences.delivery import holds
from audiences.insight import heartbeats, schedule, stalled_work, trials
from audiences.models import (
    Audience,
    Audit,
    Difference,
    Event,
    FutureTime,
    Install,
    Lane,
    LogPart,
    Membership,
    Pruning,
    Retirement,
    Run,
    Twin,
    Worker,
)
from audiences.operations import doctor, parts, pruning, twins
from audiences.operations.doctor import registry, service
from audiences.operations.doctor.odp_account import READ
from audiences.operations.doctor.registry import NO_TIME, Check
from audiences.receiving import backlog, disk_usage, tokens
from sandbox.odp.testing import ThreadedSandbox
from tests import doctor_page
from tests.delivering import drain_all, make_audience, make_checked_install, make_delivered, make_install
from tests.threads import PATIENCE
from workers import tasks, trial

pytestmark = pytest.mark.django_db


@pytest.fixture
def shop(odp: ThreadedSandbox) -> Install:
    made = make_checked_install(odp)
    tokens.create(made)
    return made


@pytest.fixture
def gold(shop: Install) -> Audience:
    return make_delivered(shop, "kim", "lee")


def lines(install: Install, name: str) -> list[doctor.Line]:
    """What one check says now."""
    return doctor.examine(doctor.Case(Install.objects.get(pk=install.pk)), [doctor.CHECKS[name]])


def states(install: Install, name: str) -> list[str]:
    return [line.state for line in lines(install, name)]


def the(install: Install, name: str) -> doctor.Line:
    (line,) = lines(install, name)
    return line


# --- this service --------------------------------------------------------------------------------------------


def test_database(shop: Install) -> None:
    assert states(shop, "database") == ["good"]
    with connection.cursor() as cursor:
        cursor.execute("UPDATE audiences_install SET odp_api_key = 'of another key'")
    line = the(shop, "database")
    assert (line.state, "can't be decrypted" in line.evidence) == ("bad", True)
    assert states(shop, "odp_key") == ["bad"]
    assert states(shop, "odp_audiences") == ["unknown"]


def test_install(shop: Install, monkeypatch: pytest.MonkeyPatch, settings: Settings) -> None:
    assert states(shop, "install") == ["good"]
    settings.BACKLOG_HIGH_WATER = -1
    monkeypatch.setattr(backlog, "_read_at", {})
    assert states(shop, "install") == ["bad"]
    Install.objects.update(enabled=False)
    assert "switched off" in the(shop, "install").evidence


def test_broker(shop: Install, broker: redis.Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    assert states(shop, "broker") == ["good"]
    nowhere = redis.Redis(port=9, socket_connect_timeout=1)
    monkeypatch.setattr(service, "client", lambda: nowhere)
    line = the(shop, "broker")
    assert (line.state, "Connection refused" in line.evidence) == ("bad", True)


def test_workers(shop: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    assert states(shop, "workers") == ["bad"]
    heartbeats.note("one", worked_seconds_ago=1)
    assert states(shop, "workers") == ["good"]
    Worker.objects.update(name="two", version="0", beat_at=now() - timedelta(minutes=30))
    assert states(shop, "workers") == ["bad"], "the only worker is silent"
    heartbeats.note("one", worked_seconds_ago=1)
    line = the(shop, "workers")
    assert (line.state, "1 silent: two" in line.evidence) == ("warning", True)
    Worker.objects.filter(name="two").update(beat_at=now())
    assert "is of version 0" in the(shop, "workers").evidence
    stuck = stalled_work.Stuck("Shop", now() - timedelta(minutes=5), "why", in_part=False)
    monkeypatch.setattr(stalled_work, "stuck", lambda: stuck)
    line = the(shop, "workers")
    assert (line.state, line.at) == ("bad", stuck.since)


def test_beat(shop: Install, broker: redis.Redis) -> None:
    broker.delete(schedule.KEY)
    assert states(shop, "beat") == ["bad"]
    tasks.reconcile()
    line = the(shop, "beat")
    assert line.state == "good"
    assert line.age_seconds is not None
    assert line.age_seconds < 30
    broker.expire(schedule.KEY, schedule.KEPT_SECONDS - 200)
    line = the(shop, "beat")
    assert (line.state, "200 s ago" in line.evidence) == ("bad", True)


def test_clock(shop: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    assert states(shop, "clock") == ["good"]
    for seconds, state in ((5, "warning"), (-60, "bad")):

        class Ahead(datetime):
            ahead = timedelta(seconds=seconds)

            @classmethod
            def now(cls, tz: Any = None) -> Any:
                return datetime.now(tz) + cls.ahead

        with monkeypatch.context() as patch:
            patch.setattr(service, "datetime", Ahead)
            assert states(shop, "clock") == [state]


def test_lytics_times(shop: Install, gold: Audience) -> None:
    assert states(shop, "lytics_times") == ["good"]
    FutureTime.objects.create(audience=gold, sequence=1, claimed_ns=4 * 10**18, received_at=now())
    assert states(shop, "lytics_times") == ["warning"]
    for model in (Event, Membership):
        model._default_manager.filter(identifier="kim").update(occurred_ns=4 * 10**18)
    assert "1 memberships" in the(shop, "lytics_times").evidence


def test_disk(shop: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    for free, state in ((50, "good"), (10, "warning"), (2, "bad")):
        usage = (100, 100 - free, free)
        monkeypatch.setattr(shutil, "disk_usage", lambda _, usage=usage: os_usage(*usage))
        assert states(shop, "disk") == [state]
    monkeypatch.undo()
    assert "% of the disk of /" in the(shop, "disk").evidence


def os_usage(total: int, used: int, free: int) -> Any:
    return type("Usage", (), {"total": total, "used": used, "free": free})


def test_database_size(shop: Install, settings: Settings) -> None:
    size = disk_usage.used()
    for limit, state in ((0, "unknown"), (size * 2, "good"), (size + 1, "warning"), (size - 1, "bad")):
        settings.DATABASE_HIGH_WATER_BYTES = limit
        assert states(shop, "database_size") == [state]


def test_backup(shop: Install, settings: Settings, tmp_path: Path) -> None:
    assert states(shop, "backup") == ["unknown"]
    settings.BACKUP_FILE = str(tmp_path / "*.dump")
    assert states(shop, "backup") == ["bad"]
    (tmp_path / "empty.dump").touch()
    assert states(shop, "backup") == ["bad"], "an empty file is no backup"
    for name, hours in (("old", 100), ("new", 3)):
        (tmp_path / f"{name}.dump").write_text("content")
        os.utime(tmp_path / f"{name}.dump", times=(time.time(), time.time() - hours * 3_600))
        line = the(shop, "backup")
        assert line.state == ("bad" if name == "old" else "good")
        assert line.age_seconds == pytest.approx(hours * 3_600, abs=60)
    os.utime(tmp_path / "new.dump", times=(time.time(), time.time() - 30 * 3_600))
    assert states(shop, "backup") == ["warning"]


def test_retention(shop: Install, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "kept completely" in the(shop, "retention").evidence
    settings.EVENTS_KEEP_DAYS = 90
    pruning.prune(seconds=PATIENCE)
    assert (states(shop, "retention"), "after 90 days" in the(shop, "retention").evidence) == (["good"], True)
    # Part 1 closed 98 days ago. Until 99 days, events may still be moved out of it.
    LogPart.objects.filter(number=1).update(opened_at=now() - timedelta(days=110))
    LogPart.objects.filter(number=2).update(opened_at=now() - timedelta(days=98))
    assert states(shop, "retention") == ["good"]
    LogPart.objects.filter(number=2).update(opened_at=now() - timedelta(days=100))
    line = the(shop, "retention")
    assert (line.state, line.evidence.partition(", because")[0]) == ("warning", "An old part of the log stays")
    monkeypatch.setattr(parts, "has_parts", lambda: False)
    assert "partition_log" in the(shop, "retention").cure
    assert states(shop, "retention") == ["warning"]


@pytest.mark.parametrize(
    ("hours", "is_done", "state"),
    [(1, False, "good"), (35, False, "good"), (37, False, "warning"), (35, True, "good"), (37, True, "warning")],
)
def test_deleting_old_rows_late_is_a_warning(
    shop: Install, settings: Settings, hours: int, is_done: bool, state: str
) -> None:
    """``hours`` since the horizon of the calls moved."""
    days = timedelta(days=settings.RECEIPTS_KEEP_DAYS)
    horizon = now() - timedelta(hours=hours) - days
    Pruning.objects.create(kind="receipts", horizon_at=horizon, is_done=is_done)
    line = the(shop, "retention")
    assert line.state == state
    assert (line.evidence == "Deleting old rows is late: calls.") is (state == "warning")


# --- ODP -----------------------------------------------------------------------------------------------------


def test_odp_key(odp: ThreadedSandbox, shop: Install) -> None:
    assert states(shop, "odp_key") == ["good"]
    odp.fault({"path": "/v3/segments"}, {"status": 503})
    assert "could not be asked" in the(shop, "odp_key").evidence
    odp.clear_faults()
    Install.objects.update(odp_api_key=odp.public_key)
    assert "looks like a public key" in the(shop, "odp_key").evidence
    odp.control("/sandbox/keys/revoke", {"key": odp.private_key, "after_seconds": 0})
    Install.objects.update(odp_api_key=odp.private_key)
    line = the(shop, "odp_key")
    assert (line.state, "403" in line.evidence) == ("bad", True)


def test_odp_region(odp: ThreadedSandbox, shop: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    assert states(shop, "odp_region") == ["good"]
    Install.objects.update(odp_host="", region="eu")
    elsewhere = "http://127.0.0.1:9"
    hosts = {"us": odp.url, "eu": elsewhere, "au": elsewhere}
    monkeypatch.setattr("odp.regions.HOSTS", hosts)
    monkeypatch.setattr("audiences.operations.doctor.odp_account.HOSTS", hosts)
    assert states(shop, "odp_region") == ["unknown"], "the region chosen doesn't answer at all"
    with ThreadedSandbox() as other:
        other.control("/sandbox/keys/revoke", {"key": other.private_key, "after_seconds": 0})
        hosts["eu"] = other.url
        line = the(shop, "odp_region")
        assert (line.state, line.cure) == ("bad", "Set the ODP region of the install to United States.")
    hosts |= {"us": elsewhere, "eu": odp.url}
    assert states(shop, "odp_region") == ["warning"], "by its form the key is of the United States"
    Install.objects.update(region="us")
    hosts |= {"us": odp.url, "eu": elsewhere}
    assert states(shop, "odp_region") == ["good"]


@pytest.mark.parametrize(("mechanism", "path"), [("attribute", "/v3/schema/objects/customers"), ("list", "/v3/lists")])
def test_odp_rights(odp: ThreadedSandbox, shop: Install, mechanism: str, path: str) -> None:
    Install.objects.update(mechanism=mechanism)
    assert states(shop, "odp_rights") == ["good"]
    odp.fault({"path": path}, {"status": 403, "body": {"message": "Forbidden"}})
    line = the(shop, "odp_rights")
    assert (line.state, "Forbidden" in line.evidence) == ("bad", True)
    odp.clear_faults()
    odp.fault({"path": path}, {"status": 500})
    assert states(shop, "odp_rights") == ["unknown"]


def test_odp_rights_of_passthrough(shop: Install, settings: Settings) -> None:
    Install.objects.update(mechanism="passthrough")
    settings.ODP_PASSTHROUGH_DEFINITION = None
    assert states(shop, "odp_rights") == ["warning"]
    settings.ODP_PASSTHROUGH_DEFINITION = {"passthrough": {}}
    assert states(shop, "odp_rights") == ["unknown"]


def test_odp_consent(odp: ThreadedSandbox, shop: Install, gold: Audience, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "SHOWN_SECONDS", 0.5)
    assert the(shop, "odp_consent").evidence == "No test customer has been sent."

    def pause(seconds: float) -> None:
        drain_all(shop)

    def probe(customer: str) -> None:
        trials.start(shop, by="schedule", identifier=customer)
        trial.walk(shop.pk, pause=pause)

    probe("one")
    line = the(shop, "odp_consent")
    assert (line.state, line.at is not None) == ("good", True)
    odp.assume(consent_effect="everything")
    odp.settings(consent="opted_out")
    probe("two")
    line = the(shop, "odp_consent")
    assert (line.state, "Opted In" in line.evidence) == ("bad", True)
    lane = Lane.objects.filter(audience__segment_id=trials.SEGMENT_ID)
    lane.update(retired_sequence=F("delivered_sequence"), retired_at=now())
    assert the(shop, "odp_consent").evidence == "The audience of the test customers is retired, so none is sent."


def test_odp_audiences(odp: ThreadedSandbox, shop: Install, gold: Audience) -> None:
    assert the(shop, "odp_audiences").evidence == "1 of 1 are as this service created them."
    Audience.objects.update(provisioned_at=now() - timedelta(days=2))
    assert the(shop, "odp_audiences").evidence.endswith("Not looked at for a day: 1.")
    twins.look(shop.pk)
    line = the(shop, "odp_audiences")
    assert (line.state, line.evidence) == ("good", "1 of 1 are as this service created them.")
    before = len(odp.requests())
    odp.odp("DELETE", "/v3/segments/lytics_gold")
    line = the(shop, "odp_audiences")
    assert (line.state, line.about, "has no" in line.evidence) == ("bad", "lytics_gold", True)
    assert {request["method"] for request in odp.requests()[before + 1 :]} == {"GET"}, "it writes nothing"


def test_odp_says_of_a_paused_audience_that_no_look_makes_it_again(
    odp: ThreadedSandbox, shop: Install, gold: Audience
) -> None:
    Run.objects.update(closed_at=now() - timedelta(minutes=3))
    odp.odp("DELETE", "/v3/segments/lytics_gold")
    twins.look(shop.pk)
    Lane.objects.update(paused_at=now(), paused_by="kim", pause_reason="deleted on purpose")
    found = [one for one in lines(shop, "odp_audiences") if one.about]
    assert [(one.state, one.cure.partition(",")[0]) for one in found] == [("warning", "It is paused")]
    assert states(shop, "odp_customer") == ["unknown"], "ODP shows nobody in an audience that is gone"


def test_odp_audiences_beyond_those_that_are_read(odp: ThreadedSandbox, shop: Install, gold: Audience) -> None:
    """Five audiences that are missing on purpose took the place of the one that is missing by mistake."""
    twins.look(shop.pk)
    clubs = [make_audience(shop, f"club_{number}") for number in range(READ)]
    Lane.objects.filter(audience__in=clubs).update(paused_at=now(), paused_by="kim", pause_reason="no longer used")
    odp.odp("DELETE", "/v3/segments/lytics_gold")
    found = {one.about: one for one in lines(shop, "odp_audiences")}
    assert (found["lytics_gold"].state, found["lytics_gold"].evidence[:11]) == ("bad", "ODP has no ")
    assert (found["lytics_club_4"].state, found["lytics_club_4"].evidence[:14]) == ("warning", "ODP's list lac")
    Lane.objects.update(paused_at=None, paused_by="", pause_reason="")
    Audience.objects.update(provisioned_at=now() - timedelta(days=2))
    assert lines(shop, "odp_audiences")[-1].evidence.startswith("0 of 6 are as this service created them.")
    odp.fault({"path": "/v3/segments/lytics_club_0"}, {"status": 500})
    assert "lytics_club_0" in {one.about for one in lines(shop, "odp_audiences")}, "it could not be read"


def test_odp_unknown(odp: ThreadedSandbox, shop: Install, gold: Audience) -> None:
    """A backup was restored that doesn't have an audience which was made later."""
    assert the(shop, "odp_unknown").state == "good"
    definition = odp.odp("GET", "/v3/segments/lytics_gold")[1]["definition"]
    for odp_id in ("lytics_silver", "lytics_check_1", "vip"):
        made = {"description": odp_id, "metadata": {"display_name": odp_id}, "definition": definition}
        assert odp.odp("POST", f"/v3/segments/{odp_id}", made)[0] == 201
    line = the(shop, "odp_unknown")
    assert (line.state, line.evidence) == ("warning", "ODP has lytics_silver, which this service doesn't know.")
    Audience.objects.filter(pk=gold.pk).update(former_odp_ids=["lytics_silver"])
    assert the(shop, "odp_unknown").state == "good"
    odp.fault({"path": "/v3/segments"}, {"status": 503})
    assert the(shop, "odp_unknown").state == "unknown"


def test_odp_audiences_that_a_look_or_a_block_names(odp: ThreadedSandbox, shop: Install, gold: Audience) -> None:
    twins.look(shop.pk)
    found = {"finding": "changed", "problem": "The definition was changed.", "since_at": now()}
    Twin.objects.update(**found)
    line = the(shop, "odp_audiences")
    assert (line.state, line.evidence) == ("warning", "The definition was changed.")
    holds.block_audience(gold.pk, "wrong type")
    line = the(shop, "odp_audiences")
    assert (line.state, line.evidence) == ("bad", "Blocked: wrong type"), "which is worse"


def test_odp_audiences_without_any(shop: Install) -> None:
    assert states(shop, "odp_audiences") == ["unknown"]


def test_odp_customer(odp: ThreadedSandbox, shop: Install, gold: Audience) -> None:
    assert states(shop, "odp_customer") == ["unknown"], "delivered now, and ODP may not show an old entry yet"
    Run.objects.update(closed_at=now() - timedelta(minutes=3))
    line = the(shop, "odp_customer")
    assert (line.state, "by fs_user_id and web_user_id (in " in line.evidence) == ("good", True)
    assert "kim" not in line.evidence
    odp.odp("POST", "/v3/profiles", [{"attributes": {"fs_user_id": "kim", "lytics_gold": False}}])
    line = the(shop, "odp_customer")
    assert (line.state, "under neither identifier" in line.evidence) == ("bad", True)
    odp.odp("POST", "/v3/profiles", [{"attributes": {"fs_user_id": "abe", "lytics_gold": True}}])
    Membership.objects.create(audience=gold, identifier="abe", is_member=True, occurred_ns=1, sequence=1)
    line = the(shop, "odp_customer")
    assert (line.state, "only by fs_user_id" in line.evidence) == ("bad", True)
    odp.fault({"path": "/v3/graphql"}, {"status": 500})
    assert "failed" in the(shop, "odp_customer").evidence
    Membership.objects.update(rejected=True)
    assert states(shop, "odp_customer") == ["unknown"], "ODP never got what it rejected"
    Membership.objects.update(rejected=False, sequence=F("sequence") + 9)
    Audience.objects.update(last_sequence=F("last_sequence") + 9)
    assert states(shop, "odp_customer") == ["unknown"], "sent again after the last run that has settled"
    Run.objects.all().delete()
    assert states(shop, "odp_customer") == ["bad"], "the runs of idle audiences are pruned"
    Membership.objects.all().delete()
    assert states(shop, "odp_customer") == ["unknown"]


def test_odp_members(odp: ThreadedSandbox, shop: Install, gold: Audience, settings: Settings) -> None:
    settings.AUDIT_SETTLE_SECONDS = 0

    def audit() -> None:
        assert audits.ask(gold, mode=Audit.Mode.FULL, by="kim")
        audits.advance_all(shop.pk, seconds=PATIENCE)

    assert states(shop, "odp_members") == ["unknown"]
    Audit.objects.create(install=shop, audience=gold, mode="quick", is_newest=True, ended_at=now())
    line = the(shop, "odp_members")
    assert (line.state, "but by sizes" in line.evidence) == ("unknown", True)
    audit()
    other = make_install(odp, name="Other")
    Audit.objects.create(install=other, audience=make_audience(other), is_newest=True, ended_at=now(), differing=1)
    Audit.objects.create(install=shop, audience=gold, is_newest=False, ended_at=now(), differing=1)
    line = the(shop, "odp_members")
    assert (line.state, "(Lytics was not asked in 1 of them)" in line.evidence) == ("good", True)
    Audit.objects.filter(is_newest=True, audience=gold).update(compared_with_odp=0, moving=2)
    assert states(shop, "odp_members") == ["unknown"], "everybody had an event during the audit"
    Audit.objects.filter(is_newest=True, audience=gold).update(compared_with_odp=1, moving=2)
    assert "2 people with events during an audit were not compared" in the(shop, "odp_members").evidence
    silver = make_audience(shop, "silver")
    assert states(shop, "odp_members") == ["warning"], "one of two was never audited"
    Audit.objects.update(ended_at=now() - timedelta(days=9))
    Audit.objects.create(install=shop, audience=silver, is_newest=True, ended_at=now())
    assert states(shop, "odp_members") == ["warning"]
    settings.AUDIT_HOURS = 0
    assert states(shop, "odp_members") == ["good"], "no schedule, so no audit is late"
    Audit.objects.filter(audience=silver).delete()
    odp.odp("POST", "/v3/profiles", [{"attributes": {"fs_user_id": "kim", "lytics_gold": False}}])
    audit()
    line = the(shop, "odp_members")
    assert (line.state, line.about, "1 of 2 people" in line.evidence) == ("bad", "lytics_gold", True)
    assert "press Repair" in line.cure
    Difference.objects.update(why="Parked: no_identifier")
    assert "A repair can't correct this." in the(shop, "odp_members").cure
    Audit.objects.update(differing=0, only_in_odp=2)
    line = the(shop, "odp_members")
    assert (line.state, "at least 2 more members" in line.evidence) == ("warning", True)
    assert "press Change mechanism" in line.cure
    Audit.objects.update(problem="Lytics rejects the scan.", only_in_odp=0, differing=1)
    line = the(shop, "odp_members")
    assert (line.state, line.cure) == ("warning", "Press Audit on the page of an audience.")
    gold.lane.retired_sequence = 1
    gold.lane.save()
    Retirement.objects.create(audience=gold, by="kim", reason="why", began_sequence=1, total=0)
    assert states(shop, "odp_members") == ["unknown"], "a retired audience can't be audited again"
    Audit.objects.create(install=shop, audience=silver, is_newest=True, ended_at=now())
    assert states(shop, "odp_members") == ["good"], "so none of it is missing"


def test_odp_other_install(odp: ThreadedSandbox, shop: Install, gold: Audience) -> None:
    assert states(shop, "odp_other_install") == ["good"]
    other = make_install(odp, name="Other")
    line = the(shop, "odp_other_install")
    assert (line.state, line.about) == ("warning", "Other")
    second = make_audience(other, provisioned=False)
    line = the(shop, "odp_other_install")
    assert (line.state, "lytics_gold. One audience of each is blocked" in line.evidence) == ("warning", True)
    Audience.objects.filter(pk=second.pk).update(provisioned_at=now())
    line = the(shop, "odp_other_install")
    assert (line.state, "writes to 1 of the same audiences: lytics_gold" in line.evidence) == ("bad", True)


def test_the_most_urgent_findings_are_named_and_the_others_counted() -> None:
    found = [registry.warning("Changed.", "", about=about) for about in ("one", "two", "three")]
    found += [registry.bad("Blocked.", "", about=about) for about in ("three", "four")]
    named = registry.most_urgent(found, 2)
    assert [(one.state, one.about) for one in named] == [("bad", "three"), ("bad", "four"), ("warning", "")]
    assert named[-1].evidence == "Audiences with a finding that are not named: 2."
    assert [one.about for one in registry.most_urgent(found, 4)] == ["three", "four", "one", "two"]


# --- the examination -----------------------------------------------------------------------------------------


def test_a_check_that_fails_is_a_line(shop: Install) -> None:
    def broken(case: doctor.Case) -> doctor.Finding:
        raise LookupError("kim@example.com")

    (line,) = doctor.examine(doctor.Case(shop), [Check("broken", "Broken", "ODP", "", broken)])
    assert (line.state, "an error of Lytics Sync" in line.evidence, "kim" in line.evidence) == ("unknown", True, False)


def test_when_the_time_is_over_the_rest_is_unknown_at_once(shop: Install) -> None:
    found = doctor.examine(doctor.Case(shop, seconds=0))
    assert {(line.state, line.evidence) for line in found} == {("unknown", NO_TIME)}
    assert {line.check for line in found} == set(doctor.CHECKS)


def test_a_silent_odp_takes_no_longer_than_the_time_there_is(odp: ThreadedSandbox, shop: Install) -> None:
    odp.fault({"path": "/v3/"}, {"status": 200, "delay_seconds": 30})
    began = time.monotonic()
    found = doctor.examine(doctor.Case(shop, seconds=2))
    assert time.monotonic() - began < 25
    assert {line.check for line in found} == set(doctor.CHECKS)


def test_without_an_api_token_only_the_lines_of_the_job_are_unknown(shop: Install) -> None:
    found = doctor.examine(doctor.Case(shop))
    no_token = [line for line in found if "No API token" in line.evidence]
    assert len(no_token) > 10
    assert {line.state for line in no_token} == {"unknown"}
    assert {line.group for line in no_token} == {"Lytics"}
    assert not [line for line in found if "error of Lytics Sync" in line.evidence]


def test_every_line_that_needs_a_person_says_what_to_do(shop: Install, gold: Audience) -> None:
    found = doctor.examine(doctor.Case(shop))
    assert [line.check for line in found if line.state in ("bad", "warning") and not line.cure] == []
    assert [line.check for line in found if not line.evidence.endswith((".", ")"))] == []


def test_neighbours_that_say_the_same_become_one_line_for_people(shop: Install) -> None:
    found = doctor.examine(doctor.Case(shop))
    shown = [line for line in doctor.merged(found) if "No API token" in line.evidence]
    assert len(shown) == 1
    assert shown[0].title.startswith("State of the job, URL of the job, Header of the job")


# --- command, page, document ---------------------------------------------------------------------------------


def run(*words: str) -> tuple[str, int]:
    said, code = io.StringIO(), 0
    try:
        call_command("doctor", *words, stdout=said)
    except SystemExit as end:
        code = int(str(end.code))
    return said.getvalue(), code


def test_the_command_exits_1_when_a_line_is_bad(shop: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    said, code = run("Shop")
    assert code == 1
    assert "\n  bad      Workers: No heartbeat of a worker arrives.\n           Start the worker" in said
    monkeypatch.setattr(doctor.registry, "CHECKS", {"clock": doctor.CHECKS["clock"]})
    said, code = run("Shop")
    assert (code, "0 bad, 0 warning, 0 unknown, 1 good" in said) == (0, True)


def test_the_command_prints_json(shop: Install) -> None:
    said, code = run("Shop", "--json")
    report = json.loads(said)
    assert (code, report["bad"]) == (1, True)
    (install,) = report["installs"]
    assert (install["install_id"], install["name"]) == (shop.public_id, "Shop")
    for line in install["lines"]:
        fields = {"check", "title", "group", "state", "evidence", "cure", "at", "about", "age_seconds"}
        assert set(line) == fields
        assert line["state"] in ("good", "warning", "bad", "unknown")
    assert datetime.fromisoformat(install["lines"][0]["at"]).tzinfo == UTC


def address(shop: Install) -> str:
    return reverse("admin:audiences_install_doctor", args=[shop.pk])


def test_the_page_runs_the_checks_only_when_it_asks_for_the_lines(
    operator: Client, shop: Install, odp: ThreadedSandbox
) -> None:
    before = len(odp.requests())
    page = operator.get(address(shop)).content.decode()
    assert f'hx-get="{address(shop)}"' in page
    install_page = operator.get(reverse("admin:audiences_install_change", args=[shop.pk])).content.decode()
    assert f'href="{address(shop)}"' in install_page
    assert len(odp.requests()) == before
    lines = operator.get(address(shop), headers={"HX-Request": "true"}).content.decode()
    assert lines.startswith('<section id="doctor"')
    assert "No heartbeat of a worker arrives." in lines
    assert lines.index("No heartbeat of a worker") < lines.index("PostgreSQL takes writes"), "bad lines come first"
    assert "ODP accepts the key" in lines
    whole = operator.get(address(shop), {"now": 1}).content.decode()
    assert "ODP accepts the key" in whole
    assert "<title>" in whole


def test_the_page_is_for_people_who_may_send_test_customers(
    viewer: Client, shop: Install, client: Client, odp: ThreadedSandbox
) -> None:
    before = len(odp.requests())
    assert viewer.get(address(shop), headers={"HX-Request": "true"}).status_code == 403
    assert client.get(address(shop)).status_code == 302
    install_page = viewer.get(reverse("admin:audiences_install_change", args=[shop.pk])).content.decode()
    assert address(shop) not in install_page
    assert len(odp.requests()) == before


def test_the_page_of_an_install_that_is_not_there(operator: Client, shop: Install) -> None:
    assert operator.get(address(shop).replace(str(shop.pk), "999999")).status_code == 404


def test_the_document_lists_every_check() -> None:
    """Run ``make settings`` when this fails."""
    assert doctor_page.PAGE.read_text(encoding="utf-8") == doctor_page.page()


def test_every_check_says_what_it_checks_and_has_a_test() -> None:
    here = Path(__file__).parent
    tests = "".join(file.read_text(encoding="utf-8") for file in here.glob("test_doctor*.py"))
    assert [one.name for one in doctor.CHECKS.values() if not one.what.endswith(".")] == []
    assert [name for name in doctor.CHECKS if f"def test_{name}" not in tests] == []
