"""Looks at Lytics jobs: an audience that left its job, or that Lytics deleted, is on the front page."""

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.test import Client
from django.utils.timezone import now
from pytest_django.fixtures import Settings

from audiences import lytics_account
from audiences.delivery import drafts
from audiences.front import troubles
from audiences.models import Audience, Install, JobPresence, LyticsAccount, Trouble
from audiences.operations import job_looks, retiring
from audiences.operations.connect import connect
from audiences.operations.doctor.case import Case
from audiences.operations.job_contents import Contents
from audiences.receiving.audience_lookup import BY_SLUG
from sandbox.lytics.api.server import LyticsServer
from sandbox.lytics.audiences import Audience as LyticsAudience
from tests.connecting import CART, THIRD, VIP, add_job, edit, fault, make_shop, sandbox_lytics, the_job
from tests.delivering import make_audience
from tests.test_admin import url as url_of
from tests.test_doctor import the
from tests.test_front import alert, labels
from tests.test_sandbox_lytics_api import control
from workers import tasks

pytestmark = pytest.mark.django_db

BOTH = [VIP.segment_id, CART.segment_id]


@pytest.fixture
def lytics(tmp_path: Path, settings: Settings) -> Iterator[LyticsServer]:
    with sandbox_lytics(tmp_path, settings) as running:
        yield running


@pytest.fixture
def shop(lytics: LyticsServer) -> Install:
    made = make_shop()
    drafts.note_key(made.pk, problem="")
    return made


def sent(shop: Install, audience: LyticsAudience = VIP) -> Audience:
    """An audience that Lytics has sent to the install."""
    made = make_audience(shop, audience.slug)
    Audience.objects.filter(pk=made.pk).update(segment_id=audience.segment_id, created_at=now() - timedelta(days=2))
    made.refresh_from_db()
    return made


@pytest.fixture
def vip(lytics: LyticsServer, shop: Install) -> Audience:
    """An audience that a look has seen in the job, together with another one."""
    made = sent(shop)
    add_job(lytics, shop)
    edit(lytics, the_job(lytics), config={"segment_ids": BOTH})
    job_looks.look(shop.pk)
    return made


def leave(lytics: LyticsServer) -> None:
    """A person removes the audience from the job."""
    edit(lytics, the_job(lytics), config={"segment_ids": [CART.segment_id]})


def gone(shop: Install) -> list[str]:
    """The audiences on the front page after a look."""
    job_looks.look(shop.pk)
    return [presence.audience.latest_slug for presence in job_looks.gone()]


def test_an_audience_that_left_the_job_is_on_the_front_page_until_it_is_back(
    lytics: LyticsServer, shop: Install, vip: Audience, boss: Client
) -> None:
    seen = JobPresence.objects.get().seen_at
    assert gone(shop) == []
    leave(lytics)
    assert gone(shop) == [VIP.slug]
    told = alert(boss, "left the Lytics job (Shop)")
    assert (told.tone, str(vip) in told.what, f"{seen:%Y-%m-%d %H:%M} UTC" in told.why) == ("held", True, True)
    assert "Press Choose audiences to add it to the job again" in told.todo
    assert labels(told)[:2] == ["Choose audiences", "Retire"]
    edit(lytics, the_job(lytics), config={"segment_ids": BOTH})
    assert gone(shop) == []
    assert alert(boss, "left the Lytics job") is None


def test_an_audience_that_lytics_deleted_is_on_the_front_page_while_the_job_still_names_it(
    lytics: LyticsServer, shop: Install, vip: Audience, boss: Client
) -> None:
    control(lytics, "audiences", {"audience": VIP.slug}, method="DELETE")
    assert gone(shop) == [VIP.slug]
    told = alert(boss, "was deleted in Lytics (Shop)")
    assert labels(told)[0] == "Retire"
    leave(lytics)
    assert gone(shop) == [VIP.slug]
    assert alert(boss, "was deleted in Lytics (Shop)")


def test_the_alert_ends_with_the_retirement(lytics: LyticsServer, shop: Install, vip: Audience) -> None:
    leave(lytics)
    assert gone(shop) == [VIP.slug]
    assert retiring.retire(vip, by="kim", reason="no longer used")
    assert [*job_looks.gone()] == []
    assert gone(shop) == []


def test_an_audience_that_is_taken_back_is_on_the_front_page_again(
    lytics: LyticsServer, shop: Install, vip: Audience
) -> None:
    leave(lytics)
    assert retiring.retire(vip, by="kim", reason="no longer used")
    assert retiring.take_back(vip, by="kim", reason="it is")
    assert gone(shop) == [VIP.slug]


@pytest.mark.parametrize("changes", ["token", "enabled"])
def test_without_a_token_or_with_the_install_off_nothing_is_shown(
    lytics: LyticsServer, shop: Install, vip: Audience, changes: str
) -> None:
    leave(lytics)
    assert gone(shop) == [VIP.slug]
    if changes == "token":
        lytics_account.set_token(shop, "")
    else:
        Install.objects.update(enabled=False)
    assert [*job_looks.gone()] == []


def test_each_audience_that_left_is_a_separate_trouble(lytics: LyticsServer, shop: Install, vip: Audience) -> None:
    """A muted one doesn't hide the next."""
    sent(shop, CART)
    sent(shop, THIRD)
    edit(lytics, the_job(lytics), config={"segment_ids": [*BOTH, THIRD.segment_id]})
    job_looks.look(shop.pk)
    leave(lytics)
    assert gone(shop) == [VIP.slug, THIRD.slug]
    troubles.check()
    assert Trouble.objects.filter(kind="left_job", resolved_at=None, install=shop).count() == 2


def test_many_audiences_that_left_are_one_line(lytics: LyticsServer, shop: Install, boss: Client) -> None:
    add_job(lytics, shop)
    for number in range(12):
        left = make_audience(shop, f"old-{number}")
        JobPresence.objects.create(audience=left, seen_at=now(), job_id="job-0", gone_at=now())
    told = alert(boss, "12 audiences left the Lytics job or were deleted in Lytics")
    assert (told.tone, len(told.unfolded)) == ("held", 11)


# --- what is no evidence ------------------------------------------------------------------------------------------


def other_url(lytics: LyticsServer) -> None:
    edit(lytics, the_job(lytics), config={"webhook_url": "https://elsewhere.example.com/webhooks/lytics/other"})


def deleted_job(lytics: LyticsServer) -> None:
    edit(lytics, the_job(lytics), status="deleted")


def without_audiences(lytics: LyticsServer) -> None:
    edit(lytics, the_job(lytics), config={"segment_ids": []})


def with_odd_audiences(lytics: LyticsServer) -> None:
    edit(lytics, the_job(lytics), config={"segment_ids": [CART.segment_id, {"id": VIP.segment_id}]})


def without_settings(lytics: LyticsServer) -> None:
    job = the_job(lytics)
    lytics.api.account.put("job", {**job, "config": None}, made_at=0)


def failing(path: str, status: int) -> Any:
    def fail(lytics: LyticsServer) -> None:
        leave(lytics)
        fault(lytics, path, {"status": status}, method="GET", times=9)

    return fail


def without_jobs(lytics: LyticsServer) -> None:
    fault(lytics, "/v2/job", {"status": 200, "body": {"data": []}}, method="GET", times=9)


def job_of_another_account(lytics: LyticsServer) -> None:
    """The token was replaced by that of an account whose job calls this install with another audience."""
    job = {**the_job(lytics), "id": "of-another-account"}
    listed = [{**job, "config": {**job["config"], "segment_ids": [CART.segment_id]}}]
    fault(lytics, "/v2/job", {"status": 200, "body": {"data": listed}}, method="GET", times=9)


@pytest.mark.parametrize(
    "what",
    [
        other_url,
        deleted_job,
        without_audiences,
        with_odd_audiences,
        without_settings,
        without_jobs,
        job_of_another_account,
        *(
            pytest.param(failing(path, status), id=f"{path} {status}")
            for path in ("/v2/job", "/v2/segment")
            for status in (401, 404, 429, 500)
        ),
    ],
)
def test_a_job_that_is_not_found_or_not_readable_says_nothing(
    lytics: LyticsServer, shop: Install, vip: Audience, what: Any
) -> None:
    what(lytics)
    assert gone(shop) == []


def test_a_failed_look_leaves_what_an_earlier_one_found(lytics: LyticsServer, shop: Install, vip: Audience) -> None:
    leave(lytics)
    assert gone(shop) == [VIP.slug]
    without_jobs(lytics)
    assert gone(shop) == [VIP.slug]
    assert the(shop, "lytics_left").state == "unknown"


def test_the_doctor_says_why_the_job_says_nothing(lytics: LyticsServer, shop: Install, vip: Audience) -> None:
    without_audiences(lytics)
    line = the(shop, "lytics_left")
    assert (line.state, "does not show all audiences" in line.evidence) == ("unknown", True)


def test_an_api_token_that_cannot_be_decrypted_says_nothing(
    lytics: LyticsServer, shop: Install, vip: Audience, settings: Settings
) -> None:
    leave(lytics)
    settings.FIELD_ENCRYPTION_KEYS = ["MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY="]
    assert gone(shop) == []
    line = the(shop, "lytics_left")
    assert (line.state, "can't be decrypted" in line.evidence) == ("unknown", True)


def test_an_audience_that_no_look_has_seen_in_a_job_is_not_reported(lytics: LyticsServer, shop: Install) -> None:
    """Its calls may come from a job that the API token doesn't show. The doctor names it."""
    sent(shop)
    add_job(lytics, shop)
    leave(lytics)
    assert gone(shop) == []
    assert the(shop, "lytics_left").state == "warning"


@pytest.mark.parametrize("status", [401, 429, 500])
def test_only_a_404_says_that_an_audience_was_deleted(
    lytics: LyticsServer, shop: Install, vip: Audience, status: int
) -> None:
    control(lytics, "audiences", {"audience": VIP.slug}, method="DELETE")
    fault(lytics, f"/v2/segment/{VIP.segment_id}", {"status": status}, method="GET")
    assert gone(shop) == []
    assert gone(shop) == [VIP.slug]


def test_a_list_that_leaves_an_audience_out_is_no_evidence(lytics: LyticsServer, shop: Install, vip: Audience) -> None:
    listed = [{"id": CART.segment_id, "slug_name": CART.slug}]
    fault(lytics, "/v2/segment", {"status": 200, "body": {"data": listed}}, method="GET")
    assert gone(shop) == []
    assert JobPresence.objects.get().asked_at is not None


def test_an_audience_named_by_its_slug_has_not_left_while_the_job_has_an_unlisted_one(
    lytics: LyticsServer, shop: Install, vip: Audience
) -> None:
    Audience.objects.filter(pk=vip.pk).update(segment_id=f"slug:{VIP.slug}")
    assert gone(shop) == []
    control(lytics, "audiences", {"audience": VIP.slug}, method="DELETE")
    assert gone(shop) == []
    leave(lytics)
    assert gone(shop) == [VIP.slug]


def test_two_jobs_of_an_install_count_together(lytics: LyticsServer, shop: Install, vip: Audience) -> None:
    first = the_job(lytics)
    add_job(lytics, shop)
    edit(lytics, first, config={"segment_ids": [CART.segment_id]})
    assert gone(shop) == []


def test_a_job_that_replaces_another_one_decides(lytics: LyticsServer, shop: Install, vip: Audience) -> None:
    """The old job is still listed, as deleted, so the new one is of the same account."""
    first = the_job(lytics)
    add_job(lytics, shop)
    edit(lytics, first, status="deleted")
    second = lytics.api.account.things("job")[1]
    assert gone(shop) == []
    edit(lytics, second, config={"segment_ids": [CART.segment_id]})
    assert gone(shop) == [VIP.slug]
    since = JobPresence.objects.get().gone_at
    JobPresence.objects.update(job_id="no longer listed")
    assert gone(shop) == [VIP.slug], "it has left, and nothing says that it is back"
    assert JobPresence.objects.get().gone_at == since


# --- the schedule -------------------------------------------------------------------------------------------------


def requests(lytics: LyticsServer, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    asked: list[str] = []
    answer = lytics.api.answer

    def counted(method: str, path: str, *rest: Any) -> Any:
        asked.append(path)
        return answer(method, path, *rest)

    monkeypatch.setattr(lytics.api, "answer", counted)
    return asked


def test_a_look_asks_little_and_once_per_interval(
    lytics: LyticsServer, shop: Install, vip: Audience, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = requests(lytics, monkeypatch)
    tasks.look_at_jobs()
    assert asked == ["/v2/job", "/v2/segment"]
    tasks.look_at_jobs()
    assert len(asked) == 2
    LyticsAccount.objects.update(job_looked_at=now() - timedelta(minutes=settings.LOOK_MINUTES + 1))
    tasks.look_at_jobs()
    assert len(asked) == 4


def send_twelve(lytics: LyticsServer, shop: Install) -> list[str]:
    """Twelve more audiences in the job, which a look has seen."""
    ids = [f"id-{number}" for number in range(12)]
    for segment_id in ids:
        lytics.api.account.write("INSERT INTO audience (segment_id, slug) VALUES (?, ?)", segment_id, segment_id)
        made = make_audience(shop, segment_id)
        Audience.objects.filter(pk=made.pk).update(segment_id=segment_id)
    edit(lytics, the_job(lytics), config={"segment_ids": [*BOTH, *ids]})
    assert gone(shop) == []
    return ids


def delete_twelve(lytics: LyticsServer, shop: Install) -> list[str]:
    """Twelve audiences that the job sends and Lytics no longer has."""
    ids = send_twelve(lytics, shop)
    for segment_id in ids:
        lytics.api.account.delete_audience(segment_id)
    return ids


def test_looks_take_turns_in_asking_about_audiences_that_the_list_lacks(
    lytics: LyticsServer, shop: Install, vip: Audience, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A look asks about five audiences. The next look asks about others, so each is asked about in the end."""
    ids = delete_twelve(lytics, shop)
    asked = []

    def has_it(case: Case, segment_id: str) -> bool:
        asked.append(segment_id)
        return False

    monkeypatch.setattr(Case, "is_deleted_in_lytics", has_it)
    for _ in range(3):
        assert gone(shop) == []
    assert (set(asked), len(asked)) == (set(ids), 3 * job_looks.ASKED)


def test_of_many_deleted_audiences_a_look_asks_about_a_few(
    lytics: LyticsServer, shop: Install, vip: Audience, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = delete_twelve(lytics, shop)
    asked = requests(lytics, monkeypatch)
    assert len(gone(shop)) == job_looks.ASKED
    assert len(asked) == 2 + job_looks.ASKED
    assert len(gone(shop)) == 2 * job_looks.ASKED
    assert sorted(gone(shop)) == sorted(ids)


@pytest.mark.parametrize("changes", [{"enabled": False}, {"key_accepted_at": None}])
def test_installs_that_are_off_or_drafts_are_not_looked_at(
    lytics: LyticsServer, shop: Install, vip: Audience, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = requests(lytics, monkeypatch)
    Install.objects.update(**changes)
    tasks.look_at_jobs()
    assert asked == []


def test_zero_minutes_switch_the_looks_off(
    lytics: LyticsServer, shop: Install, vip: Audience, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave(lytics)
    assert gone(shop) == [VIP.slug]
    asked = requests(lytics, monkeypatch)
    settings.LOOK_MINUTES = 0
    tasks.look_at_jobs()
    assert (asked, [*job_looks.gone()]) == ([], [])


def test_choose_audiences_is_followed_by_a_look(lytics: LyticsServer, shop: Install, vip: Audience) -> None:
    tasks.look_at_jobs()
    connect(shop, remove=[VIP.slug])
    tasks.look_at_jobs()
    assert [presence.audience for presence in job_looks.gone()] == [vip]
    connect(shop, add=[VIP.slug])
    tasks.look_at_jobs()
    assert [*job_looks.gone()] == []


def test_an_install_whose_look_fails_does_not_keep_others_waiting(
    lytics: LyticsServer, shop: Install, vip: Audience, settings: Settings
) -> None:
    other = make_shop()
    drafts.note_key(other.pk, problem="")
    lytics_account.set_token(shop, "a token that Lytics rejects")
    sent(other, CART)
    edit(lytics, the_job(lytics), config={"webhook_url": f"http://testserver/webhooks/lytics/{other.public_id}"})
    tasks.look_at_jobs()
    assert JobPresence.objects.filter(audience__install=other).exists()


# --- pages --------------------------------------------------------------------------------------------------------


def test_the_list_and_the_page_of_the_audience_show_it(
    lytics: LyticsServer, shop: Install, vip: Audience, viewer: Client
) -> None:
    assert "Last seen in the Lytics job" in viewer.get(url_of("change", vip)).content.decode()
    leave(lytics)
    assert gone(shop) == [VIP.slug]
    assert "no job sends it any more" in viewer.get(url_of("change", vip)).content.decode()
    listed = viewer.get("/admin/audiences/audience/?state=left")
    assert [one.pk for one in listed.context["cl"].result_list] == [vip.pk]


def test_only_a_slug_may_be_that_of_an_audience_that_lytics_does_not_list() -> None:
    partial, complete = (Contents(frozenset({"job"}), names_all, {"known": "job"}) for names_all in (False, True))
    known, other, by_slug = (Audience(segment_id=name) for name in ("known", "other", f"{BY_SLUG}gold"))
    assert [partial.may_be_sent(one) for one in (known, other, by_slug)] == [True, False, True]
    assert [complete.may_be_sent(one) for one in (known, other, by_slug)] == [True, False, False]
