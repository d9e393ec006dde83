"""Changes to an install that need a confirmation or are locked, because members would be lost silently.

The form and all other code that changes an install decide here. An API key identifies its ODP account by the public
part, before the dot, and by whether the account holds our audiences.
"""

from dataclasses import dataclass
from datetime import timedelta

from django.db.models import QuerySet, Sum
from django.utils.timezone import now

from audiences.delivery import account_switch
from audiences.delivery.odp_account import account_of, client_of, same_account
from audiences.insight import evidence, trials
from audiences.models import Audience, GuidedChange, Install, Receipt
from audiences.operations import changes, identifier_changes
from odp import segments
from odp.client import Client
from odp.mechanisms import Passthrough
from odp.outcomes import Answer, Outcome

SECONDS = 5.0
_CHANGE_ACCOUNT = "Press Change account at the top of this page: it copies the members before it switches."


@dataclass(frozen=True)
class Question:
    """A change that is made only after an operator has confirmed its consequence."""

    field: str
    consequence: str


def made(install: Install) -> int:
    """How many audiences of an install are in ODP; the test customers' doesn't count."""
    return _made(install).count()


def _made(install: Install) -> QuerySet[Audience]:
    """The audiences of Lytics in ODP. The test customers' is left out: it may be in any account."""
    audiences = Audience.objects.filter(install=install, provisioned_at__isnull=False)
    return audiences.exclude(segment_id=trials.SEGMENT_ID)


def refusals(before: Install, after: Install) -> dict[str, str]:
    """Why a change is refused, by field; empty when it is allowed."""
    if conflict := _conflict(before, after):
        return conflict
    found = {}
    if before.identifier_field != after.identifier_field and not changes.problem_of_identifier(before):
        found["identifier_field"] = (
            "Press Change identifier at the top of this page: it replaces the members in ODP, which are known by"
            f" {before.identifier_field}. This form would leave them there."
        )
    number = made(before)
    if not number:
        return found
    audiences = f"{number} audience{'' if number == 1 else 's'} of this install {'is' if number == 1 else 'are'}"
    if before.mechanism != after.mechanism:
        is_guided = Passthrough.name not in (before.mechanism, after.mechanism)
        found["mechanism"] = (
            f"{audiences} defined over the data of the present mechanism, and would not see the data of another one."
            + (
                " Press Change mechanism at the top of this page: it changes one audience after another."
                if is_guided
                else " Connect a new install with the other mechanism instead."
            )
        )
    if before.odp_prefix != after.odp_prefix:
        found["odp_prefix"] = (
            f"{audiences} in ODP under the prefix {before.odp_prefix}, and an id in ODP never changes. For one audience"
            " that is blocked, press Use another ODP id on its page."
        )
    ours, theirs = account_of(before), account_of(after)
    if ours.host != theirs.host:
        found["odp_host"] = (
            f"{audiences} in the account at {ours.host}. Another account has none of them and none of their members."
            f" {_CHANGE_ACCOUNT}"
        )
    elif ours.public_part != theirs.public_part and (problem := _another_account(before, after)):
        found["odp_api_key"] = f"{problem} {audiences} in the present account. {_CHANGE_ACCOUNT}"
    return found


def _conflict(before: Install, after: Install) -> dict[str, str]:
    """Why a guided change under way doesn't allow the change, by field."""
    if account_of(before) != account_of(after) and account_switch.is_changing(before.pk):
        return {"odp_api_key": "A change to another ODP account is under way. Stop it first, or wait for its end."}
    if before.identifier_field != after.identifier_field and _is_replaced(before):
        why = "A change to another identifier field is under way. Stop it first, or wait for its end."
        return {"identifier_field": why}
    return {}


def _is_replaced(install: Install) -> bool:
    """Whether a guided change is replacing the install's identifier field."""
    unfinished = GuidedChange.objects.filter(kind=GuidedChange.Kind.IDENTIFIER, ended_at=None)
    return unfinished.filter(install=install).exists()


def questions(before: Install | None, after: Install) -> list[Question]:
    """The consequences to confirm: another identifier field, or an account that another install uses already."""
    found = []
    if (
        before is not None
        and before.identifier_field != after.identifier_field
        and identifier_changes.audiences(before).exists()
    ):
        calls = Receipt.objects.filter(install=before, received_at__gte=now() - timedelta(hours=1))
        read = calls.aggregate(events=Sum("queued"))["events"] or 0
        found.append(
            Question(
                "identifier_field",
                f"{read:,} events were read with {before.identifier_field} in the last hour. {_seen(before, after)}"
                f" From now on every event is read with {after.identifier_field}; messages without it are parked."
                f" Exits come by {after.identifier_field}, too, so customers known by {before.identifier_field} stay"
                " members in ODP, also those who enter by waiting events."
                " Change identifier at the top of this page replaces them. At present it can't:"
                f" {changes.problem_of_identifier(before)}",
            )
        )
    other = _beside(after)
    if other is not None and (before is None or not same_account(before, after)):
        found.append(
            Question(
                "odp_api_key",
                f"The install {other.name} sends to this ODP account already, under the same prefix"
                f" {other.odp_prefix}. Audiences of this install whose ODP id {other.name} uses already will be"
                " blocked. To avoid that, enter another prefix under More.",
            )
        )
    return found


def _seen(before: Install, after: Install) -> str:
    """In how many of the newest messages each of the two fields was, as far as that is stored."""
    seen, field = evidence.of(before), after.identifier_field
    words = f"Of the newest {seen.messages:,} messages, {seen.found:,} had {before.identifier_field}."
    if seen.looked:
        words += f" {field} was in {seen.others[field]:,} of the newest {seen.looked:,} without it."
    return f"{words} This service doesn't keep whether messages with {before.identifier_field} have {field}, too."


def _beside(install: Install) -> Install | None:
    """Another install of the same ODP account whose ODP ids begin with the same prefix."""
    others = Install.objects.filter(odp_prefix=install.odp_prefix).exclude(pk=install.pk)
    return next((other for other in others if same_account(other, install)), None)


def _another_account(before: Install, after: Install) -> str:
    """Why a key with another public part counts as another account's; empty when the account has our audience."""
    audience = _made(before).order_by("pk").first()
    assert audience is not None
    client = Client(host=account_of(after).host, api_key=after.odp_api_key)
    answer = client.call("GET", f"/v3/segments/{audience.odp_id}", seconds=SECONDS)
    if answer.outcome is Outcome.DELIVERED:
        if not account_of(before).public_part or not _show_different_audiences(client_of(before), client):
            return ""
        return f"This key belongs to another ODP account: it has {audience.odp_id} too, and otherwise other audiences."
    if answer.status == 404:
        return f"This key belongs to another ODP account: {audience.odp_id} is not there."
    return f"Whether this key belongs to the same ODP account could not be checked: {answer.reason}."


def _show_different_audiences(one: Client, other: Client) -> bool:
    """Two accounts may have an audience of one id, such as one for tests. False if a key, such as a revoked one, shows
    no list.
    """
    ids, other_ids = segments.ids(one, seconds=SECONDS), segments.ids(other, seconds=SECONDS)
    return not isinstance(ids, Answer) and not isinstance(other_ids, Answer) and ids != other_ids
