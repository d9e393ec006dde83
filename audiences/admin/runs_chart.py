"""A chart of an audience's runs: items sent and folded, the outcome, and ODP's response time."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from audiences.insight import state
from audiences.models import Run

WIDTH, HEIGHT, TOP = 1000, 120, 8
# A chart with fewer runs keeps the bar width of this many, starting at the left.
SLOTS = 25


@dataclass(frozen=True)
class Bar:
    """One run. Coordinates are those of the drawing, from its upper left corner."""

    run: Run
    tone: str
    title: str
    x: float
    width: float
    sent: tuple[float, float]
    folded: tuple[float, float]


def chart(runs: Sequence[Run]) -> dict[str, Any] | None:
    """The drawing of these runs, given newest first and drawn oldest first. None when there are none."""
    if not runs:
        return None
    ordered = list(reversed(runs))
    most = max(run.sent + run.folded for run in ordered) or 1
    slot = WIDTH / max(len(ordered), SLOTS)
    bars = [_bar(run, at * slot, slot, most) for at, run in enumerate(ordered)]
    slowest = max((_latency(run) or 0 for run in ordered), default=0)
    failed = sum(bar.tone not in ("good", "busy") for bar in bars)
    return {
        "bars": bars,
        "width": WIDTH,
        "height": HEIGHT,
        # In percent of the drawing's width, for the labels below it.
        "used": round(100 * len(ordered) / max(len(ordered), SLOTS)),
        "line": _line(bars, slowest),
        "first": ordered[0].opened_at,
        "last": ordered[-1].opened_at,
        "most": most,
        "slowest": slowest,
        "sent": sum(run.sent for run in ordered),
        "folded": sum(run.folded for run in ordered),
        "failed": failed,
    }


def _bar(run: Run, x: float, slot: float, most: int) -> Bar:
    def tall(count: int) -> float:
        # A single event among thousands has to be visible, too.
        return max(1.5, count / most * (HEIGHT - TOP)) if count else 0.0

    of_run, sent, folded, latency = state.of_request(run), tall(run.sent), tall(run.folded), _latency(run)
    took = "" if latency is None else f", {latency:,} ms"
    return Bar(
        run=run,
        tone=of_run.tone,
        title=f"{run.opened_at:%Y-%m-%d %H:%M:%S} UTC: {of_run.word}, {run.sent:,} sent, {run.folded:,} folded{took}",
        x=x + slot * 0.1,
        width=slot * 0.8,
        sent=(HEIGHT - sent, sent),
        folded=(HEIGHT - sent - folded, folded),
    )


def _latency(run: Run) -> int | None:
    return run.delivery.latency_ms if run.delivery else None


def _line(bars: Sequence[Bar], slowest: int) -> str:
    """The points of the latencies: the slowest at the top."""
    known = [(bar, latency) for bar in bars if (latency := _latency(bar.run)) is not None]
    return " ".join(
        f"{bar.x + bar.width / 2:.1f},{HEIGHT - latency / (slowest or 1) * (HEIGHT - TOP):.1f}"
        for bar, latency in known
    )
