"""ODP's words that an earlier version stored as they came are masked wherever they are shown."""

import json
from collections.abc import Iterator
from io import StringIO
from typing import Any

import pytest
from django.core.management import call_command
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils.timezone import now

from audiences import request_bodies
from audiences.delivery import holds
from audiences.models import Audience, Delivery, Install, Parked, Run
from audiences.operations import installs
from audiences.receiving import ingest
from odp import redact
from odp.mechanisms import segments
from tests.messages import message, transition
from tests.people import someone

pytestmark = pytest.mark.django_db

# As no field, no audience and no word of ours is called.
EMAIL, QUOTED, BARE = "anna.maria@example.com", "zaphod-1", "4711-kim"
WORDS = f"400: {EMAIL} has no profile, fs_user_id '{QUOTED}' is invalid"
ALERTS_LISTED = f"{WORDS}, customer {BARE} is unknown"
ROLES = ("viewer", "operator", "admin")


@pytest.fixture
def shop(db: None) -> Install:
    """An install with ODP's unmasked words in every column that has held them."""
    made = Install(name="Shop", odp_api_key="public.private", odp_host="http://127.0.0.1:9")
    installs.create(made)
    ingest.receive(
        made,
        json.dumps([message(*(transition(segment=slug, slug=slug) for slug in ("gold", "held", "shut")))]).encode(),
    )
    gold, held, blocked = Audience.objects.order_by("pk")
    body = json.dumps([{"attributes": {"fs_user_id": BARE, gold.odp_id: True}}]).encode()
    delivery = Delivery.objects.create(
        install=made, endpoint="/v3/profiles", opened_at=now(), closed_at=now(), outcome="refused", items=1,
        bytes=len(body), worker="w", version="0", reason=ALERTS_LISTED, answer=json.dumps({"detail": ALERTS_LISTED}),
        request=request_bodies.pack(body),
    )  # fmt: skip
    Run.objects.create(
        audience=gold, delivery=delivery, first_sequence=1, last_sequence=1, sent=1, folded=0, opened_at=now(),
        closed_at=now(), outcome="refused",
    )  # fmt: skip
    Parked.objects.create(
        install=made,
        audience=gold,
        delivery=delivery,
        sequence=1,
        identifier=BARE,
        reason="refused_by_odp",
        detail=ALERTS_LISTED,
    )
    with connection.cursor() as cursor:
        cursor.execute(
            "UPDATE audiences_install SET brake_reason = %s, brake_failures = 1, brake_since_at = now(),"
            " brake_until_at = now() + interval '1 hour'",
            [WORDS],
        )
        cursor.execute(
            "UPDATE audiences_audience SET hold_reason = %s, hold_failures = 1, hold_since_at = now(),"
            " hold_until_at = now() + interval '1 hour' WHERE id = %s",
            [WORDS, held.pk],
        )
        cursor.execute(
            "UPDATE audiences_lane SET blocked_at = now(), block_reason = %s WHERE audience_id = %s",
            [WORDS, blocked.pk],
        )
    return made


def addresses() -> Iterator[str]:
    yield reverse("admin:index")
    yield reverse("admin:audiences_live")
    for model in (Install, Audience, Parked, Delivery, Run):
        name = model._meta.model_name
        yield reverse(f"admin:audiences_{name}_changelist")
        for row in model._default_manager.all():
            yield reverse(f"admin:audiences_{name}_change", args=[row.pk])
    yield reverse("admin:audiences_run_sent", args=[Run.objects.get().pk])


def secrets_in(shown: str) -> set[str]:
    return {secret for secret in (EMAIL, QUOTED, BARE) if secret in shown}


@pytest.mark.parametrize("role", ROLES)
def test_no_page_shows_customers_quoted_by_odp(shop: Install, role: str) -> None:
    person, masked = someone(role), 0
    for address in addresses():
        answer = person.get(address)
        assert answer.status_code == 200, address
        shown = answer.content.decode()
        assert secrets_in(shown) == set(), address
        masked += f"{redact.HIDDEN} has no profile" in shown
    assert masked >= 8, "the reasons are there all the same"


def press(person: Client, name: str, pk: int) -> Any:
    address = reverse(f"admin:audiences_{name}", args=[pk])
    return person.post(address, {"seen": person.get(address).context["hidden"]["seen"]}, follow=True)


@pytest.mark.parametrize("role", ROLES)
def test_no_dialog_and_no_download_shows_customers_quoted_by_odp(shop: Install, role: str) -> None:
    person = someone(role)
    download: Any = person.post(reverse("admin:audiences_delivery_csv"))
    lines = b"".join(download.streaming_content).decode()
    assert f"{redact.HIDDEN} has no profile" in lines
    assert secrets_in(lines) == set()
    if role == "viewer":
        return
    item = Parked.objects.get()
    for name, pk in (("parked_release", item.pk), ("install_retry", shop.pk)):
        dialog = person.get(reverse(f"admin:audiences_{name}", args=[pk])).content.decode()
        assert f"{redact.HIDDEN} has no profile" in dialog
        assert secrets_in(dialog) == set(), name


def test_no_command_prints_customers_quoted_by_odp(shop: Install) -> None:
    for more in ([], ["--json"]):
        out = StringIO()
        call_command("lane_status", *more, stdout=out)
        assert "has no profile" in out.getvalue()
        assert secrets_in(out.getvalue()) == set()


def test_an_admin_who_reveals_sees_the_whole_answer_once(shop: Install) -> None:
    person, delivery = someone("admin"), Delivery.objects.get()
    shown = press(person, "delivery_reveal", delivery.pk).content.decode()
    assert secrets_in(shown) == {EMAIL, QUOTED, BARE}
    again = person.get(reverse("admin:audiences_delivery_change", args=[delivery.pk])).content.decode()
    assert secrets_in(again) == set()


def test_a_definition_that_is_not_ours_is_shown_whole(shop: Install) -> None:
    """An operator has to read it before pressing Accept definition."""
    gold = Audience.objects.first()
    assert gold is not None
    definition = {"root_condition": {"is_list_member": {"list": "vip gold"}, "other": {"comparator": "GT"}}}
    refusal = segments.foreign_definition(gold.odp_id, definition, "lytics_gold = true")
    holds.block_audience(gold.pk, refusal.reason)
    page = someone("viewer").get(reverse("admin:audiences_audience_change", args=[gold.pk])).content.decode()
    assert "&quot;list&quot;: &quot;vip gold&quot;" in page
    assert "&quot;comparator&quot;: &quot;GT&quot;" in page


def test_errors_of_lytics_are_still_shown(shop: Install) -> None:
    """Our reasons about a call quote field names and no customers."""
    ingest.receive(shop, json.dumps([message(transition("paused"))]).encode())
    item = Parked.objects.get(reason="unknown_event")
    shown = someone("viewer").get(reverse("admin:audiences_parked_change", args=[item.pk])).content.decode()
    assert "paused" in shown


def test_masking_twice_is_masking_once() -> None:
    for said in (ALERTS_LISTED, f'the "{QUOTED}" of it\'s isn\'t "x y"', f"“{QUOTED}” and '{EMAIL}'"):
        assert redact.words(redact.words(said)) == redact.words(said)


@pytest.mark.parametrize(
    "page", ["/admin/audiences/delivery/", "/admin/audiences/delivery/live/", "/admin/audiences/run/"]
)
def test_a_list_of_failures_needs_as_many_queries_for_twenty_as_for_one(shop: Install, page: str) -> None:
    person = someone("admin")

    def queries() -> int:
        with CaptureQueriesContext(connection) as captured:
            shown = person.get(page).content.decode()
        assert "is unknown" in shown
        assert secrets_in(shown) == set()
        return len(captured)

    queries()
    for_one = queries()
    one, run = Delivery.objects.get(), Run.objects.get()
    for _ in range(19):
        one.pk = run.pk = None
        one.save(force_insert=True)
        run.delivery = one
        run.save(force_insert=True)
    assert Delivery.objects.count() == 20
    assert queries() == for_one


def test_the_page_of_an_audience_says_why_its_deliveries_failed(shop: Install) -> None:
    page = reverse("admin:audiences_audience_change", args=[Run.objects.get().audience_id])
    shown = someone("viewer").get(page).content.decode()
    assert "is unknown" in shown
    assert secrets_in(shown) == set()
