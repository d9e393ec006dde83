"""Switch installs on or off from the command line, also when no page opens."""

from typing import Any

from django.core.management.base import BaseCommand, CommandParser

from audiences.management import arguments
from audiences.operations import installs


class Command(BaseCommand):
    help = "Switch an install off or on. Off: nothing is sent to ODP, and calls are answered 503."

    def add_arguments(self, parser: CommandParser) -> None:
        arguments.add_installs(parser)
        parser.add_argument("--to", required=True, choices=["on", "off"])

    def handle(self, *args: Any, **options: Any) -> None:
        for install in arguments.chosen_installs(options):
            changed = installs.switch(install.pk, on=options["to"] == "on")
            self.stdout.write(f"{install.name}: {'switched' if changed else 'was already'} {options['to']}")
