"""What a repair by an audit would send: the same counts for the dry run, the confirmation and the repair itself."""

from collections.abc import Sequence
from typing import NamedTuple

from django.conf import settings
from django.db.models import Q, QuerySet

from audiences.agreement.comparing import WORDS
from audiences.models import Audit, Difference, Membership
from lytics import times
from lytics.facts import Fact, Kind

_KIND = Difference.Kind
# Differences that another event wouldn't end: what is parked needs a person first.
_WAITING = Q(why=WORDS["refused"]) | Q(why__startswith="Parked: ")


class Plan(NamedTuple):
    """How many people a repair would let in or out by Lytics' word, and send to ODP as the ledger has them."""

    enter: int
    leave: int
    again: int
    # People who differ and whom a repair leaves alone.
    left_out: int

    @property
    def people(self) -> int:
        return self.enter + self.leave + self.again


def plan(audit: Audit) -> Plan:
    """The dry run. Reads at most the differences that are stored."""
    kinds: dict[str, str] = {}
    for identifier, kind in differences(audit).values_list("identifier", "kind"):
        if kinds.get(identifier) not in (_KIND.NOT_HERE, _KIND.NOT_IN_LYTICS):
            kinds[identifier] = kind
    enter = sum(kind == _KIND.NOT_HERE for kind in kinds.values())
    leave = sum(kind == _KIND.NOT_IN_LYTICS for kind in kinds.values())
    return Plan(enter, leave, len(kinds) - enter - leave, max(0, audit.differing - len(kinds)))


def needs_confirmation(audit: Audit) -> bool:
    """Whether more people would change than ``REPAIR_PERCENT`` of those compared."""
    compared = max(audit.compared_with_lytics, audit.compared_with_odp)
    return plan(audit).people * 100 > compared * settings.REPAIR_PERCENT


def differences(audit: Audit) -> QuerySet[Difference]:
    """Those that a repair sends."""
    return Difference.objects.filter(audit=audit).exclude(_WAITING)


def facts(audit: Audit, *, after: str, limit: int) -> tuple[Sequence[Fact], str, bool]:
    """The next people to send, the last identifier, and whether that was the end.

    Lytics is the truth about members, as of the beginning of its scan: any newer event wins. Where only ODP differs,
    the ledger's own state and time are sent.
    """
    ordered = differences(audit).filter(identifier__gt=after).order_by("identifier")
    identifiers = list(ordered.values_list("identifier", flat=True).distinct()[:limit])
    by_lytics = differences(audit).filter(identifier__in=identifiers, kind__in=(_KIND.NOT_HERE, _KIND.NOT_IN_LYTICS))
    said = dict(by_lytics.values_list("identifier", "kind"))
    ledger = Membership.objects.filter(audience=audit.audience_id, identifier__in=identifiers)
    held = {row.identifier: row for row in ledger}
    found = []
    for identifier in identifiers:
        if identifier in said:
            assert audit.scan_began_at is not None
            kind = Kind.ENTER if said[identifier] == _KIND.NOT_HERE else Kind.EXIT
            found.append(Fact("", "", identifier, kind, times.from_moment(audit.scan_began_at)))
        elif identifier in held:
            row = held[identifier]
            found.append(Fact("", "", identifier, Kind.ENTER if row.is_member else Kind.EXIT, row.occurred_ns))
    return found, identifiers[-1] if identifiers else after, len(identifiers) < limit
