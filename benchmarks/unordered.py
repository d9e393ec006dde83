"""Workers that give up order, to show what it costs: ``celery -A benchmarks.unordered worker``. For benchmarks alone.

The cursor moves when events are claimed, and no lane is held during the request: the next request may take the next
events of the same audience at once, and so the index that allows one open Run per lane has to go (``house``). A worker
that dies loses what it had. Everything else is the bridge's own.
"""

from typing import Any

import django

from workers.app import app

django.setup()

from audiences.delivery import claims, request_records, settling  # noqa: E402 — its models take a Django that is set up

__all__ = ["app"]


def _replace(module: Any, name: str, old: str, new: str) -> None:
    text: Any = getattr(module, name)
    assert old in text, f"{name} has changed; mend benchmarks/unordered.py"
    setattr(module, name, text.replace(old, new))


_replace(
    claims,
    "_CLAIM",
    "    lease_token = %(token)s,\n    lease_expires_at = clock_timestamp() + make_interval(secs => %(lease)s),\n",
    "    delivered_sequence = packed.last,\n",
)
_replace(
    request_records,
    "_OPEN",
    "    UPDATE audiences_lane SET lease_expires_at = clock_timestamp() + make_interval(secs => %s)\n",
    "    SELECT %s::float8 FROM audiences_lane\n",
)
_replace(
    request_records,
    "_OPEN",
    "lease_token = %s AND lease_expires_at > clock_timestamp()\n    RETURNING 1",
    "%s::uuid IS NOT NULL",
)
_replace(settling, "_MOVE", "delivered_sequence = greatest(lane.delivered_sequence, moved.cursor),", "")
_replace(settling, "_MOVE", "lane.lease_token = %s", "%s::uuid IS NOT NULL")
# Else a claim would take the requests under way for those of workers that died.
request_records.close_abandoned = lambda lease, reason="": None
