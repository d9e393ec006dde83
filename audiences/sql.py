"""SQL from ``.sql`` files: statements with a name, with named parameters, and with named tuples as rows.

``delivery/claims.py`` runs the statements of ``delivery/sql/claims.sql``. In that file, a line ``-- name: claim_lanes``
begins a statement, and the comment below it says what the statement gives. ``sql/fragments.sql`` has the conditions
that several statements share: ``-- fragment: lane_is_free`` begins one, and ``{{lane_is_free}}`` inserts it. Comments
are not sent to PostgreSQL. See docs/decisions/0031-sql-files.md.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

from django.db import connection
from django.db.backends.utils import CursorWrapper
from django.db.models import BooleanField
from django.db.models.expressions import RawSQL

from audiences import prepared_statements

Row = TypeVar("Row")

FRAGMENTS = "fragments.sql"

_HEADER = re.compile(r"^-- (?:name|fragment): (\w+)$", re.MULTILINE)
# No string in these files contains "--".
_COMMENT = re.compile(r"[ \t]*--.*")
_EMPTY_LINES = re.compile(r"\n\s*\n")
_PARAMETER = re.compile(r"%\((\w+)\)s")
_INSERTED = re.compile(r"\{\{(\w+)\}\}")


@dataclass(frozen=True)
class Sent(Generic[Row]):
    """A statement that was sent. Inside a pipeline, the response can be read after the pipeline has ended."""

    cursor: CursorWrapper
    make: Callable[[Sequence[Any]], Row]

    def one(self) -> Row | None:
        """The first row, or None."""
        row = self.cursor.fetchone()
        return None if row is None else self.make(row)

    def all(self) -> list[Row]:
        return list(map(self.make, self.cursor.fetchall()))

    @property
    def changed(self) -> int:
        """The number of rows that the statement changed."""
        return int(self.cursor.rowcount)


@dataclass(frozen=True)
class Statement(Generic[Row]):
    """A statement, and ``make``, which makes a named tuple of each row.

    PostgreSQL plans a prepared statement once per connection, any other for each call.
    """

    name: str
    text: str
    make: Callable[[Sequence[Any]], Row]
    prepared: bool

    def run(self, **values: Any) -> Sent[Row]:
        """Send the statement. Each value is a parameter, by its name."""
        cursor = prepared_statements.cursor() if self.prepared else connection.cursor()
        cursor.execute(self.text, values)
        return Sent(cursor, self.make)

    def subquery(self, **values: Any) -> RawSQL:
        """The statement as an expression of the ORM, whose parameters are positional."""
        return self._expression(None, values)

    def condition(self, columns: Mapping[str, str], **values: Any) -> RawSQL:
        """The statement, which returns one boolean, as a filter of the ORM.

        ``columns`` are the parameters that are columns of the outer query, with their names in SQL.
        """
        text = _PARAMETER.sub(lambda found: columns.get(found[1], found[0]), self.text)
        return replace(self, text=text)._expression(BooleanField(), values)

    def _expression(self, output_field: "BooleanField[Any, Any] | None", values: dict[str, Any]) -> RawSQL:
        parameters = [values[name] for name in _PARAMETER.findall(self.text)]
        return RawSQL(_PARAMETER.sub("%s", self.text), parameters, output_field)  # noqa: S611 — no user's text

    def replace(self, old: str, new: str) -> "Statement[Row]":
        """The statement with another text, such as another table. ``old`` must be in the present text."""
        if old not in self.text:
            raise ValueError(f"the statement {self.name} does not contain {old!r}")
        return replace(self, text=self.text.replace(old, new))


class SqlFile:
    """The statements of one ``.sql`` file."""

    def __init__(self, path: Path, **inserted: str) -> None:
        shared = path.with_name(FRAGMENTS)
        fragments = {**(parts(shared) if shared.exists() else {}), **inserted}
        self.path = path
        self.texts = {
            name: _INSERTED.sub(lambda found: fragments[found[1]], text) for name, text in parts(path).items()
        }

    def query(self, name: str, make: Callable[[Sequence[Any]], Row], *, prepared: bool = False) -> Statement[Row]:
        """A statement that returns rows."""
        return Statement(name, self.texts[name], make, prepared)

    def command(self, name: str, *, prepared: bool = False) -> Statement[None]:
        """A statement of which only the number of changed rows is read."""
        return Statement(name, self.texts[name], _no_row, prepared)

    def for_models(self, name: str) -> Statement[None]:
        """A statement for Django: its ``text`` for ``objects.raw``, or a subquery of the ORM."""
        return Statement(name, self.texts[name], _no_row, prepared=False)


def beside(module_file: str, **inserted: str) -> SqlFile:
    """The ``.sql`` file of a module, given its ``__file__``. ``inserted`` has fragments that Python writes."""
    module = Path(module_file)
    return SqlFile(module.parent / "sql" / f"{module.stem}.sql", **inserted)


def parts(path: Path) -> dict[str, str]:
    """The statements or fragments of a file by name, without comments."""
    _, *found = _HEADER.split(path.read_text(encoding="utf-8"))
    return {name: _without_comments(text) for name, text in zip(found[::2], found[1::2], strict=True)}


def _without_comments(text: str) -> str:
    return _EMPTY_LINES.sub("\n", _COMMENT.sub("", text)).strip()


def _no_row(row: Sequence[Any]) -> None:
    raise TypeError("a command returns no rows")
