"""What 1,000 lanes in an install and 5,000 in the database cost, compared with 20 and 60.

Pages cost at most twice as much. ``work``, claims and the sweep read each lane once, and for an install with 20 lanes
the lanes of other installs make no difference.

PostgreSQL counts: each statement is run again under EXPLAIN, which reports the rows read. No time is measured.
"""

import json
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from django.db import connection, transaction
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from pytest_django.plugin import DjangoDbBlocker

from audiences import sql
from audiences.delivery import claims, provision
from audiences.front import groups
from audiences.models import Install, Lane
from audiences.receiving import backlog
from tests.delivering import make_install
from tests.people import someone
from workers import tasks

pytestmark = pytest.mark.django_db

# A statement of a page costs at least as much as reading this number of rows, with its round trip, its planning and the
# Python code around it: about 1 ms, and a row 0.13 to 0.3 µs (measured).
STATEMENT = 3_000
FEW, MANY, ALL = 20, 1_000, 5_000

# In each install a fifth of the lanes is blocked, paused, not in ODP and on hold, failing, and ready to be sent. Two of
# the ready ones fill a request.
FILL = """
INSERT INTO audiences_audience (install_id, segment_id, slug, latest_slug, odp_id, last_sequence, created_at,
        provisioned_at, hold_failures, hold_reason, hold_since_at, hold_until_at)
    SELECT %(install)s, n, 'slug_' || n, 'slug_' || n, 'lytics_slug_' || n, 300, now(),
        CASE WHEN n %% 5 <> 2 THEN now() END, (n %% 5 = 2)::int,
        CASE WHEN n %% 5 = 2 THEN '503: cause ' || n %% 12 ELSE '' END,
        CASE WHEN n %% 5 = 2 THEN now() END, CASE WHEN n %% 5 = 2 THEN now() + interval '1 hour' END
    FROM generate_series(1, %(lanes)s) AS n;
INSERT INTO audiences_lane (audience_id, delivered_sequence, member_count, paused_at, paused_by, pause_reason,
        blocked_at, block_reason, fault_since_at, fault_until_at, fault_reason)
    SELECT id, 1, 10,
        CASE WHEN n %% 5 = 1 THEN now() END, CASE WHEN n %% 5 = 1 THEN 'kim' ELSE '' END,
        CASE WHEN n %% 5 = 1 THEN 'to look' ELSE '' END,
        CASE WHEN n %% 5 = 0 THEN now() END, CASE WHEN n %% 5 = 0 THEN 'cause ' || n %% 12 ELSE '' END,
        CASE WHEN n %% 5 = 3 THEN now() END, CASE WHEN n %% 5 = 3 THEN now() + interval '1 hour' END,
        CASE WHEN n %% 5 = 3 THEN 'Unexpected error: ' || n ELSE '' END
    FROM audiences_audience, CAST(segment_id AS int) AS n WHERE install_id = %(install)s;
INSERT INTO audiences_event (audience_id, sequence, identifier, kind, occurred_ns, received_at, forced)
    SELECT id, 2, 'kim', 1, 1, now(), false FROM audiences_audience WHERE install_id = %(install)s;
"""


@dataclass(frozen=True)
class Cost:
    """Of one action: its statements, the rows that PostgreSQL read for them, and the rows that it returned."""

    statements: int
    read: int
    returned: int

    @property
    def total(self) -> int:
        return self.read + STATEMENT * self.statements


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for inner in plan.get("Plans", []):
        yield from nodes(inner)


def cost_of(*statements: tuple[str, dict[str, Any] | None]) -> Cost:
    read = returned = 0
    for text, values in statements:
        with transaction.atomic(), connection.cursor() as cursor:
            text = text if values else text.replace("%", "%%")
            cursor.execute(f"EXPLAIN (ANALYZE, TIMING OFF, FORMAT JSON) {text}", values or ())
            (found,) = cursor.fetchone() or ("[]",)
            transaction.set_rollback(True)
        plan = (json.loads(found) if isinstance(found, str) else found)[0]["Plan"]
        returned += int(plan["Actual Rows"])
        for node in nodes(plan):
            if "Relation Name" in node:
                wasted = sum(node.get(f"Rows Removed by {why}", 0) for why in ("Filter", "Index Recheck"))
                read += int((node["Actual Rows"] + wasted) * node["Actual Loops"])
    return Cost(len(statements), read, returned)


def sent_by(action: Callable[[], object]) -> Cost:
    """Of the statements that an action sends and that only read."""
    with CaptureQueriesContext(connection) as seen:
        action()
    return cost_of(*((query["sql"], None) for query in seen.captured_queries if is_reading(query["sql"])))


def is_reading(statement: str) -> bool:
    return statement.startswith(("SELECT", "WITH"))


def statement_of(*made: sql.Statement[Any], install: Install) -> Cost:
    values = {
        "install": install.pk,
        "look_seconds": claims.LOOK_SECONDS,
        "making_at_once": claims.MAKING_AT_ONCE,
        "skips_locked": False,
        "capacity": 500,
        "mechanism": "attribute",
        "token": uuid.uuid4(),
        "lease_seconds": 11,
    }
    return cost_of(*((statement.text, values) for statement in made))


def page(url: str) -> Callable[[Install], Cost]:
    def opened(install: Install) -> Cost:
        operator = someone("operator", f"operator of {url}")
        operator.get(reverse(url))  # what Django asks once per process
        return sent_by(lambda: operator.get(reverse(url)))

    return opened


LANES: dict[str, Callable[[Install], Cost]] = {
    "work": lambda install: statement_of(claims._WORK, install=install),
    "claim": lambda install: statement_of(claims._LOCK, claims._CLAIM, install=install),
    "claim of an audience to make": lambda install: statement_of(provision._LOCK, provision._CLAIM, install=install),
}
SWEEP = {"sweep": lambda install: sent_by(tasks.sweep)}
PAGES = {
    "front page": page("admin:index"),
    "audience list": page("admin:audiences_audience_changelist"),
}


def costs(actions: dict[str, Callable[[Install], Cost]], *, own: int, others: int) -> dict[str, Cost]:
    """Of each action, with ``own`` lanes in its install and ``others`` in two other installs."""
    with transaction.atomic(), pytest.MonkeyPatch.context() as patch, connection.cursor() as cursor:
        patch.setattr("audiences.wake.wake", lambda install_id: None)
        install = make_install(name="Shop")
        for owner, lanes in ((install, own), *((make_install(name=f"Shop {n}"), others // 2) for n in (1, 2))):
            cursor.execute(FILL, {"install": owner.pk, "lanes": lanes})
        cursor.execute("ANALYZE audiences_audience, audiences_lane, audiences_event")
        found = {name: action(install) for name, action in actions.items()}
        transaction.set_rollback(True)
    return found


@pytest.fixture(scope="module")
def few(django_db_setup: None, django_db_blocker: DjangoDbBlocker) -> dict[str, Cost]:
    with django_db_blocker.unblock():
        return costs(LANES | SWEEP | PAGES, own=FEW, others=2 * FEW)


@pytest.fixture(scope="module")
def many(django_db_setup: None, django_db_blocker: DjangoDbBlocker) -> dict[str, Cost]:
    with django_db_blocker.unblock():
        return costs(LANES | SWEEP | PAGES, own=MANY, others=ALL - MANY)


@pytest.fixture(scope="module")
def few_of_many(django_db_setup: None, django_db_blocker: DjangoDbBlocker) -> dict[str, Cost]:
    with django_db_blocker.unblock():
        return costs(LANES, own=FEW, others=ALL - FEW)


@pytest.mark.parametrize("name", PAGES)
def test_a_page_costs_at_most_twice_as_much(few: dict[str, Cost], many: dict[str, Cost], name: str) -> None:
    assert many[name].total <= 2 * few[name].total
    assert many[name].returned <= 2 * few[name].returned
    assert many[name].statements == few[name].statements


def test_that_measure_notices_a_page_that_reads_each_blocked_lane(
    few: dict[str, Cost], monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_each(_: object) -> groups.Groups:
        found = [groups.Group(lane, lanes=1) for lane in Lane.objects.filter(backlog.BLOCKED)]
        return groups.Groups(found, count=len(found), lanes=len(found))

    monkeypatch.setattr("audiences.front.troubles.blocked_by_cause", read_each)
    (cost,) = costs({"front page": PAGES["front page"]}, own=MANY, others=ALL - MANY).values()
    assert cost.returned > 2 * few["front page"].returned


@pytest.mark.parametrize("name", LANES)
def test_lanes_of_other_installs_make_no_difference(
    few: dict[str, Cost], few_of_many: dict[str, Cost], name: str
) -> None:
    assert few_of_many[name].read <= 2 * few[name].read


@pytest.mark.parametrize("name", LANES)
def test_each_audience_of_the_install_and_each_lane_is_read_once(
    few: dict[str, Cost], many: dict[str, Cost], name: str
) -> None:
    """With most lanes in one install, PostgreSQL reads the whole table of lanes rather than looking each up."""
    ready = MANY // 5  # a claim reads these once more when it leases lanes
    assert many[name].read <= MANY + ALL + ready + few[name].read
    assert many[name].returned <= few[name].returned


def test_the_sweep_reads_each_lane_once(few: dict[str, Cost], many: dict[str, Cost]) -> None:
    # With other statistics, PostgreSQL reads the audiences of one install once more.
    assert many["sweep"].read <= 2 * ALL + MANY + few["sweep"].read
    assert many["sweep"].returned == few["sweep"].returned
