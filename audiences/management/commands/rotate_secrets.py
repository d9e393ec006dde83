"""Everything that is encrypted in the database, encrypted with the newest key."""

import json
from typing import Any

from django.core.management.base import BaseCommand, CommandParser

from audiences.operations.rotation import rotate

# Ids of values that no key opens, per table; --json has all of them.
SHOWN = 20


class Command(BaseCommand):
    help = "Encrypt what is stored with the first of FIELD_ENCRYPTION_KEYS, so that the other keys can be removed."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--json", action="store_true")

    def handle(self, *args: Any, **options: Any) -> None:
        rotated = rotate()
        unreadable = {table: result.unreadable for table, result in rotated.items() if result.unreadable}
        if options["json"]:
            counts = {table: result.written for table, result in rotated.items()}
            self.stdout.write(json.dumps({**counts, "unreadable": unreadable}))
        else:
            for table, result in rotated.items():
                self.stdout.write(f"{table}: {result.written:,} encrypted anew")
            for table, ids in unreadable.items():
                shown = ", ".join(map(str, ids[:SHOWN])) + (" and so on" if len(ids) > SHOWN else "")
                self.stdout.write(f"{table}: {len(ids):,} that no key in FIELD_ENCRYPTION_KEYS decrypts: id {shown}")
        if unreadable:
            raise SystemExit(1)
        if not options["json"]:
            self.stdout.write("The first key decrypts everything now.")
