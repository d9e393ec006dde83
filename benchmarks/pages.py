"""The time of the server for each page and search of the admin, with 50 installs of 500 audiences and their history.

The pages are those of tests/test_many_audiences.py, which compares their queries. ``python -m benchmarks.pages`` runs
in the environment of the scenario ``pages``, on an empty database.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from benchmarks.scenarios import Bench, Needs, line, scenario
from local.processes import Program

INSTALLS, AUDIENCES, EVENTS = 50, 500, 1_000_000
# Each page is opened this often after a first time, and its quickest time counts: others share the machine.
TIMES = 5
# Pages listed in the notes.
NOTED = 10
SLOWEST, NOW = "slowest page", "the page Now"

# Calls, events, deliveries and runs of a day, the ledger, and the counts per minute of a week.
HISTORY = """
INSERT INTO audiences_minute (install_id, minute, received, parked, delivered, again, sent, arrived, delay_p50_ms,
        delay_p99_ms)
    SELECT install.id, at, 100, 1, 100, 0, 80, jsonb_build_object(extract(epoch FROM at)::bigint, 100), 90, 400
    FROM audiences_install AS install, generate_series(date_trunc('minute', now()) - interval '7 days',
        date_trunc('minute', now()), interval '1 minute') AS at;
INSERT INTO audiences_event (audience_id, sequence, identifier, kind, occurred_ns, received_at, forced)
    SELECT audience.id, 1000 + n, CASE WHEN n = 1 AND place %% 500 = 7 THEN 'kim' ELSE md5(place || '-' || n) END, 1, n,
        now() - interval '1 day', false
    FROM (SELECT id, row_number() OVER (ORDER BY id) AS place FROM audiences_audience) AS audience,
        generate_series(1, %(each)s) AS n;
INSERT INTO audiences_membership (audience_id, identifier, is_member, occurred_ns, sequence, refused)
    SELECT audience_id, identifier, true, 1, sequence, false FROM audiences_event;
INSERT INTO audiences_receipt (install_id, received_at, job, bytes, messages, queued, parked, skipped, parked_reasons)
    SELECT install.id, now() - n * interval '20 s', 'job', 9, 5, 4, 1, 0, '{}'
    FROM audiences_install AS install, generate_series(1, 100 * %(each)s) AS n;
INSERT INTO audiences_delivery (id, install_id, endpoint, opened_at, closed_at, outcome, status, items, bytes,
        latency_ms, reason, answer, worker, version)
    SELECT row_number() OVER (), install.id, '/v3/profiles', now() - n * interval '20 s', now() - n * interval '20 s',
        CASE WHEN n %% 50 = 0 THEN 'refused' ELSE 'delivered' END, 202, 5, 9, 90, '', '', 'worker', '1'
    FROM audiences_install AS install, generate_series(1, 100 * %(each)s) AS n;
INSERT INTO audiences_run (audience_id, delivery_id, first_sequence, last_sequence, sent, folded, opened_at, closed_at,
        outcome)
    SELECT audience.id, 1 + (place * %(each)s + n) %% (5000 * %(each)s), n, n, 1, 0, now() - n * interval '1 min',
        now() - n * interval '1 min', 'delivered'
    FROM (SELECT id, row_number() OVER (ORDER BY id) AS place FROM audiences_audience) AS audience,
        generate_series(1, %(each)s) AS n;
"""


@scenario(
    f"each page of the admin with {INSTALLS} installs of {AUDIENCES} audiences (benchmarks/pages.py)",
    Needs.NOTHING,
    line(SLOWEST, "ms", better="less", bar=300),
    line(NOW, "ms", better="less"),
    seconds=150,
    once=True,
)
def pages(bench: Bench) -> None:
    bench.house.clear()
    sizes = [str(bench.size(full, least)) for full, least in ((INSTALLS, 2), (AUDIENCES, 5), (EVENTS, 1_000))]
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.pages", *sizes]
    try:
        printed = bench.house.run(Program(name="pages", command=command))
    finally:
        bench.house.clear()
        bench.house.sql("TRUNCATE audiences_minute, audiences_trouble CASCADE")
        bench.house.sql("DELETE FROM audiences_install WHERE id <> %s", bench.house.install.pk)
    found: dict[str, list[float]] = json.loads(printed.strip().splitlines()[-1])
    slowest_first = sorted(found.items(), key=lambda one: -one[1][0])
    bench.record(SLOWEST, slowest_first[0][1][0])
    bench.record(NOW, found["/admin/"][0])
    for address, (ms, queries) in slowest_first:
        print(f"{ms:8.0f} ms  {queries:4.0f} queries  {address}", flush=True)
    slowest = "; ".join(f"`{address}` {ms:.0f} ms" for address, (ms, _) in slowest_first[:NOTED])
    bench.note(f"Pages, slowest first ({NOTED} of {len(found)}): {slowest}.")


def main(installs: int, audiences: int, events: int) -> None:
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "lytics_sync.settings")
    import django

    django.setup()
    from django.contrib.auth.models import User
    from django.db import connection
    from django.test import Client
    from django.test.utils import CaptureQueriesContext

    from audiences.insight import search_index
    from tests import many
    from workers import tasks

    many.fill(installs, audiences)
    with connection.cursor() as cursor:
        cursor.execute(HISTORY, {"each": max(1, events // (installs * audiences))})
        # Autovacuum would do this a minute later, while pages are measured.
        cursor.execute("VACUUM (ANALYZE)")
    search_index.summarise()
    tasks.check_troubles()  # Mute is a button of stored troubles
    client = Client(headers={"host": "localhost"})
    client.force_login(User.objects.create_superuser("bench"))

    def opened(address: str, posted: dict[str, str] | None) -> None:
        answer = client.get(address) if posted is None else client.post(address, posted)
        assert answer.status_code == 200, f"{address}: {answer.status_code}"

    found: dict[str, list[float]] = {}
    asked: list[tuple[str, dict[str, str] | None]] = [(address, None) for address in many.addresses()]
    for address, posted in [*asked, *many.searches()]:
        one = partial(opened, address, posted)
        with CaptureQueriesContext(connection) as captured:
            one()
        queries = len(captured)
        label = address if posted is None else f"{address} {' '.join(posted.values())}"
        found[label] = [min(_timed(one) for _ in range(TIMES)), queries]
    print(json.dumps(found))


def _timed(what: Callable[[], Any]) -> float:
    began = time.perf_counter()
    what()
    return (time.perf_counter() - began) * 1000


if __name__ == "__main__":
    main(*map(int, sys.argv[1:4]))
