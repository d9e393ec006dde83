"""Read the body of a webhook call as facts: who entered or left which audience, and when. Pure; knows no models.

A body is one message, an array of messages, or an object that wraps such an array (``events``, or ``data`` as a
list), each message in Lytics' own layout or as a CloudEvent. docs/lytics-wire.md separates documented from inferred
facts. Each message is read independently: an unreadable message is parked with its reason, and the others become facts.
"""

from typing import Any

import msgspec
from msgspec import Raw

from lytics import reasons, times
from lytics.bodies import LEADING, as_utf8, is_typed_array, raw_fields, split
from lytics.common_messages import CommonMessages, Names
from lytics.facts import FACTS_AT_MOST, Fact, ItemToPark, Kind, Reading
from lytics.identifiers import (
    as_identifier,
    as_name,
    has_only_plain_texts,
    is_placeholder,
    refusal_reason,
)
from lytics.json_pieces import read_elements, read_fields, read_value
from lytics.messages import (
    PROFILE_FIELD,
    TRANSITIONS,
    Decoder,
    Layout,
    Message,
    Transition,
    as_text,
    as_time,
    check_origin,
    fields_seen,
    is_absent,
    kind_of_value,
    layout_of,
    read_meta,
    read_transition,
)
from lytics.reasons import UnreadableError


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

    ``received_ns`` (nanoseconds since the epoch) is used for a transition without a usable time. ``allow_top_level``
    also looks for the identifier beside ``data``. ``empty_lists`` reads an empty list as
    *no identifiers*, if its profile has a Lytics ID; otherwise it counts as a missing identifier. ``released`` is set
    when an operator releases parked items: an unreadable time then counts as missing. ``placeholders`` are
    identifiers that name no customer, normalised by ``placeholder``. A time more than ``tolerance_ns`` later than
    ``received_ns`` is not used.
    """
    layout = layout_of(identifier_field)
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
        layout: Layout,
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
        self.is_by_profile = identifier_field == PROFILE_FIELD
        self.received_ns = received_ns
        self.allow_top_level = allow_top_level
        self.empty_lists = empty_lists
        self.released = released
        self.placeholders = placeholders
        # Later times are ignored.
        self.latest_ns = latest_ns
        self.reading = Reading()
        # Problems of the current message: for each reason, the first detail and the number of occurrences.
        self.problems: dict[str, tuple[str, int]] = {}
        self.names = Names()

    def parse(self, body: bytes) -> Reading:
        text = as_utf8(body).rstrip(b"\x00 \t\r\n").lstrip(LEADING)
        items = _Items(text)
        try:
            is_array = is_typed_array(text)
            if is_array and (plain := _decode(text, self.layout.plain)) is not None:
                common = CommonMessages(
                    self.names,
                    self.placeholders,
                    is_by_profile=self.is_by_profile,
                    latest_ns=self.latest_ns,
                    is_plain_body=has_only_plain_texts(text),
                )
                if not common.take_all(plain, self.reading):
                    for index, message in enumerate(plain):
                        if not common.take(message, self.reading):
                            self._take(self._message(items.raw(index)), items, index)
            elif is_array and (batch := _decode(text, self.layout.batch)) is not None:
                for index, message in enumerate(batch):
                    self._take(message, items, index)
            else:
                pieces = split(text)
                for raw in pieces.messages:
                    self._take(self._message(raw), _Items(raw, single=True), 0)
                if pieces.rest or pieces.is_cut_off:
                    self.reading.messages += 1
                    reason = reasons.CUT_OFF_BODY if pieces.is_cut_off else reasons.TEXT_AFTER_JSON
                    detail = f"{len(pieces.rest)} bytes behind {len(pieces.messages)} messages"
                    self.reading.to_park.append(ItemToPark(reason, detail, pieces.rest))
        except UnreadableError as problem:
            self.reading.messages = 1
            self.reading.to_park.append(ItemToPark(problem.reason, problem.detail, body))
        return self.reading

    def _take(self, message: Message | None, items: "_Items", index: int) -> None:
        """Add the facts of a message, and one parked item for each reason why a part of it gave none."""
        self.reading.messages += 1
        if message is not None:
            try:
                self._unfold(message, items, index)
            except UnreadableError as problem:
                self._note(problem)
        for reason, (detail, times_seen) in self.problems.items():
            more = f" (and {times_seen - 1} more)" if times_seen > 1 else ""
            self.reading.to_park.append(ItemToPark(reason, detail + more, items.raw(index)))
        self.problems.clear()

    def _note(self, problem: UnreadableError) -> None:
        detail, times_seen = self.problems.get(problem.reason, (problem.detail, 0))
        self.problems[problem.reason] = detail, times_seen + 1

    def _message(self, raw: bytes) -> Message | None:
        message: Message | None = _decode(raw, self.layout.message)
        if message is None:
            try:
                return self._piece_by_piece(raw)
            except UnreadableError as problem:
                self._note(problem)
        return message

    def _piece_by_piece(self, raw: bytes) -> Message:
        """Read a message in which a part is flawed or has another type than documented, field by field."""
        if raw.lstrip()[:1] != b"{":
            raise UnreadableError(reasons.NOT_A_MESSAGE, f"{len(raw)} bytes")
        parts = read_fields(raw)
        if parts is None:
            raise UnreadableError(reasons.UNREADABLE_MESSAGE, "its brackets, quotes or commas don't fit together")
        meta = read_meta(parts.get("meta"))
        check_origin(meta)
        data = read_fields(parts.get("data"))
        if data is None:
            raise UnreadableError(
                reasons.UNREADABLE_MESSAGE, "data is not an object" if "data" in parts else "data is missing"
            )
        return Message(
            data=self.layout.data(
                identifier=data.get(self.identifier_field, b""),
                segment_events=self._transitions(data.get("segment_events")),
                **({} if self.identifier_field == PROFILE_FIELD else {"profile": data.get(PROFILE_FIELD, b"")}),
            ),
            meta=meta,
            time=as_time(parts.get("time")),
            source=as_text(parts.get("source")),
        )

    def _transitions(self, value: Any) -> list[Transition] | None:
        # In a message that is read field by field, the list of segment events itself is mostly valid.
        typed: list[Transition] | None = _decode(value, TRANSITIONS) if isinstance(value, bytes) else None
        if typed is not None:
            return typed
        value = read_value(value)
        if is_absent(value):
            return None
        elements = read_elements(value)
        if elements is None:
            raise UnreadableError(reasons.UNREADABLE_MESSAGE, "segment_events is not a list")
        transitions = []
        for element in elements:
            try:
                transitions.append(read_transition(element))
            except UnreadableError as problem:
                self._note(problem)
        return transitions

    def _unfold(self, message: Message, items: "_Items", index: int) -> None:
        """Add a fact for each pair of a segment event and an identifier of the message."""
        reading, meta = self.reading, message.meta
        reading.job = reading.job or as_name(meta.subscription_id if meta else message.source)
        check_origin(meta)
        if not message.data.segment_events:
            if self.problems:
                return  # all segment events were malformed; each has been noted
            raw = items.raw(index)
            empty = "segment_events" in (raw_fields((raw_fields(raw) or {}).get("data")) or {})
            raise UnreadableError(reasons.NO_SEGMENT_EVENTS, "segment_events is empty" if empty else fields_seen(raw))
        profile = self._profile(message.data)
        if self.empty_lists and profile and read_value(message.data.identifier) == []:
            facts, identifiers = reading.emptied, [""]
        else:
            facts, identifiers = reading.facts, self._identifiers(message.data.identifier, items, index)
        readable = []
        for transition in message.data.segment_events:
            try:
                readable.append(self._transition(transition, message))
                reading.claims += readable[-1][-1] != 0
            except UnreadableError as problem:
                self._note(problem)
        if len(facts) + len(readable) * len(identifiers) > FACTS_AT_MOST:
            detail = f"{len(identifiers)} identifiers in {len(readable)} segment events"
            raise UnreadableError(reasons.TOO_MANY_EVENTS, detail)
        for segment_id, slug, kind, occurred_ns, claimed_ns in readable:
            for identifier in identifiers:
                facts.append(Fact(segment_id, slug, identifier, kind, occurred_ns, profile, claimed_ns))

    def _profile(self, data: Any) -> str:
        if self.identifier_field == PROFILE_FIELD:
            return ""
        profile = as_identifier(data.profile)
        return "" if refusal_reason(profile) or self._is_nobody(profile) else profile

    def _is_nobody(self, identifier: str) -> bool:
        """Whether ``identifier`` is a placeholder (``is_placeholder``)."""
        return is_placeholder(identifier, self.placeholders)

    def _transition(self, transition: Transition, message: Message) -> tuple[str, str, Kind, int, int]:
        (segment_id, slug), kind = self.names[transition.id, transition.slug, transition.event]
        return segment_id, slug, kind, *self._occurred(kind, transition, message)

    def _occurred(self, kind: Kind, transition: Transition, message: Message) -> tuple[int, int]:
        """The time of the event, else of the message, else of the call; and the first time too far ahead, or 0.

        The ``exit`` of an enter is its scheduled end, and is ignored.
        """
        named = (transition.exit, transition.enter, None)[kind]
        claimed_ns = 0
        for value in (named, message.meta.timestamp if message.meta else None, message.time):
            if value is None or times.is_missing(value):
                continue
            try:
                occurred_ns = times.read(value)
            except ValueError as error:
                if not self.released:
                    raise UnreadableError(reasons.UNREADABLE_TIME, str(error)) from error
                continue
            if occurred_ns < times.EARLIEST:
                continue
            if occurred_ns <= self.latest_ns:
                return occurred_ns, claimed_ns
            claimed_ns = claimed_ns or occurred_ns
        return self.received_ns, claimed_ns

    def _identifiers(self, value: Any, items: "_Items", index: int) -> list[str]:
        value = _bounded(value)
        if self.allow_top_level and is_absent(value):
            value = _bounded((raw_fields(items.raw(index)) or {}).get(self.identifier_field, value))
        unique: dict[str, None] = {}
        usable = 0
        elements = [] if value == b"" else read_elements(value)
        for element in [value] if elements is None else elements:
            identifier = as_identifier(element)
            if not identifier:
                self.reading.skipped += 1
                continue
            usable += 1
            reason = reasons.PLACEHOLDER if self._is_nobody(identifier) else refusal_reason(identifier)
            if reason is None:
                unique[identifier] = None
            else:
                self._note(UnreadableError(reason, identifier[:40] if reason == reasons.PLACEHOLDER else ""))
        if not usable:
            is_missing = value == b""
            reason = reasons.NO_IDENTIFIER if is_missing else reasons.UNUSABLE_IDENTIFIER
            field = repr(self.identifier_field)
            what = f"expected in {field}" if is_missing else f"{field} is {kind_of_value(value)}"
            self._note(UnreadableError(reason, f"{what}; {fields_seen(items.raw(index))}"))
        return list(unique)


def _decode(text: bytes, decoder: Decoder) -> Any:
    """Decode ``text``; None if it has another layout or isn't JSON."""
    try:
        return decoder.decode(text)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


def _bounded(value: Any) -> Any:
    """An identifier value decoded, unless it is a list of too many identifiers."""
    if isinstance(value, bytes | Raw) and bytes(value).count(b",") > FACTS_AT_MOST:
        many = True
    else:
        value = read_value(value)
        many = isinstance(value, list) and len(value) > FACTS_AT_MOST
    if many:
        raise UnreadableError(reasons.TOO_MANY_EVENTS, f"more than {FACTS_AT_MOST:,} identifiers")
    return value


class _Items:
    """The bytes of each message of a body, split only when a message has to be parked."""

    def __init__(self, text: bytes, single: bool = False) -> None:
        self._text = text
        self._raws: list[bytes] | None = [text] if single else None

    def raw(self, index: int) -> bytes:
        if self._raws is None:
            self._raws = split(self._text).messages
        return self._raws[index]
