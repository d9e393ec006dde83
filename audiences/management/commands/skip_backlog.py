"""Leave out what waits to be sent, after a database was restored from a backup."""

import getpass
import json
import socket
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from audiences.management.commands import switch_install
from audiences.operations import skips


class Command(BaseCommand):
    help = (
        "Show what an install has waiting to be sent and, with --yes, end it as skipped: it stays in the log and is "
        "never sent. For the time after a restore; see docs/operating.md, Backups."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        switch_install.add_install_arguments(parser)
        parser.add_argument("--reason", required=True, help="why, for whoever reads the history")
        parser.add_argument("--yes", action="store_true", help="do it; without this, nothing is changed")
        parser.add_argument("--json", action="store_true")

    def handle(self, *args: Any, **options: Any) -> None:
        if not options["reason"].strip():
            raise CommandError("--reason must say something.")
        by = f"{getpass.getuser()}@{socket.gethostname()}"[:150]
        reports = []
        for pk, public_id, name in switch_install.chosen(options):
            try:
                found = skips.skip(pk, by=by, reason=options["reason"]) if options["yes"] else skips.backlog(pk)
            except skips.NotNowError as error:
                raise CommandError(f"{name}: {error}") from error
            reports.append(
                {
                    "install_id": public_id,
                    "name": name,
                    "skipped": options["yes"],
                    "events": found.total,
                    "audiences": dict(found.events),
                    "stopped_resends": found.resends,
                }
            )
        if options["json"]:
            self.stdout.write(json.dumps(reports))
            return
        verb = "skipped" if options["yes"] else "would be skipped"
        for install in reports:
            self.stdout.write(
                f"{install['name']}: {install['events']:,} events of {len(install['audiences'])} audiences {verb}, "
                f"{install['stopped_resends']} unfinished resends {'stopped' if options['yes'] else 'would be stopped'}"
            )
            for odp_id, events in install["audiences"].items():
                self.stdout.write(f"  {odp_id}  {events:,}")
        if not options["yes"]:
            self.stdout.write("Nothing was changed. Add --yes to do it.")
