"""PgBouncer in transaction mode before the PostgreSQL of the tests, set as docs/pgbouncer.ini advises."""

import os
import pwd
import shutil
import tempfile
from configparser import ConfigParser
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

import psycopg

from local.processes import Fleet, Program, free_port, listens
from lytics_sync.env import PROJECT_DIR
from tests.servers import PREFIX

MISSING = "no PgBouncer on PATH; `apt-get install pgbouncer` or PGBOUNCER=/path/to/one mends that"
POOL = 4

# What a session keeps after a transaction, beside the settings that PgBouncer itself carries from one to the next.
_LEFT = """
SELECT 'setting ' || name FROM pg_settings WHERE source = 'session' AND name NOT LIKE 'transaction_%'
    AND name NOT IN ('application_name', 'client_encoding', 'DateStyle', 'standard_conforming_strings', 'TimeZone')
UNION ALL SELECT 'statement ' || statement FROM pg_prepared_statements
UNION ALL SELECT 'cursor ' || statement FROM pg_cursors WHERE is_holdable
UNION ALL SELECT 'lock' FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()
UNION ALL SELECT 'table ' || relname FROM pg_class WHERE relnamespace = pg_my_temp_schema()
"""


def find() -> str | None:
    return shutil.which(os.environ.get("PGBOUNCER") or "pgbouncer", path=f"{os.environ['PATH']}:/usr/sbin")


class Bouncer:
    """A PgBouncer before the server at ``url``. It uses ``POOL`` connections in turn: code that relies on session state
    gets another session with its next transaction."""

    def __init__(self, url: str, **settings: str) -> None:
        server = urlsplit(url)
        user, password = unquote(server.username or ""), unquote(server.password or "")
        self.port = free_port()
        self.url = server._replace(netloc=f"{quote(user)}:{quote(password)}@127.0.0.1:{self.port}").geturl()
        # Directly below /tmp: the user nobody, which root becomes here, can't traverse pytest's folder.
        self.folder = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-"))
        (self.folder / "userlist.txt").write_text(f'"{user}" "{password}"\n', encoding="utf-8")
        (self.folder / "userlist.txt").chmod(0o600)
        advised = ConfigParser(delimiters="=", interpolation=None)
        advised.read(PROJECT_DIR / "docs" / "pgbouncer.ini", encoding="utf-8")
        advised["databases"] = {"*": f"host={server.hostname} port={server.port or 5432}"}
        advised["pgbouncer"].update(
            {
                "listen_addr": "127.0.0.1",
                "listen_port": str(self.port),
                "unix_socket_dir": "",
                "auth_file": str(self.folder / "userlist.txt"),
                "default_pool_size": str(POOL),
                "min_pool_size": str(POOL),
                "server_round_robin": "1",
                **settings,
            }
        )
        with (self.folder / "pgbouncer.ini").open("w", encoding="utf-8") as file:
            advised.write(file)
        self.fleet = Fleet(folder=self.folder, env=os.environ, tell=print)

    def start(self) -> None:
        path = find()
        assert path
        self.fleet.start(
            Program(
                name="pgbouncer",
                command=[path, str(self.folder / "pgbouncer.ini")],
                ready=lambda _pid: listens(self.port),
                identity=self._identity(),
            )
        )

    def left_behind(self, database: str) -> set[str]:
        """What the sessions of a database still hold of those who had them before."""
        with psycopg.connect(self.url_of(database), autocommit=True, prepare_threshold=None) as client:
            return {row[0] for _ in range(POOL) for row in client.execute(_LEFT)}

    def url_of(self, database: str) -> str:
        return urlsplit(self.url)._replace(path=f"/{database}").geturl()

    def _identity(self) -> str:
        """PgBouncer refuses root."""
        if os.geteuid() != 0:
            return "same"
        nobody = pwd.getpwnam("nobody")
        for path in (self.folder, *self.folder.glob("*.*")):
            os.chown(path, nobody.pw_uid, nobody.pw_gid)
        return f"{nobody.pw_uid}:{nobody.pw_gid}"

    def stop(self) -> None:
        self.fleet.stop()
        shutil.rmtree(self.folder, ignore_errors=True)
