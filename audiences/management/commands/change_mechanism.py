"""Change an install to another mechanism, one audience after another, or show what that would do."""

import json
from dataclasses import asdict
from functools import partial
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from audiences.management import arguments, guided
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
        guided.add_options(parser)

    def handle(self, *args: Any, **options: Any) -> None:
        if bool(options["to"]) == options["stop"]:
            raise CommandError("Name the mechanism with --to, or give --stop.")
        arguments.report_each_install(
            options, act=partial(_report, options=options), show=partial(self._print, options=options)
        )

    def _print(self, reports: list[dict[str, Any]], *, options: dict[str, Any]) -> None:
        if options["json"]:
            self.stdout.write(json.dumps(reports))
            return
        for report in reports:
            self.stdout.write(report.pop("name"))
            for key, value in report.items():
                self.stdout.write(f"  {key.replace('_', ' ')}: {value}")
        if not options["yes"] and not options["stop"]:
            self.stdout.write(guided.next_step(reports, options))


def _report(install: Install, *, options: dict[str, Any]) -> dict[str, Any]:
    report = guided.stop(install) if options["stop"] else _change(install, options)
    return {"install_id": install.public_id, "name": install.name, **report}


def _change(install: Install, options: dict[str, Any]) -> dict[str, Any]:
    plan = changes.plan(install, to=options["to"])
    if not options["yes"]:
        return {"begun": False, **asdict(plan)}
    by, reason = arguments.who(), guided.reason_in(options)
    change = None if plan.problem else changes.begin(install, to=options["to"], by=by, reason=reason)
    return {**guided.begun(install, plan.problem, change), **asdict(plan)}
