"""The progress of the stream on stderr: a bar for people or lines of JSON for programs."""

import json
import sys
import threading
from time import monotonic

BETWEEN_UPDATES = 0.1  # seconds, at least
WIDTH = 30


class Progress:
    def __init__(self, *, style: str, total: int) -> None:
        self._style = style
        self._total = total
        self._sent = 0
        self._began = monotonic()
        self._shown_at = 0.0
        self._lock = threading.Lock()

    def advance(self, events: int) -> None:
        with self._lock:
            self._sent += events
            if monotonic() - self._shown_at >= BETWEEN_UPDATES:
                self._show()

    def finish(self) -> None:
        with self._lock:
            self._show()
            if self._style == "bar":
                print(file=sys.stderr)

    def notice(self, text: str) -> None:
        with self._lock:
            if self._style == "json":
                self._line({"sent": self._sent, "total": self._total, "notice": text})
            else:
                clear = "\r\x1b[K" if self._style == "bar" else ""
                print(f"{clear}{text}", file=sys.stderr, flush=True)

    def _show(self) -> None:
        self._shown_at = monotonic()
        if self._style == "json":
            self._line({"sent": self._sent, "total": self._total})
        elif self._style == "bar":
            print(f"\r\x1b[K{self._bar()}", end="", file=sys.stderr, flush=True)

    def _line(self, facts: dict[str, object]) -> None:
        print(json.dumps(facts), file=sys.stderr, flush=True)

    def _bar(self) -> str:
        share = self._sent / self._total
        done = "█" * int(share * WIDTH)
        speed = self._sent / max(0.001, self._shown_at - self._began)
        return f"{done:░<{WIDTH}} {share:4.0%}  {self._sent:,} of {self._total:,} events  {speed:,.0f}/s"
