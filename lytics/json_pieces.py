"""JSON that may be flawed, packed or cut off: decoded whole if possible, else cut into pieces that are read alone."""

import re
from collections.abc import Iterator
from itertools import islice
from typing import Any

import msgspec
from msgspec import Raw

from lytics import reasons
from lytics.facts import MESSAGES_AT_MOST, Reading, SetAside

# Maximum nesting depth when looking for the end of invalid JSON, which may hold tens of millions of brackets.
_DEPTH_AT_MOST = 1_000_000
# A body with this many commas or more has its messages counted before any of them is decoded.
COMMAS_UNCOUNTED = 5_000_000


class UnreadableError(Exception):
    def __init__(self, reason: str, detail: str = "") -> None:
        self.reason, self.detail = reason, detail
        super().__init__(reason)


def as_utf8(body: bytes) -> bytes:
    for mark, encoding in ((b"\xef\xbb\xbf", "utf-8"), (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16")):
        if body.startswith(mark):
            try:
                return body[3:] if encoding == "utf-8" else body.decode(encoding).encode()
            except UnicodeDecodeError:
                return body  # not replaced piece by piece: an identifier must never be nearly what was sent
    return body


def split(text: bytes) -> list[bytes]:
    """A body as the bytes of its messages; an object that wraps a list is unwrapped."""
    if begins_array(text):
        return elements_of(text)
    fields = read_fields(text)
    if fields is None:
        if read_as(text, Raw) is None and not is_closed_object(text):
            raise not_json(text)
        return [text]
    wrapped = [bytes(fields[name]) for name in ("events", "data") if name in fields]
    wrapped = [value for value in wrapped if value.strip() != b"null"]
    if not wrapped or not all(map(begins_array, wrapped)):
        return [text]
    return [element for array in wrapped for element in elements_of(array)]


def decode(text: bytes, decoder: msgspec.json.Decoder[Any]) -> Any:
    """Without its value when ``text`` is laid out otherwise, or no JSON."""
    try:
        return decoder.decode(text)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


def begins_array(text: bytes) -> bool:
    return text.lstrip()[:1] == b"["


def elements_of(array: bytes) -> list[bytes]:
    check_number_of_messages(array)
    parts = read_as(array, list[Raw])
    return list(cut_pieces(array)) if parts is None else [bytes(part) for part in parts]


def check_number_of_messages(array: bytes) -> None:
    """Refuse an array of more messages than one call may hold, before anything is built of them."""
    commas = array.count(b",")
    if commas < MESSAGES_AT_MOST:
        return
    parts = read_as(array, list[Raw]) if commas < COMMAS_UNCOUNTED else None
    number = len(parts) if parts is not None else sum(1 for _ in islice(cut_pieces(array), MESSAGES_AT_MOST + 1))
    if number > MESSAGES_AT_MOST:
        raise UnreadableError(reasons.TOO_MANY_MESSAGES, f"more than {MESSAGES_AT_MOST:,}")


# Possessive, and with an alternative for text that nothing closes: a failed match would start anew at every quote.
_TOKEN = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+(?P<end>"?)|[\[\]{},]', re.DOTALL)


def is_closed_object(text: bytes) -> bool:
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


def cut_pieces(text: bytes) -> Iterator[bytes]:
    """The elements of an array, or the members of an object, by its brackets alone: none has to be well-formed."""
    start = position = len(text) - len(text.lstrip()) + 1
    depth = 1
    last = b"]" if begins_array(text) else b"}"
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
        raise not_json(text, cut_off=0 < depth <= _DEPTH_AT_MOST)


# How compressed bodies begin. Those of gzip and deflate are unpacked before; here they are damaged or cut off.
_PACKED = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"PK\x03\x04": "zip"}
_ZLIB = re.compile(rb"\x78[\x01\x5e\x9c\xda]")


def not_json(text: bytes, *, cut_off: bool | None = None) -> UnreadableError:
    """Why a body can't be read at all: compressed, cut off, or something else."""
    for mark, name in _PACKED.items():
        if text.startswith(mark):
            return UnreadableError(reasons.PACKED_BODY, f"{len(text)} bytes that begin like {name}")
    if _ZLIB.match(text):
        return UnreadableError(reasons.PACKED_BODY, f"{len(text)} bytes that begin like deflate")
    if cut_off if cut_off is not None else text.lstrip()[:1] == b"{" and not is_whole(text):
        return UnreadableError(reasons.CUT_OFF_BODY, f"{len(text)} bytes, and the last bracket is missing")
    return UnreadableError(reasons.NOT_JSON, f"{len(text)} bytes")


# Names of compressions in Content-Encoding. Other tokens, such as ``aws-chunked``, leave the body readable.
_COMPRESSIONS = frozenset(
    {"gzip", "x-gzip", "deflate", "compress", "x-compress", "br", "zstd", "bzip2", "lz4", "snappy", "xz"}
)


def name_encoding(reading: Reading, encoding: str) -> Reading:
    """Call a body that is no JSON compressed where its Content-Encoding says so: brotli has no mark of its own.

    ``encoding`` is the Content-Encoding that the body still has. A compressed body may begin like JSON by chance; if it
    is no text either, it is not JSON that was cut off.
    """
    if _COMPRESSIONS.intersection(re.split(r"[,\s]+", encoding)):
        for index, item in enumerate(reading.aside):
            if item.reason == reasons.NOT_JSON or (item.reason == reasons.CUT_OFF_BODY and not _is_text(item.raw)):
                detail = f"{len(item.raw)} bytes, Content-Encoding {encoding[:40]!r}"
                reading.aside[index] = SetAside(reasons.PACKED_BODY, detail, item.raw)
    return reading


def _is_text(raw: bytes) -> bool:
    """Whether ``raw`` is UTF-8, of whose last character a part may be missing."""
    try:
        raw.decode()
    except UnicodeDecodeError as error:
        return error.reason == "unexpected end of data"
    return True


def is_whole(text: bytes) -> bool:
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


def read_fields(raw: bytes | Raw | None) -> dict[str, Raw] | None:
    """The values of an object by name, each as it came. A flaw in one value costs no other."""
    fields: dict[str, Raw] | None = read_as(raw, dict[str, Raw])
    if fields is None and raw is not None and bytes(raw).lstrip()[:1] == b"{":
        return _flawed_fields(bytes(raw))
    return fields


def _flawed_fields(text: bytes) -> dict[str, Raw] | None:
    found: dict[str, Raw] = {}
    try:
        for member in cut_pieces(text):
            match = _MEMBER.fullmatch(member)
            if match is None:
                return None
            name = read_as(match[1], str)
            if name is not None:  # one with a flaw in its name is none that is looked for
                found[name] = Raw(match[2].strip())
    except UnreadableError:
        return None
    return found


def read_as(raw: bytes | Raw | None, layout: Any) -> Any:
    """``raw`` decoded as ``layout``, or None when it is absent, ``null`` or something else."""
    if raw is None:
        return None
    try:
        return msgspec.json.decode(raw, type=layout)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


def read_elements(value: Raw) -> list[Raw]:
    text = bytes(value)
    if not text:
        return []
    if not begins_array(text):
        return [value]
    listed: list[Raw] | None = read_as(value, list[Raw])
    if listed is not None:
        return listed
    try:
        return [Raw(element) for element in cut_pieces(text)]
    except UnreadableError:
        return []
