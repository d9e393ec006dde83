"""The output at the end: a table for people, JSON for programs, and the file of expected memberships."""

import json
import os
from pathlib import Path
from typing import Any

from sandbox.lytics.audiences import Audience
from sandbox.lytics.model import Memberships
from sandbox.lytics.sender import Tally


def write_memberships(path: Path, named: list[Audience], expected: Memberships) -> None:
    """Write the file atomically, so that no reader sees half of it."""
    unfinished = path.with_name(path.name + ".part")
    with unfinished.open("w", encoding="utf-8") as file:
        json.dump({"audiences": {audience.slug: _lists(audience, expected) for audience in named}}, file, indent=1)
    os.replace(unfinished, path)


def _lists(audience: Audience, expected: Memberships) -> dict[str, Any]:
    return {
        "segment_id": audience.segment_id,
        "odp_id": audience.odp_id,
        "members": expected.members(audience.segment_id),
        "others": expected.others(audience.segment_id),
    }


def summary(
    *, events: int, tally: Tally, seconds: float, named: list[Audience], expected: Memberships, file: Path | None
) -> dict[str, Any]:
    return {
        "calls": tally.calls,
        "events": events,
        "repeated_calls": tally.repeated_calls,
        "late_calls": tally.late_calls,
        "retried": tally.retried,
        "omitted": tally.omitted,
        "seconds": round(seconds, 3),
        "answers": dict(sorted(tally.answers.items())),
        "audiences": [
            {
                "segment_id": audience.segment_id,
                "slug": audience.slug,
                "odp_id": audience.odp_id,
                "members": expected.size(audience.segment_id),
            }
            for audience in named
        ],
        "memberships_file": str(file) if file else None,
    }


def table(facts: dict[str, Any]) -> str:
    widest = max(len("audience"), *(len(one["slug"]) for one in facts["audiences"]))
    rows = [f"{one['slug']:<{widest}}  {one['members']:>9,}" for one in facts["audiences"]]
    return "\n".join([f"{'audience':<{widest}}  {'members':>9}", *rows, "", *_sentences(facts)])


def _sentences(facts: dict[str, Any]) -> list[str]:
    if not facts["calls"]:
        return [f"{facts['events']:,} events; nothing was sent."]
    return [
        f"{facts['events']:,} events in {facts['calls']:,} calls and {facts['seconds']:,.1f} s: "
        f"{facts['repeated_calls']:,} repeated, {facts['late_calls']:,} late, "
        f"{facts['retried']:,} retries, {facts['omitted']:,} given up.",
        "Answers: " + ", ".join(f"{times:,} × {status}" for status, times in facts["answers"].items()),
    ]
