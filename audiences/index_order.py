"""Reads that follow an index, whatever PostgreSQL estimates.

``ORDER BY … LIMIT 10001`` ends after 10,001 index entries only if PostgreSQL reads the index in that order. Where it
estimates that few rows match, it reads all of them and sorts them. It estimates so for a group of unknown size, and
for every group after a burst, until statistics are renewed.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from django.db import connection, transaction

from audiences import sql

_SQL = sql.beside(__file__)
_BEGIN = _SQL.command("follow_indexes")
_END = _SQL.command("choose_freely")


@contextmanager
def index_order() -> Iterator[None]:
    """A transaction whose sorted reads follow an index with that order, if there is one."""
    is_outermost = not connection.in_atomic_block
    with transaction.atomic(savepoint=False):
        _BEGIN.run()
        yield
        # In the transaction of the caller, the settings would last until its end.
        if not is_outermost:
            _END.run()
