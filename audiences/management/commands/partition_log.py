"""Convert a log of one table: the table becomes the first part, and old events can be dropped with their part."""

from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db.utils import ProgrammingError

from audiences.operations import log_conversion


class Command(BaseCommand):
    help = (
        "Show what is left to do to make the log a table of parts and, with --yes, do it while calls and deliveries go "
        "on. It can be stopped and started again. Run it as the owner of the tables; see docs/retention.md."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--yes", action="store_true", help="do it; without this, nothing is changed")

    def handle(self, *args: Any, **options: Any) -> None:
        now = log_conversion.progress()
        if now.has_parts:
            self.stdout.write("The log has parts. Nothing is left to do.")
            return
        events = "" if now.events is None else f"about {now.events:,} events, "
        self.stdout.write(f"The log is one table of {events}{now.bytes / 1e6:,.0f} MB.")
        if not options["yes"]:
            for name, _ in log_conversion.steps():
                self.stdout.write(f"  to do: {name}")
            self.stdout.write("Nothing was changed. Add --yes to do it.")
            return
        try:
            for name, seconds in log_conversion.convert():
                self.stdout.write(f"{name}: {seconds:.2f} s")
        except (log_conversion.LockedError, ProgrammingError) as error:
            raise CommandError(str(error).strip()) from error
        self.stdout.write("The log has parts.")
