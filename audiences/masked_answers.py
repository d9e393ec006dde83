"""ODP's responses as they are shown: with quoted customers masked, whichever version stored them.

Texts are masked before they are stored (``odp/redact.py``). Earlier versions stored some unmasked, so the model field
masks them again on reading: every page, list, download and command reads through it.
"""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from django.db import models
from django.db.models.functions import Cast

from audiences import request_bodies
from odp import redact
from odp.mechanisms import ANOTHER_DEFINITION

if TYPE_CHECKING:
    from audiences.models import Delivery

    _TextField = models.TextField[str, str]
else:
    _TextField = models.TextField  # Django's fields are generic for the type checker only

# Requests held in memory at once; one has up to 256 kB unpacked, some 20 kB packed.
AT_ONCE = 200


class SaidField(_TextField):
    """Text that may hold ODP's own words. It is a ``TextField`` to the database and to migrations."""

    def from_db_value(self, value: str | None, expression: object, connection: object) -> str | None:
        if not value or ANOTHER_DEFINITION in value:
            return value
        return redact.words(value)

    def deconstruct(self) -> Any:
        name, _, positional, named = super().deconstruct()
        return name, "django.db.models.TextField", positional, named


def reason(delivery: "Delivery") -> str:
    """The reason of a Delivery's outcome, with the customers of its request masked: ODP may name them unquoted."""
    if delivery.masked_reason is not None:
        return delivery.masked_reason
    return redact.without(delivery.reason, _values(delivery.request)) if delivery.reason else ""


def mask_reasons(deliveries: Iterable["Delivery"]) -> None:
    """Mask the reasons of a list, with one query per ``AT_ONCE`` of them. ``reason`` then needs no query."""
    listed = list(deliveries)
    shown = reasons({delivery.pk: delivery.reason for delivery in listed})
    for delivery in listed:
        delivery.masked_reason = shown[delivery.pk]


def answer(delivery: "Delivery") -> str:
    return redact.without(delivery.answer, _values(delivery.request)) if delivery.answer else ""


def reasons(stored: dict[int, str]) -> dict[int, str]:
    """Mask the stored reasons of many Deliveries, by Delivery id."""
    from audiences.models import Delivery

    asked, shown = [pk for pk, words in stored.items() if words], dict(stored)
    for start in range(0, len(asked), AT_ONCE):
        kept = Delivery.objects.filter(pk__in=asked[start : start + AT_ONCE], request__isnull=False)
        shown |= {pk: redact.without(stored[pk], _values(request)) for pk, request in kept.values_list("pk", "request")}
    return shown


def whole_answer(delivery: "Delivery") -> str:
    """ODP's response unmasked, for people with the permission to see it."""
    found = type(delivery).objects.filter(pk=delivery.pk).annotate(whole=Cast("answer", models.TextField()))
    whole: str = found.values_list("whole", flat=True).get()
    return whole


def _values(request: bytes | memoryview | None) -> Sequence[str]:
    """The values of a stored request, of which only the beginning may be kept."""
    return redact.values_in(request_bodies.items(request_bodies.unpack(bytes(request)))) if request else ()
