"""Every run and delivery shows its cause, and resent events aren't counted as delivered twice."""

import csv
import io
from datetime import timedelta
from typing import Any

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils.timezone import now

from audiences.admin import csv_file, filters
from audiences.front import charts
from audiences.insight import rollup
from audiences.models import Again, Audience, Delivery, Event, Install, Minute, Receipt, Run
from audiences.operations import resends
from audiences.operations.reconcile import reconcile
from audiences.receiving import resend_causes
from sandbox.odp.testing import ThreadedSandbox
from tests.delivering import drain_all, enter, give_up, happen, lane_of, make_delivered, make_install
from tests.people import someone
from tests.threads import PATIENCE

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def shop(odp: ThreadedSandbox, settings: Any) -> Install:
    settings.RECONCILE_AFTER_SECONDS = 0
    return make_install(odp)


@pytest.fixture
def gold(shop: Install) -> Audience:
    return make_delivered(shop, "anna", "ben", at=5)


def cause_of(run: Run) -> str:
    return resend_causes.causes([run])[run.pk]


def resync(shop: Install, gold: Audience) -> None:
    assert resends.resync(gold, by="kim", reason="why not")
    resends.advance_all(shop.pk, seconds=PATIENCE)


def test_events_from_lytics_have_no_other_cause(shop: Install, gold: Audience) -> None:
    assert cause_of(Run.objects.latest("pk")) == "Lytics"
    assert not Again.objects.exists()


def test_of_a_log_only_the_resent_events_have_a_cause(shop: Install, gold: Audience) -> None:
    resync(shop, gold)
    assert {sequence for _, sequence in resend_causes.causes_of_events(Event.objects.all())} == {3, 4}


def test_a_resync_is_named_with_its_number_on_the_run_and_on_its_delivery(shop: Install, gold: Audience) -> None:
    resync(shop, gold)
    drain_all(shop)
    run = Run.objects.latest("pk")
    resend = gold.resends.get()
    assert cause_of(run) == f"resync {resend.pk:,}"
    viewer = someone("viewer")
    for url in ("/admin/audiences/run/", f"/admin/audiences/delivery/{run.delivery_id}/change/"):
        assert f"resync {resend.pk:,}" in viewer.get(url).content.decode()


def test_a_run_of_both_names_both(shop: Install, gold: Audience) -> None:
    happen(gold, ("cleo", "enter", 9))
    resync(shop, gold)
    drain_all(shop)
    run = Run.objects.latest("pk")
    assert (run.first_sequence, run.last_sequence) == (3, 5)
    assert cause_of(run) == f"Lytics, resync {gold.resends.get().pk:,}"


def test_events_resent_for_an_unanswered_delivery_name_that_delivery(
    odp: ThreadedSandbox, shop: Install, gold: Audience
) -> None:
    enter(gold, "dora", at=10)
    unanswered = give_up(odp, shop, applied_after=1.0)
    happen(gold, ("dora", "exit", 20))
    drain_all(shop)
    assert reconcile() == 1
    drain_all(shop)
    assert cause_of(Run.objects.latest("pk")) == f"sent again after delivery {unanswered.pk:,}"


def test_resent_events_are_counted_apart_so_delivered_never_exceeds_received(shop: Install, gold: Audience) -> None:
    happen(gold, ("cleo", "enter", 9))
    resync(shop, gold)
    drain_all(shop)
    start = (now() - timedelta(minutes=2)).replace(second=0, microsecond=0)
    rollup.add_up(start, start + timedelta(minutes=4))
    minutes = list(Minute.objects.all())
    assert (sum(one.delivered for one in minutes), sum(one.again for one in minutes)) == (3, 2)


def test_a_chart_never_shows_more_delivered_than_received_after_an_older_backlog_and_a_resync(
    shop: Install, gold: Audience
) -> None:
    """A backlog of five hours ago is delivered now, with events of now and a resync of everything."""
    happen(gold, *((f"old-{one}", "enter", 9) for one in range(700)))
    happen(gold, *((f"new-{one}", "enter", 9) for one in range(5)))
    # One time for all that is new, because a minute may end here.
    came = now()
    Event.objects.update(received_at=came)
    Event.objects.filter(sequence__gt=2, sequence__lte=702).update(received_at=came - timedelta(hours=5))
    Receipt.objects.create(install=shop, received_at=came, bytes=1, messages=5, queued=7, parked=0, skipped=0)
    resync(shop, gold)
    drain_all(shop)
    start = (now() - timedelta(minutes=2)).replace(second=0, microsecond=0)
    rollup.add_up(start, start + timedelta(minutes=4))
    for hours, backlog in ((1, 700), (6, 700), (24, 700)):
        points = charts.read(hours=hours, at=now() + timedelta(minutes=3))
        assert all(point.delivered <= point.received for point in points)
        totals = {name: sum(getattr(point, name) for point in points) for name in charts.COUNTS}
        assert totals == {"received": 7, "delivered": 7, "earlier": backlog, "again": 2, "parked": 0}


def test_late_deliveries_count_at_the_time_of_their_arrival(shop: Install, gold: Audience, settings: Any) -> None:
    settings.DELIVERY_DEADLINE_SECONDS = 8  # a busy machine takes longer for 500 items than the others here may
    came = now() - timedelta(hours=5)
    happen(gold, *((f"old-{one}", "enter", 9) for one in range(700)))
    Event.objects.filter(sequence__gt=2).update(received_at=came)
    Event.objects.filter(sequence__gt=400).update(received_at=came + timedelta(hours=1))
    for events, at in ((398, came), (302, came + timedelta(hours=1)), (2, now())):
        Receipt.objects.create(install=shop, received_at=at, bytes=1, messages=1, queued=events, parked=0, skipped=0)
    drain_all(shop)
    assert lane_of(gold).delivered_sequence == 702
    rollup.roll_up(at=now() + timedelta(minutes=2))
    of_one, of_six = (charts.read(hours=hours, at=now() + timedelta(minutes=3)) for hours in (1, 6))
    assert [(point.received, point.delivered) for point in of_six if point.received] == [(398, 398), (302, 302), (2, 2)]
    assert sum(point.earlier for point in of_six) == 0
    assert [(point.received, point.delivered) for point in of_one if point.received] == [(2, 2)]
    assert sum(point.earlier for point in of_one) == 700


def test_runs_and_deliveries_are_narrowed_by_their_cause_and_files_and_pages_name_it(
    shop: Install, gold: Audience
) -> None:
    by_lytics = Run.objects.latest("pk")
    resync(shop, gold)
    drain_all(shop)
    run = Run.objects.latest("pk")
    told = f"resync {gold.resends.get().pk:,}"
    person = someone("admin")
    for model, thing, other in (("run", run.pk, by_lytics.pk), ("delivery", run.delivery_id, by_lytics.delivery_id)):
        url = f"/admin/audiences/{model}/"
        page = person.get(url)
        assert told in page.content.decode(), model
        for cause, expected in (("resync", [thing]), ("replay", []), ("nonsense", [thing, other])):
            found = person.get(url, {"because": cause}).context["cl"].result_list
            assert [row.pk for row in found] == expected, (model, cause)
        answer: Any = person.post(f"{url}csv/")
        rows = list(csv.reader(io.StringIO(b"".join(answer.streaming_content).decode())))
        assert [row[-1] for row in rows] == ["because_of", told, "Lytics"], model
    assert f"because of {told}" in person.get(f"/admin/audiences/audience/{gold.pk}/change/").content.decode()
    assert f"because of {told}" in person.post("/admin/find-customer/", {"identifier": "anna"}).content.decode()


def test_a_run_that_begins_before_its_resent_events_is_found_by_its_cause(shop: Install, gold: Audience) -> None:
    happen(gold, ("cleo", "enter", 9))
    resync(shop, gold)
    drain_all(shop)
    assert resend_causes.runs_because_of("resync") == [Run.objects.latest("pk").pk]


def test_runs_of_an_install_are_found_beside_every_other_filter(shop: Install, gold: Audience) -> None:
    """Also with later runs: only the page of an install reads the newest runs of each audience."""
    resync(shop, gold)
    drain_all(shop)
    wanted = Run.objects.latest("pk")
    Run.objects.bulk_create(
        Run(audience=gold, first_sequence=1, last_sequence=1, sent=0, folded=1, opened_at=now(), closed_at=now(),
            outcome="delivered") for _ in range(60)
    )  # fmt: skip
    person = someone("viewer")
    period = {"since": f"{wanted.opened_at:%Y-%m-%dT%H:00}", "until": f"{now() + timedelta(hours=1):%Y-%m-%dT%H:%M}"}
    queries: list[dict[str, str]] = [{"because": "resync"}, {"q": str(wanted.pk)}, {"because": "resync", **period}]
    for query in queries:
        found = person.get("/admin/audiences/run/", {"install": str(shop.pk), **query}).context["cl"].result_list
        assert [run.pk for run in found] == [wanted.pk], query


def test_a_download_contains_all_rows_of_a_cause_and_of_an_audience_and_the_page_says_what_it_leaves_out(
    shop: Install, gold: Audience, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The page looks at one range and one run here. Two causes alternate, in pieces of two rows."""
    for at in (10, 20, 30):
        happen(gold, (f"cleo {at}", "enter", at))
        drain_all(shop)
        resync(shop, gold)
        drain_all(shop)
    monkeypatch.setattr(resend_causes, "NEWEST_RANGES", 1)
    monkeypatch.setattr(filters, "COUNTED", 1)
    monkeypatch.setattr(csv_file, "ROWS", 2)
    resent = list(
        Run.objects.order_by("-pk").filter(pk__in=[run.pk for run in Run.objects.all() if "resync" in cause_of(run)])
    )
    assert len(resent) >= 3
    person = someone("viewer")
    for model, wanted in (("run", [run.pk for run in resent]), ("delivery", [run.delivery_id for run in resent])):
        page = person.get(f"/admin/audiences/{model}/?because=resync")
        assert len(page.context["cl"].result_list) < len(wanted)
        assert "The CSV file contains all of them." in page.content.decode()
        assert "<span>at least 1</span>" in page.content.decode()
        answer: Any = person.post(f"/admin/audiences/{model}/csv/?because=resync")
        rows = list(csv.DictReader(io.StringIO(b"".join(answer.streaming_content).decode())))
        assert len(rows) == len(wanted)
        assert {row["because_of"].partition(" ")[0] for row in rows} == {"resync"}
        of_nothing: Any = person.post(f"/admin/audiences/{model}/csv/?because=leave")
        assert b"".join(of_nothing.streaming_content).count(b"\n") == 1
    everything: Any = person.post("/admin/audiences/delivery/csv/?audience=gold")
    assert b"".join(everything.streaming_content).count(b"\n") == 1 + Delivery.objects.count()


def test_a_page_that_shows_all_runs_of_a_cause_has_no_note(shop: Install, gold: Audience) -> None:
    resync(shop, gold)
    drain_all(shop)
    page = someone("viewer").get("/admin/audiences/run/?because=resync").content.decode()
    assert "The CSV file contains all" not in page


def test_the_causes_of_a_page_of_runs_are_looked_up_once(shop: Install, gold: Audience) -> None:
    person = someone("viewer")

    def lookups() -> int:
        with CaptureQueriesContext(connection) as seen:
            person.get("/admin/audiences/run/")
        return sum("run.id AS run_id" in query["sql"] for query in seen.captured_queries)

    resync(shop, gold)
    drain_all(shop)
    assert lookups() == 1
