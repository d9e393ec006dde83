"""Measures how long finding a customer takes: ``python -m benchmarks.search [EVENTS]`` (10,000,000).

It starts a PostgreSQL server in a temporary folder, fills the log like ingest, and prints the figures of
docs/decisions/0019-find-customer.md: lookup, summarising, and ingest without the index, with it, and with a B-tree.
"""

import json
import os
import random
import secrets
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from cryptography.fernet import Fernet

from local import embedded
from local.processes import Fleet, free_port

AUDIENCES = 60
CALLS, PER_CALL = 300, 300
# The index that finds a customer, in the first part of the log.
INDEX = "audiences_event_1_identifier_idx"
NOBODY, THREE, MANY = "0" * 32, "3" * 32, "f" * 32

# Half of the identifiers are new and half occurred before. One customer has 3 events, one has 300.
FILL = """
INSERT INTO audiences_event (audience_id, sequence, identifier, kind, occurred_ns, received_at, forced, receipt_id)
SELECT audience[1 + n %% 60], 1 + n / 60,
    CASE WHEN n %% (%(events)s / 300) = 7 THEN %(many)s WHEN n %% (%(events)s / 3) = 11 THEN %(three)s
        ELSE md5((CASE WHEN random() < 0.5 THEN n ELSE floor(random() * n) END)::bigint::text) END,
    (random() < 0.6)::int, 1767225600000000000 + n * 1000000, '2026-01-01'::timestamptz + n * interval '1 ms', false,
    n / 300
FROM generate_series(%(first)s::bigint, %(last)s::bigint) AS n,
    (SELECT array_agg(id) FROM audiences_audience) AS all_of(audience)
"""

# Runs of 25 events that deliver the whole log.
RUNS = """
INSERT INTO audiences_run (audience_id, first_sequence, last_sequence, sent, folded, opened_at, closed_at, outcome)
SELECT audience.id, first, first + 24, 20, 5, now(), now(), 'delivered'
FROM audiences_audience AS audience, generate_series(1, 1 + %s / 60, 25) AS first
"""


# A Delivery with a body of 500 items for each Run that has an event of the customer.
DELIVERIES = """
WITH run AS (
    SELECT DISTINCT run.id FROM audiences_event AS event JOIN audiences_run AS run
        ON run.audience_id = event.audience_id AND event.sequence BETWEEN run.first_sequence AND run.last_sequence
    WHERE event.identifier = %(customer)s
), delivery AS (
    INSERT INTO audiences_delivery (id, install_id, endpoint, opened_at, closed_at, outcome, items, bytes, request,
        reason, answer, worker, version)
    SELECT id, (SELECT id FROM audiences_install), '/v3/profiles', now(), now(), 'delivered', 500, 70000, %(body)s,
        '', '', '', '' FROM run
)
UPDATE audiences_run SET delivery_id = run.id FROM run WHERE audiences_run.id = run.id
"""


def main(events: int) -> None:
    with tempfile.TemporaryDirectory(prefix="lytics-sync-bench-") as name:
        folder = Path(name)
        port, password = free_port(), secrets.token_hex(16)
        os.environ |= {
            "DATA_DIR": name,
            "LOG_LEVEL": "WARNING",
            "SECRET_KEY": secrets.token_urlsafe(50),
            "FIELD_ENCRYPTION_KEYS": Fernet.generate_key().decode(),
            "DATABASE_URL": embedded.postgres_url(port=port, password=password),
            "REDIS_URL": "redis://127.0.0.1:1/0",
            "DJANGO_SETTINGS_MODULE": "lytics_sync.settings",
        }
        fleet = Fleet(folder=folder, env=os.environ, tell=print)
        try:
            start(fleet, folder / "postgres", port, password)
            embedded.create_database(port=port, password=password)
            import django

            django.setup()
            measure(events, fleet, lambda: start(fleet, folder / "postgres", port, password), folder / "postgres")
        finally:
            fleet.stop()


def start(fleet: Fleet, folder: Path, port: int, password: str) -> None:
    fleet.start(embedded.postgres(folder=folder, port=port, password=password, durable=True))


def ask(statement: str, values: Any = None) -> list[tuple[Any, ...]]:
    from django.db import connection

    with connection.cursor() as cursor:
        cursor.execute(statement, values)
        return list(cursor.fetchall()) if cursor.description else []


def timed(what: Callable[[], object]) -> float:
    began = time.perf_counter()
    what()
    return (time.perf_counter() - began) * 1000


def measure(events: int, fleet: Fleet, start_again: Callable[[], None], files: Path) -> None:
    from django.contrib.auth.models import User
    from django.core.management import call_command
    from django.db import connection
    from django.test import Client
    from django.urls import reverse

    from audiences import request_bodies
    from audiences.delivery import holds
    from audiences.insight import customers, search_index
    from audiences.models import Audience, Install
    from audiences.operations import forgetting

    call_command("migrate", verbosity=0)
    install = Install.objects.create(name="Bench", odp_api_key="x")
    for n in range(AUDIENCES):
        holds.lay(Audience.objects.create(install=install, segment_id=f"s{n}", slug=f"s{n}", odp_id=f"lytics_s{n}"))
    ask("ALTER TABLE audiences_event_1 SET (autovacuum_enabled = off)")
    for first in range(0, events, 500_000):
        last = min(first + 500_000, events) - 1
        ask(FILL, {"events": events, "first": first, "last": last, "many": MANY, "three": THREE})
        search_index.summarise()
    ask("UPDATE audiences_audience SET last_sequence = 1 + %s / 60", [events])
    ask(RUNS, [events])
    ask("UPDATE audiences_lane SET delivered_sequence = 1 + %s / 60", [events])
    item = {"attributes": {"fs_user_id": MANY, "web_user_id": MANY, "lytics_s1": True}}
    others = [{"attributes": {"fs_user_id": name, "web_user_id": name}} for name in map(secrets.token_hex, [16] * 499)]
    body = request_bodies.pack(json.dumps([item, *others]).encode())
    ask("SET enable_seqscan = off")
    ask(DELIVERIES, {"customer": MANY, "body": body})
    ask("RESET enable_seqscan")
    ask("ANALYZE audiences_run")
    ((table, index),) = ask("SELECT pg_relation_size('audiences_event_1'), pg_relation_size(%s)", [INDEX])
    print(f"{events:,} events; the log has {table / 1e6:,.0f} MB, its index {index / 1e6:,.1f} MB")
    print(f"summarising when there is nothing to do: {timed(search_index.summarise):.0f} ms")

    person = Client(headers={"host": "localhost"})
    person.force_login(User.objects.create_superuser("bench"))
    box = reverse("find_customer")
    for customer, name in ((NOBODY, "no events"), (THREE, "3 events"), (MANY, "300 events")):
        ask("CHECKPOINT")
        connection.close()
        fleet.stop()
        fleet.groups.clear()
        forget(files)
        start_again()
        ask("SELECT 1")
        cold = timed(partial(customers.customer_history, customer))
        warm = statistics.median(timed(partial(customers.customer_history, customer)) for _ in range(9))
        page = statistics.median(timed(partial(person.post, box, {"identifier": customer})) for _ in range(9))
        print(f"a customer with {name}: {warm:.0f} ms, the page {page:.0f} ms; {cold:.0f} ms with nothing in memory")

    forgotten = forgetting.ask(install, MANY, tell_odp=False, by="bench")
    assert forgotten is not None
    print(f"forgetting a customer with 300 events: {timed(partial(forgetting.advance, forgotten)):.0f} ms")
    assert customers.customer_history(MANY).statuses == []

    receive("with the index")
    print(f"summarising {CALLS * PER_CALL:,} events and more: {timed(search_index.summarise):.0f} ms")
    ask("SELECT brin_summarize_new_values(%s)", [INDEX])
    ask("DELETE FROM audiences_event WHERE sequence < %s", [events // 60 // 10])
    ask("VACUUM audiences_event")
    receive("with the index, into space that was pruned")
    ask("DROP INDEX events_of_a_customer")
    ask("VACUUM audiences_event")
    receive("without")
    ask("CREATE INDEX a_btree ON audiences_event (identifier)")
    receive("with a B-tree instead")


def receive(how: str) -> None:
    """Ingest calls one after the other, each in a transaction of its own."""
    from django.db import transaction
    from django.utils.timezone import now

    from audiences.models import Audience
    from audiences.receiving import ingest
    from lytics.facts import Fact, Kind

    audiences = list(Audience.objects.values_list("pk", flat=True))
    chance = random.Random(1)  # noqa: S311
    calls = []
    for _ in range(CALLS + 60):
        some = chance.sample(audiences, 12)
        who = (secrets.token_hex(16) for _ in range(PER_CALL))
        facts: dict[int, list[Fact]] = {}
        for each in who:
            fact = Fact("", "", each, Kind.ENTER, chance.getrandbits(60))
            facts.setdefault(chance.choice(some), []).append(fact)
        calls.append(facts)
    ask("CHECKPOINT")
    began, wal = 0.0, ""
    for number, facts in enumerate(calls):
        if number == 60:  # warm: after a checkpoint the first change of a page writes the whole page to the WAL
            began, wal = time.perf_counter(), str(ask("SELECT pg_current_wal_insert_lsn()")[0][0])
        with transaction.atomic():
            ingest.append(facts, received_at=now())
    rate = CALLS * PER_CALL / (time.perf_counter() - began)
    written = ask("SELECT pg_current_wal_insert_lsn() - %s::pg_lsn", [wal])[0][0]
    print(f"receiving {how}: {rate:,.0f} events/s, {float(written) / CALLS / PER_CALL:,.0f} B of WAL each")


def forget(files: Path) -> None:
    """Drop the files from the operating system's page cache, as far as it allows."""
    for file in files.rglob("*"):
        if file.is_file():
            handle = os.open(file, os.O_RDONLY)
            os.fsync(handle)
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(handle)


if __name__ == "__main__":
    main(int(sys.argv[1].replace("_", "")) if len(sys.argv) > 1 else 10_000_000)
