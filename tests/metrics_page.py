"""Write the table of docs/metrics.md from the metrics that ``GET /metrics`` has (``make metrics``)."""

import os
import re
from pathlib import Path

import django

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "metrics.md"
TABLE = re.compile(r"(?<=<!-- metrics -->\n\n).*?(?=\n\n<!-- /metrics -->)", re.DOTALL)


def table() -> str:
    from audiences.tallies import Tally
    from lytics_sync.metrics import collector

    rows = []
    for metric in collector.ALL:
        if isinstance(metric, Tally):
            kind, source = "histogram" if metric.bounds else "counter", "Redis"
        else:
            kind, source = metric.kind, "–" if metric in collector.OWN else "PostgreSQL"
        labels = ", ".join(metric.labels) or "–"
        rows.append(f"| `{metric.name}` | {kind} | {labels} | {source} | {metric.help} |")
    return "\n".join(["| metric | type | labels | from | meaning |", "|---|---|---|---|---|", *rows])


def page() -> str:
    return TABLE.sub(lambda _: table(), PAGE.read_text(encoding="utf-8"))


if __name__ == "__main__":
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "lytics_sync.settings")
    django.setup()
    PAGE.write_text(page(), encoding="utf-8")
