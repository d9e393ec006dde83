"""Accounts, what they hold, and their keys. An account is in one region; a private key is `<public>.<secret>`."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from sandbox.odp.account.assumptions import Assumptions
from sandbox.odp.account.customers import Customer, Customers
from sandbox.odp.account.limits import Limits
from sandbox.odp.account.schema import CustomerSchema

REGIONS = ("us", "eu1", "au1")


def region_of(key: str) -> str:
    """The region of a key: its public part ends with the region, except in the US."""
    public = key.partition(".")[0]
    return next((region for region in REGIONS[1:] if public.endswith(f"-{region}")), "us")


@dataclass(slots=True)
class ContactList:
    list_id: str
    name: str
    created_at: str

    def as_json(self) -> dict[str, Any]:
        return {"name": self.name, "list_id": self.list_id, "created_at": self.created_at}


@dataclass(slots=True)
class Segment:
    id: str
    description: str
    metadata: dict[str, str]
    definition: dict[str, Any]
    # None for a passthrough segment: its members come from passthrough events that name `external_id`.
    condition: Callable[[Customer], bool | None] | None
    external_id: str | None = None
    revision: int = 1

    def as_json(self) -> dict[str, Any]:
        return {
            "revision": self.revision,
            "description": self.description,
            "metadata": self.metadata,
            "definition": self.definition,
        }


@dataclass(slots=True, eq=False)
class Account:
    private: str
    consent: str = "opted_in"
    passthrough: bool = True
    assumptions: Assumptions = field(default_factory=Assumptions)
    limits: Limits = field(default_factory=Limits)
    schema: CustomerSchema = field(init=False)
    customers: Customers = field(init=False)
    lists: dict[str, ContactList] = field(init=False)
    segments: dict[str, Segment] = field(init=False)
    # By identifier, not by customer: ODP doesn't resolve identities for passthrough events.
    passthrough_members: dict[tuple[str, str], dict[str, tuple[float, bool]]] = field(init=False)
    consents: dict[tuple[str, str], dict[str, Any]] = field(init=False)
    objects: dict[str, dict[str, Any]] = field(init=False)
    revoked: dict[str, float] = field(default_factory=dict)
    # A version of the schema, and the executable GraphQL schema of it.
    built_graphql: tuple[object, object] | None = None

    def __post_init__(self) -> None:
        self.forget_everything()

    def forget_everything(self) -> None:
        self.schema = CustomerSchema(self.assumptions)
        self.lists = {}
        self.segments = {}
        self.forget_customers()

    def forget_customers(self) -> None:
        self.customers = Customers(self.schema)
        self.passthrough_members = {}
        self.consents = {}
        self.objects = {}

    @property
    def public(self) -> str:
        return self.private.partition(".")[0]

    @property
    def region(self) -> str:
        return region_of(self.private)

    def describe(self) -> dict[str, Any]:
        return {
            "public_key": self.public,
            "private_key": self.private,
            "region": self.region,
            "consent": self.consent,
            "passthrough": self.passthrough,
            "rates": self.limits.rates(),
        }


@dataclass(slots=True)
class Caller:
    """The account of a request, and whether its key is the private one."""

    account: Account
    is_private: bool


class Accounts:
    def __init__(self, serves_region: str = "any") -> None:
        self.serves_region = serves_region
        self._by_public: dict[str, Account] = {}

    def __iter__(self) -> Iterator[Account]:
        return iter(self._by_public.values())

    def add(self, account: Account) -> None:
        self._by_public[account.public] = account

    def named(self, public: str | None) -> Account | None:
        return self._by_public.get(public) if public else next(iter(self), None)

    def caller(self, key: str, now: float) -> Caller | None:
        account = self._by_public.get(key.partition(".")[0])
        if account is None or key not in (account.public, account.private):
            return None
        if self.serves_region not in ("any", account.region) or account.revoked.get(key, now + 1) <= now:
            return None
        return Caller(account, is_private=key == account.private)
