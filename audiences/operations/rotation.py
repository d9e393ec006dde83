"""Rotation of the encryption key: stored secrets are encrypted again with the first key.

It runs beside the other processes: with the new key first in ``FIELD_ENCRYPTION_KEYS``, each process reads both keys,
so rows can be rewritten one at a time. A concurrent change uses the new key already and wins.
"""

from cryptography.fernet import Fernet, InvalidToken
from django.conf import settings
from django.db import connection

from audiences.encryption import decrypt, encrypt

# Every column that holds something encrypted; a test looks for others.
COLUMNS = (
    ("audiences_install", "odp_api_key"),
    ("audiences_token", "secret"),
    ("audiences_parked", "raw"),
)
# Rows in memory at a time; a parked item may be a megabyte.
AT_ONCE = 100


def rotate() -> dict[str, int]:
    """Encrypt everything with the first key that isn't yet. Returns how many rows of each table were written.

    Raises ``ImproperlyConfigured`` at a row that none of the keys opens. It can be stopped and started again.
    """
    return {table: _rotate(table, column) for table, column in COLUMNS}


def _rotate(table: str, column: str) -> int:
    newest, written, after = Fernet(settings.FIELD_ENCRYPTION_KEYS[0]), 0, 0
    some = f"SELECT id, {column} FROM {table} WHERE id > %s AND {column} IS NOT NULL ORDER BY id LIMIT {AT_ONCE}"  # noqa: S608
    anew = f"UPDATE {table} SET {column} = %s WHERE id = %s AND {column} = %s"  # noqa: S608 — names from COLUMNS
    with connection.cursor() as cursor:
        while True:
            cursor.execute(some, [after])
            rows = cursor.fetchall()
            if not rows:
                return written
            after = rows[-1][0]
            for pk, hidden in rows:
                stored = hidden.encode() if isinstance(hidden, str) else bytes(hidden)
                if not stored or _opens(newest, stored):
                    continue
                again = encrypt(decrypt(stored))
                cursor.execute(anew, [again.decode() if isinstance(hidden, str) else again, pk, hidden])
                written += cursor.rowcount


def _opens(key: Fernet, hidden: bytes) -> bool:
    try:
        key.decrypt(hidden)
    except InvalidToken:
        return False
    return True
