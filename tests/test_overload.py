"""More than the web process can take at once, and a database that takes nothing: no call is lost or stored by half."""

import gzip
import os
import random
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from django.db import connection

from audiences.models import Event, Install, Parked, Receipt
from tests.messages import body, message, single
from tests.threads import eventually, start
from tests.web import Web, web_of_a_module

pytestmark = pytest.mark.django_db(transaction=True)

# Lytics' recommended settings are 20 calls at once, of 300 messages each.
CALLERS, CALLS, MESSAGES = 200, 3, 5
# No less, or PostgreSQL can't write its log and stops.
FILE_LIMIT = 16 << 20


web = web_of_a_module(WEBHOOK_BODY_LIMIT=str(32 << 20))


def url(install: Install) -> str:
    return f"/webhooks/lytics/{install.public_id}"


def test_ten_times_as_many_callers_as_recommended_all_wait_their_turn(web: Web, install: Install) -> None:
    token = install.tokens.get().secret
    # Makes the audience: on a very slow machine, calls that wait too long for that get 503.
    assert web.call("POST", url(install), body(message()), Authorization=token).status == 200

    def caller(number: int) -> list[int]:
        """Each call on its own kept-alive connection; calls without a free thread wait and aren't rejected."""
        line, answers = web.http(timeout=120), []
        for turn in range(CALLS):
            who = [f"c{number}-{turn}-{place}" for place in range(MESSAGES)]
            line.request("POST", url(install), body(*(message(who=one) for one in who)), {"Authorization": token})
            answer = line.getresponse()
            answer.read()
            answers.append(answer.status)
        line.close()
        return answers

    futures = start(*[lambda number=number: caller(number) for number in range(CALLERS)])
    assert [future.result(240) for future in futures] == [[200] * CALLS] * CALLERS
    events = list(Event.objects.order_by("sequence").values_list("sequence", "identifier"))
    assert [sequence for sequence, _ in events] == list(range(1, CALLERS * CALLS * MESSAGES + 2))
    places = {identifier: sequence for sequence, identifier in events}
    for number in range(CALLERS):
        own = [places[f"c{number}-{turn}-{place}"] for turn in range(CALLS) for place in range(MESSAGES)]
        assert own == sorted(own)
    assert Receipt.objects.count() == CALLERS * CALLS + 1


LARGE = 12 << 20
# Five times the body, and something for the process's other threads. Measured: 72 at most.
MEGABYTES = 90
ONE = single(message())
# Made when it is sent.
LARGE_BODIES: dict[str, Callable[[], bytes]] = {
    "nothing that can be read": lambda: random.Random(7).randbytes(LARGE),
    "little that is packed and much when it is not": lambda: gzip.compress(bytes(LARGE), 1),
    "millions of messages": lambda: b"[" + b"1," * (LARGE // 2) + b"1]",
    "10,000 messages, each to be parked": lambda: b"[" + b",".join([b'"%s"' % (b"x" * 1000)] * 10_000) + b"]",
    "identifiers of a megabyte": lambda: b"[" + b",".join([ONE.replace(b"kim", b"k" * (1 << 20))] * 11) + b"]",
    "brackets": lambda: b"[" * LARGE,
    "objects in objects": lambda: b'{"a":' * (LARGE // 5),
    "one profile": lambda: ONE.replace(b'"_id"', b'"x": "%s", "_id"' % (b"y" * LARGE)),
    "100,000 customers": lambda: single(message(who=[str(number) for number in range(100_000)])),
}


@pytest.mark.parametrize("what", LARGE_BODIES)
def test_a_large_body_uses_a_small_multiple_of_its_size(web: Web, install: Install, what: str) -> None:
    content = LARGE_BODIES[what]()
    before = web.forget_peaks()
    line = web.http(timeout=120)
    line.request("POST", url(install), content, {"Authorization": install.tokens.get().secret})
    assert line.getresponse().status == 200
    line.close()
    assert max(after - now for after, now in zip(web.peaks(), before, strict=True)) < MEGABYTES


@contextmanager
def full_disk() -> Iterator[None]:
    """Limit the size of PostgreSQL's files to the largest existing one: a simulation of a full disk."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        mine = cursor.fetchone()[0]
    stat = Path(f"/proc/{mine}/stat")
    if not stat.exists() or stat.stat().st_uid != os.getuid():
        pytest.skip("PostgreSQL's processes are not ours")
    postmaster = int(stat.read_text().rpartition(")")[2].split()[1])
    try:
        _limit(postmaster, FILE_LIMIT)
        yield
    finally:
        _limit(postmaster, resource.RLIM_INFINITY)


def _limit(postmaster: int, limit: int) -> None:
    children = Path(f"/proc/{postmaster}/task/{postmaster}/children").read_text(encoding="ascii").split()
    for pid in (postmaster, *map(int, children)):
        with suppress(ProcessLookupError):
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))


def test_calls_get_503_while_the_disk_is_full_and_are_accepted_afterwards(web: Web, install: Install) -> None:
    token = install.tokens.get().secret
    large = random.Random(7).randbytes(20 << 20)
    with connection.cursor() as cursor:
        # Otherwise the item could be stored in the space of earlier rows, once autovacuum has freed it.
        cursor.execute("TRUNCATE audiences_parked CASCADE")
    with full_disk():
        answer = web.call("POST", url(install), large, Authorization=token)
        assert (answer.status, answer.headers["Retry-After"]) == (503, "17")
        assert not Receipt.objects.exists()
    assert "could not extend file" in web.log.read_text()
    assert web.call("POST", url(install), large, Authorization=token).status == 200
    assert Parked.objects.count() == Receipt.objects.count() == 1
    assert eventually(lambda: web.call("POST", url(install), b"[]", Authorization=token).status == 200)
