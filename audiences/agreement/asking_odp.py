"""The third pass of an audit: ask ODP about the people in the ledger, many people per query."""

from collections.abc import Sequence
from typing import NamedTuple

from django.conf import settings

from audiences import sql
from audiences.agreement import odp_reasons, repairs
from audiences.agreement.comparing import MOST, WORDS
from audiences.agreement.odp_reasons import CHANGED, GUESSES, NOT_IN_LIST, SPLIT, UNKNOWN
from audiences.agreement.steps import Ended, Step, Wait
from audiences.delivery.odp_account import client_of, mechanism_for
from audiences.models import Audit, Difference, Lane
from odp import redact
from odp.graphql import FS, WEB, ask
from odp.outcomes import Outcome

SECONDS = 30.0
# The most people whose profiles are read to find a reason.
READ = 1_000
# Seconds before the next query after a query without a response.
AGAIN_SECONDS = 10.0


class Person(NamedTuple):
    identifier: str
    is_member: bool
    is_moving: bool
    is_parked: bool


class _Still(NamedTuple):
    identifier: str


class _Shown(NamedTuple):
    """Whether ODP shows a customer in the audience, by each identifier; None when ODP doesn't know that identifier."""

    fs: bool | None
    web: bool | None

    def differs(self, person: Person) -> bool:
        return {bool(self.fs), bool(self.web)} != {person.is_member}


_SQL = sql.beside(__file__)
_NEXT = _SQL.query("next_people", Person._make)
_STILL = _SQL.query("still", _Still._make)


def step(audit: Audit) -> Step:
    """Ask ODP about the next people by both identifiers, and ask again about those who differ.

    The two identifiers may be on different profiles in ODP, and each of its products reads one of them.
    People with an event since the audit began, delivered or waiting, are left out: their state may be changing.
    """
    cursor = Lane.objects.values_list("delivered_sequence", flat=True).get(pk=audit.audience_id)
    people = _NEXT.run(
        audience=audit.audience_id,
        after=audit.after_identifier,
        before=audit.before_sequence,
        share=audit.share,
        audit=str(audit.pk),
        earlier=_earlier(audit),
        size=settings.AUDIT_CUSTOMERS_PER_REQUEST,
    ).all()
    if not people:
        _explain(audit)
        return Step({"phase": Audit.Phase.DONE})
    asked = [person for person in people if not person.is_moving]
    shown = _shown(audit, asked)
    if shown is None:
        return Step(seconds=AGAIN_SECONDS)
    doubtful = [person for person, seen in zip(asked, shown, strict=True) if seen.differs(person)]
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


def _earlier(audit: Audit) -> int | None:
    """The id of the last earlier audit of the audience that compared people and has a result."""
    with_result = Audit.objects.filter(audience=audit.audience_id, pk__lt=audit.pk, ended_at__isnull=False, problem="")
    return with_result.exclude(mode=Audit.Mode.QUICK).order_by("-pk").values_list("pk", flat=True).first()


def _shown(audit: Audit, people: Sequence[Person]) -> list[_Shown] | None:
    """Whether ODP shows each person in the audience, in order; None for the whole list when ODP didn't respond."""
    if not people:
        return []
    customers = [(name, person.identifier) for person in people for name in (FS, WEB)]
    odp_id = audit.audience.odp_id
    found = ask(client_of(audit.install), customers=customers, odp_ids=[odp_id], seconds=SECONDS)
    if found.succeeded:
        both = [None if known is None else odp_id in known for known in found.qualified]
        return list(map(_Shown, both[::2], both[1::2]))
    if found.answer.outcome is Outcome.RETRY_LATER:
        return None
    why = odp_reasons.of_audience(audit.audience, seconds=SECONDS)
    raise Ended(f"{why} ODP could not be asked: {redact.words(found.answer.reason)}".strip())


def _differing(audit: Audit, doubtful: Sequence[Person], *, cursor: int) -> list[tuple[Person, _Shown]] | None:
    """The people who still differ in a second query and have no newer event."""
    shown = _shown(audit, doubtful)
    if shown is None:
        return None
    still = _STILL.run(
        audience=audit.audience_id,
        identifiers=[person.identifier for person in doubtful],
        members=[person.is_member for person in doubtful],
        before=audit.before_sequence,
        cursor=cursor,
    ).all()
    settled = {row.identifier for row in still}
    found = zip(doubtful, shown, strict=True)
    return [(person, seen) for person, seen in found if person.identifier in settled and seen.differs(person)]


def _store(audit: Audit, differing: Sequence[tuple[Person, _Shown]]) -> int:
    """Store the differences. Returns the number of people among them who don't already differ from Lytics."""
    if not differing:
        return 0
    identifiers = [person.identifier for person, _ in differing]
    # Not those of this pass: a worker that died may have stored them without their count.
    with_lytics = (Difference.Kind.NOT_HERE, Difference.Kind.NOT_IN_LYTICS)
    known = Difference.objects.filter(audit=audit, identifier__in=identifiers, kind__in=with_lytics)
    before = set(known.values_list("identifier", flat=True))
    kept = differing
    if Difference.objects.filter(audit=audit).count() >= MOST:
        # Those whom a repair can't correct take no place of others.
        has_room = repairs.differences(audit).count() < MOST
        kept = [(person, seen) for person, seen in differing if has_room and not person.is_parked]
    found = [_difference(audit, person, seen) for person, seen in kept]
    Difference.objects.bulk_create(found, ignore_conflicts=True)
    return len(differing) - len(before)


def _difference(audit: Audit, person: Person, seen: _Shown) -> Difference:
    if bool(seen.fs) != bool(seen.web):
        kind = Difference.Kind.HALF_IN_ODP
    else:
        kind = Difference.Kind.NOT_IN_ODP if person.is_member else Difference.Kind.STILL_IN_ODP
    if person.is_parked:
        why = WORDS["refused"]
    elif seen.fs is None and seen.web is None:
        why = UNKNOWN
    elif kind == Difference.Kind.HALF_IN_ODP:
        why = SPLIT
    elif person.is_member and mechanism_for(audit.audience).name == "list":
        why = NOT_IN_LIST
    else:
        why = CHANGED
    return Difference(audit=audit, identifier=person.identifier, kind=kind, why=why, is_explained=why not in GUESSES)


def _explain(audit: Audit) -> None:
    """Replace the guesses among the reasons of the audit's differences by what ODP shows, if it shows more."""
    unexplained = Difference.objects.filter(audit=audit, why__in=GUESSES)
    if not unexplained.exists():
        return
    if why := odp_reasons.of_audience(audit.audience, seconds=SECONDS):
        unexplained.update(why=why, is_explained=True)
        return
    people = list(unexplained.order_by("id").values_list("identifier", flat=True)[:READ])
    merged = odp_reasons.merged(audit.audience, people, seconds=SECONDS)
    unexplained.filter(identifier__in=merged).update(why=odp_reasons.MERGED, is_explained=True)
