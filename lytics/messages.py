"""One message in the layout of Lytics: structs, reading parts one by one, checking its origin, and encoding it."""

import re
from dataclasses import dataclass
from functools import lru_cache
from types import GenericAlias
from typing import Any, Protocol

import msgspec
from msgspec import Raw

from lytics import reasons
from lytics.bodies import raw_fields
from lytics.facts import Kind
from lytics.identifiers import as_name, storable
from lytics.json_pieces import read_as, read_fields, read_value
from lytics.reasons import UnreadableError

KINDS = {
    "enter": Kind.ENTER,
    "entered": Kind.ENTER,
    "exit": Kind.EXIT,
    "exited": Kind.EXIT,
    "change": Kind.CHANGE,
    "changed": Kind.CHANGE,
}
# RFC 3339 as Lytics writes it, or a number since 1970 (lytics/times.py).
TimeValue = str | int | float | None


class Transition(msgspec.Struct, gc=False):
    id: str | int | None = None
    event: str | None = None
    slug: str | int | None = None
    enter: TimeValue = None
    exit: TimeValue = None


class Meta(msgspec.Struct, gc=False):
    object: str | None = None
    timestamp: TimeValue = None
    subscription_id: str | int | None = None


TRANSITIONS = msgspec.json.Decoder(list[Transition])


class Message(msgspec.Struct, gc=False):
    """A message; ``data`` is a struct made for the install's identifier field (``layout_of``)."""

    data: Any
    meta: Meta | None = None
    time: TimeValue = None
    source: str | None = None


class Decoder(Protocol):
    def decode(self, text: bytes, /) -> Any: ...


class _NoDecoder:
    """Rejects every text, so that each message is read field by field."""

    def decode(self, text: bytes, /) -> Any:
        raise msgspec.ValidationError


@dataclass(frozen=True)
class Layout:
    """The decoders for one identifier field: profile fields other than it are skipped, not built."""

    data: Any
    message: Decoder
    batch: Decoder
    # A batch whose identifiers are texts, not lists or numbers.
    plain: Decoder


# Profile field with the Lytics ID. If another field is the identifier, this one names the owner of that field's list.
PROFILE_FIELD = "_id"


@lru_cache(maxsize=64)
def layout_of(identifier_field: str) -> Layout:
    try:
        data, message = _structs(identifier_field, Raw, Raw(b""))
    except ValueError:  # msgspec names no field with a quote, a backslash or a control character
        return Layout(_structs("identifier", Raw, Raw(b""))[0], *[_NoDecoder()] * 3)
    _, plain = _structs(identifier_field, str, "")
    batches = (GenericAlias(list, (message,)), GenericAlias(list, (plain,)))
    return Layout(data, *(msgspec.json.Decoder(kind) for kind in (message, *batches)))


def _structs(identifier_field: str, kind: Any, absent: Any) -> tuple[Any, Any]:
    """The struct types of ``data`` and of a message, with identifiers decoded as ``kind``."""
    data = msgspec.defstruct(
        "Data",
        [
            ("identifier", kind, msgspec.field(name=identifier_field, default=absent)),
            ("segment_events", list[Transition] | None, None),
            ("profile", kind, msgspec.field(name=PROFILE_FIELD, default=absent)),
        ][: 2 if identifier_field == PROFILE_FIELD else 3],
        gc=False,
    )
    return data, msgspec.defstruct("Message", [("data", data)], bases=(Message,), kw_only=True, gc=False)


_KINDS_OF_VALUE = (
    (dict, b"{", "an object"),
    (list, b"[", "a list without a usable value"),
    (str, b'"', "a blank text"),
)
_NUMBER = re.compile(rb"-?\d[\d.eE+-]*")


def kind_of_value(value: Any) -> str:
    """Describe the type of a JSON value for an operator, without the value itself."""
    if isinstance(value, bool):
        return "true" if value else "false"
    for kind, start, name in _KINDS_OF_VALUE:
        if isinstance(value, kind) or (isinstance(value, bytes) and value.startswith(start)):
            return name
    if isinstance(value, bytes) and _NUMBER.fullmatch(value):
        return "a number"
    return "null" if value is None else "not a JSON value"


def read_meta(value: Any) -> Meta | None:
    """Read ``meta`` field by field: a time of another type must not hide which job a message comes from."""
    fields = read_fields(value)
    if fields is None:
        return None
    return Meta(
        object=as_text(fields.get("object")),
        timestamp=as_time(fields.get("timestamp")),
        subscription_id=as_text_or_integer(fields.get("subscription_id")),
    )


def read_transition(value: Any) -> Transition:
    """Read a segment event field by field. A time that is flawed or has another type becomes the name of that type.

    Raises ``UnreadableError`` for a name or an event of another type: it is there, so it must not count as missing.
    """
    fields = read_fields(value)
    if fields is None:
        raise UnreadableError(reasons.UNREADABLE_MESSAGE, "a segment event is malformed")
    segment_id, slug, event = (read_value(fields.get(name)) for name in ("id", "slug", "event"))
    read = Transition(
        id=as_text_or_integer(segment_id),
        event=as_text(event),
        slug=as_text_or_integer(slug),
        enter=as_time(fields.get("enter")),
        exit=as_time(fields.get("exit")),
    )
    if read.event is None and not is_absent(event):
        raise UnreadableError(reasons.UNKNOWN_EVENT, f"the event is {_flaw_of(event)}")
    if read.id is None and not is_absent(segment_id):  # with the slug alone it could match another audience
        raise UnreadableError(reasons.UNREADABLE_MESSAGE, f"the id of a segment event is {_flaw_of(segment_id)}")
    if read.slug is None and not is_absent(slug) and not as_name(read.id):
        raise UnreadableError(reasons.NO_AUDIENCE, f"the slug is {_flaw_of(slug)}")
    return read


def _flaw_of(value: Any) -> str:
    """Describe a value that should be a text for an operator."""
    if isinstance(value, str) or (isinstance(value, bytes) and value.startswith(b'"')):
        return "a text with half a character"
    return kind_of_value(value).removesuffix(" without a usable value")


def as_text(value: Any) -> str | None:
    """A text without lone surrogates, which can't be encoded in UTF-8."""
    value = read_value(value)
    return value if isinstance(value, str) and (value.isascii() or storable(value) is not None) else None


def as_text_or_integer(value: Any) -> str | int | None:
    value = read_value(value)
    return read_as(value, int) if isinstance(value, bytes) else as_text(value)


def as_time(value: Any) -> TimeValue:
    """A time. A value of another type becomes the name of that type, so that it does not count as missing."""
    value = read_value(value)
    if is_absent(value) or isinstance(value, str):
        return value or None
    number: int | float | None = read_as(value, int | float) if isinstance(value, bytes) else None
    return kind_of_value(value) if number is None else number


def is_absent(value: Any) -> bool:
    return value is None or value == b""


def check_origin(meta: Meta | None) -> None:
    if meta is not None and meta.object and meta.object.strip().lower() not in ("", "user"):
        raise UnreadableError(reasons.NOT_A_USER_EVENT, f"meta.object is {meta.object[:40]!r}")


def fields_seen(raw: bytes) -> str:
    """The names of the profile fields, without their values, which are personal data."""
    data = raw_fields((raw_fields(raw) or {}).get("data")) or {}
    names = ", ".join(sorted(data)[:20]) or "none"
    return f"fields seen: {names}{', …' if len(data) > 20 else ''}"


def envelope(raw: bytes, *, identifier_field: str) -> bytes:
    """The part of a message that is stored when it is parked: unused profile fields keep only their name.

    Bytes that are not a message are returned unchanged; an operator needs them to find the cause.
    """
    message = raw_fields(raw)
    data = raw_fields((message or {}).get("data"))
    if message is None or data is None:
        return raw
    kept = {identifier_field, "_id", "segment_events"}
    slim = {name: value if name in kept else Raw(b"null") for name, value in data.items()}
    return msgspec.json.encode({**message, "data": slim})


def encode(message: dict[str, Any]) -> bytes:
    """Encode a message as a body."""
    return msgspec.json.encode(message)
