"""Forget one customer in one install."""

import time
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from audiences.management import arguments
from audiences.models import Install
from audiences.operations import forgetting, forgetting_proofs
from audiences.operations.forgetting import BusyError

WAIT_SECONDS = 120.0


class Command(BaseCommand):
    help = "Remove one customer from log, ledger, parked items, request bodies and reports. This can't be undone."

    def add_arguments(self, parser: CommandParser) -> None:
        arguments.add_install(parser)
        arguments.add_identifier(parser)
        parser.add_argument("--tell-odp", action="store_true", help="send exits for all audiences first")
        parser.add_argument("--reason", default="", help="kept with the proof; don't name the person")
        parser.add_argument("--check", action="store_true", help="only say whether and when the customer was forgotten")
        parser.add_argument("--yes", action="store_true", help="don't ask")

    def handle(self, *args: Any, **options: Any) -> None:
        install, identifier = arguments.install_named(options["install"]), arguments.identifier_in(options)
        if options["check"]:
            proofs = forgetting_proofs.proofs(identifier, install=install)
            if not proofs:
                raise CommandError(f"This customer was not forgotten in {install}.")
            self.stdout.write("\n".join(proofs))
            return
        if not options["yes"] and arguments.asked("This can't be undone. Type forget to go on: ") != "forget":
            raise CommandError("Nothing was done.")
        asked = forgetting.ask(
            install, identifier, tell_odp=options["tell_odp"], by=arguments.who(), reason=options["reason"]
        )
        if asked is None:
            raise CommandError("This customer is being forgotten already. The workers finish it.")
        until = time.monotonic() + WAIT_SECONDS
        while not _is_done(asked):
            if asked.tell_odp and not Install.objects.filter(pk=install.pk, enabled=True).exists():
                raise CommandError(
                    f"{install} is switched off. The request is stored: exits that ODP has not accepted yet are sent"
                    " when it is on again, and the workers then forget the customer. Without --tell-odp, the customer"
                    " is forgotten now, and stays in ODP."
                )
            if time.monotonic() > until:
                raise CommandError(
                    "ODP has not accepted the exits yet, or may still apply an earlier request. The workers finish it."
                    " If ODP rejected one, it is parked: release or discard it."
                )
            time.sleep(0.5)
        asked.refresh_from_db()
        taken = ", ".join(f"{name} {count:,}" for name, count in asked.counts.items() if count) or "nothing was stored"
        self.stdout.write(f"Forgotten (number {asked.pk}): {taken}.")


def _is_done(asked: Any) -> bool:
    try:
        return forgetting.advance(asked)
    except BusyError:
        return False
