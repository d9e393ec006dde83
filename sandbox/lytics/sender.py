"""Sends calls with twenty callers, and handles each response as Lytics documents it."""

import threading
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from enum import Enum, auto
from queue import Empty, Full, Queue
from time import monotonic

import urllib3

from sandbox.lytics.calls import Call

NEVER_RETRIED = {400, 404, 413}
TRIES_BEFORE_THE_JOB_ERRORS = 10
FIRST_NAP = 60.0  # seconds; each further sleep is twice as long
NAPS_BEFORE_IT_FAILS = 7  # 127 minutes in total; the vendor's page says "about two hours"
# Seconds between two attempts of one request. Lytics doesn't document its own values.
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 30.0
SHORTEST_SLEEP = 0.1  # seconds; a minimum, so that `Retry-After: 0` doesn't cause a flood of requests
LAST_WORDS = 2.0  # seconds that calls in flight get after the job has failed or was interrupted


class Verdict(Enum):
    DELIVERED = auto()
    OMITTED = auto()
    SLEEP = auto()
    FAILED = auto()


@dataclass(frozen=True)
class Answer:
    """The response to a call. Without a response, `status` is None and `problem` gives the reason."""

    status: int | None
    retry_after: float | None = None
    problem: str = ""

    @property
    def verdict(self) -> Verdict:
        if self.status == 200:
            return Verdict.DELIVERED
        if self.status in NEVER_RETRIED:
            return Verdict.OMITTED
        return Verdict.FAILED if self.retry_after is None else Verdict.SLEEP

    def __str__(self) -> str:
        return f"the answer was {self.status}" if self.status else self.problem


@dataclass
class Tally:
    calls: int = 0
    repeated_calls: int = 0
    late_calls: int = 0
    retried: int = 0
    omitted: int = 0
    answers: Counter[str] = field(default_factory=Counter)


class Stopped(Exception):
    """The job has failed or was interrupted, so all callers stop."""


class Job:
    """State shared by all callers: when to sleep, when to stop, and the counters."""

    def __init__(self, *, retry_scale: float, notice: Callable[[str], None]) -> None:
        self.tally = Tally()
        self.failed = ""
        self.stopped = threading.Event()
        self.lock = threading.Lock()
        self._retry_scale = retry_scale
        self._notice = notice
        self._asleep_until = 0.0

    def wait(self, seconds: float) -> None:
        if self.stopped.wait(seconds):
            raise Stopped

    def wait_until_awake(self) -> None:
        while (left := self._asleep_until - monotonic()) > 0:
            self.wait(left)
        if self.stopped.is_set():
            raise Stopped

    def sleep(self, seconds: float, why: str) -> None:
        """Make the whole job sleep, not only the caller that got the response."""
        with self.lock:
            news = self._asleep_until < monotonic() and seconds >= 1
            self._asleep_until = max(self._asleep_until, monotonic() + max(seconds, SHORTEST_SLEEP))
        if news:
            self._notice(f"asleep for {seconds:.0f} s: {why}")

    def pause(self, failures: int) -> None:
        self.wait(self._retry_scale * min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** ((failures - 1) % 10)))

    def error(self, naps: int, why: str) -> None:
        if naps > NAPS_BEFORE_IT_FAILS:
            self.fail(f"after {naps * TRIES_BEFORE_THE_JOB_ERRORS} tries of one request {why}")
            raise Stopped
        self.sleep(self._retry_scale * FIRST_NAP * 2 ** (naps - 1), why)

    def fail(self, why: str) -> None:
        with self.lock:
            self.failed = self.failed or why
        self.stopped.set()

    def omit(self, call: Call, answer: Answer) -> None:
        with self.lock:
            self.tally.omitted += 1
            first = self.tally.omitted == 1
        if first:  # one notice is enough: a receiver that refuses one call usually refuses thousands
            self._notice(f"gave up a call of {call.events} events for good, and any that follow: {answer}")


class Sender:
    def __init__(self, *, url: str, authorization: str, job: Job, timeout: float, done: Callable[[Call], None]) -> None:
        self._url = url
        self._headers = {
            "Authorization": authorization,
            "Content-Type": "application/json",
            "User-Agent": "lytics-sandbox",
        }
        self._timeout = timeout
        self._job = job
        self._done = done

    def send(self, calls: Iterable[Call], *, callers: int, rate: float | None = None) -> None:
        """Return when every call has ended or the job has failed."""
        # A short queue: the generated stream stays only a few calls ahead of the sent calls.
        waiting: Queue[Call | None] = Queue(maxsize=2 * callers)
        threads = [threading.Thread(target=self._caller, args=(waiting,), daemon=True) for _ in range(callers)]
        for thread in threads:
            thread.start()
        try:
            self._hand_out(calls, waiting, rate)
            for _ in threads:
                self._put(waiting, None)
            for thread in threads:
                thread.join()
        except Stopped:
            pass
        finally:
            self._job.stopped.set()
            patience = monotonic() + LAST_WORDS
            for thread in threads:
                thread.join(timeout=max(0.0, patience - monotonic()))

    def _hand_out(self, calls: Iterable[Call], waiting: "Queue[Call | None]", rate: float | None) -> None:
        began, handed_out = monotonic(), 0
        for call in calls:
            if rate:
                self._job.wait(max(0.0, began + handed_out / rate - monotonic()))
            self._put(waiting, call)
            handed_out += call.events

    def _put(self, waiting: "Queue[Call | None]", call: Call | None) -> None:
        while not self._job.stopped.is_set():
            try:
                return waiting.put(call, timeout=0.2)
            except Full:
                continue
        raise Stopped

    def _caller(self, waiting: "Queue[Call | None]") -> None:
        with urllib3.PoolManager(num_pools=1, maxsize=1, retries=False) as session:
            try:
                while call := self._next(waiting):
                    self._deliver(session, call)
            except Stopped:
                pass
            except BaseException as bug:
                self._job.fail(f"the sender itself broke ({bug!r})")
                raise

    def _next(self, waiting: "Queue[Call | None]") -> Call | None:
        while not self._job.stopped.is_set():
            try:
                return waiting.get(timeout=0.2)
            except Empty:
                continue
        raise Stopped

    def _deliver(self, session: urllib3.PoolManager, call: Call) -> None:
        failures = tries = 0
        while True:
            self._job.wait_until_awake()
            answer = self._post(session, call)
            tries += 1
            self._count(call, answer, tries)
            match answer.verdict:
                case Verdict.DELIVERED:
                    return self._done(call)
                case Verdict.OMITTED:
                    self._job.omit(call, answer)
                    return self._done(call)
                case Verdict.SLEEP:
                    self._job.sleep(answer.retry_after or 0, str(answer))
                case Verdict.FAILED:
                    failures += 1
                    if failures % TRIES_BEFORE_THE_JOB_ERRORS:
                        self._job.pause(failures)
                    else:
                        self._job.error(failures // TRIES_BEFORE_THE_JOB_ERRORS, str(answer))

    def _post(self, session: urllib3.PoolManager, call: Call) -> Answer:
        try:
            response = session.request(
                "POST", self._url, body=call.body, headers=self._headers, timeout=self._timeout, redirect=False
            )
        except (urllib3.exceptions.HTTPError, OSError) as error:
            return Answer(None, problem=plainly(error))
        return Answer(response.status, retry_after(response.headers.get("Retry-After")))

    def _count(self, call: Call, answer: Answer, tries: int) -> None:
        with self._job.lock:
            tally = self._job.tally
            tally.answers[str(answer.status or "no answer")] += 1
            if tries > 1:
                tally.retried += 1
            else:
                tally.calls += 1
                tally.repeated_calls += call.repeated
                tally.late_calls += call.late


def retry_after(header: str | None) -> float | None:
    """The wait in seconds, from a header with seconds or a date. Any other value counts as absent."""
    if header is None:
        return None
    if header.strip().isdecimal():
        return float(header)
    try:
        moment = parsedate_to_datetime(header)
    except ValueError:
        return None
    return max(0.0, (moment.replace(tzinfo=moment.tzinfo or UTC) - datetime.now(UTC)).total_seconds())


def plainly(error: Exception) -> str:
    """The operating system's message without urllib3's wrapping."""
    cause: BaseException | None = error
    while cause:
        if isinstance(cause, OSError) and cause.strerror:
            return f"nobody answered ({cause.strerror.lower()})"
        cause = cause.__cause__ or cause.__context__
    if isinstance(error, urllib3.exceptions.TimeoutError):
        return "no answer came in time"
    return f"no answer came ({type(error).__name__})"
