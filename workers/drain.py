"""Draining: from ready lanes to ODP, one request at a time, until nothing is ready. Imports no Celery.

`turn` and `deliver` follow the picture in README: each step is a line, and docs/crashes.md says for each line what the
tables hold when the process dies there.
"""

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

import structlog
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.db import NotSupportedError, ProgrammingError

from audiences import sessions, tallies, tracing
from audiences.delivery import (
    backoff,
    claims,
    holds,
    leases,
    odp_account,
    provision,
    reading,
    request_records,
    settling,
)
from audiences.delivery.fold import EXIT, Entry, Folded, fold
from audiences.delivery.leases import GapError, Lease, LeaseLostError, Result
from audiences.operations import resends
from audiences.wake import wake, wake_making
from odp.client import Client
from odp.mechanisms import Change, Mechanism, encode
from odp.outcomes import Answer, Outcome, readable
from outgoing.deadline import TooLateError
from workers import pace, slots
from workers.bisection import Bisection, Part

if TYPE_CHECKING:
    from workers.delivery_spans import DeliverySpans

log = structlog.get_logger(__name__)

# Seconds between the deadline of a request and the end of its lease, for settling and for clock drift.
LEASE_MARGIN = 1.0
# Our own decision, not a failure of ODP: the lanes are released, and no backoff starts.
TOO_LATE = Answer(
    Outcome.RETRY_LATER, "Not sent: the install went on hold, or the lease was about to expire.", sent=False
)

# Errors that are about the install's settings or the schema, and so about every audience: they hold the install.
_OF_ALL = (ImproperlyConfigured, ProgrammingError, NotSupportedError)


def drain(install_id: int, *, seconds: float) -> int:
    """Deliver what the install has ready, for ``seconds`` at most or until others wait for the slot. Returns the
    number of turns."""
    until = time.monotonic() + seconds
    turns = 0
    while turn(install_id) or slots.was_denied(install_id):
        turns += 1
        if time.monotonic() > until or slots.gives_way():
            wake(install_id)
            break
    return turns


def turn(install_id: int) -> bool:
    """Deliver one request, or make one audience in ODP. False when there is nothing to do now."""
    work = claims.work(install_id)
    if work is None:
        return False
    try:
        return _make_or_deliver(work)
    except Exception as error:
        if not sessions.is_database_error(error):  # else PostgreSQL is down, and the backoff can't be stored
            reason = _unexpected(error)
            backoff.apply(work.install, Answer(Outcome.RETRY_LATER, reason, fixed_backoff=True, sent=False))
        raise


def _unexpected(error: Exception) -> str:
    """The reason for an error of this service. Without a backoff it would repeat at once, and forever."""
    first_line = next(iter(str(error).splitlines()), "") or "the log of the worker says more"
    return readable(backoff.UNEXPECTED + first_line)


def _make_or_deliver(work: leases.Work) -> bool:
    """Deliveries never wait for the creation of an audience: while events are ready, a separate task creates it."""
    install_id = work.install.pk
    if not work.ready:
        return work.unprovisioned and _make_one(install_id)
    if work.unprovisioned:
        wake_making(install_id)
    if not pace.line_up(work.install, odp_account.mechanism_of(work.install, work.mechanism).rate_limit):
        return False
    capacity = leases.capacity_of(work.install, work.mechanism)
    lease = claims.claim(install_id, capacity=capacity, mechanism=work.mechanism)
    if lease is None:
        return False
    if lease.more:
        wake(install_id)
    _deliver_or_give_back(lease)
    return True


def _make_one(install_id: int) -> bool:
    slots.allow_another(install_id)  # deliveries that become ready meanwhile don't wait for the creation
    return provision.provision_one(install_id, gate=pace.pass_gate, on_lost=resends.send_lost)


def _deliver_or_give_back(lease: Lease) -> None:
    try:
        _deliver_with_spans(lease)
    except LeaseLostError:
        log.warning("lease lost; another worker has the lanes", lanes=len(lease.spans))
        tallies.LEASES_LOST.add(lease.install.public_id)
        holds.give_back(lease)
    except Exception as error:
        if sessions.is_database_error(error) or isinstance(error, _OF_ALL):
            holds.give_back(lease)
            raise
        log.exception("a delivery failed", lanes=len(lease.spans))
        holds.hold(lease, _unexpected(error))


def _deliver_with_spans(lease: Lease) -> None:
    if not tracing.is_on():
        deliver(lease)
        return
    from workers import delivery_spans

    with delivery_spans.recording(lease) as spans:
        deliver(lease, spans)


def deliver(lease: Lease, spans: "DeliverySpans | None" = None) -> None:
    """Fold the claimed events, send the deciding ones, settle. Raises ``LeaseLostError``."""
    try:
        entries, ledger = reading.read(lease)
    except GapError as gap:
        holds.block(lease, gap.reasons)
        return
    folded = {audience: fold(events, ledger[audience]) for audience, events in entries.items()}
    sender = _Sender(lease, {audience: len(events) for audience, events in entries.items()}, spans)
    bisection = sender.bisect(_changes(lease, folded))
    bisection.run(sender.send)
    sender.conclude(bisection)
    results = _results(lease, entries, folded, bisection, sender.sent)
    settling.settle(lease, results, ledger, delivery_id=sender.delivery_id, answer=sender.answer)


def _changes(lease: Lease, folded: Mapping[int, Folded]) -> list[Change]:
    return [
        Change(span.audience_id, span.odp_id, entry.identifier, entry.kind != EXIT, entry.occurred_ns, entry.sequence)
        for span in lease.spans
        for entry in folded[span.audience_id].send
    ]


class _Sender:
    """The requests made under one lease. Each is stored as an open Delivery before it starts."""

    def __init__(self, lease: Lease, events: Mapping[int, int], spans: "DeliverySpans | None" = None) -> None:
        self.lease = lease
        self.spans = spans
        self.events = events
        self.mechanism: Mechanism = odp_account.mechanism_of(lease.install, lease.mechanism)
        self.client: Client = odp_account.client_of(lease.install, gate=pace.pass_gate)
        self.delivery_id: int | None = None
        self.answer: Answer | None = None
        self.sent: set[int] = set()

    def bisect(self, changes: list[Change]) -> Bisection:
        previously_rejected = reading.rejected_customers(self.lease, (change.identifier for change in changes))
        groups = self.mechanism.groups(changes)
        return Bisection(
            [group for group in groups if group[0].identifier not in previously_rejected],
            doubtful=[group for group in groups if group[0].identifier in previously_rejected],
            has_control=lambda change: self.mechanism.control(change) is not None,
            items_per_group=self.mechanism.items_per_change,
            was_taken=reading.was_taken,
        )

    def send(self, part: Part) -> Answer:
        """Send one request. The response to the previous one is stored first."""
        if self.delivery_id is not None and self.answer is not None:
            request_records.close_delivery(self.delivery_id, self.answer)
            pace.jump_line(self.lease.install, self.mechanism.rate_limit)
        items = [item for group in part.groups for item in self.mechanism.items(group)]
        if part.control is not None and (control := self.mechanism.control(part.control)) is not None:
            items = [control]
        body = encode(items)
        opened_at = time.monotonic()
        self.delivery_id, self.answer = self._plant(part, items=len(items), body=body), None
        start_before = opened_at + settings.LEASE_SECONDS - settings.DELIVERY_DEADLINE_SECONDS - LEASE_MARGIN
        span = self.spans and self.spans.start_request()
        try:
            self.answer = self.client.call(
                "POST",
                self.mechanism.path,
                body=body,
                seconds=settings.DELIVERY_DEADLINE_SECONDS,
                start_before=start_before,
                headers={"traceparent": span.traceparent} if span and settings.ODP_TRACEPARENT else None,
            )
            slots.note_request(self.lease.install.pk, self.answer.seconds)
            tallies.ODP_REQUESTS.add(self.lease.install.public_id, self.answer.outcome.value)
            tallies.ODP_SECONDS.observe(self.answer.seconds, self.lease.install.public_id)
            if self.spans and span:
                self.spans.end_request(span, self.client.host, self.mechanism.path, self.delivery_id, self.answer)
        except TooLateError:
            self.answer = TOO_LATE
        log.info(
            "delivery",
            install=self.lease.install.name,
            delivery=self.delivery_id,
            outcome=self.answer.outcome.value,
            status=self.answer.status,
            items=len(items),
            milliseconds=round(self.answer.seconds * 1000),
        )
        return self.answer

    def _plant(self, part: Part, *, items: int, body: bytes) -> int:
        sent: dict[int, int] = {}
        for group in part.groups:
            for change in group:
                sent[change.lane] = sent.get(change.lane, 0) + 1
        self.sent.update(sent)
        return request_records.open_delivery(
            self.lease,
            endpoint=self.mechanism.path,
            items=items,
            size=len(body),
            sent=sent,
            of=self.events,
            body=body,
        )

    def conclude(self, bisection: Bisection) -> None:
        """Act on what the last answer says about the account rather than about items."""
        if self.answer is None or self.answer is TOO_LATE:
            return
        if self.answer.outcome not in (Outcome.DELIVERED, Outcome.REJECTED):
            backoff.apply(self.lease.install, self.answer)
        else:
            if self.lease.install.backoff_failures:
                backoff.release(self.lease.install)
            if bisection.learned_limit is not None:
                items = bisection.learned_limit * self.mechanism.items_per_change
                backoff.learn_batch_size(self.lease.install, items)


def _results(
    lease: Lease,
    entries: Mapping[int, list[Entry]],
    folded: Mapping[int, Folded],
    bisection: Bisection,
    sent: set[int],
) -> list[Result]:
    accepted = {(change.lane, change.sequence) for change in bisection.accepted}
    rejected = {(change.lane, change.sequence): words for change, words in bisection.rejected.items()}
    results = []
    for span in lease.spans:
        lane, fold_of_lane = span.audience_id, folded[span.audience_id]
        result = Result(
            span, events=len(entries[lane]), sent=lane in sent, block_reason=bisection.blocked.get(lane, "")
        )
        for entry in fold_of_lane.send:
            if (lane, entry.sequence) in accepted:
                result.accepted.append(entry)
            elif (lane, entry.sequence) in rejected:
                result.rejected.append((entry, rejected[lane, entry.sequence]))
            else:
                result.complete = False
        if result.complete:
            result.accepted.extend(fold_of_lane.unchanged)
        results.append(result)
    return results
