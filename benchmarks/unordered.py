"""Workers that give up order, to show what it costs: ``celery -A benchmarks.unordered worker``. For benchmarks alone.

The cursor moves when events are claimed, and no lane is held during the request: the next request may take the next
events of the same audience at once, and so the index that allows one open Run per lane has to go (``house``). A worker
that dies loses what it had. Everything else is the bridge's own.
"""

from typing import Any

import django

from workers.app import app

django.setup()

from audiences.delivery import lanes  # noqa: E402 — its models take a Django that is set up

__all__ = ["app"]


def _replace(name: str, old: str, new: str) -> None:
    text: Any = getattr(lanes, name)
    assert old in text, f"lanes.{name} has changed; mend benchmarks/unordered.py"
    setattr(lanes, name, text.replace(old, new))


_replace(
    "_CLAIM",
    "    lease_token = %(token)s,\n    lease_expires_at = clock_timestamp() + make_interval(secs => %(lease)s),\n",
    "    delivered_sequence = packed.last,\n",
)
_replace(
    "_OPEN",
    "    UPDATE audiences_lane SET lease_expires_at = clock_timestamp() + make_interval(secs => %s)\n",
    "    SELECT %s::float8 FROM audiences_lane\n",
)
_replace("_OPEN", "lease_token = %s AND lease_expires_at > clock_timestamp()\n    RETURNING 1", "%s::uuid IS NOT NULL")
_replace("_MOVE", "delivered_sequence = greatest(lane.delivered_sequence, moved.cursor),", "")
_replace("_MOVE", "lane.lease_token = %s", "%s::uuid IS NOT NULL")
# Else a claim would take the requests under way for those of workers that died.
lanes._close_abandoned = lambda lease, reason="": None
