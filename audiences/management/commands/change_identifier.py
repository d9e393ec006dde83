"""Change an install to another identifier field, or show what that would do and what Lytics' members have."""

from dataclasses import asdict
from typing import Any

from django.core.exceptions import ValidationError
from django.core.management.base import BaseCommand, CommandError, CommandParser

from audiences.management import arguments, guided
from audiences.models import Install
from audiences.operations import changes, identifier_changes


class Command(BaseCommand):
    help = (
        "Show what a change of an install to another identifier field would do, with what a sample of its members in "
        "Lytics has in each field, and, with --yes, begin it. The workers do it while events are delivered; see "
        "docs/guided-changes.md. It needs a Lytics API token."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        arguments.add_install(parser)
        parser.add_argument("--to", metavar="FIELD", default="", help="the identifier field to change to")
        guided.add_options(parser)

    def handle(self, *args: Any, **options: Any) -> None:
        install = arguments.install_named(options["install"])
        report = {"install_id": install.public_id, "name": install.name, **_done(install, options)}
        if not options["json"]:
            for field in report.pop("fields", ()):
                self.stdout.write(f"field: {_in_words(field)}")
        guided.write(self.stdout, report, options)


def _done(install: Install, options: dict[str, Any]) -> dict[str, Any]:
    to = options["to"]
    if options["stop"]:
        if to:
            raise CommandError("Give either --to or --stop.")
        return guided.stop(install)
    if to:
        _check(install, to)
    plan = {"present": install.identifier_field, **asdict(identifier_changes.plan(install))}
    problem = changes.problem_of_identifier(install) or (identifier_changes.problem_of(install, to) if to else "")
    if not options["yes"]:
        fields = [asdict(each) for each in identifier_changes.evidence(install).candidates]
        return {"begun": False, "problem": problem, "fields": fields, **plan}
    if not to:
        raise CommandError("Name the field with --to.")
    by, reason = arguments.who(), guided.reason_in(options)
    change = None if problem else changes.begin_identifier(install, to=to, by=by, reason=reason)
    return {**guided.begun(install, problem, change), "to": to, **plan}


def _check(install: Install, field: str) -> None:
    try:
        Install._meta.get_field("identifier_field").clean(field, install)
    except ValidationError as error:
        raise CommandError(f"--to: {' '.join(error.messages)}") from None
    if field == install.identifier_field:
        raise CommandError(f"{install} has this field already.")


def _in_words(field: dict[str, Any]) -> str:
    return (
        f"{field['name']}, in {field['found']} members of the sample, as an array in {field['arrays']}, with"
        f" {field['different']} different identifiers; {field['shared']} members share one"
    )
