"""Make, change and start the webhook job of an install in Lytics, or print what to enter there by hand."""

import json
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from audiences.management import arguments
from audiences.models import Install
from audiences.operations.connect import Report, by_hand, connect
from audiences.operations.lytics_job import NotConnectedError

THOSE = "those to have in ODP"


class Command(BaseCommand):
    help = (
        "Make or change the webhook job of an install in Lytics, held until --start. It needs the install's Lytics API"
        " token; without one, or without its rights, this prints what to enter in Lytics by hand."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        arguments.add_install(parser)
        parser.add_argument("--audience", action="append", default=[], metavar="SLUG", help="an audience that joins")
        parser.add_argument("--remove", action="append", default=[], metavar="SLUG", help="an audience that leaves")
        parser.add_argument("--start", action="store_true", help="start the job; Lytics sends from then on")
        parser.add_argument("--dry-run", action="store_true", help="only read, and say what would be done")
        parser.add_argument("--json", action="store_true")

    def handle(self, *args: Any, **options: Any) -> None:
        install = arguments.install_named(options["install"])
        facts: dict[str, Any] = {"install_id": install.public_id, "dry_run": options["dry_run"]}
        facts |= {"problem": "", "by_hand": None}
        try:
            report = connect(
                install,
                add=options["audience"],
                remove=options["remove"],
                start=options["start"],
                dry_run=options["dry_run"],
            )
        except NotConnectedError as problem:
            self._not_connected(install, problem, facts, options)
            return
        if options["json"]:
            self.stdout.write(json.dumps({**facts, **report.as_json()}))
            return
        self._print(report, is_dry_run=options["dry_run"])

    def _not_connected(
        self, install: Install, problem: NotConnectedError, facts: dict[str, Any], options: dict[str, Any]
    ) -> None:
        """With what a person can enter instead. It ends with 1."""
        pages = {}
        if problem.by_hand:
            try:
                audiences = ", ".join(options["audience"]) or THOSE
                pages = by_hand(install, audiences=audiences, dry_run=options["dry_run"])
            except NotConnectedError as without_token:
                problem = NotConnectedError(f"{problem.words} {without_token.words}")
        if options["json"]:
            shown = {page: dict(lines) for page, lines in pages.items()} or None
            self.stdout.write(json.dumps({**facts, "problem": problem.words, "by_hand": shown}))
            raise SystemExit(1)
        if pages:
            self.stdout.write("Enter this in Lytics:\n")
            for page, lines in pages.items():
                self.stdout.write(f"\n{page}")
                for label, value in lines:
                    self.stdout.write(f"  {label:<28} {value}")
            self.stdout.write("")
        raise CommandError(problem.words)

    def _print(self, report: Report, *, is_dry_run: bool) -> None:
        facts = report.as_json()
        for step in report.steps:
            self.stdout.write(f"{'would do' if is_dry_run else 'done'}: {step}")
        job = facts["job"]
        if job is None:
            if not report.steps:
                self.stdout.write("There is no job of this install in Lytics. Choose audiences with --audience:")
                for audience in facts["audiences"]:
                    self.stdout.write(f"  {_line(audience)}")
        else:
            self.stdout.write(f"Job      {job['name']} ({job['id']}), {job['state']}")
            self.stdout.write(f"Calls    {facts['webhook_url']}")
            for audience in job["audiences"]:
                self.stdout.write(f"Audience {_line(audience)}")
        for one in facts["differences"]:
            self.stdout.write(f"Differs  {one['setting']}: {one['theirs']} instead of {one['ours']}. {one['why']}")
        for note in report.notes:
            self.stdout.write(f"Note     {note}")
        if job is not None and not report.found.is_started:
            self.stdout.write("Nothing is sent yet. Check the lines above, then run this again with --start.")


def _line(audience: dict[str, Any]) -> str:
    if audience["slug"] is None:
        return f"{audience['segment_id']}, which Lytics doesn't list any more"
    size = "size unknown" if audience["size"] is None else f"{audience['size']:,} members"
    return f"{audience['slug']}, {size}"
