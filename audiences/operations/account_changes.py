"""The dry run of a guided change to another ODP account, and the reasons not to begin one.

The module ``account_steps`` has the steps.
"""

from dataclasses import dataclass

from django.conf import settings
from django.db.models import F, Q, QuerySet

from audiences import odp_hosts
from audiences.delivery import account_switch, leases, shared_ids
from audiences.delivery.account_switch import Connection
from audiences.delivery.odp_account import client_of, mechanism_for, name_of, same_account
from audiences.encryption import Unreadable
from audiences.models import Audience, Forgotten, GuidedChange, Install, Retirement
from audiences.operations import retiring
from odp import segments
from odp.client import Client
from odp.mechanisms import Passthrough, Refusal
from odp.mechanisms.segments import delete_segment, ensure_segment, read_definition
from odp.outcomes import Answer

# Seconds for each request to ODP.
SECONDS = 5.0


@dataclass(frozen=True)
class Plan:
    """The dry run of a change to any other account."""

    audiences: int
    members: int
    requests: int
    # The least number of seconds for all requests; 0 without a rate limit.
    seconds: float
    # Seconds before the switch in which a request may still be applied late.
    waits_seconds: float
    # Audiences whose definition in the present account a person accepted; they get this service's definition.
    accepted: int


def plan(install: Install) -> Plan:
    """Count the work of a change, without requests to ODP."""
    audiences = _made(install).filter(lane__retired_sequence=None)
    counted = list(audiences.select_related("install").annotate(members=F("lane__member_count")))
    requests, seconds = 0, 0.0
    for audience in counted:
        needed = -(-audience.members // leases.capacity_of(install, audience.mechanism))
        requests += needed
        if install.requests_per_second and mechanism_for(audience).rate_limit:
            seconds += needed / install.requests_per_second
    return Plan(
        audiences=len(counted),
        members=sum(audience.members for audience in counted),
        requests=requests,
        seconds=round(seconds, 1),
        waits_seconds=settings.RECONCILE_AFTER_SECONDS,
        accepted=audiences.exclude(accepted_definition="").count(),
    )


def problem_of(install: Install, to: Connection) -> str:
    """Why the install can't change to this account; empty when it can. Asks ODP whether it accepts the key."""
    return _of_entered(to) or _of_account(install, account_switch.connected(install, to))


def not_now(install: Install) -> str:
    """Why the install can't change to any account now; empty when it can."""
    if not _made(install).exists():
        return "No audience of this install is in ODP yet, so another account can be entered in its form."
    passthrough = Q(mechanism=Passthrough.name) | Q(mechanism="", install__mechanism=Passthrough.name)
    if _made(install).filter(passthrough).exists():
        return (
            "ODP does not document where the members of a passthrough audience are stored, so they can't be verified in"
            " another account. Connect a new install instead."
        )
    if Retirement.objects.filter(retiring.UNFINISHED, audience__install=install).exists():
        return "An audience of this install is being retired or taken back. Begin when that is over."
    if Forgotten.objects.filter(install=install, ended_at=None).exists():
        return "A customer of this install is being forgotten. Begin when that is over."
    return ""


def _of_entered(to: Connection) -> str:
    if isinstance(to.api_key, Unreadable) or not to.api_key:
        return "Enter the private API key of the other account."
    return odp_hosts.problem_of_key(to.api_key) or odp_hosts.problem_of(to.host)


def _of_account(install: Install, other: Install) -> str:
    if same_account(install, other):
        return "This is the account that the install has already. Enter its new key in the form of the install."
    if why := rival(other):
        return f"{why} Begin when that has ended."
    found = segments.ids(client_of(other), seconds=SECONDS)
    if isinstance(found, Answer):
        return f"{name_of(other)} could not be used. {found.reason or 'It has no list of audiences.'}"
    if (taken := shared_ids.taken(other)) is not None:
        return (
            f"The install {taken.install.name} uses the ODP id {taken.odp_id} in that account already. With one id, an"
            " exit in one install would remove customers that the other one entered."
        )
    return ""


def rival(other: Install) -> str:
    """Which install is changing to or from the account that an install would have; empty when no other one is."""
    changes = GuidedChange.objects.filter(kind=GuidedChange.Kind.ACCOUNT, ended_at=None)
    for change in changes.exclude(install=other.pk).select_related("install"):
        connection = Connection(change.other_region, change.other_host, change.other_api_key)
        if same_account(account_switch.connected(change.install, connection), other):
            return f"The install {change.install} is changing to or from this account."
    return ""


def is_one_account(install: Install, old: Client, new: Client, *, seconds: float) -> bool | Answer | Refusal:
    """Make a real-time audience with the old key, look for it with the new one, and delete it.

    Returns an ``Answer`` when an account gave no usable response, and a ``Refusal`` when the old one rejects the
    audience. If the worker dies before the deletion, the next call finds the audience and deletes it.
    """
    audience = _made(install).order_by("pk").first()
    definition = audience and mechanism_for(audience).definition(audience.odp_id)
    if not definition:
        return False
    marker = f"lytics_check_{install.public_id}_account"
    label = "Lytics - check of a change, deleted afterwards"
    problem = ensure_segment(old, marker, label, definition, seconds=seconds, accepted="")
    if problem is not None:
        return problem
    found = read_definition(new, marker, seconds=seconds)
    deleted = delete_segment(old, marker, seconds=seconds)
    answers = [each for each in (found, deleted) if isinstance(each, Answer)]
    return answers[0] if answers else found is not None


def _made(install: Install) -> QuerySet[Audience]:
    return Audience.objects.filter(install=install, provisioned_at__isnull=False)
