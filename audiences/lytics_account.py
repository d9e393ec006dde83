"""A Lytics account as an install and the settings describe it: the client that calls Lytics' API with an API token.

The code is here and not in ``lytics``, because it reads the tables and the settings of this project. The writer of
LyticsAccounts.
"""

from django.conf import settings
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
    """None for an install without a token. Raises ``ImproperlyConfigured`` when its token can't be decrypted."""
    account = LyticsAccount.objects.filter(install=install).first()
    return client_with(opened(account.api_token), ends_at=ends_at) if account else None


def set_token(install: Install, token: str) -> None:
    """Store the token; an empty one removes it."""
    if token:
        LyticsAccount.objects.update_or_create(install=install, defaults={"api_token": token, "changed_at": now()})
    else:
        LyticsAccount.objects.filter(install=install).delete()
