"""Check the invariants that span rows; exit 1 with a list when one is violated."""

import json
import sys
from dataclasses import asdict
from typing import Any

from django.core.management.base import BaseCommand, CommandParser

from audiences.insight import horizons
from audiences.operations import audit


class Command(BaseCommand):
    help = (
        "Check that no lane has a gap, no cursor is ahead of its log, and the ledger is the fold of what was delivered."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--json", action="store_true")

    def handle(self, *args: Any, **options: Any) -> None:
        findings = audit.audit()
        deleted = horizons.all_words("events", "runs")
        if options["json"]:
            report = {
                "clean": not findings,
                "checked": list(audit.TRUTHS),
                "findings": list(map(asdict, findings)),
                "horizons": deleted,
            }
            self.stdout.write(json.dumps(report))
        else:
            for finding in findings:
                self.stdout.write(f"{finding.audience}: broken: {finding.truth} — {finding.seen}")
            for truth in audit.TRUTHS:
                if truth not in {finding.truth for finding in findings}:
                    self.stdout.write(f"holds: {truth}")
            for words in deleted:
                self.stdout.write(f"checked from there on: {words}")
        if findings:
            sys.exit(1)
