"""Rate limit: never more requests in a second than ODP allows, over all workers, with delays and clock steps."""

import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from typing import Any

import pytest
import redis
from django.conf import settings
from django.db import connection, transaction
from django.utils.timezone import now

from audiences import sql
from audiences.delivery import backoff
from audiences.models import Install, Lane, Pace
from odp.mechanisms import limit_of
from odp.outcomes import Answer, Outcome
from outgoing.deadline import TooLateError
from sandbox.odp.testing import ControlledSandbox, RunningSandbox
from tests.delivering import (
    assert_all_is_well,
    enter,
    make_audience,
    make_install,
    numbered,
    waiting,
)
from tests.threads import PATIENCE, Gate, eventually, together, waiting_for_a_lock
from workers import drain, pace

PROFILES = "/v3/profiles"
FOR_EVER = float("inf")
INTERVAL = timedelta(seconds=pace.SPAN_SECONDS) / 10
CATCH_UP = timedelta(seconds=pace.CATCH_UP_SECONDS)
at_once = pytest.mark.django_db(transaction=True)


@pytest.fixture(scope="module")
def running() -> Iterator[RunningSandbox]:
    """In a separate process, so that it sees requests arrive while twenty threads of this process are busy."""
    flags = ["--rate-profiles", "0", "--rate-lists", "0", "--assume", "unknown_field=create"]
    with RunningSandbox(*flags) as odp:
        yield odp


@pytest.fixture
def odp(running: RunningSandbox) -> RunningSandbox:
    running.reset()
    return running


def drain_by(threads: int, install: Install) -> None:
    """A number of workers drain until everything is delivered."""
    until = time.monotonic() + PATIENCE

    def worker() -> None:
        while any(waiting(install)) or Lane.objects.filter(lease_expires_at__gt=now()).exists():
            assert time.monotonic() < until
            drain.drain(install.pk, seconds=1)
            time.sleep(0.005)

    together(*[worker] * threads)


def arrivals(odp: ControlledSandbox, path: str) -> list[float]:
    return [request["arrived"] for request in odp.requests() if request["path"].startswith(path)]


def most_in_a_second(moments: list[float]) -> int:
    return max(sum(first <= other < first + 1 for other in moments) for first in moments)


@pytest.fixture
def permissions(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], list[float]]]:
    """When PostgreSQL gave the permissions that were used, in seconds: on a busy machine requests arrive later."""
    unused, lock, take = set[datetime](), threading.Lock(), pace._take

    def noted(statement: sql.Statement[pace._Moment], install: Install, path: str, **how: Any) -> pace._Moment:
        if how.get("unused"):
            with lock:
                unused.add(how["unused"])
        return take(statement, install, path, **how)

    def given() -> list[float]:
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT extract(epoch FROM at)::float8 FROM given WHERE gate_at <> ALL(%s::timestamptz[])",
                [list(unused)],
            )
            return [at for (at,) in cursor.fetchall()]

    monkeypatch.setattr(pace, "_take", noted)
    with connection.cursor() as cursor:
        cursor.execute(
            "CREATE TABLE given (gate_at timestamptz, at timestamptz);"
            " CREATE FUNCTION note_given() RETURNS trigger LANGUAGE plpgsql AS"
            " 'BEGIN INSERT INTO given VALUES (NEW.gate_at, clock_timestamp()); RETURN NULL; END';"
            # A row that the queue inserted has an open gate that no request has passed.
            " CREATE TRIGGER note_first AFTER INSERT ON audiences_pace FOR EACH ROW"
            " WHEN (NEW.gate_at > clock_timestamp()) EXECUTE FUNCTION note_given();"
            " CREATE TRIGGER note_given AFTER UPDATE OF gate_at ON audiences_pace"
            " FOR EACH ROW EXECUTE FUNCTION note_given()"
        )
    yield given
    with connection.cursor() as cursor:
        cursor.execute("DROP FUNCTION note_given CASCADE; DROP TABLE given")


def assert_never_eleven_in_a_second(permissions: list[float], arrivals: list[float]) -> None:
    """By the permissions, and no request went without one: the nth arrived after the nth was given."""
    assert len(permissions) >= len(arrivals)
    assert most_in_a_second(permissions) <= 10
    # The largest of many differences: an interruption between the two readings gives a smaller one.
    began = max(time.time() - time.monotonic() for _ in range(100))
    early = [given - arrived - began for given, arrived in zip(sorted(permissions), sorted(arrivals), strict=False)]
    assert max(early) <= 0.005, "but for what the two clocks are apart"


@pytest.fixture
def slow_postgres() -> Iterator[None]:
    """Every statement on the row of the rate limit takes PostgreSQL 30 ms longer."""
    with connection.cursor() as cursor:
        cursor.execute(
            "CREATE FUNCTION dawdle() RETURNS trigger LANGUAGE plpgsql AS"
            " 'BEGIN PERFORM pg_sleep(0.03); RETURN new; END';"
            " CREATE TRIGGER dawdle BEFORE INSERT OR UPDATE ON audiences_pace FOR EACH ROW EXECUTE FUNCTION dawdle()"
        )
    yield
    with connection.cursor() as cursor:
        cursor.execute("DROP FUNCTION dawdle CASCADE")


@pytest.fixture
def patience_with_postgres(monkeypatch: pytest.MonkeyPatch) -> None:
    """A start is used however long PostgreSQL takes to allow it, as it may on a busy machine."""
    monkeypatch.setattr(pace, "ON_TIME_SECONDS", 60.0)


# --- As ODP sees it ------------------------------------------------------------------------------------------


@at_once
def test_twenty_workers_never_make_eleven_requests_in_a_second(
    odp: RunningSandbox, permissions: Callable[[], list[float]]
) -> None:
    """Nor when Redis loses everything ten times a second."""
    install = make_install(odp, requests_per_second=10, batch_size=1)
    audiences = [make_audience(install, f"a{number}") for number in range(33)]
    for audience in audiences:
        enter(audience, "kim")
    broker, done = redis.Redis.from_url(settings.REDIS_URL), threading.Event()

    def flush() -> None:
        while not done.wait(0.1):
            broker.flushall()

    flushing = threading.Thread(target=flush)
    flushing.start()
    drain_by(20, install)
    done.set()
    flushing.join()
    moments = arrivals(odp, PROFILES)
    assert len(moments) == len(audiences)
    assert_never_eleven_in_a_second(permissions(), moments)
    assert_all_is_well(*audiences)


@at_once
def test_a_slow_postgres_slows_delivery_down_and_does_not_stop_it(odp: RunningSandbox, slow_postgres: None) -> None:
    install = make_install(odp, requests_per_second=10, batch_size=1)
    audiences = [make_audience(install, f"a{number}") for number in range(5)]
    for audience in audiences:
        enter(audience, "kim")
    drain_by(2, install)
    assert len(arrivals(odp, PROFILES)) == len(audiences)
    assert_all_is_well(*audiences)


@at_once
def test_making_lists_counts_against_the_same_limit_as_filling_them(
    odp: RunningSandbox, permissions: Callable[[], list[float]]
) -> None:
    install = make_install(odp, requests_per_second=10, batch_size=1, mechanism="list")
    audiences = [make_audience(install, f"a{number}", provisioned=False) for number in range(9)]
    for audience in audiences:
        enter(audience, "kim")
    drain_by(6, install)
    moments = arrivals(odp, "/v3/lists")
    # Each audience is read, created, read again, and filled.
    assert len(moments) == 4 * len(audiences)
    assert_never_eleven_in_a_second(permissions(), moments)
    assert_all_is_well(*audiences)


# --- The gate ------------------------------------------------------------------------------------------------


@pytest.fixture
def shop(db: None) -> Install:
    return make_install(requests_per_second=10)


def set_back(install: Install) -> None:
    """As after PostgreSQL's clock was set back by an hour."""
    later = now() + timedelta(hours=1)
    Pace.objects.filter(install=install).update(line_at=later, gate_at=later)


@pytest.mark.django_db
def test_two_requests_never_start_at_the_same_time(shop: Install) -> None:
    pace.pass_gate(shop, PROFILES, FOR_EVER)
    with pytest.raises(TooLateError):
        pace.pass_gate(shop, PROFILES, time.monotonic() + 0.05)
    pace.pass_gate(shop, PROFILES, FOR_EVER)


@pytest.mark.django_db
def test_a_request_does_not_wait_for_a_start_after_its_deadline(shop: Install) -> None:
    with pytest.raises(TooLateError):
        pace.pass_gate(shop, PROFILES, time.monotonic())
    assert not Pace.objects.exists()


@pytest.mark.django_db
def test_a_request_waits_for_a_later_start_only_until_its_deadline(
    shop: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    pace.pass_gate(shop, PROFILES, FOR_EVER)
    Pace.objects.update(gate_at=now() + timedelta(seconds=5))
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    with pytest.raises(TooLateError):
        pace.pass_gate(shop, PROFILES, time.monotonic() + 0.05)
    assert max(slept) <= 0.05


@pytest.mark.django_db
def test_a_request_that_waits_for_its_start_is_not_sent_during_a_backoff(shop: Install) -> None:
    pace.pass_gate(shop, PROFILES, FOR_EVER)
    backoff.apply(shop, Answer(Outcome.RETRY_LATER, "429", retry_after=30.0))
    with pytest.raises(TooLateError):
        pace.pass_gate(shop, PROFILES, FOR_EVER)
    Pace.objects.update(gate_at=now() - timedelta(seconds=1))
    with pytest.raises(TooLateError):
        pace.pass_gate(shop, PROFILES, FOR_EVER)
    backoff.release(shop)
    pace.pass_gate(shop, PROFILES, FOR_EVER)


@pytest.mark.django_db
@pytest.mark.parametrize(("rate", "path"), [(0, PROFILES), (10, "/v3/events"), (10, "/v3/segments/x")])
def test_requests_without_a_limit_start_at_once(rate: int, path: str) -> None:
    install = make_install(requests_per_second=rate)
    for _ in range(3):
        assert pace.line_up(install, limit_of(path))
        pace.jump_line(install, limit_of(path))
        pace.pass_gate(install, path, time.monotonic())
    assert not Pace.objects.exists()


@pytest.mark.django_db
def test_installs_and_endpoints_have_separate_limits(shop: Install) -> None:
    soon = time.monotonic() + PATIENCE
    for install in (shop, make_install(requests_per_second=1)):
        for path in (PROFILES, "/v3/lists"):
            pace.pass_gate(install, path, soon)
    assert Pace.objects.count() == 4


@pytest.mark.django_db
def test_a_clock_that_was_set_back_delays_no_request(shop: Install) -> None:
    assert pace.line_up(shop, "profiles")
    pace.pass_gate(shop, PROFILES, FOR_EVER)
    set_back(shop)
    assert pace.line_up(shop, "profiles")
    pace.pass_gate(shop, PROFILES, time.monotonic() + 5)
    assert Pace.objects.get().gate_at < now() + timedelta(minutes=1)


@at_once
def test_the_next_start_counts_from_when_this_one_was_allowed_and_not_from_when_it_was_asked_for() -> None:
    """Twenty workers wait for one row; the time at which they asked is past when they get it."""
    install = make_install(requests_per_second=1)
    pace.pass_gate(install, PROFILES, FOR_EVER)
    Pace.objects.update(gate_at=now() - timedelta(seconds=1))
    locked = Gate(2)

    def hold() -> datetime:
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute("SELECT FROM audiences_pace FOR UPDATE")
            locked.after(lambda: None)()
            eventually(waiting_for_a_lock)
            cursor.execute("SELECT clock_timestamp()")
            (at,) = cursor.fetchone() or (None,)
            assert isinstance(at, datetime)
            return at

    def take_start() -> datetime:
        locked.after(lambda: None)()
        assert pace._take(pace._TAKE_START, install, "profiles").taken
        return Pace.objects.get().gate_at

    released_at, gate_at = together(hold, take_start)
    assert gate_at >= released_at + timedelta(seconds=pace.SPAN_SECONDS) - CATCH_UP


@pytest.mark.django_db
@pytest.mark.usefixtures("patience_with_postgres")
def test_a_start_that_is_a_little_late_does_not_shift_the_schedule(
    shop: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pace, "CATCH_UP_SECONDS", 60.0)
    pace.pass_gate(shop, PROFILES, FOR_EVER)
    opened_at = now() - timedelta(seconds=1)
    Pace.objects.update(gate_at=opened_at)
    pace.pass_gate(shop, PROFILES, FOR_EVER)
    assert Pace.objects.get().gate_at == opened_at + INTERVAL


@pytest.mark.django_db
@pytest.mark.usefixtures("patience_with_postgres")
@pytest.mark.parametrize("late", [timedelta(seconds=0.02), timedelta(seconds=1), timedelta(days=1)])
def test_a_start_that_is_very_late_brings_the_next_one_closer_by_the_catch_up_at_most(
    shop: Install, late: timedelta
) -> None:
    pace.pass_gate(shop, PROFILES, FOR_EVER)
    Pace.objects.update(gate_at=now() - late)
    before = now()
    pace.pass_gate(shop, PROFILES, FOR_EVER)
    assert before - CATCH_UP + INTERVAL <= Pace.objects.get().gate_at <= now() - CATCH_UP + INTERVAL


@pytest.mark.django_db
def test_a_start_that_postgres_took_too_long_to_allow_is_not_used_and_later_ones_wait_longer(
    shop: Install, slow_postgres: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    later: list[float] = []
    take = pace._take

    def noted(statement: sql.Statement[pace._Moment], install: Install, path: str, **how: Any) -> pace._Moment:
        moment = take(statement, install, path, **how)
        assert moment.taken, "an unused start is taken again at once"
        later.append(how["later"])
        return moment

    monkeypatch.setattr(pace, "_take", noted)
    pace.pass_gate(shop, PROFILES, FOR_EVER)
    assert len(later) >= 3
    assert later == sorted(later)
    assert later[:2] == [0, 0], "a single slow response delays no later request"
    assert later[-1] >= 2 * 0.03 - pace.ON_TIME_SECONDS
    used_after = now() - timedelta(seconds=later[-1] + pace.ON_TIME_SECONDS)
    assert Pace.objects.get().gate_at >= used_after + INTERVAL + timedelta(seconds=later[-1])


@pytest.mark.django_db
def test_a_start_is_not_taken_again_after_another_worker_took_the_next(shop: Install) -> None:
    first = pace._take(pace._TAKE_START, shop, "profiles")
    Pace.objects.update(gate_at=now())
    assert pace._take(pace._TAKE_START, shop, "profiles").taken
    assert pace._take(pace._TAKE_START, shop, "profiles", unused=first.taken).taken is None


def test_the_tolerances_together_keep_eleven_requests_over_one_second() -> None:
    """Eleven starts, the first as late as one may be used and the last on time, span more than one second."""
    assert pace.SPAN_SECONDS - pace.CATCH_UP_SECONDS - pace.ON_TIME_SECONDS >= 1.035


# --- The line ------------------------------------------------------------------------------------------------


@pytest.mark.django_db
def test_a_full_queue_rejects_the_next_request_at_once(shop: Install) -> None:
    places: list[float] = []
    while len(places) < 100 and (row := stand_in_line(shop)) is not None:
        places.append(row)
    assert 2 <= len(places) <= 5
    assert places == sorted(places)


def stand_in_line(install: Install) -> float | None:
    """Take a place in the queue, without waiting for it."""
    place = pace._take(pace._TAKE_PLACE, install, "profiles", patience=pace.PATIENCE_SECONDS)
    return place.seconds if place.taken else None


@pytest.mark.django_db
def test_a_further_request_of_a_lease_takes_a_place_from_later_leases(shop: Install) -> None:
    shop.requests_per_second = 1
    assert pace.line_up(shop, "profiles")
    for _ in range(5):
        pace.jump_line(shop, "profiles")
    assert Pace.objects.get().line_at > now() + timedelta(seconds=3), "each of them has a place"
    assert not pace.line_up(shop, "profiles")


@at_once
def test_a_worker_without_a_place_in_the_queue_claims_nothing(odp: RunningSandbox) -> None:
    install = make_install(odp, requests_per_second=1)
    audience = make_audience(install)
    enter(audience, *numbered(3))
    while stand_in_line(install) is not None:
        pass
    assert drain.turn(install.pk) is False
    assert waiting(install) == (False, True)
    assert odp.requests() == []
