"""The heart of a worker: every few seconds a message to itself, by the way that work takes. Imports no Celery.

A worker can be alive and do nothing: the process runs, and its connection to the broker was cut in a way that neither
end noticed. Only work that arrives proves that work would arrive. So each worker has a queue of its own and puts a
heartbeat into it; when that comes out, a worker slot writes it into PostgreSQL, which proves the rest of the way.

A worker that the broker takes messages from and that hears none of them will never hear any: it ends itself, and
whatever started it starts it anew. While the broker can't be reached nobody is blamed: the worker is just not ready.
"""

import json
import os
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import structlog

from audiences.insight import heartbeats, stalled_work

log = structlog.get_logger(__name__)

# A worker is silent when none came out for the time of so many. With the default of one in ten seconds: a slot may be
# taken for a drain's time and a deadline, some 13 s, and thrice that is no coincidence.
MISSED = 4.5
# So many of them have to have been taken by the broker since the last one came out.
SENT_IN_VAIN = 3


class HeartbeatMonitor:
    """Sends, listens, and says how it stands. ``send`` puts one heartbeat into the worker's own queue, or raises."""

    def __init__(
        self, name: str, *, send: Callable[[], None], every: float, end: Callable[[int], None] = os._exit
    ) -> None:
        self.name = name
        self.send = send
        self.end = end
        self.every = every
        self.heard_at = self.stored_at = time.monotonic()
        self.worked_at: float | None = None
        self.in_vain = 0
        self.stuck = ""
        self._stop = threading.Event()

    def start(self, *, port: int = 0) -> None:
        threading.Thread(target=self._run, name="heart", daemon=True).start()
        if port:
            _serve(self, port)

    def stop(self) -> None:
        """A worker that is told to stop is missed by nobody."""
        self._stop.set()
        heartbeats.forget(self.name)

    def _run(self) -> None:
        while True:
            self.beat()
            if self._stop.wait(self.every):
                return

    def beat(self) -> None:
        """Send one; and end the process when none of the last ones came out."""
        try:
            self.send()
        except Exception as error:  # noqa: BLE001 — whatever the broker's client raises, it can't be reached
            self.in_vain = 0
            log.warning("a heartbeat could not be sent", worker=self.name, error=str(error))
            return
        if self.in_vain >= SENT_IN_VAIN and self.is_late(self.heard_at):
            log.error("nothing that the broker takes arrives here; ending, to be started anew", worker=self.name)
            self.end(1)
        self.in_vain += 1

    def heard(self) -> None:
        """One came out, and a worker slot has it in hand."""
        self.heard_at, self.in_vain = time.monotonic(), 0
        worked = None if self.worked_at is None else time.monotonic() - self.worked_at
        heartbeats.note(self.name, worked_seconds_ago=worked)
        self.stored_at = time.monotonic()
        stuck = stalled_work.stuck()
        self.stuck = stuck.words if stuck else ""

    def worked(self) -> None:
        self.worked_at = time.monotonic()

    def problem(self) -> str:
        """Why this worker is not ready; empty when it is."""
        if self.is_late(self.heard_at):
            return f"no message from the broker has reached a slot for {time.monotonic() - self.heard_at:.0f} s"
        if self.is_late(self.stored_at):
            return f"nothing could be written to the database for {time.monotonic() - self.stored_at:.0f} s"
        return self.stuck

    def is_late(self, moment: float) -> bool:
        return time.monotonic() - moment > MISSED * self.every


def _serve(monitor: HeartbeatMonitor, port: int) -> None:
    class Health(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            problem = monitor.problem() if self.path == "/health/ready" else ""
            told = {"status": "not ready", "reason": problem} if problem else {"status": "ready"}
            content = json.dumps({"worker": monitor.name, **told}).encode()
            self.send_response(503 if problem else 200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *args: object) -> None:
            """Nobody reads of every look."""

    server = ThreadingHTTPServer(("0.0.0.0", port), Health)  # noqa: S104 — it tells no secret
    threading.Thread(target=server.serve_forever, name="health", daemon=True).start()


# --- The one of this process ---------------------------------------------------------------------------------

_own: HeartbeatMonitor | None = None


def start(name: str, *, send: Callable[[], None], every: float, port: int) -> None:
    global _own
    _own = HeartbeatMonitor(name, send=send, every=every)
    _own.start(port=port)


def stop() -> None:
    if _own is not None:
        _own.stop()


def heard(name: str) -> None:
    """A heartbeat that is in hand. One of a worker that bore this name before says nothing about this one."""
    if _own is not None and _own.name == name:
        _own.heard()


def worked() -> None:
    if _own is not None:
        _own.worked()
