"""Leave out what waits to be sent, after a database was restored from a backup."""

import json
from functools import partial
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from audiences.management import arguments
from audiences.models import Install
from audiences.operations import skips


class Command(BaseCommand):
    help = (
        "Show what an install has waiting to be sent and, with --yes, end it as skipped: it stays in the log and is "
        "never sent. For the time after a restore; see docs/operating.md, Backups."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        arguments.add_installs(parser)
        parser.add_argument("--reason", required=True, help="why; kept in the history")
        parser.add_argument("--yes", action="store_true", help="do it; without this, nothing is changed")
        parser.add_argument("--json", action="store_true")

    def handle(self, *args: Any, **options: Any) -> None:
        if not options["reason"].strip():
            raise CommandError("--reason must say something.")
        arguments.report_each_install(
            options, act=partial(_skip, options=options), show=partial(self._print, options=options)
        )

    def _print(self, reports: list[dict[str, Any]], *, options: dict[str, Any]) -> None:
        if options["json"]:
            self.stdout.write(json.dumps(reports))
            return
        verb = "skipped" if options["yes"] else "would be skipped"
        for report in reports:
            self.stdout.write(
                f"{report['name']}: {report['events']:,} events of {len(report['audiences'])} audiences {verb}, "
                f"{report['stopped_resends']} unfinished resends {'stopped' if options['yes'] else 'would be stopped'}"
            )
            for odp_id, events in report["audiences"].items():
                self.stdout.write(f"  {odp_id}  {events:,}")
        if not options["yes"]:
            self.stdout.write("Nothing was changed. Add --yes to do it.")


def _skip(install: Install, *, options: dict[str, Any]) -> dict[str, Any]:
    try:
        found = (
            skips.skip(install.pk, by=arguments.who(), reason=options["reason"])
            if options["yes"]
            else skips.backlog(install.pk)
        )
    except skips.NotNowError as error:
        raise CommandError(f"{install.name}: {error}") from error
    return {
        "install_id": install.public_id,
        "name": install.name,
        "skipped": options["yes"],
        "events": found.total,
        "audiences": dict(found.events),
        "stopped_resends": found.resends,
    }
