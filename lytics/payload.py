"""The body of a webhook call, as facts: who entered or left which audience, and when. Pure; knows no models.

A body is one message, an array of messages, or an object that wraps such an array (``events``, or ``data`` as a
list), each message in Lytics' own layout or as a CloudEvent. What Lytics documents and what is only inferred stands
in docs/lytics-wire.md. Every message is read on its own: one that can't be read is set aside with its reason and
never takes its neighbours with it.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from decimal import Decimal
from enum import IntEnum
from functools import lru_cache
from itertools import islice
from typing import Any, NamedTuple

import msgspec
from msgspec import Raw

from lytics import reasons, times

IDENTIFIER_BYTES = 256
# Not documented; long enough for any slug a person typed, short enough for a column that also holds a prefix.
NAME_BYTES = 500
# Lytics documents 1,000 messages in a call, 50 identifiers of a person and 500 audiences. A body that goes far beyond
# would take a web process's memory: the product of two long lists fits into few bytes.
MESSAGES_AT_MOST = 100_000
FACTS_AT_MOST = 500_000
# Deeper than this, nobody looks for the end of what is not JSON anyway: it could be tens of millions of brackets.
_DEPTH_AT_MOST = 1_000_000
# From so many commas on, the messages of a body are counted before anything is built of them.
_COMMAS_UNCOUNTED = 5_000_000


class Kind(IntEnum):
    """What happened. A change is the news that a member's profile changed, so it asserts membership."""

    EXIT = 0
    ENTER = 1
    CHANGE = 2


_KINDS = {
    "enter": Kind.ENTER,
    "entered": Kind.ENTER,
    "exit": Kind.EXIT,
    "exited": Kind.EXIT,
    "change": Kind.CHANGE,
    "changed": Kind.CHANGE,
}


class Fact(msgspec.Struct, frozen=True, gc=False):
    """One identifier entered, left or was confirmed in one audience: by segment id, slug, or both."""

    segment_id: str
    slug: str
    identifier: str
    kind: Kind
    occurred_ns: int
    # The Lytics ID of the profile, when the identifier field is another one.
    profile: str = ""
    # The time that was told, where it lies too far ahead of the clock to be believed; else 0.
    claimed_ns: int = 0


class SetAside(NamedTuple):
    """A message, or a part of it, that gave no fact: the reason's code, what was seen, and the message's own bytes.

    There is one for each reason that a message gives, however many parts of it share the reason.
    """

    reason: str
    detail: str
    raw: bytes


@dataclass
class Reading:
    """What one body held. ``skipped`` counts identifier values that were blank or no identifiers at all.

    ``claims`` counts segment events whose time was not believed; their facts have ``claimed_ns``.
    ``emptied`` are facts of profiles whose list of identifiers has nothing in it; their identifier is blank.
    """

    messages: int = 0
    facts: list[Fact] = field(default_factory=list)
    emptied: list[Fact] = field(default_factory=list)
    aside: list[SetAside] = field(default_factory=list)
    skipped: int = 0
    claims: int = 0
    job: str = ""


# RFC 3339 as Lytics writes it, or a number since 1970 (lytics/times.py).
_Time = str | int | float | None


class _Transition(msgspec.Struct, gc=False):
    id: str | int | None = None
    event: str | None = None
    slug: str | int | None = None
    enter: _Time = None
    exit: _Time = None


class _Meta(msgspec.Struct, gc=False):
    object: str | None = None
    timestamp: _Time = None
    subscription_id: str | int | None = None


class _Message(msgspec.Struct, gc=False):
    """A message; ``data`` is a struct made for the install's identifier field (``_layout``)."""

    data: Any
    meta: _Meta | None = None
    time: _Time = None
    source: str | None = None


class _Unreadable(Exception):
    def __init__(self, reason: str, detail: str = "") -> None:
        self.reason, self.detail = reason, detail
        super().__init__(reason)


@dataclass(frozen=True)
class _Layout:
    """The decoders for one identifier field: profile fields other than it are skipped, not built."""

    data: Any
    message: msgspec.json.Decoder[Any]
    batch: msgspec.json.Decoder[Any]
    # A batch of messages that name one customer each, by a text.
    plain: msgspec.json.Decoder[Any]


# What stands around and between zeros that are nobody's.
_FILLING = "0-.{}"
# Where the Lytics ID is; by itself it is the identifier, beside another field it tells whose list that holds.
PROFILE_FIELD = "_id"


@lru_cache(maxsize=64)
def _layout(identifier_field: str) -> _Layout:
    data, message = _structs(identifier_field, Raw, Raw(b""))
    _, plain = _structs(identifier_field, str, "")
    return _Layout(data, *(msgspec.json.Decoder(kind) for kind in (message, list[message], list[plain])))  # type: ignore[valid-type]


def _structs(identifier_field: str, kind: Any, absent: Any) -> tuple[Any, Any]:
    """Of a message and its ``data``, with customers read as ``kind``."""
    data = msgspec.defstruct(
        "Data",
        [
            ("identifier", kind, msgspec.field(name=identifier_field, default=absent)),
            ("segment_events", list[_Transition] | None, None),
            ("profile", kind, msgspec.field(name=PROFILE_FIELD, default=absent)),
        ][: 2 if identifier_field == PROFILE_FIELD else 3],
        gc=False,
    )
    return data, msgspec.defstruct("Message", [("data", data)], bases=(_Message,), kw_only=True, gc=False)


def parse(
    body: bytes,
    *,
    identifier_field: str,
    received_ns: int,
    allow_top_level: bool = False,
    empty_lists: bool = False,
    released: bool = False,
    placeholders: frozenset[str] = frozenset(),
    tolerance_ns: int = times.NO_LIMIT,
) -> Reading:
    """Read one body.

    ``received_ns`` (nanoseconds since the epoch) is the last resort for a transition's time. ``allow_top_level``
    also looks for the identifier beside ``data``. ``empty_lists`` takes a list with nothing in it for what it says, if
    its profile has a Lytics ID, and not for a missing identifier. ``released`` says that a person asked to have
    set-aside items read again: a time that can't be read then counts as missing. ``placeholders`` are identifiers
    that stand for nobody, each as ``placeholder`` writes it. A time more than ``tolerance_ns`` later than
    ``received_ns`` is not believed.
    """
    layout = _layout(identifier_field)
    parser = _Parser(
        layout,
        identifier_field,
        received_ns,
        allow_top_level,
        empty_lists,
        released,
        placeholders,
        received_ns + tolerance_ns,
    )
    return parser.parse(body)


class _Parser:
    def __init__(
        self,
        layout: _Layout,
        identifier_field: str,
        received_ns: int,
        allow_top_level: bool,
        empty_lists: bool,
        released: bool,
        placeholders: frozenset[str],
        latest_ns: int,
    ) -> None:
        self.layout = layout
        self.identifier_field = identifier_field
        self.received_ns = received_ns
        self.allow_top_level = allow_top_level
        self.empty_lists = empty_lists
        self.released = released
        self.placeholders = placeholders
        # Most identifiers begin otherwise, and need no closer look.
        self.suspect = _beginnings(placeholders)
        # The latest time that is believed.
        self.latest_ns = latest_ns
        self.reading = Reading()
        # What is wrong with the message at hand: by reason, what was seen first and how often.
        self.problems: dict[str, tuple[str, int]] = {}
        # Segment id, slug and event as they came, and as they are kept: a body names few audiences many times.
        self.names: dict[tuple[str | int | None, str | int | None, str | None], tuple[str, str, Kind]] = {}

    def parse(self, body: bytes) -> Reading:
        text = _utf8(body)
        items = _Items(text)
        try:
            is_array = _is_array(text)
            if is_array:
                _check_number(text)
            if is_array and (plain := _decoded(text, self.layout.plain)) is not None:
                for index, message in enumerate(plain):
                    if not self._take_plain(message):
                        self._take(self._message(items.raw(index)), items, index)
            elif is_array and (batch := _decoded(text, self.layout.batch)) is not None:
                for index, message in enumerate(batch):
                    self._take(message, items, index)
            else:
                for raw in split(text):
                    self._take(self._message(raw), _Items(raw, single=True), 0)
        except _Unreadable as problem:
            self.reading.messages = 1
            self.reading.aside.append(SetAside(problem.reason, problem.detail, body))
        return self.reading

    def _take_plain(self, message: _Message) -> bool:
        """A message that is as nearly all are: ``_take`` would say the same of it, in three times as long.

        False when it wants a closer look; nothing of it is taken then.
        """
        data, meta, reading = message.data, message.meta, self.reading
        if meta is None:  # a CloudEvent
            meta = _Meta(timestamp=message.time, subscription_id=message.source)
        identifier = data.identifier.strip()
        profile = "" if self.identifier_field == PROFILE_FIELD else data.profile.strip()
        if not (_is_plain(identifier) and (not profile or _is_plain(profile))):
            return False
        if identifier[0] in self.suspect and self._is_nobody(identifier):
            return False
        if profile and profile[0] in self.suspect and self._is_nobody(profile):
            return False
        if not data.segment_events or meta.object not in ("user", None):
            return False
        facts = []
        try:
            for transition in data.segment_events:
                came = transition.id, transition.slug, transition.event
                segment_id, slug, kind = self.names.get(came) or self._named(*came)
                named = (transition.exit, transition.enter, None)[kind] or meta.timestamp
                if type(named) is not str or (occurred_ns := times.nanoseconds(named)) > self.latest_ns:
                    return False
                facts.append(Fact(segment_id, slug, identifier, kind, occurred_ns, profile))
        except (_Unreadable, ValueError):
            return False
        if len(reading.facts) + len(facts) > FACTS_AT_MOST:
            return False
        reading.job = reading.job or _name(meta.subscription_id)
        reading.messages += 1
        reading.facts += facts
        return True

    def _take(self, message: _Message | None, items: "_Items", index: int) -> None:
        """One message: its facts, and one item set aside for each reason why a part of it gave none."""
        self.reading.messages += 1
        if message is not None:
            try:
                self._unfold(message, items, index)
            except _Unreadable as problem:
                self._note(problem)
        for reason, (detail, times_seen) in self.problems.items():
            more = f" (and {times_seen - 1} more)" if times_seen > 1 else ""
            self.reading.aside.append(SetAside(reason, detail + more, items.raw(index)))
        self.problems.clear()

    def _note(self, problem: _Unreadable) -> None:
        detail, times_seen = self.problems.get(problem.reason, (problem.detail, 0))
        self.problems[problem.reason] = detail, times_seen + 1

    def _message(self, raw: bytes) -> _Message | None:
        message: _Message | None = _decoded(raw, self.layout.message)
        if message is None:
            try:
                return self._piece_by_piece(raw)
            except _Unreadable as problem:
                self._note(problem)
        return message

    def _piece_by_piece(self, raw: bytes) -> _Message:
        """A message of which some part has another type than documented: what can be read of it, is."""
        if raw.lstrip()[:1] != b"{":
            raise _Unreadable(reasons.NOT_A_MESSAGE, f"{len(raw)} bytes")
        parts = _fields(raw)
        if parts is None:
            raise _Unreadable(reasons.UNREADABLE_MESSAGE, "its brackets, quotes or commas don't fit together")
        meta = _meta(parts.get("meta"))
        _check_origin(meta)
        data = _fields(parts.get("data"))
        if data is None:
            raise _Unreadable(
                reasons.UNREADABLE_MESSAGE, "data is not an object" if "data" in parts else "data is missing"
            )
        return _Message(
            data=self.layout.data(
                identifier=data.get(self.identifier_field, Raw(b"")),
                segment_events=self._transitions(data.get("segment_events")),
                **({} if self.identifier_field == PROFILE_FIELD else {"profile": data.get(PROFILE_FIELD, Raw(b""))}),
            ),
            meta=meta,
            time=_told(parts.get("time")),
            source=_read(parts.get("source"), str),
        )

    def _transitions(self, value: Raw | None) -> list[_Transition] | None:
        if value is None or _is_absent(value):
            return None
        if not _is_array(bytes(value)):
            raise _Unreadable(reasons.UNREADABLE_MESSAGE, "segment_events is not a list")
        transitions = []
        for element in _elements(value):
            transition = _read(element, _Transition) or _transition(element)
            if transition is None:
                self._note(_Unreadable(reasons.UNREADABLE_MESSAGE, "a segment event is malformed"))
            else:
                transitions.append(transition)
        return transitions

    def _unfold(self, message: _Message, items: "_Items", index: int) -> None:
        """One message to facts: every segment event of it times every identifier of it."""
        reading, meta = self.reading, message.meta
        reading.job = reading.job or _name(meta.subscription_id if meta else message.source)
        _check_origin(meta)
        if not message.data.segment_events:
            if self.problems:
                return  # there were some, and none that could be read
            raw = items.raw(index)
            empty = "segment_events" in (_fields((_fields(raw) or {}).get("data")) or {})
            raise _Unreadable(reasons.NO_SEGMENT_EVENTS, "segment_events is empty" if empty else _seen(raw))
        profile = self._profile(message.data)
        if self.empty_lists and profile and _read(message.data.identifier, list[Raw]) == []:
            told, identifiers = reading.emptied, [""]
        else:
            told, identifiers = reading.facts, self._identifiers(message.data.identifier, items, index)
        readable = []
        for transition in message.data.segment_events:
            try:
                readable.append(self._transition(transition, message))
                reading.claims += readable[-1][-1] != 0
            except _Unreadable as problem:
                self._note(problem)
        if len(told) + len(readable) * len(identifiers) > FACTS_AT_MOST:
            detail = f"{len(identifiers)} identifiers in {len(readable)} segment events"
            raise _Unreadable(reasons.TOO_MANY_EVENTS, detail)
        for segment_id, slug, kind, occurred_ns, claimed_ns in readable:
            for identifier in identifiers:
                told.append(Fact(segment_id, slug, identifier, kind, occurred_ns, profile, claimed_ns))

    def _profile(self, data: Any) -> str:
        if self.identifier_field == PROFILE_FIELD:
            return ""
        profile = _identifier(data.profile)
        return "" if _refusal(profile) or self._is_nobody(profile) else profile

    def _is_nobody(self, identifier: str) -> bool:
        """Whether it is a placeholder: one of the list, whatever its case and blanks, or nothing but zeros."""
        if not self.placeholders:
            return False
        bare = placeholder(identifier)
        return bare in self.placeholders or (not bare.strip(_FILLING) and bare.count(".") < 2)

    def _transition(self, transition: _Transition, message: _Message) -> tuple[str, str, Kind, int, int]:
        came = transition.id, transition.slug, transition.event
        segment_id, slug, kind = self.names.get(came) or self._named(*came)
        return segment_id, slug, kind, *self._occurred(kind, transition, message)

    def _named(self, segment_id: str | int | None, slug: str | int | None, event: str | None) -> tuple[str, str, Kind]:
        kind = _KINDS.get((event or "").strip().lower())
        if kind is None:
            raise _Unreadable(reasons.UNKNOWN_EVENT, f"the event is {event!r}")
        named = self.names[segment_id, slug, event] = (*_names(segment_id, slug), kind)
        return named

    def _occurred(self, kind: Kind, transition: _Transition, message: _Message) -> tuple[int, int]:
        """The time named by the event, else the message's, else ours; and what was named if it is not believed.

        An ``exit`` on an enter is its scheduled end, and not looked at.
        """
        named = (transition.exit, transition.enter, None)[kind]
        claimed_ns = 0
        for told in (named, message.meta.timestamp if message.meta else None, message.time):
            if told is None or times.is_missing(told):
                continue
            try:
                occurred_ns = times.read(told)
            except ValueError as error:
                if not self.released:
                    raise _Unreadable(reasons.UNREADABLE_TIME, str(error)) from error
                continue
            if occurred_ns <= self.latest_ns:
                return occurred_ns, claimed_ns
            claimed_ns = claimed_ns or occurred_ns
        return self.received_ns, claimed_ns

    def _identifiers(self, value: Raw, items: "_Items", index: int) -> list[str]:
        if self.allow_top_level and bytes(value).strip() in (b"", b"null"):
            value = (_fields(items.raw(index)) or {}).get(self.identifier_field, value)
        found: dict[str, None] = {}
        usable = 0
        for element in _elements(value):
            identifier = _identifier(element)
            if not identifier:
                self.reading.skipped += 1
                continue
            usable += 1
            reason = reasons.PLACEHOLDER if self._is_nobody(identifier) else _refusal(identifier)
            if reason is None:
                found[identifier] = None
            else:
                self._note(_Unreadable(reason, identifier[:40] if reason == reasons.PLACEHOLDER else ""))
        if not usable:
            there = bytes(value).strip()
            reason = reasons.UNUSABLE_IDENTIFIER if there else reasons.NO_IDENTIFIER
            what = f"{self.identifier_field!r} is {_what(there)}" if there else f"expected in {self.identifier_field!r}"
            self._note(_Unreadable(reason, f"{what}; {_seen(items.raw(index))}"))
        return list(found)


def placeholder(text: str) -> str:
    """A placeholder as it is compared: in small letters and without blanks."""
    return "".join(text.casefold().split())


@lru_cache(maxsize=64)
def _beginnings(placeholders: frozenset[str]) -> frozenset[str]:
    """With which characters a plain placeholder begins."""
    if not placeholders:
        return frozenset()
    return frozenset(_FILLING).union(*((word[0], word[0].upper()) for word in placeholders if word))


def _what(value: bytes) -> str:
    """What a JSON value is, for a person, without the value itself."""
    words = {
        b"{": "an object",
        b"[": "a list without a usable value",
        b'"': "a blank text",
        b"t": "true",
        b"f": "false",
    }
    return words.get(value[:1], "null" if value == b"null" else "not a JSON value")


class _Items:
    """The bytes of each message of a body, cut out only when one of them has to be set aside."""

    def __init__(self, text: bytes, single: bool = False) -> None:
        self._text = text
        self._raws: list[bytes] | None = [text] if single else None

    def raw(self, index: int) -> bytes:
        if self._raws is None:
            self._raws = split(self._text)
        return self._raws[index]


def _utf8(body: bytes) -> bytes:
    for mark, encoding in ((b"\xef\xbb\xbf", "utf-8"), (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16")):
        if body.startswith(mark):
            try:
                return body[3:] if encoding == "utf-8" else body.decode(encoding).encode()
            except UnicodeDecodeError:
                return body  # not replaced piece by piece: an identifier must never be nearly what was sent
    return body


def _meta(raw: Raw | None) -> _Meta | None:
    """What can be read of ``meta``, field by field: a time of another type must not hide where a message is from."""
    fields = _fields(raw)
    if fields is None:
        return None
    return _Meta(
        object=_read(fields.get("object"), str),
        timestamp=_told(fields.get("timestamp")),
        subscription_id=_read(fields.get("subscription_id"), str | int),
    )


def _transition(element: Raw) -> _Transition | None:
    """A segment event of which some part is flawed or has another type: what can be read of it."""
    fields = _fields(element)
    if fields is None:
        return None
    segment_id = _read(fields.get("id"), str | int)
    if segment_id is None and not _is_absent(fields.get("id")):
        return None  # by the slug alone it could be taken for another audience
    return _Transition(
        id=segment_id,
        event=_read(fields.get("event"), str),
        slug=_read(fields.get("slug"), str | int),
        enter=_told(fields.get("enter")),
        exit=_told(fields.get("exit")),
    )


def _told(raw: Raw | None) -> str | int | float | None:
    """A time, or what stands in its place: that is no time, and not the same as nothing."""
    told: str | int | float | None = _read(raw, _Time)
    return (
        bytes(raw)[:40].decode(errors="replace") if raw is not None and told is None and not _is_absent(raw) else told
    )


def _is_absent(raw: Raw | None) -> bool:
    return raw is None or bytes(raw).strip() in (b"", b"null")


def _check_origin(meta: _Meta | None) -> None:
    if meta is not None and meta.object is not None and meta.object != "user":
        raise _Unreadable(reasons.NOT_A_USER_EVENT, f"meta.object is {meta.object[:40]!r}")


def split(text: bytes) -> list[bytes]:
    """A body as the bytes of its messages; an object that wraps a list is unwrapped."""
    if _is_array(text):
        return _elements_of(text)
    fields = _fields(text)
    if fields is None:
        if _read(text, Raw) is None and not _is_closed_object(text):
            raise _no_json(text)
        return [text]
    wrapped = [bytes(fields[name]) for name in ("events", "data") if name in fields]
    if not wrapped or not all(map(_is_array, wrapped)):
        return [text]
    return [element for array in wrapped for element in _elements_of(array)]


def _decoded(text: bytes, decoder: msgspec.json.Decoder[Any]) -> Any:
    """Without its value when ``text`` is laid out otherwise, or no JSON."""
    try:
        return decoder.decode(text)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


def _is_array(text: bytes) -> bool:
    return text.lstrip()[:1] == b"["


def _elements_of(array: bytes) -> list[bytes]:
    _check_number(array)
    parts = _read(array, list[Raw])
    return list(_cut(array)) if parts is None else [bytes(part) for part in parts]


def _check_number(array: bytes) -> None:
    """Refuse an array of more messages than one call may hold, before anything is built of them."""
    commas = array.count(b",")
    if commas < MESSAGES_AT_MOST:
        return
    parts = _read(array, list[Raw]) if commas < _COMMAS_UNCOUNTED else None
    number = len(parts) if parts is not None else sum(1 for _ in islice(_cut(array), MESSAGES_AT_MOST + 1))
    if number > MESSAGES_AT_MOST:
        raise _Unreadable(reasons.TOO_MANY_MESSAGES, f"more than {MESSAGES_AT_MOST:,}")


# Possessive, and with an alternative for text that nothing closes: a failed match would start anew at every quote.
_TOKEN = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+(?P<end>"?)|[\[\]{},]', re.DOTALL)


def _is_closed_object(text: bytes) -> bool:
    """One object by its brackets alone: in an array it would be a message that can't be read, so it is one here."""
    depth = 0
    for match in _TOKEN.finditer(text) if text.lstrip()[:1] == b"{" else ():
        token = match.group()
        depth += (token in (b"[", b"{")) - (token in (b"]", b"}"))
        if depth > _DEPTH_AT_MOST:
            break
        if depth == 0:
            return not text[match.end() :].strip()
    return False


def _to_next(stops: bytes, *, levels: int) -> re.Pattern[bytes]:
    """Up to the next bracket or other stop outside of texts, past whatever closes again within a few levels."""
    closed = rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"'
    inside = within = rb'[^"\[\]{}]++|' + closed
    for _ in range(levels):
        inside = within + rb"|[\[{](?:" + inside + rb")*+[\]}]"
    return re.compile(
        rb"(?:[^" + stops + rb"]++|" + closed + rb"|[\[{](?:" + inside + rb")*+[\]}])*+([\[{]++|.?)", re.DOTALL
    )


# Few steps a message: each costs as much as some hundred bytes inside a pattern.
_TO_COMMA, _TO_BRACKET = _to_next(rb'",\[\]{}', levels=4), _to_next(rb'"\[\]{}', levels=4)


def _cut(text: bytes) -> Iterator[bytes]:
    """The elements of an array, or the members of an object, by its brackets alone: none has to be well-formed."""
    start = position = len(text) - len(text.lstrip()) + 1
    depth = 1
    last = b"]" if _is_array(text) else b"}"
    while 0 < depth <= _DEPTH_AT_MOST:
        match = (_TO_COMMA if depth == 1 else _TO_BRACKET).match(text, position)
        token, position = match[1], match.end()  # type: ignore[index, union-attr] # it matches everywhere
        if token in (b"", b'"'):  # the end, or a text that nothing closes
            break
        depth += -1 if token in (b"]", b"}") else 0 if token == b"," else len(token)
        if depth == 0 or token == b",":
            element, start = text[start : position - 1].strip(), position
            if element or token != last:
                yield element
    if depth != 0 or text[start:].strip():
        raise _no_json(text, cut_off=0 < depth <= _DEPTH_AT_MOST)


# How compressed bodies begin. Those of gzip and deflate are unpacked before; here they are damaged or cut off.
_PACKED = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"PK\x03\x04": "zip"}
_ZLIB = re.compile(rb"\x78[\x01\x5e\x9c\xda]")


def _no_json(text: bytes, *, cut_off: bool | None = None) -> _Unreadable:
    """Why a body can't be read at all: compressed, cut off, or something else."""
    for mark, name in _PACKED.items():
        if text.startswith(mark):
            return _Unreadable(reasons.PACKED_BODY, f"{len(text)} bytes that begin like {name}")
    if _ZLIB.match(text):
        return _Unreadable(reasons.PACKED_BODY, f"{len(text)} bytes that begin like deflate")
    if cut_off if cut_off is not None else text.lstrip()[:1] == b"{" and not _ends(text):
        return _Unreadable(reasons.CUT_OFF_BODY, f"{len(text)} bytes, and the last bracket is missing")
    return _Unreadable(reasons.NOT_JSON, f"{len(text)} bytes")


def name_encoding(reading: Reading, encoding: str) -> Reading:
    """Call a body that is no JSON compressed where its Content-Encoding says so: brotli has no mark of its own."""
    if encoding not in ("", "identity"):
        for index, item in enumerate(reading.aside):
            if item.reason == reasons.NOT_JSON:
                detail = f"{len(item.raw)} bytes, Content-Encoding {encoding[:40]!r}"
                reading.aside[index] = SetAside(reasons.PACKED_BODY, detail, item.raw)
    return reading


def _ends(text: bytes) -> bool:
    """Whether every bracket of an object is closed again, whatever follows."""
    depth = 0
    for match in _TOKEN.finditer(text):
        token = match.group()
        depth += (token in (b"[", b"{")) - (token in (b"]", b"}"))
        if depth == 0 or depth > _DEPTH_AT_MOST:
            return True  # deeper than anybody looks: nobody knows whether it ends
    return False


# A member of an object: its name, a colon, its value.
_MEMBER = re.compile(rb'("[^"\\]*+(?:\\.[^"\\]*+)*+")\s*:(.*)', re.DOTALL)


def _fields(raw: bytes | Raw | None) -> dict[str, Raw] | None:
    """The values of an object by name, each as it came. A flaw in one value costs no other."""
    fields: dict[str, Raw] | None = _read(raw, dict[str, Raw])
    if fields is None and raw is not None and bytes(raw).lstrip()[:1] == b"{":
        return _flawed_fields(bytes(raw))
    return fields


def _flawed_fields(text: bytes) -> dict[str, Raw] | None:
    found: dict[str, Raw] = {}
    try:
        for member in _cut(text):
            match = _MEMBER.fullmatch(member)
            if match is None:
                return None
            name = _read(match[1], str)
            if name is not None:  # one with a flaw in its name is none that is looked for
                found[name] = Raw(match[2].strip())
    except _Unreadable:
        return None
    return found


def _read(raw: bytes | Raw | None, layout: Any) -> Any:
    """``raw`` decoded as ``layout``, or None when it is absent, ``null`` or something else."""
    if raw is None:
        return None
    try:
        return msgspec.json.decode(raw, type=layout)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


def _elements(value: Raw) -> list[Raw]:
    text = bytes(value)
    if not text:
        return []
    if not _is_array(text):
        return [value]
    listed: list[Raw] | None = _read(value, list[Raw])
    if listed is not None:
        return listed
    try:
        return [Raw(element) for element in _cut(text)]
    except _Unreadable:
        return []


def _is_plain(text: str) -> bool:
    """Whether it is what nearly all identifiers are, and nothing could be wrong with it."""
    return 0 < len(text) <= IDENTIFIER_BYTES and text.isascii() and text.isprintable()


_NUMBER = re.compile(rb"-?\d+(\.\d+)?([eE][+-]?\d{1,4})?")


def _identifier(element: Raw) -> str:
    """The identifier in one JSON value: text trimmed, a number by its own digits, anything else empty."""
    text = bytes(element).strip()
    if text[:1] == b'"':
        try:
            return str(msgspec.json.decode(text, type=str)).strip()
        except (msgspec.MsgspecError, UnicodeDecodeError):
            return "\x00"  # text that no UTF-8 holds: refused below under its own reason
    match = _NUMBER.fullmatch(text)
    if match is None:
        return ""
    return _whole(text.decode()) if match[1] or match[2] else text.decode()


def _whole(number: str) -> str:
    """A whole number that was written as 12345.0 or 1.2345e4, as the integer that it is. Others stay as they came."""
    value = Decimal(number)
    if abs(value.adjusted()) > IDENTIFIER_BYTES or value != value.to_integral_value():
        return number
    return f"{value:.0f}"


def _refusal(identifier: str) -> str | None:
    kept = _kept(identifier)
    if kept is None:
        return reasons.UNREADABLE_IDENTIFIER
    return reasons.IDENTIFIER_TOO_LONG if len(kept) > IDENTIFIER_BYTES else None


def _kept(text: str) -> bytes | None:
    """As PostgreSQL keeps it: every character but NUL and lone surrogates, of which the one is no UTF-8 either."""
    try:
        return None if "\x00" in text else text.encode()
    except UnicodeEncodeError:
        return None


def _names(came_id: str | int | None, came_slug: str | int | None) -> tuple[str, str]:
    """Segment id and slug, at least one of which is there and both of which can be kept."""
    names = _name(came_id), _name(came_slug)
    if names == ("", ""):
        raise _Unreadable(reasons.NO_AUDIENCE)
    for name in names:
        kept = _kept(name)
        if kept is None or len(kept) > NAME_BYTES:
            raise _Unreadable(reasons.NO_AUDIENCE, "the segment id or slug can't be kept")
    return names


def _name(value: str | int | None) -> str:
    return "" if value is None else str(value).strip()


def _seen(raw: bytes) -> str:
    """The profile fields that came, by name only: names are set-up, values are personal."""
    data = _fields((_fields(raw) or {}).get("data")) or {}
    names = ", ".join(sorted(data)[:20]) or "none"
    return f"fields seen: {names}{', …' if len(data) > 20 else ''}"


def envelope(raw: bytes, *, identifier_field: str) -> bytes:
    """A message without the profile fields that this service has no use for: what is kept of one set aside.

    Names stay, values of other fields are replaced by null. Bytes that are no message stay as they are, because
    nobody could tell what they were otherwise.
    """
    message = _fields(raw)
    data = _fields((message or {}).get("data"))
    if message is None or data is None:
        return raw
    kept = {identifier_field, "_id", "segment_events"}
    slim = {name: value if name in kept else Raw(b"null") for name, value in data.items()}
    return msgspec.json.encode({**message, "data": slim})


def encode(message: dict[str, Any]) -> bytes:
    """A message as a body."""
    return msgspec.json.encode(message)
