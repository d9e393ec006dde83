"""What an experiment is, what it finds, and the two exceptions that end one early."""

import re
import shlex
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

if TYPE_CHECKING:
    from audiences.learning.lab import Lab

# A name with the prefix of audiences in ODP may name one of them.
_PLAIN_NAME = re.compile(r"(?!lytics_)[A-Za-z_][A-Za-z0-9_]{0,39}")
_DEEPEST = 5


class NotAnswered(Exception):
    """The experiment can't answer its questions; the message says why."""


class Stopped(Exception):
    """No further experiment makes sense, for example because ODP is unreachable; the message says why."""


class Setting(NamedTuple):
    """A setting that follows from an answer: a variable of the environment, or a column of the install.

    ``shared`` replaces the value in the file that can be shared.
    """

    where: Literal["environment", "install"]
    name: str
    value: str
    shared: str = ""

    @property
    def line(self) -> str:
        return f"{self.name}={shlex.quote(self.value)}"

    @property
    def shared_line(self) -> str:
        return f"{self.name}={self.shared}" if self.shared else self.line


class Found(NamedTuple):
    """The answer to one question; empty when the question wasn't answered, and ``evidence`` says why."""

    question: str
    answer: str
    evidence: str
    setting: Setting | None = None


@dataclass(frozen=True)
class Experiment:
    """``questions`` are the words of each question, by its name."""

    questions: Mapping[str, str]
    run: "Callable[[Lab], Iterator[Found]]"


def shape(value: Any, depth: int = 0) -> str:
    """JSON with its values replaced by their types, so that it can be shared: values may name people."""
    if depth > _DEEPEST:
        return "…"
    if isinstance(value, dict):
        named = (f"{plain_name(name)}: {shape(inner, depth + 1)}" for name, inner in sorted(value.items()))
        return f"{{{', '.join(dict.fromkeys(named))}}}"
    if isinstance(value, list):
        return f"[{' | '.join(dict.fromkeys(shape(inner, depth + 1) for inner in value[:20]))}]"
    if value is None or isinstance(value, bool):
        return "null" if value is None else "boolean"
    return "number" if isinstance(value, int | float) else "text"


def plain_name(name: str) -> str:
    """A name of a field in JSON, unless it could be something else, such as an e-mail address or an audience."""
    return name if _PLAIN_NAME.fullmatch(name) else "?"
