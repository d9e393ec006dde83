"""Events of customers, including passthrough events, which report membership in external audiences."""

from typing import Any

from sandbox.odp.account.accounts import Account
from sandbox.odp.account.schema import Complaint, checked_text

# A `ts` from here on is in milliseconds: seconds stay below it until the year 5138.
FIRST_MILLISECONDS = 100_000_000_000


def check_events(account: Account, items: list[Any], now: float) -> list[Complaint]:
    return [(at, wrong) for at, item in enumerate(items) if (wrong := _wrong_with(account, item))]


def _wrong_with(account: Account, item: Any) -> str | None:
    if not isinstance(item, dict):
        return "must be an object"
    if not isinstance(item.get("type"), str) or not item["type"].strip():
        return "missing 'type' field"
    if account.assumptions.event_action == "required" and not item.get("action"):
        return "missing 'action' field"
    identifiers, data = item.get("identifiers"), item.get("data", {})
    if not isinstance(identifiers, dict):
        return "identifiers must be an object"
    if not isinstance(data, dict):
        return "data must be an object"
    return (
        _wrong_with_identifiers(account, identifiers)
        or _wrong_with_data(data)
        or (_wrong_with_passthrough(account, item) if item["type"] == "passthrough" else None)
    )


def _wrong_with_identifiers(account: Account, identifiers: dict[str, Any]) -> str | None:
    unknown = [kind for kind in identifiers if kind not in account.schema.identifiers]
    if unknown and account.assumptions.unknown_field == "refuse":
        return f"unknown identifier {unknown[0]}"
    found = account.schema.known_identifiers(identifiers)
    return found if isinstance(found, str) else None


def _wrong_with_data(data: dict[str, Any]) -> str | None:
    for name, value in data.items():
        if isinstance(value, str):
            try:
                checked_text(value)
            except ValueError as wrong:
                return f"{name} {wrong}"
    ts = data.get("ts")
    if ts is not None and (isinstance(ts, bool) or not isinstance(ts, (int, float))):
        return "ts must be epoch seconds"
    return None


def _wrong_with_passthrough(account: Account, item: dict[str, Any]) -> str | None:
    data, identifiers = item.get("data", {}), item["identifiers"]
    ts = data.get("ts")
    if not account.passthrough:
        return "passthrough audiences are not enabled for this account"
    if len(identifiers) != 1 or not account.schema.is_high(next(iter(identifiers))):
        return "a passthrough event has exactly one identifier, of high confidence"
    if item.get("action") not in ("qualify", "disqualify"):
        return "action must be qualify or disqualify"
    if not isinstance(data.get("audience_id"), str) or not data["audience_id"]:
        return "audience_id is required"
    if isinstance(ts, bool) or not isinstance(ts, int) or not 0 < ts < FIRST_MILLISECONDS:
        return "ts must be whole epoch seconds"
    return None


def apply_events(account: Account, items: list[dict[str, Any]], at: float) -> None:
    """Link the identifiers of each event. Only passthrough events have a further effect."""
    for item in items:
        identifiers = account.schema.known_identifiers(item["identifiers"])
        if item["type"] == "passthrough":
            _apply_passthrough(account, item)
        elif not isinstance(identifiers, str):
            account.customers.write(tuple(identifiers), identifiers)


def _apply_passthrough(account: Account, item: dict[str, Any]) -> None:
    """The event with the newest `ts` decides; within one second, the one that arrived last."""
    data = item["data"]
    audience_id, ts = data["audience_id"], data["ts"]
    members = account.passthrough_members.setdefault(next(iter(item["identifiers"].items())), {})
    known = members.get(audience_id)
    if known is None or ts >= known[0] or account.assumptions.passthrough_order == "arrival":
        members[audience_id] = (ts, item["action"] == "qualify")
