"""What all experiments share: names of their own, a pace below a tenth of the limits, and the wait for an effect."""

import dataclasses
import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from audiences.learning.experiments import NotAnswered, Stopped
from lytics.api.client import Client as LyticsClient
from odp import graphql, paths
from odp.client import Client
from odp.mechanisms import limit_of
from odp.outcomes import Answer

# The description of each object that experiments make. An object with another description isn't theirs.
MARK = "Lytics Sync - learn_account"
CUSTOMER = "lytics-sync-learn"
FIELD = "lytics_sync_learn"
# The invented customers of a run. Each role is one customer, except in the experiments about identifiers.
ROLES = (
    *("unknown", "field", "visible", "good1", "good2", "body", "control", "event", "list", "passthrough"),
    *("a1", "b1", "w1", "x1", "a2", "b2", "w2", "x2"),
)
# Seconds between two requests that ODP limits to ten a second, and between two others. A tenth of the documented rates
# is one a second for profiles and lists, and fifty a second for GraphQL. At 1.0, requests whose way to ODP takes
# unequally long would arrive less than a second apart.
LIMITED_SECONDS = 1.1
OTHER_SECONDS = 0.1
# Seconds between two looks at the same customer.
LOOK_SECONDS = 0.5
REQUEST_SECONDS = 30.0
# Seconds after which an effect that isn't there counts as absent: writes were seen to show after 2 to 17 s.
ABSENT_SECONDS = 30.0
MOST_RUNS = 1_000


class Clock:
    def now(self) -> float:
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)


class Spacing:
    """Keeps the experiments below a tenth of the documented limits. Called right before a request's first byte."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self._last: dict[str, float] = {}

    def wait(self, path: str) -> None:
        group = limit_of(path)
        since = self.clock.now() - self._last.get(group, float("-inf"))
        self.clock.sleep(max(0.0, (LIMITED_SECONDS if group else OTHER_SECONDS) - since))
        self._last[group] = self.clock.now()


@dataclass
class Lab:
    """One run of the experiments on one pair of accounts.

    ``public_client`` calls with the public part of the key; ``patience`` is the longest wait for an effect in seconds.
    ``number`` counts the runs on this account, so that each run has customers that ODP has never seen.
    """

    client: Client
    public_client: Client | None
    clock: Clock
    install_id: str
    field: str = FIELD
    patience: float = 120.0
    batch_size: int = 500
    passthrough_definition: dict[str, Any] | None = None
    with_lists: bool = False
    # ODP ids of audiences of this service, which tell nothing about the hosted app.
    ours: frozenset[str] = frozenset()
    lytics: LyticsClient | None = None
    webhook_url: str = ""
    number: int = 1
    # What experiments tell later ones: how long a write takes to show, and whether it shows at all.
    delay: float | None = None
    field_was_there: bool = False
    attribute_shows: bool | None = None
    list_shows: bool | None = None
    # Objects that experiments made and ODP can't delete.
    left: list[str] = dataclasses.field(default_factory=list)
    problems: list[str] = dataclasses.field(default_factory=list)

    # --- names ---------------------------------------------------------------------------------------------------

    @property
    def missing(self) -> str:
        """The id of an audience that never exists."""
        return f"{self.field}_none"

    @property
    def list_segment(self) -> str:
        return f"{self.field}_list"

    @property
    def passthrough_segment(self) -> str:
        return f"{self.field}_pass"

    @property
    def segments(self) -> tuple[str, ...]:
        return self.field, self.list_segment, self.passthrough_segment

    def who(self, role: str) -> str:
        return f"{CUSTOMER}-{self.install_id}-{self.number}-{role}"

    def everyone(self) -> list[graphql.Customer]:
        both = [(name, self.who(role)) for role in ROLES for name in (graphql.FS, graphql.WEB)]
        return [*both, ("vuid", self.vuid)]

    @property
    def vuid(self) -> str:
        """ODP's device id has 32 hexadecimal characters."""
        return hashlib.sha256(self.who("vuid").encode()).hexdigest()[:32]

    def item(self, role: str, is_in: Any) -> dict[str, Any]:
        return {"attributes": {graphql.FS: self.who(role), graphql.WEB: self.who(role), self.field: is_in}}

    # --- requests ------------------------------------------------------------------------------------------------

    def call(self, method: str, path: str, content: Any = None) -> Answer:
        body = None if content is None else msgspec.json.encode(content)
        return checked(self.client.call(method, path, body=body, seconds=REQUEST_SECONDS))

    def write(self, *items: dict[str, Any]) -> Answer:
        return self.call("POST", paths.PROFILES, items)

    def must_write(self, *items: dict[str, Any]) -> None:
        answer = self.write(*items)
        if not is_taken(answer):
            raise NotAnswered(f"ODP answered {answer.status} to a plain profile")

    def query(self, client: Client, query: str, **variables: object) -> Answer:
        body = msgspec.json.encode({"query": query, "variables": variables})
        return client.call("POST", paths.GRAPHQL, body=body, seconds=REQUEST_SECONDS)

    def known(self, customers: Sequence[graphql.Customer]) -> list[bool]:
        """Which customers ODP has a record of."""
        declared = ", ".join(f"$p{nth}: String" for nth in range(len(customers)))
        fields = " ".join(f"c{nth}: customer({name}: $p{nth}) {{ __typename }}" for nth, (name, _) in _nth(customers))
        values = {f"p{nth}": value for nth, (_, value) in _nth(customers)}
        body = checked(self.query(self.client, f"query({declared}) {{ {fields} }}", **values)).json
        body = body if isinstance(body, dict) else {}
        errors = body.get("errors") or []
        if not all(graphql.is_unknown_customer(error) for error in errors) or not ("data" in body or errors):
            raise Stopped("ODP's GraphQL doesn't say which customers exist")
        data = body.get("data") or {}
        return [data.get(f"c{nth}") is not None for nth, _ in _nth(customers)]

    def inside(self, customers: Sequence[graphql.Customer], segment: str = "") -> list[bool]:
        """Which customers ODP shows in an audience, by default that of the experiments."""
        segment = segment or self.field
        found = graphql.ask(self.client, customers=customers, odp_ids=[segment], seconds=REQUEST_SECONDS)
        checked(found.answer)
        if not found.succeeded:
            raise NotAnswered(f"GraphQL answered {found.answer.status} with an error")
        return [segment in (among or ()) for among in found.qualified]

    def is_in(self, role: str, segment: str = "") -> bool:
        """Whether ODP shows a customer in the audience under both names."""
        return all(self.inside([(name, self.who(role)) for name in (graphql.FS, graphql.WEB)], segment))

    def is_shown(self, role: str) -> bool:
        """``is_in``, with an error of GraphQL as "not yet"."""
        try:
            return self.is_in(role)
        except NotAnswered:
            return False

    # --- waits ---------------------------------------------------------------------------------------------------

    def seconds_until(self, is_so: Callable[[], bool], *, at_most: float | None = None) -> float | None:
        """Look until something is so; the seconds it took, or None when it wasn't so in time.

        An error of GraphQL counts as "not yet", because ODP may not know a new audience at once. Raises it at the end.
        """
        began, at_most = self.clock.now(), self.patience if at_most is None else at_most
        while True:
            failure = None
            try:
                if is_so():
                    return self.clock.now() - began
            except NotAnswered as error:
                failure = error
            if self.clock.now() - began >= at_most:
                break
            self.clock.sleep(LOOK_SECONDS)
        if failure is not None:
            raise failure
        return None

    @property
    def settling(self) -> float:
        """Seconds after which an effect that isn't there counts as absent: at least three times the measured delay."""
        return min(self.patience, max(ABSENT_SECONDS, 3 * (self.delay or 0.0)))

    def settle(self) -> None:
        self.clock.sleep(self.settling)

    def must_show(self) -> None:
        if not self.attribute_shows:
            raise NotAnswered("ODP shows no effect of writes, so there is nothing to compare")


def checked(answer: Answer) -> Answer:
    """The answer. Raises ``Stopped`` when ODP is unreachable or too busy, or rejects the key."""
    if answer.status is None:
        raise Stopped(answer.reason)
    if answer.status in (401, 403, 429) or answer.status >= 500:
        raise Stopped(f"ODP answered {answer.status}")
    return answer


def is_taken(answer: Answer) -> bool:
    return answer.status is not None and 200 <= answer.status < 300


def _nth(customers: Sequence[graphql.Customer]) -> list[tuple[int, graphql.Customer]]:
    return list(enumerate(customers))
