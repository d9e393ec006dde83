"""Resends: replay, resync, take-over, repair, and release of all items parked for one reason. The writer of Resends.

An operator's request is stored as a Resend. Any worker advances it, one chunk at a time. A chunk is one transaction
that appends to the log and moves the Resend's position, so a crash neither repeats nor omits an event. The events keep
their old times and are forced: they are sent even when the ledger agrees, and folded when something newer is known.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any

import structlog
from django.db import IntegrityError, transaction
from django.db.models import Exists, F, OuterRef, Q, QuerySet
from django.db.models.functions import Now
from django.utils.timezone import now

from audiences import ledger_size, sessions
from audiences.agreement import audits, repairs
from audiences.delivery import provision, shared_ids
from audiences.models import Again, Audience, Audit, Install, Lane, Membership, Parked, Resend, Run
from audiences.operations import attempts, parked_items
from audiences.receiving import audience_lookup, backlog, identifier_lists, ingest, log_range, resend_causes
from audiences.receiving.log_range import Stretch
from audiences.wake import wake, wake_resend
from lytics.facts import Fact, Kind
from odp.outcomes import Outcome

log = structlog.get_logger(__name__)

# Events appended in one transaction. A larger chunk holds the audience's lock longer, and its calls wait for it.
CHUNK = 2_000
# The name shown for resyncs after memberships were lost in ODP.
SCHEDULE = "schedule"


@dataclass(frozen=True)
class Step:
    """What one chunk did, and where the next one begins."""

    done: int = 0
    stayed: int = 0
    after: int = 0
    after_identifier: str = ""
    over: bool = False
    # The audience whose members leave next, if it is another one.
    following: Audience | None = None


# --- what a person asks for ----------------------------------------------------------------------------------


def replay(audience: Audience, stretch: Stretch, *, start: datetime, end: datetime, by: str, reason: str) -> bool:
    """Have the events that were received in a span of time appended again. False while another replay is unfinished.

    ``stretch`` ends at the end of the log when it was found, so a replay never reads its own copies. Its events that
    haven't been delivered yet are sent twice, which is harmless.
    """
    return _ask(
        Resend(
            kind=Resend.Kind.REPLAY,
            install=audience.install,
            audience=audience,
            received_from=start,
            received_to=end,
            after=stretch.first - 1,
            upto=stretch.last,
            total=stretch.events,
            by=by,
            reason=reason,
        )
    )


def resync(audience: Audience, *, by: str, reason: str, since: int = 0) -> bool:
    """Append the audience's ledger again: the rows whose deciding event has a number above ``since``, by default all.
    False while another resync is unfinished.

    The ledger may change during the resync without harm: a chunk reads delivered state, and newer events are in the
    log. If a newer event is delivered first, the fold drops our older copy; if it is later, it is delivered later. The
    audience is checked in ODP first, and created again if it is missing.
    """
    resend = Resend(kind=Resend.Kind.RESYNC, install=audience.install, audience=audience, by=by, reason=reason)
    resend.upto, resend.total = since, ledger_size.of(audience, since=since)
    with transaction.atomic():
        asked = _ask(resend)
        if asked:
            provision.look_again(audience.pk)
    return asked


def send_lost(audience: Audience) -> None:
    """Have the whole ledger sent again, because ODP lost the audience's memberships.

    A resync is enough if ODP has accepted nothing of the audience since it was asked for, as in an audience that each
    *Unblock* finds blocked again. Otherwise ODP may have lost what it accepted since: people of the resync, or others
    whom the resync didn't know as members. So it ends, and another one begins.
    """
    reason = "ODP no longer had the members"
    with transaction.atomic():
        resyncs = Resend.objects.filter(kind=Resend.Kind.RESYNC, audience=audience)
        runs = Run.objects.filter(audience=audience).exclude(outcome=Outcome.REJECTED)
        since = runs.exclude(closed_at__lt=OuterRef("asked_at"))
        if resyncs.filter(~Exists(since), upto=0, stopped_by="").exists():
            return
        resyncs.filter(ended_at=None).update(ended_at=Now(), stopped_by=SCHEDULE)
        resend = Resend(
            kind=Resend.Kind.RESYNC, install=audience.install, audience=audience, by=SCHEDULE, reason=reason
        )
        resend.upto, resend.total = 0, ledger_size.of(audience)
        if resend.total:
            _ask(resend)


def leave(audience: Audience, old: Audience, *, after: int, by: str, reason: str) -> bool:
    """Append exits for members of the old audience who aren't in the new one, which has taken over its ODP id; also for
    those whose deciding event has a number above ``after``. If the new one reuses the id of a retired audience, those
    of all retired audiences with that id follow.

    False while another take-over of the audience is unfinished.
    """
    return _ask(
        Resend(
            kind=Resend.Kind.LEAVE,
            install=audience.install,
            audience=audience,
            upto=old.pk,
            after=after,
            total=old.lane.member_count,
            by=by,
            reason=reason,
        )
    )


def take_overs_of(audience: Audience) -> QuerySet[Resend]:
    """The take-overs of the audience's ODP id by newer audiences of its install. It has had the former id of the newest
    one since."""
    leaving = Resend.objects.filter(kind=Resend.Kind.LEAVE, install=audience.install_id)
    return leaving.filter(upto=audience.pk, audience__gt=audience.pk)


def release_all(
    install: Install, parked_reason: str, *, upto: int, total: int, by: str, identifier_field: str = ""
) -> bool:
    """Have all released that is parked for a reason, up to an item. False while another such release is unfinished.

    With an ``identifier_field`` those items are read by that field, and the install stays as it is.
    """
    return _ask(
        Resend(
            kind=Resend.Kind.RELEASE,
            install=install,
            parked_reason=parked_reason,
            identifier_field=identifier_field,
            upto=upto,
            total=total,
            by=by,
        )
    )


def may_repair(audit: Audit) -> bool:
    """Whether the audit is the audience's newest one with a result, and found differences that a repair can correct."""
    return Audit.objects.filter(pk=audit.pk, is_newest=True).exists() and repairs.plan(audit).people > 0


def repair(audit: Audit, *, by: str, reason: str) -> bool:
    """Append the events that correct the differences of an audit, and audit again afterwards.

    False while another repair of the audience is unfinished, or when the audit isn't the audience's newest.
    """
    if not may_repair(audit):
        return False
    return _ask(
        Resend(
            kind=Resend.Kind.REPAIR,
            install_id=audit.install_id,
            audience_id=audit.audience_id,
            upto=audit.pk,
            total=repairs.plan(audit).people,
            by=by,
            reason=reason,
        )
    )


def _ask(asked: Resend) -> bool:
    try:
        with transaction.atomic():
            # Locked, because a retirement ends the log under this lock when no Resend of the audience is unfinished.
            lane = Lane.objects.select_for_update(no_key=True).filter(pk=asked.audience_id).first()
            if lane is not None and lane.retired_sequence is not None:
                return False  # it would append events after the end of the log (``retiring``), where they are held
            asked.save(force_insert=True)
            transaction.on_commit(lambda: wake_resend(asked.install_id), robust=True)
    except IntegrityError as error:
        if "one_unfinished" not in str(error):
            raise
        return False
    return True


def stop(resend: Resend, *, by: str) -> bool:
    """Stop a Resend after the current chunk. Appended events are still sent. False when it had ended already."""
    return bool(Resend.objects.filter(pk=resend.pk, ended_at=None).update(ended_at=Now(), stopped_by=by))


# --- what the workers do about it ----------------------------------------------------------------------------


def due() -> list[int]:
    """The installs that have something unfinished."""
    return list(Resend.objects.filter(ended_at=None).order_by().values_list("install_id", flat=True).distinct())


def advance_all(install_id: int, *, seconds: float, gives_way: Callable[[], bool] = bool) -> None:
    """Advance the install's unfinished Resends in turn, one chunk each, for at most ``seconds`` or until others wait
    for the slot."""
    until = time.monotonic() + seconds
    unfinished = Resend.objects.filter(install_id=install_id, ended_at=None).order_by("pk")
    while sum(map(_try_to_advance, unfinished.values_list("pk", flat=True))):
        if time.monotonic() > until or gives_way():
            wake_resend(install_id)
            return


def _try_to_advance(resend_id: int) -> bool:
    """A failing Resend doesn't delay the others. It is tried again until it succeeds or is stopped."""
    return attempts.attempt("resend", f"resend {resend_id}", partial(advance, resend_id), otherwise=False)


def advance(resend_id: int) -> bool:
    """Do one chunk, in one transaction. False when there is none to do now: it has ended, waits, or is locked."""
    with transaction.atomic():
        # The worker that holds the row does the next chunk; waiting for it would only block a second worker.
        unlocked = Resend.objects.select_for_update(skip_locked=True)
        resend = unlocked.filter(pk=resend_id, ended_at=None).first()
        if resend is None:
            return False
        room, _ = backlog.room(resend.install_id, resend.audience_id)
        if not room:
            return False
        step = _step(resend, min(CHUNK, room))
        _move(resend, step)
        install_id = resend.install_id
        transaction.on_commit(lambda: wake(install_id), robust=True)
    if step.over:
        log.info("resend done", resend=resend.pk, kind=resend.kind)
    return not step.over


def _step(resend: Resend, limit: int) -> Step:
    if resend.audience_id is not None:
        # Before anything is read: a customer who is forgotten in between would be appended again.
        audience_lookup.lock([resend.audience_id])
    match resend.kind:
        case Resend.Kind.REPLAY:
            return _replay(resend, limit)
        case Resend.Kind.RESYNC:
            return _resync(resend, limit)
        case Resend.Kind.LEAVE:
            return _leave(resend, limit)
        case Resend.Kind.REPAIR:
            return _repair(resend, limit)
    return _release(resend)


def _move(resend: Resend, step: Step) -> None:
    # The total of a resync may be an estimate.
    counted: dict[str, Any] = {}
    if step.over and resend.kind == Resend.Kind.RESYNC:
        counted = {"total": F("done") + step.done}
    elif step.following is not None:
        counted = {"upto": step.following.pk, "total": F("total") + step.following.lane.member_count}
    Resend.objects.filter(pk=resend.pk).update(
        done=F("done") + step.done,
        stayed=F("stayed") + step.stayed,
        after=step.after,
        after_identifier=step.after_identifier,
        ended_at=Now() if step.over else None,
        **counted,
    )


def _replay(resend: Resend, limit: int) -> Step:
    assert resend.audience_id is not None
    assert resend.received_from is not None
    assert resend.received_to is not None
    last = min(resend.upto, resend.after + limit)
    events = log_range.events_between(
        resend.audience_id, resend.after + 1, last, resend.received_from, resend.received_to
    )
    facts = [Fact("", "", e.identifier, Kind(e.kind), e.occurred_ns) for e in events.order_by("sequence")]
    _append(resend, facts)
    return Step(done=len(facts), after=last, over=last >= resend.upto)


def _resync(resend: Resend, limit: int) -> Step:
    assert resend.audience_id is not None
    ledger = Membership.objects.filter(audience_id=resend.audience_id, identifier__gt=resend.after_identifier)
    held = list(ledger.order_by("identifier")[:limit])
    kinds = {True: Kind.ENTER, False: Kind.EXIT}
    wanted = [row for row in held if row.sequence > resend.upto]
    _append(resend, [Fact("", "", row.identifier, kinds[row.is_member], row.occurred_ns) for row in wanted])
    last = held[-1].identifier if held else resend.after_identifier
    return Step(done=len(wanted), after_identifier=last, over=len(held) < limit)


def _leave(resend: Resend, limit: int) -> Step:
    """Exits with the earliest possible time: any event of the new audience about a customer is newer and decides.

    Customers whose exit ODP rejected get one too, because ODP still has them. So do customers whose membership in the
    old audience has changed since the take-over: their exit went to its new id.
    """
    assert resend.audience_id is not None
    may_be_shown = Membership.MAY_BE_SHOWN | Q(sequence__gt=resend.after)
    rows = Membership.objects.filter(may_be_shown, audience_id=resend.upto)
    rows = rows.filter(identifier__gt=resend.after_identifier).order_by("identifier")[:limit]
    leaving = list(rows.values_list("identifier", flat=True))
    known = set(
        Membership.objects.filter(audience_id=resend.audience_id, identifier__in=leaving).values_list(
            "identifier", flat=True
        )
    )
    only = [Fact("", "", identifier, Kind.EXIT, 0) for identifier in leaving if identifier not in known]
    _append(resend, only)
    if len(leaving) == limit:
        return Step(done=len(leaving), after=resend.after, after_identifier=leaving[-1])
    following = _had_it_too(resend)
    if following is None:
        return Step(done=len(leaving), after=resend.after, after_identifier=resend.after_identifier, over=True)
    return Step(done=len(leaving), after=following.last_sequence, following=following)


def _had_it_too(resend: Resend) -> Audience | None:
    """The next retired audience that had the ODP id, if the audience reuses a retired one: several may have had it."""
    assert resend.audience is not None
    is_reuse = Audience.objects.exclude(install=resend.install_id).filter(pk=resend.upto).exists()
    return shared_ids.retired_before(resend.audience, after=resend.upto) if is_reuse else None


def _repair(resend: Resend, limit: int) -> Step:
    """Append the events of the audit's next people. The last chunk requests another audit, to verify the repair."""
    audit = Audit.objects.filter(pk=resend.upto).select_related("audience").first()
    if audit is None:  # the audit was deleted: only the newest are kept
        return Step(after_identifier=resend.after_identifier, over=True)
    facts, last, is_over = repairs.facts(audit, after=resend.after_identifier, limit=limit)
    if resend.install.forget_missing_identifiers:
        identifier_lists.add({audit.audience_id: facts})
    _append(resend, list(facts))
    if is_over:
        audits.ask(audit.audience, mode=audit.mode, by=f"repair of audit {audit.pk}", share=audit.share)
    return Step(done=len(facts), after=resend.after, after_identifier=last, over=is_over)


def _append(resend: Resend, facts: list[Fact]) -> None:
    assert resend.audience_id is not None
    ingest.append({resend.audience_id: facts}, received_at=now(), forced=True)
    resend_causes.note({resend.audience_id: [(len(facts), None)]}, Again.Cause(resend.kind), resend_id=resend.pk)


def _release(resend: Resend) -> Step:
    """Release one item per transaction: with several, two transactions could lock audiences in different orders."""
    waiting = Parked.objects.filter(install_id=resend.install_id, reason=resend.parked_reason, closed_at=None)
    upcoming = waiting.filter(pk__gt=resend.after, pk__lte=resend.upto).order_by("pk")
    parked_id = upcoming.values_list("pk", flat=True).first()
    if parked_id is None:
        return Step(after=resend.after, over=True)
    released = _release_or_leave(parked_id, by=resend.by, identifier_field=resend.identifier_field)
    return Step(done=int(released is True), stayed=int(released is False), after=parked_id)


def _release_or_leave(parked_id: int, *, by: str, identifier_field: str) -> bool | None:
    """An item that fails, for example because its encryption key is gone, stays parked; later items continue."""
    try:
        return parked_items.release_one(parked_id, by=by, identifier_field=identifier_field)
    except Exception as error:
        if sessions.is_database_error(error):
            raise
        log.exception("a parked item can't be read", parked=parked_id)
        return False
