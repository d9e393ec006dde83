"""Heartbeats of a worker: every few seconds it sends itself a message through the broker. Imports no Celery.

A worker process can run without receiving work, when its connection to the broker is half-open. Only an arriving
message proves that work arrives. So each worker has its own queue and sends heartbeats to it; a worker slot that
receives one stores it in PostgreSQL, which proves the rest of the path.

A worker whose heartbeats the broker accepts but never delivers exits, and its supervisor restarts it. While the broker
is unreachable the worker doesn't exit; it only reports that it isn't ready.
"""

import json
import os
import sys
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import structlog

from audiences.insight import heartbeats, stalled_work

log = structlog.get_logger(__name__)

# Missed heartbeats after which this worker isn't ready, and may exit. A busy slot can delay one by about 13 s;
# 4.5 × 10 s (the default interval) leaves a factor of three. Pages call a worker silent later: insight/heartbeats.py.
MISSED = 4.5
# Heartbeats that the broker must have accepted since the last arrival before the worker exits.
SENT_IN_VAIN = 3


class HeartbeatMonitor:
    """Sends and receives heartbeats and reports readiness. ``send`` puts one into the worker's own queue, or raises."""

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
        threading.Thread(target=self._run, name="heartbeat", daemon=True).start()
        if port:
            _serve(self, port)

    def stop(self) -> None:
        """Stop, and remove the worker's row, so that it isn't reported as silent."""
        self._stop.set()
        heartbeats.forget(self.name)

    def _run(self) -> None:
        while True:
            self.beat()
            if self._stop.wait(self.every):
                return

    def beat(self) -> None:
        """Send one heartbeat; exit when none of the last ones arrived."""
        try:
            self.send()
        except Exception as error:  # noqa: BLE001 — any error of the broker's client means unreachable
            self.in_vain = 0
            log.warning("a heartbeat could not be sent", worker=self.name, error=str(error))
            return
        if self.in_vain >= SENT_IN_VAIN and self.is_late(self.heard_at):
            log.error("messages that the broker accepts do not arrive; exiting to be restarted", worker=self.name)
            self.end(1)
        self.in_vain += 1

    def heard(self) -> None:
        """A heartbeat has arrived in a worker slot."""
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


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: object, client_address: object) -> None:
        """Log an error by this service's logger. Python would print a traceback, also for a caller who has left."""
        if not isinstance(sys.exception(), ConnectionError):
            log.exception("a health request failed")


def _serve(monitor: HeartbeatMonitor, port: int) -> None:
    class Health(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            problem = monitor.problem() if self.path == "/health/ready" else ""
            report = {"status": "not ready", "reason": problem} if problem else {"status": "ready"}
            content = json.dumps({"worker": monitor.name, **report}).encode()
            self.send_response(503 if problem else 200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *args: object) -> None:
            """Health requests aren't logged."""

    server = _Server(("0.0.0.0", port), Health)  # noqa: S104 — it exposes no secret
    threading.Thread(target=server.serve_forever, name="health", daemon=True).start()


# --- The monitor of this process ------------------------------------------------------------------------------

_own: HeartbeatMonitor | None = None


def start(name: str, *, send: Callable[[], None], every: float, port: int) -> None:
    global _own
    _own = HeartbeatMonitor(name, send=send, every=every)
    _own.start(port=port)


def stop() -> None:
    if _own is not None:
        _own.stop()


def heard(name: str) -> None:
    """A heartbeat has arrived. One of an earlier worker with the same name doesn't count."""
    if _own is not None and _own.name == name:
        _own.heard()


def worked() -> None:
    if _own is not None:
        _own.worked()
