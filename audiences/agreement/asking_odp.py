"""The third pass of an audit: ask ODP about the people in the ledger, many people per query."""

from collections.abc import Sequence
from typing import NamedTuple

from django.conf import settings

from audiences import sql
from audiences.agreement.comparing import MOST, WORDS
from audiences.agreement.steps import Ended, Step, Wait
from audiences.delivery.odp_account import client_of
from audiences.models import Audit, Difference, Lane, Twin
from odp import redact
from odp.graphql import FS, WEB, Customer, ask
from odp.outcomes import Outcome

SECONDS = 30.0
# Seconds before the next query after a query without a response.
AGAIN_SECONDS = 10.0
UNKNOWN = "ODP doesn't know the customer: consent was withdrawn, or the profile was merged or deleted."
CHANGED = "ODP has another value: another system wrote it, or ODP did not apply what it accepted."


class Person(NamedTuple):
    identifier: str
    is_member: bool
    refused: bool
    is_moving: bool


class _Still(NamedTuple):
    identifier: str


class _Shown(NamedTuple):
    """Whether ODP shows a customer in the audience, by each identifier; None when ODP doesn't know that identifier."""

    fs: bool | None
    web: bool | None


_SQL = sql.beside(__file__)
_NEXT = _SQL.query("next_people", Person._make)
_STILL = _SQL.query("still", _Still._make)


def step(audit: Audit) -> Step:
    """Ask ODP about the next people, and ask again, by both identifiers, about the people who differ.

    People with an event since the audit began, delivered or waiting, are left out: their state may be changing.
    """
    cursor = Lane.objects.values_list("delivered_sequence", flat=True).get(pk=audit.audience_id)
    people = _NEXT.run(
        audience=audit.audience_id,
        after=audit.after_identifier,
        before=audit.before_sequence,
        share=audit.share,
        audit=str(audit.pk),
        size=settings.AUDIT_CUSTOMERS_PER_REQUEST,
    ).all()
    if not people:
        return Step({"phase": Audit.Phase.DONE})
    asked = [person for person in people if not person.is_moving]
    shown = _shown(audit, [(FS, person.identifier) for person in asked])
    if shown is None:
        return Step(seconds=AGAIN_SECONDS)
    doubtful = [person for person, found in zip(asked, shown, strict=True) if bool(found) != person.is_member]
    differing = _differing(audit, doubtful, cursor=cursor)
    if differing is None:
        return Step(seconds=AGAIN_SECONDS)
    return Step(
        {
            "after_identifier": people[-1].identifier,
            "compared_with_odp": audit.compared_with_odp + len(asked),
            "moving": audit.moving + (0 if audit.scan_began_at else len(people) - len(asked)),
            "differing": audit.differing + _store(audit, differing),
        },
        seconds=min(1 / settings.AUDIT_ODP_REQUESTS_PER_SECOND, Wait.LONG - 0.1),
    )


def _shown(audit: Audit, customers: Sequence[Customer]) -> list[bool | None] | None:
    """Whether ODP shows each customer in the audience, in order; None for the whole list when ODP didn't respond."""
    if not customers:
        return []
    odp_id = audit.audience.odp_id
    found = ask(client_of(audit.install), customers=customers, odp_ids=[odp_id], seconds=SECONDS)
    if found.succeeded:
        return [None if known is None else odp_id in known for known in found.qualified]
    if found.answer.outcome is Outcome.RETRY_LATER:
        return None
    raise Ended(f"ODP could not be asked: {redact.words(found.answer.reason)}")


def _differing(audit: Audit, doubtful: Sequence[Person], *, cursor: int) -> list[tuple[Person, _Shown]] | None:
    """The people who still differ in a second query by both identifiers and have no newer event."""
    if not doubtful:
        return []
    both = _shown(audit, [(name, person.identifier) for person in doubtful for name in (FS, WEB)])
    if both is None:
        return None
    shown = {person.identifier: _Shown(*both[2 * place : 2 * place + 2]) for place, person in enumerate(doubtful)}
    still = _STILL.run(
        audience=audit.audience_id,
        identifiers=[person.identifier for person in doubtful],
        members=[person.is_member for person in doubtful],
        before=audit.before_sequence,
        cursor=cursor,
    ).all()
    settled = {row.identifier for row in still}
    found = [(person, shown[person.identifier]) for person in doubtful if person.identifier in settled]
    return [(person, seen) for person, seen in found if {bool(seen.fs), bool(seen.web)} != {person.is_member}]


def _store(audit: Audit, differing: Sequence[tuple[Person, _Shown]]) -> int:
    """Store the differences. Returns the number of people among them who don't already differ from Lytics."""
    if not differing:
        return 0
    twin = Twin.objects.filter(pk=audit.audience_id).exclude(finding=Twin.Finding.NOTHING).first()
    identifiers = [person.identifier for person, _ in differing]
    known = Difference.objects.filter(audit=audit, identifier__in=identifiers)
    before = set(known.values_list("identifier", flat=True))
    if Difference.objects.filter(audit=audit).count() < MOST:
        Difference.objects.bulk_create(
            [_difference(audit, person, seen, twin) for person, seen in differing], ignore_conflicts=True
        )
    return len(differing) - len(before)


def _difference(audit: Audit, person: Person, seen: _Shown, twin: Twin | None) -> Difference:
    if seen.fs != seen.web and None not in seen:
        kind = Difference.Kind.HALF_IN_ODP
    else:
        kind = Difference.Kind.NOT_IN_ODP if person.is_member else Difference.Kind.STILL_IN_ODP
    if twin is not None:
        why = twin.problem
    elif person.refused:
        why = WORDS["refused"]
    elif seen.fs is None and seen.web is None:
        why = UNKNOWN
    else:
        why = CHANGED
    return Difference(audit=audit, identifier=person.identifier, kind=kind, why=why, is_explained=why != CHANGED)
