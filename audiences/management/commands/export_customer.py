"""Print the personal data of one customer in one install."""

import json
import sys
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from audiences.insight import customer_export
from audiences.models import Install


class Command(BaseCommand):
    help = "Print the personal data that one install stores about one customer, as JSON."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("install", help="the install's id or name")
        parser.add_argument("identifier", help="the whole identifier; - reads it from the input")

    def handle(self, *args: Any, **options: Any) -> None:
        named = options["install"]
        install = Install.objects.filter(public_id=named).first() or Install.objects.filter(name=named).first()
        if install is None:
            raise CommandError(f"There is no install {named!r}.")
        identifier = sys.stdin.readline().strip() if options["identifier"] == "-" else options["identifier"]
        self.stdout.write(json.dumps(customer_export.export(install, identifier), indent=2, ensure_ascii=False))
