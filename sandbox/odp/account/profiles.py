"""Customer profiles: identifiers and plain fields side by side in `attributes`."""

from collections import Counter
from typing import Any

from sandbox.odp.account.accounts import Account
from sandbox.odp.account.schema import Complaint, Field, Plan, wrong_with_identifier


def check_profiles(account: Account, items: list[Any], now: float, unknown: Counter[str]) -> list[Complaint]:
    """Normalise each item's attributes in place, and return the complaints about bad items.

    A load test spends its time here and in `apply_profiles`, so each set of field names has one prepared plan.
    """
    complaints = []
    plan_for = account.schema.plan
    for at, item in enumerate(items):
        attributes = item.get("attributes") if isinstance(item, dict) else None
        if not isinstance(attributes, dict):
            complaints.append((at, "attributes must be an object"))
            continue
        plan = plan_for(tuple(attributes), now)
        if plan.unknown:
            unknown.update(plan.unknown)
        wrong = _tidy(account, attributes, plan)
        if wrong:
            complaints.append((at, wrong))
    return complaints


def _tidy(account: Account, attributes: dict[str, Any], plan: Plan) -> str | None:
    for kind in plan.identifiers:
        value = attributes[kind]
        # Fast path: nearly every identifier is a short string, and only other values need the checks below.
        if not (type(value) is str and 0 < len(value) < 64 and kind != "vuid" and not value.isspace()):
            if value is None or (isinstance(value, str) and not value.strip()):
                del attributes[kind]
            elif wrong := wrong_with_identifier(kind, value):
                return wrong
    if not any(kind in attributes for kind in plan.identifiers):
        return "at least one known identifier is required"
    for name, check in plan.checks:
        try:
            attributes[name] = check(attributes[name])
        except ValueError as wrong:
            return f"{name} {wrong}"
    return _place_unknown(account, attributes, plan.unknown)


def _place_unknown(account: Account, attributes: dict[str, Any], unknown: tuple[str, ...]) -> str | None:
    rule = account.assumptions.unknown_field
    if unknown and rule == "refuse":
        return f"unknown field {unknown[0]}"
    for name in unknown:
        if rule == "drop":
            del attributes[name]
        elif name not in account.schema.fields:
            account.schema.put_field(Field(name, name, _type_of(attributes[name])))
    return None


def _type_of(value: Any) -> str:
    if isinstance(value, bool):
        return "boolean"
    return "number" if isinstance(value, (int, float)) else "string"


def apply_profiles(account: Account, items: list[dict[str, Any]], at: float) -> None:
    known = account.schema.identifiers
    write = account.customers.write
    for item in items:
        attributes = item["attributes"]
        identifiers = tuple(name for name in attributes if name in known)
        if identifiers == ("vuid",) and _unseen_vuid(account, attributes["vuid"]):
            continue
        write(identifiers, attributes)


def _unseen_vuid(account: Account, vuid: str) -> bool:
    return account.assumptions.new_vuid == "ignored" and account.customers.find("vuid", vuid) is None
