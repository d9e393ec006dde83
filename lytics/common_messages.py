"""The quick paths of ``payload``: common messages give the same facts as in its general path, several times as fast.

A message is common if its identifier is one usable text and all its segment events have a usable time.
"""

from collections.abc import Sequence
from itertools import chain
from typing import Any

from lytics import reasons, times
from lytics.facts import FACTS_AT_MOST, IDENTIFIER_BYTES, Columns, Fact, Kind, Reading
from lytics.identifiers import FILLING, as_name, audience_names, is_placeholder, is_plain_text, placeholder_beginnings
from lytics.messages import KINDS, Message, Meta
from lytics.reasons import UnreadableError

# Values of ``meta.object`` in a message about a person.
_USER_OBJECTS = {"user", None}
# Fewer messages are read sooner one after the other than as columns.
_LEAST_AS_COLUMNS = 8

Came = tuple[str | int | None, str | int | None, str | None]


class Names(dict[Came, tuple[tuple[str, str], Kind]]):
    """Segment id, slug and event as received -> as stored. A body repeats few audiences many times.

    Raises ``UnreadableError`` for those that can't be stored.
    """

    def __missing__(self, came: Came) -> tuple[tuple[str, str], Kind]:
        segment_id, slug, event = came
        kind = KINDS.get((event or "").strip().lower())
        if kind is None:
            raise UnreadableError(
                reasons.UNKNOWN_EVENT,
                "the event is missing" if event is None else f"the event is {times.quoted(event)}",
            )
        named = self[came] = audience_names(segment_id, slug), kind
        return named


class CommonMessages:
    """Reads the messages of one body. ``is_plain_body``: all its texts are ASCII without escapes.

    Later times than ``latest_ns`` are unusable.
    """

    def __init__(
        self, names: Names, placeholders: frozenset[str], *, is_by_profile: bool, latest_ns: int, is_plain_body: bool
    ) -> None:
        self._names, self._placeholders = names, placeholders
        self._is_by_profile, self._latest_ns, self._is_plain_body = is_by_profile, latest_ns, is_plain_body
        # First characters of placeholders, and the length of the longest in brackets. Most identifiers need no
        # comparison.
        self._placeholder_starts = placeholder_beginnings(placeholders)
        self._placeholder_length = max(map(len, placeholders), default=0) + 2

    def take_all(self, messages: Sequence[Message], reading: Reading) -> bool:
        """Read a batch column by column, in half the time of ``take``.

        Returns False, and adds nothing, if one message is not common or there are too few.
        """
        if len(messages) < _LEAST_AS_COLUMNS:
            return False
        data = [message.data for message in messages]
        identifiers = [one.identifier.strip() for one in data]
        profiles = [""] * len(data) if self._is_by_profile else [one.profile.strip() for one in data]
        if not (all(identifiers) and self._are_usable(identifiers) and self._are_usable([*filter(None, profiles)])):
            return False
        metas = [
            message.meta or Meta(timestamp=message.time, subscription_id=message.source)  # a CloudEvent
            for message in messages
        ]
        if {meta.object for meta in metas} - _USER_OBJECTS:
            return False
        events = [one.segment_events or () for one in data]
        if not all(events):
            return False
        transitions = [*chain.from_iterable(events)]
        if len(transitions) > len(data):
            if len(transitions) > FACTS_AT_MOST:
                return False
            identifiers, profiles, metas = (
                [value for value, some in zip(column, events, strict=True) for _ in some]
                for column in (identifiers, profiles, metas)
            )
        names, nanoseconds = self._names, times.nanoseconds
        try:
            named = [names[one.id, one.slug, one.event] for one in transitions]
            kinds = [kind for _, kind in named]
            stamps: list[Any] = [
                (transition.exit, transition.enter, None)[kind] or meta.timestamp
                for transition, kind, meta in zip(transitions, kinds, metas, strict=True)
            ]
            occurred_ns = [nanoseconds(stamp) for stamp in stamps]
        except (UnreadableError, ValueError, TypeError):
            return False
        if not times.EARLIEST <= min(occurred_ns) <= max(occurred_ns) <= self._latest_ns:
            return False
        reading.columns = Columns([name for name, _ in named], identifiers, kinds, occurred_ns, profiles)
        reading.messages = len(data)
        reading.job = next(filter(None, (as_name(meta.subscription_id) for meta in metas)), "")
        return True

    def take(self, message: Message, reading: Reading) -> bool:
        """Read a message. Returns False, and adds nothing, if it is not common."""
        data, meta = message.data, message.meta
        if meta is None:  # a CloudEvent
            meta = Meta(timestamp=message.time, subscription_id=message.source)
        identifier = data.identifier.strip()
        profile = "" if self._is_by_profile else data.profile.strip()
        if not self._is_usable(identifier) or (profile and not self._is_usable(profile)):
            return False
        if not data.segment_events or meta.object not in _USER_OBJECTS:
            return False
        facts = reading.facts
        before = len(facts)
        try:
            for transition in data.segment_events:
                (segment_id, slug), kind = self._names[transition.id, transition.slug, transition.event]
                named = (transition.exit, transition.enter, None)[kind] or meta.timestamp
                occurred_ns = times.nanoseconds(named) if type(named) is str else 0
                if not times.EARLIEST <= occurred_ns <= self._latest_ns:
                    break
                facts.append(Fact(segment_id, slug, identifier, kind, occurred_ns, profile))
            else:
                if len(facts) <= FACTS_AT_MOST:
                    reading.job = reading.job or as_name(meta.subscription_id)
                    reading.messages += 1
                    return True
        except (UnreadableError, ValueError):
            pass
        del facts[before:]
        return False

    def _are_usable(self, texts: Sequence[str]) -> bool:
        """``_is_usable`` for all; none is blank."""
        if self._is_plain_body and max(map(len, texts), default=0) <= IDENTIFIER_BYTES:
            starts, longest = self._placeholder_starts, self._placeholder_length
            texts = [text for text in texts if text[0] in starts]
            # Hardly any of the others is as short as a placeholder.
            texts = [text for text in texts if len(text) <= longest or " " in text or not text.strip(FILLING)]
        return all(map(self._is_usable, texts))

    def _is_usable(self, text: str) -> bool:
        """Whether ``text`` is certainly usable, as nearly all identifiers are: short, plain and no placeholder."""
        if not (0 < len(text) <= IDENTIFIER_BYTES if self._is_plain_body else is_plain_text(text)):
            return False
        if text[0] not in self._placeholder_starts:
            return True
        # Longer than each placeholder, without blanks, and with other characters than zeros and the like.
        if len(text) > self._placeholder_length and " " not in text and text.strip(FILLING):
            return True
        return not is_placeholder(text, self._placeholders)
