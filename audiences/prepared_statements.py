"""Cursors for frequent statements: PostgreSQL parses and plans each once per connection instead of once per execution.

Django's cursors interpolate the values on the client, so PostgreSQL plans each execution again; for a join of three
tables, planning costs as much as running. See docs/decisions/0026-prepared-statements.md.
"""

from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import psycopg
from django.db import DEFAULT_DB_ALIAS, connection, connections
from django.db.backends.utils import CursorWrapper
from psycopg.adapt import AdaptersMap
from psycopg.types.numeric import Int8Dumper

_ESCAPED = {"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r"}
_ESCAPES = str.maketrans(_ESCAPED)


class _Cursor(psycopg.Cursor[Any]):
    def __init__(self, server: psycopg.Connection[Any]) -> None:
        super().__init__(server)
        self._adapters = _adapters_of(server)

    def execute(self, query: Any, params: Any = None, **more: Any) -> "_Cursor":
        # Without effect where the setting PREPARED_STATEMENTS has switched them off for the connection.
        return super().execute(query, params, prepare=True, **more)

    def _execute_gen(self, query: Any, params: Any = None, **more: Any) -> Generator[Any, Any, None]:
        """Inside a pipeline, leave the statement in libpq's buffer until the end of the pipeline.

        psycopg would wait for the socket after each statement, and its thread each time for Python's global lock.
        """
        pipeline = self._conn._pipeline
        if pipeline is None:
            yield from super()._execute_gen(query, params, **more)
            return
        yield from self._start_query(query)
        yield from self._maybe_prepare_gen(self._convert_query(query, params), **more)
        while pipeline.command_queue:
            pipeline.command_queue.popleft()()
        self._last_query = query
        yield from self._conn._prepared.maintain_gen(self._conn)


_adapters: WeakKeyDictionary[psycopg.Connection[Any], AdaptersMap] = WeakKeyDictionary()


def _adapters_of(server: psycopg.Connection[Any]) -> AdaptersMap:
    """Made once per connection. A whole number has one type, bigint.

    psycopg's own choice depends on the size of the number, and another type is another prepared statement.
    """
    adapters = _adapters.get(server)
    if adapters is None:
        adapters = _adapters[server] = AdaptersMap(server.adapters)
        adapters.register_dumper(int, Int8Dumper)
    return adapters


def cursor() -> CursorWrapper:
    """A cursor of Django's connection, with its errors and its transaction. Give each statement the same types."""
    session: Any = connections[DEFAULT_DB_ALIAS]  # looked up once: each use of ``connection`` is a look-up
    session.ensure_connection()
    with session.wrap_database_errors:
        plain = _Cursor(session.connection)
    wrapped: CursorWrapper = session._prepare_cursor(plain)
    return wrapped


@contextmanager
def pipeline() -> Iterator[None]:
    """Send several statements in one database round trip (libpq pipeline mode).

    Outside a transaction they form one. Each needs its own cursor, from which its rows are read afterwards.
    """
    session: Any = connections[DEFAULT_DB_ALIAS]
    session.ensure_connection()
    with session.wrap_database_errors, session.connection.pipeline():
        yield


def copy(statement: str, rows: Iterable[str]) -> None:
    """Insert rows in COPY's text format. PostgreSQL then writes its WAL by the page instead of by the row."""
    with connection.wrap_database_errors, connection.cursor() as copying, copying.copy(statement) as stream:
        stream.write("".join(rows))


def escaped(texts: Sequence[str]) -> Sequence[str]:
    """Escape values for ``copy``. The texts are checked together first, because hardly any needs escaping."""
    joined = "".join(texts)
    return [text.translate(_ESCAPES) for text in texts] if any(map(joined.__contains__, _ESCAPED)) else texts


def numbers(values: Iterable[int]) -> str:
    """A PostgreSQL array as text: adapting a Python list element by element costs more than the insert."""
    return "{" + ",".join(map(int.__repr__, values)) + "}"


def repeated(values: Iterable[tuple[int, int]]) -> str:
    """A PostgreSQL array as text, of repeated numbers, given as pairs of a number and its count."""
    return "{" + "".join([f"{number}," * times for number, times in values])[:-1] + "}"


def texts(values: Iterable[str]) -> str:
    """A PostgreSQL array as text, of any texts."""
    some = list(values)
    joined = '","'.join(some)
    if "\\" in joined or joined.count('"') != 2 * (len(some) - 1):
        joined = '","'.join(text.replace("\\", "\\\\").replace('"', '\\"') for text in some)
    return '{"' + joined + '"}' if some else "{}"
