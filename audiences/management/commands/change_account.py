"""Move an install to another ODP account, or show what that would do."""

import json
import sys
from dataclasses import asdict
from getpass import getpass
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from audiences.delivery.account_switch import Connection
from audiences.management import arguments
from audiences.models import Install
from audiences.operations import account_changes, changes


class Command(BaseCommand):
    help = (
        "Show what a change of an install to another ODP account would do and, with --yes, begin it. The workers do it "
        "while events go on; see docs/guided-changes.md. The new API key is read from standard input."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        arguments.add_install(parser)
        parser.add_argument("--region", choices=[value for value in Install.Region.values if value], default="")
        parser.add_argument("--odp-host", default="", help="only when it differs from the region's host")
        parser.add_argument("--empty-old", action="store_true", help="empty the old account after the switch")
        parser.add_argument("--reason", default="", help="the reason, shown with the change")
        parser.add_argument("--yes", action="store_true", help="begin it; without this, nothing is changed")
        parser.add_argument("--stop", action="store_true", help="stop the change that is under way")
        parser.add_argument("--json", action="store_true")

    def handle(self, *args: Any, **options: Any) -> None:
        install = arguments.install_named(options["install"])
        report = {"install_id": install.public_id, "name": install.name, **_done(install, options)}
        if options["json"]:
            self.stdout.write(json.dumps(report))
            return
        for key, value in report.items():
            self.stdout.write(f"{key.replace('_', ' ')}: {value}")
        if not options["yes"] and not options["stop"]:
            self.stdout.write("Nothing was changed. Add --yes to begin it.")


def _done(install: Install, options: dict[str, Any]) -> dict[str, Any]:
    if options["stop"]:
        return _stop(install)
    plan = asdict(account_changes.plan(install))
    if not options["yes"]:
        return {"begun": False, "problem": changes.problem_of_account_now(install), **plan}
    if not options["reason"].strip():
        raise CommandError("--reason must say something.")
    to = Connection(options["region"], options["odp_host"].rstrip("/"), _key())
    problem = changes.problem_of_account(install, to)
    by, reason = arguments.who(), options["reason"]
    if problem or not changes.begin_account(install, to, empties=options["empty_old"], by=by, reason=reason):
        raise CommandError(f"{install}: {problem or 'Another change of this install is under way.'}")
    return {"begun": True, **plan}


def _key() -> str:
    """The API key from a prompt or the input. Other users of the machine could read it on the command line."""
    return (getpass("API key of the other account: ") if sys.stdin.isatty() else sys.stdin.readline()).strip()


def _stop(install: Install) -> dict[str, Any]:
    change = changes.running(install)
    if change is None or not changes.stop(change, by=arguments.who()):
        raise CommandError(f"{install}: No change is under way that could be stopped.")
    return {"stopped": True, "done": change.done, "total": change.total}
