"""Cursors for frequent statements: PostgreSQL parses and plans each once per connection instead of once per execution.

Django's cursors interpolate the values on the client, so PostgreSQL plans each execution again; for a join of three
tables, planning costs as much as running. See docs/decisions/0026-prepared-statements.md.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import psycopg
from django.db import connection
from django.db.backends.utils import CursorWrapper
from psycopg.types.numeric import Int8Dumper

_ESCAPED = {"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r"}
_ESCAPES = str.maketrans(_ESCAPED)


class _Cursor(psycopg.Cursor[Any]):
    def execute(self, query: Any, params: Any = None, **more: Any) -> "_Cursor":
        # Without effect where the setting PREPARED_STATEMENTS has switched them off for the connection.
        return super().execute(query, params, prepare=True, **more)


def cursor() -> CursorWrapper:
    """A cursor of Django's connection, with its errors and its transaction. Give each statement the same types.

    A whole number has one, bigint: psycopg's own choice depends on its size, and another type is another statement.
    """
    connection.ensure_connection()
    with connection.wrap_database_errors:
        plain = _Cursor(connection.connection)
    plain.adapters.register_dumper(int, Int8Dumper)
    wrapped: CursorWrapper = connection._prepare_cursor(plain)  # type: ignore[attr-defined]
    return wrapped


@contextmanager
def pipeline() -> Iterator[None]:
    """Send several statements in one database round trip (libpq pipeline mode).

    Outside a transaction they form one. Each needs its own cursor, from which its rows are read afterwards.
    """
    connection.ensure_connection()
    with connection.wrap_database_errors, connection.connection.pipeline():
        yield


def copy(statement: str, rows: Iterable[str]) -> None:
    """Rows as the text that COPY takes: PostgreSQL writes them into its log by the page."""
    with connection.wrap_database_errors, connection.cursor() as copying, copying.copy(statement) as stream:
        stream.write("".join(rows))


def escaped(texts: Sequence[str]) -> Sequence[str]:
    """Escape values for ``copy``. The texts are checked together first, because hardly any needs escaping."""
    joined = "".join(texts)
    return [text.translate(_ESCAPES) for text in texts] if any(map(joined.__contains__, _ESCAPED)) else texts


def numbers(values: Iterable[int]) -> str:
    """A PostgreSQL array as text: adapting a Python list element by element costs more than the insert."""
    return "{" + ",".join(map(str, values)) + "}"


def texts(values: Iterable[str]) -> str:
    """The same of texts, any of them."""
    some = list(values)
    joined = '","'.join(some)
    if "\\" in joined or joined.count('"') != 2 * (len(some) - 1):
        joined = '","'.join(text.replace("\\", "\\\\").replace('"', '\\"') for text in some)
    return '{"' + joined + '"}' if some else "{}"
