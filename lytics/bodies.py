"""Split a body into the bytes of its messages, or give the reason: it is compressed, cut off or not JSON."""

import codecs
import json
import re
from contextlib import suppress
from itertools import chain, islice
from typing import NamedTuple

from msgspec import Raw

from lytics import reasons
from lytics.facts import MESSAGES_AT_MOST, ItemToPark, Reading
from lytics.json_pieces import TextBehindError, UnclosedError, cut, cut_members, find_end, read_as
from lytics.reasons import UnreadableError

# From this number of commas on, an array is split by its brackets: msgspec would build all elements before the count.
COMMAS_UNCOUNTED = 5_000_000


class Pieces(NamedTuple):
    """``messages`` are the bytes of each message; ``rest`` is other text between and after the JSON documents.

    With ``is_cut_off``, the body ends inside an array, and ``rest`` is what follows its last complete message.
    """

    messages: list[bytes]
    rest: bytes = b""
    is_cut_off: bool = False


def as_utf8(body: bytes) -> bytes:
    """The body in UTF-8. It may come as UTF-16 or UTF-32, with a byte order mark or without."""
    encoding = json.detect_encoding(body)
    if encoding in ("utf-8", "utf-8-sig"):
        return body.removeprefix(codecs.BOM_UTF8)
    try:
        # Half an emoji passes: it may be in an unused field. Characters are never replaced: that would change an
        # identifier.
        return body.decode(encoding, "surrogatepass").encode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        return body


def split(text: bytes) -> Pieces:
    """Split a body without surrounding blanks into messages. It is one JSON document, or rarely several."""
    try:
        if text[:1] in (b"[", b"{"):
            return Pieces(_messages(text))
    except UnclosedError as error:
        messages, rest = _before_cut(text) if error.cut_off else ([], text)
        if not messages:
            raise not_json(text, cut_off=error.cut_off) from None
        return Pieces(messages, rest, is_cut_off=True)
    except TextBehindError:
        return _split_documents(text)
    if read_as(text, Raw) is None:
        raise not_json(text)
    return Pieces([text])


def _before_cut(text: bytes) -> tuple[list[bytes], bytes]:
    """The complete messages of an array that is cut off, and the bytes behind them; no messages if none is readable."""
    position = _array_start(text)
    if position is None:
        return [], text
    messages, is_closed = [], False
    with suppress(UnclosedError):
        while not is_closed:
            end = find_end(text, position)
            messages.append(text[position:end].strip())
            if len(messages) > MESSAGES_AT_MOST:
                raise _too_many()
            position, is_closed = end + 1, text[end : end + 1] == b"]"
    rest = text[position:].strip()
    with suppress(UnclosedError, UnreadableError):  # maybe only the last bracket is missing
        if _document_end(rest) == len(rest):
            messages, rest = [*messages, rest], b""
    return (messages, rest) if any(map(_is_object, messages)) else ([], text)


def _array_start(text: bytes) -> int | None:
    """The position of the first message of the array that the body is, or that its object wraps; None without one."""
    if begins_array(text):
        return 1
    position = 1
    with suppress(UnclosedError):
        while (member := _WRAPPING.match(text, position)) is None or member["null"]:
            position = find_end(text, position) + 1
        return member.end() if member["array"] else None
    return None


def _is_object(message: bytes) -> bool:
    """Whether it is a readable object with members."""
    return message.startswith(b"{") and bool(cut_members(message))


def _split_documents(text: bytes) -> Pieces:
    """Split several documents, such as one per line, or a document that a surplus bracket ends early."""
    documents, rest, position = [], [], 0
    while position < len(text):
        match = _STRAY.match(text, position)
        assert match is not None, "the pattern matches everywhere"
        stray = match[0]
        if stray.strip(LEADING + b","):
            rest.append(stray.strip())
        position += len(stray)
        try:
            end = _document_end(text, position)
        except (UnclosedError, UnreadableError):
            rest.append(text[position:])
            break
        documents.append(text[position:end])
        if len(documents) > MESSAGES_AT_MOST:
            raise _too_many()
        position = end
    messages = list(islice(chain.from_iterable(map(_messages, documents)), MESSAGES_AT_MOST + 1))
    if len(messages) > MESSAGES_AT_MOST:
        raise _too_many()
    # Text with brackets but without a readable object, such as the output of a template, is not JSON.
    if not any(map(_is_object, messages)):
        raise not_json(text)
    return Pieces(messages, b"".join(rest).strip())


# Between documents: blanks, byte order marks, commas and closing brackets.
_STRAY = re.compile(rb"(?:[\]},\s]++|\xef\xbb\xbf)*+")
# What may begin a body before its first bracket.
LEADING = b" \t\n\r\v\f" + codecs.BOM_UTF8


def _document_end(text: bytes, start: int = 0) -> int:
    if text[start : start + 1] not in (b"[", b"{"):
        raise not_json(text)
    return find_end(text, start + 1, commas=False) + 1


def _messages(text: bytes) -> list[bytes]:
    """The messages of one document; an object that wraps a list is unwrapped."""
    if begins_array(text):
        return elements_of(text)
    fields = read_as(text, dict[str, Raw])
    if fields is None:
        if _document_end(text) < len(text):
            raise TextBehindError
        fields = raw_fields(text) if _WRAPPER.search(text) else None
    wrapped = [bytes(fields[name]) for name in ("events", "data") if name in (fields or {})]
    wrapped = [value for value in wrapped if value.strip() != b"null"]
    if not wrapped or not all(map(begins_array, wrapped)):
        return [text]
    try:
        return [element for array in wrapped for element in elements_of(array)]
    except TextBehindError:
        return [text]


# A member that may wrap the messages of a body, up to what shows whether it does.
_WRAPPING = re.compile(rb'\s*+"(?:events|data)"\s*+:\s*+(?:(?P<array>\[)|(?P<null>null\b))?')
# A flawed object is cut into members only if it may wrap a list.
_WRAPPER = re.compile(rb'"(?:events|data)"\s*+:\s*+\[')


def begins_array(text: bytes) -> bool:
    return text.lstrip()[:1] == b"["


def raw_fields(text: bytes | Raw | None) -> dict[str, Raw] | None:
    """The members of an object, undecoded. A flaw in one value doesn't affect the others."""
    fields: dict[str, Raw] | None = read_as(text, dict[str, Raw])
    if fields is None and text is not None and (stripped := bytes(text).strip()).startswith(b"{"):
        members = cut_members(stripped)
        return None if members is None else {name: Raw(value) for name, value in members.items()}
    return fields


def elements_of(array: bytes) -> list[bytes]:
    parts = _raw_elements(array)
    elements = list(islice(cut(array.strip()), MESSAGES_AT_MOST + 1)) if parts is None else parts
    if len(elements) > MESSAGES_AT_MOST:
        raise _too_many()
    return [bytes(element) for element in elements]


def is_typed_array(text: bytes) -> bool:
    """Whether ``text`` is an array short enough for a typed decoder, which builds all messages up to the first flaw."""
    if not begins_array(text):
        return False
    if len(text) <= MESSAGES_AT_MOST or text.count(b",") < MESSAGES_AT_MOST:
        return True
    parts = _raw_elements(text)
    if parts is not None and len(parts) > MESSAGES_AT_MOST:
        raise _too_many()
    return parts is not None


def _raw_elements(array: bytes) -> list[Raw] | None:
    parts: list[Raw] | None = read_as(array, list[Raw]) if array.count(b",") < COMMAS_UNCOUNTED else None
    return parts


def _too_many() -> UnreadableError:
    return UnreadableError(reasons.TOO_MANY_MESSAGES, f"more than {MESSAGES_AT_MOST:,}")


# The first bytes of compressed bodies. Valid gzip and deflate was unpacked before; here it is damaged or cut off.
_PACKED = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"PK\x03\x04": "zip"}
_ZLIB = re.compile(rb"\x78[\x01\x5e\x9c\xda]")


def not_json(text: bytes, *, cut_off: bool = False) -> UnreadableError:
    """The error for an unreadable body: compressed, cut off, or something else."""
    for mark, name in _PACKED.items():
        if text.startswith(mark):
            return UnreadableError(reasons.PACKED_BODY, f"{len(text)} bytes that begin like {name}")
    if _ZLIB.match(text):
        return UnreadableError(reasons.PACKED_BODY, f"{len(text)} bytes that begin like deflate")
    if cut_off:
        return UnreadableError(reasons.CUT_OFF_BODY, f"{len(text)} bytes, and the last bracket is missing")
    return UnreadableError(reasons.NOT_JSON, f"{len(text)} bytes")


# Names of compressions in Content-Encoding. Other tokens, such as ``aws-chunked``, leave the body readable.
_COMPRESSIONS = frozenset(
    {"gzip", "x-gzip", "deflate", "compress", "x-compress", "br", "zstd", "bzip2", "lz4", "snappy", "xz"}
)


def name_encoding(reading: Reading, encoding: str) -> Reading:
    """Use the reason *compressed* for a body that isn't JSON if its Content-Encoding says so: brotli has no signature.

    ``encoding`` is the remaining Content-Encoding of the body. A compressed body can begin like JSON by chance, so a
    cut-off body that isn't UTF-8 text counts as compressed, too.
    """
    if _COMPRESSIONS.intersection(re.split(r"[,\s]+", encoding)):
        for index, item in enumerate(reading.to_park):
            if item.reason == reasons.NOT_JSON or (item.reason == reasons.CUT_OFF_BODY and not _is_text(item.raw)):
                detail = f"{len(item.raw)} bytes, Content-Encoding {encoding[:40]!r}"
                reading.to_park[index] = ItemToPark(reasons.PACKED_BODY, detail, item.raw)
    return reading


def _is_text(raw: bytes) -> bool:
    """Whether ``raw`` is UTF-8; its last character may be incomplete."""
    try:
        raw.decode()
    except UnicodeDecodeError as error:
        return error.reason == "unexpected end of data"
    return True
