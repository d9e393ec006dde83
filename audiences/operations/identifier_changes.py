"""The dry run of a guided change to another identifier field: what Lytics' members say about each field, and the
reasons not to begin a change.

The module ``identifier_steps`` has the steps.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass

from django.conf import settings
from django.db.models import Q, QuerySet, Sum

from audiences import lytics_account
from audiences.insight import trials
from audiences.models import Audience, Install, Resend, Retirement
from audiences.operations import retiring
from audiences.receiving.audience_lookup import BY_SLUG
from lytics.api import members
from lytics.identifiers import is_identifier

# The most members of an audience that can be changed. Each member is two differences, which the audit has to store.
MOST_MEMBERS = 100_000
# The most fields in the evidence.
FIELDS = 8
# Seconds for the request to Lytics that reads the sample.
SECONDS = 10.0
# Fields that name no customer.
NOT_FIELDS = {"segment_events", "_created", "_modified", "segments", "_segments"}


@dataclass(frozen=True)
class Candidate:
    """A field that could become the identifier field, with numbers of the sample: members who have it, members in whom
    it is an array, different identifiers, and members who share an identifier with another member.
    """

    name: str
    found: int
    arrays: int
    different: int
    shared: int


@dataclass(frozen=True)
class Evidence:
    """A sample of Lytics' members. ``problem`` is the reason when it could not be read; else empty."""

    problem: str
    sample: int = 0
    candidates: Sequence[Candidate] = ()

    def of(self, field: str) -> Candidate | None:
        return next((each for each in self.candidates if each.name == field), None)


@dataclass(frozen=True)
class Plan:
    """The dry run of a change to another identifier field."""

    audiences: int
    members: int


def audiences(install: Install) -> QuerySet[Audience]:
    """The audiences whose members are replaced, except retired ones and the test customers' audience: those in ODP, and
    those with events, because ODP gets their members by the present field once it has the audience.
    """
    known = Q(provisioned_at__isnull=False) | Q(last_sequence__gt=0)
    audiences = Audience.objects.filter(known, install=install, lane__retired_sequence=None)
    return audiences.exclude(segment_id=trials.SEGMENT_ID)


def plan(install: Install) -> Plan:
    """Count the audiences and memberships of a change, without requests to Lytics or ODP."""
    counted = audiences(install)
    return Plan(counted.count(), counted.aggregate(members=Sum("lane__member_count"))["members"] or 0)


def not_now(install: Install) -> str:
    """Why the install can't change its identifier field now; empty when it can."""
    if not audiences(install).exists():
        return "No audience of this install is in ODP or has events, so another field can be entered in its form."
    if not lytics_account.has_token(install):
        return (
            f"The members in ODP are known by {install.identifier_field}, and only Lytics knows their values of another"
            " field. Without a Lytics API token they could neither leave nor enter, so enter one first."
        )
    if by_name := audiences(install).filter(segment_id__startswith=BY_SLUG).first():
        return f"Lytics' calls name {by_name.odp_id} by its slug alone, so Lytics can't be asked for its members."
    large = audiences(install).filter(lane__member_count__gt=MOST_MEMBERS).first()
    if large is not None:
        return (
            f"{large.odp_id} has more than {MOST_MEMBERS:,} members. Connect a second install with the other field and"
            " a prefix of its own, have Lytics send all members to it, and then retire the audiences of this one."
        )
    held = audiences(install).filter(Q(lane__paused_at__isnull=False) | Q(lane__blocked_at__isnull=False)).first()
    if held is not None:
        return f"{held.odp_id} is paused or blocked, so its members could not be verified. Resume or retire it first."
    failing = audiences(install).filter(provisioned_at=None, hold_failures__gt=0).first()
    if failing is not None:
        return (
            f"{failing.odp_id} can't be created in ODP, and the change would wait for it. Begin when ODP has it, or"
            " retire it first."
        )
    if Retirement.objects.filter(retiring.UNFINISHED, audience__install=install).exists():
        return "An audience of this install is being retired or taken back. Begin when that is over."
    if Resend.objects.filter(install=install, kind=Resend.Kind.REPAIR, ended_at=None).exists():
        return "A repair of this install is under way. Begin when that is over."
    return ""


def problem_of(install: Install, field: str) -> str:
    """Why this field can't become the identifier field, by a sample of Lytics' members; empty when it can."""
    found = evidence(install)
    if found.problem:
        return found.problem
    candidate = found.of(field)
    if candidate is None or candidate.found * 2 < found.sample:
        return (
            f"{candidate.found if candidate else 0} of {found.sample} members in Lytics have {field}. All others would"
            " leave their audiences."
        )
    return ""


def evidence(install: Install) -> Evidence:
    """Read a sample from Lytics: one page of the largest audience, with all fields. This service stores no fields."""
    client = lytics_account.client_of(install, ends_at=time.monotonic() + SECONDS)
    largest = audiences(install).order_by("-lane__member_count", "pk").first()
    if client is None or largest is None:
        return Evidence(not_now(install))
    page = next(members.scan(client, largest.segment_id, fields=[]))
    if not page.answer.is_ok:
        return Evidence(f"Lytics did not show members of {largest.odp_id}: {page.answer.reason}")
    if not page.members:
        return Evidence(f"Lytics shows no member of {largest.odp_id}.")
    names = {name for member in page.members for name in member.fields} - NOT_FIELDS - {install.identifier_field}
    found = [_candidate(name, page.members) for name in names]
    usable = [each for each in found if each.found]
    usable.sort(key=lambda each: (each.shared - each.found, each.name))
    return Evidence("", len(page.members), usable[:FIELDS])


def _candidate(name: str, sample: Sequence[members.Member]) -> Candidate:
    named: list[list[str]] = [
        [each for each in member.identifiers(name) if is_identifier(each, settings.PLACEHOLDER_IDENTIFIERS)]
        for member in sample
    ]
    holders: dict[str, int] = {}
    for identifiers in named:
        for identifier in identifiers:
            holders[identifier] = holders.get(identifier, 0) + 1
    return Candidate(
        name,
        found=sum(map(bool, named)),
        arrays=sum(
            isinstance(member.fields.get(name), list) and bool(identifiers)
            for member, identifiers in zip(sample, named, strict=True)
        ),
        different=len(holders),
        shared=sum(any(holders[each] > 1 for each in identifiers) for identifiers in named),
    )
