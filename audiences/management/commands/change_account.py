"""Move an install to another ODP account, or show what that would do."""

from dataclasses import asdict
from typing import Any

from django.core.management.base import BaseCommand, CommandParser

from audiences.delivery.account_switch import Connection
from audiences.management import arguments, guided
from audiences.models import Install
from audiences.operations import account_changes, changes


class Command(BaseCommand):
    help = (
        "Show what a change of an install to another ODP account would do and, with --yes, begin it. The workers do it "
        "while events are delivered; see docs/guided-changes.md. The new API key is read from standard input."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        arguments.add_install(parser)
        parser.add_argument("--region", choices=[value for value in Install.Region.values if value], default="")
        parser.add_argument("--odp-host", default="", help="only when it differs from the region's host")
        parser.add_argument("--empty-old", action="store_true", help="empty the old account after the switch")
        guided.add_options(parser)

    def handle(self, *args: Any, **options: Any) -> None:
        install = arguments.install_named(options["install"])
        report = {"install_id": install.public_id, "name": install.name, **_done(install, options)}
        guided.write(self.stdout, report, options)


def _done(install: Install, options: dict[str, Any]) -> dict[str, Any]:
    if options["stop"]:
        return guided.stop(install)
    plan = asdict(account_changes.plan(install))
    if not options["yes"]:
        return {"begun": False, "problem": changes.problem_of_account_now(install), **plan}
    by, reason = arguments.who(), guided.reason_in(options)
    # On the command line, other users of the machine could read the key.
    key = arguments.input_line("API key of the other account: ")
    to = Connection(options["region"], options["odp_host"].rstrip("/"), key)
    problem = changes.problem_of_account(install, to)
    empties = options["empty_old"]
    change = None if problem else changes.begin_account(install, to, empties=empties, by=by, reason=reason)
    return {**guided.begun(install, problem, change), **plan}
