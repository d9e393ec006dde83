"""Changes of an account as data: accepted once, applied when they become visible, replayed from the state file."""

from collections.abc import Callable, Iterator
from dataclasses import asdict, fields
from typing import Any

from sandbox.odp.account.accounts import Account, ContactList, Segment
from sandbox.odp.account.assumptions import Assumptions
from sandbox.odp.account.customers import Customer
from sandbox.odp.account.events import apply_events
from sandbox.odp.account.lists import apply_subscriptions
from sandbox.odp.account.profiles import apply_profiles
from sandbox.odp.account.schema import Field, Identifier
from sandbox.odp.account.segments import parse_segment

Change = tuple[str, Any]


def apply_settings(account: Account, settings: dict[str, Any], at: float) -> None:
    for name, value in settings.get("assumptions", {}).items():
        account.assumptions.change(name, value)
    for name, rate in settings.get("rates", {}).items():
        if name not in account.limits.rates():
            raise ValueError(f"no rate is called {name!r}; there are {', '.join(account.limits.rates())}")
        setattr(account.limits, name, float(rate))
    if (consent := settings.get("consent", account.consent)) not in ("opted_in", "opted_out"):
        raise ValueError("consent is opted_in or opted_out")
    account.consent = consent
    account.passthrough = bool(settings.get("passthrough", account.passthrough))


def add_field(account: Account, made: dict[str, Any], at: float) -> None:
    account.schema.put_field(Field(**made))


def add_identifier(account: Account, made: dict[str, Any], at: float) -> None:
    account.schema.identifiers[made["name"]] = Identifier(**made)
    account.schema.changed()


def add_list(account: Account, made: dict[str, Any], at: float) -> None:
    account.lists[made["list_id"]] = ContactList(**made)


def put_segment(account: Account, made: dict[str, Any], at: float) -> None:
    body = {name: made[name] for name in ("description", "metadata", "definition")}
    segment = parse_segment(account, made["id"], body)
    segment.revision = made["revision"]
    account.segments[segment.id] = segment


def delete_segment(account: Account, segment_id: str, at: float) -> None:
    account.segments.pop(segment_id, None)


def revoke(account: Account, revoked: dict[str, float], at: float) -> None:
    account.revoked.update(revoked)


def apply_consents(account: Account, items: list[dict[str, Any]], at: float) -> None:
    for item in items:
        account.consents[item["identifier_field_name"], item["identifier_value"]] = item | {"updated_at": at}


def apply_objects(account: Account, rows: list[dict[str, Any]], at: float) -> None:
    for row in rows:
        account.objects.setdefault(row["object"], {})[row["key"]] = row["row"]


def restore_customer(account: Account, saved: list[Any], at: float) -> None:
    # State files of earlier versions hold the customer's events before the last value. They are ignored.
    number, record, older, lists, *_, touched = saved
    customer = Customer(number)
    customer.record, customer.older, customer.touched = record, older, touched
    customer.lists = lists and {name: (subscribed, when, ok) for name, (subscribed, when, ok) in lists.items()}
    account.customers.restore(customer)


def restore_passthrough(account: Account, saved: list[Any], at: float) -> None:
    kind, value, members = saved
    account.passthrough_members[kind, value] = {name: (ts, inside) for name, (ts, inside) in members.items()}


CHANGES: dict[str, Callable[[Account, Any, float], None]] = {
    "settings": apply_settings,
    "field": add_field,
    "identifier": add_identifier,
    "list": add_list,
    "segment": put_segment,
    "segment_deleted": delete_segment,
    "revoked": revoke,
    "profiles": apply_profiles,
    "events": apply_events,
    "subscriptions": apply_subscriptions,
    "consents": apply_consents,
    "objects": apply_objects,
    "customer": restore_customer,
    "passthrough": restore_passthrough,
}


def changes_of(account: Account) -> Iterator[Change]:
    """The shortest list of changes that recreates this account."""
    guesses = {each.name: getattr(account.assumptions, each.name) for each in fields(Assumptions)}
    changed = {name: value for name, value in guesses.items() if value != getattr(Assumptions(), name)}
    yield (
        "settings",
        {
            "consent": account.consent,
            "passthrough": account.passthrough,
            "rates": account.limits.rates(),
            "assumptions": changed,
        },
    )
    yield "revoked", account.revoked
    yield from (("identifier", asdict(each)) for each in account.schema.identifiers.values())
    yield from (("field", asdict(each)) for each in account.schema.fields.values() if not each.built_in)
    yield from (("list", asdict(each)) for each in account.lists.values())
    yield from (("segment", as_change(each)) for each in account.segments.values())
    yield "consents", [*account.consents.values()]
    yield "objects", _object_rows(account)
    yield from (("passthrough", [*key, members]) for key, members in account.passthrough_members.items())
    yield from (
        ("customer", [each.number, each.record, each.older, each.lists, each.touched]) for each in account.customers
    )


def as_change(segment: Segment) -> dict[str, Any]:
    return segment.as_json() | {"id": segment.id}


def _object_rows(account: Account) -> list[dict[str, Any]]:
    return [
        {"object": name, "key": key, "row": row} for name, rows in account.objects.items() for key, row in rows.items()
    ]
