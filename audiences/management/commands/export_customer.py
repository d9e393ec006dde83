"""Print the personal data of one customer in one install."""

import json
from typing import Any

from django.core.management.base import BaseCommand, CommandParser

from audiences.insight import customer_export
from audiences.management import arguments


class Command(BaseCommand):
    help = "Print the personal data of one customer of an install, as JSON."

    def add_arguments(self, parser: CommandParser) -> None:
        arguments.add_install(parser)
        arguments.add_identifier(parser)

    def handle(self, *args: Any, **options: Any) -> None:
        install, identifier = arguments.install_named(options["install"]), arguments.identifier_in(options)
        self.stdout.write(json.dumps(customer_export.export(install, identifier), indent=2, ensure_ascii=False))
