"""Pages stay fast on big tables: the number of queries is that of small tables, without full counts or full scans.

The rows of a list are counted up to 10,000. Such a count may read that number of index entries.

PostgreSQL fills the tables once for this file. Each page is opened, and each of its statements is run again under
EXPLAIN, which reports the rows read. No time is measured.

A new list or detail page belongs into ``PAGES``.
"""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils.timezone import now
from pytest_django.plugin import DjangoDbBlocker

from audiences.admin import filters
from audiences.models import Audience, Delivery, Install, Parked, Receipt, Run
from audiences.operations import installs

# Rows that the statements of one page may read of one big table, and of pages that read a whole hour.
FEW = 3_000
AN_HOURS = 30_000
# A bounded count ends after this number of rows. It may read twice as many: of an install with half of all rows,
# PostgreSQL walks the index of all rows.
COUNTED = filters.COUNTED
BOUNDED_COUNT = re.compile(rf"SELECT COUNT\(\*\) .*FROM \(.* LIMIT {COUNTED}\s*\) (AS )?\w+", re.DOTALL | re.IGNORECASE)
BIG = ("event", "receipt", "delivery", "run", "parked")

ROWS = 200_000
AUDIENCES = 100
OWNERS = 3


@dataclass(frozen=True)
class Page:
    """One address. ``rows`` is what it may read of each big table."""

    name: str
    url: Callable[[], str]
    rows: int = FEW

    def __str__(self) -> str:
        return self.name


def listed(model: str, query: str = "", rows: int = FEW) -> Page:
    return Page(
        f"{model}?{query}", lambda: reverse(f"admin:audiences_{model}_changelist") + f"?{query.format(**FACTS)}", rows
    )


def thing(model: str, find: Callable[[], Any], rows: int = FEW) -> Page:
    return Page(f"one {model}", lambda: reverse(f"admin:audiences_{model}_change", args=[find().pk]), rows)


# Set when the tables are filled: an hour in the middle, the installs, of which the last has no rows, and who is logged
# in.
FACTS: dict[str, Any] = {}
# By the name of a page, the statements that it sent on the big tables.
OPENED: dict[str, list[str]] = {}

TIMED = ("run", "delivery", "receipt", "parked")
# An hour, all from it on, all up to it, all rows, and no row.
PERIODS = ("{hour}", "{from_hour}", "{until_hour}", "since=1999-01-01", "until=1999-01-01")
OUTCOMES = ("failed", "refused", "retry_later", "unauthorised", "unknown", "open")
PAGES = [
    Page("front page", lambda: reverse("admin:index")),
    Page("live", lambda: reverse("admin:audiences_live")),
    listed("install"),
    listed("audience"),
    *(listed("audience", f"state={state}") for state in ("blocked", "paused", "behind", "idle")),
    listed("audience", "install__id__exact={quiet}"),
    listed("audience", "q=slug_7"),
    # Every sortable column, ascending and descending. Column 0 of Audiences is the checkbox.
    *(listed("audience", f"o={way}{column}") for column in (1, 3, 4, 5, 7) for way in ("", "-")),
    *(listed("install", f"o={way}{column}") for column in (0, 2, 3, 4, 5, 6, 7) for way in ("", "-")),
    listed("delivery"),
    listed("delivery", "p=20"),
    listed("delivery", "q=777"),
    *(listed("delivery", f"outcome={outcome}") for outcome in OUTCOMES),
    *(listed("delivery", f"outcome={outcome}&install__id__exact={{quiet}}") for outcome in OUTCOMES),
    *(listed("delivery", f"slower={ms}") for ms in (250, 1000, 5000)),
    *(listed("delivery", f"slower={ms}&install__id__exact={{quiet}}") for ms in (250, 1000, 5000)),
    *(listed("delivery", f"install__id__exact={{{which}}}") for which in ("busy", "quiet")),
    listed("delivery", "audience=lytics_slug_7", rows=6_000),
    listed("delivery", "audience=lytics_slug_7&outcome=unauthorised"),
    listed("delivery", "audience=nobodys"),
    *(listed(model, period) for model in TIMED for period in PERIODS),
    *(listed("delivery", f"{period}&{query}") for period in PERIODS for query in ("outcome=failed", "slower=250")),
    *(listed("delivery", f"{period}&install__id__exact={{quiet}}") for period in PERIODS),
    *(listed("delivery", f"{period}&audience=lytics_slug_7", rows=6_000) for period in PERIODS),
    *(listed("run", f"{period}&install={{{which}}}", rows=7_500) for period in PERIODS for which in ("busy", "quiet")),
    *(listed("run", f"{period}&{query}") for period in PERIODS for query in ("outcome=failed", "audience=slug_7")),
    *(listed("receipt", f"{period}&{query}") for period in PERIODS for query in ("verdict=empty", "q=Shop+2")),
    *(listed("parked", f"{period}&resolution=superseded&install__id__exact={{quiet}}") for period in PERIODS),
    listed("run"),
    *(listed("run", f"outcome={outcome}") for outcome in OUTCOMES),
    *(listed("run", f"outcome={outcome}&audience=lytics_slug_7") for outcome in OUTCOMES),
    listed("run", "audience=lytics_slug_7"),
    listed("run", "audience=nobodys"),
    *(listed("run", f"q={term}") for term in ("777", "slug_7", "nobodys")),
    listed("run", "install={busy}", rows=6_000),
    listed("run", "install={quiet}&outcome=failed"),
    listed("run", "install={quiet}"),
    listed("receipt"),
    *(listed("receipt", f"verdict={verdict}") for verdict in ("parked", "empty")),
    *(listed("receipt", f"verdict={verdict}&install__id__exact={{quiet}}") for verdict in ("parked", "empty")),
    listed("receipt", "install__id__exact={quiet}"),
    *(listed("receipt", f"q={term}") for term in ("777", "Shop+0", "Shop+2", "nobodys")),
    *(listed("parked", f"resolution={one}") for one in ("open", "released", "superseded", "discarded", "all")),
    listed("parked", "reason=not_json"),
    listed("parked", "reason=no_identifier&resolution=all"),
    listed("parked", "reason=not_json&resolution=all&install__id__exact={quiet}"),
    listed("parked", "install__id__exact={quiet}&resolution=all"),
    listed("parked", "audience__id__exact={audience}"),
    # The sortable columns, oldest first, alone and beside what a narrowed list reads another index for.
    *(listed("run", query) for query in ("o=6", "o=-6", "o=6&p=20", "o=6&outcome=failed", "o=6&q=slug_7")),
    listed("run", "o=6&install={busy}", rows=6_000),
    listed("run", "o=6&install={quiet}"),
    listed("run", "o=6&audience=lytics_slug_7"),
    *(listed(model, f"o={column}&{{hour}}") for model, column in (("run", 6), ("delivery", 6), ("receipt", 8))),
    listed("run", "o=6&{hour}&install={busy}", rows=7_500),
    *(listed("delivery", f"o={way}{column}") for column in (0, 6) for way in ("", "-")),
    listed("delivery", "o=6&audience=lytics_slug_7", rows=6_000),
    *(listed("delivery", f"o=6&{query}") for query in ("outcome=failed", "slower=250", "install__id__exact={quiet}")),
    *(listed("receipt", f"o={way}{column}") for column in (0, 8) for way in ("", "-")),
    *(listed("receipt", f"o=8&{query}") for query in ("verdict=empty", "install__id__exact={quiet}")),
    *(listed("parked", f"o={way}{column}") for column in (1, 5) for way in ("", "-")),
    listed("parked", "o=5&resolution=superseded"),
    listed("parked", "o=5&reason=not_json&resolution=all"),
    *(listed(model, "because=replay", rows=AN_HOURS) for model in ("run", "delivery")),
    *(listed(model, "because=replay&outcome=failed", rows=AN_HOURS) for model in ("run", "delivery")),
    *(listed(model, "because=leave") for model in ("run", "delivery")),
    thing("install", lambda: Install.objects.get(pk=FACTS["busy"])),
    thing("audience", lambda: Audience.objects.get(pk=FACTS["audience"])),
    thing("delivery", lambda: Delivery.objects.order_by("-pk")[0]),
    thing("run", lambda: Run.objects.order_by("-pk")[0]),
    thing("receipt", lambda: Receipt.objects.order_by("-pk")[0], rows=AN_HOURS),
    thing("parked", lambda: Parked.objects.order_by("-pk")[0]),
    Page("what a run sent", lambda: reverse("admin:audiences_run_sent", args=[Run.objects.order_by("-pk")[0].pk])),
]


def kind_of(page: Page) -> str:
    """The list or other page, whatever its filters."""
    return page.name.partition("?")[0]


def shape_of(page: Page) -> str:
    """The list and the names of its filters, whatever their values, which change no number of queries."""
    return re.sub("=[^&]*", "", page.name)


# --- the tables -----------------------------------------------------------------------------------------------

# Half a second between rows, so that there are many hours. Unique rows, like the single 401, are among the oldest: a
# search that walked back from the newest row would read the whole table.
FILL = """
INSERT INTO audiences_audience (id, install_id, segment_id, slug, latest_slug, odp_id, last_sequence, created_at,
        provisioned_at)
    SELECT n, %(install)s + n %% (%(owners)s - 1), 'segment-' || n, 'slug_' || n, 'slug_' || n, 'lytics_slug_' || n,
        %(events)s / %(audiences)s, now(), now()
    FROM generate_series(1, %(audiences)s) AS n;
INSERT INTO audiences_lane (audience_id, delivered_sequence, member_count, paused_by, pause_reason, block_reason,
        last_served_at, blocked_at)
    SELECT n, %(events)s / %(audiences)s - n %% 2, 10, '', '', CASE WHEN n = 1 THEN 'wrong type' ELSE '' END, now(),
        CASE WHEN n = 1 THEN now() END
    FROM generate_series(1, %(audiences)s) AS n;
INSERT INTO audiences_event (audience_id, sequence, identifier, kind, occurred_ns, received_at, forced)
    SELECT audience, sequence, 'customer-' || sequence, 1, sequence, now(), false
    FROM generate_series(1, %(audiences)s) AS audience, generate_series(1, %(events)s / %(audiences)s) AS sequence;
INSERT INTO audiences_receipt (install_id, received_at, job, bytes, messages, queued, parked, skipped, parked_reasons)
    SELECT %(install)s + n %% (%(owners)s - 1), now() - (%(rows)s - n) * interval '0.5 s', 'job', 9, 5,
        CASE WHEN n = 1 THEN 0 ELSE 5 END, CASE WHEN n = 2 THEN 1 ELSE 0 END, 0, '{}'
    FROM generate_series(1, %(rows)s) AS n;
INSERT INTO audiences_delivery (install_id, endpoint, opened_at, closed_at, outcome, status, items, bytes, latency_ms,
        reason, answer, request, worker, version)
    SELECT %(install)s + n %% (%(owners)s - 1), '/v3/profiles', now() - (%(rows)s - n) * interval '0.5 s',
        CASE WHEN n > 9 THEN now() END,
        CASE WHEN n = 10 THEN 'unauthorised' WHEN n < 10 THEN '' ELSE 'delivered' END, 202, 5, 9,
        CASE WHEN n = 10 THEN 8000 ELSE 90 END, '', '', %(request)s, 'worker', '1'
    FROM generate_series(1, %(rows)s) AS n;
INSERT INTO audiences_run (audience_id, delivery_id, first_sequence, last_sequence, sent, folded, opened_at, closed_at,
        outcome)
    SELECT 1 + n %% %(audiences)s, %(first)s + n, n, n, 1, 0, now() - (%(rows)s - n) * interval '0.5 s', now(),
        CASE WHEN n = 10 THEN 'unauthorised' ELSE 'delivered' END
    FROM generate_series(1, %(rows)s - 1) AS n;
INSERT INTO audiences_again (audience_id, first_sequence, last_sequence, cause)
    SELECT audience, 100 * n + 1, 100 * n + 50, 'replay'
    FROM generate_series(1, %(audiences)s) AS audience, generate_series(0, %(events)s / %(audiences)s / 101) AS n;
INSERT INTO audiences_parked (install_id, reason, detail, identifier, parked_at, closed_at, closed_by, resolution)
    SELECT %(install)s + n %% (%(owners)s - 1), CASE WHEN n = 1 THEN 'not_json' ELSE 'unknown_slug' END, '', '', now(),
        CASE WHEN n > 5 THEN now() END, '', CASE WHEN n > 5 THEN 'superseded' ELSE '' END
    FROM generate_series(1, %(rows)s / 10) AS n;
ANALYZE;
SELECT brin_summarize_new_values('runs_by_hour');
"""
EMPTY = """
TRUNCATE audiences_again, audiences_parked, audiences_run, audiences_delivery, audiences_receipt, audiences_event,
    audiences_lane, audiences_membership, audiences_audience, audiences_token, audiences_install,
    audiences_pace CASCADE;
"""


def fill(*, events: int, rows: int, audiences: int = AUDIENCES) -> None:
    from audiences import request_bodies

    with connection.cursor() as cursor:
        cursor.execute(EMPTY)
        owners = [Install(name=f"Shop {n}", odp_api_key="a.b", odp_host="http://127.0.0.1:1") for n in range(OWNERS)]
        for owner in owners:
            installs.create(owner)
        cursor.execute("SELECT nextval('audiences_delivery_id_seq')")
        first = cursor.fetchone()[0]
        # Foreign keys are checked one row at a time, and none of these is wrong.
        for table in BIG:
            cursor.execute(f"ALTER TABLE audiences_{table} DISABLE TRIGGER ALL")
        try:
            cursor.execute(
                FILL,
                {
                    "install": owners[0].pk,
                    "owners": OWNERS,
                    "audiences": audiences,
                    "events": events,
                    "rows": rows,
                    "first": first,
                    "request": request_bodies.pack(b'[{"attributes":{"fs_user_id":"kim","lytics_slug_1":true}}]'),
                },
            )
        finally:
            for table in BIG:
                cursor.execute(f"ALTER TABLE audiences_{table} ENABLE TRIGGER ALL")
    hour = f"{Delivery.objects.order_by('pk')[rows // 2].opened_at:%Y-%m-%dT%H}"
    since, until = f"since={hour}:00", f"until={hour}:59"
    periods = {"hour": f"{since}&{until}", "from_hour": since, "until_hour": until}
    FACTS.update(busy=owners[0].pk, quiet=owners[-1].pk, audience=7, **periods)


@pytest.fixture(scope="module")
def small(django_db_setup: None, django_db_blocker: DjangoDbBlocker) -> Iterator[dict[str, int]]:
    """The big tables; and how many queries each page took while they had fewer rows than a page shows. So a query for
    each row is found out, too."""
    with django_db_blocker.unblock():
        User.objects.create_superuser("million", password="long enough for anyone")
        try:
            fill(events=20, rows=20, audiences=10)
            visitor = someone()
            FACTS["visitor"] = visitor
            for page in {kind_of(page): page for page in PAGES}.values():
                visit(visitor, page.url())  # what Django asks once per process, like the numbers of content types
            shapes = {shape_of(page): page for page in PAGES}.values()
            queries = {page.name: len(visit(visitor, page.url())) for page in shapes}
            fill(events=1_000_000, rows=ROWS)
            OPENED.clear()
            yield queries
        finally:
            with connection.cursor() as cursor:
                cursor.execute(EMPTY + "ANALYZE;")
            User.objects.filter(username="million").delete()


def someone() -> Client:
    client = Client()
    client.force_login(User.objects.get(username="million"))
    client.get(reverse("admin:index"))
    return client


@pytest.fixture
def visitor(small: dict[str, int], db: None) -> Client:
    """One login for all tests: its session is committed, and what a test does to it is rolled back."""
    client: Client = FACTS["visitor"]
    return client


def statements_of(page: Page, visitor: Client) -> list[str]:
    """The statements of a page of the big tables, which is opened once for the tests that look at them."""
    if page.name not in OPENED:
        OPENED[page.name] = visit(visitor, page.url())
    return OPENED[page.name]


def visit(visitor: Client, url: str) -> list[str]:
    """Open a page. Returns the statements that it sent."""
    with CaptureQueriesContext(connection) as seen:
        answered = visitor.get(url)
        assert answered.status_code == 200, f"{url}: {answered.status_code}"
    return [query["sql"] for query in seen.captured_queries]


# --- what a statement reads -----------------------------------------------------------------------------------


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for inner in plan.get("Plans", []):
        yield from nodes(inner)


def explained(statement: str) -> dict[str, Any]:
    with connection.cursor() as cursor:
        cursor.execute(f"EXPLAIN (ANALYZE, TIMING OFF, FORMAT JSON) {statement}".replace("%", "%%"), ())
        found = cursor.fetchone()[0]
    plan: dict[str, Any] = (json.loads(found) if isinstance(found, str) else found)[0]["Plan"]
    return plan


def read_by(plan: dict[str, Any]) -> dict[str, int]:
    """Rows read of each big table, including rows that a filter discarded."""
    found: dict[str, int] = {}
    for node in nodes(plan):
        table = node.get("Relation Name", "").removeprefix("audiences_")
        if table in BIG:
            wasted = sum(node.get(f"Rows Removed by {why}", 0) for why in ("Filter", "Index Recheck"))
            found[table] = found.get(table, 0) + int((node["Actual Rows"] + wasted) * node["Actual Loops"])
    return found


def scanned(plan: dict[str, Any]) -> set[str]:
    """The big tables that a statement reads from one end to the other."""
    return {
        node["Relation Name"]
        for node in nodes(plan)
        if node["Node Type"] == "Seq Scan" and node["Relation Name"].removeprefix("audiences_") in BIG
    }


def replay_settings(statement: str) -> None:
    """Plan the statements that follow as the page had them planned; see ``index_order``."""
    if statement.startswith("SELECT set_config('enable_"):
        with connection.cursor() as cursor:
            cursor.execute(statement)


def problems(statements: list[str], rows: int) -> list[str]:
    found = []
    for statement in statements:
        replay_settings(statement)
        if not statement.startswith("SELECT") or not re.search(rf"audiences_(?:{'|'.join(BIG)})\b", statement):
            continue
        if re.search(r"count\(\*\)[^(]*FROM \"?audiences_(?:event|receipt|delivery|run)\b", statement, re.IGNORECASE):
            found.append(f"counts: {statement}")
        plan = explained(statement)
        allowed = rows + 2 * COUNTED if BOUNDED_COUNT.fullmatch(statement) else rows
        found += [f"reads all of {table}: {statement}" for table in scanned(plan)]
        found += [f"reads {n:,} of {table}: {statement}" for table, n in read_by(plan).items() if n > allowed]
    return found


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_a_page_of_a_big_table_reads_no_more_than_it_shows(page: Page, visitor: Client) -> None:
    assert problems(statements_of(page, visitor), page.rows) == []


def test_a_page_needs_no_more_queries_than_on_small_tables(visitor: Client, small: dict[str, int]) -> None:
    """Than the busiest page of the same list: a filter that finds no row needs no look-up of what its rows name."""
    most: dict[str, int] = {}
    for name, queries in small.items():
        kind = name.partition("?")[0]
        most[kind] = max(queries, most.get(kind, 0))
    needed = {page: len(statements_of(page, visitor)) for page in PAGES}
    assert {page.name: count for page, count in needed.items() if count > most[kind_of(page)]} == {}


@pytest.mark.parametrize(
    ("indexes", "address"),
    [
        ("failed_deliveries", "delivery?outcome=failed"),
        ("slow_", "delivery?slower=5000"),
        ("empty_receipts", "receipt?verdict=empty"),
        ("receipts_of_an_install", "install?"),
        ("failed_runs", "run?outcome=failed"),
        ("parked_by_reason", "parked?reason=not_json&resolution=all"),
    ],
)
def test_without_its_index_a_filter_is_found_out(indexes: str, address: str, visitor: Client) -> None:
    """Every index with this prefix, because the planner may use one in place of another."""
    model, _, query = address.partition("?")
    with connection.cursor() as cursor:
        cursor.execute("SELECT indexname FROM pg_indexes WHERE starts_with(indexname, %s)", [indexes])
        for (name,) in cursor.fetchall():
            cursor.execute(f"DROP INDEX {name}")
    assert problems(visit(visitor, listed(model, query).url()), FEW)


def test_a_count_is_found_out(visitor: Client) -> None:
    with CaptureQueriesContext(connection) as seen:
        Delivery.objects.count()
    assert problems([query["sql"] for query in seen.captured_queries], FEW)


def test_an_hour_is_a_small_part_of_the_table(visitor: Client) -> None:
    """Or the bound on what an hour's page reads would prove nothing."""
    assert AN_HOURS * 5 < ROWS
    assert now() > Delivery.objects.order_by("pk")[0].opened_at


def test_a_count_beyond_its_bound_is_found_out(visitor: Client) -> None:
    with CaptureQueriesContext(connection) as seen:
        Delivery.objects.order_by("-pk")[: 3 * COUNTED].count()
    assert problems([query["sql"] for query in seen.captured_queries], FEW)


@pytest.mark.parametrize(
    ("model", "query", "words"),
    [
        ("run", "", "more than 10,000"),
        ("run", "install={busy}", "more than 10,000"),
        ("run", "o=6&install={busy}", "more than 10,000"),
        ("run", "audience=lytics_slug_7", "2,000 in all"),
        ("delivery", "", "more than 10,000"),
        ("delivery", "audience=lytics_slug_7", "2,000 in all"),
        ("delivery", "{hour}", "7,200 in all"),
        ("run", "{hour}", "7,200 in all"),
        ("run", "{hour}&install={busy}", "3,600 in all"),
        ("delivery", "{hour}&audience=lytics_slug_7", "72 in all"),
        ("receipt", "{from_hour}", "more than 10,000"),
        ("receipt", "install__id__exact={busy}", "more than 10,000"),
        ("parked", "", "5 in all"),
        ("parked", "resolution=superseded", "more than 10,000"),
    ],
)
def test_a_list_says_how_many_rows_match(model: str, query: str, words: str, visitor: Client) -> None:
    pages = re.search(r'aria-label="Pages">\s*<span>([^<]*)', visitor.get(listed(model, query).url()).content.decode())
    assert pages
    assert pages[1].startswith(words)


def test_groups_of_parked_items_and_their_confirmations_say_at_most_ten_thousand(visitor: Client) -> None:
    """All items wait here: 10,000, 19,999 and one."""
    Parked.objects.update(closed_at=None, resolution="")
    with connection.cursor() as cursor:
        cursor.execute("ANALYZE audiences_parked")
    owner = FACTS["busy"] + 1
    Parked.objects.bulk_create(Parked(install_id=owner, reason="unknown_slug") for _ in range(COUNTED - 1))
    discard = reverse("admin:audiences_parked_discard_group", args=[owner, "unknown_slug"])
    release = reverse("admin:audiences_parked_release_group", args=[owner, "unknown_slug"])
    shown = {
        reverse("admin:index"): ("more than 10,000 parked: ", "more than 20,001"),
        reverse("admin:audiences_parked_changelist"): ('ls-bad">more than 10,000</span>',),
        discard: ("Discard more than 10,000", "more than 10,000 items will be discarded"),
        release: ("Release more than 10,000", "more than 10,000 items. What"),
    }
    for url, words in shown.items():
        page = visitor.get(url).content.decode()
        assert [text for text in words if text not in page] == [], url
        read = 0
        for statement in visit(visitor, url):
            replay_settings(statement)
            if "audiences_parked" in statement and statement.startswith(("SELECT", "WITH RECURSIVE")):
                read = max(read, read_by(explained(statement)).get("parked", 0))
        # The groups have 10,000, 19,999 and 1 open items. Nothing is read beyond the bound of each.
        assert read <= 2 * COUNTED + 50, url
