"""Old rows that stay too long are a trouble on Now, in messages and in the metric of troubles."""

from datetime import timedelta

import pytest
from django.test import Client
from django.utils.timezone import now
from pytest_django.fixtures import Settings

from audiences.front import troubles
from audiences.models import LogPart, Pruning, Trouble
from audiences.operations import parts

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("broker")]


def on_now(viewer: Client) -> list[str]:
    return [line.what for line in viewer.get("/admin/").context["alerts"]]


def test_a_late_pass_is_a_trouble_until_it_has_ended(viewer: Client, settings: Settings) -> None:
    horizon = now() - timedelta(days=settings.RECEIPTS_KEEP_DAYS, hours=37)
    Pruning.objects.create(kind="receipts", horizon_at=horizon)
    assert on_now(viewer) == ["Deleting old rows is late: calls"]
    troubles.check()
    (trouble,) = Trouble.objects.all()
    assert (trouble.kind, trouble.tone) == ("retention", "held")
    assert abs(trouble.since_at - (now() - timedelta(hours=13))) < timedelta(minutes=1)
    days, settings.RECEIPTS_KEEP_DAYS = settings.RECEIPTS_KEEP_DAYS, 0
    assert on_now(viewer) == [], "no call is to be deleted"
    settings.RECEIPTS_KEEP_DAYS = days
    # A setting that was lowered in the afternoon begins a pass for the horizon of this midnight.
    Pruning.objects.update(horizon_at=horizon + timedelta(hours=15))
    assert on_now(viewer) == []


def test_an_old_part_that_stays_is_a_trouble(viewer: Client, settings: Settings) -> None:
    settings.EVENTS_KEEP_DAYS = 90
    parts.advance()
    LogPart.objects.filter(number=1).update(opened_at=now() - timedelta(days=110))
    LogPart.objects.filter(number=2).update(opened_at=now() - timedelta(days=98))
    assert on_now(viewer) == [], "events may still leave it"
    LogPart.objects.filter(number=2).update(opened_at=now() - timedelta(days=100))
    assert on_now(viewer) == ["An old part of the log stays, because something needs its events"]
    settings.EVENTS_KEEP_DAYS = 0
    assert on_now(viewer) == [], "nothing is to be dropped"
