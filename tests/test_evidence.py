"""Evidence for the identifier field: what the newest messages show, and nothing that an earlier field has found."""

from datetime import timedelta
from typing import Any

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils.timezone import now

from audiences.insight import checklist, evidence, trials
from audiences.insight.checklist import Line
from audiences.models import Install, Receipt
from audiences.receiving import ingest, tokens
from sandbox.odp.testing import ThreadedSandbox
from tests.delivering import make_install
from tests.messages import body, message
from tests.test_admin import hidden, url

pytestmark = pytest.mark.django_db


@pytest.fixture
def shop(odp: ThreadedSandbox) -> Install:
    made = make_install(odp)
    tokens.create(made)
    return made


def line(install: Install) -> Line:
    install.refresh_from_db()
    return next(line for line in checklist.lines(install) if line.name == "identifier")


def with_id(count: int) -> list[dict[str, Any]]:
    return [message(who=f"kim-{number}") for number in range(count)]


def with_mail(count: int) -> list[dict[str, Any]]:
    return [message(who=f"kim-{number}@example.com", field="email") for number in range(count)]


def test_the_share_of_the_newest_messages_is_shown_with_its_age(shop: Install, viewer: Client) -> None:
    ingest.receive(shop, body(*with_id(200)))
    ingest.receive(shop, body(*with_id(98), *with_mail(2)))
    Receipt.objects.update(received_at=now() - timedelta(minutes=12))
    found = line(shop)
    assert found.is_done
    assert found.state.why == "_id in 298 of the last 300 messages. Of the newest 2 without it: email in 2."
    page = viewer.get(url("change", shop)).content.decode()
    assert "12 min ago" in page.split("Customer identifier _id found")[1].split("</p>")[0]


def test_only_the_newest_messages_count(shop: Install) -> None:
    ingest.receive(shop, body(*with_mail(300)))
    ingest.receive(shop, body(*with_id(300)))
    assert line(shop).state.why == "_id in 300 of the last 300 messages."


def test_a_field_that_most_messages_lack_is_failing_though_some_have_it(shop: Install) -> None:
    ingest.receive(shop, body(*with_id(1), *with_mail(9)))
    found = line(shop)
    assert found.state.word == "failing"
    assert found.state.why == "_id in 1 of the last 10 messages. Of the newest 9 without it: email in 9."
    assert "released by any field" in found.todo


def test_a_field_that_no_message_has_is_failing_with_the_count(shop: Install) -> None:
    ingest.receive(shop, body(*with_mail(3)))
    found = line(shop)
    assert found.state.word == "failing"
    assert "_id in 0 of the last 3 messages. Of the newest 3 without it: email in 3." in found.state.why


def change_field(client: Client, install: Install, field: str) -> None:
    page = client.get(url("change", install)).content.decode()
    typed = {
        "name": install.name,
        "region": "",
        "odp_api_key": "",
        "odp_host": install.odp_host,
        "identifier_field": field,
        "mechanism": "attribute",
        "enabled": "on",
        "batch_size": "500",
        "requests_per_second": "0",
        "max_in_flight": "20",
        "delay_limit_minutes": "15",
        "parked_limit_per_hour": "100",
        "understood": "on",
    }
    client.post(url("change", install), {**hidden(page), **typed})
    install.refresh_from_db()
    assert install.identifier_field == field


def test_another_field_does_not_inherit_the_evidence_of_the_previous_one(shop: Install, operator: Client) -> None:
    ingest.receive(shop, body(*with_id(300)))
    assert line(shop).is_done
    change_field(operator, shop, "email")
    found = line(shop)
    assert found.state.word == "waiting"
    assert found.state.why.startswith("No message since the identifier field was changed to email at ")
    ingest.receive(shop, body(*with_id(2)))
    assert line(shop).state.word == "failing"
    ingest.receive(shop, body(*with_mail(6)))
    assert line(shop).is_done
    assert line(shop).state.why == "email in 6 of the last 8 messages. Of the newest 2 without it: _id in 2."


def test_a_changed_name_leaves_the_evidence(shop: Install, operator: Client) -> None:
    ingest.receive(shop, body(*with_id(3)))
    change_field(operator, shop, "_id")
    assert line(shop).is_done


def test_unreadable_items_and_test_customers_are_no_evidence_for_the_field(shop: Install) -> None:
    ingest.receive(shop, b"what is this?")
    trials.start(shop, by="kim")
    assert evidence.of(shop).messages == 0
    ingest.receive(shop, body(*with_id(1)))
    assert line(shop).state.why == "_id in 1 of the last 1 message."


def test_a_list_with_one_placeholder_in_it_still_names_its_customer(shop: Install) -> None:
    ingest.receive(shop, body(*[message(who=["kim", "null"]) for _ in range(3)]))
    assert evidence.of(shop).found == 3
    ingest.receive(shop, body(*[message(who="null") for _ in range(3)]))
    assert evidence.of(shop).found == 3


def test_its_queries_and_rows_are_bounded(shop: Install) -> None:
    for _ in range(3):
        ingest.receive(shop, body(*with_mail(2)))
    with CaptureQueriesContext(
        connection,
    ) as few:
        evidence.of(shop)
    for _ in range(evidence.CALLS + 20):
        ingest.receive(shop, body(*with_mail(2)))
    with CaptureQueriesContext(connection) as many:
        seen = evidence.of(shop)
    assert len(few) == len(many) == 2
    assert len(seen.calls) <= evidence.CALLS
    assert seen.looked <= evidence.ITEMS


def test_a_partly_flawed_message_counts_by_its_readable_part(shop: Install) -> None:
    flawed = [
        {**one, "data": {**one["data"], "segment_events": [*one["data"]["segment_events"], None]}} for one in with_id(3)
    ]
    received = ingest.receive(shop, body(*flawed))
    assert (received.queued, received.parked) == (3, 3)
    assert line(shop).state.why == "_id in 3 of the last 3 messages."
