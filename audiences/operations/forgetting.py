"""Forget one customer in one install: remove the identifier from log, ledger, parked items, request bodies and reports.

In the log a random token replaces the identifier, so event numbers and counts stay. The fold sends no event with such a
token, so neither waiting events nor a replay brings the person back to ODP. With ``tell_odp``, ODP gets exits first,
and the identifier is removed after their delivery, and after all requests that may name the person are reconciled: ODP
may apply one of them late, and then only the ledger knows that the person has left. A later event from Lytics creates
the customer again.
"""

import secrets
import threading
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import structlog
from django.conf import settings
from django.db import IntegrityError, transaction
from django.db.models import Q, QuerySet
from django.utils.crypto import salted_hmac
from django.utils.timezone import now

from audiences import request_bodies, sessions, sql
from audiences.delivery import account_switch, holds, unconfirmed
from audiences.delivery.fold import FORGOTTEN
from audiences.delivery.leases import REJECTED_BY_ODP
from audiences.encryption import opened
from audiences.insight import customer_texts
from audiences.models import Audience, Delivery, Forgotten, GuidedChange, Install, Lane, Membership, Parked, Resend
from audiences.operations import attempts, former_stores
from audiences.receiving import audience_lookup, ingest
from audiences.wake import wake
from lytics import times
from lytics.facts import Fact, Kind

log = structlog.get_logger(__name__)

_alone = threading.Lock()


class BusyError(Exception):
    """A worker has leased a lane of the person, a row is locked, or an event of the person was stored meanwhile. Try
    again in some seconds.
    """


class _Event(NamedTuple):
    audience_id: int
    sequence: int
    occurred_ns: int


class _Progress(NamedTuple):
    """How far a lane is delivered."""

    # The number of the last delivered event.
    delivered: int
    # The number of the last event that may be sent, if the audience is retired.
    end: int | None
    # Whether ODP has the audience.
    is_made: bool

    def has_to_send(self, sequence: int) -> bool:
        return self.is_made and self.delivered < sequence <= (sequence if self.end is None else self.end)


class _TakenOut(NamedTuple):
    events: int
    memberships: int


_SQL = sql.beside(__file__)
_FOLLOW_INDEX = _SQL.command("follow_index")
_EVENTS = _SQL.query("events", _Event._make)
_LATER = _SQL.query("later_events", _Event._make)
_TAKE_OUT = _SQL.query("take_out", _TakenOut._make)
_CLEAR_ANSWERS = _SQL.command("clear_answers")
_CLEAR_LANES = _SQL.command("clear_lanes")
_CLEAR_AUDIENCES = _SQL.command("clear_audiences")
_CLEAR_INSTALL = _SQL.command("clear_install")
_CLEAR_CHANGES = _SQL.command("clear_changes")
_CLEAR_TWINS = _SQL.command("clear_twins")
_DROP_PROFILES = _SQL.command("drop_profiles")
_SHORTEN_PROFILES = _SQL.command("shorten_profiles")
_DROP_DIFFERENCES = _SQL.command("drop_differences")
_CLEAR_LIST_PROFILES = _SQL.command("clear_list_profiles")
_DROP_SCANNED = _SQL.command("drop_scanned")
_MOVE_CURSORS = _SQL.command("move_cursors")
_MOVE_AUDIT_CURSORS = _SQL.command("move_audit_cursors")
_MOVE_RETIREMENT_CURSORS = _SQL.command("move_retirement_cursors")


def digest(identifier: str) -> str:
    """A keyed hash that proves whether a given identifier was forgotten, and doesn't reveal it."""
    return salted_hmac("audiences.forgotten", identifier, secret=settings.SECRET_KEY, algorithm="sha256").hexdigest()


def ask(install: Install, identifier: str, *, tell_odp: bool, by: str, reason: str = "") -> Forgotten | None:
    """Store the request for ``advance``. None while the customer is already being forgotten in the install.

    Without exits, it replaces an unfinished request with exits: ODP may never accept those, if its account is gone.
    """
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
        unfinished = Forgotten.objects.filter(install=install, digest=forgotten.digest, ended_at=None, tell_odp=True)
        waiting = None if tell_odp else unfinished.first()
        if waiting is not None:
            unfinished.update(tell_odp=False, by=by, reason=reason)
            waiting.refresh_from_db()
        return waiting
    return forgotten


def advance_all() -> None:
    """Continue all unfinished requests. A failing one doesn't stop the others.

    An ODP account that doesn't answer is asked once in a run, and a process has one run at a time, because such a
    request takes seconds.
    """
    if not _alone.acquire(blocking=False):
        return
    try:
        _advance_all()
    finally:
        _alone.release()


def _advance_all() -> None:
    silent: set[int] = set()
    for forgotten in Forgotten.objects.filter(ended_at=None).select_related("install").order_by("pk"):
        if forgotten.install_id in silent:
            continue
        work = partial(_is_silent, forgotten)
        if attempts.attempt("ask_audits", f"forgetting {forgotten.pk}", work, otherwise=False):
            silent.add(forgotten.install_id)


def _is_silent(forgotten: Forgotten) -> bool:
    """Go on with forgetting one customer. Returns whether an ODP account doesn't answer."""
    try:
        _advance(forgotten)
    except BusyError:
        return False
    except former_stores.SilentError:
        return True
    return False


def advance(forgotten: Forgotten) -> bool:
    """Return True when the person is forgotten, False while ODP has not accepted the exits. Raises ``BusyError``.

    A change to another ODP account copies the ledger, so the person is forgotten after it.
    """
    try:
        return _advance(forgotten)
    except former_stores.SilentError:
        return False


def _advance(forgotten: Forgotten) -> bool:
    if account_switch.is_changing(forgotten.install_id):
        return False
    if forgotten.tell_odp and not _odp_has_exits(forgotten):
        return False
    if forgotten.tell_odp and not former_stores.send_exits(forgotten.install_id, opened(forgotten.identifier)):
        return False
    try:
        return _take_out(forgotten)
    except sessions.LockedError as error:
        raise BusyError from error


def _odp_has_exits(forgotten: Forgotten) -> bool:
    """Append an exit for each audience that ODP may have the person in. Returns True once all exits are delivered."""
    if forgotten.exits is None:
        with transaction.atomic():
            row = Forgotten.objects.select_for_update().get(pk=forgotten.pk)
            if row.exits is None:
                row.exits = _append_exits(row)
                row.save(update_fields=["exits"])
        forgotten.exits = row.exits
        wake(forgotten.install_id)
    assert forgotten.exits is not None
    progress = progress_of(map(int, forgotten.exits))
    return not any(progress[int(pk)].has_to_send(sequence) for pk, sequence in forgotten.exits.items())


def repeat_exits(install_id: int) -> None:
    """Have exits appended again for all customers being forgotten, in the transaction that switches the mechanism of an
    audience: ODP got their exits by the previous mechanism."""
    Forgotten.objects.filter(install=install_id, tell_odp=True, ended_at=None).update(exits=None)


def progress_of(audience_ids: Iterable[int]) -> dict[int, _Progress]:
    lanes = Lane.objects.filter(pk__in=list(audience_ids))
    rows = lanes.values_list("pk", "delivered_sequence", "retired_sequence", "audience__provisioned_at")
    return {pk: _Progress(delivered, end, made_at is not None) for pk, delivered, end, made_at in rows}


def _append_exits(forgotten: Forgotten) -> dict[str, int]:
    """Append exits after all entries. Returns the number up to which the log has to be delivered, by audience id.

    A waiting entry needs an exit too, because a request under way, or one without a response, may have sent it. An
    audience that is being retired needs none: its members get exits by the retirement. Neither does one that ODP
    doesn't have: its exit might wait forever, as after a take-over, and ``former_stores`` sends one. Where ODP rejected
    the person's exit, ODP still has the person, also after the parked item was discarded. After a switch to another
    mechanism, an audience that the person has left needs one, too: an earlier exit went by another mechanism.
    """
    identifier, install = opened(forgotten.identifier), forgotten.install_id
    _FOLLOW_INDEX.run()
    events = _EVENTS.run(identifier=identifier, install=install).all()
    ledger = Membership.objects.filter(identifier=identifier, audience__install=install)
    if not GuidedChange.objects.filter(install=install, kind=GuidedChange.Kind.MECHANISM).exists():
        ledger = ledger.filter(Membership.MAY_BE_SHOWN)
    latest = dict(ledger.values_list("audience_id", "occurred_ns"))
    progress = progress_of({*latest, *(event.audience_id for event in events)})
    for event in events:
        if progress[event.audience_id].has_to_send(event.sequence):
            latest[event.audience_id] = max(event.occurred_ns, latest.get(event.audience_id, event.occurred_ns))
    latest = {pk: at for pk, at in latest.items() if progress[pk].is_made and progress[pk].end is None}
    at = times.from_moment(now())
    facts = {pk: [Fact("", "", identifier, Kind.EXIT, max(at, latest[pk]))] for pk in sorted(latest)}
    ingest.append(facts, received_at=now(), forced=True)
    last = Audience.objects.filter(pk__in=facts).values_list("pk", "last_sequence")
    return {str(pk): sequence for pk, sequence in last}


def _members(forgotten: Forgotten) -> QuerySet[Membership]:
    return Membership.objects.filter(
        identifier=opened(forgotten.identifier), is_member=True, audience__install=forgotten.install_id
    )


def _has_come_back(forgotten: Forgotten, events: Sequence[_Event], progress: Mapping[int, _Progress]) -> bool:
    """Whether ODP may have the person again, because an event after the exits was delivered or is waiting."""
    is_waiting = any(progress[event.audience_id].has_to_send(event.sequence) for event in events)
    in_odp = _members(forgotten).filter(rejected=False, audience__provisioned_at__isnull=False)
    return is_waiting or in_odp.exists()


def is_leaving(forgotten: Forgotten) -> bool:
    """Whether an unfinished take-over is still to read the person from the ledger of the old audience."""
    rows = Membership.objects.filter(Membership.MAY_BE_SHOWN, identifier=opened(forgotten.identifier))
    old = rows.filter(audience__install=forgotten.install_id).values("audience")
    return Resend.objects.filter(kind=Resend.Kind.LEAVE, ended_at=None, upto__in=old).exists()


def is_rejected(forgotten: Forgotten) -> bool:
    """Whether ODP rejected a change of the person. A person releases or discards the parked item."""
    who = {"install": forgotten.install_id, "identifier": opened(forgotten.identifier)}
    return Parked.objects.filter(**who, reason=REJECTED_BY_ODP, closed_at=None).exists()


def _take_out(forgotten: Forgotten) -> bool:
    """Remove the person. Returns False, and changes nothing, if ODP needs further exits first, or may need them."""
    identifier, install = opened(forgotten.identifier), forgotten.install_id
    who = {"identifier": identifier, "install": install}
    # Before the locks: it decrypts every parked item, and no delivery may wait for that.
    parked = customer_texts.parked_about(install, identifier)
    with sessions.brief_lock_wait():
        row = Forgotten.objects.select_for_update().filter(pk=forgotten.pk, ended_at=None).first()
        if row is None:
            return True
        if row.tell_odp and row.exits is None:  # the mechanism was switched after the exits
            forgotten.exits = None
            return False
        _FOLLOW_INDEX.run()
        log_ends = _log_ends(install)
        events = _EVENTS.run(**who).all()
        progress = _lock_lanes(install, {event.audience_id for event in events}, identifier)
        if forgotten.tell_odp and _has_come_back(forgotten, events, progress):
            forgotten.exits = None
            forgotten.save(update_fields=["exits"])
            return False
        places = {
            "audiences": [event.audience_id for event in events],
            "sequences": [event.sequence for event in events],
        }
        deliveries = customer_texts.deliveries_covering(**places)
        if forgotten.tell_odp and (
            unconfirmed.may_be_applied(deliveries) or is_rejected(forgotten) or is_leaving(forgotten)
        ):
            return False
        changed = {"deliveries": _out_of_deliveries(deliveries, identifier, forgotten.token)}
        changed["parked"] = _out_of_parked(parked, forgotten)
        replaced = {"install": install, "pattern": customer_texts.pattern(identifier), "token": forgotten.token}
        for statement in (_CLEAR_LANES, _CLEAR_INSTALL, _CLEAR_CHANGES, _CLEAR_TWINS):
            statement.run(**replaced)
        _lock_log(install, identifier, log_ends, found=set(events))
        _CLEAR_AUDIENCES.run(**replaced)
        taken_out = _TAKE_OUT.run(**who, **places, token=forgotten.token).one()
        assert taken_out is not None
        counts = taken_out._asdict()
        counts["profiles"] = _DROP_PROFILES.run(**who).changed + _SHORTEN_PROFILES.run(**who).changed
        counts["differences"] = _DROP_DIFFERENCES.run(**who).changed
        for statement in (
            _DROP_SCANNED,
            _CLEAR_LIST_PROFILES,
            _MOVE_CURSORS,
            _MOVE_AUDIT_CURSORS,
            _MOVE_RETIREMENT_CURSORS,
        ):
            statement.run(**who)
        counts |= changed
        Forgotten.objects.filter(pk=forgotten.pk).update(ended_at=now(), identifier="", counts=counts)
    forgotten.refresh_from_db()
    log.info("a customer was forgotten", install=forgotten.install.name, forgotten=forgotten.pk, **counts)
    return True


def _lock_lanes(install_id: int, of_events: set[int], identifier: str) -> dict[int, _Progress]:
    """Lock the lanes in the order that all writers use, and return the progress of each.

    Raises ``BusyError`` if one of them has a request under way.
    """
    ledger = Membership.objects.filter(identifier=identifier, audience__install=install_id)
    wanted = of_events | set(ledger.values_list("audience_id", flat=True))
    list(Lane.objects.select_for_update().filter(pk__in=wanted).order_by("pk"))
    if not holds.end_expired_leases(sorted(wanted)):
        raise BusyError
    return progress_of(wanted)


def _log_ends(install_id: int) -> dict[int, int]:
    """The last number of each audience of the install."""
    return dict(Audience.objects.filter(install=install_id).values_list("pk", "last_sequence"))


def _lock_log(install_id: int, identifier: str, before: Mapping[int, int], *, found: set[_Event]) -> None:
    """Keep events from being stored until the transaction ends. Raises ``BusyError`` if one of the person was stored
    since ``before``, the ends of the log, and isn't in ``found``.

    Whatever sends events again locks the audience first and reads them or the ledger then. So it has stored them by
    now, or will read neither. Called last, because calls of the install wait from here on.
    """
    audience_lookup.lock(_log_ends(install_id))
    grown = {pk: last for pk, last in _log_ends(install_id).items() if last > before.get(pk, 0)}
    if not grown:
        return
    after = [before.get(pk, 0) for pk in grown]
    later = _LATER.run(identifier=identifier, audiences=[*grown], after=after, last=[*grown.values()]).all()
    if set(later) - found:
        raise BusyError


def _out_of_deliveries(delivery_ids: Sequence[int], identifier: str, token: str) -> int:
    """Replace the identifier in stored requests and in ODP's answers. Returns the number of Deliveries changed."""
    said = customer_texts.pattern(identifier)
    changed = _CLEAR_ANSWERS.run(deliveries=delivery_ids, pattern=said, token=token).changed
    requests = Delivery.objects.filter(pk__in=delivery_ids, request__isnull=False)
    for pk, packed in requests.values_list("pk", "request"):
        body = request_bodies.unpack(bytes(packed or b""))
        if (cleared := customer_texts.out_of_request(body, identifier, token)) != body:
            changed += Delivery.objects.filter(pk=pk).update(request=request_bodies.pack(cleared.encode()))
    return changed


def _out_of_parked(named: Collection[int], forgotten: Forgotten) -> int:
    """Empty these items and those parked since, and close the open ones: they can't be released any more."""
    identifier = opened(forgotten.identifier)
    rows = Parked.objects.filter(Q(pk__in=named) | Q(install=forgotten.install_id, identifier=identifier))
    rows.filter(closed_at=None).update(closed_at=now(), closed_by=forgotten.by, resolution=Parked.Resolution.DISCARDED)
    return rows.update(raw=None, detail="", identifier=forgotten.token)
