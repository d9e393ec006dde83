"""Calls that wait together are stored together, and what goes wrong with one of them is felt by no other."""

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from functools import partial
from typing import Any

import psycopg
import pytest
from django.db import DatabaseError, OperationalError, connection, transaction
from structlog.testing import capture_logs

from audiences import sessions
from audiences.models import Audience, Event, Install, Receipt
from audiences.receiving import ingest, plain_calls, views
from audiences.receiving.call_values import Received
from audiences.receiving.group_commit import GroupCommit, GroupLockedError, GroupLostError
from audiences.receiving.ingest import receive
from lytics.messages import KINDS
from lytics.times import nanoseconds
from tests.messages import body, message, transition
from tests.test_webhook import send
from tests.threads import PATIENCE, eventually, start, waiting_for_a_lock

pytestmark = pytest.mark.django_db(transaction=True)

Store = Callable[[Sequence[Any]], Any]


SILVER = body(message(transition(segment="s2", slug="silver")))


@contextmanager
def locked(segment_id: str) -> Iterator[None]:
    with transaction.atomic():
        Audience.objects.select_for_update(no_key=True).get(segment_id=segment_id)
        yield


class Groups:
    """Holds the first leader in its transaction until the calls of the next group wait."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, store: Store) -> None:
        self.sizes: list[int] = []
        self._store, self._held, self._go = store, threading.Event(), threading.Event()
        self.commits: GroupCommit[Any, int] = GroupCommit(self._gated, largest=plain_calls.GROUP_EVENTS)
        monkeypatch.setattr(plain_calls, "_groups", self.commits)

    def _gated(self, calls: Sequence[Any]) -> Any:
        self.sizes.append(len(calls))
        if len(self.sizes) > 1:
            return self._store(calls)
        self._held.set()
        assert self._go.wait(PATIENCE)
        return plain_calls._store(calls)

    def of(self, install: Install, *bodies: bytes) -> list["Future[Received]"]:
        """The calls, of which the first is stored before the others, and the others as one group."""
        (first,) = start(lambda: receive(install, bodies[0]))
        assert self._held.wait(PATIENCE)
        later = []
        for number, one in enumerate(bodies[1:], start=1):
            later += start(partial(receive, install, one))
            eventually(partial(_are_waiting, self.commits, install.pk, number))
        self._go.set()
        return [first, *later]


def _are_waiting(commits: GroupCommit[Any, Any], key: int, number: int) -> bool:
    return len(commits._waiting[key]) == number


def receipt_of(answer: Received) -> Receipt:
    assert answer.receipt is not None
    return Receipt.objects.get(pk=answer.receipt)


@pytest.fixture
def groups(monkeypatch: pytest.MonkeyPatch, install: Install) -> Groups:
    receive(install, known("warm"))
    receive(install, SILVER)
    return Groups(monkeypatch, plain_calls._store)


def known(*who: str) -> bytes:
    return body(*(message(who=one) for one in who))


def people() -> list[str]:
    return sorted(Event.objects.filter(audience__segment_id="s1").values_list("identifier", flat=True))


@contextmanager
def refusing(identifier: str, state: str) -> Iterator[None]:
    """PostgreSQL ends each transaction that stores an event of this customer, with this SQLSTATE."""
    with connection.cursor() as cursor:
        cursor.execute(
            "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
            f" IF NEW.identifier = '{identifier}' THEN RAISE EXCEPTION 'no' USING ERRCODE = '{state}'; END IF;"
            " RETURN NEW; END $$; CREATE TRIGGER refuse BEFORE INSERT ON audiences_event FOR EACH ROW"
            " EXECUTE FUNCTION refuse()"
        )
        try:
            yield
        finally:
            cursor.execute("DROP FUNCTION refuse CASCADE")


def test_calls_that_wait_are_stored_in_one_transaction(groups: Groups, install: Install) -> None:
    calls = groups.of(install, known("a"), known("b", "c"), known("d"), known("e", "f", "g"))
    answers = [call.result(PATIENCE) for call in calls]
    assert groups.sizes == [1, 3]
    assert [(answer.received, answer.queued) for answer in answers] == [(1, 1), (2, 2), (1, 1), (3, 3)]
    by_receipt = [
        [*Event.objects.filter(receipt=answer.receipt).order_by("sequence").values_list("identifier", flat=True)]
        for answer in answers
    ]
    assert by_receipt == [["a"], ["b", "c"], ["d"], ["e", "f", "g"]]
    assert [receipt_of(answer).messages for answer in answers] == [1, 2, 1, 3]
    numbers = Event.objects.filter(audience__segment_id="s1").order_by("sequence").values_list("sequence", flat=True)
    assert [*numbers] == [*range(1, 9)]
    assert Audience.objects.get(segment_id="s1").last_sequence == 8
    with connection.cursor() as cursor:
        cursor.execute("SELECT count(DISTINCT xmin::text) FROM audiences_receipt WHERE id > %s", [answers[0].receipt])
        assert cursor.fetchone() == (1,)


def test_events_of_several_audiences_keep_what_their_calls_say(groups: Groups, install: Install) -> None:
    """Each call names the audiences in turns, so that hardly an event keeps its place when they are sorted."""
    turns = [
        ("s1", "gold_club", "enter"),
        ("s2", "silver", "exit"),
        ("s2", "silver", "enter"),
        ("s1", "gold_club", "exit"),
    ]
    bodies, said = [known("first")], []
    for call, number in enumerate((4, 12, 3)):  # twelve messages are read as columns
        messages = []
        for place in range(number):
            segment, slug, event = turns[(call + place) % 4]
            at = f"2026-03-02T09:{call:02}:{place:02}Z"
            messages.append(message(transition(event, segment=segment, slug=slug, at=at), who=f"{call}x{place}"))
            said.append((segment, f"{call}x{place}", KINDS[event], nanoseconds(at), call))
        bodies.append(body(*messages))
    _, *answers = [call.result(PATIENCE) for call in groups.of(install, *bodies)]
    assert groups.sizes == [1, 3]
    receipts = [answer.receipt for answer in answers]
    for segment, first in (("s1", 3), ("s2", 2)):
        events = Event.objects.filter(audience__segment_id=segment, receipt__in=receipts).order_by("sequence")
        assert [
            (event.identifier, event.kind, event.occurred_ns, receipts.index(event.receipt_id)) for event in events
        ] == [tuple(values) for of, *values in said if of == segment]
        assert [event.sequence for event in events] == [*range(first, first + len(events))]


def test_each_call_of_a_group_keeps_the_time_at_which_it_came(groups: Groups, install: Install) -> None:
    calls = groups.of(install, known("a"), known("b"), known("c"))
    receipts = [receipt_of(call.result(PATIENCE)) for call in calls]
    times = [Event.objects.get(receipt=receipt).received_at for receipt in receipts]
    assert times == [receipt.received_at for receipt in receipts] == sorted(times)
    assert len(set(times)) == 3


def test_a_call_that_makes_an_audience_does_not_hold_back_its_group(groups: Groups, install: Install) -> None:
    new = body(message(transition(segment="s9", slug="new")))
    calls = groups.of(install, known("a"), known("b"), new, known("c"))
    assert [call.result(PATIENCE).queued for call in calls] == [1, 1, 1, 1]
    assert groups.sizes == [1, 3]
    assert people() == ["a", "b", "c", "warm"]
    assert Audience.objects.get(segment_id="s9").last_sequence == 1


@pytest.mark.parametrize("state", ["23514", "22P05", "40P01", "40001"])
def test_a_call_that_cannot_be_stored_fails_alone(groups: Groups, install: Install, state: str) -> None:
    with refusing("bad", state):
        calls = groups.of(install, known("a"), known("b"), known("bad"), known("c"))
        assert [calls[place].result(PATIENCE).queued for place in (0, 1, 3)] == [1, 1, 1]
        with pytest.raises(DatabaseError):
            calls[2].result(PATIENCE)
    assert groups.sizes == [1, 3]
    assert people() == ["a", "b", "c", "warm"]
    assert Receipt.objects.count() == 5


def test_a_call_whose_audience_is_locked_waits_alone(groups: Groups, install: Install) -> None:
    with locked("s2"):
        calls = groups.of(install, known("a"), SILVER, known("b"))
        assert calls[2].result(PATIENCE).queued == 1
        eventually(lambda: waiting_for_a_lock() == 1)
        # Neither does it hold back those who come after it.
        (after,) = start(lambda: receive(install, known("c")))
        assert after.result(PATIENCE).queued == 1
        assert not calls[1].done()
    assert calls[1].result(PATIENCE).queued == 1


@pytest.fixture
def limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Limits of 50 ms for each wait for a lock."""
    for module, name in (
        (plain_calls, "GROUP_LOCK_MILLISECONDS"),
        (ingest, "LOCK_MILLISECONDS"),
        (ingest, "SHORT_LOCK_MILLISECONDS"),
    ):
        monkeypatch.setattr(module, name, 50)
    monkeypatch.setattr(ingest, "_few_until", 0.0)


@pytest.mark.usefixtures("limits")
def test_after_a_call_waited_in_vain_for_a_lock_few_wait_long(
    groups: Groups, install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others would occupy all threads of the process, and calls of other audiences and installs would find none."""
    groups._go.set()
    with locked("s2"):
        (first,) = start(partial(receive, install, SILVER))
        assert sessions.state_of(first.exception(PATIENCE) or SystemExit()) == "55P03"
        monkeypatch.setattr(ingest, "LOCK_MILLISECONDS", round(1000 * PATIENCE))
        calls = start(*[partial(receive, install, SILVER)] * 8)
        eventually(lambda: sum(call.done() for call in calls) == 8 - ingest.FEW_AT_MOST)
        assert receive(install, known("a")).queued == 1
    errors = [error for call in calls if (error := call.exception(PATIENCE))]
    assert [sessions.state_of(error) for error in errors] == ["55P03"] * (8 - ingest.FEW_AT_MOST)
    assert Audience.objects.get(segment_id="s2").last_sequence == 1 + ingest.FEW_AT_MOST
    assert ingest._patient == 0


@pytest.mark.usefixtures("limits")
@pytest.mark.parametrize(
    ("patient", "few_until", "cause"),
    [
        (0, 0.0, psycopg.errors.DeadlockDetected()),
        (ingest.PATIENT_AT_MOST, 0.0, psycopg.errors.LockNotAvailable()),
        (ingest.FEW_AT_MOST, float("inf"), psycopg.errors.LockNotAvailable()),
    ],
    ids=["another error", "a short wait", "a short wait of few"],
)
def test_only_a_long_wait_in_vain_makes_few_calls_wait_long(
    install: Install, monkeypatch: pytest.MonkeyPatch, patient: int, few_until: float, cause: Exception
) -> None:
    def record(*_: Any) -> Received:
        raise OperationalError from cause

    monkeypatch.setattr(ingest, "_record", record)
    monkeypatch.setattr(ingest, "_patient", patient)
    monkeypatch.setattr(ingest, "_few_until", few_until)
    with pytest.raises(OperationalError):
        receive(install, SILVER)
    assert (ingest._few_until, ingest._patient) == (few_until, patient)


@pytest.mark.usefixtures("limits")
def test_an_audience_that_is_locked_for_the_first_time_leaves_threads_for_the_others(
    groups: Groups, install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    groups._go.set()
    monkeypatch.setattr(ingest, "LOCK_MILLISECONDS", round(1000 * PATIENCE))
    with locked("s2"):
        calls = start(*[partial(receive, install, SILVER)] * 10)
        eventually(lambda: sum(call.done() for call in calls) == 10 - ingest.PATIENT_AT_MOST)
        eventually(lambda: waiting_for_a_lock() == ingest.PATIENT_AT_MOST)
    errors = [error for call in calls if (error := call.exception(PATIENCE))]
    assert [sessions.state_of(error) for error in errors] == ["55P03"] * (10 - ingest.PATIENT_AT_MOST)
    assert ingest._patient == 0
    assert ingest._few_until == 0.0  # a short wait in vain says nothing


@pytest.mark.usefixtures("limits")
def test_lytics_is_asked_to_come_back_soon_for_an_audience_that_stays_locked(
    groups: Groups, install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(views, "_rejected_at", {})
    groups._go.set()
    assert send(install, SILVER).status_code == 200
    groups.sizes.clear()
    with locked("s2"), capture_logs() as lines:
        answers = [start(partial(send, install, SILVER))[0].result(PATIENCE) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [503, 503]
    assert all(1 <= int(answer.headers["Retry-After"]) <= 3 for answer in answers)
    # Each is tried once with others and once alone; one line says so, without a traceback.
    assert groups.sizes == [1, 1]
    assert [(line["log_level"], line["event"]) for line in lines] == [("warning", "calls are answered 503")]


@pytest.mark.usefixtures("limits")
@pytest.mark.parametrize(
    "lock",
    [
        "LOCK TABLE audiences_receipt IN SHARE MODE",
        "LOCK TABLE audiences_event IN ACCESS EXCLUSIVE MODE",
        "SELECT FROM audiences_install FOR UPDATE",
    ],
)
def test_no_other_lock_makes_a_call_wait_without_limit(
    groups: Groups, install: Install, monkeypatch: pytest.MonkeyPatch, lock: str
) -> None:
    monkeypatch.setattr(views, "_rejected_at", {})
    groups._go.set()
    new = body(message(transition(segment="new", slug="new")))
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(lock)
        answers = [start(partial(send, install, content))[0].result(PATIENCE) for content in (SILVER, new)]
    assert [answer.status_code for answer in answers] == [503, 503]


@pytest.mark.parametrize("planning", ["", "-c enable_indexscan=off -c enable_bitmapscan=off", "-c enable_sort=off"])
def test_the_first_lock_of_a_group_already_has_its_limit(
    groups: Groups, install: Install, monkeypatch: pytest.MonkeyPatch, planning: str
) -> None:
    """In any plan of PostgreSQL. Without the limit the call waits in its group, and all others behind it."""
    errors: list[str | None] = []

    def store(calls: Sequence[Any]) -> Any:
        try:
            return plain_calls._store(calls)
        except OperationalError as error:
            errors.append(sessions.state_of(error))
            raise

    monkeypatch.setitem(connection.settings_dict["OPTIONS"], "options", planning)
    monkeypatch.setattr(groups.commits, "_store", store)
    with locked("s1"):
        (call,) = start(lambda: receive(install, known("a")))
        eventually(lambda: errors)
    assert call.result(PATIENCE).queued == 1
    assert errors == ["55P03"]


def _lock_timeout() -> str:
    with connection.cursor() as cursor:
        cursor.execute("SELECT current_setting('lock_timeout')")
        return str((cursor.fetchone() or [""])[0])


def test_the_limit_ends_with_the_group_and_does_not_replace_that_of_a_transaction(install: Install) -> None:
    receive(install, known("a"))
    receive(install, known("b"))
    assert _lock_timeout() == "0"
    with transaction.atomic():
        receive(install, known("c"))
        assert _lock_timeout() == "0"
        with connection.cursor() as cursor:
            cursor.execute("SET LOCAL lock_timeout = '1234ms'")
        receive(install, known("d"))
        receive(install, SILVER)  # is stored alone, because it makes an audience
        assert _lock_timeout() == "1234ms"
    assert _lock_timeout() == "0"
    assert people() == ["a", "b", "c", "d"]


def test_a_read_only_session_of_the_leader_is_no_error_of_its_group(
    monkeypatch: pytest.MonkeyPatch, groups: Groups, install: Install
) -> None:
    def fails_over(calls: Sequence[Any]) -> Any:
        with connection.cursor() as cursor:
            cursor.execute("SET default_transaction_read_only = on")
        return plain_calls._store(calls)

    calls = Groups(monkeypatch, fails_over).of(install, known("a"), known("b"), known("c"))
    assert [call.result(PATIENCE).queued for call in calls] == [1, 1, 1]


def _terminated(_calls: Sequence[Any]) -> None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_terminate_backend(pg_backend_pid())")


def _without_answer(_calls: Sequence[Any]) -> None:
    sessions.bound(0.2)
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_sleep(600)")


def _ended(_calls: Sequence[Any]) -> None:
    raise SystemExit("the process is told to end")


@pytest.fixture
def _no_limit() -> Iterator[None]:
    yield
    sessions.bound(0)
    sessions.silence.ends()


@pytest.mark.usefixtures("groups")
def test_a_call_of_a_lost_group_gives_its_session_up(monkeypatch: pytest.MonkeyPatch, install: Install) -> None:
    """PostgreSQL may be frozen, and the next statement of this session would wait for it."""

    def lose(*_: object, **__: object) -> None:
        raise GroupLostError

    monkeypatch.setattr(GroupCommit, "store", lose)
    connection.ensure_connection()
    with pytest.raises(GroupLostError):
        receive(install, known("a"))
    assert connection.connection is None


@pytest.mark.usefixtures("groups", "_no_limit")
@pytest.mark.parametrize("fate", [_terminated, _without_answer, _ended])
def test_when_the_leader_is_lost_its_whole_group_is_told_so(
    monkeypatch: pytest.MonkeyPatch, install: Install, fate: Store
) -> None:
    first, *group = Groups(monkeypatch, fate).of(install, known("a"), known("b"), known("c"), known("d"))
    assert first.result(PATIENCE).queued == 1
    errors = [call.exception(PATIENCE) for call in group]
    assert [type(error) for error in errors[1:]] == [GroupLostError, GroupLostError]
    assert errors[0] is not None
    assert not isinstance(errors[0], GroupLostError)
    if fate is not _ended:
        # Lytics is asked to come back soon, as after any lost session.
        assert all(isinstance(error, Exception) and views._is_temporary(error) for error in errors)
    assert people() == ["a", "warm"]
    sessions.bound(0)
    monkeypatch.setattr(plain_calls._groups, "_store", plain_calls._store)
    assert receive(install, known("e")).queued == 1


def test_a_call_in_a_transaction_of_its_caller_is_given_to_no_other_thread(groups: Groups, install: Install) -> None:
    (first,) = start(lambda: receive(install, known("a")))
    assert groups._held.wait(PATIENCE)
    with transaction.atomic():
        assert receive(install, SILVER).queued == 1
        transaction.set_rollback(True)
    groups._go.set()
    first.result(PATIENCE)
    assert Audience.objects.get(segment_id="s2").last_sequence == 1


class HeldStore:
    """Stores items, but not before ``go``. With ``error`` it raises that instead."""

    def __init__(self, *, largest: int, error: Exception | None = None) -> None:
        self.stored: list[list[str]] = []
        self.commits: GroupCommit[str, str] = GroupCommit(self._store, largest=largest)
        self._error = error
        self._held, self._go = threading.Event(), threading.Event()

    def _store(self, items: Sequence[str]) -> list[str]:
        self.stored.append([*items])
        self._held.set()
        assert self._go.wait(PATIENCE)
        if self._error is not None:
            raise self._error
        return [*items]

    def calls(self, *waiting: tuple[str, int]) -> list["Future[str]"]:
        """The call "first", which is being stored, and one call per item and size, which wait for it in this order."""
        calls = start(lambda: self.commits.store(1, "first", size=1))
        assert self._held.wait(PATIENCE)
        for number, (item, size) in enumerate(waiting, start=1):
            calls += start(partial(self.commits.store, 1, item, size=size))
            eventually(partial(_are_waiting, self.commits, 1, number))
        self._go.set()
        return calls


def test_a_group_has_a_largest_size_and_keeps_the_order() -> None:
    store = HeldStore(largest=10)
    calls = store.calls(("a", 6), ("b", 4), ("c", 1), ("large", 99), ("d", 1))
    assert [call.result(PATIENCE) for call in calls] == ["first", "a", "b", "c", "large", "d"]
    assert store.stored == [["first"], ["a", "b"], ["c"], ["large"], ["d"]]
    assert store.commits._waiting == {}


def test_without_an_answer_of_postgresql_those_who_wait_fail_with_the_leader() -> None:
    """Each group would wait as long again, and the last caller longer than a job waits for a response."""
    lost = OperationalError("no answer")
    lost.__cause__ = sessions.NoAnswerError()
    store = HeldStore(largest=1, error=lost)
    calls = store.calls(("a", 1), ("b", 1), ("c", 1))
    errors = [type(call.exception(PATIENCE)) for call in calls]
    assert errors == [OperationalError, GroupLostError, GroupLostError, GroupLostError]
    assert store.stored == [["first"]]
    assert store.commits._waiting == {}


def test_after_a_lock_timeout_every_call_of_the_group_is_told_so() -> None:
    """Each is then stored alone at once, and doesn't wait for the lock in another group before."""
    locked = OperationalError("lock timeout")
    locked.__cause__ = psycopg.errors.LockNotAvailable()
    calls = HeldStore(largest=9, error=locked).calls(("a", 1), ("b", 1))
    assert [type(call.exception(PATIENCE)) for call in calls] == [GroupLockedError] * 3


def test_calls_of_another_install_do_not_wait_for_the_leader() -> None:
    held, go = threading.Event(), threading.Event()

    def store(items: Sequence[str]) -> list[str]:
        if items == ["slow"]:
            held.set()
            assert go.wait(PATIENCE)
        return [*items]

    commits: GroupCommit[str, str] = GroupCommit(store, largest=10)
    (slow,) = start(lambda: commits.store(1, "slow", size=1))
    assert held.wait(PATIENCE)
    assert commits.store(2, "quick", size=1) == "quick"
    go.set()
    assert slow.result(PATIENCE) == "slow"
