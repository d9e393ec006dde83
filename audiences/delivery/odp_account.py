"""An install's ODP account, as its settings describe it: the client that calls it and the mechanism that writes to it.

The code is here and not in ``odp``, because it reads an ``Install`` and the settings of this project, and ``odp`` knows
neither. All who call ODP for an install use it: deliveries, creating audiences, the test customer and the admin.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from django.conf import settings

from audiences.encryption import Unreadable, opened
from audiences.models import Audience, Install
from odp.client import Client, Permission
from odp.mechanisms import Mechanism, mechanism
from odp.regions import host_of

# Returns when a request of this install to that path may start; raises ``TooLateError`` after the given moment of
# ``time.monotonic``. The rate limit is passed in, because ``workers`` has it and ``audiences`` can't import that.
Gate = Callable[[Install, str, float], None]


class Account(NamedTuple):
    """The identity of an ODP account: the public part of its API keys, and its host. A new secret of a key doesn't
    change the public part. An empty public part means unknown: the key can't be decrypted.
    """

    public_part: str
    host: str


def account_of(install: Install) -> Account:
    key = install.odp_api_key
    public_part = "" if isinstance(key, Unreadable) else key.partition(".")[0]
    return Account(public_part, host_of(api_key=key, region=install.region, host=install.odp_host))


def name_of(install: Install) -> str:
    """The install's account as people know it: the public part of its key, and its host."""
    account = account_of(install)
    return f"{account.public_part or 'an unreadable key'} at {account.host}"[:100]


def same_account(one: Install, other: Install) -> bool:
    return bool(account_of(one).public_part) and account_of(one) == account_of(other)


def client_of(install: Install, *, ends_at: float = float("inf"), gate: Gate | None = None) -> Client:
    api_key = opened(install.odp_api_key)
    permission: Permission | None = gate and partial(gate, install)
    return Client(
        host=host_of(api_key=api_key, region=install.region, host=install.odp_host),
        api_key=api_key,
        ends_at=ends_at,
        permission=permission,
        longest_retry_after=settings.ODP_LONGEST_RETRY_AFTER_SECONDS,
        empty_is_accepted=settings.ODP_EMPTY_IS_ACCEPTED,
    )


def mechanism_of(install: Install, name: str = "") -> Mechanism:
    """The mechanism ``name`` as the settings configure it; by default the install's."""
    return mechanism(name or install.mechanism, passthrough_definition=settings.ODP_PASSTHROUGH_DEFINITION)


def mechanism_for(audience: Audience) -> Mechanism:
    return mechanism_of(audience.install, audience.mechanism)
