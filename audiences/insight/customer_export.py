"""Export the personal data of one customer of an install, to answer a data subject access request."""

from collections.abc import Collection, Iterator
from typing import Any

from django.db import connection, transaction
from django.db.models import Q

from audiences.encryption import decrypt
from audiences.insight import customer_texts, horizons
from audiences.models import (
    Audience,
    Delivery,
    Difference,
    Event,
    Install,
    Membership,
    Parked,
    Profile,
    ScannedMember,
)


def export(install: Install, identifier: str) -> dict[str, Any]:
    """Return values ready for JSON: times as ISO 8601 in UTC, Lytics' transition times in nanoseconds too."""
    audiences = {audience.pk: audience for audience in Audience.objects.filter(install=install)}
    events = _events(audiences, identifier)
    return {
        "install": install.name,
        "identifier": identifier,
        # Older rows may have been deleted, so the export says from which age.
        "horizons": horizons.all_words("events", "requests", "deliveries", "parked", "audits"),
        "memberships": list(_memberships(install, identifier)),
        "events": [_event(event, audiences[event.audience_id]) for event in events],
        "requests": list(_requests(events, identifier)),
        "parked": list(_parked(install, identifier)),
        "profiles": list(_profiles(install, identifier)),
        "scanned": list(_scanned(install, identifier)),
        "differences": list(_differences(install, identifier)),
    }


def _events(audiences: Collection[int], identifier: str) -> list[Event]:
    """The customer's events in these audiences, in the order in which they were received."""
    with transaction.atomic(), connection.cursor() as cursor:
        # The planner underestimates the index on identifiers, and would read all events of the install for a join.
        cursor.execute("SET LOCAL enable_seqscan = off")
        ordered = Event.objects.filter(identifier=identifier).order_by("received_at", "audience_id", "sequence")
        return [event for event in ordered if event.audience_id in audiences]


def _event(event: Event, audience: Audience) -> dict[str, Any]:
    return {
        "audience": audience.odp_id,
        "number": event.sequence,
        "event": event.get_kind_display(),
        "at": event.occurred_at.isoformat(),
        "occurred_ns": event.occurred_ns,
        "received_at": event.received_at.isoformat(),
        "call": event.receipt_id,
    }


def _memberships(install: Install, identifier: str) -> Iterator[dict[str, Any]]:
    found = Membership.objects.filter(identifier=identifier, audience__install=install)
    for row in found.select_related("audience"):
        yield {
            "audience": row.audience.odp_id,
            "is_member": row.is_member,
            "since": row.occurred_at.isoformat(),
            "rejected_by_odp": row.rejected,
        }


def _requests(events: list[Event], identifier: str) -> Iterator[dict[str, Any]]:
    """The requests to ODP about the customer. ODP's response isn't part of it, because it may quote other people."""
    deliveries = customer_texts.deliveries_covering(
        audiences=[event.audience_id for event in events], sequences=[event.sequence for event in events]
    )
    for row in Delivery.objects.filter(pk__in=deliveries).order_by("pk").iterator(chunk_size=customer_texts.PIECE):
        items = customer_texts.items_about(bytes(row.request) if row.request else None, identifier)
        if items or not row.request:
            yield {
                "delivery": row.pk,
                "at": row.opened_at.isoformat(),
                "outcome": row.get_outcome_display(),
                "items": items,
            }


def _parked(install: Install, identifier: str) -> Iterator[dict[str, Any]]:
    named = customer_texts.parked_about(install.pk, identifier)
    for row in Parked.objects.filter(pk__in=named).select_related("audience").order_by("pk"):
        raw = decrypt(bytes(row.raw)) if row.raw else b""
        yield {
            "parked": row.pk,
            "audience": row.audience.odp_id if row.audience else None,
            "reason": row.reason,
            # ODP's words about a rejected change; the detail of other items may quote anybody.
            "detail": row.detail if row.identifier == identifier else "",
            "parked_at": row.parked_at.isoformat(),
            "state": row.get_resolution_display(),
            "item": raw.decode(errors="replace") if customer_texts.of_one_person(raw) else None,
        }


def _profiles(install: Install, identifier: str) -> Iterator[dict[str, Any]]:
    """The profiles that name the customer, with their other identifiers where the profile is the customer's own."""
    is_theirs = Q(profile=identifier) | Q(identifiers__contains=[identifier])
    for row in Profile.objects.filter(is_theirs, audience__install=install).select_related("audience"):
        yield {
            "audience": row.audience.odp_id,
            "profile": row.profile,
            "identifiers": row.identifiers if row.profile == identifier else [identifier],
        }


def _scanned(install: Install, identifier: str) -> Iterator[dict[str, Any]]:
    found = ScannedMember.objects.filter(identifier=identifier, audit__install=install)
    for row in found.select_related("audit__audience"):
        yield {"audit": row.audit_id, "audience": row.audit.audience.odp_id, "profile": row.profile}


def _differences(install: Install, identifier: str) -> Iterator[dict[str, Any]]:
    found = Difference.objects.filter(identifier=identifier, audit__install=install)
    for row in found.select_related("audit__audience"):
        yield {
            "audit": row.audit_id,
            "audience": row.audit.audience.odp_id,
            "kind": row.get_kind_display(),
            "why": row.why,
        }
