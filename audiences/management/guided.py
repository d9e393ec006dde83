"""The options and reports that the commands of guided changes share."""

import json
from collections.abc import Sequence
from typing import Any

from django.core.management.base import CommandError, CommandParser, OutputWrapper

from audiences.management import arguments
from audiences.models import Install
from audiences.operations import changes


def add_options(parser: CommandParser) -> None:
    parser.add_argument("--reason", default="", help="the reason, shown with the change")
    parser.add_argument("--yes", action="store_true", help="begin it; without this, nothing is changed")
    parser.add_argument("--stop", action="store_true", help="stop the change that is under way")
    parser.add_argument("--json", action="store_true")


def reason_in(options: dict[str, Any]) -> str:
    """The reason. Raises ``CommandError`` when it is empty."""
    reason: str = options["reason"].strip()
    if not reason:
        raise CommandError("--reason must say something.")
    return reason


def begun(install: Install, problem: str, change: object) -> dict[str, Any]:
    """The report of a begun change. Raises ``CommandError`` when none was stored."""
    if problem or not change:
        raise CommandError(f"{install}: {problem or 'Another change of this install is under way.'}")
    return {"begun": True}


def next_step(reports: Sequence[dict[str, Any]], options: dict[str, Any]) -> str:
    """The last line of a dry run: the options that begin the change, or that no install can begin it."""
    if all(report["problem"] for report in reports):
        return "Nothing was changed. The change can't begin until its problem, above, is solved."
    given = {"--to": options.get("to", True), "--reason": options["reason"].strip(), "--yes": options["yes"]}
    return f"Nothing was changed. Add {' and '.join(name for name in given if not given[name])} to begin it."


def write(out: OutputWrapper, report: dict[str, Any], options: dict[str, Any]) -> None:
    """Write a report as JSON or as lines, and say when nothing was changed."""
    if options["json"]:
        out.write(json.dumps(report))
        return
    for key, value in report.items():
        out.write(f"{key.replace('_', ' ')}: {value}")
    if not options["yes"] and not options["stop"]:
        out.write(next_step([report], options))


def stop(install: Install) -> dict[str, Any]:
    """Stop the change of an install. Raises ``CommandError`` when there is none to stop."""
    change = changes.running(install)
    if change is None or not changes.stop(change, by=arguments.who()):
        raise CommandError(f"{install}: No change is under way that could be stopped.")
    return {"stopped": True, "done": change.done, "total": change.total}
