"""Endpoints that take many items in one request: read them, refuse the bad ones, and accept the rest."""

from collections.abc import Callable
from typing import Any

from sandbox.odp.account.accounts import Account, Caller
from sandbox.odp.account.assumptions import Assumptions
from sandbox.odp.account.events import check_events
from sandbox.odp.account.lists import check_subscriptions
from sandbox.odp.account.profiles import check_profiles
from sandbox.odp.account.schema import Complaint
from sandbox.odp.wire.answers import Answer, Refused, accepted, bad_request, in_json, invalid_items
from sandbox.odp.wire.request import Request
from sandbox.odp.world import World

MOST_ITEMS = 500


def as_items(body: Any, stamp: str, assumptions: Assumptions) -> list[Any]:
    """The items of a body. A single object counts as an array with one item."""
    items = [body] if isinstance(body, dict) else body
    if not isinstance(items, list) or not items:
        raise Refused(bad_request(stamp, "an object or a non-empty array of objects is expected"))
    if len(items) > MOST_ITEMS:
        message = f"at most {MOST_ITEMS} items are accepted, this call has {len(items)}"
        too_many = {"title": "Payload Too Large", "status": 413, "timestamp": stamp, "detail": {"message": message}}
        raise Refused(in_json(413, too_many) if assumptions.too_many_items == "413" else bad_request(stamp, message))
    return items


def post_profiles(world: World, caller: Caller, request: Request) -> Answer:
    def check(account: Account, items: list[Any], now: float) -> list[Complaint]:
        return check_profiles(account, items, now, world.observer.unknown_fields)

    return _take(world, caller, request, "profiles", check) or accepted(world.clock.stamp())


def post_events(world: World, caller: Caller, request: Request) -> Answer:
    return _take(world, caller, request, "events", check_events) or accepted(world.clock.stamp())


def post_subscriptions(world: World, caller: Caller, request: Request) -> Answer:
    refusal = _take(world, caller, request, "subscriptions", check_subscriptions)
    return refusal or in_json(202, {"updates": request.items})


def post_consent(world: World, caller: Caller, request: Request) -> Answer:
    return _take(world, caller, request, "consents", _check_consents) or accepted(world.clock.stamp())


def _take(
    world: World,
    caller: Caller,
    request: Request,
    kind: str,
    check: Callable[[Account, list[Any], float], list[Complaint]],
) -> Answer | None:
    """Check all items, apply a fault that refuses some, and accept the rest. None means that all were accepted."""
    account, stamp = caller.account, world.clock.stamp()
    items = as_items(request.require_json(stamp), stamp, account.assumptions)
    complaints, named = check(account, items, world.clock.now()), True
    if (fault := request.fault) is not None and fault.picks_items:
        complaints += [(at, fault.message) for at, item in enumerate(items) if fault.picks(item)]
        named = fault.names_items
    good, refusal = sort_out(items, complaints, stamp, account.assumptions, named=named)
    if good:
        world.accept(kind, account, good, request.seen)
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


def post_objects(world: World, caller: Caller, request: Request) -> Answer:
    """Store rows by `<name>_id` or `id`. Relations to customers are not modelled."""
    name, stamp = request.named["object"], world.clock.stamp()
    rows = as_items(request.require_json(stamp), stamp, caller.account.assumptions)
    keyed = [{"object": name, "key": _primary_key(name, row), "row": row} for row in rows]
    missing = [(at, "the primary key is required") for at, row in enumerate(keyed) if not row["key"]]
    good, refusal = sort_out(keyed, missing, stamp, caller.account.assumptions)
    if good:
        world.accept("objects", caller.account, good, request.seen)
    return refusal or accepted(stamp)


def _primary_key(name: str, row: Any) -> str | None:
    if not isinstance(row, dict):
        return None
    value = row.get(f"{name.removesuffix('s')}_id", row.get("id"))
    return None if value is None else str(value)


def sort_out(
    items: list[Any], complaints: list[Complaint], stamp: str, assumptions: Assumptions, *, named: bool = True
) -> tuple[list[Any], Answer | None]:
    """The items to apply, and the response if it reports bad items."""
    if not complaints:
        return items, None
    bad = {at for at, _ in complaints}
    good = [item for at, item in enumerate(items) if at not in bad]
    if assumptions.batch_rejection == "drop":
        return good, None
    named = named and assumptions.bad_items == "named"
    refusal = _naming(complaints, stamp, assumptions) if named else bad_request(stamp, "the request has invalid items")
    return (good if assumptions.batch_rejection == "partial" else []), refusal


def _naming(complaints: list[Complaint], stamp: str, assumptions: Assumptions) -> Answer:
    key = assumptions.invalids_key
    return invalid_items(stamp, [{key: at, "message": message} for at, message in sorted(complaints)])
