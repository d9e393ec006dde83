"""Switch installs on or off from the command line, also when no page opens."""

from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db.models import Q

from audiences.models import Install
from audiences.operations import installs


def add_install_arguments(parser: CommandParser) -> None:
    """Which installs a command is about: one by its id or name, or all."""
    parser.add_argument("install", nargs="?", help="the install's id, as in its webhook URL, or its name")
    parser.add_argument("--all", action="store_true", help="every install")


def chosen(options: dict[str, Any]) -> list[tuple[int, str, str]]:
    """Key, public id and name of the installs that a command is about. Raises ``CommandError``."""
    if bool(options["install"]) == options["all"]:
        raise CommandError("Name one install, or say --all.")
    # Without the ODP key, which can't be read with the wrong FIELD_ENCRYPTION_KEYS.
    rows = Install.objects.order_by("pk").values_list("pk", "public_id", "name")
    if options["all"]:
        return list(rows)
    found = list(rows.filter(Q(public_id=options["install"]) | Q(name=options["install"])))
    if len(found) != 1:
        how_many = f"{len(found)} installs are called" if found else "No install is called"
        raise CommandError(f"{how_many} {options['install']!r}; the id is in the webhook URL.")
    return found


class Command(BaseCommand):
    help = "Switch an install off or on. Off: nothing is sent to ODP, and calls are answered 503."

    def add_arguments(self, parser: CommandParser) -> None:
        add_install_arguments(parser)
        parser.add_argument("--to", required=True, choices=["on", "off"])

    def handle(self, *args: Any, **options: Any) -> None:
        for pk, _, name in chosen(options):
            changed = installs.switch(pk, on=options["to"] == "on")
            self.stdout.write(f"{name}: {'switched' if changed else 'was already'} {options['to']}")
