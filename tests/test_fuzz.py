"""Random bodies and requests to the webhook, for some seconds; some cases are tried by every run.

``make fuzz`` tries for longer. What breaks a promise is kept in tests/corpus, where it is tried again by every run.
"""

import hashlib
import json
import os
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from random import Random

import pytest

from audiences.models import Event, Install, Parked, Receipt
from lytics import facts, messages
from lytics.payload import parse
from tests.fuzzing import PATH, TOKEN, elements, odd_body, odd_request
from tests.messages import AT_NS
from tests.web import Web, web_of_a_module

pytestmark = pytest.mark.django_db(transaction=True)

SECONDS = float(os.environ.get("FUZZ_SECONDS", "4"))
# The suite throws the same dice each time, make fuzz others.
SEED = int(os.environ.get("SEED") or 0) or (time.time_ns() % 1_000_000 if "FUZZ_SECONDS" in os.environ else 1)
CORPUS = Path(__file__).parent / "corpus"
BODIES = sorted((CORPUS / "bodies").iterdir())
REQUESTS = sorted((CORPUS / "requests").iterdir())
# A process starts with about 90 MB; the largest accepted body here has 2 MB.
MEGABYTES = 300


web = web_of_a_module(WEBHOOK_READ_SECONDS="1")


def check_body(raw: bytes) -> None:
    """Nothing in it goes missing, and what becomes an event can be stored."""
    for field in ("_id", "other"):
        reading = parse(raw, identifier_field=field, received_ns=AT_NS, allow_top_level=True)
        assert reading.messages <= len(reading.facts) + len(reading.to_park)
        number = elements(raw)
        assert number is None or number == reading.messages
        for item in reading.to_park:
            messages.envelope(item.raw, identifier_field=field)
        for fact in reading.facts:
            for text in (fact.segment_id, fact.slug, fact.identifier, fact.profile):
                assert "\0" not in text
                assert len(text.encode()) <= facts.NAME_BYTES
            assert fact.identifier
            assert -(2**63) <= fact.occurred_ns < 2**63


def check_request(web: Web, install: Install, request: bytes) -> None:
    """The response is 200 or a status that Lytics retries, and after a 200 the events are stored."""
    token = install.tokens.get().secret.encode()
    said = web.log.stat().st_size
    before = Receipt.objects.count()
    with web.raw() as caller:
        with suppress(ConnectionResetError, BrokenPipeError):
            caller.sendall(
                request.replace(PATH, f"/webhooks/lytics/{install.public_id}".encode()).replace(TOKEN, token)
            )
        if b"Content-Length" in request:
            with suppress(OSError):  # it was answered and closed already
                caller.shutdown(socket.SHUT_WR)
        answer = b""
        with suppress(ConnectionResetError):
            while piece := caller.recv(65536):
                answer += piece
    status = answer[9:12].decode()
    assert status in ("200", "401", "405", "429", "503"), answer[:300]
    with web.log.open("rb") as log:
        log.seek(said)
        words = log.read()
    assert b"Traceback" not in words, words
    assert b"call not stored" not in words, words
    stored = Receipt.objects.order_by("-pk").first() if Receipt.objects.count() > before else None
    assert (stored is not None) == (status == "200")
    if stored is not None:
        counts = json.loads(answer.partition(b"\r\n\r\n")[2])
        assert counts["received"] == stored.messages <= counts["queued"] + counts["parked"]
        assert counts["queued"] == stored.queued == Event.objects.filter(receipt=stored).count()
        assert counts["parked"] == stored.parked == Parked.objects.filter(receipt=stored).count()
        assert sum(counts["parked_reasons"].values()) == counts["parked"]


def keep(kind: str, raw: bytes) -> Path:
    file = CORPUS / kind / f"found-{hashlib.sha256(raw).hexdigest()[:10]}"
    file.write_bytes(raw)
    return file


def fuzz(kind: str, make: Callable[[Random], bytes], check: Callable[[bytes], None]) -> None:
    """Generate inputs until the time is over, each from its own seed; at least a few on a busy machine."""
    until, number = time.monotonic() + SECONDS, 0
    while time.monotonic() < until or number < 20:
        raw = make(Random(f"{SEED} {number}"))
        try:
            check(raw)
        except Exception as error:
            raise AssertionError(f"SEED={SEED}, number {number}, kept as {keep(kind, raw)}") from error
        number += 1
    print(f"{number:,} {kind} with SEED={SEED}")


@pytest.mark.parametrize("file", BODIES, ids=lambda file: file.name)
def test_a_body_of_the_corpus_is_read(file: Path) -> None:
    check_body(file.read_bytes())


def test_bodies_of_the_corpus_are_accepted(web: Web, install: Install) -> None:
    for file in BODIES:
        content = file.read_bytes()
        head = b"POST {PATH} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: {TOKEN}\r\nConnection: close\r\n"
        check_request(web, install, head + b"Content-Length: %d\r\n\r\n" % len(content) + content)


@pytest.mark.parametrize("file", REQUESTS, ids=lambda file: file.name)
def test_a_request_of_the_corpus_is_answered(web: Web, install: Install, file: Path) -> None:
    check_request(web, install, file.read_bytes())


def test_odd_bodies_are_read() -> None:
    fuzz("bodies", odd_body, check_body)


def test_odd_requests_are_answered(web: Web, install: Install) -> None:
    fuzz("requests", odd_request, lambda request: check_request(web, install, request))
    assert max(web.peaks()) < MEGABYTES
