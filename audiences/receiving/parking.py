"""Parking: what can't become Events is stored encrypted, with its reason, until a person releases or discards it."""

from collections.abc import Iterable
from datetime import datetime

from django.db import connection

from audiences.encryption import encrypt
from audiences.models import Install
from lytics import messages, reasons, times
from lytics.facts import Fact, ItemToPark, Kind

_COPY_PARKED = """
COPY audiences_parked (install_id, receipt_id, reason, detail, raw, parked_at, identifier, closed_by, resolution)
FROM STDIN (FORMAT BINARY)
"""


def park(install: Install, receipt_id: int, at: datetime, aside: Iterable[ItemToPark]) -> None:
    """Store items by COPY. An INSERT would hold a large body in memory several times, in hex at twice its size."""
    with connection.cursor() as cursor, cursor.copy(_COPY_PARKED) as copy:
        copy.set_types(["bigint", "bigint", "varchar", "text", "bytea", "timestamptz", "text", "varchar", "varchar"])
        for item in aside:
            detail = item.detail.replace("\x00", "")[:1000]
            raw = encrypt(_kept(install, item))
            copy.write_row((install.pk, receipt_id, item.reason, detail, raw, at, "", "", ""))


def _kept(install: Install, item: ItemToPark) -> bytes:
    """The bytes to store: without the profile, unless the identifier is missing, because any field may have it."""
    if item.reason in (reasons.NO_IDENTIFIER, reasons.UNUSABLE_IDENTIFIER):
        return item.raw
    return messages.envelope(item.raw, identifier_field=install.identifier_field)


def as_message(install: Install, fact: Fact) -> bytes:
    """A fact whose audience is unknown, in its original layout, so that a release can parse it."""
    word = fact.kind.name.lower()
    at = times.text(fact.occurred_ns)
    event = {"id": fact.segment_id, "event": word, **({} if fact.kind is Kind.CHANGE else {word: at})}
    profile = {messages.PROFILE_FIELD: fact.profile} if fact.profile else {}
    data = {**profile, install.identifier_field: fact.identifier, "segment_events": [event]}
    return messages.encode({"data": data, "meta": {"object": "user", "timestamp": at}})
