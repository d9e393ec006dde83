"""What ODP itself says of an install: that it takes the key, and that it shows a customer whom we delivered.

The only writer of Confirmations. A page never asks: a worker does, while somebody looks and as long as ODP has not
shown anybody.
"""

from datetime import datetime, timedelta

from django.db.models import Q, QuerySet
from django.utils.timezone import now

from audiences.delivery import drafts
from audiences.delivery.odp_account import client_of
from audiences.insight import trials
from audiences.models import Audience, Confirmation, Event, Install, Lane, Membership, Run
from odp.graphql import audiences_of_each
from odp.outcomes import Outcome

# Between two questions about one install, whoever looks at its page.
EVERY = timedelta(seconds=5)
SECONDS = 5.0
# Asked about together: one of them may be a person about whom ODP keeps silent, for example after a deletion request.
PEOPLE = 10
# Audiences looked at to find somebody, and events of a run.
AUDIENCES, EVENTS = 5, 100
# What was delivered a moment ago may not be shown yet, and in a busy install the newest run always is such.
SETTLED = timedelta(seconds=15)

Delivered = tuple[Audience, list[str], datetime]


def note_key(install: Install, *, problem: str) -> None:
    """Write down what ODP said when it was asked about the key; nothing, when it takes it."""
    Confirmation.objects.update_or_create(install=install, defaults={"key_asked_at": now(), "key_problem": problem})
    if not problem:
        drafts.accepted(install.pk)


def forget(install: Install) -> None:
    """Another key, host or region may be another ODP account: what the old one said is worth nothing."""
    Confirmation.objects.filter(install=install).delete()
    drafts.forget(install.pk)


def is_due(install: Install) -> bool:
    """Whether ODP should be asked now: there are members, and nobody has been shown yet."""
    row = Confirmation.objects.filter(install=install).first()
    if row and (row.confirmed_at or (row.asked_at and row.asked_at > now() - EVERY)):
        return False
    return has_members(install)


def ask(install_id: int) -> None:
    """Ask ODP about a few delivered members, unless somebody else has just done so, and write down what it says."""
    install = Install.objects.get(pk=install_id)
    some = delivered(install)
    if some is None or (asked_at := _our_turn(install)) is None:
        return
    audience, people, at = some
    found = audiences_of_each(
        client_of(install), identifiers=people, odp_ids=[audience.odp_id], seconds=SECONDS
    ).values()
    answer = next(iter(found)).answer
    told = answer.outcome is Outcome.DELIVERED
    shown = any(one.is_in(audience.odp_id) for one in found)
    # The row of this question alone: after ``forget`` there may be another one, about another ODP account.
    Confirmation.objects.filter(install=install, asked_at=asked_at, confirmed_at=None).update(
        delivered_at=at,
        problem="" if told else answer.reason,
        audience=audience,
        confirmed_at=now() if shown else None,
    )


def _our_turn(install: Install) -> datetime | None:
    """When the question was asked, in the row; None when somebody else has just asked it."""
    Confirmation.objects.get_or_create(install=install)
    rested = Q(asked_at=None) | Q(asked_at__lte=now() - EVERY)
    asked_at = now()
    ours = Confirmation.objects.filter(rested, install=install, confirmed_at=None).update(asked_at=asked_at)
    return asked_at if ours else None


def has_members(install: Install) -> bool:
    """Whether the ledger has any, in an audience that is in ODP. A page can ask for that much."""
    return _with_members(install).exists()


def _with_members(install: Install) -> QuerySet[Lane]:
    lanes = Lane.objects.filter(audience__install=install, member_count__gt=0, audience__provisioned_at__isnull=False)
    return lanes.exclude(audience__segment_id=trials.SEGMENT_ID)


def delivered(install: Install) -> Delivered | None:
    """A few members by the ledger whom ODP has taken, their audience, and when that was."""
    for lane in _with_members(install).select_related("audience").order_by("audience")[:AUDIENCES]:
        runs = Run.objects.filter(audience=lane.audience, outcome=Outcome.DELIVERED, sent__gt=0)
        settled = runs.filter(closed_at__lte=now() - SETTLED)
        for run in (runs.order_by("id").first(), settled.order_by("-id").first(), runs.order_by("-id").first()):
            people = _members(run) if run else []
            if run and run.closed_at and people:
                return lane.audience, people, run.closed_at
    return None


def _members(run: Run) -> list[str]:
    """Those of a run who are members now: a few, found over keys alone."""
    events = Event.objects.filter(
        audience=run.audience_id, sequence__range=(run.first_sequence, run.last_sequence)
    ).order_by("sequence")
    members = Membership.objects.filter(
        audience=run.audience_id,
        identifier__in=list(events.values_list("identifier", flat=True)[:EVENTS]),
        is_member=True,
        refused=False,
    )
    return list(members.values_list("identifier", flat=True)[:PEOPLE])
