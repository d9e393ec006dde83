"""The registry of the doctor's checks, in the order of the page, and the result that a check returns.

A check is a function of a ``Case``. It runs live, writes nothing, and returns one or more ``Finding``s. An exception
becomes a line too, so a broken check doesn't hide the others.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Literal

import structlog
from django.utils.timezone import now

from audiences import sessions
from audiences.operations.doctor.case import Case, NotCheckedError
from outgoing.deadline import TooLateError

log = structlog.get_logger(__name__)

Word = Literal["good", "warning", "bad", "unknown"]
# The states, most urgent first.
WORDS: tuple[Word, ...] = ("bad", "warning", "unknown", "good")
GROUPS = ("This service", "ODP", "Lytics", "Public address")
NO_TIME = "The earlier checks took all the time of this examination. Check again."


@dataclass(frozen=True)
class Finding:
    """The finding of a check. ``at`` is the time of the evidence; None means the time of the check.

    ``about`` names the audience or job when a check returns several findings.
    """

    state: Word
    evidence: str
    cure: str = ""
    at: datetime | None = None
    about: str = ""


@dataclass(frozen=True)
class Line:
    """One line of the result. ``at`` is None when there is no evidence."""

    check: str
    title: str
    group: str
    state: Word
    evidence: str
    cure: str
    at: datetime | None
    about: str

    @property
    def age_seconds(self) -> float | None:
        return None if self.at is None else max(0.0, (now() - self.at).total_seconds())


Found = Finding | Sequence[Finding]


@dataclass(frozen=True)
class Check:
    """A registered check. ``what`` is the first paragraph of the function's docstring, which docs/doctor.md shows."""

    name: str
    title: str
    group: str
    what: str
    run: Callable[[Case], Found]


CHECKS: dict[str, Check] = {}


def check(group: str, title: str) -> Callable[[Callable[[Case], Found]], Callable[[Case], Found]]:
    """Register a check under the name of its function."""

    def register(function: Callable[[Case], Found]) -> Callable[[Case], Found]:
        what = " ".join((function.__doc__ or "").strip().split("\n\n")[0].split())
        assert group in GROUPS, group
        assert function.__name__ not in CHECKS, function.__name__
        CHECKS[function.__name__] = Check(function.__name__, title, group, what, function)
        return function

    return register


def good(evidence: str, *, at: datetime | None = None, about: str = "") -> Finding:
    return Finding("good", evidence, at=at, about=about)


def warning(evidence: str, cure: str, *, at: datetime | None = None, about: str = "") -> Finding:
    return Finding("warning", evidence, cure, at, about)


def bad(evidence: str, cure: str, *, at: datetime | None = None, about: str = "") -> Finding:
    return Finding("bad", evidence, cure, at, about)


def unknown(evidence: str, cure: str = "", *, about: str = "") -> Finding:
    return Finding("unknown", evidence, cure, about=about)


def most_urgent(found: Iterable[Finding], most: int) -> list[Finding]:
    """The most urgent finding of each audience, for at most ``most`` of them, and a line about the number of others."""
    by_audience: dict[str, Finding] = {}
    for one in sorted(found, key=lambda one: WORDS.index(one.state)):
        by_audience.setdefault(one.about, one)
    shown, others = list(by_audience.values())[:most], list(by_audience.values())[most:]
    if others:
        words = f"Audiences with a finding that are not named: {len(others):,}."
        shown.append(Finding(others[0].state, words, "Correct those above, then check again."))
    return shown


def examine(case: Case, checks: Iterable[Check] | None = None) -> list[Line]:
    """Run all checks, one after the other, until the time of the case is over."""
    lines = []
    for each in CHECKS.values() if checks is None else checks:
        found = unknown(NO_TIME) if time.monotonic() >= case.ends_at else _run(each, case)
        for one in [found] if isinstance(found, Finding) else found:
            at = None if one.state == "unknown" else one.at or now()
            lines.append(Line(each.name, each.title, each.group, one.state, one.evidence, one.cure, at, one.about))
    return lines


def merged(lines: Sequence[Line]) -> list[Line]:
    """Merge neighbouring lines with the same text into one line with all their titles, for people."""
    found: list[Line] = []
    for line in lines:
        last = found[-1] if found else None
        if last and _words(last) == _words(line):
            found[-1] = replace(last, title=f"{last.title}, {line.title}")
        else:
            found.append(line)
    return found


def _words(line: Line) -> tuple[str, ...]:
    return line.group, line.state, line.evidence, line.cure, line.about


def _run(each: Check, case: Case) -> Found:
    try:
        return each.run(case)
    except NotCheckedError as missing:
        return unknown(missing.evidence, missing.cure)
    except TooLateError:
        return unknown(NO_TIME)
    except Exception as error:
        log.exception("a check of the doctor failed", check=each.name, install=case.install.name)
        if sessions.is_database_error(error):
            return unknown("The database did not answer.", "Look at the line about the database, then check again.")
        words = "This check failed, which is an error of Lytics Sync."
        return unknown(words, "Send the log lines of this process to the people who maintain it.")
