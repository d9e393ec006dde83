"""How many connections each web process has, in memory that they share.

gunicorn's main process imports this before it forks. A process without news for ``STALE_SECONDS`` doesn't count: it has
ended, or it doesn't accept.
"""

import mmap
import struct
from collections.abc import Iterator
from typing import NamedTuple

STALE_SECONDS = 3.0
# More than the web processes of one service, old and new ones during a reload.
SLOTS = 256
# A moment of time.monotonic(), which is the same clock in all processes, and a number of connections.
_SLOT = struct.Struct("=dq")


class _News(NamedTuple):
    at: float
    connections: int


class ConnectionCounts:
    """One writer per slot. A process that reads while another writes may see half of it: the next look is right."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, SLOTS * _SLOT.size)

    def tell(self, number: int, connections: int, *, at: float) -> None:
        """Write the count of the process with this number."""
        _SLOT.pack_into(self._memory, number % SLOTS * _SLOT.size, at, connections)

    def leave(self, number: int) -> None:
        """The process accepts no more connections."""
        self.tell(number, 0, at=-STALE_SECONDS)

    def fewest_elsewhere(self, number: int, *, at: float) -> int | None:
        """The fewest connections that another process has; None when there is no other."""
        return min((news.connections for news in self._elsewhere(number) if at - news.at < STALE_SECONDS), default=None)

    def _elsewhere(self, number: int) -> Iterator[_News]:
        for slot, news in enumerate(_SLOT.iter_unpack(self._memory)):
            if slot != number % SLOTS:
                yield _News(*news)
