"""Roll-up: events received, parked and delivered per install and minute, and their delay. The only writer of Minutes.

It reads Receipts and Runs by time through BRIN indexes, so a pass reads a few minutes of rows and never all events.
Computing a minute again gives the same result, so no progress has to be stored.
"""

from datetime import datetime, timedelta

from django.conf import settings
from django.db.models import Max
from django.utils.timezone import now

from audiences import sql
from audiences.models import Minute

# After an outage of beat or all workers, missed minutes are computed back to this age: that of the longest chart of all
# installs together.
WINDOW = timedelta(hours=24)
# The part of a time range that is computed in one statement.
PIECE = timedelta(minutes=30)
# Minutes before the newest that are computed again, because a call of that minute may commit after it has ended.
AGAIN = timedelta(minutes=3)
# Runs sampled per minute for the delay of their first and last event.
SAMPLED_RUNS = 200

_STORE = sql.beside(__file__).command("store_minutes")


def roll_up(*, at: datetime | None = None) -> None:
    """Compute each ended minute within ``WINDOW``, beginning at the newest stored one."""
    end = (at or now()).replace(second=0, microsecond=0)
    newest = Minute.objects.aggregate(newest=Max("minute"))["newest"]
    start = max(end - WINDOW, newest - AGAIN) if newest else end - WINDOW
    while start < end:
        add_up(start, min(start + PIECE, end))
        start += PIECE
    if settings.STATISTICS_KEEP_DAYS > 0:
        Minute.objects.filter(minute__lt=end - timedelta(days=settings.STATISTICS_KEEP_DAYS)).delete()


def add_up(start: datetime, end: datetime) -> None:
    """Compute the whole minutes in [``start``, ``end``)."""
    _STORE.run(start=start, end=end, sampled=SAMPLED_RUNS)
