"""Change an install to another mechanism, one audience after another, or show what that would do."""

import json
from dataclasses import asdict
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from audiences.management import arguments
from audiences.models import Install
from audiences.operations import changes
from odp.mechanisms import MECHANISMS


class Command(BaseCommand):
    help = (
        "Show what a change of an install to another mechanism would do and, with --yes, begin it. The workers do it "
        "while events are delivered; see docs/guided-changes.md."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        arguments.add_installs(parser)
        parser.add_argument("--to", choices=list(MECHANISMS), help="the mechanism to change to")
        parser.add_argument("--reason", default="", help="why; shown on the page of the install")
        parser.add_argument("--yes", action="store_true", help="begin it; without this, nothing is changed")
        parser.add_argument("--stop", action="store_true", help="stop the change that is under way")
        parser.add_argument("--json", action="store_true")

    def handle(self, *args: Any, **options: Any) -> None:
        if bool(options["to"]) == options["stop"]:
            raise CommandError("Name the mechanism with --to, or give --stop.")
        if options["yes"] and not options["reason"].strip():
            raise CommandError("--reason must say something.")
        by = arguments.who()
        reports = []
        for install in arguments.chosen_installs(options):
            report = _stop(install, by=by) if options["stop"] else _change(install, by=by, options=options)
            reports.append({"install_id": install.public_id, "name": install.name, **report})
        if options["json"]:
            self.stdout.write(json.dumps(reports))
            return
        for report in reports:
            self.stdout.write(report.pop("name"))
            for key, value in report.items():
                self.stdout.write(f"  {key.replace('_', ' ')}: {value}")
        if not options["yes"] and not options["stop"]:
            self.stdout.write("Nothing was changed. Add --yes to begin it.")


def _change(install: Install, *, by: str, options: dict[str, Any]) -> dict[str, Any]:
    plan = changes.plan(install, to=options["to"])
    if not options["yes"]:
        return {"begun": False, **asdict(plan)}
    if plan.problem or not changes.begin(install, to=options["to"], by=by, reason=options["reason"]):
        raise CommandError(f"{install}: {plan.problem or 'Another change of this install is under way.'}")
    return {"begun": True, **asdict(plan)}


def _stop(install: Install, *, by: str) -> dict[str, Any]:
    change = changes.running(install)
    if change is None or not changes.stop(change, by=by):
        raise CommandError(f"{install}: No change is under way that could be stopped.")
    return {"stopped": True, "done": change.done, "total": change.total}
