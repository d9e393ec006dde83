"""``DATABASE_URL`` as Django's settings of the database."""

import re
from collections.abc import Mapping
from typing import Any

import psycopg
from django.core.exceptions import ImproperlyConfigured
from psycopg.conninfo import conninfo_to_dict, make_conninfo


def read(url: str, *, prepared: bool) -> dict[str, object]:
    """A URL as libpq reads it: several hosts, IPv6, sockets, and any of libpq's options behind the question mark."""
    if not url.startswith(("postgres://", "postgresql://")):
        raise ImproperlyConfigured("DATABASE_URL must start with postgres:// — PostgreSQL is the one engine.")
    try:
        options = conninfo_to_dict(url)
    except psycopg.Error as error:
        raise ImproperlyConfigured(f"DATABASE_URL can't be read: {_without_password(url, str(error))}.") from None
    _check_values(options)
    own = {django: str(options.pop(libpq, "") or "") for django, libpq in _OF_DJANGO.items()}
    return {
        "ENGINE": "audiences.database",
        **own,
        # Web threads keep their connection, and so do workers (workers/app.py).
        "CONN_MAX_AGE": None,
        # The backend notices without a round trip that a session was closed.
        "CONN_HEALTH_CHECKS": False,
        # Django reads choices with cursors that outlive a transaction; behind PgBouncer the next fetch uses another
        # session. No code here needs such cursors: long results are read in pages.
        "DISABLE_SERVER_SIDE_CURSORS": True,
        "OPTIONS": {
            # For each host. A lost network is noticed after 10 to 20 s instead of after minutes. These options
            # aren't sent to the server, so PgBouncer accepts them.
            "connect_timeout": 3,
            "tcp_user_timeout": 10_000,
            "keepalives_idle": 5,
            "keepalives_interval": 5,
            "keepalives_count": 3,
            "application_name": "lytics-sync",
            # Django would switch them off for the whole connection. Its own statements are never prepared.
            "prepare_threshold": 5 if prepared else None,
            **options,
        },
    }


_WHOLE_NUMBERS = {
    *("connect_timeout", "tcp_user_timeout"),
    *("keepalives", "keepalives_idle", "keepalives_interval", "keepalives_count"),
}
# A device, so no server has a socket there.
_NO_FOLDER = "/dev/null"
_OF_DJANGO = {"NAME": "dbname", "USER": "user", "PASSWORD": "password", "HOST": "host", "PORT": "port"}


def _check_values(options: Mapping[str, Any]) -> None:
    """Raise ``ImproperlyConfigured`` for a value with which no connection begins: every call would be answered 503."""
    for name in _WHOLE_NUMBERS & options.keys():
        if not re.fullmatch(r"\s*-?\d{1,9}\s*", str(options[name]), re.ASCII):
            raise ImproperlyConfigured(f"{name} in DATABASE_URL must be a whole number, not {options[name]!r}.")
    for port in str(options.get("port") or "").split(","):
        # It isn't named, because it may be a part of a password with an unquoted @.
        if not re.fullmatch(r"\s*(?:[1-9]\d{0,4})?\s*", port, re.ASCII) or int(port.strip() or 0) > 65_535:
            raise ImproperlyConfigured("A port in DATABASE_URL is not one from 1 to 65535.")
    # libpq checks all other values before it looks for a server. These servers can't exist.
    hosts = str(options.get("hostaddr") or options.get("host") or "").count(",") + 1
    nowhere = make_conninfo(**{**options, "host": ",".join([_NO_FOLDER] * hosts), "hostaddr": None})
    tried = psycopg.pq.PGconn.connect_start(nowhere.encode())
    words = tried.error_message.decode(errors="replace").strip()
    tried.finish()
    if _NO_FOLDER not in words:
        raise ImproperlyConfigured(f"DATABASE_URL can't be used: {words}.")


def _without_password(url: str, words: str) -> str:
    """libpq's error message without its quotations, because these may contain the password."""
    return re.sub(r'"[^"]*"', "…", words.strip().replace(url, "…"))
