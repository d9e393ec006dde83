"""Whether this process could do its work: the schema fits, the database takes writes, stored secrets open."""

from functools import cache

from django.apps import apps
from django.core.exceptions import ImproperlyConfigured
from django.db import connection
from django.db.migrations.loader import MigrationLoader

from audiences import sessions
from audiences.encryption import UNREADABLE, decrypt

# Ciphertexts that one of this process's keys has opened. A process never loses a key.
_opened: set[str] = set()
_OPENED_KEPT = 10_000
# The few secrets that delivery and receiving need. Parked items may be many and large.
_SECRETS = """
SELECT 'the API key of the install ' || name, odp_api_key FROM audiences_install
UNION ALL
SELECT 'a token of the install ' || install.name, token.secret
FROM audiences_token AS token JOIN audiences_install AS install ON install.id = token.install_id
WHERE token.revoked_at IS NULL
"""
_columns_fit = False


def problem() -> str:
    """Why a call can't be stored or delivered; empty when it can. Raises ``django.db.Error`` without a database."""
    return sessions.read(lambda: _write_problem() or schema_problem() or _secrets_closed())


def _write_problem() -> str:
    if not _is_read_only():
        return ""
    # This session may be from before a failover has ended.
    connection.close()
    return "the database takes no writes" if _is_read_only() else ""


def _is_read_only() -> bool:
    with connection.cursor() as cursor:
        cursor.execute("SELECT current_setting('transaction_read_only') = 'on' OR pg_is_in_recovery()")
        row = cursor.fetchone()
    return bool(row and row[0])


def schema_problem() -> str:
    """Migrations are checked each time, because an operator may migrate back; columns once per process."""
    global _columns_fit
    with connection.cursor() as cursor:
        cursor.execute("SELECT to_regclass('django_migrations') IS NOT NULL")
        if cursor.fetchone() != (True,):
            return "the database is not migrated"
        cursor.execute("SELECT app, name FROM django_migrations")
        applied = set(cursor.fetchall())
    missing = sorted(_expected() - applied)
    if missing:
        return f"the database is not migrated: {'.'.join(missing[0])} is missing"
    if _columns_fit:
        return ""
    lacking = _lacking_columns()
    _columns_fit = not lacking
    return f"the schema doesn't fit this version: {lacking} is missing" if lacking else ""


@cache
def _expected() -> frozenset[tuple[str, str]]:
    loader = MigrationLoader(None, ignore_no_migrations=True)
    replaced = {key for migration in loader.disk_migrations.values() for key in migration.replaces}
    return frozenset(set(loader.disk_migrations) - replaced)


def _lacking_columns() -> str:
    """The first column of a model of ours that the database doesn't have: a migration that was edited later."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT attrelid::regclass::text, attname FROM pg_attribute JOIN pg_class ON pg_class.oid = attrelid"
            " WHERE relkind IN ('r', 'p') AND relname LIKE 'audiences%%' AND attnum > 0 AND NOT attisdropped"
        )
        there = set(cursor.fetchall())
    wanted = [
        (model._meta.db_table, field.column)
        for model in apps.get_app_config("audiences").get_models()
        if model._meta.managed
        for field in model._meta.concrete_fields
    ]
    return next((f"{table}.{column}" for table, column in wanted if (table, column) not in there), "")


def _secrets_closed() -> str:
    """Without the name of an install: anybody may ask for health."""
    return f"a stored secret {UNREADABLE}" if encryption_problem() else ""


def encryption_problem() -> str:
    """The first stored secret that none of FIELD_ENCRYPTION_KEYS opens."""
    with connection.cursor() as cursor:
        cursor.execute(_SECRETS)
        stored = cursor.fetchall()
    for whose, hidden in stored:
        if hidden and hidden not in _opened:
            try:
                decrypt(hidden.encode())
            except (ImproperlyConfigured, ValueError):
                return f"{whose} {UNREADABLE}"
            if len(_opened) >= _OPENED_KEPT:
                _opened.clear()
            _opened.add(hidden)
    return ""
