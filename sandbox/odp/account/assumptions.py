"""The questions that ODP's documentation leaves open, each as a named switch with our guess as its default.

The table at the top of the README shows the same switches; a test compares the two.
"""

from dataclasses import dataclass, field, fields
from typing import Any


def _guess(default: str, *others: str, says: str) -> Any:
    return field(default=default, metadata={"choices": (default, *others), "says": says})


def _number(default: float, *, says: str) -> Any:
    return field(default=default, metadata={"choices": None, "says": says})


@dataclass
class Assumptions:
    batch_rejection: str = _guess(
        "whole",
        "partial",
        "drop",
        says="A bad item rejects the whole call; or the rest is applied and a 400 names it; or it is dropped with a "
        "202.",
    )
    bad_items: str = _guess(
        "named", "bare", says="A refused batch names its bad items in `detail.invalids`, or doesn't."
    )
    invalids_key: str = _guess("event", "index", "profile", says="The key that carries the bad item's position.")
    unknown_field: str = _guess(
        "refuse",
        "drop",
        "create",
        says="A profile with a field that doesn't exist is refused, loses it, or creates it.",
    )
    too_many_items: str = _guess("400", "413", says="The status for more than 500 items.")
    max_body_bytes: float = _number(10_000_000, says="Bodies above this get a 413.")
    rate_limiter: str = _guess(
        "bucket",
        "window",
        says="A token bucket with the requests of one second, or a strict maximum in each one-second window.",
    )
    retry_after: str = _guess("off", "on", says="Whether a 429 for too many requests has `Retry-After`.")
    consent_effect: str = _guess(
        "lists",
        "everything",
        says="Under an opted-out Api app: list members never qualify, or no write has any effect.",
    )
    list_identifiers: str = _guess(
        "any", "messaging", says="Subscribing accepts any identifier, or only messaging identifiers such as `email`."
    )
    list_created_body: str = _guess(
        "created", "flat", says="A new list is answered as `{created: {...}}`, or as the bare object."
    )
    fs_user_id_confidence: str = _guess("high", "low", says="Merge confidence of `fs_user_id`.")
    web_user_id_confidence: str = _guess("high", "low", says="Merge confidence of `web_user_id`.")
    new_vuid: str = _guess(
        "ignored",
        "created",
        says="A profile write with a `vuid` that no event has introduced does nothing, or creates it.",
    )
    passthrough_order: str = _guess(
        "ts", "arrival", says="Passthrough events: the newest `ts` decides, or the last to arrive."
    )
    passthrough_key: str = field(
        default="passthrough",
        metadata={"choices": None, "says": "The member of `definition` that makes a segment a passthrough segment."},
    )
    event_action: str = _guess("optional", "required", says="Whether an event without `action` is refused.")
    segment_errors: str = _guess(
        "grpc", "titled", says="Segment errors have the layout `{code, message, details}`, or that of all other errors."
    )
    segment_post_existing: str = _guess(
        "refuse", "replace", says="`POST /v3/segments/{id}` for an id that exists is a 400, or replaces it."
    )
    metadata_on_replace: str = _guess(
        "replace", "merge", says="A replaced segment's `metadata` is replaced, or merged."
    )
    unknown_segment: str = _guess(
        "ignore", "error", says="GraphQL: an unknown id in `subset` is ignored, or is an error."
    )
    graphql_key: str = _guess("public", "private", says="The lesser key that GraphQL accepts.")
    graphql_scalars: str = _guess(
        "strings", "typed", says="GraphQL answers every attribute as a string, or by its type."
    )
    private_fields: str = _guess(
        "null", "error", says="The public key reads a field without `public_read` as null, or gets an error."
    )
    read_status: str = _guess("200", "202", says="The status of successful reads outside segments and GraphQL.")
    field_delay_seconds: float = _number(0, says="Seconds after which profiles may use a new customer field.")
    field_limit: float = _number(0, says="The most custom fields of an account; 0 for no limit.")
    segment_limit: float = _number(0, says="The most real-time segments of an account; 0 for no limit.")
    revoked_key_seconds: float = _number(
        0, says="How many seconds a revoked private key still works (ODP documents 12 hours)."
    )

    def change(self, name: str, value: object) -> None:
        """Set one switch. The ValueError for a wrong name or value lists the allowed ones."""
        known = {each.name: each for each in fields(self)}
        if name not in known:
            raise ValueError(f"no assumption is called {name!r}; there are {', '.join(sorted(known))}")
        choices = known[name].metadata["choices"]
        if isinstance(known[name].default, (int, float)):
            setattr(self, name, float(str(value)))
        elif choices is not None and str(value) not in choices:
            raise ValueError(f"{name} is one of {', '.join(choices)}")
        else:
            setattr(self, name, str(value))
