"""A Lytics account as an install and the settings describe it: the client that calls Lytics' API with an API token.

The code is here and not in ``lytics``, because it reads the tables and the settings of this project. The writer of
LyticsAccounts.
"""

from dataclasses import dataclass
from datetime import datetime

from django.conf import settings
from django.db import transaction
from django.db.models import F, Q
from django.utils.timezone import now

from audiences.encryption import opened
from audiences.models import Install, LyticsAccount
from lytics.api.client import Client, Permission


def client_with(token: str, *, permission: Permission | None = None, ends_at: float = float("inf")) -> Client:
    return Client(
        token=token,
        url=settings.LYTICS_API_URL,
        seconds=settings.LYTICS_API_SECONDS,
        permission=permission,
        ends_at=ends_at,
    )


def client_of(install: Install, *, ends_at: float = float("inf")) -> Client | None:
    """The client of Lytics' API; None without a token. Raises ``ImproperlyConfigured`` if it can't be decrypted."""
    account = LyticsAccount.objects.filter(install=install).first()
    return client_with(opened(account.api_token), ends_at=ends_at) if account else None


def set_token(install: Install, token: str) -> None:
    """Store the token; an empty one removes it."""
    if token:
        stored = {"api_token": token, "changed_at": now(), "job_looked_at": None}
        LyticsAccount.objects.update_or_create(install=install, defaults=stored)
    else:
        LyticsAccount.objects.filter(install=install).delete()


def take_job_look(*, before: datetime) -> int | None:
    """Store that the install with the oldest look at its jobs is looked at now, if that look was before this time.

    Returns the install's id; None if no look is due. Installs that are off, drafts, and installs without an API token
    are left out.
    """
    may_ask = Q(install__enabled=True, install__key_accepted_at__isnull=False)
    is_due = Q(job_looked_at=None) | Q(job_looked_at__lte=before)
    oldest_first = F("job_looked_at").asc(nulls_first=True)
    with transaction.atomic():
        unlocked = LyticsAccount.objects.select_for_update(skip_locked=True, of=("self",))
        due = unlocked.filter(may_ask, is_due).order_by(oldest_first, "pk").only("install_id").first()
        if due is not None:
            LyticsAccount.objects.filter(pk=due.pk).update(job_looked_at=now())
    return due.install_id if due else None


def look_again(install: Install) -> None:
    """Have the next run of the schedule look at the install's jobs, because they were changed."""
    LyticsAccount.objects.filter(install=install).update(job_looked_at=None)


def has_token(install: Install) -> bool:
    return LyticsAccount.objects.filter(install=install).exists()


@dataclass(frozen=True)
class Lease:
    """The right to change Lytics for an install. It expires, so that a killed run doesn't block later runs."""

    install_id: int
    until: datetime


def lease(install: Install, *, until: datetime) -> Lease | None:
    """Take the lease. None while another run holds it, or without a token."""
    is_free = Q(connecting_until_at=None) | Q(connecting_until_at__lte=now())
    won = LyticsAccount.objects.filter(is_free, install=install).update(connecting_until_at=until)
    return Lease(install.pk, until) if won else None


def release(held: Lease) -> None:
    """Release the lease, unless it has expired and another run holds it now."""
    mine = LyticsAccount.objects.filter(install_id=held.install_id, connecting_until_at=held.until)
    mine.update(connecting_until_at=None)


def leased_until(install: Install) -> datetime | None:
    account = LyticsAccount.objects.filter(install=install).only("connecting_until_at").first()
    return account.connecting_until_at if account else None
