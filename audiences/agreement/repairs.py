"""The people whom a repair by an audit sends. The dry run, the confirmation and the repair use the same selection."""

from collections.abc import Sequence
from typing import NamedTuple

from django.conf import settings
from django.db.models import F, OuterRef, Q, QuerySet

from audiences.agreement.comparing import WORDS
from audiences.agreement.odp_reasons import MERGED
from audiences.delivery.leases import is_ahead
from audiences.delivery.odp_account import mechanism_for
from audiences.models import Audit, Difference, Membership
from lytics import times
from lytics.facts import Fact, Kind

_KIND = Difference.Kind
# Differences of parked items, which ODP would reject again until a person fixes the cause. And differences of merged
# profiles, because sending the state of one person changes that of another.
_WAITING = Q(why__in=(WORDS["refused"], MERGED)) | Q(why__startswith="Parked: ")
# Differences from Lytics that are known by the install's identifier field: another field names other people.
_OF_FIELD = (
    ~Q(kind__in=(_KIND.NOT_HERE, _KIND.NOT_IN_LYTICS))
    | Q(audit__install__identifier_since_at=None)
    | Q(audit__scan_began_at__gt=F("audit__install__identifier_since_at"))
)


class Plan(NamedTuple):
    """The number of people who would enter, leave, and be sent to ODP again as the ledger has them."""

    enter: int
    leave: int
    again: int
    # People who differ and are not repaired.
    left_out: int

    @property
    def people(self) -> int:
        return self.enter + self.leave + self.again


def plan(audit: Audit) -> Plan:
    """Return the counts of a repair (the dry run). Reads the stored differences only."""
    kinds: dict[str, str] = {}
    for identifier, kind in differences(audit).values_list("identifier", "kind"):
        if kinds.get(identifier) not in (_KIND.NOT_HERE, _KIND.NOT_IN_LYTICS):
            kinds[identifier] = kind
    enter = sum(kind == _KIND.NOT_HERE for kind in kinds.values())
    leave = sum(kind == _KIND.NOT_IN_LYTICS for kind in kinds.values())
    return Plan(enter, leave, len(kinds) - enter - leave, max(0, audit.differing - len(kinds)))


def needs_confirmation(audit: Audit) -> bool:
    """Whether a repair would change more than ``REPAIR_PERCENT`` of the people compared."""
    compared = max(audit.compared_with_lytics, audit.compared_with_odp)
    return plan(audit).people * 100 > compared * settings.REPAIR_PERCENT


def differences(audit: Audit | OuterRef) -> QuerySet[Difference]:
    """The differences that a repair corrects. If there are none, the audit has no repair."""
    return Difference.objects.filter(_OF_FIELD, audit=audit).exclude(_WAITING)


def facts(audit: Audit, *, after: str, limit: int) -> tuple[Sequence[Fact], str, bool]:
    """The facts of the next people to send, their last identifier, and whether these were the last people.

    For differences from Lytics, the facts have Lytics' state and the time at which its scan began, so any newer event
    wins, and the profile if the identifier comes from a list. For people who differ only in ODP, they have the ledger's
    state and time. If ODP itself orders by time, as it does for passthrough audiences, the time of the scan is needed
    to win over another system's event.
    """
    began_ns = times.from_moment(audit.scan_began_at) if audit.scan_began_at else 0
    is_ordered = mechanism_for(audit.audience).time_step_ns > 1
    ordered = differences(audit).filter(identifier__gt=after).order_by("identifier")
    identifiers = list(ordered.values_list("identifier", flat=True).distinct()[:limit])
    by_lytics = differences(audit).filter(identifier__in=identifiers, kind__in=(_KIND.NOT_HERE, _KIND.NOT_IN_LYTICS))
    of_lytics = {one.identifier: one for one in by_lytics}
    ledger = Membership.objects.filter(audience=audit.audience_id, identifier__in=identifiers)
    held = {row.identifier: row for row in ledger}
    found = []
    for identifier in identifiers:
        if (one := of_lytics.get(identifier)) is not None:
            assert audit.scan_began_at is not None
            kind = Kind.ENTER if one.kind == _KIND.NOT_HERE else Kind.EXIT
            found.append(Fact("", "", identifier, kind, _after(began_ns, held.get(identifier), audit), one.profile))
        elif identifier in held:
            row = held[identifier]
            was_compared = row.sequence <= audit.before_sequence
            time_ns = max(began_ns, row.occurred_ns) if is_ordered and was_compared else row.occurred_ns
            found.append(Fact("", "", identifier, Kind.ENTER if row.is_member else Kind.EXIT, time_ns))
    return found, identifiers[-1] if identifiers else after, len(identifiers) < limit


def _after(began_ns: int, row: Membership | None, audit: Audit) -> int:
    """The time of Lytics' scan, or a moment after an event that was here before the scan.

    The clock of Lytics may be ahead of ours. Then such an event has a time after the scan, and would win over it.
    """
    if row is None or row.sequence > audit.before_sequence or is_ahead(row.occurred_ns):
        return began_ns
    return max(began_ns, row.occurred_ns + 1)
