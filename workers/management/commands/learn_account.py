"""Ask an ODP account, by small experiments, what ODP doesn't document."""

import math
import os
import re
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

from django.conf import settings
from django.core.exceptions import ValidationError
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.utils.crypto import salted_hmac
from django.utils.timezone import now

from audiences import lytics_account
from audiences.delivery import odp_account
from audiences.encryption import opened
from audiences.learning import cleaning, registry, report
from audiences.learning.experiments import Found, NotAnswered, Setting, Stopped
from audiences.learning.lab import CUSTOMER, FIELD, MARK, ROLES, Clock, Lab, Spacing
from audiences.learning.reading import MOST_READ
from audiences.management import arguments
from audiences.models import Audience, Install
from audiences.operations import installs
from lytics.api.client import Client as LyticsClient
from odp.client import Client
from outgoing.deadline import TooLateError
from workers import pace

# Seconds that a request may wait for the install's rate limit.
PLACE_SECONDS = 60.0


class Command(BaseCommand):
    help = (
        "Answer by experiments what ODP and Lytics don't document: shapes of responses, delays, limits, confidence of "
        "identifiers. Writes invented customers, one field and one audience to the ODP account; docs/learn-account.md."
    )
    clock = Clock()

    def add_arguments(self, parser: CommandParser) -> None:
        arguments.add_install(parser)
        parser.add_argument("--yes", action="store_true", help="don't ask before the experiments")
        parser.add_argument(
            "--file", type=Path, default=Path("learned-account.json"), help="where to write the answers"
        )
        parser.add_argument("--field", default=FIELD, help="another name for the field and the audience")
        parser.add_argument("--lists", action="store_true", help="also make a list, which can't be deleted again")
        parser.add_argument("--patience", type=float, default=120.0, help="seconds to wait for an effect at most")
        parser.add_argument("--apply", action="store_true", help="store the settings of the install that follow")
        parser.add_argument("--lytics-token", default="", help="instead of the install's; - prompts for it")
        parser.add_argument("--clean-up", action="store_true", help="only remove what a killed run has left")

    def handle(self, *args: Any, **options: Any) -> None:
        install = arguments.install_named(options["install"])
        _check(options)
        lab = self._lab(install, options)
        taken = Audience.objects.filter(odp_id__in=lab.segments).first()
        if taken is not None:
            raise CommandError(f"{taken.odp_id} is the audience of {taken.slug}. Name another field with --field.")
        if options["clean_up"]:
            self._only_clean_up(lab)
            return
        self._agree(lab, options)
        answers = self._learn(lab, install, options["file"])
        self._settings(install, answers, apply=options["apply"], may_ask=not options["yes"])

    def _lab(self, install: Install, options: dict[str, Any]) -> Lab:
        key, spacing = opened(install.odp_api_key), Spacing(self.clock)
        client = odp_account.client_of(install, gate=partial(_gate, spacing))
        public, dot, _ = key.partition(".")
        return Lab(
            client=client,
            public_client=Client(host=client.host, api_key=public, permission=client.permission) if dot else None,
            clock=self.clock,
            install_id=install.public_id,
            field=options["field"],
            patience=options["patience"],
            batch_size=install.batch_size,
            passthrough_definition=settings.ODP_PASSTHROUGH_DEFINITION,
            with_lists=options["lists"],
            ours=frozenset(Audience.objects.values_list("odp_id", flat=True)),
            lytics=_lytics(install, options["lytics_token"]),
            webhook_url=installs.webhook_url(install),
        )

    # --- consent -------------------------------------------------------------------------------------------------

    def _agree(self, lab: Lab, options: dict[str, Any]) -> None:
        for line in _plan(lab):
            self.stdout.write(line)
        if not options["yes"] and not self._asked("Begin?"):
            raise CommandError("Nothing was sent.")

    def _asked(self, question: str) -> bool:
        return arguments.asked(f"{question} [y/N] ").lower() in ("y", "yes")

    # --- experiments ---------------------------------------------------------------------------------------------

    def _learn(self, lab: Lab, install: Install, file: Path) -> list[Found]:
        answers: list[Found] = []

        def note(found: Found) -> None:
            answers.append(found)
            self.stdout.write(f"{found.question}: {found.answer or 'not answered'}")

        try:
            with _interruptible():
                registry.run(lab, note)
        except (Stopped, NotAnswered) as reason:
            raise CommandError(f"The experiments didn't begin. {reason}") from None
        except KeyboardInterrupt:
            raise CommandError(f"Interrupted. {'; '.join(lab.problems) or 'ODP is cleaned up.'}") from None
        finally:
            if answers:
                kept = report.write(file, answers, at=now(), about=_about(install), secrets=_secrets(lab, install))
                self.stdout.write(f"\nThe answers are in {file}. It has no secrets or personal data; you can share it.")
                if kept:
                    self.stdout.write(f"It keeps the answers of an earlier run to: {', '.join(kept)}")
        self.stdout.write("")
        for line in report.table(answers):
            self.stdout.write(line)
        for line in (*lab.problems, *(f"Left in ODP, which can't delete it: {each}" for each in lab.left)):
            self.stdout.write(line)
        return answers

    def _only_clean_up(self, lab: Lab) -> None:
        try:
            cleaning.begin(lab)
        except (Stopped, NotAnswered) as reason:
            raise CommandError(str(reason)) from None
        self.stdout.write("What earlier runs left is removed.")

    # --- settings ------------------------------------------------------------------------------------------------

    def _settings(self, install: Install, answers: list[Found], *, apply: bool, may_ask: bool) -> None:
        follow = [found.setting for found in answers if found.setting]
        for_environment = [each for each in follow if each.where == "environment"]
        if for_environment:
            self.stdout.write("\nAdd to the environment of all processes, and restart them:")
            for each in for_environment:
                self.stdout.write(each.line)
        for each in follow:
            if each.where == "install":
                self._set(install, each, apply=apply, may_ask=may_ask)

    def _set(self, install: Install, setting: Setting, *, apply: bool, may_ask: bool) -> None:
        if not apply and not (may_ask and self._asked(f"Set {setting.line} for {install.name}?")):
            self.stdout.write(f"\nSet for the install: {setting.line}")
            return
        try:
            installs.change(install, **{setting.name: int(setting.value)})
        except ValidationError as error:
            raise CommandError("; ".join(error.messages)) from error
        self.stdout.write(f"\nSet: {setting.line}")


def _check(options: dict[str, Any]) -> None:
    """Raise ``CommandError`` for an argument that would spoil the run only after minutes of experiments."""
    file: Path = options["file"].absolute()
    if not re.fullmatch(rf"{FIELD}[a-z0-9_]*", options["field"]):
        raise CommandError(
            f"--field begins with {FIELD}, so that everybody sees whose it is, and goes on with small letters, digits"
            " and underscores."
        )
    if not file.parent.is_dir():
        raise CommandError(f"There is no folder {file.parent} for the file.")
    if file.is_dir() or not os.access(file.parent, os.W_OK):
        raise CommandError(f"{file} can't be written.")
    if not 0 < options["patience"] < math.inf:
        raise CommandError("--patience takes a number of seconds above 0.")


def _gate(spacing: Spacing, install: Install, path: str, until: float) -> None:
    """Below a tenth of ODP's limits, and inside the rate limit that the install shares with its deliveries."""
    spacing.wait(path)
    try:
        pace.pass_gate(install, path, min(until, time.monotonic() + PLACE_SECONDS))
    except TooLateError:
        raise Stopped("The install is on hold, or its deliveries leave no room. Try again later") from None


def _lytics(install: Install, token: str) -> LyticsClient | None:
    """The client with a token for this run, or with that of the install."""
    if token == "-":  # noqa: S105 - a dash asks for it
        token = arguments.input_line("Lytics API token: ")
        if not token:
            raise CommandError("The Lytics API token is empty.")
    return lytics_account.client_with(token) if token else lytics_account.client_of(install)


def _plan(lab: Lab) -> Iterator[str]:
    yield f"This sends about 100 requests to {lab.client.host}, at most one a second to profiles and lists. It makes:"
    yield f"  the customer field {lab.field}, boolean, which ODP can't delete again"
    yield f"  the real-time audience {lab.field}, named {MARK!r}, deleted at the end"
    yield f"  {len(ROLES)} invented customers, {CUSTOMER}-…, left with {lab.field} = false, and a few events of them"
    if lab.passthrough_definition is not None:
        yield f"  the passthrough audience {lab.passthrough_segment}, deleted at the end"
    if lab.with_lists:
        yield f"  the list {lab.field}, which ODP can't delete again, and its audience, deleted at the end"
    yield f"It reads up to {MOST_READ} existing lytics_… audiences{' and the Lytics account' if lab.lytics else ''}."
    yield "It changes no customer, field or audience of yours. It takes about ten minutes. Ctrl-C stops and cleans up."


def _about(install: Install) -> dict[str, str]:
    """``account`` tells accounts apart, and nobody without our SECRET_KEY which one it is."""
    account = salted_hmac("learn_account", repr(odp_account.account_of(install))).hexdigest()[:12]
    return {"account": account, "mechanism": install.mechanism, "made_at": now().isoformat(timespec="seconds")}


def _secrets(lab: Lab, install: Install) -> set[str]:
    key, host = opened(install.odp_api_key), lab.client.host
    names = {install.public_id, install.name, f"{CUSTOMER}-{install.public_id}", lab.vuid}
    return {key, *key.split("."), *names, host, host.partition("://")[2]}


@contextmanager
def _interruptible() -> Iterator[None]:
    """Clean up on SIGTERM too: Python would end at once. Commands run in the main thread."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
