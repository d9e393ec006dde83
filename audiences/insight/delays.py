"""The delay of delivered events as a histogram, from Runs: how long after its call ODP has responded.

Each Run counts with all its events: one half of them with the delay of its first event, the other half with that of its
last one. Each ended minute is added once to the totals in Redis, together with the mark of how far they go.
"""

from datetime import UTC, datetime, timedelta
from typing import NamedTuple

import redis
import structlog
from django.utils.timezone import now

from audiences import sql, tallies
from audiences.insight.rollup import SAMPLED_RUNS
from audiences.redis_client import client

log = structlog.get_logger(__name__)

# A Run of a minute may commit this long after the minute has ended.
SETTLED = timedelta(seconds=20)
# After an outage of beat or all workers, no older minutes are added.
WINDOW = timedelta(hours=1)
MARK = "lytics-sync:tallies:delays-until"


class Bucket(NamedTuple):
    """The delivered events of an install in one bucket of the histogram, and the sum of their delays in seconds."""

    public_id: str
    bucket: int
    events: float
    seconds: float


_DELAYS = sql.beside(__file__).query("delays", Bucket._make)


def add_up(*, at: datetime | None = None) -> None:
    """Add the minutes that have ended since the last time; after Redis was emptied, the last minute."""
    end = ((at or now()) - SETTLED).replace(second=0, microsecond=0)
    try:
        with client().pipeline(transaction=True) as pipe:
            pipe.watch(MARK)  # type: ignore[no-untyped-call] # redis-py has no types here
            mark = pipe.get(MARK)
            newest = datetime.fromtimestamp(int(mark), UTC) if mark else end - timedelta(minutes=1)
            start = max(newest, end - WINDOW)
            if start >= end:
                return
            parts = _parts(start, end)
            pipe.multi()
            tallies.increment(pipe, parts)
            pipe.set(MARK, int(end.timestamp()))
            pipe.execute()
    except redis.WatchError:
        log.info("another worker has added these minutes")
    except redis.RedisError as error:
        log.info("the delays can't be added up", error=str(error))


def _parts(start: datetime, end: datetime) -> dict[str, float]:
    tally = tallies.DELAY_SECONDS
    parts: dict[str, float] = {}
    for row in _DELAYS.run(start=start, end=end, bounds=list(tally.bounds), sampled=SAMPLED_RUNS).all():
        for name, amount in tally.parts({row.bucket: row.events}, row.seconds, row.public_id).items():
            parts[name] = parts.get(name, 0.0) + amount
    return parts
