"""The body of a webhook call: read and unpacked within a bound, however it was sent."""

import io
import zlib
from contextlib import suppress
from typing import Any, NamedTuple

from django.conf import settings
from django.http.request import UnreadablePostError
from rest_framework.request import Request

from lytics.bodies import as_utf8

# Bytes read at a time. gunicorn's reader copies what it has received beyond them.
_CHUNK = 1 << 20
# Bytes of an unwanted body that are read at a time.
_DISCARDED_CHUNK = 1 << 16
# Bytes decompressed at a time. Small, because zlib copies the rest of the piece at the end of each compressed file.
_PACKED_CHUNK = 1 << 12
# An unwanted body is read up to this many times the limit; a caller that sends more may lose the response.
_DISCARDED = 4
# The most seconds for reading an unwanted body: the caller may be unauthenticated, and occupies a thread.
_DISCARD_SECONDS = 5.0
# The most compressions of one body: a sender and a proxy may both compress.
_LAYERS = 3
# For zlib: the header is gzip's or zlib's. No JSON begins with the first byte of either.
_EITHER_HEADER = zlib.MAX_WBITS | 32
_BEGINNINGS = (b"\x1f\x8b", b"\x78")


class TooLargeError(Exception):
    """The body has more bytes than ``WEBHOOK_BODY_LIMIT``, as sent or decompressed."""


class MalformedError(Exception):
    """The body isn't framed as HTTP requires; for example, its chunks are invalid."""


class TooSlowError(Exception):
    """The body took longer than ``WEBHOOK_READ_SECONDS`` to arrive."""


class Body(NamedTuple):
    """``content`` is decompressed as far as possible; ``encoding`` is the remaining Content-Encoding, or empty."""

    content: bytes
    encoding: str


def read(request: Request) -> Body:
    """The body, decompressed when it is gzip or deflate.

    Raises ``TooLargeError``, ``TooSlowError``, ``MalformedError`` and ``UnreadablePostError``.

    A body that can't be decompressed is returned as it was sent, and the parser parks it.
    """
    body = _raw(request)
    encoding = str(request.META.get("HTTP_CONTENT_ENCODING", "")).strip().lower()
    if encoding in ("gzip", "x-gzip", "deflate") or body.startswith(_BEGINNINGS):
        unpacked = _unpacked(body, _EITHER_HEADER)
        if unpacked is body and encoding == "deflate":
            # Some libraries leave out zlib's header. Nothing else marks such a stream, so the result has to look right.
            bare = _unpacked(body, -zlib.MAX_WBITS)
            unpacked = bare if as_utf8(bare).lstrip()[:1] in (b"[", b"{") else body
        if unpacked is not body:
            return Body(_inner(unpacked), "")
    return Body(body, encoding)


def _inner(content: bytes) -> bytes:
    """Unpack a body that was compressed more than once."""
    for _ in range(_LAYERS - 1):
        if not content.startswith(_BEGINNINGS):
            break
        content = _unpacked(content, _EITHER_HEADER)
    return content


def discard(request: Request) -> None:
    """Read and discard the rest of the body, within limits.

    Closing a connection with unread data resets it: the caller would see a broken pipe in place of the 503 and its
    Retry-After.
    """
    left = _DISCARDED * settings.WEBHOOK_BODY_LIMIT
    if allow := getattr(request.META.get("gunicorn.socket"), "allow", None):  # lytics_sync/request_socket.py
        allow(_DISCARD_SECONDS)
    with suppress(Exception):  # a caller that has disconnected reads no response
        stream = _stream(request)
        while left > 0 and (piece := stream.read(_DISCARDED_CHUNK)):
            left -= len(piece)


def _is_chunked(request: Request) -> bool:
    return "chunked" in request.META.get("HTTP_TRANSFER_ENCODING", "").lower()


def _stream(request: Request) -> Any:
    # Django reads Content-Length bytes, so nothing of a chunked body. gunicorn's stream ends where the body ends.
    return request.META["wsgi.input"] if _is_chunked(request) else request._request


def _raw(request: Request) -> bytes:
    limit: int = settings.WEBHOOK_BODY_LIMIT
    announced = 0 if _is_chunked(request) else int(request.META.get("CONTENT_LENGTH") or 0)
    if announced > limit:
        raise TooLargeError
    stream = _stream(request)
    # Joining pieces would need the body's memory twice.
    content, size = io.BytesIO(), 0
    while piece := _next_piece(stream, min(_CHUNK, limit + 1 - size)):
        if not size and len(piece) == announced:
            return piece  # all of it, as usual: no copy, and no read that finds the end
        content.write(piece)
        size += len(piece)
        if size > limit:
            raise TooLargeError
    if size < announced:
        # A connection that ends early reads like the end of the body. Nothing is stored; Lytics sends the call again.
        raise UnreadablePostError(f"{size} of {announced} bytes came")
    return content.getvalue()


def _next_piece(stream: Any, size: int) -> bytes:
    try:
        return bytes(stream.read(size))
    except Exception as error:  # gunicorn raises exceptions of its own
        if isinstance(error, TimeoutError) or isinstance(error.__cause__, TimeoutError):
            raise TooSlowError from error
        if isinstance(error, OSError):
            raise UnreadablePostError(str(error)) from error
        raise MalformedError(str(error)) from error


def _unpacked(body: bytes, wbits: int) -> bytes:
    limit: int = settings.WEBHOOK_BODY_LIMIT
    content, size, position = io.BytesIO(), 0, 0
    unpacker = zlib.decompressobj(wbits=wbits)
    while position < len(body):
        chunk = body[position : position + _PACKED_CHUNK]
        try:
            size += content.write(unpacker.decompress(chunk, limit + 1 - size))
        except zlib.error:
            return body
        if size > limit:
            raise TooLargeError
        position += len(chunk) - len(unpacker.unused_data)
        if unpacker.eof:  # another one may follow, and zeros may pad the last
            if not body[position : position + 1].strip(b"\0") and not body[position:].strip(b"\0"):
                return content.getvalue()
            unpacker = zlib.decompressobj(wbits=wbits)
    return body
