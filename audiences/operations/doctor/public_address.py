"""Checks of PUBLIC_URL from outside: a call is made to it as Lytics makes one, and none of these calls is stored.

This process may be inside a network from which the public address can't be reached although Lytics can; so if Lytics
has called lately, an unreachable address is only a warning.
"""

import time
from datetime import timedelta
from typing import Any

from django.conf import settings
from django.utils.timezone import now

from audiences.insight import certificate, checklist
from audiences.odp_hosts import is_local
from audiences.operations import installs
from audiences.operations.doctor.case import REQUEST_SECONDS, Case, NotCheckedError
from audiences.operations.doctor.registry import Found, bad, check, good, unknown, warning
from audiences.receiving import checked_calls, reasons_to_wait, tokens
from odp.client import Client
from odp.outcomes import Answer
from outgoing.network_errors import elsewhere, words_for

PUBLIC = "Public address"
# A batch of 1,000 messages with a dozen fields each. Proxies usually allow 1 to 10 MB.
LARGE_BODY_BYTES = 16_000_000
LARGE_BODY_SECONDS = 20.0
# Lytics can add a query to the URL; it has to arrive as it was sent.
QUERY = "check=a%2Fb%26c+d&empty="
# A call of Lytics within this time proves that the address works.
CALLED_LATELY = timedelta(hours=1)
PROXY = "the proxy or firewall in front of this service"


def _call(case: Case, *, query: str = "", size: int = 0, seconds: float = REQUEST_SECONDS) -> Answer:
    live = tokens.live(case.install)
    if not live:
        raise NotCheckedError("The install has no live token to call with.", "Press New token on the install's page.")
    caller = Client(
        host=installs.webhook_url(case.install),
        api_key="",
        headers={"Authorization": installs.authorization(live[0])},
        ends_at=case.ends_at,
    )
    return caller.call("POST", f"?{query}" if query else "", body=checked_calls.body(size), seconds=seconds)


def _echo(answer: Answer) -> dict[str, Any]:
    """This service's description of the call; empty when another server answered."""
    is_ours = answer.status == 200 and isinstance(answer.json, dict) and answer.json.get("check") is True
    return answer.json if is_ours else {}


@check(PUBLIC, "Address from outside")
def public_url(case: Case) -> Found:
    """Whether a call to the webhook URL of this install, with its token, reaches this service and nothing else."""
    url = installs.webhook_url(case.install)
    answer = _call(case)
    case.is_reached = bool(_echo(answer))
    if case.is_reached:
        words = f"{url} answers (in {answer.seconds * 1000:.0f} ms)."
        if is_local(settings.PUBLIC_URL):
            cure = "For anything but a trial, set PUBLIC_URL to the https address of this service."
            return warning(f"{words} It is an address of this machine, which Lytics can't reach.", cure)
        if not url.startswith("https://"):
            return bad(f"{words} It isn't https, and Lytics calls https only.", "Serve it by https, set PUBLIC_URL.")
        return good(words)
    if answer.status is None:
        words = f"{url} can't be reached from here: {elsewhere(answer.reason)}."
        last = checklist.calls_of_lytics(case.install).order_by("-id").first()
        cure = f"Check PUBLIC_URL, the DNS, and {PROXY}."
        if last and now() - last.received_at < CALLED_LATELY:
            return warning(f"{words} Lytics reaches it: its last call came within the hour.", cure)
        return bad(words, cure)
    if answer.status == 503 and _detail(answer) in reasons_to_wait.ALL:
        raise NotCheckedError(
            f"This service answered {url} with 503 before it read the call: {_detail(answer)}",
            "Look at the lines about this service. Run the doctor again when calls are accepted.",
        )
    return bad(f"{url} answered {answer.status}{_hint(answer)}.", f"Check PUBLIC_URL and {PROXY}.")


def _detail(answer: Answer) -> str:
    return str(answer.json.get("detail") or "") if isinstance(answer.json, dict) else ""


def _hint(answer: Answer) -> str:
    return {
        200: ", but not as this service answers: another server, or another version of this service, is there",
        401: ": the token did not arrive. A proxy removes the Authorization header, or another server answers",
        503: f": {(_detail(answer) or 'the service is not ready').removesuffix('.')}",
    }.get(answer.status or 0, ": a proxy or another server in front of this service answers")


def _must_be_reached(case: Case) -> None:
    if not case.is_reached:
        raise NotCheckedError(
            "No call got through the public address.", "Look at the line about the address from outside."
        )


@check(PUBLIC, "Query of the URL")
def public_query(case: Case) -> Found:
    """Whether a query behind the webhook URL, which a Lytics authorization may add, arrives unchanged."""
    _must_be_reached(case)
    answer = _call(case, query=QUERY)
    echo = _echo(answer)
    cure = f"Have {PROXY} pass on requests with a query, unchanged."
    if not echo:
        return bad(f"With a query behind it, the URL answered {_said(answer)}.", cure)
    if echo.get("query") != QUERY:
        return warning("A query behind the URL does not arrive as it was sent. This service reads none.", cure)
    return good("A query behind the URL arrives unchanged.")


@check(PUBLIC, "Body limit")
def public_body(case: Case) -> Found:
    """Whether a call of 16 MB arrives whole. Proxies answer 413 above 1 MB by default, and Lytics never retries it."""
    _must_be_reached(case)
    size = min(LARGE_BODY_BYTES, settings.WEBHOOK_BODY_LIMIT)
    answer = _call(case, size=size, seconds=LARGE_BODY_SECONDS)
    echo, megabytes = _echo(answer), f"{size / 1_000_000:.0f} MB"
    cure = f"Have {PROXY} allow as much as WEBHOOK_BODY_LIMIT ({settings.WEBHOOK_BODY_LIMIT:,} bytes)."
    if echo.get("bytes") == size:
        return good(f"A call of {megabytes} arrived whole (in {answer.seconds:.1f} s).")
    if answer.status is None and answer.seconds >= LARGE_BODY_SECONDS - 1:
        return unknown(f"A call of {megabytes} was not answered within {LARGE_BODY_SECONDS:.0f} s.", cure)
    if echo:
        return bad(f"Of a call of {megabytes}, {echo.get('bytes'):,} bytes arrived.", cure)
    words = f"A call of {megabytes} was answered {_said(answer)}."
    return bad(f"{words} Lytics drops such a batch." if answer.status in (400, 404, 413) else words, cure)


def _said(answer: Answer) -> str:
    return str(answer.status) if answer.status else f"not at all: {elsewhere(answer.reason)}"


@check(PUBLIC, "Certificate")
def public_certificate(case: Case) -> Found:
    """Whether the certificate of the public address is trusted, and when it ends."""
    try:
        found = certificate.ask(seconds=min(certificate.SECONDS, case.ends_at - time.monotonic()))
    except OSError as error:
        words = words_for(error, server="The address", address="PUBLIC_URL")
        return unknown(f"{words}.", "Look at the line about the address from outside.")
    if found is None:
        return unknown("PUBLIC_URL isn't https, so there is no certificate.", "Lytics calls https only.")
    match found.word:
        case "good":
            return good(found.words)
        case "warning":
            return warning(found.words, found.cure)
    return bad(found.words, found.cure)
