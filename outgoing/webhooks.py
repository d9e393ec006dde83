"""Send JSON to a webhook, signed by the Standard Webhooks specification (https://www.standardwebhooks.com)."""

import base64
import binascii
import hashlib
import hmac
import threading
from collections.abc import Mapping

import requests

from outgoing.deadline import SPARE_SECONDS, DeadlineAdapter, deadline
from outgoing.network_errors import words_for

_PREFIX = "whsec_"
# The specification asks for 24 to 64 bytes.
SECRET_BYTES = range(24, 65)
_thread = threading.local()


def key_of(secret: str) -> bytes:
    """The bytes of a secret, which is base64 after ``whsec_``. Raises ``ValueError`` for another form or length."""
    try:
        key = base64.b64decode(secret.removeprefix(_PREFIX), validate=True)
    except binascii.Error as error:
        raise ValueError("it is not base64") from error
    if len(key) not in SECRET_BYTES:
        raise ValueError("it does not have 24 to 64 bytes")
    return key


def signed(webhook_id: str, body: bytes, *, secret: str, at: int) -> dict[str, str]:
    """The three headers. ``at`` is the time of this attempt in seconds since 1970."""
    signature = hmac.new(key_of(secret), f"{webhook_id}.{at}.".encode() + body, hashlib.sha256).digest()
    return {
        "webhook-id": webhook_id,
        "webhook-timestamp": str(at),
        "webhook-signature": f"v1,{base64.b64encode(signature).decode()}",
    }


def post(url: str, body: bytes, *, name: str, seconds: float, headers: Mapping[str, str] | None = None) -> str:
    """Return why the receiver didn't accept it; empty after a 2xx. ``name`` replaces the URL, which may be secret.

    A redirect isn't followed, and nothing of the response's body is read.
    """
    sent = {"Content-Type": "application/json", "User-Agent": "lytics-sync/0.1", **(headers or {})}
    with deadline(seconds=seconds) as limit:
        try:
            request = requests.Request("POST", url, headers=sent, data=body).prepare()
            timeout = (seconds, seconds + SPARE_SECONDS)
            with _adapter().send(request, timeout=timeout, verify=True, stream=True) as response:
                status = response.status_code
        except Exception as error:  # noqa: BLE001 — whatever a server does becomes a reason
            if limit.passed:
                return f"{name} did not respond within {seconds:g} s"
            return words_for(error, server=name, address=name)
    return "" if 200 <= status < 300 else f"{name} answered {status}"


def _adapter() -> DeadlineAdapter:
    adapter: DeadlineAdapter | None = getattr(_thread, "adapter", None)
    if adapter is None:
        adapter = _thread.adapter = DeadlineAdapter(pool_connections=4, pool_maxsize=1)
    return adapter
