"""The body of a webhook call: read and unpacked within a bound, however it was sent."""

import zlib
from typing import Any

from django.conf import settings
from rest_framework.request import Request

_CHUNK = 1 << 16


class TooLargeError(Exception):
    """More bytes than ``WEBHOOK_BODY_LIMIT``, as sent or unpacked."""


def read(request: Request) -> bytes:
    """The body, unpacked when it is gzip or deflate. Raises ``TooLargeError``.

    What claims to be packed and can't be unpacked comes back as it was sent: the parser will set it aside.
    """
    body = _raw(request)
    encoding = request.META.get("HTTP_CONTENT_ENCODING", "").strip().lower()
    if encoding in ("gzip", "x-gzip", "deflate") or body.startswith(b"\x1f\x8b"):
        return _unpacked(body)
    return body


def _raw(request: Request) -> bytes:
    limit: int = settings.WEBHOOK_BODY_LIMIT
    # Django reads as much as Content-Length says, so nothing at all of a chunked body; the server has the end of it.
    chunked = "chunked" in request.META.get("HTTP_TRANSFER_ENCODING", "").lower()
    if not chunked and int(request.META.get("CONTENT_LENGTH") or 0) > limit:
        raise TooLargeError
    stream: Any = request.META["wsgi.input"] if chunked else request._request
    pieces, size = [], 0
    while piece := stream.read(min(_CHUNK, limit + 1 - size)):
        pieces.append(piece)
        size += len(piece)
        if size > limit:
            raise TooLargeError
    return b"".join(pieces)


def _unpacked(body: bytes) -> bytes:
    limit: int = settings.WEBHOOK_BODY_LIMIT
    unpacker = zlib.decompressobj(wbits=zlib.MAX_WBITS | 32)  # either header, gzip's or zlib's
    try:
        unpacked = unpacker.decompress(body, limit + 1)
    except zlib.error:
        return body
    if len(unpacked) > limit:
        raise TooLargeError
    return unpacked if unpacker.eof else body
