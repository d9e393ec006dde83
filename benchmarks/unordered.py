"""Workers without order, to measure what order costs: ``celery -A benchmarks.unordered worker``. For benchmarks only.

The cursor moves when events are claimed, and no lane is leased during the request, so that several requests can send
events of one audience at once. ``house`` drops the index that allows only one open Run per lane. A worker that dies
loses its events. Everything else is the bridge's own code.
"""

from typing import Any

import django

from workers.app import app

django.setup()

from audiences.delivery import claims, request_records, settling  # noqa: E402 — the models need django.setup()

__all__ = ["app"]


def _replace(module: Any, name: str, old: str, new: str) -> None:
    """Replace a part of a statement of ``audiences.sql``, which fails when the statement doesn't have that part."""
    setattr(module, name, getattr(module, name).replace(old, new))


_replace(
    claims,
    "_CLAIM",
    "    lease_token = %(token)s,\n"
    "    lease_expires_at = clock_timestamp() + make_interval(secs => %(lease_seconds)s),\n",
    "    delivered_sequence = packed.last,\n",
)
_replace(
    request_records,
    "_OPEN",
    "    UPDATE audiences_lane SET lease_expires_at = clock_timestamp() + make_interval(secs => %(lease_seconds)s)\n",
    "    SELECT %(lease_seconds)s::float8 FROM audiences_lane\n",
)
_replace(
    request_records,
    "_OPEN",
    "lease_token = %(token)s AND lease_expires_at > clock_timestamp()\n    RETURNING 1",
    "%(token)s::uuid IS NOT NULL",
)
_replace(settling, "_MOVE", "delivered_sequence = greatest(lane.delivered_sequence, moved.cursor),", "")
_replace(settling, "_MOVE", "lane.lease_token = %(token)s", "%(token)s::uuid IS NOT NULL")
# Otherwise a claim would close requests in flight, as if their workers had died.
request_records.close_abandoned = lambda lease, reason="": None
