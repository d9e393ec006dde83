"""Find a customer: what the headline counts, an address to share without personal data, and other spellings."""

import re
from html import unescape

import pytest
from django.contrib.admin.models import LogEntry
from django.test import Client
from django.urls import reverse

from audiences.delivery import holds
from audiences.insight import customer_records
from audiences.models import Audience, Event, Install, Membership
from tests.delivering import drain_all, enter, lane_of, make_audience
from tests.people import someone

pytestmark = pytest.mark.django_db

WHO = "Anna.Maria@example.com"


@pytest.fixture
def gold(shop: Install) -> Audience:
    return make_audience(shop, provisioned=False)


def find(client: Client, identifier: str) -> str:
    answered = client.post(reverse("find_customer"), {"identifier": identifier})
    assert answered.status_code == 200
    return unescape(answered.content.decode())


def headline(page: str) -> str:
    found = re.search(r'<h3 class="ls-title">(In .*?)</h3>', page)
    assert found
    return found[1]


def test_an_event_that_waits_behind_a_block_is_counted_in_the_headline(viewer: Client, gold: Audience) -> None:
    enter(gold, WHO)
    holds.block_audience(gold.pk, "field has the wrong type")
    assert headline(find(viewer, WHO)) == "In no audience, by the ledger; 1 event waits behind a block"


def test_work_that_waits_for_another_cause_is_counted_apart(viewer: Client, shop: Install, gold: Audience) -> None:
    silver, bronze = make_audience(shop, "silver"), make_audience(shop, "bronze")
    enter(gold, WHO)
    drain_all(shop)
    for audience in (silver, bronze):
        enter(audience, WHO)
        enter(audience, WHO, at=2)
    holds.pause(lane_of(silver), by="kim", reason="a test")
    told = headline(find(viewer, WHO))
    assert told.endswith("by the ledger; 2 events wait in a paused audience, 2 events wait to be delivered")


def test_nothing_is_said_of_waiting_when_nothing_waits(viewer: Client, shop: Install, gold: Audience) -> None:
    enter(gold, WHO)
    drain_all(shop)
    assert headline(find(viewer, WHO)) == "In 1 of 1 audiences, by the ledger"


# --- an address to share -------------------------------------------------------------------------------------


def address(page: str) -> str:
    found = re.search(r'href="([^"]*)">Address to share<', page)
    assert found
    return found[1]


def test_an_address_to_share_leads_to_the_customer_and_holds_no_personal_data(
    operator: Client, viewer: Client, gold: Audience
) -> None:
    enter(gold, WHO, "somebody else")
    shared = address(find(operator, WHO))
    assert re.fullmatch(r"/admin/[a-z-]+/\?event=\d+-\d+", shared)
    opened = viewer.get(shared)
    assert opened.status_code == 200
    page = unescape(opened.content.decode())
    assert f'value="{WHO}"' in page
    assert "event 1" in page
    assert "somebody else" not in page
    entry = LogEntry.objects.latest("pk")
    assert (entry.user.username, entry.change_message) == ("viewer", "Looked for this customer.")
    assert WHO not in entry.object_repr


def test_a_shared_address_needs_the_permission_to_find_customers(operator: Client, gold: Audience) -> None:
    enter(gold, WHO)
    shared = address(find(operator, WHO))
    assert someone("", name="other").get(shared).status_code == 403
    assert Client().get(shared).status_code == 302


@pytest.mark.parametrize(
    "event", ["", "1", "1-", "-1", "0-0", "9-9", "1-1-1", "²-1", "9" * 40 + "-1", "1-" + "9" * 40, "\x00", "a-b"]
)
def test_an_address_that_names_no_event_says_so(viewer: Client, event: str) -> None:
    opened = viewer.get(reverse("find_customer"), {"event": event})
    assert opened.status_code == 200
    assert "This link leads to no event." in opened.content.decode()
    assert not LogEntry.objects.exists()


def test_a_customer_without_events_has_no_address(viewer: Client, gold: Audience) -> None:
    Membership.objects.create(audience=gold, identifier=WHO, is_member=True, occurred_ns=1, sequence=1)
    assert not Event.objects.exists()
    assert "Address to share" not in find(viewer, WHO)


# --- other spellings -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("known", "asked"),
    [
        ("UPPER-Case", "UPPER-case"),
        ("UPPER-case", "UPPER-Case"),
        ("upper-case", "UPPER-Case"),
        ("Anna.Maria@example.com", "anna.maria@example.com"),
        ("anna.maria@example.com", "Anna.Maria@Example.COM"),
        ("Анна_мария", "анна_Мария"),
        ("KIM", "kim"),
    ],
)
def test_a_spelling_that_differs_in_case_only_is_offered(
    viewer: Client, gold: Audience, known: str, asked: str
) -> None:
    Membership.objects.create(audience=gold, identifier=known, is_member=True, occurred_ns=1, sequence=1)
    assert customer_records.variants(asked) == [known]
    assert f"There is a customer <code>{known}</code>" in find(viewer, asked)


@pytest.mark.parametrize("identifier", ["a.b" * 80, "-" * 256, "A-" * 100, "x" * 256])
def test_the_spellings_of_any_identifier_are_few(identifier: str) -> None:
    assert len(customer_records._spellings(identifier)) <= 4 * customer_records.SPELLINGS
