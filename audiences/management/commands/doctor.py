"""Check one install and all that it needs, live; exit 1 when a line is bad."""

import json
import sys
from dataclasses import asdict
from typing import Any

from django.core.management.base import BaseCommand, CommandParser

from audiences.management import arguments
from audiences.models import Install
from audiences.operations import doctor


class Command(BaseCommand):
    help = "Check everything that an install needs in ODP, in Lytics and here. Exit code 1 when something is bad."

    def add_arguments(self, parser: CommandParser) -> None:
        arguments.add_installs(parser)
        parser.add_argument("--json", action="store_true", help="one JSON object for programs")

    def handle(self, *args: Any, **options: Any) -> None:
        reports: list[tuple[Install, list[doctor.Line]]] = []
        for install in arguments.chosen_installs(options):
            lines = doctor.examine(doctor.Case(install))
            reports.append((install, lines))
            if not options["json"]:
                self._print(install.name, lines)
        is_bad = any(line.state == "bad" for _, lines in reports for line in lines)
        if options["json"]:
            shown = [
                {"install_id": install.public_id, "name": install.name, "lines": list(map(_fields, lines))}
                for install, lines in reports
            ]
            self.stdout.write(json.dumps({"bad": is_bad, "installs": shown}, default=str))
        if is_bad:
            sys.exit(1)

    def _print(self, name: str, lines: list[doctor.Line]) -> None:
        self.stdout.write(name)
        for group in doctor.GROUPS:
            self.stdout.write(f"\n{group}")
            for line in doctor.merged(lines):
                if line.group == group:
                    self._print_line(line)
        counts = ", ".join(f"{sum(line.state == word for line in lines)} {word}" for word in doctor.WORDS)
        self.stdout.write(f"\n{counts}")

    def _print_line(self, line: doctor.Line) -> None:
        about = f" ({line.about})" if line.about else ""
        age = line.age_seconds or 0
        old = f" [{age:,.0f} s ago]" if age >= 1 else ""
        self.stdout.write(f"  {line.state:8} {line.title}{about}: {line.evidence}{old}")
        if line.cure and line.state != "good":
            self.stdout.write(f"{'':11}{line.cure}")


def _fields(line: doctor.Line) -> dict[str, Any]:
    at = line.at and line.at.isoformat()
    return {**asdict(line), "at": at, "age_seconds": line.age_seconds}
