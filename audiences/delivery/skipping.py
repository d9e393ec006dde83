"""Skipping: moving the cursors of an install over events that are not to be sent."""

from typing import NamedTuple

from django.db.models.functions import Now

from audiences import sql
from audiences.models import Lane


class Skipped(NamedTuple):
    odp_id: str
    events: int


_SQL = sql.beside(__file__)
_CLOSE_OPEN = _SQL.command("close_open_deliveries")
_SKIP_RECONCILING = _SQL.command("skip_reconciling")
_SKIP = _SQL.query("skip_events", Skipped._make)


def leased(install_id: int) -> bool:
    """Whether a worker holds any lane of the install now."""
    held = Lane.objects.filter(audience__install=install_id, lease_expires_at__gt=Now())
    return held.exists()


def end_requests(install_id: int) -> None:
    """Requests that were in flight or had failed stay as they are: nothing is sent again because of them."""
    _CLOSE_OPEN.run(install=install_id)
    _SKIP_RECONCILING.run(install=install_id)


def skip(install_id: int, *, skip_id: int) -> list[Skipped]:
    """Move every cursor to the end of its log without sending. Called inside a transaction, after ``end_requests``."""
    return _SKIP.run(install=install_id, skip=skip_id).all()
