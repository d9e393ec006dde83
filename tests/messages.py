"""Lytics messages for the tests, in the documented layout."""

import json
from typing import Any

AT = "2026-03-02T09:15:00Z"
# AT as nanoseconds since the epoch.
AT_NS = 1_772_442_900_000_000_000
SECOND = 1_000_000_000


def transition(event: str = "enter", *, segment: Any = "s1", slug: Any = "gold_club", **more: Any) -> dict[str, Any]:
    """One element of ``segment_events``, without the fields that are None. ``at`` is the event time."""
    at = more.pop("at", AT)
    named = {event: at} if event in ("enter", "exit") else {}
    made = {"id": segment, "event": event, "slug": slug, **named, **more}
    return {name: value for name, value in made.items() if value is not None}


def message(
    *transitions: dict[str, Any], who: Any = "kim", field: str = "_id", meta: Any = None, **more: Any
) -> dict[str, Any]:
    """One message. Without transitions: an enter of gold_club."""
    data = {field: who, "segment_events": list(transitions or [transition()])}
    usual = {"object": "user", "subscription_id": "job-7", "timestamp": "2026-03-02T09:15:04.25Z"}
    return {"id": "17000000000000000021", "data": data, "meta": usual if meta is None else meta, **more}


def body(*messages: Any) -> bytes:
    """A batch of messages."""
    return json.dumps(messages, ensure_ascii=False).encode()


def single(one: Any) -> bytes:
    return json.dumps(one, ensure_ascii=False).encode()
