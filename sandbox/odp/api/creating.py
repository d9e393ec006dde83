"""Endpoints that create one list, customer field or identifier."""

from dataclasses import asdict

from sandbox.odp.account.accounts import Caller, ContactList
from sandbox.odp.account.lists import list_id_of
from sandbox.odp.wire.answers import Answer, in_json, invalid_items
from sandbox.odp.wire.request import Request
from sandbox.odp.world import World


def post_list(world: World, caller: Caller, request: Request) -> Answer:
    stamp = world.clock.stamp()
    body = request.require_json(stamp)
    name = body.get("name") if isinstance(body, dict) else None
    if not isinstance(name, str) or not name.strip():
        return invalid_items(stamp, [{"field": "name", "reason": "is required"}])
    if list_id_of(name) in caller.account.lists:
        return invalid_items(stamp, [{"field": "name", "reason": "already used by another list"}])
    made = ContactList(list_id_of(name), name, stamp)
    world.change("list", caller.account, asdict(made))
    flat = caller.account.assumptions.list_created_body == "flat"
    return in_json(202, made.as_json() if flat else {"created": made.as_json()})


def post_field(world: World, caller: Caller, request: Request) -> Answer:
    made = caller.account.schema.make_field(request.require_json(world.clock.stamp()), world.clock.now())
    if isinstance(made, list):
        return invalid_items(world.clock.stamp(), made)
    world.change("field", caller.account, asdict(made))
    return in_json(200, made.as_json())


def post_identifier(world: World, caller: Caller, request: Request) -> Answer:
    made = caller.account.schema.make_identifier(request.require_json(world.clock.stamp()))
    if isinstance(made, list):
        return invalid_items(world.clock.stamp(), made)
    identifier, its_field = made
    world.change("identifier", caller.account, asdict(identifier))
    world.change("field", caller.account, asdict(its_field))
    shown = its_field.as_json()
    seen = shown | {"name": f"{identifier.name}", "display_name": f"Last Seen {its_field.display_name}"}
    return in_json(201, {"customers": [shown], "events": [seen]})
