"""ODP's endpoints: the key that each needs, the rate limit it counts against, and the function that handles it."""

import re
from collections.abc import Callable
from dataclasses import dataclass

from sandbox.odp.account.accounts import Caller
from sandbox.odp.api.batches import post_consent, post_events, post_objects, post_profiles, post_subscriptions
from sandbox.odp.api.creating import post_field, post_identifier, post_list
from sandbox.odp.api.graphql import post_graphql
from sandbox.odp.api.reads import (
    get_consent,
    get_field,
    get_fields,
    get_lists,
    get_object,
    get_profile,
    get_subscriptions,
)
from sandbox.odp.api.segments import (
    delete_segment,
    get_segment,
    list_segments,
    post_segment,
    put_segment,
    validate_segment,
)
from sandbox.odp.wire.answers import Answer
from sandbox.odp.wire.request import Request
from sandbox.odp.world import World

Handle = Callable[[World, Caller, Request], Answer]


@dataclass(frozen=True, slots=True)
class Endpoint:
    method: str
    pattern: str
    handle: Handle
    needs_private: bool = True
    group: str | None = None
    takes_items: bool = False

    @property
    def label(self) -> str:
        return f"{self.method} {self.pattern}"


ENDPOINTS = (
    Endpoint("GET", "/v3/segments", list_segments),
    Endpoint("POST", "/v3/segments/{segment_id}:validate", validate_segment),
    Endpoint("GET", "/v3/segments/{segment_id}", get_segment),
    Endpoint("PUT", "/v3/segments/{segment_id}", put_segment),
    Endpoint("POST", "/v3/segments/{segment_id}", post_segment),
    Endpoint("DELETE", "/v3/segments/{segment_id}", delete_segment),
    Endpoint("POST", "/v3/events", post_events, needs_private=False, takes_items=True),
    Endpoint("POST", "/v3/profiles", post_profiles, needs_private=False, group="profiles", takes_items=True),
    Endpoint("GET", "/v3/profiles", get_profile, group="profiles"),
    Endpoint("POST", "/v3/lists", post_list, group="lists"),
    Endpoint("GET", "/v3/lists", get_lists, group="lists"),
    Endpoint("POST", "/v3/lists/subscriptions", post_subscriptions, group="lists", takes_items=True),
    Endpoint("GET", "/v3/lists/subscriptions", get_subscriptions, group="lists"),
    Endpoint("GET", "/v3/schema/objects/customers", get_object),
    Endpoint("GET", "/v3/schema/objects/customers/fields", get_fields),
    Endpoint("POST", "/v3/schema/objects/customers/fields", post_field),
    Endpoint("GET", "/v3/schema/objects/customers/fields/{field}", get_field),
    Endpoint("POST", "/v3/schema/identifiers", post_identifier),
    Endpoint("POST", "/v3/objects/{object}", post_objects, takes_items=True),
    Endpoint("POST", "/v3/consent", post_consent, takes_items=True),
    Endpoint("GET", "/v3/consent/{identifier}", get_consent),
    Endpoint("POST", "/v3/graphql", post_graphql, needs_private=False, group="graphql"),
)

_EXACT = {(each.method, each.pattern): each for each in ENDPOINTS if "{" not in each.pattern}
_PATTERNS = [
    (re.compile(re.sub(r"\{(\w+)\}", r"(?P<\1>[^/]+?)", each.pattern) + r"\Z"), each)
    for each in ENDPOINTS
    if "{" in each.pattern
]


def find_endpoint(method: str, path: str) -> tuple[Endpoint | None, dict[str, str]]:
    exact = _EXACT.get((method, path))
    if exact is not None:
        return exact, {}
    for pattern, endpoint in _PATTERNS:
        if endpoint.method == method and (match := pattern.match(path)):
            return endpoint, match.groupdict()
    return None, {}
