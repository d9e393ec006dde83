"""One background thread per process, for work that no request should wait for."""

import threading
import time
from collections.abc import Callable

import structlog

log = structlog.get_logger(__name__)

# The pause, in seconds, after ``work`` has raised an exception.
PAUSE_AFTER_ERROR = 1.0


class Background:
    """Calls ``work`` after each ``ring``, in a daemon thread that starts at the first ring of each process.

    A web server forks after it has loaded the application, and a thread doesn't survive a fork; so the first ring in
    the child starts another one. Rings during a call of ``work`` lead to one more call. ``work`` returns the seconds
    to pause before the next call.
    """

    def __init__(self, name: str, work: Callable[[], float]) -> None:
        self.thread: threading.Thread | None = None
        self._name = name
        self._work = work
        self._lock = threading.Lock()
        self._bell = threading.Event()

    def ring(self) -> None:
        """Returns at once."""
        if self._bell.is_set() and self._runs():  # rung before, which is the usual case under load
            return
        self._bell.set()
        with self._lock:
            if not self._runs():
                self.thread = threading.Thread(target=self._run, name=self._name, daemon=True)
                self.thread.start()

    def _runs(self) -> bool:
        return self.thread is not None and self.thread.is_alive()

    def _run(self) -> None:
        while True:
            self._bell.wait()
            self._bell.clear()
            try:
                pause = self._work()
            except Exception:
                log.exception("a background thread failed; it continues", thread=self._name)
                pause = PAUSE_AFTER_ERROR
            time.sleep(pause)
