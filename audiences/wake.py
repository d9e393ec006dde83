"""Wake-ups: hints to the workers that an install has work. A lost hint costs seconds, never an event.

They are sent by task name, because this package doesn't import the workers, and from a background thread, because a
slow or missing broker must not delay the response to a call. The sweep finds work whose hint was lost.
"""

import threading

import redis
import structlog
from celery import current_app
from django.conf import settings

from audiences.background import Background
from audiences.redis_client import client

log = structlog.get_logger(__name__)

DRAIN = "workers.tasks.drain"
MAKE = "workers.tasks.make"
TRY_OUT = "workers.tasks.try_out"
RESEND = "workers.tasks.resend"
LOOK = "workers.tasks.look"
AUDIT = "workers.tasks.audit"
CHANGE = "workers.tasks.change"
# Milliseconds for which a pending hint suppresses further ones of the same task and install, unless a worker has
# acknowledged it. Without the limit a busy install would fill the queue, and other installs would wait behind it.
PENDING_MS = 2_000
# A process sends the first hint at once, and then one per install in this time: each hint is a message and a task, and
# drains that are running find new events without one.
GATHER_SECONDS = 0.1
# A hint that takes longer is not worth it: a worker waits for ``heard`` before it delivers.
REDIS_TIMEOUT_SECONDS = 2


class _Waker:
    """Sends the hints of one task."""

    def __init__(self, task: str = DRAIN) -> None:
        self._task = task
        self._lock = threading.Lock()
        self._wanted: set[int] = set()
        self._background = Background("waker", self._send_all)
        self._broker_is_down = False

    def want(self, install_id: int) -> None:
        with self._lock:
            self._wanted.add(install_id)
        self._background.ring()

    def _send_all(self) -> float:
        with self._lock:
            wanted, self._wanted = self._wanted, set()
        for install_id in wanted:
            self._send(install_id)
        return GATHER_SECONDS

    def _send(self, install_id: int) -> None:
        try:
            if _redis().set(_pending(install_id, self._task), 1, nx=True, px=PENDING_MS):
                expires = settings.HINT_EXPIRES_SECONDS
                current_app.send_task(self._task, args=[install_id], expires=expires, retry=False, ignore_result=True)
        except Exception as error:  # noqa: BLE001 — after any error of the broker's client, the sweep finds the work
            if not self._broker_is_down:
                log.warning("wake-ups do not get through; the sweep takes over", error=str(error))
            self._broker_is_down = True
        else:
            self._broker_is_down = False


_waker = _Waker()
_maker = _Waker(MAKE)
_tryer = _Waker(TRY_OUT)
_resend_waker = _Waker(RESEND)
_look_waker = _Waker(LOOK)
_audit_waker = _Waker(AUDIT)
_change_waker = _Waker(CHANGE)


def _redis() -> redis.Redis:
    return client(timeout_seconds=REDIS_TIMEOUT_SECONDS)


def _pending(install_id: int, task: str = DRAIN) -> str:
    return f"lytics-sync:wake:{install_id}" + ("" if task == DRAIN else f":{task}")


def heard(install_id: int, task: str = DRAIN) -> None:
    """A worker has taken the hint: from now on the next one says something new."""
    try:
        _redis().delete(_pending(install_id, task))
    except redis.RedisError as error:
        log.info("a wake-up could not be taken down; it runs out by itself", error=str(error))


def wake(install_id: int) -> None:
    """Send a hint that the install has events to deliver. Returns at once and never raises."""
    _waker.want(install_id)


def wake_making(install_id: int) -> None:
    """Send a hint that an audience of the install is to be created in ODP, beside the deliveries."""
    _maker.want(install_id)


def try_out(install_id: int) -> None:
    """Have the install's test customer sent on its way; what no worker takes, the sweep closes."""
    _tryer.want(install_id)


def wake_resend(install_id: int) -> None:
    """Send a hint that the install has a Resend to advance. Returns at once and never raises."""
    _resend_waker.want(install_id)


def wake_look(install_id: int) -> None:
    """Have a worker look at some of the install's audiences in ODP. A lost hint is made up for by the next look."""
    _look_waker.want(install_id)


def wake_audit(install_id: int) -> None:
    """Send a hint that an audit of the install can go on."""
    _audit_waker.want(install_id)


def wake_change(install_id: int) -> None:
    """Send a hint that the guided change of the install can go on."""
    _change_waker.want(install_id)
