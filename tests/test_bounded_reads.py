"""Every page of the admin and /metrics read a bounded number of rows of each log, however many rows an install has.

One install and one audience have 40,000 rows in each log. Every URL of the admin is opened, dialogs included, and
PostgreSQL's own counters say how many table rows and index entries were read. Pages that count parked items are also
opened before ANALYZE, as in the minutes after a burst, when PostgreSQL's estimates are those of a small table.

Left out: downloads, which have every row; and the search by words in *Who did what*, which reads all that people did.
"""

import json

import psycopg
import pytest
from django.contrib.auth.models import User
from django.contrib.contenttypes.models import ContentType
from django.db import connection
from django.test import Client
from django.urls import reverse
from pytest_django.fixtures import Settings

from audiences.admin.filters import COUNTED
from audiences.models import Audience, Install
from audiences.operations import installs, troubles
from audiences.operations.troubles import Seen
from audiences.receiving import ingest
from tests import every_url
from tests.messages import message

ROWS = 40_000
# A page reads a few bounded counts of a log, and an entry for each row that it shows.
BOUND = 3 * COUNTED + 3_000
LOGS = (
    *("audiences_event_1", "audiences_receipt", "audiences_delivery", "audiences_run", "audiences_parked"),
    *("audiences_again", "audiences_resend", "audiences_futuretime", "django_admin_log"),
)
WHOLE = ("_csv",)

FILL = """
INSERT INTO audiences_event (audience_id, sequence, identifier, kind, occurred_ns, received_at, forced)
    SELECT %(audience)s, n, 'customer-' || n, 1, n, now(), false FROM generate_series(2, %(rows)s) AS n;
INSERT INTO audiences_receipt (install_id, received_at, job, bytes, messages, queued, parked, skipped, parked_reasons)
    SELECT %(install)s, now() - (%(rows)s - n) * interval '0.5 s', 'job', 9, 5, 4, 1, 0, '{}'
    FROM generate_series(1, %(rows)s) AS n;
INSERT INTO audiences_delivery (id, install_id, endpoint, opened_at, closed_at, outcome, status, items, bytes,
        latency_ms, reason, answer, worker, version)
    SELECT 1000000 + n, %(install)s, '/v3/profiles', now() - (%(rows)s - n) * interval '0.5 s', now(), 'refused', 400,
        5, 9, 9000, 'no', '', 'worker', '1'
    FROM generate_series(1, %(rows)s) AS n;
INSERT INTO audiences_run (audience_id, delivery_id, first_sequence, last_sequence, sent, folded, opened_at, closed_at,
        outcome)
    SELECT %(audience)s, 1000000 + n, n, n, 1, 0, now() - (%(rows)s - n) * interval '0.5 s', now(), 'refused'
    FROM generate_series(1, %(rows)s) AS n;
INSERT INTO audiences_parked (install_id, reason, detail, identifier, parked_at, closed_by, resolution)
    SELECT %(install)s, 'no_identifier', '', '', now(), '', '' FROM generate_series(1, %(rows)s);
INSERT INTO audiences_again (audience_id, first_sequence, last_sequence, cause)
    SELECT %(audience)s, n, n, 'replay' FROM generate_series(1, %(rows)s) AS n;
INSERT INTO audiences_resend (install_id, audience_id, kind, parked_reason, after_identifier, upto, after, total, done,
        stayed, asked_at, ended_at, by, reason, stopped_by)
    SELECT %(install)s, %(audience)s, 'resync', '', '', 0, 0, 1, 1, 0, now(), now(), 'kim', 'why', ''
    FROM generate_series(1, %(rows)s);
INSERT INTO audiences_audit (install_id, audience_id, mode, share, by, asked_at, ended_at, problem, note, phase,
        before_sequence, scan_token, scan_starts, after_identifier, scanned, compared_with_lytics, compared_with_odp,
        moving, differing, explained, is_newest)
    SELECT %(install)s, %(audience)s, 'full', 1, 'kim', now(), now(), '', '', 'done', 0, '', 0, '', 0, 0, 0, 0, 0, 0,
        false
    FROM generate_series(1, %(rows)s);
INSERT INTO audiences_futuretime (audience_id, sequence, claimed_ns, received_at)
    SELECT %(audience)s, n, 4102444800000000000, now() FROM generate_series(1, %(rows)s) AS n;
INSERT INTO django_admin_log (action_time, object_id, object_repr, action_flag, change_message, user_id,
        content_type_id)
    SELECT now(), %(install)s, 'Shop', 2, 'Retried.', %(user)s, %(kind)s FROM generate_series(1, %(rows)s);
UPDATE audiences_audience SET last_sequence = %(rows)s WHERE id = %(audience)s;
"""
# As autovacuum does when a range of pages is full.
SUMMARISE = """
SELECT brin_summarize_new_values(indexes.oid) FROM pg_class AS indexes
JOIN pg_am ON pg_am.oid = indexes.relam AND amname = 'brin' WHERE indexes.relkind = 'i'
"""
# Rows that sequential scans read, and entries that index scans read, in this transaction.
READ = """
SELECT log.relname, pg_stat_get_xact_tuples_returned(log.oid)
    + coalesce((SELECT sum(pg_stat_get_xact_tuples_returned(indexrelid)) FROM pg_index WHERE indrelid = log.oid), 0)
FROM pg_class AS log WHERE log.relname = ANY(%s)
"""


@pytest.fixture
def tidy(db: None) -> None:
    """Vacuum the logs, because reads would also count index entries of rows that other tests rolled back."""
    own = connection.settings_dict
    names = {"host": "HOST", "port": "PORT", "user": "USER", "password": "PASSWORD", "dbname": "NAME"}
    with psycopg.connect(autocommit=True, **{name: own[key] for name, key in names.items()}) as server:
        server.execute("VACUUM " + ", ".join(LOGS))


@pytest.fixture
def boss(tidy: None, settings: Settings) -> Client:
    """A superuser, and an install with one audience and 40,000 rows in every log."""
    user = User.objects.create_superuser("boss")
    install = Install(name="Shop", odp_api_key="public.private", odp_host="http://127.0.0.1:9")
    installs.create(install)
    ingest.receive(install, json.dumps([message()]).encode())
    troubles.check([Seen(kind="blocked", what="gold is blocked", path="/admin/", install=install.pk)])
    values = {
        "install": install.pk,
        "audience": Audience.objects.get().pk,
        "user": user.pk,
        "kind": ContentType.objects.get_for_model(Install).pk,
        "rows": ROWS,
    }
    with connection.cursor() as cursor:
        cursor.execute(FILL, values)
        cursor.execute(SUMMARISE)
    settings.METRICS_TOKEN = "a token for the metrics"
    client = Client(headers={"Authorization": f"Bearer {settings.METRICS_TOKEN}"})
    client.force_login(user)
    assert "lytics_sync_database_up 1.0" in client.get("/metrics").content.decode()
    return client


def counters() -> dict[str, int]:
    with connection.cursor() as cursor:
        cursor.execute(READ, [list(LOGS)])
        return {name: int(rows) for name, rows in cursor.fetchall()}


def listed(model: str) -> str:
    return reverse(f"admin:{'admin' if model == 'logentry' else 'audiences'}_{model}_changelist")


def addresses() -> list[str]:
    """Every URL with a row of its own, except downloads; and searches and filters of the lists."""
    install = Install.objects.get().pk
    lists = {
        "parked": ("resolution=all", "reason=no_identifier", f"install__id__exact={install}", "o=5"),
        "receipt": ("verdict=parked", f"install__id__exact={install}"),
        "delivery": ("outcome=refused", "slower=5000", f"install__id__exact={install}"),
        "run": ("outcome=refused", f"install={install}", "because=replay"),
        "install": tuple(f"o={column}" for column in range(7)),
        "logentry": (f"user__id__exact={User.objects.get().pk}",),
        "resend": ("kind__exact=resync", f"install__id__exact={install}"),
    }
    queries = [f"{listed(model)}?{query}" for model, asked in lists.items() for query in asked]
    periods = ("since=2000-01-01", "until=2000-01-01", "since=2000-01-01&until=2100-01-01")
    queries += [f"{listed(model)}?{period}" for model in (*lists, "audit") if model != "install" for period in periods]
    found = [url.path for url in every_url.urls() if not str(url.name).endswith(WHOLE) and url.name != "logout"]
    return [*found, *queries, "/metrics"]


def too_much(client: Client, visits: list[tuple[str, dict[str, str] | None]], *, logs: tuple[str, ...] = LOGS) -> str:
    """Every page, GET or POST, that reads more of a log than the bound."""
    found = []
    for address, posted in visits:
        before = counters()
        answer = client.get(address) if posted is None else client.post(address, posted)
        assert answer.status_code < 500, address
        after = counters()
        read = {log: after[log] - before[log] for log in logs}
        found += [f"{address} {posted or ''} reads {rows:,} of {log}" for log, rows in read.items() if rows > BOUND]
    return "\n".join(found)


def searches() -> list[tuple[str, dict[str, str] | None]]:
    boxes = ((reverse("find_customer"), "identifier"), (reverse("search_everything"), "text"))
    return [(box, {name: who}) for box, name in boxes for who in ("nobody", "customer-7", "7")]


def test_no_page_reads_more_of_a_log_than_a_bounded_number_of_rows(boss: Client) -> None:
    group = [Install.objects.get().pk, "no_identifier"]
    counted = [
        "/metrics",
        reverse("admin:index"),
        reverse("admin:audiences_install_changelist"),
        reverse("admin:audiences_install_change", args=group[:1]),
        reverse("admin:audiences_parked_release_group", args=group),
        reverse("admin:audiences_parked_discard_group", args=group),
    ]
    visits = [*((address, None) for address in counted), *searches()]
    assert too_much(boss, visits, logs=("audiences_parked",)) == ""
    with connection.cursor() as cursor:
        cursor.execute("ANALYZE")
        # As after a burst into a table of which all items were deleted.
        cursor.execute("UPDATE pg_class SET reltuples = 3 WHERE relname = 'audiences_parked'")
    assert too_much(boss, visits, logs=("audiences_parked",)) == ""
    with connection.cursor() as cursor:
        cursor.execute("ANALYZE")
    assert too_much(boss, [*((address, None) for address in addresses()), *searches()]) == ""
    # *Now* then names who switched it off, which the history of the install says.
    Install.objects.update(enabled=False)
    assert too_much(boss, [(reverse("admin:index"), None)]) == ""


def test_the_list_of_deliveries_reads_few_runs_when_the_newest_deliveries_have_none(boss: Client) -> None:
    """Runs are kept longer than deliveries, and a statement per delivery would walk all of them by their id."""
    with connection.cursor() as cursor:
        cursor.execute("UPDATE audiences_run SET delivery_id = CASE WHEN id % 2 = 0 THEN 1000001 + id % 40 END")
        cursor.execute("ANALYZE")
    assert too_much(boss, [(listed("delivery"), None)]) == ""
