"""Calls that the doctor makes to the public address: they come the way of Lytics' calls, and are not stored.

Such a call has a valid token like any other, and a body that this service has signed. A batch of Lytics can't be taken
for one: without a signature of this service, made within the last minutes, it is stored.
"""

from typing import Any

from django.core.signing import BadSignature, TimestampSigner

PREFIX = b'{"lytics_sync_check":"'
_SUFFIX = b'"}'
# Longer than a body may take to arrive.
VALID_SECONDS = 300
_SIGNER = TimestampSigner(salt="audiences.receiving.checked_calls")


def body(size: int) -> bytes:
    """A signed body of at least ``size`` bytes, filled up with blanks."""
    return (PREFIX + _SIGNER.sign("check").encode() + _SUFFIX).ljust(size)


def answer(content: bytes, *, query: str) -> dict[str, Any] | None:
    """What a signed call is answered: how many bytes arrived, and with which query. None for any other call."""
    if not content.startswith(PREFIX):
        return None
    signed = content.rstrip(b" ").removeprefix(PREFIX).removesuffix(_SUFFIX)
    try:
        _SIGNER.unsign(signed.decode("ascii"), max_age=VALID_SECONDS)
    except (UnicodeDecodeError, BadSignature):
        return None
    return {"check": True, "bytes": len(content), "query": query}
