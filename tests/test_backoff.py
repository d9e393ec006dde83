"""The backoff of an install: its length, what counts as one failure, and when it ends."""

import random
import uuid
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import pytest
from django.utils.timezone import now
from pytest_django.fixtures import Settings

from audiences.delivery import backoff, claims, leases
from audiences.models import Audience, Install, Lane
from odp.outcomes import Answer, Outcome
from tests.delivering import backoff_runs_out, enter, make_audience, make_install
from tests.threads import Gate, together
from workers import tasks

BUSY = Answer(Outcome.RETRY_LATER, "503: busy", status=503)
FORBIDDEN = Answer(Outcome.UNAUTHORISED, "403: Forbidden", status=403, fixed_backoff=True)


@pytest.fixture(autouse=True)
def pauses(settings: Settings) -> None:
    settings.BACKOFF_FIRST_SECONDS, settings.BACKOFF_LONGEST_SECONDS, settings.BACKOFF_FIXED_SECONDS = 0.5, 60, 30


@pytest.fixture
def shop(db: None) -> Install:
    return make_install()


def again(install: Install) -> Install:
    """The install as the next claim reads it."""
    return Install.objects.get(pk=install.pk)


def waits(install: Install) -> timedelta:
    until = again(install).backoff_until_at
    assert until is not None
    return until - now()


# --- How long -------------------------------------------------------------------------------------------------


@pytest.fixture
def dice(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], list[tuple[float, float]]]:
    """Replace random.uniform by a chosen position between the bounds; records the bounds."""
    asked: list[tuple[float, float]] = []

    def load(part: float) -> list[tuple[float, float]]:
        def uniform(least: float, most: float) -> float:
            asked.append((least, most))
            return least + (most - least) * part

        monkeypatch.setattr(random, "uniform", uniform)
        return asked

    return load


def test_the_pause_doubles_with_each_failure_up_to_the_longest_and_may_be_anything_below(dice: Any) -> None:
    asked = dice(1.0)
    pauses = [backoff.pause_seconds(failures=failures, answer=BUSY) for failures in (0, 1, 2, 3, 6, 7, 30, 1_000_000)]
    assert pauses == [0.5, 1, 2, 4, 32, 60, 60, 60]
    assert {least for least, _ in asked} == {0}
    dice(0.0)
    assert backoff.pause_seconds(failures=5, answer=BUSY) == 0


def test_pauses_are_spread_over_all_of_it() -> None:
    pauses = [backoff.pause_seconds(failures=2, answer=BUSY) for _ in range(400)]
    assert all(0 <= pause <= 2 for pause in pauses)
    assert min(pauses) < 0.4
    assert max(pauses) > 1.6


@pytest.mark.parametrize(("asked", "longest"), [(0.0, 0.5), (7.0, 7.0), (600.0, 600.0)])
def test_it_never_waits_shorter_than_odp_asks(dice: Any, asked: float, longest: float) -> None:
    for part in (0.0, 1.0):
        dice(part)
        answer = Answer(Outcome.RETRY_LATER, "429", retry_after=asked)
        assert asked <= backoff.pause_seconds(failures=0, answer=answer) <= longest


@pytest.mark.parametrize(("asked", "seconds"), [(None, 30), (5.0, 30), (90.0, 90)])
def test_a_failure_that_needs_a_person_is_retried_slowly(asked: float | None, seconds: float) -> None:
    for failures in (0, 9):
        answer = Answer(Outcome.UNAUTHORISED, "403", fixed_backoff=True, retry_after=asked)
        assert backoff.pause_seconds(failures=failures, answer=answer) == seconds


# --- What the row says ----------------------------------------------------------------------------------------


def test_it_says_until_when_since_when_and_why(shop: Install) -> None:
    before = now()
    backoff.apply(shop, FORBIDDEN)
    on_hold = again(shop)
    assert on_hold.backoff_reason == "403: Forbidden"
    assert on_hold.backoff_failures == 1
    assert on_hold.backoff_since_at is not None
    assert before <= on_hold.backoff_since_at <= now()
    assert timedelta(seconds=29) < waits(shop) <= timedelta(seconds=30)


def test_each_failed_try_counts_and_the_beginning_stays(shop: Install) -> None:
    since = []
    for failures in range(1, 5):
        backoff.apply(again(shop), BUSY)
        since.append(again(shop).backoff_since_at)
        assert again(shop).backoff_failures == failures
        backoff_runs_out(shop)
    assert len(set(since)) == 1


def test_a_short_pause_does_not_shorten_a_long_one(shop: Install) -> None:
    backoff.apply(shop, Answer(Outcome.RETRY_LATER, "429", retry_after=600.0))
    backoff.apply(shop, BUSY)
    assert waits(shop) > timedelta(seconds=590)


def test_an_install_that_never_failed_is_released_to_no_effect(shop: Install) -> None:
    before = Install.objects.values().get(pk=shop.pk)
    backoff.release(shop)
    assert Install.objects.values().get(pk=shop.pk) == before


def test_a_release_leaves_nothing_behind(shop: Install) -> None:
    before = Install.objects.values().get(pk=shop.pk)
    backoff.apply(shop, BUSY)
    backoff.release(shop)
    assert Install.objects.values().get(pk=shop.pk) == before


def test_one_install_is_held_back_and_no_other(shop: Install) -> None:
    other = make_install(name="Other")
    for install in (shop, other):
        enter(make_audience(install), "kim")
    backoff.apply(shop, FORBIDDEN)
    assert claims.due() == [other.pk]
    assert claims.claim(shop.pk) is None


def test_a_sweep_names_the_install_first_that_has_waited_longest_since_its_backoff(db: None) -> None:
    installs = [make_install(name=f"Shop {number}") for number in range(4)]
    for install, minutes in zip(installs, (1, 3, 2, 0), strict=True):
        enter(make_audience(install), "kim")
        if minutes:
            backoff.apply(install, BUSY)
            Install.objects.filter(pk=install.pk).update(backoff_until_at=now() - timedelta(minutes=minutes))
    assert claims.due() == [installs[3].pk, installs[1].pk, installs[2].pk, installs[0].pk]


# --- Requests that were under way together --------------------------------------------------------------------


@pytest.mark.django_db(transaction=True)
def test_requests_that_were_under_way_together_fail_once(shop: Install) -> None:
    begin = Gate(10).after(lambda: None)

    def fail() -> None:
        begin()
        backoff.apply(shop, BUSY)

    together(*[fail] * 10)
    assert again(shop).backoff_failures == 1


def test_they_fail_once_even_if_the_pause_was_over_before_the_last_of_them_failed(shop: Install, dice: Any) -> None:
    """Full jitter makes pauses of no length too."""
    dice(0.0)
    for _ in range(5):
        backoff.apply(shop, BUSY)
    assert again(shop).backoff_failures == 1
    probe = again(shop)
    backoff.apply(probe, BUSY)
    backoff.apply(shop, BUSY)
    assert again(shop).backoff_failures == 2


def test_a_failure_after_a_release_counts_from_one_whenever_its_request_had_started(shop: Install) -> None:
    for _ in range(3):
        backoff.apply(again(shop), BUSY)
        backoff_runs_out(shop)
    late = again(shop)
    backoff.release(shop)
    backoff.apply(late, BUSY)
    assert again(shop).backoff_failures == 1


# --- A clock that was ahead -----------------------------------------------------------------------------------

LEASES, WAITS = ("lease_expires_at", "making_until_at"), ("fault_until_at", "hold_until_at", "backoff_until_at")


def times_of(install: Install) -> dict[str, Any]:
    columns = ("lane__lease_expires_at", "lane__fault_until_at", "making_until_at", "hold_until_at")
    found = Audience.objects.filter(install=install).values(*columns, "install__backoff_until_at").get()
    return {name.rpartition("__")[2]: value for name, value in found.items()}


def set_times(install: Install, at: datetime) -> None:
    token = uuid.uuid4()
    Install.objects.filter(pk=install.pk).update(
        backoff_until_at=at, backoff_since_at=now(), backoff_failures=1, backoff_reason="503"
    )
    audiences = Audience.objects.filter(install=install)
    audiences.update(making_until_at=at, making_token=token)
    audiences.update(hold_until_at=at, hold_since_at=now(), hold_failures=1, hold_reason="503")
    lanes = Lane.objects.filter(audience__in=audiences)
    lanes.update(lease_expires_at=at, lease_token=token)
    lanes.update(fault_until_at=at, fault_since_at=now(), fault_reason="a bug")


def test_waits_of_a_clock_that_was_ahead_end_and_leases_last_as_long_as_a_new_one(
    shop: Install, settings: Settings
) -> None:
    other = make_install(name="Other")
    for install, ahead in ((shop, timedelta(hours=2)), (other, timedelta(minutes=59))):
        make_audience(install)
        set_times(install, now() + ahead)
    before = times_of(other)
    began = now()
    tasks.reconcile()
    corrected = times_of(shop)
    assert all(began <= corrected[name] <= now() for name in WAITS)
    lease = timedelta(seconds=settings.LEASE_SECONDS)
    assert all(began + lease <= corrected[name] <= now() + lease for name in LEASES)
    assert times_of(other) == before, "ODP may have asked for a wait of an hour"


LENGTHS = ("ODP_LONGEST_RETRY_AFTER_SECONDS", "BACKOFF_LONGEST_SECONDS", "BACKOFF_FIXED_SECONDS", "LEASE_SECONDS")


@pytest.mark.parametrize("longest", LENGTHS)
def test_the_longest_wait_is_that_of_any_setting(settings: Settings, longest: str) -> None:
    for name in LENGTHS:
        setattr(settings, name, 50 if name == longest else 5)
    assert backoff.longest_wait() == timedelta(seconds=50)


# --- Smaller requests -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "learned"), [(250, 250), (1, 1), (0, 1)])
def test_a_smaller_request_is_learned_and_never_nothing(shop: Install, size: int, learned: int) -> None:
    backoff.learn_batch_size(shop, size)
    assert again(shop).learned_batch_size == learned
    assert leases.capacity_of(again(shop)) == learned


# --- Other installs -------------------------------------------------------------------------------------------


def test_a_batch_size_learned_for_one_install_changes_no_other(shop: Install) -> None:
    other = make_install(name="Other")
    for install in (shop, other):
        backoff.apply(install, BUSY)
        backoff.learn_batch_size(install, 7)
    before = Install.objects.values().get(pk=other.pk)
    backoff.learn_batch_size(shop, 5)
    backoff.forget_batch_size(shop)
    backoff.release(again(shop))
    assert Install.objects.values().get(pk=other.pk) == before
    assert (again(shop).learned_batch_size, again(shop).backoff_failures) == (None, 0)
