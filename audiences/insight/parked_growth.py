"""Installs of which more items were parked within an hour than their limit allows."""

from datetime import datetime
from typing import NamedTuple

from audiences import sql
from audiences.index_order import index_order


class Growing(NamedTuple):
    """``since_at`` is when the oldest item that makes the limit was parked."""

    install: int
    since_at: datetime


_GROWING = sql.beside(__file__).query("growing", Growing._make)


def by_install() -> dict[int, datetime]:
    """By install id, without installs within their limit."""
    with index_order():
        return dict(_GROWING.run().all())
