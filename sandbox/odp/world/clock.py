"""The sandbox's clock, which a test can move forward."""

import time
from datetime import UTC, datetime


class Clock:
    def __init__(self) -> None:
        self.ahead_seconds = 0.0

    def now(self) -> float:
        """Epoch seconds."""
        return time.time() + self.ahead_seconds

    def advance(self, seconds: float) -> None:
        self.ahead_seconds += seconds

    def stamp(self) -> str:
        return datetime.fromtimestamp(self.now(), UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
