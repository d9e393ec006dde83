"""Everything that is encrypted in the database, encrypted with the newest key."""

import json
from typing import Any

from django.core.management.base import BaseCommand, CommandParser

from audiences.operations.rotation import rotate


class Command(BaseCommand):
    help = "Encrypt what is stored with the first of FIELD_ENCRYPTION_KEYS, so that the others can be taken away."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--json", action="store_true")

    def handle(self, *args: Any, **options: Any) -> None:
        written = rotate()
        if options["json"]:
            self.stdout.write(json.dumps(written))
            return
        for table, rows in written.items():
            self.stdout.write(f"{table}: {rows:,} encrypted anew")
        self.stdout.write("Everything opens with the first key now.")
