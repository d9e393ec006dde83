"""Guided changes: plan (the dry run), begin and stop a change, and take its steps.

The only writer of GuidedChanges. A worker holds a lease on a change while it takes steps, and each step is stored
before the next one begins. If the worker dies, another worker continues after the last stored step.
"""

import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Protocol

import structlog
from django.db import IntegrityError, transaction
from django.db.models import Count, F, Max, Q, QuerySet, Sum
from django.db.models.functions import Now

from audiences import sessions
from audiences.delivery import account_switch, backoff, leases, mechanism_switch
from audiences.delivery.account_switch import Connection
from audiences.delivery.odp_account import Gate, client_of, mechanism_of, name_of
from audiences.insight import heartbeats
from audiences.models import Audience, GuidedChange, Install, Retirement
from audiences.operations import account_changes, account_steps, change_steps, identifier_changes, identifier_steps
from audiences.operations.change_steps import Step
from audiences.wake import wake_change
from odp.client import Client
from odp.mechanisms import MECHANISMS, Passthrough
from odp.outcomes import readable
from outgoing.deadline import TooLateError

log = structlog.get_logger(__name__)

# Longer than any step: all requests of a step end within SECONDS.
LEASE = timedelta(seconds=60)
SECONDS = 20.0
# A wait of at least this many seconds is left to the next sweep.
LONG = 2.0
Kind = GuidedChange.Kind


class Steps(Protocol):
    """A module with the steps of one kind of change, by phase: those that write to the tables, and those that send
    requests to ODP. ``stop`` is the step that a stop takes now; None without one.
    """

    STORING: dict[str, Callable[[GuidedChange], Step]]
    ASKING: dict[str, Callable[[GuidedChange, Client], Step]]

    def stop(self, change: GuidedChange) -> Step | None: ...


STEPS: dict[str, Steps] = {
    Kind.MECHANISM: change_steps,
    Kind.ACCOUNT: account_steps,
    Kind.IDENTIFIER: identifier_steps,
}


# --- the dry run ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Plan:
    """The dry run of a change to another mechanism. ``problem`` says why it can't begin; empty when it can."""

    problem: str
    audiences: int
    # Audiences that would be left as they are: blocked, paused, retired or being retired, or with a definition that a
    # person accepted.
    left_out: int
    members: int
    largest: int
    requests: int
    # The least number of seconds for all requests, and for those of the largest audience; 0 without a rate limit.
    seconds: float
    largest_seconds: float
    # What stays in ODP of the present mechanism: "the customer field" or "the list".
    stays: str


def plan(install: Install, *, to: str) -> Plan:
    """Count the work of a change, without requests to ODP. Customers who left are sent too, and aren't counted."""
    stopped = Q(lane__paused_at__isnull=False) | Q(lane__blocked_at__isnull=False)
    retired = Q(pk__in=Retirement.objects.filter(restored_at=None).values("audience"))
    held = stopped | retired | ~Q(accepted_definition="")
    per_request = leases.capacity_of(install, to)
    counts = _with_another(install, to).aggregate(
        audiences=Count("pk"),
        left_out=Count("pk", filter=held),
        members=Sum("lane__member_count", filter=~held),
        largest=Max("lane__member_count", filter=~held),
        # Whole requests for each audience, because one is changed after another.
        requests=Sum((F("lane__member_count") + (per_request - 1)) / per_request, filter=~held),
    )
    used = _with_another(install, to).order_by().values_list("mechanism", flat=True).distinct()
    names = {name or install.mechanism for name in used}
    members, largest, requests = (counts[name] or 0 for name in ("members", "largest", "requests"))
    rate = install.requests_per_second if mechanism_of(install, to).rate_limit else 0
    return Plan(
        problem=problem_of(install, to=to),
        audiences=counts["audiences"] - counts["left_out"],
        left_out=counts["left_out"],
        members=members,
        largest=largest,
        requests=requests,
        seconds=requests / rate if rate else 0.0,
        largest_seconds=-(-largest // per_request) / rate if rate else 0.0,
        stays=" and ".join(sorted(MECHANISMS[name].store for name in names)),
    )


def problem_of(install: Install, *, to: str) -> str:
    """Why a change to this mechanism can't begin now; empty when it can."""
    if Passthrough.name in (install.mechanism, to):
        return (
            "ODP does not document how a passthrough audience is made or where its members are stored, so there is no"
            " safe way to change to or from it. Connect a new install with the other mechanism instead."
        )
    if not _with_another(install, to).exists():
        return f"All audiences of this install have the mechanism {to} already."
    return _not_now(install)


def _not_now(install: Install) -> str:
    """Why no guided change of the install can begin now; empty when one can."""
    if install.key_accepted_at is None:
        return "ODP has not accepted the install's API key yet."
    if running(install) is not None:
        return "Another change of this install is under way."
    versions = {worker.version for worker in heartbeats.pulse().answering}
    if len(versions) > 1:
        return (
            f"Workers of several versions are running ({', '.join(sorted(versions))}). An older one does not know all"
            " steps of a change. Finish the upgrade first."
        )
    return ""


def _with_another(install: Install, to: str) -> QuerySet[Audience]:
    """The install's audiences with another mechanism than ``to``."""
    these = ["", to] if install.mechanism == to else [to]
    return Audience.objects.filter(install=install).exclude(mechanism__in=these)


def running(install: Install) -> GuidedChange | None:
    return GuidedChange.objects.filter(install=install, ended_at=None).select_related("audience").first()


# --- beginning and stopping ----------------------------------------------------------------------------------


def begin(install: Install, *, to: str, by: str, reason: str) -> GuidedChange | None:
    """Store a change to another mechanism, and wake the workers. None when a change can't begin now.

    New audiences get the new mechanism at once. Existing audiences are changed one after another.
    """
    if problem_of(install, to=to):
        return None
    change = GuidedChange(kind=Kind.MECHANISM, install=install, before=install.mechanism, after=to)
    change.by, change.reason = by, reason
    try:
        with transaction.atomic():
            change.save(force_insert=True)
            mechanism_switch.begin(install.pk, to=to)
            change.total = Audience.objects.filter(install=install).exclude(mechanism="").count()
            GuidedChange.objects.filter(pk=change.pk).update(total=change.total)
            transaction.on_commit(lambda: wake_change(install.pk), robust=True)
    except IntegrityError:
        return None
    return change


def begin_account(install: Install, to: Connection, *, empties: bool, by: str, reason: str) -> GuidedChange | None:
    """Store a change to another ODP account, and wake the workers. None when a change can't begin now.

    With ``empties``, the audiences in the old account are emptied and deleted after the switch.
    """
    if problem_of_account(install, to):
        return None
    change = GuidedChange(kind=Kind.ACCOUNT, install=install, phase=GuidedChange.Phase.TELL_APART)
    change.before = name_of(install)
    change.after = name_of(account_switch.connected(install, to))
    change.other_region, change.other_host, change.other_api_key = to
    change.empties, change.by, change.reason = empties, by, reason
    change.total = Audience.objects.filter(install=install, provisioned_at__isnull=False).count()
    return change if _store_new(change) else None


def problem_of_account(install: Install, to: Connection) -> str:
    """Why a change to this account can't begin now; empty when it can. Asks ODP whether it accepts the key."""
    return problem_of_account_now(install) or account_changes.problem_of(install, to)


def problem_of_account_now(install: Install) -> str:
    """Why no change to another account can begin now, whichever it is; empty when one can."""
    return _not_now(install) or account_changes.not_now(install)


def begin_identifier(install: Install, *, to: str, by: str, reason: str) -> GuidedChange | None:
    """Store a change to another identifier field, and wake the workers. None when a change can't begin now."""
    if problem_of_identifier(install) or install.identifier_field == to:
        return None
    change = GuidedChange(kind=Kind.IDENTIFIER, install=install, before=install.identifier_field, after=to)
    change.by, change.reason, change.total = by, reason, identifier_changes.audiences(install).count()
    return change if _store_new(change) else None


def problem_of_identifier(install: Install) -> str:
    """Why no change to another identifier field can begin now; empty when one can."""
    return _not_now(install) or identifier_changes.not_now(install)


def _store_new(change: GuidedChange) -> bool:
    install_id = change.install_id
    try:
        with transaction.atomic():
            change.save(force_insert=True)
            transaction.on_commit(lambda: wake_change(install_id), robust=True)
    except IntegrityError:
        return False
    return True


def stop(change: GuidedChange, *, by: str) -> bool:
    """Have the change end as soon as nothing is left half done. False when it has ended, or was stopped already.

    Another mechanism: the current audience is changed back; audiences that are done stay with the new mechanism.
    Another account: nothing changes before the switch; after it, the members are completed in the new account.
    """
    unstopped = GuidedChange.objects.filter(pk=change.pk, ended_at=None, stopped_by="")
    done = bool(unstopped.update(stopped_by=by, next_at=None))
    if done:
        wake_change(change.install_id)
    return done


# --- going on ------------------------------------------------------------------------------------------------


def due() -> list[int]:
    """Return the enabled installs with a change that is due and that no worker has leased."""
    return list(_free().values_list("install_id", flat=True))


def _free() -> QuerySet[GuidedChange]:
    # A wait or a lease that ends later than any was written before PostgreSQL's clock was set back, and is ignored.
    no_lease = Q(lease_until_at=None) | Q(lease_until_at__lte=Now()) | Q(lease_until_at__gt=Now() + 2 * LEASE)
    no_wait = Q(next_at=None) | Q(next_at__lte=Now()) | Q(next_at__gt=Now() + backoff.longest_wait())
    # A subquery instead of a join: an update over a join would not compare the lease again after waiting for the row.
    enabled = Install.objects.filter(enabled=True)
    return GuidedChange.objects.filter(no_lease, no_wait, ended_at=None, install__in=enabled)


def advance(
    install_id: int,
    *,
    seconds: float,
    gate: Gate | None = None,
    gives_way: Callable[[], bool] = bool,
    pause: Callable[[float], None] = time.sleep,
) -> None:
    """Take steps of the install's change for at most ``seconds``, or until it has to wait for ``LONG`` or more."""
    until = time.monotonic() + seconds
    token = lease(install_id)
    if token is None:
        return
    try:
        while time.monotonic() < until and not gives_way():
            waits = step(token, gate=gate)
            if waits is None or waits >= LONG:
                return
            if waits:
                pause(waits)
        wake_change(install_id)
    finally:
        give_back(token)


def lease(install_id: int) -> uuid.UUID | None:
    """Lease the install's change. Returns None when another worker has leased it or no step is due.

    No step is due while the install is switched off.
    """
    token = uuid.uuid4()
    leased = _free().filter(install=install_id).update(lease_token=token, lease_until_at=Now() + LEASE)
    return token if leased else None


def give_back(token: uuid.UUID) -> None:
    held = GuidedChange.objects.filter(lease_token=token)
    # After ``LEASE`` the lease has expired, so there is nothing left to release.
    sessions.when_back(lambda: held.update(lease_token=None, lease_until_at=None), seconds=LEASE.total_seconds())


def step(token: uuid.UUID, *, gate: Gate | None = None) -> float | None:
    """Take one step and store it. Returns the seconds until the next one.

    Returns None when the change has ended, the lease is lost, or the install is switched off.
    """
    change = None
    try:
        with sessions.brief_lock_wait():
            held = GuidedChange.objects.select_for_update(of=("self",)).select_related("install")
            change = held.filter(lease_token=token, ended_at=None, install__enabled=True).first()
            if change is None:
                return None
            steps = STEPS[change.kind]
            result = steps.stop(change)
            if result is None and change.phase in steps.STORING:
                result = steps.STORING[change.phase](change)
            if result is not None:
                return _store(change, token, result)
        return _ask(change, token, gate)
    except sessions.LockedError:
        return None if change is None else _store(change, token, change_steps.wait("Another transaction locks a row."))
    except Exception as error:
        if change is None or sessions.is_database_error(error):
            raise
        log.exception("a step of a change failed", install=change.install.name, phase=change.phase)
        first_line = next(iter(str(error).splitlines()), "") or "the log of the worker says more"
        return _store(change, token, change_steps.wait(readable(f"Unexpected error: {first_line}")))


def _ask(change: GuidedChange, token: uuid.UUID, gate: Gate | None) -> float | None:
    ends_at = time.monotonic() + SECONDS
    if change.kind == Kind.ACCOUNT:
        # The gate counts the requests to the account in use, so it doesn't count these.
        client = client_of(account_steps.other(change), ends_at=ends_at)
    else:
        client = client_of(change.install, ends_at=ends_at, gate=gate)
    try:
        result = STEPS[change.kind].ASKING[change.phase](change, client)
    except TooLateError:
        result = change_steps.wait("The rate limit left no time for a request.")
    return _store(change, token, result)


def _store(change: GuidedChange, token: uuid.UUID, result: Step) -> float | None:
    next_at = Now() + timedelta(seconds=result.seconds) if result.seconds >= LONG else None
    changes: dict[str, Any] = {**result.changes, "lease_until_at": Now() + LEASE, "next_at": next_at}
    if changes.get("ended_at"):
        changes |= {"lease_token": None, "lease_until_at": None}
    # The phase is compared too, so that a worker with an expired lease doesn't overwrite a later step.
    held = GuidedChange.objects.filter(pk=change.pk, lease_token=token, phase=change.phase, ended_at=None)
    seconds = result.seconds
    if not held.filter(stopped_by=change.stopped_by).update(**changes):
        # A person has stopped the change during this step. The stop takes its step now, whatever this one waits for.
        seconds = 0.0
        if not held.update(**changes | {"next_at": None}):
            return None
    if "phase" in changes:
        log.info("change", install=change.install.name, phase=changes["phase"], audience=str(change.audience_id))
    return None if changes.get("ended_at") else seconds
