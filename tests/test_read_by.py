"""Parked items without an identifier are read by another field that came with them, and the install stays as it is."""

from typing import Any

import pytest
from django.test import Client
from django.urls import reverse

from audiences.insight import evidence
from audiences.models import Event, Install, Membership, Parked, Profile, Resend
from audiences.operations import resends
from audiences.receiving import ingest
from lytics import reasons
from sandbox.odp.testing import ThreadedSandbox
from tests.delivering import drain_all, make_install
from tests.messages import body, message
from tests.test_admin import hidden, press, url
from tests.threads import PATIENCE

pytestmark = pytest.mark.django_db


def nameless(mail: str, **more: Any) -> dict[str, Any]:
    made = message(who=mail, field="email")
    made["data"].update(more)
    return made


@pytest.fixture
def shop(odp: ThreadedSandbox) -> Install:
    made = make_install(odp)
    ingest.receive(made, body(nameless("kim@example.com", _uids=["u-1"]), nameless("alex@example.com")))
    return made


def group(install: Install, reason: str = reasons.NO_IDENTIFIER) -> str:
    return reverse("admin:audiences_parked_release_group", args=[install.pk, reason])


def identifiers() -> list[str]:
    return sorted(Event.objects.values_list("identifier", flat=True))


def test_the_fields_that_came_are_offered_the_most_frequent_first(shop: Install) -> None:
    assert evidence.candidates(shop.pk, reasons.NO_IDENTIFIER) == ["email", "_uids"]


def test_one_item_is_read_by_the_field_chosen_and_the_install_stays(operator: Client, shop: Install) -> None:
    item = Parked.objects.order_by("pk")[0]
    asked = press(operator, "release", item, read_by="_uids")
    assert '<option value="_uids">' in asked
    assert "_id (the install&#x27;s field)" in asked
    item.refresh_from_db()
    shop.refresh_from_db()
    assert (item.resolution, identifiers(), shop.identifier_field) == ("released", ["u-1"], "_id")
    ingest.receive(shop, body(nameless("new@example.com")))
    assert identifiers() == ["u-1"]


def test_all_of_a_reason_are_read_by_the_field_chosen(operator: Client, shop: Install, odp: ThreadedSandbox) -> None:
    asked = operator.get(group(shop)).content.decode()
    assert '<option value="email">' in asked
    answered = operator.post(group(shop), {**hidden(asked), "read_by": "email"}, follow=True)
    assert "Read by the field email." in answered.content.decode()
    assert Resend.objects.get().identifier_field == "email"
    resends.advance_all(shop.pk, seconds=PATIENCE)
    drain_all(shop)
    assert identifiers() == ["alex@example.com", "kim@example.com"]
    assert Membership.objects.filter(is_member=True).count() == 2
    assert not Parked.objects.filter(closed_at=None).exists()
    assert "read by email" in operator.get("/admin/audiences/parked/").content.decode()


def test_an_item_without_the_chosen_field_stays_parked(operator: Client, shop: Install) -> None:
    asked = operator.get(group(shop)).content.decode()
    operator.post(group(shop), {**hidden(asked), "read_by": "_uids"})
    resends.advance_all(shop.pk, seconds=PATIENCE)
    assert identifiers() == ["u-1"]
    assert Parked.objects.filter(closed_at=None).count() == 1
    assert Resend.objects.get().stayed == 1


def test_without_a_choice_the_installs_field_is_read(operator: Client, shop: Install) -> None:
    Install.objects.update(identifier_field="email")
    item = Parked.objects.order_by("pk")[0]
    press(operator, "release", item, read_by="")
    assert identifiers() == ["kim@example.com"]


@pytest.mark.parametrize("field", ["segment_events", "meta", "no such field", "' OR 1=1"])
def test_a_field_that_did_not_come_is_no_choice(operator: Client, shop: Install, field: str) -> None:
    asked = operator.get(group(shop)).content.decode()
    answered = operator.post(group(shop), {**hidden(asked), "read_by": field})
    assert "Select a valid choice" in answered.content.decode()
    press(operator, "release", Parked.objects.order_by("pk")[0], read_by=field)
    assert not Resend.objects.exists()
    assert Parked.objects.filter(closed_at=None).count() == 2


def test_no_field_is_offered_when_none_can_help(operator: Client, shop: Install) -> None:
    Parked.objects.update(reason=reasons.UNKNOWN_SLUG)
    assert "read_by" not in operator.get(url("release", Parked.objects.order_by("pk")[0])).content.decode()
    assert "read_by" not in operator.get(group(shop, reasons.UNKNOWN_SLUG)).content.decode()


def test_values_of_another_field_make_no_known_identifier_of_the_profile_leave(
    operator: Client, odp: ThreadedSandbox
) -> None:
    """With lists that are compared, a value of another field would look like a list without all earlier ones."""
    shop = make_install(odp, identifier_field="_uids", forget_missing_identifiers=True)
    ingest.receive(shop, body(message(who=["u-1", "u-2"], field="_uids") | {}))
    first = message(who=["u-1", "u-2"], field="_uids")
    first["data"]["_id"] = "profile-1"
    later = message(who="kim@example.com", field="email")
    later["data"]["_id"] = "profile-1"
    ingest.receive(shop, body(first))
    before = list(Profile.objects.values_list("profile", "identifiers"))
    assert before
    ingest.receive(shop, body(later))
    press(operator, "release", Parked.objects.get(), read_by="email")
    assert Event.objects.filter(identifier="kim@example.com").count() == 1
    assert not Event.objects.filter(kind=Event.Kind.EXIT).exists()
    assert list(Profile.objects.values_list("profile", "identifiers")) == before
