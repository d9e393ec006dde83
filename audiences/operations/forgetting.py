"""Forget one customer in one install: remove the identifier from log, ledger, parked items, request bodies and reports.

In the log a random token replaces the identifier, so event numbers and counts stay. The fold sends no event with such a
token, so neither waiting events nor a replay brings the person back to ODP. With ``tell_odp``, ODP gets exits first,
and the identifier is removed after their delivery. A later event from Lytics creates the customer again.
"""

import json
import secrets
from collections.abc import Collection, Sequence
from typing import NamedTuple

import structlog
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.db import IntegrityError, transaction
from django.db.models import Q
from django.utils.crypto import salted_hmac
from django.utils.timezone import now

from audiences import request_bodies, sql
from audiences.delivery import account_switch, holds
from audiences.delivery.fold import FORGOTTEN
from audiences.encryption import decrypt, opened
from audiences.models import Audience, Delivery, Forgotten, Install, Lane, Membership, Parked
from audiences.operations import former_stores
from audiences.receiving import ingest
from audiences.wake import wake
from lytics import times
from lytics.facts import Fact, Kind

log = structlog.get_logger(__name__)

# The number of parked items decrypted at a time.
PIECE = 200


class BusyError(Exception):
    """A worker has leased a lane of the person. Try again in some seconds."""


class _Event(NamedTuple):
    audience_id: int
    sequence: int


class _Id(NamedTuple):
    id: int


class _TakenOut(NamedTuple):
    events: int
    memberships: int


_SQL = sql.beside(__file__)
_FOLLOW_INDEX = _SQL.command("follow_index")
_EVENTS = _SQL.query("events", _Event._make)
_DELIVERIES = _SQL.query("deliveries", _Id._make)
_TAKE_OUT = _SQL.query("take_out", _TakenOut._make)
_CLEAR_ANSWERS = _SQL.command("clear_answers")
_CLEAR_LANES = _SQL.command("clear_lanes")
_DROP_PROFILES = _SQL.command("drop_profiles")
_DROP_DIFFERENCES = _SQL.command("drop_differences")
_DROP_SCANNED = _SQL.command("drop_scanned")
_MOVE_CURSORS = _SQL.command("move_cursors")
_MOVE_AUDIT_CURSORS = _SQL.command("move_audit_cursors")
_MOVE_RETIREMENT_CURSORS = _SQL.command("move_retirement_cursors")


def digest(identifier: str) -> str:
    """A keyed hash that proves whether a given identifier was forgotten, and doesn't reveal it."""
    return salted_hmac("audiences.forgotten", identifier, secret=settings.SECRET_KEY, algorithm="sha256").hexdigest()


def was_forgotten(identifier: str) -> list[Forgotten]:
    return list(Forgotten.objects.filter(digest=digest(identifier)).select_related("install"))


def ask(install: Install, identifier: str, *, tell_odp: bool, by: str, reason: str = "") -> Forgotten | None:
    """Store the request; ``go_on`` does the work. None while the customer is already being forgotten in the install."""
    forgotten = Forgotten(
        install=install,
        digest=digest(identifier),
        identifier=identifier,
        token=f"{FORGOTTEN}{secrets.token_hex(12)}",
        tell_odp=tell_odp,
        by=by,
        reason=reason,
    )
    try:
        with transaction.atomic():
            forgotten.save(force_insert=True)
    except IntegrityError:
        return None
    return forgotten


def go_on_all() -> None:
    """Continue all unfinished requests. A failing one doesn't stop the others."""
    for forgotten in Forgotten.objects.filter(ended_at=None).select_related("install").order_by("pk"):
        try:
            go_on(forgotten)
        except BusyError:
            continue
        except Exception:
            log.exception("a customer could not be forgotten", install=forgotten.install.name, forgotten=forgotten.pk)


def go_on(forgotten: Forgotten) -> bool:
    """Return True when the person is forgotten, False while ODP has not accepted the exits. Raises ``BusyError``.

    A change to another ODP account copies the ledger, so the person is forgotten after it.
    """
    if account_switch.is_changing(forgotten.install_id):
        return False
    if forgotten.tell_odp and not _odp_has_exits(forgotten):
        return False
    if forgotten.tell_odp and not former_stores.have_exits(forgotten.install_id, opened(forgotten.identifier)):
        return False
    _take_out(forgotten)
    return True


def _odp_has_exits(forgotten: Forgotten) -> bool:
    """Append an exit for each audience that the person is a member of. Returns True once all exits are delivered."""
    if forgotten.exits is None:
        identifier = opened(forgotten.identifier)
        with transaction.atomic():
            row = Forgotten.objects.select_for_update().get(pk=forgotten.pk)
            if row.exits is None:
                members = Membership.objects.filter(
                    identifier=identifier, is_member=True, audience__install=forgotten.install_id
                )
                at = times.from_moment(now())
                facts = {
                    held.audience_id: [Fact("", "", identifier, Kind.EXIT, max(at, held.occurred_ns))]
                    for held in members.order_by("audience_id")
                }
                ingest.append(facts, received_at=now(), forced=True)
                last = Audience.objects.filter(pk__in=facts).values_list("pk", "last_sequence")
                row.exits = {str(pk): sequence for pk, sequence in last}
                row.save(update_fields=["exits"])
        forgotten.exits = row.exits
        wake(forgotten.install_id)
    assert forgotten.exits is not None
    delivered = dict(Lane.objects.filter(pk__in=map(int, forgotten.exits)).values_list("pk", "delivered_sequence"))
    return all(delivered.get(int(pk), 0) >= sequence for pk, sequence in forgotten.exits.items())


def _take_out(forgotten: Forgotten) -> None:
    identifier, install = opened(forgotten.identifier), forgotten.install_id
    who = {"identifier": identifier, "install": install}
    # Before the locks: it decrypts every parked item, and no delivery may wait for that.
    parked = _parked_about(install, identifier)
    with transaction.atomic():
        if not Forgotten.objects.select_for_update().filter(pk=forgotten.pk, ended_at=None).exists():
            return
        _FOLLOW_INDEX.run()
        events = _EVENTS.run(**who).all()
        _lock_lanes(install, {event.audience_id for event in events}, identifier)
        places = {
            "audiences": [event.audience_id for event in events],
            "sequences": [event.sequence for event in events],
        }
        _CLEAR_LANES.run(**who, token=forgotten.token)
        deliveries = [row.id for row in _DELIVERIES.run(**places).all()]
        taken_out = _TAKE_OUT.run(**who, **places, token=forgotten.token).one()
        assert taken_out is not None
        counts = taken_out._asdict()
        counts["profiles"] = _DROP_PROFILES.run(**who).changed
        counts["differences"] = _DROP_DIFFERENCES.run(**who).changed
        for statement in (_DROP_SCANNED, _MOVE_CURSORS, _MOVE_AUDIT_CURSORS, _MOVE_RETIREMENT_CURSORS):
            statement.run(**who)
        counts["deliveries"] = _out_of_requests(deliveries, identifier, forgotten.token)
        counts["parked"] = _out_of_parked(parked, forgotten)
        Forgotten.objects.filter(pk=forgotten.pk).update(ended_at=now(), identifier="", counts=counts)
    forgotten.refresh_from_db()
    log.info("a customer was forgotten", install=forgotten.install.name, forgotten=forgotten.pk, **counts)


def _lock_lanes(install_id: int, of_events: set[int], identifier: str) -> None:
    """Lock the lanes in the order that all writers use. Raises ``BusyError`` if one of them has a request under way."""
    ledger = Membership.objects.filter(identifier=identifier, audience__install=install_id)
    wanted = of_events | set(ledger.values_list("audience_id", flat=True))
    list(Lane.objects.select_for_update().filter(pk__in=wanted).order_by("pk"))
    if not holds.end_expired_leases(sorted(wanted)):
        raise BusyError


def _out_of_requests(delivery_ids: Sequence[int], identifier: str, token: str) -> int:
    """Replace the identifier in stored requests and in ODP's answers. Returns the number of Deliveries changed."""
    changed = _CLEAR_ANSWERS.run(deliveries=delivery_ids, identifier=identifier, token=token).changed
    spellings = {json.dumps(identifier), json.dumps(identifier, ensure_ascii=False)}
    requests = Delivery.objects.filter(pk__in=delivery_ids, request__isnull=False)
    for pk, packed in requests.values_list("pk", "request"):
        body = cleared = request_bodies.unpack(bytes(packed or b""))
        for spelling in spellings:
            cleared = cleared.replace(spelling, json.dumps(token))
        if cleared != body:
            changed += Delivery.objects.filter(pk=pk).update(request=request_bodies.pack(cleared.encode()))
    return changed


def _parked_about(install_id: int, identifier: str) -> set[int]:
    """The parked items that name the person. Items that the present keys can't decrypt are not searched."""
    named = set(Parked.objects.filter(install=install_id, identifier=identifier).values_list("pk", flat=True))
    inside = {json.dumps(identifier)[1:-1].encode(), identifier.encode()}
    stored = Parked.objects.filter(install=install_id, raw__isnull=False).order_by("pk").only("pk", "raw")
    unreadable = 0
    for parked in stored.iterator(chunk_size=PIECE):
        try:
            raw = decrypt(bytes(parked.raw or b""))
        except ImproperlyConfigured:
            unreadable += 1
            continue
        if any(spelling in raw for spelling in inside):
            named.add(parked.pk)
    if unreadable:
        log.warning("parked items can't be decrypted and were not searched", install=install_id, items=unreadable)
    return named


def _out_of_parked(named: Collection[int], forgotten: Forgotten) -> int:
    """Empty these items and those parked since, and close the open ones: they can't be released any more."""
    identifier = opened(forgotten.identifier)
    rows = Parked.objects.filter(Q(pk__in=named) | Q(install=forgotten.install_id, identifier=identifier))
    rows.filter(closed_at=None).update(closed_at=now(), closed_by=forgotten.by, resolution=Parked.Resolution.DISCARDED)
    return rows.update(raw=None, detail="", identifier=forgotten.token)
