"""Invariants that span rows, so no constraint holds them: no gap in the log, no cursor past it, the ledger its fold."""

from dataclasses import dataclass
from typing import NamedTuple

from django.conf import settings
from django.db import connection, transaction

from audiences import sql
from audiences.delivery.fold import FORGOTTEN


@dataclass(frozen=True)
class Finding:
    """One violated invariant: its name, the audience's ODP id, and the values found."""

    truth: str
    audience: str
    seen: str


class Violation(NamedTuple):
    """The audience's ODP id, and the values found."""

    audience: str
    seen: str


_SQL = sql.beside(__file__)
_GAPS = _SQL.query("gaps", Violation._make)
_CURSORS = _SQL.query("cursors", Violation._make)
_LEDGER = _SQL.query("ledger", Violation._make)
_MEMBERS = _SQL.query("members", Violation._make)
_HISTORY = _SQL.query("history", Violation._make)
_REJECTED = _SQL.query("rejected", Violation._make)
_AHEAD = _SQL.query("ahead", Violation._make)

TRUTHS = {
    "no gap in a lane": _GAPS,
    "cursor not past the last number": _CURSORS,
    "ledger is the fold of the delivered log": _LEDGER,
    "members counted as in the ledger": _MEMBERS,
    "every delivered event lies in a run": _HISTORY,
    "every rejected item is in the ledger as rejected": _REJECTED,
    "no membership is ahead of the clock": _AHEAD,
}


def violations(truth: str) -> list[Violation]:
    """The violations of one invariant."""
    return TRUTHS[truth].run(tolerance_seconds=settings.CLOCK_TOLERANCE_SECONDS, forgotten=FORGOTTEN).all()


def audit() -> list[Finding]:
    """Check all invariants on one snapshot of the database; an empty list when all hold. Reads the whole log."""
    findings: list[Finding] = []
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
        for truth in TRUTHS:
            findings.extend(Finding(truth, **violation._asdict()) for violation in violations(truth))
    return findings
