"""Django's PostgreSQL backend that closes unusable sessions and limits the time of each round trip."""

import select
import threading
from typing import Any

import psycopg
from django.db.backends.postgresql import base
from django.db.utils import DatabaseErrorWrapper
from django.utils.functional import cached_property
from psycopg import generators, waiting
from psycopg.errors import ConnectionTimeout, _WaitTimeout
from psycopg.pq import ConnStatus, PipelineStatus, TransactionStatus

from audiences import sessions

# The most seconds for asking the server to cancel an abandoned statement.
_CANCEL_SECONDS = 2.0


class _Connection(psycopg.Connection[Any]):
    @cached_property
    def idle_poller(self) -> select.poll:
        """Made once: each request asks several times whether the session still exists."""
        poller = select.poll()
        poller.register(self.pgconn.socket, select.POLLIN)
        return poller

    def wait(self, gen: Any, interval: float = 0.1, timeout: float | None = None) -> Any:
        limit = sessions.limit_seconds()
        if timeout is not None or limit is None:
            return super().wait(gen, interval, timeout)
        try:
            return super().wait(gen, interval, limit)
        except _WaitTimeout:
            sessions.silence.begins()
            self._abandon()
            raise sessions.NoAnswerError(f"PostgreSQL gave no answer for {limit:g} s") from None

    def _abandon(self) -> None:
        """Close at once; a thread asks the server, which may be frozen, to stop the statement."""
        cancel = self.pgconn.cancel_conn()
        threading.Thread(target=_cancel, args=(cancel,), name="cancel", daemon=True).start()
        self.pgconn.finish()


def _cancel(cancel: Any) -> None:
    try:
        cancel.start()
        waiting.wait_conn(generators.cancel(cancel), timeout=_CANCEL_SECONDS)
    except (psycopg.Error, OSError):
        # The server ends the statement when it next writes to the closed connection.
        return
    finally:
        cancel.finish()


class _Database:
    """The module ``psycopg`` as Django's backend uses it, except that ``connect`` makes a ``_Connection``."""

    connect = staticmethod(_Connection.connect)

    def __getattr__(self, name: str) -> Any:
        return getattr(psycopg, name)


class _Errors(DatabaseErrorWrapper):
    wrapper: "DatabaseWrapper"

    def __exit__(self, exc_type: Any, exc_value: Any, traceback: Any) -> None:
        if exc_value is not None and sessions.ends_session(exc_value):
            self.wrapper.lost = sessions.state_of(exc_value) or "closed"
            self.wrapper.close()
        super().__exit__(exc_type, exc_value, traceback)


class DatabaseWrapper(base.DatabaseWrapper):
    Database = _Database()  # type: ignore[assignment] # typed as a module, but only its attributes are used
    # The SQLSTATE with which the last session was lost, or "closed". A caller that reads it clears it first.
    lost = ""
    # Whether a transaction was committed since a caller set this to False.
    committed = False

    @cached_property
    def wrap_database_errors(self) -> _Errors:
        return _Errors(self)

    def ensure_connection(self) -> None:
        self._close_if_hung_up()
        super().ensure_connection()

    def get_autocommit(self) -> bool:
        """Django asks before and after each request, right after the session was checked."""
        return self.autocommit if self.connection is not None else super().get_autocommit()

    def _close_if_hung_up(self) -> None:
        if self.connection is not None and not self.in_atomic_block and self._was_hung_up():
            self.close()

    def _was_hung_up(self) -> bool:
        """Whether PostgreSQL has closed an idle session, for example by a restart. Costs no round trip.

        PostgreSQL has nothing to say in an idle session, except that it ends or that a setting has changed.
        """
        pgconn = self.connection.pgconn
        if pgconn.status != ConnStatus.OK:
            return True
        if pgconn.transaction_status != TransactionStatus.IDLE or pgconn.pipeline_status != PipelineStatus.OFF:
            return False
        return bool(self.connection.idle_poller.poll(0)) and not self.is_usable()

    def get_new_connection(self, conn_params: dict[str, Any]) -> Any:
        with sessions.silence.asking():
            try:
                connection = super().get_new_connection(conn_params)
            except ConnectionTimeout:
                sessions.silence.begins()
                raise
            sessions.silence.ends()
            return connection

    def _commit(self) -> None:
        self.committed = True
        super()._commit()  # type: ignore[misc] # private, and not in the stubs
