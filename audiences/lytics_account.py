"""A Lytics account as the settings describe it: the client that calls Lytics' API with an API token.

The code is here and not in ``lytics``, because it reads the settings of this project.
"""

from django.conf import settings

from lytics.api.client import Client, Permission


def client_with(token: str, *, permission: Permission | None = None, ends_at: float = float("inf")) -> Client:
    return Client(
        token=token,
        url=settings.LYTICS_API_URL,
        seconds=settings.LYTICS_API_SECONDS,
        permission=permission,
        ends_at=ends_at,
    )
