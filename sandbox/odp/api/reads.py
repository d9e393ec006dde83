"""Endpoints that only read: one customer, lists and customer fields."""

from typing import Any

from sandbox.odp.account.accounts import Account, Caller
from sandbox.odp.account.customers import Customer
from sandbox.odp.wire.answers import Answer, Refused, bad_request, in_json, not_found
from sandbox.odp.wire.request import Request
from sandbox.odp.world import World


def read_answer(account: Account, body: Any) -> Answer:
    return in_json(int(account.assumptions.read_status), body)


def get_profile(world: World, caller: Caller, request: Request) -> Answer:
    customer = _customer_asked_for(world, caller, request)
    known = {name: value for name, value in customer.record.items() if value is not None}
    return read_answer(caller.account, {"attributes": known | {"zaius_id": customer.zaius_id}})


def get_subscriptions(world: World, caller: Caller, request: Request) -> Answer:
    customer = _customer_asked_for(world, caller, request)
    lists = caller.account.lists
    subscriptions = [
        {"name": lists[name].name, "list_id": name, "subscribed": subscribed, "ts_status_updated": int(at)}
        for name, (subscribed, at, _) in (customer.lists or {}).items()
        if name in lists
    ]
    asked = {kind: value for kind, value in request.query.items() if kind in caller.account.schema.identifiers}
    opted_in = caller.account.consent == "opted_in"
    body = {"customer": asked, "opted_in": opted_in, "explicit_opt_in": False, "subscriptions": subscriptions}
    return read_answer(caller.account, body)


def _customer_asked_for(world: World, caller: Caller, request: Request) -> Customer:
    account, stamp = caller.account, world.clock.stamp()
    asked = [(kind, value) for kind, value in request.query.items() if kind in account.schema.identifiers]
    if len(asked) != 1:
        raise Refused(bad_request(stamp, "exactly one known identifier is required"))
    customer = account.customers.find(*asked[0])
    if customer is None:
        raise Refused(not_found(stamp, f"no customer with {asked[0][0]} = {asked[0][1]}"))
    return customer


def get_consent(world: World, caller: Caller, request: Request) -> Answer:
    known = caller.account.consents.get((request.named["identifier"], request.query.get("id", "")))
    if known is None:
        return not_found(world.clock.stamp(), "no consent is known for this identifier")
    return read_answer(caller.account, known)


def get_lists(world: World, caller: Caller, request: Request) -> Answer:
    return read_answer(caller.account, {"lists": [each.as_json() for each in caller.account.lists.values()]})


def get_object(world: World, caller: Caller, request: Request) -> Answer:
    fields = [each.as_json() for each in caller.account.schema.fields.values()]
    body = {"name": "customers", "display_name": "Customers", "alias": "customer", "fields": fields, "relations": []}
    return read_answer(caller.account, body)


def get_fields(world: World, caller: Caller, request: Request) -> Answer:
    return read_answer(caller.account, [each.as_json() for each in caller.account.schema.fields.values()])


def get_field(world: World, caller: Caller, request: Request) -> Answer:
    known = caller.account.schema.fields.get(request.named["field"])
    if known is None:
        return not_found(world.clock.stamp(), f"no field {request.named['field']} on customers")
    return read_answer(caller.account, known.as_json())
