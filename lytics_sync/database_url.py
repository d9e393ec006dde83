"""``DATABASE_URL`` as Django's settings of the database."""

import re

import psycopg
from django.core.exceptions import ImproperlyConfigured
from psycopg.conninfo import conninfo_to_dict


def read(url: str, *, prepared: bool) -> dict[str, object]:
    """A URL as libpq reads it: several hosts, IPv6, sockets, and any of libpq's options behind the question mark."""
    if not url.startswith(("postgres://", "postgresql://")):
        raise ImproperlyConfigured("DATABASE_URL must start with postgres:// — PostgreSQL is the one engine.")
    try:
        options = conninfo_to_dict(url)
    except psycopg.Error as error:
        raise ImproperlyConfigured(f"DATABASE_URL can't be read: {_without_password(url, str(error))}.") from None
    for name in _WHOLE_NUMBERS & options.keys():
        # libpq and psycopg check them when they connect: each page would be an error, and each call get a 503.
        if not re.fullmatch(r"\s*-?\d{1,9}\s*", str(options[name]), re.ASCII):
            raise ImproperlyConfigured(f"{name} in DATABASE_URL must be a whole number, not {options[name]!r}.")
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
_OF_DJANGO = {"NAME": "dbname", "USER": "user", "PASSWORD": "password", "HOST": "host", "PORT": "port"}


def _without_password(url: str, words: str) -> str:
    """libpq's error message without its quotations, because these may contain the password."""
    return re.sub(r'"[^"]*"', "…", words.strip().replace(url, "…"))
