"""The time of the last delivery on the lists: found without reading the failures since."""

import json
from datetime import timedelta
from typing import Any

import pytest
from django.db import connection
from django.db.models import OuterRef, QuerySet, Subquery
from django.utils.timezone import now

from audiences.admin.last_delivered import of_audience, of_install
from audiences.models import Audience, Delivery, Install, Lane, Run
from tests.delivering import make_audience

pytestmark = pytest.mark.django_db(transaction=True)

FAILURES = 20_000
# The first delivery was accepted by ODP, and every one since has failed. Each has one run.
FILL = """
WITH deliveries AS (
    INSERT INTO audiences_delivery (install_id, endpoint, opened_at, closed_at, outcome, status, items, bytes, reason,
            answer, worker, version)
        SELECT %(install)s, '/', yesterday, yesterday, CASE WHEN n = 0 THEN 'delivered' ELSE 'retry_later' END, 200, 1,
            1, '', '', '', ''
        FROM generate_series(0, %(failures)s) AS n, (SELECT now() - interval '1 day' AS yesterday)
        RETURNING id, opened_at, outcome
)
INSERT INTO audiences_run (audience_id, delivery_id, first_sequence, last_sequence, sent, folded, opened_at, closed_at,
        outcome)
    SELECT %(audience)s, id, sequence, sequence, 1, 0, opened_at, opened_at, outcome
    FROM deliveries, LATERAL (SELECT CASE WHEN outcome = 'delivered' THEN 1 ELSE 2 END AS sequence)
"""


@pytest.fixture
def failing(install: Install) -> Audience:
    """An audience whose first event was delivered and whose second event has failed since."""
    audience = make_audience(install)
    Audience.objects.filter(pk=audience.pk).update(last_sequence=2)
    Lane.objects.filter(pk=audience.pk).update(delivered_sequence=1)
    with connection.cursor() as cursor:
        cursor.execute(FILL, {"install": install.pk, "audience": audience.pk, "failures": FAILURES})
        # Without the dead rows of earlier tests, which would be read too.
        cursor.execute("VACUUM (ANALYZE) audiences_run, audiences_delivery, audiences_audience, audiences_lane")
    return audience


def blocks_read(rows: QuerySet[Any]) -> int:
    plan = json.loads(rows.explain(format="json", analyze=True, buffers=True))[0]["Plan"]
    return int(plan["Shared Hit Blocks"] + plan["Shared Read Blocks"])


def test_the_last_delivery_of_an_audience_is_found_without_its_failures(failing: Audience) -> None:
    rows = Audience.objects.annotate(at=Subquery(of_audience(OuterRef("pk"), OuterRef("lane__delivered_sequence"))))
    assert rows.get(pk=failing.pk).at == Run.objects.get(outcome="delivered").closed_at
    assert blocks_read(rows) < 30


def test_the_last_delivery_of_an_install_is_found_without_its_failures(failing: Audience, install: Install) -> None:
    rows = Install.objects.annotate(at=of_install())
    assert rows.get(pk=install.pk).at == Delivery.objects.get(outcome="delivered").closed_at
    assert blocks_read(rows) < 120


def test_the_last_delivery_of_a_bisected_range_is_found(install: Install) -> None:
    """A range that failed as a whole, whose first half was delivered."""
    audience = make_audience(install)
    Audience.objects.filter(pk=audience.pk).update(last_sequence=4)
    Lane.objects.filter(pk=audience.pk).update(delivered_sequence=2)
    at = now()
    for first, last, outcome in ((1, 4, "rejected"), (1, 2, "delivered"), (3, 4, "retry_later")):
        Run.objects.create(
            audience=audience, first_sequence=first, last_sequence=last, sent=1, folded=0, opened_at=at,
            closed_at=at + timedelta(seconds=last), outcome=outcome,
        )  # fmt: skip
    rows = Audience.objects.annotate(at=Subquery(of_audience(OuterRef("pk"), OuterRef("lane__delivered_sequence"))))
    assert rows.get(pk=audience.pk).at == at + timedelta(seconds=2)


def test_what_never_had_a_delivery_has_no_time(install: Install) -> None:
    make_audience(install)
    assert Install.objects.annotate(at=of_install()).get(pk=install.pk).at is None
