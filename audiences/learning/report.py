"""The table of answers, and the file that can be shared: no secrets, no identifiers, no names of audiences."""

import json
import os
from collections.abc import Iterable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from audiences.learning.experiments import Found
from audiences.learning.registry import QUESTIONS

HIDDEN = "•••"
# A hidden text of fewer characters would blot out parts of words.
_SHORTEST_HIDDEN = 4
_VERSION = 1


def table(answers: Iterable[Found]) -> Iterable[str]:
    """One paragraph for each question: short lines, because answers and evidence are sentences."""
    for found in answers:
        yield QUESTIONS[found.question]
        yield f"  answer    {found.answer or 'not answered'}"
        yield f"  evidence  {found.evidence}"
        yield f"  setting   {found.setting.line if found.setting else '–'}"


def read(path: Path, *, account: str) -> dict[str, Any]:
    """The answers of an earlier run on the same account by question. Empty when there is no such file."""
    try:
        earlier = json.loads(path.read_text(encoding="utf-8"))
        is_same = earlier["about"]["account"] == account
        return {each["question"]: each for each in earlier["answers"] if is_same and each["answer"]}
    except (OSError, ValueError, TypeError, KeyError):
        return {}


def write(
    path: Path, answers: Sequence[Found], *, at: datetime, about: dict[str, str], secrets: Iterable[str]
) -> list[str]:
    """Write the file, and return the questions whose earlier answer it keeps because this run gave none, or was
    interrupted before them.

    Nothing secret is put into answers. ``secrets`` are masked nevertheless, because ODP chooses the names in its JSON.
    """
    earlier = read(path, account=about["account"])
    asked, answered = {found.question for found in answers}, {found.question for found in answers if found.answer}
    kept = [question for question in earlier if question in QUESTIONS and question not in answered]
    rows = [earlier[found.question] if found.question in kept else _row(found, at) for found in answers]
    rows += [earlier[question] for question in kept if question not in asked]
    text = json.dumps({"version": _VERSION, "about": about, "answers": rows}, indent=2, ensure_ascii=False)
    for secret in sorted({each for each in secrets if len(each) >= _SHORTEST_HIDDEN}, key=len, reverse=True):
        text = text.replace(secret, HIDDEN)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    unfinished.write_text(text + "\n", encoding="utf-8")
    unfinished.replace(path)
    return kept


def _row(found: Found, at: datetime) -> dict[str, str]:
    return {
        "question": found.question,
        "words": QUESTIONS[found.question],
        "answer": found.answer,
        "evidence": found.evidence,
        "setting": found.setting.shared_line if found.setting else "",
        "answered_at": at.isoformat(timespec="seconds"),
    }
