"""Whether this process can work: the schema fits, the database takes writes, stored secrets can be decrypted."""

from functools import cache
from typing import NamedTuple

from django.apps import apps
from django.core.exceptions import ImproperlyConfigured
from django.db import connection
from django.db.migrations.loader import MigrationLoader

from audiences import sessions, sql
from audiences.encryption import UNREADABLE, decrypt

# Ciphertexts that one of this process's keys has opened. A process never loses a key.
_opened: set[str] = set()
_OPENED_KEPT = 10_000
_columns_fit = False


class Applied(NamedTuple):
    app: str
    name: str


class Column(NamedTuple):
    table_name: str
    column_name: str


class Secret(NamedTuple):
    """A stored secret, encrypted, and whose it is."""

    whose: str
    hidden: str


_SQL = sql.beside(__file__)
_APPLIED = _SQL.query("applied_migrations", Applied._make)
_COLUMNS = _SQL.query("existing_columns", Column._make)
_SECRETS = _SQL.query("stored_secrets", Secret._make)


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
        (is_read_only,) = cursor.fetchone()
    return bool(is_read_only)


def schema_problem() -> str:
    """Migrations are checked each time, because an operator may migrate back; columns once per process."""
    global _columns_fit
    with connection.cursor() as cursor:
        cursor.execute("SELECT to_regclass('django_migrations') IS NOT NULL")
        (has_migrations,) = cursor.fetchone()
    if not has_migrations:
        return "the database is not migrated"
    missing = sorted(_expected() - set(_APPLIED.run().all()))
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
    """The first column of our models that the database lacks, as after a migration that was edited later."""
    there = set(_COLUMNS.run().all())
    wanted = [
        (model._meta.db_table, field.column)
        for model in apps.get_app_config("audiences").get_models()
        if model._meta.managed
        for field in model._meta.concrete_fields
    ]
    return next((f"{table}.{column}" for table, column in wanted if (table, column) not in there), "")


def _secrets_closed() -> str:
    """The problem of stored secrets, without the name of an install, because anybody can request the health page."""
    return f"a stored secret {UNREADABLE}" if encryption_problem() else ""


def encryption_problem() -> str:
    """Describe the first stored secret that no key in FIELD_ENCRYPTION_KEYS decrypts. Empty if all can be decrypted."""
    for whose, hidden in _SECRETS.run().all():
        if hidden and hidden not in _opened:
            try:
                decrypt(hidden.encode())
            except (ImproperlyConfigured, ValueError):
                return f"{whose} {UNREADABLE}"
            if len(_opened) >= _OPENED_KEPT:
                _opened.clear()
            _opened.add(hidden)
    return ""
