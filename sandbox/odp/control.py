"""`/sandbox/…`, which ODP doesn't have: script faults, move the clock and read what the sandbox observed."""

import os
from collections.abc import Callable
from typing import Any

from sandbox.odp.account.accounts import REGIONS, Account, region_of
from sandbox.odp.account.membership import members, qualifies
from sandbox.odp.wire.answers import Answer, in_json
from sandbox.odp.wire.observer import Seen
from sandbox.odp.wire.request import NOT_JSON, Request
from sandbox.odp.world import World

PREFIX = "/sandbox/"


def answer_control(world: World, request: Request) -> Answer:
    name, _, rest = request.path.removeprefix(PREFIX).partition("/")
    handle = CONTROLS.get((request.method, name))
    if handle is None:
        known = ", ".join(f"{method} {PREFIX}{name}" for method, name in CONTROLS)
        return in_json(404, {"error": f"no such control; there are {known}"})
    try:
        return in_json(200, handle(world, request, rest))
    except LookupError as missing:
        return in_json(404, {"error": str(missing.args[0])})
    except (ValueError, TypeError, KeyError) as wrong:
        return in_json(400, {"error": str(wrong)})


def _json_object(request: Request) -> dict[str, Any]:
    if request.body and not isinstance(request.parsed, dict):
        raise ValueError("the body must be a JSON object")
    return request.parsed if request.parsed is not NOT_JSON else {}


def _account(world: World, public: str | None) -> Account:
    account = world.accounts.named(public)
    if account is None:
        raise LookupError(f"no account {public!r}")
    return account


def ready(world: World, request: Request, rest: str) -> Any:
    return {"ready": True, "pid": os.getpid(), "accounts": [each.describe() for each in world.accounts]}


def add_fault(world: World, request: Request, rest: str) -> Any:
    return {"id": world.faults.add(_json_object(request)).number}


def list_faults(world: World, request: Request, rest: str) -> Any:
    return {"faults": world.faults.all()}


def clear_faults(world: World, request: Request, rest: str) -> Any:
    world.faults.clear()
    return {}


def show_requests(world: World, request: Request, rest: str) -> Any:
    seen = world.observer.since(int(request.query.get("since", 0)))
    if path := request.query.get("path"):
        seen = [each for each in seen if each.path.startswith(path)]
    if limit := request.query.get("limit"):
        seen = seen[: int(limit)]
    with_body = request.query.get("bodies") == "1"
    return {"requests": [each.as_json(with_body=with_body) for each in seen]}


def show_summary(world: World, request: Request, rest: str) -> Any:
    with world.lock:
        accounts = {
            each.public: {
                "customers": len(each.customers.by_number),
                "segments": len(each.segments),
                "lists": len(each.lists),
                "custom_fields": sum(not field.built_in for field in each.schema.fields.values()),
            }
            for each in world.accounts
        }
        return world.observer.summary() | {"pending_writes": len(world.visibility), "accounts": accounts}


def show_customer(world: World, request: Request, rest: str) -> Any:
    """One identifier: the customer's current record, and each write that named it, in arrival order."""
    account = _account(world, request.query.get("account"))
    kinds = [request.query["by"]] if "by" in request.query else [*account.schema.identifiers]
    with world.lock:
        found = next((each for kind in kinds if (each := account.customers.find(kind, rest))), None)
        values = {kind: found.values_of(kind) for kind in account.schema.identifiers} if found else {}
        named = [(kind, rest) for kind in kinds]
        inside = [
            each.id
            for each in account.segments.values()
            if any(qualifies(account, each, found, identifier) for identifier in named)
        ]
        shown = {
            "identifier": rest,
            "known": found is not None,
            "zaius_id": found.zaius_id if found else None,
            "attributes": dict(found.record) if found else {},
            "identifiers": {kind: held for kind, held in values.items() if held},
            "lists": {name: subscribed for name, (subscribed, _, _) in ((found and found.lists) or {}).items()},
            "segments": inside,
        }
    wanted = {rest, *(value for held in values.values() for value in held)}
    mentions = world.observer.with_bodies_that_mention(wanted)
    writes = [write for seen in mentions if seen.items for write in _writes(seen, wanted)]
    return shown | {"writes": writes, "complete": world.observer.bodies_let_go == 0}


def _writes(seen: Seen, wanted: set[str]) -> list[dict[str, Any]]:
    request = Request(seen.method, seen.path, {}, {})
    request.take_body(seen.body or b"")
    return [
        {
            "number": seen.number,
            "endpoint": seen.endpoint,
            "arrived": seen.arrived,
            "ended": seen.ended,
            "status": seen.status,
            "applied": seen.applied and at not in seen.left_out,
            "item": item,
        }
        for at, item in enumerate(request.items)
        if _mentions(item, wanted)
    ]


def _mentions(item: Any, wanted: set[str]) -> bool:
    if isinstance(item, dict):
        return any(_mentions(value, wanted) for value in item.values())
    return isinstance(item, str) and item in wanted


def show_memberships(world: World, request: Request, rest: str) -> Any:
    account = _account(world, request.query.get("account"))
    by = request.query.get("by", "fs_user_id")
    with world.lock:
        if rest not in account.segments:
            raise LookupError(f"no segment {rest!r}")
        inside = members(account, account.segments[rest], by)
    return {"segment_id": rest, "by": by, "count": len(inside), "members": inside}


def reset(world: World, request: Request, rest: str) -> Any:
    world.reset(keep_schema=_json_object(request).get("keep_schema", False) is True)
    return {}


def move_clock(world: World, request: Request, rest: str) -> Any:
    world.clock.advance(float(_json_object(request).get("advance_seconds", 0)))
    if _json_object(request).get("apply_pending"):
        world.visibility.apply_all()
    world.visibility.nudge()
    return {"now": world.clock.stamp(), "epoch_seconds": world.clock.now(), "pending_writes": len(world.visibility)}


def add_account(world: World, request: Request, rest: str) -> Any:
    """Create the account if it doesn't exist, and change its settings."""
    given = _json_object(request)
    unknown = set(given) - {"private_key", "region", "consent", "passthrough", "rates", "assumptions"}
    if unknown:
        raise ValueError(f"unknown: {', '.join(sorted(unknown))}")
    key = str(given.get("private_key") or world.options.private_key)
    if not all(key.partition(".")):
        raise ValueError("private_key is <public>.<secret>")
    if (region := given.get("region", region_of(key))) != region_of(key):
        raise ValueError(f"region {region!r} needs a public key that says so; there are {', '.join(REGIONS)}")
    settings = {name: value for name, value in given.items() if name not in ("private_key", "region")}
    with world.lock:
        account = world.accounts.named(key.partition(".")[0])
        if account is None or account.private != key:
            account = world.add_account(key)
        world.change("settings", account, settings)
        return account.describe()


def revoke_key(world: World, request: Request, rest: str) -> Any:
    key = str(_json_object(request)["key"])
    account = _account(world, key.partition(".")[0])
    if key not in (account.private, account.public):
        raise LookupError("no such key")
    grace = _json_object(request).get("after_seconds", account.assumptions.revoked_key_seconds)
    with world.lock:
        world.change("revoked", account, {key: world.clock.now() + float(grace)})
    return {"account": account.public, "refused_after_seconds": float(grace)}


def restore_key(world: World, request: Request, rest: str) -> Any:
    key = str(_json_object(request)["key"])
    account = _account(world, key.partition(".")[0])
    with world.lock:
        world.change("revoked", account, {key: float(10**12)})
    return {"account": account.public}


CONTROLS: dict[tuple[str, str], Callable[[World, Request, str], Any]] = {
    ("GET", "ready"): ready,
    ("POST", "faults"): add_fault,
    ("GET", "faults"): list_faults,
    ("DELETE", "faults"): clear_faults,
    ("GET", "requests"): show_requests,
    ("GET", "summary"): show_summary,
    ("GET", "customers"): show_customer,
    ("GET", "memberships"): show_memberships,
    ("POST", "reset"): reset,
    ("POST", "clock"): move_clock,
    ("POST", "accounts"): add_account,
    ("POST", "keys"): lambda world, request, rest: KEY_CONTROLS[rest](world, request, rest),
}

KEY_CONTROLS: dict[str, Callable[[World, Request, str], Any]] = {"revoke": revoke_key, "restore": restore_key}
