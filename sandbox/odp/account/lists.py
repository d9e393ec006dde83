"""Lists and subscriptions to them."""

import re
from typing import Any

from sandbox.odp.account.accounts import Account
from sandbox.odp.account.schema import Complaint


def list_id_of(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "_", name.lower())


def check_subscriptions(account: Account, items: list[Any], now: float) -> list[Complaint]:
    return [(at, wrong) for at, item in enumerate(items) if (wrong := _wrong_with(account, item))]


def _wrong_with(account: Account, item: Any) -> str | None:
    if not isinstance(item, dict):
        return "must be an object"
    if str(item.get("list_id")) not in account.lists:
        return f"list_id {item.get('list_id')!r} is not a list"
    if not isinstance(item.get("subscribed"), bool):
        return "subscribed must be a boolean"
    rest = {name: value for name, value in item.items() if name not in ("list_id", "subscribed")}
    unknown = [name for name in rest if name not in account.schema.identifiers]
    if unknown and account.assumptions.unknown_field == "refuse":
        return f"unknown field {unknown[0]}"
    identifiers = account.schema.known_identifiers(rest)
    if isinstance(identifiers, str):
        return identifiers
    messaging = any(account.schema.identifiers[kind].messaging for kind in identifiers)
    if account.assumptions.list_identifiers == "messaging" and not messaging:
        return "a messaging identifier is required"
    return None


def apply_subscriptions(account: Account, items: list[dict[str, Any]], at: float) -> None:
    consented = account.consent == "opted_in"
    for item in items:
        identifiers = account.schema.known_identifiers(item)
        if isinstance(identifiers, str) or item["list_id"] not in account.lists:
            continue  # a reset deleted the list before the write became visible
        customer = account.customers.write(tuple(identifiers), identifiers)
        customer.lists = (customer.lists or {}) | {item["list_id"]: (item["subscribed"], at, consented)}
