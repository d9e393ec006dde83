"""Changes to an install that need a confirmation or are locked, because members would be lost silently.

The form and all other code that changes an install decide here. An API key identifies its ODP account by the public
part, before the dot, and by whether the account holds our audiences.
"""

from dataclasses import dataclass
from datetime import timedelta

from django.db.models import Sum
from django.utils.timezone import now

from audiences.insight import trials
from audiences.models import Audience, Install, Receipt
from odp.client import Client
from odp.outcomes import Outcome
from odp.regions import host_of

SECONDS = 5.0


@dataclass(frozen=True)
class Question:
    """A change that is made only after an operator has confirmed its consequence."""

    field: str
    consequence: str


def made(install: Install) -> int:
    """How many audiences of an install are in ODP; the test customers' doesn't count."""
    audiences = Audience.objects.filter(install=install, provisioned_at__isnull=False)
    return audiences.exclude(segment_id=trials.SEGMENT_ID).count()


def refusals(before: Install, after: Install) -> dict[str, str]:
    """Why a change is refused, by field; empty when nothing speaks against it."""
    number = made(before)
    if not number:
        return {}
    audiences = f"{number} audience{'' if number == 1 else 's'} of this install {'is' if number == 1 else 'are'}"
    found = {}
    if before.mechanism != after.mechanism:
        found["mechanism"] = (
            f"{audiences} made with the present mechanism, and would keep looking at what that wrote. Connect a new"
            " install with the other mechanism instead."
        )
    if _place(before) != _place(after):
        found["odp_host"] = (
            f"{audiences} in the account at {_place(before)}. Another account has none of them and none of their"
            " members. Connect a new install instead."
        )
    elif public_part(before) != public_part(after) and (problem := _another_account(before, after)):
        found["odp_api_key"] = f"{problem} {audiences} in the present account. Connect a new install for another one."
    return found


def questions(before: Install | None, after: Install) -> list[Question]:
    """The consequences to confirm: another identifier field, or an account that another install uses already."""
    found = []
    if before is not None and before.identifier_field != after.identifier_field and made(before):
        calls = Receipt.objects.filter(install=before, received_at__gte=now() - timedelta(hours=1))
        read = calls.aggregate(events=Sum("queued"))["events"] or 0
        found.append(
            Question(
                "identifier_field",
                f"{read:,} events were read with {before.identifier_field} in the last hour. From now on every event is"
                f" read with {after.identifier_field}; messages without it are parked. Customers known by"
                f" {before.identifier_field} stay members until an exit names them.",
            )
        )
    others = [other for other in Install.objects.exclude(pk=after.pk) if same_account(other, after)]
    new_account = before is None or not same_account(before, after)
    if others and new_account:
        found.append(
            Question(
                "odp_api_key",
                f"The install {others[0].name} sends to this ODP account already. Audiences of one name would be one"
                " audience in ODP: an exit in one install takes out whom the other has entered.",
            )
        )
    return found


def public_part(install: Install) -> str:
    """The part of a private key that names its account."""
    return str(install.odp_api_key).partition(".")[0]


def same_account(one: Install, other: Install) -> bool:
    return (public_part(one), _place(one)) == (public_part(other), _place(other))


def _place(install: Install) -> str:
    return host_of(api_key=install.odp_api_key, region=install.region, host=install.odp_host)


def _another_account(before: Install, after: Install) -> str:
    """Why a key with another public part counts as another account's; empty when the account has our audience."""
    audience = Audience.objects.filter(install=before, provisioned_at__isnull=False).order_by("pk").first()
    assert audience is not None
    client = Client(host=_place(after), api_key=after.odp_api_key)
    answer = client.call("GET", f"/v3/segments/{audience.odp_id}", seconds=SECONDS)
    if answer.outcome is Outcome.DELIVERED:
        return ""
    if answer.status == 404:
        return f"This key belongs to another ODP account: {audience.odp_id} is not there."
    return f"Whether this key belongs to the same ODP account could not be checked: {answer.reason}."
