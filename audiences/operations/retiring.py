"""Retiring audiences: their members get exits, then their real-time audiences are deleted in ODP.

The exits go through the log and the lane, so they are in order with Lytics' events. The time of an exit is just after
that of the member's last event, so any later event from Lytics is newer. When few members are left, one transaction
appends the last exits and marks the end of the audience's log (``Lane.retired_sequence``). Events after that end are
stored and held until a person takes the audience back.

Taking back appends an entry for each exit, with a time just after it, and removes the mark. Events that Lytics sent
after the exit are newer, so they win. If the log had ended, the whole ledger is sent again: ODP may have older members
in the field or list. Each step is one transaction, so a crash neither repeats nor omits an exit. The only writer of
Retirements.
"""

import time
from collections.abc import Callable, Sequence
from functools import partial

import structlog
from django.conf import settings
from django.db import IntegrityError, transaction
from django.db.models import F, Q
from django.db.models.functions import Now
from django.utils.timezone import now

from audiences import sessions
from audiences.agreement import audits
from audiences.delivery import account_switch, fold, holds, provision, shared_ids, unmaking
from audiences.delivery.fold import Entry
from audiences.delivery.odp_account import Gate, mechanism_for
from audiences.models import Again, Audience, Audit, Event, GuidedChange, Install, Lane, Membership, Resend, Retirement
from audiences.operations import attempts, resends, twins
from audiences.receiving import audience_lookup, backlog, ingest, resend_causes
from audiences.wake import wake, wake_resend
from lytics.facts import Fact, Kind

log = structlog.get_logger(__name__)

# Exits appended in one transaction. A larger chunk holds the audience's lock for longer, and calls wait for that lock.
CHUNK = 2_000
# The most waiting events, and the most members, for the last transaction: it reads all of them under the lock.
LAST = 5_000

UNFINISHED = Q(ended_at=None, undone_at=None) | Q(undone_at__isnull=False, restored_at=None)


# --- requests of a person ----------------------------------------------------------------------------------


def retire(audience: Audience, *, by: str, reason: str) -> bool:
    """Begin to retire an audience. False when it is retired already, or being retired or taken back."""
    try:
        with transaction.atomic():
            Retirement.objects.create(
                audience=audience,
                by=by,
                reason=reason,
                began_sequence=Audience.objects.values_list("last_sequence", flat=True).get(pk=audience.pk),
                total=Lane.objects.values_list("member_count", flat=True).get(pk=audience.pk),
            )
            transaction.on_commit(lambda: wake_resend(audience.install_id), robust=True)
    except IntegrityError as error:
        if "one_retirement_per_audience" not in str(error):
            raise
        return False
    return True


def retire_all(install: Install, *, by: str, reason: str) -> list[Audience]:
    """Begin to retire all audiences of an install. Returns those that weren't retired yet."""
    return [audience for audience in to_retire(install) if retire(audience, by=by, reason=reason)]


def to_retire(install: Install) -> Sequence[Audience]:
    current = Retirement.objects.filter(restored_at=None).values("audience")
    return list(Audience.objects.filter(install=install).exclude(pk__in=current).select_related("lane").order_by("pk"))


def take_back(audience: Audience, *, by: str, reason: str) -> bool:
    """Stop retiring an audience, or use a retired one again. False when it isn't retired.

    Held events are delivered, customers who got an exit by the retirement enter again, and ODP gets the audience again.
    """
    with transaction.atomic():
        current = Retirement.objects.select_for_update().filter(audience=audience, undone_at=None).first()
        if current is None:
            return False
        Retirement.objects.filter(pk=current.pk).update(
            undone_at=Now(), undone_by=by, undone_reason=reason, restored_sequence=current.began_sequence
        )
        holds.take_back(audience.pk)
        provision.look_again(audience.pk)
        taken = resends.take_overs_of(audience).order_by("-pk").first()
        if taken is not None and taken.audience is not None:  # ODP has its members under the id that it had before
            resends.leave(audience, taken.audience, after=0, by=by, reason=reason)
        transaction.on_commit(lambda: wake(audience.install_id), robust=True)
        transaction.on_commit(lambda: wake_resend(audience.install_id), robust=True)
    return True


def delete_again(audience: Audience) -> None:
    """Have the real-time audience of a retired audience deleted, because it has another ODP id, which ODP has."""
    Retirement.objects.filter(audience=audience, undone_at=None, emptied_at__isnull=False).update(ended_at=None)
    transaction.on_commit(lambda: wake_resend(audience.install_id), robust=True)


def current(audience: Audience) -> Retirement | None:
    """The audience's current retirement: under way, done, or being taken back. None when the audience isn't retired."""
    return Retirement.objects.filter(audience=audience, restored_at=None).first()


# --- steps of the workers ----------------------------------------------------------------------------


def due() -> list[int]:
    """Return the installs with an unfinished retirement. A switched-off install delivers nothing, so it isn't due."""
    # Two queries, because PostgreSQL would plan one joined query from all audiences.
    unfinished = list(Retirement.objects.filter(UNFINISHED).values_list("audience_id", flat=True))
    waiting = Audience.objects.filter(pk__in=unfinished, install__enabled=True).order_by()
    return list(waiting.values_list("install_id", flat=True).distinct()) if unfinished else []


def advance_all(
    install_id: int, *, seconds: float, gate: Gate | None = None, gives_way: Callable[[], bool] = bool
) -> None:
    """Advance the install's unfinished retirements in turn, one step each, for at most ``seconds`` or until others wait
    for the slot."""
    until = time.monotonic() + seconds
    unfinished = Retirement.objects.filter(UNFINISHED, audience__install=install_id).order_by("pk")
    while sum([_try_to_advance(pk, gate) for pk in unfinished.values_list("pk", flat=True)]):
        if time.monotonic() > until or gives_way():
            wake_resend(install_id)
            return


def _try_to_advance(retirement_id: int, gate: Gate | None) -> bool:
    """Advance one retirement. If it fails, it is tried again later, and the other retirements go on."""
    work = partial(advance, retirement_id, gate=gate)
    return attempts.attempt("resend", f"retirement {retirement_id}", work, otherwise=False)


def advance(retirement_id: int, *, gate: Gate | None = None) -> bool:
    """Take one step. Returns False when there is none now.

    The retirement is done, waits, or is locked by another worker, its audience is locked, or the install is switched
    off.
    """
    try:
        return _advance(retirement_id, gate)
    except sessions.LockedError:
        return False


def _advance(retirement_id: int, gate: Gate | None) -> bool:
    with sessions.brief_lock_wait():
        unlocked = Retirement.objects.select_for_update(skip_locked=True, of=("self",))
        found = unlocked.filter(UNFINISHED, pk=retirement_id, audience__install__enabled=True)
        retirement = found.select_related("audience__install", "audience__lane").first()
        if retirement is None:
            return False
        if GuidedChange.objects.filter(audience=retirement.audience_id, ended_at=None).exists():
            return False  # the change rewrites this audience; it leaves out audiences whose retirement began before
        if account_switch.is_changing(retirement.audience.install_id):
            return False  # exits have to reach the account that the audience is deleted in
        if retirement.undone_at is not None:
            return _restore(retirement)
        if retirement.emptied_at is None:
            if is_read_by_take_over(retirement.audience_id):
                return False
            room, _ = backlog.room(retirement.audience.install_id, retirement.audience_id)
            return bool(room) and (_leave(retirement, room) or _end_log(retirement))
        lane = retirement.audience.lane
        is_delivered = lane.retired_sequence is not None and lane.delivered_sequence >= lane.retired_sequence
        if not is_delivered and lane.retired_at is None:
            return False
    return _remove(retirement, gate)


def is_read_by_take_over(audience_id: int) -> bool:
    """Whether a take-over of the audience's ODP id still reads its members. After an exit it would leave them there."""
    return Resend.objects.filter(kind=Resend.Kind.LEAVE, upto=audience_id, ended_at=None).exists()


def _leave(retirement: Retirement, room: int) -> bool:
    """Append exits for the next members in the ledger. Returns False when the ledger has no more.

    A customer with waiting events gets none here, but in ``_end_log``. A waiting event may be an exit of Lytics with
    the time of the customer's entry, and the exit appended here would be newer.
    """
    audience = retirement.audience
    members = Membership.objects.filter(
        audience=audience, is_member=True, identifier__gt=retirement.after_identifier
    ).order_by("identifier")
    if not members.exists():
        return False
    # Before they are read: a customer who is forgotten in between would be appended again.
    audience_lookup.lock([audience.pk])
    rows = list(members[: min(CHUNK, room)])
    if not rows:
        return True
    step = mechanism_for(audience).time_step_ns
    waiting = Event.objects.filter(audience=audience, sequence__gt=retirement.audience.lane.delivered_sequence)
    moving = set(waiting.filter(identifier__in=[row.identifier for row in rows]).values_list("identifier", flat=True))
    exits = [
        Fact("", "", row.identifier, Kind.EXIT, row.occurred_ns + step) for row in rows if row.identifier not in moving
    ]
    _append(audience, exits, Again.Cause.RETIRE)
    _move(retirement, done=F("done") + len(exits), after_identifier=rows[-1].identifier)
    return True


def _end_log(retirement: Retirement) -> bool:
    """Append the last exits and mark the end of the log. False when too much is still to be delivered.

    With the audience locked no event is added, so these exits cover the ledger and all undelivered events. The lane is
    locked before the audience, as in all code that locks both.
    """
    pk = retirement.audience_id
    lane = Lane.objects.select_for_update().get(pk=pk)
    audience_lookup.lock([pk])
    audience = Audience.objects.select_related("install").get(pk=pk)
    if Resend.objects.filter(audience=audience, ended_at=None).exists():
        return False
    members = Membership.objects.filter(audience=audience, is_member=True)
    if audience.provisioned_at is None and not members.exists():
        return _end_unmade(retirement, audience)
    if audience.last_sequence - lane.delivered_sequence > LAST:
        return False
    if members[: LAST + 1].count() > LAST:  # many members have entered since their identifiers were passed: begin again
        _move(retirement, after_identifier="")
        return True
    step = mechanism_for(audience).time_step_ns
    remaining = _still_members(audience, after=lane.delivered_sequence)
    exits = [Fact("", "", entry.identifier, Kind.EXIT, entry.occurred_ns + step) for entry in remaining]
    _append(audience, exits, Again.Cause.RETIRE)
    holds.end_log(pk, audience.last_sequence + len(exits))
    _move(retirement, done=F("done") + len(exits), emptied_at=Now())
    return True


def _still_members(audience: Audience, *, after: int) -> list[Entry]:
    """The deciding entry of each customer who will be a member when the whole log is delivered."""
    events = Event.objects.filter(audience=audience, sequence__gt=after)
    entries = [
        Entry(event.sequence, event.identifier, event.kind, event.occurred_ns, event.forced)
        for event in events.order_by("sequence")
    ]
    named = {entry.identifier for entry in entries}
    held = Membership.objects.filter(Q(is_member=True) | Q(identifier__in=named), audience=audience)
    kinds = {True: fold.ENTER, False: fold.EXIT}
    entries += [Entry(row.sequence, row.identifier, kinds[row.is_member], row.occurred_ns) for row in held]
    return [entry for entry in fold.newest(entries).values() if entry.kind != fold.EXIT]


def _end_unmade(retirement: Retirement, audience: Audience) -> bool:
    """End the log of an audience that has no members in ODP. Returns whether the next step is due.

    After a take-over, ODP has the newer segment's former audience under this id, and the next step deletes that.
    """
    if audience.making_until_at is not None and audience.making_until_at > now():
        return False
    holds.end_log(audience.pk, audience.last_sequence)
    holds.retire(audience.pk)
    provision.give_up(audience.pk)
    is_to_delete = shared_ids.was_exchanged(audience)
    _move(retirement, emptied_at=Now(), ended_at=None if is_to_delete else Now())
    return is_to_delete


def _remove(retirement: Retirement, gate: Gate | None) -> bool:
    """Delete the real-time audience in ODP. Runs outside a transaction, because it sends requests."""
    audience = retirement.audience
    unmade = unmaking.unmake(audience, gate=gate)
    if unmade is None:
        return False
    with transaction.atomic():
        # Rows are locked in the order of ``take_back``: the retirement, the lane, the audience.
        still = Retirement.objects.filter(pk=retirement.pk, undone_at=None)
        is_retired = bool(still.update(ended_at=Now(), left_in_odp=unmade.left))
        if is_retired:
            holds.retire(audience.pk)
            twins.forget(audience)
        if not unmaking.end(unmade.making):
            transaction.set_rollback(True)
            return False
    if is_retired:
        log.info("audience retired", audience=audience.odp_id, left_in_odp=unmade.left)
    return True


def knows_by_former_field(retirement: Retirement) -> bool:
    """Whether the install has got another identifier field since the retirement began."""
    since = retirement.audience.install.identifier_since_at
    return since is not None and retirement.asked_at < since


def _restore(retirement: Retirement) -> bool:
    """Append a chunk of entries, one for each exit that the retirement appended.

    Customers who left before the install got another identifier field don't enter: they are known by the former field,
    and only Lytics knows their values of the new one. An audit finds them, and its repair enters them.
    """
    audience = retirement.audience
    room, _ = backlog.room(audience.install_id, audience.pk)
    if not room:
        return False
    ranges = Again.objects.filter(
        audience=audience, cause=Again.Cause.RETIRE, last_sequence__gt=retirement.restored_sequence
    )
    found = ranges.order_by("last_sequence").first()
    if found is None:
        if retirement.emptied_at is not None or resends.take_overs_of(audience).exists():
            # Since then no request was reconciled, and a change to another account has left the audience out. After a
            # take-over of its ODP id, its members may never have been sent under the present one.
            reason = f"taken back: {retirement.undone_reason}"
            if not resends.resync(audience, by=retirement.undone_by, reason=reason):
                return False  # another resync, which began before, is unfinished
        _move(retirement, restored_at=Now())
        if knows_by_former_field(retirement):
            audits.ask(audience, mode=Audit.Mode.SAMPLE, by=retirement.undone_by, sample=settings.AUDIT_SAMPLE)
        return False
    first = max(found.first_sequence, retirement.restored_sequence + 1)
    last = min(found.last_sequence, first + min(CHUNK, room) - 1)
    audience_lookup.lock([audience.pk])  # as in ``_leave``
    exits = list(Event.objects.filter(audience=audience, sequence__gte=first, sequence__lte=last).order_by("sequence"))
    step = mechanism_for(audience).time_step_ns
    since = audience.install.identifier_since_at
    left = _left_since(audience, exits, after=first, step=step)
    entries = [
        Fact("", "", event.identifier, Kind.ENTER, event.occurred_ns + step)
        for event in exits
        if (since is None or event.received_at >= since) and event.identifier not in left
    ]
    _append(audience, entries, Again.Cause.RESTORE)
    _move(retirement, restored_sequence=last)
    return True


def _left_since(audience: Audience, exits: list[Event], *, after: int, step: int) -> set[str]:
    """The customers of these exits of the retirement who have left by what Lytics has sent since. An exit of Lytics
    that is older than the one of the retirement, such as one at the time of the entry, would be older than the entry
    that follows."""
    later = Event.objects.filter(audience=audience, sequence__gt=after, forced=False)
    later = later.filter(identifier__in={event.identifier for event in exits})
    entries = [Entry(event.sequence, event.identifier, fold.ENTER, event.occurred_ns - step) for event in exits]
    entries += [Entry(event.sequence, event.identifier, event.kind, event.occurred_ns) for event in later]
    return {identifier for identifier, entry in fold.newest(entries).items() if entry.kind == fold.EXIT}


def _append(audience: Audience, facts: list[Fact], cause: Again.Cause) -> None:
    if not facts:
        return
    ingest.append({audience.pk: facts}, received_at=now(), forced=True)
    resend_causes.note({audience.pk: [(len(facts), None)]}, cause)
    transaction.on_commit(lambda: wake(audience.install_id), robust=True)


def _move(retirement: Retirement, **values: object) -> None:
    Retirement.objects.filter(pk=retirement.pk).update(**values)
