"""Export the personal data of one customer of an install, to answer a data subject access request."""

from collections.abc import Iterator
from typing import Any

from django.db import connection, transaction

from audiences.encryption import decrypt
from audiences.insight import horizons
from audiences.models import Audience, Difference, Event, Install, Membership, Parked, Profile


def export(install: Install, identifier: str) -> dict[str, Any]:
    """Return values ready for JSON: times as ISO 8601 in UTC, Lytics' transition times in nanoseconds too."""
    of_install = {"audience__install": install}
    audiences = {audience.pk: audience for audience in Audience.objects.filter(install=install)}
    with transaction.atomic(), connection.cursor() as cursor:
        # The planner underestimates the index on identifiers, and would read all events of the install for a join.
        cursor.execute("SET LOCAL enable_seqscan = off")
        ordered = Event.objects.filter(identifier=identifier).order_by("received_at", "audience_id", "sequence")
        found = [event for event in ordered if event.audience_id in audiences]
    return {
        "install": install.name,
        "identifier": identifier,
        # Older rows may have been deleted, so the export says from which age.
        "horizons": horizons.all_words("events", "parked", "audits"),
        "memberships": [
            {
                "audience": row.audience.odp_id,
                "is_member": row.is_member,
                "since": row.occurred_at.isoformat(),
                "rejected_by_odp": row.rejected,
            }
            for row in Membership.objects.filter(identifier=identifier, **of_install).select_related("audience")
        ],
        "events": [
            {
                "audience": audiences[event.audience_id].odp_id,
                "number": event.sequence,
                "event": event.get_kind_display(),
                "at": event.occurred_at.isoformat(),
                "occurred_ns": event.occurred_ns,
                "received_at": event.received_at.isoformat(),
                "call": event.receipt_id,
            }
            for event in found
        ],
        "parked": list(_parked(install, identifier)),
        "profiles": [
            {"audience": row.audience.odp_id, "profile": row.profile, "identifiers": row.identifiers}
            for row in Profile.objects.filter(profile=identifier, **of_install).select_related("audience")
        ],
        "differences": [
            {
                "audit": row.audit_id,
                "audience": row.audit.audience.odp_id,
                "kind": row.get_kind_display(),
                "why": row.why,
            }
            for row in Difference.objects.filter(identifier=identifier, audit__install=install).select_related(
                "audit__audience"
            )
        ],
    }


def _parked(install: Install, identifier: str) -> Iterator[dict[str, Any]]:
    for row in Parked.objects.filter(install=install, identifier=identifier).order_by("pk"):
        yield {
            "parked": row.pk,
            "reason": row.reason,
            "parked_at": row.parked_at.isoformat(),
            "state": row.get_resolution_display(),
            "item": decrypt(bytes(row.raw)).decode(errors="replace") if row.raw else None,
        }
