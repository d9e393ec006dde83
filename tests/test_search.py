"""The search box of every page finds installs, audiences, numbered things and customers, for those who may see them."""

from typing import Any

import pytest
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import Group, Permission
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils.timezone import now

from audiences.admin.search import SHOWN
from audiences.models import Audience, Delivery, Install, Parked, Receipt, Run
from audiences.receiving import ingest
from tests import many
from tests.delivering import make_audience
from tests.messages import body, message, transition
from tests.people import someone

pytestmark = pytest.mark.django_db

BOX = reverse("search_everything")


def search(client: Client, text: str) -> dict[str, list[str]]:
    """The results by kind. A customer's kind has the names of the installs."""
    context = client.post(BOX, {"text": text}).context
    found = {kind.title: [result.words for result in kind.results] for kind in context["kinds"]}
    return {**found, **({"Customer": [str(one) for one in context["person"]]} if context["person"] else {})}


@pytest.fixture
def gold(install: Install) -> Audience:
    """An audience with an event of kim, a delivery, a run and a parked item."""
    ingest.receive(install, body(message(who="kim@example.com"), message(who=None)))
    audience = Audience.objects.get()
    times = {"opened_at": now(), "closed_at": now(), "outcome": "delivered"}
    delivery = Delivery.objects.create(
        install=install, endpoint="/v3/profiles", items=1, bytes=2, worker="w", version="0", **times
    )
    Run.objects.create(
        audience=audience, delivery=delivery, first_sequence=1, last_sequence=1, sent=1, folded=0, **times
    )
    return audience


def test_every_page_has_the_box_and_it_posts(viewer: Client, gold: Audience) -> None:
    pages = [reverse("admin:index"), reverse("admin:audiences_run_changelist"), reverse("find_customer"), BOX]
    for page in [*pages, reverse("admin:audiences_audience_change", args=[gold.pk])]:
        assert f'<form method="post" action="{BOX}"' in viewer.get(page).content.decode(), page


def test_names_are_found_by_a_part_in_any_case(viewer: Client, gold: Audience) -> None:
    assert search(viewer, "sHo") == {"Installs": ["Shop"]}
    assert search(viewer, "GOLD_cl") == {"Audiences": ["lytics_gold_club"]}
    assert search(viewer, gold.segment_id)["Audiences"] == ["lytics_gold_club"]
    assert search(viewer, gold.install.public_id) == {"Installs": ["Shop"]}
    assert search(viewer, "%") == search(viewer, "nobody") == {}


def test_a_number_finds_each_thing_that_has_it_and_a_word_before_it_one_kind(viewer: Client, gold: Audience) -> None:
    for word, model in (("call", Receipt), ("delivery", Delivery), ("run", Run), ("parked", Parked)):
        pk = model.objects.get().pk
        for text in (f"{word} {pk}", f"{word.upper()} #{pk:,}"):
            assert [*search(viewer, text)] == [f"{word.capitalize()} {pk}"], text
        assert f"{word.capitalize()} {pk}" in search(viewer, str(pk))
    for text in ("9" * 19, "9" * 25, "run 9223372036854775808", "call -1"):
        assert search(viewer, text) == {}


def test_a_customer_is_found_and_leads_to_find_a_customer_and_the_search_is_recorded(
    viewer: Client, gold: Audience
) -> None:
    page = viewer.post(BOX, {"text": "kim@example.com"})
    assert [str(one) for one in page.context["person"]] == ["Shop"]
    assert f'action="{reverse("find_customer")}"' in page.content.decode()
    assert "kim@example.com" not in str([*LogEntry.objects.values()])
    assert LogEntry.objects.get().change_message == "Looked for this customer."


def test_a_customer_who_is_only_in_the_ledger_or_only_in_the_log_is_found(viewer: Client, gold: Audience) -> None:
    gold.membership_set.create(identifier="lee", is_member=True, occurred_ns=1, sequence=1)
    assert search(viewer, "lee") == {"Customer": ["Shop"]}
    assert not gold.membership_set.filter(identifier="kim@example.com").exists()
    assert search(viewer, "kim@example.com") == {"Customer": ["Shop"]}


def test_a_search_without_a_customer_leaves_no_record(viewer: Client, gold: Audience) -> None:
    assert search(viewer, "Shop") == {"Installs": ["Shop"]}
    assert not LogEntry.objects.exists()


@pytest.mark.parametrize(
    ("permission", "text", "kind"),
    [
        ("view_install", "Shop", "Installs"),
        ("view_audience", "gold", "Audiences"),
        ("find_customer", "kim@example.com", "Customer"),
        ("view_receipt", "call", "Call"),
        ("view_delivery", "delivery", "Delivery"),
        ("view_run", "run", "Run"),
        ("view_parked", "parked", "Parked"),
    ],
)
def test_a_kind_is_found_by_people_with_its_permission_alone(
    gold: Audience, permission: str, text: str, kind: str
) -> None:
    models: dict[str, Any] = {"call": Receipt, "delivery": Delivery, "run": Run, "parked": Parked}
    text = f"{text} {models[text].objects.get().pk}" if text in models else text
    role = Group.objects.get(name="viewer")
    asked = Permission.objects.get(content_type__app_label="audiences", codename=permission)
    assert any(one.startswith(kind) for one in search(someone("viewer"), text))
    role.permissions.remove(asked)
    assert search(someone("viewer", "another"), text) == {}
    role.permissions.set([asked])
    assert all(one.startswith(kind) for one in search(someone("viewer", "third"), text))
    assert search(someone("viewer", "fourth"), text) != {}


def test_someone_without_a_role_finds_nothing(gold: Audience) -> None:
    for text in ("Shop", "gold", "kim@example.com", str(Run.objects.get().pk)):
        assert search(someone("", f"nobody {text}"), text) == {}


def test_a_text_is_never_part_of_an_address(viewer: Client, gold: Audience) -> None:
    page = viewer.get(BOX, {"text": "kim@example.com"})
    assert "kim@example.com" not in page.content.decode().replace(page.wsgi_request.get_full_path(), "")
    assert "kinds" not in page.context
    assert 'href="/admin/find-customer/?' not in viewer.post(BOX, {"text": "kim@example.com"}).content.decode()


def test_further_audiences_are_on_their_list(viewer: Client, install: Install) -> None:
    for number in range(SHOWN + 1):
        make_audience(install, f"club_{number}")
    (kind,) = viewer.post(BOX, {"text": "club"}).context["kinds"]
    assert len(kind.results) == SHOWN
    assert f"{SHOWN + 1} in all" in viewer.get(kind.more).content.decode()


@pytest.mark.parametrize("text", ["", "\x00", "x" * 300, "{{ 1 }}", "'; --", "<script>"])
def test_a_text_with_markup_or_odd_characters_gets_a_page(viewer: Client, gold: Audience, text: str) -> None:
    page = viewer.post(BOX, {"text": text})
    assert page.status_code == 200
    assert "<script>" not in page.content.decode().partition("<main")[2]


def test_a_search_needs_no_more_queries_for_more_audiences_and_reads_no_whole_log(
    viewer: Client, install: Install
) -> None:
    items = [message(transition(segment=f"s{number}"), who=f"p-{number}") for number in range(3)]
    ingest.receive(install, body(*items))

    def queries(text: str) -> list[str]:
        viewer.post(BOX, {"text": text})
        with CaptureQueriesContext(connection) as captured:
            viewer.post(BOX, {"text": text})
        return [query["sql"] for query in captured.captured_queries]

    texts = ("p-1", "Shop", "segment", "12", "nobody")
    few = [len(queries(text)) for text in texts]
    many.fill(20, 40)
    assert [len(queries(text)) for text in texts] == few
