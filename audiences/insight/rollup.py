"""Roll-up: events received, parked and delivered per install and minute, and their delay. The only writer of Minutes.

It reads Receipts and Runs by time through BRIN indexes, so a pass reads a few minutes of rows and never all events.
Computing a minute again gives the same result, so no progress has to be stored.
"""

from datetime import datetime, timedelta

from django.db import connection
from django.db.models import Max
from django.utils.timezone import now

from audiences.models import Minute

# After an outage of beat or all workers, missed minutes are computed back to this age: the length of the longest chart.
WINDOW = timedelta(hours=24)
# Computed in one statement.
PIECE = timedelta(minutes=30)
# Minutes before the newest that are computed again, because a call of that minute may commit after it has ended.
AGAIN = timedelta(minutes=3)
# Runs sampled per minute for the delay of their first and last event.
SAMPLED_RUNS = 200
KEPT = timedelta(days=7)

# Bisected runs have several rows over the same events, so events are counted once over the span of a lane's runs in a
# minute. A span is halved until all events of a part arrived in the same minute. That takes two log lookups per part,
# because an audience's events are numbered in order of arrival. Scalar subqueries, unlike a join, can't be planned as a
# scan of the whole log.
_TALLY = """
WITH RECURSIVE came AS (
    SELECT install_id, date_trunc('minute', received_at) AS minute, sum(queued) AS received, sum(parked) AS parked
    FROM audiences_receipt WHERE received_at >= %(start)s AND received_at < %(end)s
    GROUP BY 1, 2
), gone AS MATERIALIZED (
    SELECT audience.install_id, date_trunc('minute', run.closed_at) AS minute, run.id, run.audience_id,
        run.first_sequence, run.last_sequence, run.sent, run.closed_at
    FROM audiences_run AS run JOIN audiences_audience AS audience ON audience.id = run.audience_id
    WHERE run.closed_at >= %(start)s AND run.closed_at < %(end)s AND run.outcome = 'delivered'
), span AS (
    SELECT install_id, minute, audience_id, min(first_sequence) AS first, max(last_sequence) AS last
    FROM gone GROUP BY install_id, minute, audience_id
), part AS (
    SELECT span.*,
        coalesce(date_trunc('minute', (SELECT received_at FROM audiences_event AS event
            WHERE event.audience_id = span.audience_id AND event.sequence = first)), minute) AS came_first,
        coalesce(date_trunc('minute', (SELECT received_at FROM audiences_event AS event
            WHERE event.audience_id = span.audience_id AND event.sequence = last)), minute) AS came_last
    FROM span
    UNION ALL
    SELECT install_id, minute, audience_id, half.first, half.last,
        coalesce(date_trunc('minute', (SELECT received_at FROM audiences_event AS event
            WHERE event.audience_id = part.audience_id AND event.sequence = half.first)), minute),
        coalesce(date_trunc('minute', (SELECT received_at FROM audiences_event AS event
            WHERE event.audience_id = part.audience_id AND event.sequence = half.last)), minute)
    FROM part CROSS JOIN LATERAL (
        VALUES (part.first, (part.first + part.last) / 2), ((part.first + part.last) / 2 + 1, part.last)
    ) AS half(first, last)
    WHERE part.first < part.last AND came_first <> came_last
), lane AS (
    SELECT install_id, minute, came_first AS came, last - first + 1 AS events, (
        SELECT coalesce(sum(least(range.last_sequence, last) - greatest(range.first_sequence, first) + 1), 0)
        FROM audiences_again AS range WHERE range.audience_id = part.audience_id
            AND range.last_sequence >= first AND range.first_sequence <= last
    ) AS again
    FROM part WHERE first = last OR came_first = came_last
), by_arrival AS (
    SELECT install_id, minute, came, sum(events - again) AS delivered, sum(again) AS again
    FROM lane GROUP BY 1, 2, 3
), went AS (
    SELECT install_id, minute, sum(delivered) AS delivered, sum(again) AS again, coalesce(
        jsonb_object_agg(extract(epoch FROM came)::bigint, delivered) FILTER (WHERE delivered > 0), '{}'
    ) AS arrived
    FROM by_arrival GROUP BY 1, 2
), placed AS (
    SELECT *, row_number() OVER (PARTITION BY install_id, minute ORDER BY id) AS place,
        count(*) OVER (PARTITION BY install_id, minute) AS many
    FROM gone WHERE sent > 0
), timed AS (
    SELECT install_id, minute, last_sequence - first_sequence + 1 AS weight,
        1000 * extract(epoch FROM closed_at - (
            SELECT received_at FROM audiences_event AS event
            WHERE event.audience_id = placed.audience_id AND event.sequence = edge.sequence
        )) AS ms
    FROM placed CROSS JOIN LATERAL (VALUES (first_sequence), (last_sequence)) AS edge(sequence)
    WHERE place %% ((many + %(sampled)s - 1) / %(sampled)s) = 0
), ranked AS (
    SELECT install_id, minute, greatest(ms, 0) AS ms,
        sum(weight) OVER (PARTITION BY install_id, minute ORDER BY ms) AS upto,
        sum(weight) OVER (PARTITION BY install_id, minute) AS total
    FROM timed WHERE ms IS NOT NULL
), took AS (
    SELECT install_id, minute, min(ms) FILTER (WHERE upto >= 0.5 * total) AS p50,
        min(ms) FILTER (WHERE upto >= 0.99 * total) AS p99
    FROM ranked GROUP BY 1, 2
)
INSERT INTO audiences_minute (install_id, minute, received, parked, delivered, again, arrived,
    delay_p50_ms, delay_p99_ms)
SELECT install_id, minute, coalesce(received, 0), coalesce(parked, 0), coalesce(delivered, 0), coalesce(again, 0),
    coalesce(arrived, '{}'), p50, p99
FROM came FULL JOIN went USING (install_id, minute) LEFT JOIN took USING (install_id, minute)
ON CONFLICT (minute, install_id) DO UPDATE SET
    received = excluded.received, parked = excluded.parked, delivered = excluded.delivered, again = excluded.again,
    arrived = excluded.arrived,
    delay_p50_ms = excluded.delay_p50_ms, delay_p99_ms = excluded.delay_p99_ms
"""


def roll_up(*, at: datetime | None = None) -> None:
    """Compute each ended minute within ``WINDOW``, beginning at the newest stored one."""
    end = (at or now()).replace(second=0, microsecond=0)
    newest = Minute.objects.aggregate(newest=Max("minute"))["newest"]
    start = max(end - WINDOW, newest - AGAIN) if newest else end - WINDOW
    while start < end:
        add_up(start, min(start + PIECE, end))
        start += PIECE
    Minute.objects.filter(minute__lt=end - KEPT).delete()


def add_up(start: datetime, end: datetime) -> None:
    """Compute the whole minutes in [``start``, ``end``)."""
    with connection.cursor() as cursor:
        cursor.execute(_TALLY, {"start": start, "end": end, "sampled": SAMPLED_RUNS})
