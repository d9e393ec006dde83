"""The state file: a line per deed, in order, appended as it is accepted and before it is answered.

A line in the file survives a kill of this process. Each start replays the file and writes it anew, as short as it
can be.
"""

import fcntl
import json
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any

# Past this the file is rewritten while requests wait; a demo never gets there, a day-long load test may.
REWRITE_AFTER_BYTES = 512_000_000

Line = tuple[str, str, float, Any]


class StateFile:
    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._file: IO[bytes] | None = None
        self._appended = 0

    def lines(self) -> Iterator[Line]:
        if self.path is None or not self.path.exists():
            return
        with self.path.open("rb") as saved:
            _claim(saved, self.path)
            for line in saved:
                if not line.endswith(b"\n"):
                    return  # the process was killed while writing this line, so nobody was told it was accepted
                kind, account, at, payload = json.loads(line)
                yield kind, account, at, payload

    def append(self, line: Line) -> None:
        if self._file is not None:
            self._appended += self._file.write(_encoded(line))

    def wants_rewriting(self) -> bool:
        return self._appended > REWRITE_AFTER_BYTES

    def rewrite(self, lines: Callable[[], Iterable[Line]]) -> None:
        """Replace the file in one step, so that at no moment there is only half of it; then go on appending."""
        if self.path is None:
            return
        fresh = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        with open(fresh, "wb", opener=_private) as out:
            out.writelines(_encoded(line) for line in lines())
            out.flush()
            os.fsync(out.fileno())
        fresh.replace(self.path)
        self.close()
        # Unbuffered: a line is with the operating system before its answer is sent.
        self._file = open(self.path, "ab", buffering=0, opener=_private)  # noqa: SIM115 - open as long as we run
        _claim(self._file, self.path)
        self._appended = 0

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def _claim(file: IO[bytes], path: Path) -> None:
    """Two sandboxes on one file would each throw away what the other had saved."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as taken:
        raise OSError(f"another sandbox keeps its state in {path}") from taken


def _encoded(line: Line) -> bytes:
    return json.dumps(line, separators=(",", ":")).encode() + b"\n"


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
