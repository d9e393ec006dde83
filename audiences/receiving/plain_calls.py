"""Plain calls, which only have events of known audiences: those of one install that wait together are stored together.

One transaction of two statements locks the audiences by the names that the calls use, and stores events and Receipts.
See docs/decisions/0032-group-commit.md. All other calls are stored by ``ingest.py``.
"""

from collections.abc import Sequence
from itertools import chain
from typing import NamedTuple

from django.db import connection

from audiences import prepared_statements, sessions, sql
from audiences.models import Install
from audiences.receiving import call_values
from audiences.receiving.call_values import Call, Facts, NewReceipt, Received, Stored
from audiences.receiving.group_commit import GroupCommit, GroupLostError
from lytics.facts import Columns, Reading

_SQL = sql.beside(__file__)
_LOCK_NAMED = _SQL.command("lock_named", prepared=True)
_STORE_NAMED = _SQL.query("store_named", Stored._make, prepared=True)

# The most events that a group of calls has. More would make each of its calls wait longer than it saves.
GROUP_EVENTS = 5_000
# How long a group waits for a lock, in milliseconds; then each of its calls is stored alone, by ``ingest.receive``. Two
# groups of two processes wait for each other for less. With no limit, one locked audience would stop all calls of its
# install.
GROUP_LOCK_MILLISECONDS = 500


class _Plain(NamedTuple):
    """A plain call on its way to ``_store``.

    ``install`` says how it was read. ``token_id`` is a token that has to be live when the call is stored.
    """

    columns: Columns
    receipt: NewReceipt
    install: Install
    token_id: int | None


def store(install: Install, reading: Reading, call: Call) -> Received | None:
    """Store a plain call, whose audiences all exist under the names it uses, in one round trip.

    None for any other call, of which nothing is stored here. Raises ``GroupLockedError`` when another transaction locks
    an audience of this call or of one that was to be stored with it.
    """
    if reading.to_park or install.forget_missing_identifiers or reading.claims:
        return None
    columns = reading.columns
    if not all(segment_id for segment_id, _ in columns.names):
        # An audience named by slug alone needs another look-up. Here it would keep its whole group from being stored.
        return None
    received = Received(reading.messages, len(columns.names), 0, reading.skipped, {})
    plain = _Plain(columns, call_values.receipt_of(reading, call, received), install, call.token_id)
    if connection.in_atomic_block:
        # The call belongs to this transaction, so no other thread may store it.
        stored = _store([plain])
        received.receipt = stored[0] if stored else None
    else:
        received.receipt = _store_in_group(plain, size=received.queued)
    return None if received.receipt is None else received


def _store_in_group(plain: _Plain, *, size: int) -> int | None:
    try:
        return _groups.store(plain.install.pk, plain, size=size)
    except GroupLostError:
        # PostgreSQL may be frozen. The next statement then needs a new session, for which one thread of the process
        # waits; on this session it would wait for DATABASE_WEB_SECONDS, and the next group with it.
        connection.close()
        raise


def _store(calls: Sequence[_Plain]) -> list[int] | None:
    """Store calls of one install together, and give the ids of their Receipts. None: nothing is stored.

    The events of an audience are inserted one after the other, whatever call they came with.
    """
    names, facts, numbers = _joined(calls)
    places: dict[tuple[str, str], list[int]] = {}
    if names and names.count(names[0]) == len(names):
        places[names[0]] = [*range(len(names))]
    else:
        for place, name in enumerate(names):
            if (some := places.get(name)) is None:
                some = places[name] = []
            some.append(place)
        order = [*chain.from_iterable(places.values())]
        facts = Facts(
            [facts.identifiers[place] for place in order],
            [facts.kinds[place] for place in order],
            [facts.occurred_ns[place] for place in order],
        )
        numbers = [numbers[place] for place in order]
    receipts = [call.receipt for call in calls]
    values = call_values.parameters(facts, counts=[*map(len, places.values())], calls=numbers, receipts=receipts)
    segments = prepared_statements.texts(segment_id for segment_id, _ in places)
    slugs = prepared_statements.texts(slug for _, slug in places)
    install = calls[0].install
    lock_milliseconds = None if connection.in_atomic_block else str(GROUP_LOCK_MILLISECONDS)
    with sessions.allow_more(sum(receipt.bytes for receipt in receipts) / 1_000_000):
        with prepared_statements.pipeline():
            _LOCK_NAMED.run(install=install.pk, segments=segments, lock_milliseconds=lock_milliseconds)
            storing = _STORE_NAMED.run(
                install=install.pk,
                segments=segments,
                slugs=slugs,
                tokens=prepared_statements.numbers({call.token_id for call in calls if call.token_id is not None}),
                install_names=prepared_statements.texts({call.install.name for call in calls}),
                identifier_fields=prepared_statements.texts({call.install.identifier_field for call in calls}),
                top_levels=prepared_statements.numbers(
                    {int(call.install.allow_top_level_identifier) for call in calls}
                ),
                **values,
            )
        stored = storing.one()
    return None if stored is None else stored.receipts


def _joined(calls: Sequence[_Plain]) -> tuple[list[tuple[str, str]], Facts, list[str]]:
    """The facts of all calls: how they name their audiences, what is stored of them, and the numbers of their calls."""
    names, identifiers, kinds, occurred_ns, _ = zip(*(call.columns for call in calls), strict=True)
    join = chain.from_iterable
    numbers = join([str(number)] * len(some) for number, some in enumerate(names, start=1))
    return [*join(names)], Facts([*join(identifiers)], [*join(kinds)], [*join(occurred_ns)]), [*numbers]


_groups = GroupCommit(_store, largest=GROUP_EVENTS)
