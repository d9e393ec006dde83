"""The page Now has at most ten lines, however many troubles there are, and leads to each of them."""

from datetime import timedelta
from typing import Any

import pytest
from django.contrib.admin.models import LogEntry
from django.db.models import F
from django.test import Client
from django.utils.timezone import now

from audiences.admin.pages import ago
from audiences.delivery import holds
from audiences.front import lines, troubles
from audiences.front.alerts import Alert, Extent
from audiences.models import (
    Audience,
    Audit,
    Install,
    JobPresence,
    Lane,
    LyticsAccount,
    Resend,
    Retirement,
    Trouble,
    Twin,
)
from tests import many
from tests.delivering import enter, make_audience
from tests.test_admin import hidden
from workers import tasks

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("broker")]

NOW = "/admin/"


def shown(client: Client, address: str = NOW) -> list[Any]:
    found: list[Any] = client.get(address).context["alerts"]
    return found


def line(client: Client, words: str) -> Any:
    (found,) = [one for one in shown(client) if words in one.what]
    return found


def button(line: Any, words: str) -> Any:
    (found,) = [one for one in line.buttons if words in one.label]
    return found


def press(client: Client, address: str, **answers: Any) -> str:
    """Answer the confirmation of a button, and return the page after it."""
    asked = client.get(address).content.decode()
    return client.post(address, {**hidden(asked), **answers}, follow=True).content.decode()


def on_hold(count: int, reason: str = "503: down") -> list[Install]:
    at = now()
    return Install.objects.bulk_create(
        Install(
            name=f"On hold {number:02}",
            odp_api_key="public.private",
            odp_host="http://127.0.0.1:9",
            key_accepted_at=at,
            backoff_since_at=at - timedelta(minutes=number),
            backoff_until_at=at + timedelta(hours=1),
            backoff_failures=3,
            backoff_reason=reason,
        )
        for number in range(count)
    )


def test_twenty_troubles_in_fifty_installs_are_at_most_ten_lines_worst_first(viewer: Client) -> None:
    many.fill(50, 20)
    tones = [one.tone for one in shown(viewer)]
    assert 3 <= len(tones) <= lines.LINES
    assert tones == sorted(tones, key=["bad", "held", ""].index)
    total = sum(alert.many for alert in troubles.alerts(troubles.facts()))
    assert total > 10 * lines.LINES


def test_every_trouble_is_on_a_page_of_the_list_of_all(viewer: Client) -> None:
    many.fill(50, 20)
    address, seen = lines.url_of_all(""), []
    while address:
        page = viewer.get(address)
        seen += [one.what for one in page.context["alerts"]]
        assert len(page.context["alerts"]) <= lines.PER_PAGE
        address = page.context["listed"].following
    assert sorted(seen) == sorted(alert.what for alert in troubles.alerts(troubles.facts()))
    assert len(seen) > 2 * lines.PER_PAGE


def test_more_kinds_than_lines_lead_to_the_rest_with_their_number() -> None:
    found = [(Alert(f"kind {number}", f"trouble {number}", "", None, NOW), None) for number in range(14)]
    request = type("Request", (), {"user": None, "GET": {}})()
    made = lines.lines(found, request, of_install="")
    assert len(made) == lines.LINES
    assert made[-1].what == f"And {14 - lines.LINES + 1} more"
    assert made[-1].url == lines.url_of_all("")


def test_installs_on_hold_share_a_line_that_unfolds_to_each_and_retries_those_that_a_retry_helps(
    operator: Client, viewer: Client
) -> None:
    held = on_hold(lines.UNFOLDED + 4)
    on_hold(1, "401: the key is wrong")
    found = line(operator, "14 installs are on hold")
    assert [one.what for one in found.unfolded[:-1]] == [f"{one} is on hold" for one in held[: lines.UNFOLDED]]
    assert found.unfolded[-1].url == lines.url_of_all("", kind="on_hold")
    assert found.buttons[0].label == "Retry all 14 now"
    assert found.since == ago(held[-1].backoff_since_at), "the first of them"
    assert line(viewer, "14 installs are on hold").buttons == []
    address = found.buttons[0].url
    assert "Retry now: 14 installs" in operator.get(address).content.decode()
    assert viewer.get(address).status_code == viewer.post(address).status_code == 403
    assert Install.objects.filter(backoff_until_at__isnull=False).count() == 15
    assert "Retried: 14 installs." in press(operator, address)
    assert [one.backoff_reason for one in Install.objects.filter(backoff_until_at__isnull=False)] == [
        "401: the key is wrong"
    ]
    assert LogEntry.objects.filter(change_message="Retried, with 13 others.").count() == 14


def test_a_retry_of_all_does_nothing_when_another_install_is_on_hold_by_then(operator: Client) -> None:
    (first, *_) = on_hold(11)
    address = button(line(operator, "11 installs are on hold"), "Retry all").url
    asked = hidden(operator.get(address).content.decode())
    Install.objects.filter(pk=first.pk).update(backoff_since_at=now())
    assert "changed after the page was loaded" in operator.post(address, asked, follow=True).content.decode()
    assert Install.objects.filter(backoff_until_at__isnull=False).count() == 11


def test_troubles_of_one_cause_are_muted_together_with_a_reason(operator: Client, viewer: Client) -> None:
    on_hold(12)
    on_hold(2, "401: the key is wrong")
    tasks.check_troubles()
    address = button(line(operator, "12 installs are on hold"), "Mute all 12").url
    assert viewer.post(address).status_code == 403
    press(operator, address, hours=8, reason="ODP has maintenance")
    muted = Trouble.objects.filter(muted_until__gt=now())
    assert {(one.kind, one.mute_reason, one.muted_by) for one in muted} == {
        ("on_hold", "ODP has maintenance", "operator")
    }
    assert muted.count() == 12
    found = line(operator, "12 installs are on hold")
    assert "ODP has maintenance" in found.muted
    assert [one.label for one in found.buttons if "Mute" in one.label] == []
    assert [bool(one.muted) for one in shown(operator)] == sorted(bool(one.muted) for one in shown(operator))


def test_muting_needs_a_reason_also_for_many(operator: Client) -> None:
    on_hold(12)
    tasks.check_troubles()
    press(operator, button(line(operator, "12 installs are on hold"), "Mute all 12").url, hours=8, reason="")
    assert not Trouble.objects.filter(muted_until__isnull=False).exists()


def test_unlisted_troubles_are_muted_with_the_listed_ones(operator: Client) -> None:
    """*Now* lists ten paused audiences, and twelve installs have one each."""
    at = now()
    for number in range(12):
        shop = Install.objects.create(name=f"Shop {number:02}", odp_api_key="k", key_accepted_at=at)
        lane = make_audience(shop, "gold").lane
        Lane.objects.filter(pk=lane.pk).update(paused_at=at, paused_by="kim", pause_reason="The campaign is over.")
    tasks.check_troubles()
    paused = line(operator, "12 audiences are paused or set aside")
    assert "Muted: 13 troubles." in press(operator, button(paused, "Mute all").url, hours=8, reason="Known")
    assert line(operator, "12 audiences are paused or set aside").muted


def test_a_muted_trouble_and_others_of_its_kind_are_two_lines(operator: Client) -> None:
    on_hold(13)
    tasks.check_troubles()
    Trouble.objects.filter(
        pk__in=Trouble.objects.filter(kind="on_hold", install__isnull=False).values("pk")[:2]
    ).update(muted_until=now() + timedelta(hours=1), muted_by="kim", mute_reason="known")
    on_hold_lines = [one.what for one in shown(operator) if "on hold" in one.what]
    assert on_hold_lines == ["11 installs are on hold", "2 installs are on hold"]


def test_audiences_that_one_reason_keeps_from_being_created_are_retried_together(
    operator: Client, viewer: Client, install: Install
) -> None:
    for number in range(12):
        make_audience(install, f"club_{number}")
    other = make_audience(install, "other")
    held = {"hold_since_at": now(), "hold_until_at": now() + timedelta(hours=1), "hold_failures": 2}
    Audience.objects.update(provisioned_at=None, hold_reason="503: down", **held)
    Audience.objects.filter(pk=other.pk).update(hold_reason="409: taken")
    address = button(line(operator, "12 audiences can't be created"), "Retry all 12 now").url
    assert viewer.post(address).status_code == 403
    assert "Retried: 12 audiences." in press(operator, address)
    waiting = Audience.objects.filter(hold_until_at__gt=now())
    assert [audience.odp_id for audience in waiting] == [other.odp_id]


def test_audiences_held_by_one_error_are_retried_together(operator: Client, install: Install) -> None:
    for number in range(15):
        audience = make_audience(install, f"club_{number}")
        Audience.objects.filter(pk=audience.pk).update(last_sequence=1)
        at = now() + timedelta(hours=1)
        reason = "KeyError" if number else "TypeError"
        Lane.objects.filter(pk=audience.pk).update(fault_since_at=now(), fault_until_at=at, fault_reason=reason)
    address = button(line(operator, "audiences can't be delivered"), "Retry all 14 now")
    assert "Retried: 14 audiences." in press(operator, address.url)
    assert [lane.fault_reason for lane in Lane.objects.filter(fault_until_at__gt=now())] == ["TypeError"]


def test_audiences_missing_in_odp_are_resynced_together_with_a_reason(operator: Client, install: Install) -> None:
    for number in range(12):
        audience = make_audience(install, f"club_{number}")
        finding = Twin.Finding.MISSING if number else Twin.Finding.CHANGED
        Twin.objects.create(
            audience=audience, looked_at=now(), since_at=now(), finding=finding, problem="ODP no longer has it."
        )
    found = [one for one in shown(operator) if any("Resync all 11" in button.label for button in one.buttons)]
    assert len(found) == 1
    address = button(found[0], "Resync all 11").url
    press(operator, address, reason="")
    assert not Resend.objects.exists()
    press(operator, address, reason="The prefix was deleted by mistake")
    assert Resend.objects.filter(kind="resync", reason="The prefix was deleted by mistake").count() == 11


def test_a_line_counts_the_troubles_of_its_kind_that_are_not_listed(viewer: Client, install: Install) -> None:
    for number in range(13):
        assert holds.pause(make_audience(install, f"club_{number}").lane, by="kim", reason="The campaign is over.")
    found = line(viewer, "paused or set aside")
    assert (found.what, found.tone) == ("13 audiences are paused or set aside", "held")
    assert found.unfolded[-1].what == "All 13"


def test_a_line_of_groups_counts_all_audiences_and_all_groups(viewer: Client) -> None:
    many.fill(50, 20)
    facts = troubles.facts()
    blocked = [alert.many for alert in troubles.alerts(facts) if alert.kind == "blocked"]
    assert sum(blocked) == facts.blocked.lanes > 30
    assert "50 groups of parked items" in {one.what for one in shown(viewer)}


def test_the_page_of_an_install_has_all_its_troubles_however_many_others_have(viewer: Client) -> None:
    """Twelve installs have the same troubles, more of each kind than *Now* lists, and the pages of three are alike."""
    many.fill(12, 120)
    Install.objects.update(backoff_since_at=None, backoff_until_at=None, backoff_reason="", backoff_failures=0)
    installs = list(Install.objects.order_by("pk"))
    for install in installs:
        give_troubles(install)

    def listed(install: Install) -> list[str]:
        address = lines.url_of_all(install.public_id)
        found = [one.what for page in (1, 2) for one in viewer.get(f"{address}&p={page}").context["alerts"]]
        return sorted(what.replace(str(install), "the install") for what in found)

    assert listed(installs[0]) == listed(installs[5]) == listed(installs[-1])
    kinds = {alert.kind for alert in troubles.alerts(troubles.facts(Extent(installs[-1].pk))) if alert.install}
    assert kinds >= {
        *("blocked", "creation", "error", "parked", "paused", "no_call"),
        *("twin", "audit", "left_job", "retired_with_events", "retiring", "made_anew", "similar_slugs"),
    }


def give_troubles(install: Install) -> None:
    """The troubles of audiences that ``many.fill`` doesn't make, for audiences that have none."""
    at, audiences = now(), list(install.audiences.order_by("segment_id")[20:40])
    fine = [one for one in audiences if one.provisioned_at and not (one.lane.blocked_at or one.lane.paused_at)]
    missing, audited, gone, kept, retiring, old, anew, plain, suffixed, *_ = fine
    LyticsAccount.objects.create(install=install, api_token="token")
    Twin.objects.create(
        audience=missing, looked_at=at, since_at=at, finding=Twin.Finding.MISSING, problem="It is gone."
    )
    Audit.objects.create(
        install=install, audience=audited, mode=Audit.Mode.SAMPLE, by="kim", ended_at=at, differing=2, is_newest=True
    )
    JobPresence.objects.create(audience=gone, seen_at=at, job_id="job", gone_at=at)
    Lane.objects.filter(pk=kept.pk).update(retired_at=at, retired_sequence=F("delivered_sequence"))
    Audience.objects.filter(pk=kept.pk).update(last_sequence=9)
    Retirement.objects.create(audience=retiring, by="kim", reason="Over.", began_sequence=0, total=3)
    Audience.objects.filter(pk=anew.pk).update(latest_slug=old.latest_slug)
    Audience.objects.filter(pk=plain.pk).update(slug="alike", odp_id="lytics_alike")
    Audience.objects.filter(pk=suffixed.pk).update(slug="Alike", odp_id="lytics_alike_2")


def test_a_line_counts_the_audiences_of_unlisted_groups(install: Install) -> None:
    for number in range(24):
        lane = make_audience(install, f"club_{number}").lane
        Lane.objects.filter(pk=lane.pk).update(blocked_at=now(), block_reason=f"cause {number // 2}")
    blocked = [alert.many for alert in troubles.alerts(troubles.facts()) if alert.kind == "blocked"]
    assert blocked == [2] * 10 + [4]


def test_a_line_of_several_causes_has_no_button_for_one_of_them(operator: Client, install: Install) -> None:
    for number in range(14):
        lane = make_audience(install, f"club_{number}").lane
        Lane.objects.filter(pk=lane.pk).update(blocked_at=now(), block_reason=f"cause {min(number, 10)}")
    found = line(operator, "14 audiences are blocked")
    assert [one.label for one in found.buttons] == []
    assert found.unfolded[0].buttons[0].label == "Unblock all 4 of this cause"


def test_a_blocked_audience_with_an_error_is_one_trouble(install: Install) -> None:
    enter(make_audience(install), "kim")
    reasons = {"fault_until_at": now() + timedelta(hours=1), "fault_reason": "ours", "block_reason": "no such field"}
    Lane.objects.update(blocked_at=now(), fault_since_at=now(), **reasons)
    found = {alert.kind for alert in troubles.alerts(troubles.facts())}
    assert {"blocked", "error"} & found == {"blocked"}
