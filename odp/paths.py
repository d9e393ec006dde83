"""Paths of ODP's API that more than one module names."""

PROFILES = "/v3/profiles"
EVENTS = "/v3/events"
LISTS = "/v3/lists"
LIST_SUBSCRIPTIONS = "/v3/lists/subscriptions"
GRAPHQL = "/v3/graphql"
SEGMENTS = "/v3/segments"
CUSTOMERS = "/v3/schema/objects/customers"

# Writes of memberships. ODP documents their responses, so that a 2xx of another shape doesn't count as accepted
# (acceptance.py). Their bodies hold customers' identifiers, so that these are masked in errors (client.py).
MEMBERSHIP_WRITES = frozenset({PROFILES, EVENTS, LIST_SUBSCRIPTIONS})
ABOUT_CUSTOMERS = MEMBERSHIP_WRITES | {GRAPHQL}
