"""``connect`` against the sandbox Lytics API: one job and one authorization, whatever happens to requests."""

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from django.db import connection
from django.utils.timezone import now
from pytest_django.fixtures import Settings

from audiences import lytics_account
from audiences.models import Install, LyticsAccount, Token
from audiences.operations import connect as connecting
from audiences.operations import installs
from audiences.operations.connect import LEASE_SECONDS, Report, connect
from audiences.operations.lytics_job import NotConnectedError, UnansweredError, look
from audiences.receiving import tokens
from lytics.api.authorizations import create_authorization
from sandbox.lytics.api.server import LyticsServer
from tests.connecting import (
    CART,
    THIRD,
    VIP,
    add_job,
    edit,
    fault,
    made_auths,
    made_jobs,
    make_shop,
    sandbox_lytics,
    tell_story,
    the_job,
)
from tests.delivering import NOWHERE, make_install
from tests.lytics_sandbox import TOKEN
from tests.test_sandbox_lytics_api import EVERY_AUDIENCE, control
from tests.threads import together

pytestmark = pytest.mark.django_db

JOBS, AUTHS, ONE_JOB = "/v2/job", "/v2/auth", "/v2/job/webhook_triggers/"


@pytest.fixture
def lytics(tmp_path: Path, settings: Settings) -> Iterator[LyticsServer]:
    with sandbox_lytics(tmp_path, settings) as running:
        yield running


@pytest.fixture
def shop(lytics: LyticsServer) -> Install:
    return make_shop()


def end_lease() -> None:
    LyticsAccount.objects.update(connecting_until_at=now() - timedelta(seconds=1))


def slugs(report: Report) -> list[str]:
    return [audience.slug if audience else segment_id for segment_id, audience in report.found.in_job()]


# --- the job -------------------------------------------------------------------------------------------------


def test_the_job_is_made_held_with_the_recommended_settings(lytics: LyticsServer, shop: Install) -> None:
    report = connect(shop, add=[VIP.slug, VIP.segment_id, CART.segment_id])
    job, (auth,) = the_job(lytics), made_auths(lytics)
    assert job["config"] == {
        "webhook_url": installs.webhook_url(shop),
        "http_method": "POST",
        "segment_ids": [VIP.segment_id, CART.segment_id],
        "withbackfill": True,
        "user_fields": ["_id", "segment_events"],
        "batch_requests": True,
        "batch_size": 300,
        "batch_flush_duration": 3,
        "worker_count": 20,
    }
    assert (job["status"], job["workflow"], job["auth_ids"]) == ("paused", "webhook_triggers", [auth["id"]])
    header = auth["webhook_request_headers"].removeprefix("Authorization: ")
    assert tokens.authenticate(public_id=shop.public_id, authorization=header)[1] is not None
    assert slugs(report) == [VIP.slug, CART.slug]
    assert (report.found.differences, report.found.is_started, report.notes) == ([], False, ())


def test_a_run_is_repeated_without_a_second_job_or_authorization(lytics: LyticsServer, shop: Install) -> None:
    connect(shop, add=[VIP.slug])
    before = the_job(lytics)
    Install.objects.update(name="Another name")
    again = connect(Install.objects.get(), add=[VIP.slug])
    assert again.steps == ()
    assert (the_job(lytics), len(made_auths(lytics))) == (before, 1)


def test_the_job_starts_when_a_person_says_so_and_only_once(lytics: LyticsServer, shop: Install) -> None:
    connect(shop, add=[VIP.slug])
    assert connect(shop, start=True).found.is_started
    assert the_job(lytics)["status"] == "running"
    updated = the_job(lytics)["updated"]
    assert connect(shop, start=True).steps == ()
    assert the_job(lytics)["updated"] == updated


@pytest.mark.parametrize(("state", "verb"), [("failed", "bounce"), ("paused", "resume"), ("held", "resume")])
def test_a_failed_job_is_restarted_and_any_other_resumed(
    lytics: LyticsServer, shop: Install, state: str, verb: str
) -> None:
    connect(shop, add=[VIP.slug])
    edit(lytics, the_job(lytics), status=state)
    connect(shop, start=True)
    assert the_job(lytics)["status"] == "running"
    assert lytics.api.account.logs(the_job(lytics)["id"])[-1]["message"] == f"Job: {verb}"


def test_a_job_with_other_settings_is_started_if_its_events_would_arrive(lytics: LyticsServer, shop: Install) -> None:
    connect(shop, add=[VIP.slug])
    edit(lytics, the_job(lytics), config={"batch_size": 100})
    assert connect(shop, start=True).found.is_started


@pytest.mark.parametrize("state", ["running", "sleeping", "fault-3", "initializing"])
def test_a_job_that_is_started_already_is_left_alone(lytics: LyticsServer, shop: Install, state: str) -> None:
    connect(shop, add=[VIP.slug])
    edit(lytics, the_job(lytics), status=state)
    assert connect(shop, start=True).steps == ()
    assert the_job(lytics)["status"] == state


def test_a_dry_run_writes_nothing(lytics: LyticsServer, shop: Install) -> None:
    Token.objects.all().delete()
    report = connect(shop, add=[VIP.slug], start=True, dry_run=True)
    assert [step.split()[0] for step in report.steps] == ["Create", "Create", "Start"]
    assert (made_jobs(lytics), made_auths(lytics), Token.objects.count()) == ([], [], 0)
    assert lytics_account.leased_until(shop) is None


def test_without_a_job_and_without_a_choice_the_audiences_are_listed(lytics: LyticsServer, shop: Install) -> None:
    report = connect(shop)
    assert {audience.slug for audience in report.found.audiences} == {one.slug for one in EVERY_AUDIENCE}
    assert (report.found.job, made_jobs(lytics), made_auths(lytics)) == (None, [], [])


def test_a_killed_job_is_gone_and_another_is_made_with_the_same_authorization(
    lytics: LyticsServer, shop: Install
) -> None:
    connect(shop, add=[VIP.slug])
    edit(lytics, the_job(lytics), status="deleted")
    report = connect(shop, add=[CART.slug])
    assert report.steps == (f"Create the job with {CART.slug}, held",)
    assert [job["status"] for job in made_jobs(lytics)] == ["deleted", "paused"]
    assert len(made_auths(lytics)) == 1


# --- identifiers that are lists ---------------------------------------------------------------------------------


@pytest.mark.parametrize("is_list", [True, False])
def test_a_field_that_holds_lists_triggers_calls(lytics: LyticsServer, shop: Install, is_list: bool) -> None:
    tell_story(lytics.api.account, "_uids", array_identifiers=is_list)
    Install.objects.update(identifier_field="_uids")
    connect(Install.objects.get(), add=[VIP.slug])
    config = the_job(lytics)["config"]
    assert config["user_fields"] == ["_uids", "segment_events"]
    assert config.get("field_changes") == (["_uids"] if is_list else None)


def test_forgotten_identifiers_need_the_lytics_id_as_well(lytics: LyticsServer, shop: Install) -> None:
    Install.objects.update(identifier_field="_uids", forget_missing_identifiers=True)
    connect(Install.objects.get(), add=[VIP.slug])
    config = the_job(lytics)["config"]
    assert (config["user_fields"], config["field_changes"]) == (["_uids", "_id", "segment_events"], ["_uids"])


def test_an_identifier_that_no_member_has_is_reported(lytics: LyticsServer, shop: Install) -> None:
    Install.objects.update(identifier_field="customer_number")
    (note,) = connect(Install.objects.get(), add=[VIP.slug], dry_run=True).notes
    assert "none has customer_number" in note


def test_an_install_that_is_off_is_reported(lytics: LyticsServer, shop: Install) -> None:
    Install.objects.update(enabled=False)
    (note,) = connect(Install.objects.get(), add=[VIP.slug], dry_run=True).notes
    assert "answered 503 until it is on" in note


# --- requests without a response --------------------------------------------------------------------------------


LOST = ({"close": "after"}, {"status": 502, "html": True, "apply": True}, {"status": 200, "body": "ok", "apply": True})
NOT_DONE = ({"close": "before"}, {"status": 502, "html": True}, {"status": 500, "body": {"message": "oh"}})


@pytest.mark.parametrize("then", LOST)
@pytest.mark.parametrize("path", [AUTHS, JOBS])
def test_what_was_made_without_a_response_is_found(
    lytics: LyticsServer, shop: Install, path: str, then: dict[str, Any]
) -> None:
    fault(lytics, path, then)
    report = connect(shop, add=[VIP.slug])
    assert (len(made_jobs(lytics)), len(made_auths(lytics)), slugs(report)) == (1, 1, [VIP.slug])
    assert lytics_account.leased_until(shop) is None


@pytest.mark.parametrize("then", NOT_DONE)
@pytest.mark.parametrize("path", [AUTHS, JOBS])
def test_after_a_request_without_effect_nothing_is_tried_until_the_lease_ends(
    lytics: LyticsServer, shop: Install, path: str, then: dict[str, Any]
) -> None:
    fault(lytics, path, then)
    with pytest.raises(UnansweredError):
        connect(shop, add=[VIP.slug])
    with pytest.raises(NotConnectedError, match="Another run"):
        connect(shop, add=[VIP.slug])
    assert made_jobs(lytics) == []
    end_lease()
    connect(shop, add=[VIP.slug])
    assert (len(made_jobs(lytics)), len(made_auths(lytics))) == (1, 1)


def test_a_job_that_lytics_makes_late_is_found_by_the_next_run(lytics: LyticsServer, shop: Install) -> None:
    connect(shop, add=[VIP.slug])
    late = the_job(lytics)
    lytics.api.account.write("DELETE FROM thing WHERE kind = 'job'")
    fault(lytics, JOBS, {"close": "before"})
    with pytest.raises(UnansweredError):
        connect(shop, add=[VIP.slug])
    lytics.api.account.put("job", late, made_at=lytics.api.now())
    end_lease()
    assert connect(shop, add=[VIP.slug]).steps == ()
    assert the_job(lytics) == late


@pytest.mark.parametrize("then", LOST)
def test_a_change_without_a_response_is_read_back(lytics: LyticsServer, shop: Install, then: dict[str, Any]) -> None:
    connect(shop, add=[VIP.slug])
    fault(lytics, ONE_JOB, then, method="PUT")
    assert slugs(connect(shop, add=[CART.slug])) == [VIP.slug, CART.slug]


@pytest.mark.parametrize("then", NOT_DONE)
def test_a_change_that_was_lost_is_reported_and_made_by_the_next_run(
    lytics: LyticsServer, shop: Install, then: dict[str, Any]
) -> None:
    connect(shop, add=[VIP.slug])
    fault(lytics, ONE_JOB, then, method="PUT")
    with pytest.raises(UnansweredError):
        connect(shop, add=[CART.slug])
    end_lease()
    assert slugs(connect(shop, add=[CART.slug])) == [VIP.slug, CART.slug]


@pytest.mark.parametrize("is_rotated", [False, True])
def test_a_change_that_lytics_confirms_and_does_not_make_is_reported(
    lytics: LyticsServer, shop: Install, is_rotated: bool
) -> None:
    connect(shop, add=[VIP.slug, CART.slug])
    before = the_job(lytics)
    if is_rotated:
        rotate(shop)
        leaving, confirmed = [], before
    else:
        leaving, confirmed = [CART.slug], {**before, "config": {**before["config"], "segment_ids": [VIP.segment_id]}}
    fault(lytics, ONE_JOB, {"status": 200, "body": {"data": confirmed}}, method="PUT")
    with pytest.raises(NotConnectedError, match="shows other audiences or authorizations"):
        connect(shop, remove=leaving)
    assert the_job(lytics) == before


def test_a_request_that_could_not_be_sent_ends_the_run_at_once(
    lytics: LyticsServer, shop: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    nowhere = lytics_account.client_with(TOKEN)
    nowhere.url = NOWHERE
    monkeypatch.setattr(
        connecting, "create_authorization", lambda client, **more: create_authorization(nowhere, **more)
    )
    with pytest.raises(NotConnectedError, match="could not be asked"):
        connect(shop, add=[VIP.slug])
    assert lytics_account.leased_until(shop) is None


def test_a_job_without_a_response_is_not_made_again_when_the_jobs_can_not_be_read(
    lytics: LyticsServer, shop: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    fault(lytics, JOBS, {"close": "after"})
    during(monkeypatch, "create_job", lambda: fault(lytics, JOBS, {"status": 500}, method="GET"), after=True)
    with pytest.raises(UnansweredError):
        connect(shop, add=[VIP.slug])
    with pytest.raises(NotConnectedError, match="Another run"):
        connect(shop, add=[VIP.slug])
    end_lease()
    connect(shop, add=[VIP.slug])
    assert len(made_jobs(lytics)) == 1


@pytest.mark.parametrize("then", LOST)
def test_a_start_without_a_response_is_read_back(lytics: LyticsServer, shop: Install, then: dict[str, Any]) -> None:
    connect(shop, add=[VIP.slug])
    fault(lytics, f"{JOBS}/{the_job(lytics)['id']}/resume", then)
    assert connect(shop, start=True).found.is_started


@pytest.mark.parametrize("then", [*NOT_DONE, {"status": 400}])
def test_a_start_without_effect_names_the_way_by_hand(
    lytics: LyticsServer, shop: Install, then: dict[str, Any]
) -> None:
    connect(shop, add=[VIP.slug])
    fault(lytics, f"{JOBS}/{the_job(lytics)['id']}/resume", then)
    with pytest.raises(NotConnectedError, match="Start it in Lytics"):
        connect(shop, start=True)


# --- two runs ------------------------------------------------------------------------------------------------


def during(monkeypatch: pytest.MonkeyPatch, name: str, happening: Callable[[], Any], *, after: bool = False) -> None:
    """Something that happens once, right before or after ``connect`` calls a function."""
    original, pending = getattr(connecting, name), [happening]

    def called(*args: Any, **kwargs: Any) -> Any:
        if pending and not after:
            pending.pop()()
        result = original(*args, **kwargs)
        if pending:
            pending.pop()()
        return result

    monkeypatch.setattr(connecting, name, called)


@pytest.mark.parametrize("name", ["create_authorization", "create_job"])
def test_a_run_beside_another_is_refused(
    lytics: LyticsServer, shop: Install, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def other_run() -> None:
        with pytest.raises(NotConnectedError, match="Another run"):
            connect(shop, add=[VIP.slug])

    during(monkeypatch, name, other_run)
    connect(shop, add=[VIP.slug])
    assert (len(made_jobs(lytics)), len(made_auths(lytics))) == (1, 1)


@pytest.mark.django_db(transaction=True)
def test_four_runs_at_once_make_one_job(lytics: LyticsServer, shop: Install) -> None:
    def run() -> bool:
        try:
            connect(shop, add=[VIP.slug])
        except NotConnectedError:
            return False
        return True

    assert any(together(*[run] * 4))
    assert (len(made_jobs(lytics)), len(made_auths(lytics))) == (1, 1)
    assert lytics_account.leased_until(shop) is None


@pytest.mark.parametrize("name", ["create_authorization", "create_job"])
@pytest.mark.parametrize("after", [True, False])
def test_a_run_after_a_killed_one_makes_what_is_missing(
    lytics: LyticsServer, shop: Install, monkeypatch: pytest.MonkeyPatch, name: str, after: bool
) -> None:
    def killed() -> None:
        raise SystemExit

    during(monkeypatch, name, killed, after=after)
    with pytest.raises(SystemExit):
        connect(shop, add=[VIP.slug])
    with pytest.raises(NotConnectedError):
        connect(shop, add=[VIP.slug])
    end_lease()
    connect(shop, add=[VIP.slug])
    assert (len(made_jobs(lytics)), len(made_auths(lytics))) == (1, 1)


def test_the_lease_outlasts_every_request_of_a_run(shop: Install) -> None:
    assert LEASE_SECONDS >= connecting.SECONDS + 60
    assert 50 < connecting.client_of(shop).ends_at - time.monotonic() <= connecting.SECONDS
    assert connecting.client_of(shop, seconds=20).ends_at - time.monotonic() <= 20


def test_a_run_whose_lease_has_ended_does_not_release_that_of_another(shop: Install) -> None:
    first = lytics_account.lease(shop, until=now() - timedelta(seconds=1))
    second = lytics_account.lease(shop, until=now() + timedelta(minutes=1))
    assert first
    assert second
    lytics_account.release(first)
    assert lytics_account.leased_until(shop) == second.until


# --- a job that a person edited ---------------------------------------------------------------------------------


def test_audiences_join_and_leave_and_everything_else_in_the_job_stays(lytics: LyticsServer, shop: Install) -> None:
    connect(shop, add=[VIP.slug])
    edited = {"batch_size": 100, "future": {"a": [1, 2.5]}, "segment_ids": [VIP.segment_id, "gone"]}
    edit(lytics, the_job(lytics), name="Renamed", description="mine", config=edited, tags=["x"])
    before = the_job(lytics)
    report = connect(shop, add=[CART.slug, THIRD.slug], remove=[VIP.slug])
    changed = {"config": {**before["config"], "segment_ids": ["gone", CART.segment_id, THIRD.segment_id]}}
    assert {**the_job(lytics), "updated": ""} == {**before, **changed, "updated": ""}
    assert slugs(report) == ["gone", CART.slug, THIRD.slug]
    assert [(one.key, one.theirs) for one in report.found.differences] == [("batch_size", "100")]
    assert any("stay in ODP" in note for note in report.notes)


def test_another_audience_takes_the_place_of_the_only_one(lytics: LyticsServer, shop: Install) -> None:
    connect(shop, add=[VIP.slug])
    report = connect(shop, add=[CART.slug], remove=[VIP.slug])
    assert slugs(report) == [CART.slug]
    assert report.steps == (f"Add {CART.slug} to the job", f"Remove {VIP.slug} from the job")


def test_an_audience_leaves_without_another_one_joining(lytics: LyticsServer, shop: Install) -> None:
    connect(shop, add=[VIP.slug, CART.slug])
    assert slugs(connect(shop, remove=[CART.slug])) == [VIP.slug]
    assert the_job(lytics)["config"]["segment_ids"] == [VIP.segment_id]
    assert connect(shop, remove=[CART.slug]).steps == ()


@pytest.mark.parametrize("shown", [[7, VIP.segment_id], [{"id": VIP.segment_id}], None, []], ids=str)
def test_a_job_whose_audiences_are_not_all_shown_is_left_alone(lytics: LyticsServer, shop: Install, shown: Any) -> None:
    """Writing back only the audiences that can be read would remove the others from the job."""
    connect(shop, add=[VIP.slug])
    edit(lytics, the_job(lytics), config={"segment_ids": shown})
    before = the_job(lytics)
    with pytest.raises(NotConnectedError, match="does not show all audiences") as problem:
        connect(shop, add=[CART.slug])
    assert problem.value.by_hand
    assert the_job(lytics) == before
    assert lytics_account.leased_until(shop) is None


def test_a_job_that_shows_no_audience_can_be_looked_at_and_started(lytics: LyticsServer, shop: Install) -> None:
    connect(shop, add=[VIP.slug])
    edit(lytics, the_job(lytics), config={"segment_ids": [{"id": VIP.segment_id}]})
    assert connect(shop).steps == ()
    assert connect(shop, start=True).found.is_started
    with pytest.raises(NotConnectedError, match="does not show all audiences"):
        connect(shop, remove=[VIP.slug], dry_run=True)


def test_an_audience_that_lytics_calls_invalid_does_not_join_and_may_stay(
    lytics: LyticsServer, shop: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect(shop, add=[VIP.slug])

    def invalid(*args: Any) -> Any:
        found = look(*args)
        return replace(found, audiences=tuple(replace(audience, is_invalid=True) for audience in found.audiences))

    monkeypatch.setattr(connecting, "look", invalid)
    assert connect(shop, add=[VIP.slug]).steps == ()
    with pytest.raises(NotConnectedError, match="invalid"):
        connect(shop, add=[CART.slug])
    assert the_job(lytics)["config"]["segment_ids"] == [VIP.segment_id]


def test_after_a_run_the_jobs_are_looked_at_again(lytics: LyticsServer, shop: Install) -> None:
    LyticsAccount.objects.update(job_looked_at=now())
    connect(shop, dry_run=True)
    assert LyticsAccount.objects.get().job_looked_at
    connect(shop, add=[VIP.slug])
    assert LyticsAccount.objects.get().job_looked_at is None


def test_with_another_api_token_the_jobs_are_looked_at_again(shop: Install) -> None:
    LyticsAccount.objects.update(job_looked_at=now())
    lytics_account.set_token(shop, TOKEN)
    assert LyticsAccount.objects.get().job_looked_at is None


def test_what_a_person_changes_between_reading_and_writing_stays(
    lytics: LyticsServer, shop: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect(shop, add=[VIP.slug])
    ids = [VIP.segment_id, THIRD.segment_id]
    change = partial(edit, lytics, the_job(lytics), config={"segment_ids": ids, "batch_size": 77}, description="new")
    during(monkeypatch, "look", change, after=True)
    connect(shop, add=[CART.slug])
    job = the_job(lytics)
    assert job["config"]["segment_ids"] == [*ids, CART.segment_id]
    assert (job["config"]["batch_size"], job["description"]) == (77, "new")


def test_what_a_person_did_in_the_meantime_is_not_done_again(
    lytics: LyticsServer, shop: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect(shop, add=[VIP.slug])
    ids = [VIP.segment_id, CART.segment_id]
    change = partial(edit, lytics, the_job(lytics), config={"segment_ids": ids}, status="running")
    during(monkeypatch, "look", change, after=True)
    assert connect(shop, add=[CART.slug, THIRD.slug], start=True).found.is_started
    job = the_job(lytics)
    assert job["config"]["segment_ids"] == [*ids, THIRD.segment_id]
    assert not any("resume" in entry["message"] for entry in lytics.api.account.logs(job["id"]))


def test_the_last_audience_can_not_leave_after_a_person_removed_the_others(
    lytics: LyticsServer, shop: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect(shop, add=[VIP.slug, CART.slug])
    change = partial(edit, lytics, the_job(lytics), config={"segment_ids": [VIP.segment_id]})
    during(monkeypatch, "look", change, after=True)
    with pytest.raises(NotConnectedError, match="no audience would be left"):
        connect(shop, remove=[VIP.slug])
    assert the_job(lytics)["config"]["segment_ids"] == [VIP.segment_id]


def test_a_job_that_calls_us_comes_before_one_with_our_name_alone(lytics: LyticsServer, shop: Install) -> None:
    elsewhere = {"webhook_url": "https://elsewhere.example", "segment_ids": [THIRD.segment_id]}
    add_job(lytics, shop, name=f"Shop's ({shop.public_id})", config=elsewhere)
    add_job(lytics, shop)
    assert slugs(connect(shop, dry_run=True)) == [VIP.slug]


def test_the_only_job_that_calls_us_is_ours_also_when_a_person_made_it(lytics: LyticsServer, shop: Install) -> None:
    job = add_job(lytics, shop)
    edit(lytics, job, config={"webhook_url": f"{installs.webhook_url(shop)}/"})
    report = connect(shop, add=[CART.slug])
    assert the_job(lytics)["auth_ids"] == job["auth_ids"]
    assert slugs(report) == [VIP.slug, CART.slug]
    assert {"user_fields", "withbackfill", "batch_size"} <= {one.key for one in report.found.differences}


def test_of_several_jobs_that_call_us_ours_is_the_one_with_our_name(lytics: LyticsServer, shop: Install) -> None:
    add_job(lytics, shop)
    mine = add_job(lytics, shop, name=f"Shop's ({shop.public_id})")
    report = connect(shop, add=[CART.slug])
    assert report.found.job
    assert report.found.job.job_id == mine["id"]


def test_of_several_jobs_without_our_name_none_is_guessed(lytics: LyticsServer, shop: Install) -> None:
    add_job(lytics, shop)
    add_job(lytics, shop)
    with pytest.raises(NotConnectedError, match="2 jobs"):
        connect(shop, add=[CART.slug])
    assert all(job["config"]["segment_ids"] == [VIP.segment_id] for job in made_jobs(lytics))


def test_a_job_of_another_install_is_not_ours(lytics: LyticsServer, shop: Install) -> None:
    other = make_install(name="Other")
    add_job(lytics, other)
    connect(shop, add=[CART.slug])
    assert len(made_jobs(lytics)) == 2


@pytest.mark.parametrize(
    "config", [{"webhook_url": "https://elsewhere.example/hook"}, {"http_method": "GET"}, {"http_method": "delete"}]
)
def test_a_job_from_which_nothing_would_arrive_is_not_started(
    lytics: LyticsServer, shop: Install, config: dict[str, str]
) -> None:
    connect(shop, add=[VIP.slug])
    edit(lytics, the_job(lytics), config=config)
    with pytest.raises(NotConnectedError, match="no event would arrive"):
        connect(shop, start=True)
    assert the_job(lytics)["status"] == "paused"


def test_the_last_audience_can_not_leave(lytics: LyticsServer, shop: Install) -> None:
    connect(shop, add=[VIP.slug])
    with pytest.raises(NotConnectedError, match="needs an audience"):
        connect(shop, remove=[VIP.slug])
    assert the_job(lytics)["config"]["segment_ids"] == [VIP.segment_id]


@pytest.mark.parametrize(
    "asked", [{"add": ["nobody"]}, {"add": [VIP.slug], "remove": [VIP.segment_id]}, {"remove": ["nobody"]}]
)
def test_an_impossible_choice_changes_nothing(lytics: LyticsServer, shop: Install, asked: dict[str, Any]) -> None:
    with pytest.raises(NotConnectedError):
        connect(shop, **asked)
    assert (made_jobs(lytics), made_auths(lytics)) == ([], [])
    assert lytics_account.leased_until(shop) is None


# --- tokens --------------------------------------------------------------------------------------------------


def rotate(shop: Install) -> None:
    tokens.revoke(Token.objects.get(), at=now() + timedelta(days=1))
    tokens.create(shop)


@pytest.mark.parametrize("then", NOT_DONE)
def test_the_authorization_of_a_former_token_is_not_taken_for_a_new_one(
    lytics: LyticsServer, shop: Install, then: dict[str, Any]
) -> None:
    connect(shop, add=[VIP.slug])
    before = the_job(lytics)
    rotate(shop)
    fault(lytics, AUTHS, then)
    with pytest.raises(UnansweredError):
        connect(shop)
    assert the_job(lytics) == before


def test_a_rotated_webhook_token_gets_an_authorization_of_its_own(lytics: LyticsServer, shop: Install) -> None:
    connect(shop, add=[VIP.slug])
    edit(lytics, the_job(lytics), auth_ids=["by-hand", *the_job(lytics)["auth_ids"]])
    rotate(shop)
    assert any("former authorization" in note for note in connect(shop).notes)
    first, second = made_auths(lytics)
    assert the_job(lytics)["auth_ids"] == ["by-hand", second["id"]]
    assert first["webhook_request_headers"] != second["webhook_request_headers"]
    assert connect(shop).steps == ()


def test_without_a_webhook_token_one_is_made(lytics: LyticsServer, shop: Install) -> None:
    Token.objects.update(revoked_at=now())
    connect(shop, add=[VIP.slug])
    assert [token.name for token in tokens.live(shop)] == ["Lytics job"]


def test_the_newest_webhook_token_is_given(lytics: LyticsServer, shop: Install) -> None:
    newest = tokens.create(shop)
    connect(shop, add=[VIP.slug])
    (auth,) = made_auths(lytics)
    assert str(newest.secret) in auth["webhook_request_headers"]


@pytest.mark.parametrize(
    ("column", "says"), [("lyticsaccount SET api_token", "Lytics API token"), ("token SET secret", "webhook token")]
)
def test_a_secret_of_another_encryption_key_is_named(
    lytics: LyticsServer, shop: Install, column: str, says: str
) -> None:
    with connection.cursor() as cursor:
        cursor.execute(f"UPDATE audiences_{column} = 'of another key'")
    with pytest.raises(NotConnectedError, match=f"{says}.* can't be used"):
        connect(Install.objects.get(), add=[VIP.slug])
    assert made_auths(lytics) == []


def test_no_secret_is_in_a_report_or_a_log(
    lytics: LyticsServer, shop: Install, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    report = connect(shop, add=[VIP.slug], start=True)
    said = json.dumps(report.as_json()) + caplog.text + "".join(capsys.readouterr())
    assert TOKEN not in said
    assert Token.objects.get().secret not in said


# --- quotas and rights ------------------------------------------------------------------------------------------


def test_the_quota_of_new_integrations_stops_between_authorization_and_job(lytics: LyticsServer, shop: Install) -> None:
    control(lytics, "switches", {"integrations_per_hour": 1})
    for _ in range(2):
        with pytest.raises(NotConnectedError, match="ten new integrations an hour"):
            connect(shop, add=[VIP.slug])
    assert (len(made_jobs(lytics)), len(made_auths(lytics))) == (0, 1)
    control(lytics, "clock", {"advance_seconds": 3700})
    connect(shop, add=[VIP.slug])
    assert (len(made_jobs(lytics)), len(made_auths(lytics))) == (1, 1)


def test_many_audiences_are_one_job(lytics: LyticsServer, shop: Install) -> None:
    control(lytics, "switches", {"integrations_per_hour": 2})
    for audience in EVERY_AUDIENCE:
        connect(shop, add=[audience.slug])
    assert the_job(lytics)["config"]["segment_ids"] == [audience.segment_id for audience in EVERY_AUDIENCE]


def test_the_quota_of_active_exports_is_quoted(lytics: LyticsServer, shop: Install) -> None:
    control(lytics, "switches", {"active_exports": 0})
    with pytest.raises(NotConnectedError, match="too many active exports"):
        connect(shop, add=[VIP.slug])
    assert lytics_account.leased_until(shop) is None


@pytest.mark.parametrize("path", ["/v2/segment", JOBS, AUTHS])
def test_a_rate_limit_ends_the_run_without_a_change(lytics: LyticsServer, shop: Install, path: str) -> None:
    fault(lytics, path, {"status": 429, "body": {"message": "Too many requests"}}, method="GET")
    with pytest.raises(NotConnectedError, match="limiting requests") as problem:
        connect(shop, add=[VIP.slug])
    assert not problem.value.by_hand
    assert (made_jobs(lytics), made_auths(lytics)) == ([], [])
    assert lytics_account.leased_until(shop) is None


@pytest.mark.parametrize(
    ("path", "method"), [("/v2/segment", "GET"), (JOBS, "GET"), (AUTHS, "GET"), (AUTHS, "POST"), (JOBS, "POST")]
)
def test_a_missing_right_leads_to_the_way_by_hand(lytics: LyticsServer, shop: Install, path: str, method: str) -> None:
    fault(lytics, path, {"status": 403, "body": {"message": "forbidden"}}, method=method)
    with pytest.raises(NotConnectedError) as problem:
        connect(shop, add=[VIP.slug])
    assert problem.value.by_hand
    assert made_jobs(lytics) == []


def test_a_job_is_changed_without_the_right_to_list_authorizations(lytics: LyticsServer, shop: Install) -> None:
    connect(shop, add=[VIP.slug])
    fault(lytics, AUTHS, {"status": 403}, method="GET")
    assert slugs(connect(shop, add=[CART.slug])) == [VIP.slug, CART.slug]


def test_authorizations_that_can_not_be_read_may_be_ours(lytics: LyticsServer, shop: Install) -> None:
    fault(lytics, AUTHS, {"status": 200, "body": {"data": [{"label": "without an id"}]}}, method="GET")
    with pytest.raises(NotConnectedError, match="doesn't list authorizations"):
        connect(shop, add=[VIP.slug])
    assert made_auths(lytics) == []


def test_jobs_that_can_not_be_read_may_be_ours(lytics: LyticsServer, shop: Install) -> None:
    fault(lytics, JOBS, {"status": 200, "body": {"data": [{"name": "without an id"}]}}, method="GET")
    with pytest.raises(NotConnectedError, match="can't be read"):
        connect(shop, add=[VIP.slug])
    assert made_jobs(lytics) == []
