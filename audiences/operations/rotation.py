"""Rotation of the encryption key: stored secrets are encrypted again with the first key.

It runs beside the other processes: with the new key first in ``FIELD_ENCRYPTION_KEYS``, each process reads both keys,
so rows can be rewritten one at a time. A concurrent change uses the new key already and wins.
"""

from typing import NamedTuple

from cryptography.fernet import Fernet, InvalidToken
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.db import connection
from psycopg.sql import SQL, Identifier

from audiences.encryption import decrypt, encrypt

# Every column that holds something encrypted; a test looks for others.
COLUMNS = (
    ("audiences_install", "odp_api_key"),
    ("audiences_forgotten", "identifier"),
    ("audiences_guidedchange", "other_api_key"),
    ("audiences_lyticsaccount", "api_token"),
    ("audiences_token", "secret"),
    ("audiences_parked", "raw"),
)
# Rows in memory at a time; a parked item may be a megabyte.
AT_ONCE = 100

# These two are written in Python, because the table and the column differ.
# The next values of a column that are encrypted, by id. An empty one is stored as it is.
_SOME = SQL("SELECT id, {column} FROM {table} WHERE id > %(after)s AND {column} <> '' ORDER BY id LIMIT %(at_once)s")
# Replaces a value, unless another process has changed it since it was read.
_ANEW = SQL("UPDATE {table} SET {column} = %(again)s WHERE id = %(id)s AND {column} = %(hidden)s")


class Encrypted(NamedTuple):
    """A stored value: a text, or bytes in the column of parked items."""

    id: int
    hidden: str | bytes


class Rotated(NamedTuple):
    """How many values were encrypted again, and the ids of those that no key opens. These stay as they are."""

    written: int
    unreadable: list[int]


def rotate() -> dict[str, Rotated]:
    """Encrypt each value with the first key, if another key encrypted it. Returns the result by table.

    It can be stopped and started again.
    """
    return {table: _rotate(table, column) for table, column in COLUMNS}


def _rotate(table: str, column: str) -> Rotated:
    newest, written, after = Fernet(settings.FIELD_ENCRYPTION_KEYS[0]), 0, 0
    unreadable: list[int] = []
    names = {"table": Identifier(table), "column": Identifier(column)}
    some, rewrite = _SOME.format(**names), _ANEW.format(**names)
    with connection.cursor() as cursor:
        while True:
            cursor.execute(some, {"after": after, "at_once": AT_ONCE})
            rows = [Encrypted(pk, hidden) for pk, hidden in cursor.fetchall()]
            if not rows:
                return Rotated(written, unreadable)
            for row in rows:
                after = row.id
                stored = row.hidden.encode() if isinstance(row.hidden, str) else row.hidden
                if _opens(newest, stored):
                    continue
                try:
                    again = encrypt(decrypt(stored))
                except ImproperlyConfigured:
                    unreadable.append(row.id)
                    continue
                value = again.decode() if isinstance(row.hidden, str) else again
                cursor.execute(rewrite, {"id": row.id, "hidden": row.hidden, "again": value})
                written += cursor.rowcount


def _opens(key: Fernet, hidden: bytes) -> bool:
    try:
        key.decrypt(hidden)
    except InvalidToken:
        return False
    return True
