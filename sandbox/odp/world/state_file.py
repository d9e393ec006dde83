"""The state file: one line per change, appended before the response is sent.

A line in the file survives a kill of this process. Each start replays the file and rewrites it as short as possible.
"""

import fcntl
import json
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any

# After this number of appended bytes the file is rewritten while requests wait. Only long load tests get there.
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
                    return  # a kill cut this line short, so its request got no response
                kind, account, at, payload = json.loads(line)
                yield kind, account, at, payload

    def append(self, line: Line) -> None:
        if self._file is not None:
            self._appended += self._file.write(_encoded(line))

    def wants_rewriting(self) -> bool:
        return self._appended > REWRITE_AFTER_BYTES

    def rewrite(self, lines: Callable[[], Iterable[Line]]) -> None:
        """Replace the file atomically, and append to the new one from now on."""
        if self.path is None:
            return
        fresh = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        with open(fresh, "wb", opener=_private) as out:
            out.writelines(_encoded(line) for line in lines())
            out.flush()
            os.fsync(out.fileno())
        fresh.replace(self.path)
        self.close()
        # Unbuffered: the operating system has a line before its response is sent.
        self._file = open(self.path, "ab", buffering=0, opener=_private)  # noqa: SIM115 - stays open while the sandbox runs
        _claim(self._file, self.path)
        self._appended = 0

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def _claim(file: IO[bytes], path: Path) -> None:
    """Lock the file: two sandboxes with one file would overwrite each other's changes."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as taken:
        raise OSError(f"another sandbox keeps its state in {path}") from taken


def _encoded(line: Line) -> bytes:
    return json.dumps(line, separators=(",", ":")).encode() + b"\n"


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
