"""ODP's endpoints: which key they need, which limit they count against, and what each of them does."""

import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from sandbox.odp.accounts import Account, Caller
from sandbox.odp.answers import Answer, Refused, accepted, bad_request, in_json, invalid_items, not_found, titled
from sandbox.odp.batches import Complaint, as_items, sort_out
from sandbox.odp.conditions import Invalid
from sandbox.odp.deeds import as_deed
from sandbox.odp.events import check_events
from sandbox.odp.graphql_api import answer_query
from sandbox.odp.lists import ContactList, check_subscriptions, list_id_of
from sandbox.odp.profiles import check_profiles
from sandbox.odp.request import NOT_JSON, Request
from sandbox.odp.segments import Segment, parse_segment

if TYPE_CHECKING:
    from sandbox.odp.world import World

Handle = Callable[["World", Caller, Request], Answer]

INVALID_ARGUMENT, NOT_FOUND, ALREADY_EXISTS = 3, 5, 6  # gRPC's numbers


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


def parsed_body(world: "World", request: Request) -> Any:
    if request.parsed is NOT_JSON:
        raise Refused(bad_request(world.clock.stamp(), "The request body could not be parsed."))
    return request.parsed


def read_answer(account: Account, body: Any) -> Answer:
    return in_json(int(account.assumptions.read_status), body)


# Segments


def list_segments(world: "World", caller: Caller, request: Request) -> Answer:
    return in_json(200, {"segment_ids": [*caller.account.segments]})


def get_segment(world: "World", caller: Caller, request: Request) -> Answer:
    segment = caller.account.segments.get(request.named["segment_id"])
    return in_json(200, segment.as_json()) if segment else _no_segment(world, caller, request)


def put_segment(world: "World", caller: Caller, request: Request) -> Answer:
    return _install(world, caller, request, must_be_new=False)


def post_segment(world: "World", caller: Caller, request: Request) -> Answer:
    return _install(world, caller, request, must_be_new=caller.account.assumptions.segment_post_existing == "refuse")


def _install(world: "World", caller: Caller, request: Request, *, must_be_new: bool) -> Answer:
    account = caller.account
    segment = _parse(world, caller, request)
    old = account.segments.get(segment.id)
    if old is not None and must_be_new:
        message = f"segment {segment.id} already exists"
        return _segment_error(world, account, 400, ALREADY_EXISTS, message)
    if old is None and 0 < account.assumptions.segment_limit <= len(account.segments):
        return _segment_error(world, account, 400, INVALID_ARGUMENT, "the account has no room for another segment")
    if old is not None:
        segment.revision = old.revision + 1
        if account.assumptions.metadata_on_replace == "merge":
            segment.metadata = old.metadata | segment.metadata
    world.do("segment", account, as_deed(segment))
    return in_json(201 if old is None else 200, {"revision": segment.revision})


def validate_segment(world: "World", caller: Caller, request: Request) -> Answer:
    _parse(world, caller, request)
    return in_json(200, {})


def delete_segment(world: "World", caller: Caller, request: Request) -> Answer:
    if request.named["segment_id"] not in caller.account.segments:
        return _no_segment(world, caller, request)
    world.do("segment_deleted", caller.account, request.named["segment_id"])
    return in_json(200, {})


def _parse(world: "World", caller: Caller, request: Request) -> Segment:
    body = parsed_body(world, request)
    try:
        return parse_segment(caller.account, request.named["segment_id"], body)
    except Invalid as invalid:
        raise Refused(_segment_error(world, caller.account, 400, INVALID_ARGUMENT, str(invalid))) from invalid


def _no_segment(world: "World", caller: Caller, request: Request) -> Answer:
    message = f"segment {request.named['segment_id']} not found"
    return _segment_error(world, caller.account, 404, NOT_FOUND, message)


def _segment_error(world: "World", account: Account, status: int, code: int, message: str) -> Answer:
    if account.assumptions.segment_errors == "titled":
        return titled(status, world.clock.stamp(), {"message": message})
    return in_json(status, {"code": code, "message": message, "details": []})


# Writes of many items


def post_profiles(world: "World", caller: Caller, request: Request) -> Answer:
    def check(account: Account, items: list[Any], now: float) -> list[Complaint]:
        return check_profiles(account, items, now, world.observer.unknown_fields)

    return _take(world, caller, request, "profiles", check) or accepted(world.clock.stamp())


def post_events(world: "World", caller: Caller, request: Request) -> Answer:
    return _take(world, caller, request, "events", check_events) or accepted(world.clock.stamp())


def post_subscriptions(world: "World", caller: Caller, request: Request) -> Answer:
    refusal = _take(world, caller, request, "subscriptions", check_subscriptions)
    return refusal or in_json(202, {"updates": request.items})


def post_consent(world: "World", caller: Caller, request: Request) -> Answer:
    return _take(world, caller, request, "consents", _check_consents) or accepted(world.clock.stamp())


def _take(
    world: "World",
    caller: Caller,
    request: Request,
    kind: str,
    check: Callable[[Account, list[Any], float], list[Complaint]],
) -> Answer | None:
    """Check, let a fault object as well, accept what is left. None means plainly accepted."""
    account, stamp = caller.account, world.clock.stamp()
    items = as_items(parsed_body(world, request), stamp, account.assumptions)
    complaints, named = check(account, items, world.clock.now()), True
    if (fault := request.fault) is not None and fault.picks_items:
        complaints += [(at, fault.message) for at, item in enumerate(items) if fault.picks(item)]
        named = fault.names_items
    good, refusal = sort_out(items, complaints, stamp, account.assumptions, named=named)
    if good:
        world.accept(kind, account, good, request)
    if complaints:
        request.seen.left_out = tuple(sorted({at for at, _ in complaints}))
    return refusal


def _check_consents(account: Account, items: list[Any], now: float) -> list[Complaint]:
    return [(at, wrong) for at, item in enumerate(items) if (wrong := _wrong_with_consent(account, item))]


def _wrong_with_consent(account: Account, item: Any) -> str | None:
    if not isinstance(item, dict) or str(item.get("identifier_field_name")) not in account.schema.identifiers:
        return "identifier_field_name must be a known identifier"
    if not isinstance(item.get("identifier_value"), str) or not item["identifier_value"].strip():
        return "identifier_value is required"
    return None if isinstance(item.get("consent"), bool) else "consent must be a boolean"


def post_objects(world: "World", caller: Caller, request: Request) -> Answer:
    """Rows are kept by `<name>_id`, or by `id`; relations to customers are not followed."""
    name, stamp = request.named["object"], world.clock.stamp()
    rows = as_items(parsed_body(world, request), stamp, caller.account.assumptions)
    keyed = [{"object": name, "key": _primary_key(name, row), "row": row} for row in rows]
    missing = [(at, "the primary key is required") for at, row in enumerate(keyed) if not row["key"]]
    good, refusal = sort_out(keyed, missing, stamp, caller.account.assumptions)
    if good:
        world.accept("objects", caller.account, good, request)
    return refusal or accepted(stamp)


def _primary_key(name: str, row: Any) -> str | None:
    if not isinstance(row, dict):
        return None
    value = row.get(f"{name.removesuffix('s')}_id", row.get("id"))
    return None if value is None else str(value)


# Reads about one customer


def get_profile(world: "World", caller: Caller, request: Request) -> Answer:
    customer = _customer_asked_for(world, caller, request)
    known = {name: value for name, value in customer.record.items() if value is not None}
    return read_answer(caller.account, {"attributes": known | {"zaius_id": customer.zaius_id}})


def get_subscriptions(world: "World", caller: Caller, request: Request) -> Answer:
    customer = _customer_asked_for(world, caller, request)
    lists = caller.account.lists
    subscriptions = [
        {"name": lists[name].name, "list_id": name, "subscribed": subscribed, "ts_status_updated": int(at)}
        for name, (subscribed, at, _) in (customer.lists or {}).items()
        if name in lists
    ]
    asked = {kind: value for kind, value in request.query.items() if kind in caller.account.schema.identifiers}
    opted_in = caller.account.consent == "opted_in"
    told = {"customer": asked, "opted_in": opted_in, "explicit_opt_in": False, "subscriptions": subscriptions}
    return read_answer(caller.account, told)


def _customer_asked_for(world: "World", caller: Caller, request: Request) -> Any:
    account, stamp = caller.account, world.clock.stamp()
    asked = [(kind, value) for kind, value in request.query.items() if kind in account.schema.identifiers]
    if len(asked) != 1:
        raise Refused(bad_request(stamp, "exactly one known identifier is required"))
    customer = account.customers.find(*asked[0])
    if customer is None:
        raise Refused(not_found(stamp, f"no customer with {asked[0][0]} = {asked[0][1]}"))
    return customer


def get_consent(world: "World", caller: Caller, request: Request) -> Answer:
    known = caller.account.consents.get((request.named["identifier"], request.query.get("id", "")))
    if known is None:
        return not_found(world.clock.stamp(), "no consent is known for this identifier")
    return read_answer(caller.account, known)


# Lists


def post_list(world: "World", caller: Caller, request: Request) -> Answer:
    stamp, body = world.clock.stamp(), parsed_body(world, request)
    name = body.get("name") if isinstance(body, dict) else None
    if not isinstance(name, str) or not name.strip():
        return invalid_items(stamp, [{"field": "name", "reason": "is required"}])
    if list_id_of(name) in caller.account.lists:
        return invalid_items(stamp, [{"field": "name", "reason": "already used by another list"}])
    made = ContactList(list_id_of(name), name, stamp)
    world.do("list", caller.account, asdict(made))
    flat = caller.account.assumptions.list_created_body == "flat"
    return in_json(202, made.as_json() if flat else {"created": made.as_json()})


def get_lists(world: "World", caller: Caller, request: Request) -> Answer:
    return read_answer(caller.account, {"lists": [each.as_json() for each in caller.account.lists.values()]})


# Schema


def get_object(world: "World", caller: Caller, request: Request) -> Answer:
    fields = [each.as_json() for each in caller.account.schema.fields.values()]
    told = {"name": "customers", "display_name": "Customers", "alias": "customer", "fields": fields, "relations": []}
    return read_answer(caller.account, told)


def get_fields(world: "World", caller: Caller, request: Request) -> Answer:
    return read_answer(caller.account, [each.as_json() for each in caller.account.schema.fields.values()])


def get_field(world: "World", caller: Caller, request: Request) -> Answer:
    known = caller.account.schema.fields.get(request.named["field"])
    if known is None:
        return not_found(world.clock.stamp(), f"no field {request.named['field']} on customers")
    return read_answer(caller.account, known.as_json())


def post_field(world: "World", caller: Caller, request: Request) -> Answer:
    made = caller.account.schema.make_field(parsed_body(world, request), world.clock.now())
    if isinstance(made, list):
        return invalid_items(world.clock.stamp(), made)
    world.do("field", caller.account, asdict(made))
    return in_json(200, made.as_json())


def post_identifier(world: "World", caller: Caller, request: Request) -> Answer:
    made = caller.account.schema.make_identifier(parsed_body(world, request))
    if isinstance(made, list):
        return invalid_items(world.clock.stamp(), made)
    identifier, its_field = made
    world.do("identifier", caller.account, asdict(identifier))
    world.do("field", caller.account, asdict(its_field))
    shown = its_field.as_json()
    seen = shown | {"name": f"{identifier.name}", "display_name": f"Last Seen {its_field.display_name}"}
    return in_json(201, {"customers": [shown], "events": [seen]})


def post_graphql(world: "World", caller: Caller, request: Request) -> Answer:
    return in_json(200, answer_query(caller, parsed_body(world, request)))


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
