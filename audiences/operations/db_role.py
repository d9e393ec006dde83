"""The database rights of web, workers and beat when they don't log in as the owner of the tables.

The owner runs the migrations. The processes' role reads and writes rows and can't alter tables. It can only append to
the log and can't delete recent history, so a compromised process can't either. It deletes old history through
functions of the owner.
"""

from django.apps import apps
from django.db import connection, transaction
from psycopg import sql

# Rows that the program itself takes away or replaces; all others stay.
DELETABLE = {"auth", "sessions", "contenttypes", "axes"}
DELETABLE_TABLES = {
    "audiences_worker",
    "audiences_pace",
    "audiences_profile",
    "audiences_minute",
    "audiences_rhythm",
    "audiences_twin",
    # Old reports, and the members of a scan that was compared.
    "audiences_audit",
    "audiences_difference",
    "audiences_scannedmember",
    # Old probes.
    "audiences_trial",
    # An install that was made by mistake (delivery/drafts.py). Foreign keys of calls and audiences protect the others.
    "audiences_install",
    "audiences_token",
    # The API token of an install, which a person removes.
    "audiences_lyticsaccount",
}
APPEND_ONLY = {"audiences_event", "django_admin_log"}
READ_ONLY = {"django_migrations", "django_content_type", "auth_permission"}
# Functions for changes that only the owner of the log may make; each does one thing.
FUNCTIONS = (
    *("summarise_events", "forget_customer", "prune_rows", "prune_events"),
    *("add_part", "analyze_log", "drop_part"),
)


def problem_of(role: str) -> str:
    """Why the role can't be the one of the processes; empty when it may be."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT tableowner FROM pg_tables WHERE tablename = 'audiences_event'")
        owners = cursor.fetchall()
    if (role,) in owners:
        return f"{role} owns the tables, and would lose rights that migrate needs. Name another role for the processes."
    if role in ("", "public"):  # to PostgreSQL, public is no role but all of them
        return "Name the role of the processes, not all roles."
    return ""


def grant(role: str) -> dict[str, str]:
    """Grant the role the rights that the processes need and revoke all others. Returns the rights by table.

    The owner runs it after ``migrate``, and again after each migration that creates a table. Raises
    ``ProgrammingError`` when the role doesn't exist.
    """
    rights = {table: _rights(app, table) for app, table in _tables()}
    rights["django_migrations"] = "SELECT"
    name = sql.Identifier(role)
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(sql.SQL("GRANT USAGE ON SCHEMA public TO {}").format(name))
        cursor.execute(sql.SQL("REVOKE CREATE ON SCHEMA public FROM {}").format(name))
        # PostgreSQL grants TEMPORARY to PUBLIC by default; no process needs it. A caller who doesn't own the database
        # only gets a warning here.
        database = sql.Identifier(str(connection.settings_dict["NAME"]))
        cursor.execute(sql.SQL("REVOKE TEMPORARY ON DATABASE {} FROM PUBLIC, {}").format(database, name))
        cursor.execute(sql.SQL("GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO {}").format(name))
        for table, words in rights.items():
            cursor.execute(sql.SQL("REVOKE ALL ON {} FROM {}").format(sql.Identifier(table), name))
            cursor.execute(sql.SQL("GRANT {} ON {} TO {}").format(sql.SQL(words), sql.Identifier(table), name))
        for function in FUNCTIONS:
            granted = sql.SQL("GRANT EXECUTE ON FUNCTION {} TO {}")
            cursor.execute(granted.format(sql.Identifier(function), name))
    return rights


def may_make_temporary_tables(role: str) -> bool:
    with connection.cursor() as cursor:
        cursor.execute("SELECT has_database_privilege(%(role)s, current_database(), 'TEMPORARY')", {"role": role})
        (may,) = cursor.fetchone()
    return bool(may)


def _tables() -> list[tuple[str, str]]:
    models = apps.get_models(include_auto_created=True)
    return sorted((model._meta.app_label, model._meta.db_table) for model in models if model._meta.managed)


def _rights(app: str, table: str) -> str:
    if table in READ_ONLY:
        return "SELECT"
    if table in APPEND_ONLY:
        return "SELECT, INSERT"
    may_delete = app in DELETABLE or table in DELETABLE_TABLES
    return "SELECT, INSERT, UPDATE, DELETE" if may_delete else "SELECT, INSERT, UPDATE"
