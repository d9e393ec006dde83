"""The page of one install: how far its events came, and its troubles by the definition of the page Now."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils.timezone import now
from pytest_django.fixtures import Settings

from audiences import redis_client
from audiences.delivery import holds
from audiences.front import charts, funnel
from audiences.insight.probes import Proof
from audiences.models import FutureTime, Install, Lane, Minute, Parked, Receipt, Trouble
from tests.delivering import enter, make_audience
from tests.test_admin import url
from tests.test_front import beat
from workers import tasks

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("broker")]

NOW = "/admin/"


@pytest.fixture
def other(db: None) -> Install:
    return Install.objects.create(name="Other", odp_api_key="k", key_accepted_at=now())


def happened(install: Install, minutes_ago: int, **values: Any) -> None:
    minute = now().replace(second=0, microsecond=0) - timedelta(minutes=minutes_ago)
    fixed = {"received": 0, "parked": 0, "delivered": 0, **values}
    Minute.objects.create(install=install, minute=minute, **fixed)


def called(install: Install) -> None:
    Receipt.objects.create(install=install, received_at=now(), bytes=1, messages=1, queued=1, parked=0, skipped=0)


def steps(install: Install, hours: int = 6, proof: Proof | None = None) -> dict[str, Any]:
    found = funnel.funnel(install, charts.read(hours=hours, install=install), {install.pk: proof or Proof("none")})
    assert [step.label for step in found] == ["received", "parked", "folded", "delivered", "confirmed"]
    return {step.label: step for step in found}


def test_the_steps_count_the_events_of_this_install_in_this_time(install: Install, other: Install) -> None:
    happened(install, 30, received=100, parked=7, delivered=80, sent=50)
    happened(install, 90, received=1_000, delivered=1_000, sent=1_000)
    happened(other, 30, received=9, parked=9, delivered=9, sent=9)
    found = steps(install, hours=1)
    assert {label: step.value for label, step in found.items()} == {
        "received": "100",
        "parked": "7",
        "folded": "30",
        "delivered": "80",
        "confirmed": "0",
    }
    assert "20 not yet" in found["delivered"].note
    assert (found["parked"].well, found["delivered"].well) == (False, False)
    assert steps(install, hours=6)["received"].value == "1,100"


def test_the_delivered_step_says_how_many_changes_odp_rejected(
    install: Install, other: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are events of delivered requests, and counted as delivered without a word."""
    happened(install, 30, received=5, delivered=5, sent=5)
    minutes_ago = {"refused_by_odp": (30, 31, 500), "no_identifier": (30,)}
    for reason, times in minutes_ago.items():
        for minutes in times:
            at = now() - timedelta(minutes=minutes)
            Parked.objects.create(install=install, reason=reason, parked_at=at, raw=b"x")
    assert steps(install)["delivered"].note == "of those received, 0 not yet; 2 parked, because ODP rejected them"
    assert "rejected" not in steps(other)["delivered"].note
    monkeypatch.setattr(funnel, "COUNTED", 3)
    assert "at least 1 parked" in steps(install)["delivered"].note


def test_events_count_as_confirmed_once_odp_showed_a_later_test_customer(install: Install) -> None:
    happened(install, 40, received=10, delivered=10, sent=10)
    happened(install, 20, received=5, delivered=5, sent=5)
    shown = Proof("proven", at=now() - timedelta(minutes=30))
    assert steps(install, proof=shown)["confirmed"].value == "10"
    assert "30 min ago" in steps(install, proof=shown)["confirmed"].note
    assert steps(install, proof=Proof("failing", at=shown.at))["confirmed"].well is False
    assert steps(install)["confirmed"].well is None


def test_a_minute_is_confirmed_by_what_odp_showed_after_its_end(install: Install) -> None:
    happened(install, 20, received=5, delivered=5, sent=5)
    minute = Minute.objects.get().minute
    for seconds, confirmed in ((30, "0"), (60, "5")):
        shown = Proof("proven", at=minute + timedelta(seconds=seconds))
        assert steps(install, proof=shown)["confirmed"].value == confirmed


def test_delivered_never_exceeds_received(install: Install) -> None:
    long_ago = int((now() - timedelta(days=2)).timestamp()) // 60 * 60
    happened(install, 10, received=5, delivered=305, sent=305, arrived={str(long_ago): 300})
    found = steps(install)
    assert (found["received"].value, found["delivered"].value) == ("5", "0")
    assert "300 of an earlier backlog" in found["delivered"].note


def test_minutes_of_an_older_version_have_no_folded_events(install: Install) -> None:
    happened(install, 10, received=5, delivered=5)
    assert steps(install)["folded"].value == "—"


def test_the_page_of_an_install_loads_its_steps_and_its_troubles_alone(
    operator: Client, install: Install, other: Install
) -> None:
    for name, of in (("mine", install), ("theirs", other)):
        assert holds.pause(make_audience(of, name).lane, by="kim", reason="The campaign is over.")
    address = f"{NOW}?install={other.public_id}"
    assert f'hx-get="{address}"' in operator.get(url("change", other)).content.decode()
    part = operator.get(address, headers={"HX-Target": "front-now"})
    text = part.content.decode()
    assert "lytics_theirs is paused" in text
    assert "lytics_mine" not in text
    assert part.context["numbers"][0].label == "received"
    everywhere = {one.what for one in operator.get(NOW).context["alerts"]}
    assert {one.what for one in part.context["alerts"]} < everywhere


@pytest.mark.parametrize(
    ("trouble", "words"),
    [
        ("workers", "The worker worker-1@here is silent"),
        ("redis", "Redis does not answer"),
        ("draft", "Other is a draft"),
        ("stalled", "Waiting events of Other are not sent"),
        ("stalled elsewhere", ""),
        ("times ahead", ""),
    ],
)
def test_the_page_of_an_install_has_what_stops_every_install(
    viewer: Client,
    install: Install,
    other: Install,
    settings: Settings,
    nobody_there: str,
    trouble: str,
    words: str,
) -> None:
    """Until now it said that all was well. A yellow trouble of the service is not repeated on each page."""
    for one in (install, other):
        called(one)
    match trouble:
        case "workers":
            beat("worker-1@here", seconds_ago=120)
        case "redis":
            settings.REDIS_URL = nobody_there
            redis_client.client.cache_clear()
        case "draft":
            Install.objects.update(key_accepted_at=None)
        case "times ahead":
            FutureTime.objects.create(
                audience=make_audience(other, "gold"), sequence=1, claimed_ns=2**62, received_at=now()
            )
        case _:
            # Two installs have waiting events, of which the first has waited longest.
            for one in [install, other] if trouble == "stalled" else [install]:
                enter(make_audience(one, "gold"), "kim")
            settings.WORK_STUCK_SECONDS = 0
    shown = [one.what for one in viewer.get(f"{NOW}?install={other.public_id}").context["alerts"]]
    assert shown == ([words] if words else [])


def test_work_that_stands_still_is_one_trouble_whichever_install_is_named(
    install: Install, other: Install, settings: Settings
) -> None:
    """With another name, the trouble would be resolved and a new one opened while nothing has moved."""
    settings.WORK_STUCK_SECONDS = 0
    for one in (other, install):
        enter(make_audience(one, "gold"), "kim")
        tasks.check_troubles()
    assert [trouble.what for trouble in Trouble.objects.filter(kind="stalled")] == [
        f"Waiting events of {other} and 1 more install are not sent"
    ]
    fault = {"fault_since_at": now() - timedelta(hours=1), "fault_until_at": now(), "fault_reason": "KeyError"}
    Lane.objects.filter(audience__install=other).update(**fault)
    tasks.check_troubles()
    assert Trouble.objects.get(kind="stalled").what == f"Waiting events of {install} are not sent"


def test_all_troubles_of_one_install_have_pages_of_their_own(viewer: Client, install: Install, other: Install) -> None:
    for number in range(12):
        assert holds.pause(make_audience(other, f"club_{number}").lane, by="kim", reason="The campaign is over.")
    lines = viewer.get(f"{NOW}?install={other.public_id}").context["alerts"]
    (line,) = [one for one in lines if "paused or set aside" in one.what]
    shown = viewer.get(line.url)
    assert all("paused" in one.what for one in shown.context["alerts"])
    assert shown.context["now_of"] == other


@pytest.mark.parametrize(("hours", "chosen"), [("1", 1), ("24", 24), ("168", 168), ("7", 6), ("x", 6), ("", 6)])
def test_the_time_can_be_chosen_up_to_a_week(viewer: Client, install: Install, hours: str, chosen: int) -> None:
    shown = viewer.get(NOW, {"install": install.public_id, "hours": hours})
    assert shown.context["hours"] == chosen


def test_a_week_can_be_chosen_only_while_its_minutes_are_kept(
    viewer: Client, install: Install, settings: Settings
) -> None:
    """The days whose minutes are deleted were shown as days without events."""
    for days, hours in ((0, 168), (7, 168), (6, 6)):
        settings.STATISTICS_KEEP_DAYS = days
        assert viewer.get(NOW, {"install": install.public_id, "hours": "168"}).context["hours"] == hours


def test_the_minutes_are_read_once_for_the_steps_and_the_charts(viewer: Client, install: Install) -> None:
    """The figures by point, the arrivals, and the progress."""
    happened(install, 30, received=100, delivered=80, sent=50)
    with CaptureQueriesContext(connection) as seen:
        viewer.get(NOW, {"install": install.public_id})
    assert len([one for one in seen.captured_queries if "FROM audiences_minute" in one["sql"]]) == 3


def test_a_week_is_for_one_install_and_names_days(viewer: Client, install: Install) -> None:
    happened(install, 3_000, received=5, delivered=5, sent=5, delay_p50_ms=1, delay_p99_ms=2)
    assert steps(install, hours=168)["received"].value == "5"
    at = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
    points = charts.read(hours=168, install=install, at=at)
    assert [words for _, words in charts._times(points, 168)] == [f"{day:02} Feb" for day in range(23, 29)] + ["01 Mar"]
    assert viewer.get(NOW, {"hours": "168"}).context["hours"] == 6


def test_an_unknown_install_is_the_page_of_all(viewer: Client, install: Install) -> None:
    for unknown in ("nobody", "\x00", "é"):
        assert viewer.get(NOW, {"install": unknown}).context["now_of"] is None
