"""The export of a customer has everything that is held about the customer, and nothing about anybody else."""

import json

import pytest

from audiences.insight import customer_export
from audiences.models import Audience, Audit, Delivery, Difference, Install, Membership, Parked, Profile, ScannedMember
from audiences.receiving import ingest
from sandbox.odp.testing import ThreadedSandbox
from tests.delivering import drain_all, enter, happen, make_audience, make_delivered, make_install
from tests.messages import body, message, transition

pytestmark = pytest.mark.django_db(transaction=True)

KIM, LEE = "kim@example.com", "lee@example.com"


@pytest.fixture
def gold(shop: Install) -> Audience:
    return make_delivered(shop, KIM, LEE)


def exported(shop: Install) -> str:
    return json.dumps(customer_export.export(shop, KIM), ensure_ascii=False)


def test_requests_and_responses_are_exported_without_other_people(shop: Install, gold: Audience) -> None:
    Delivery.objects.update(answer=f"{KIM} and {LEE} are invalid")
    (request,) = customer_export.export(shop, KIM)["requests"]
    assert request["delivery"] == Delivery.objects.get().pk
    assert request["outcome"] == "delivered"
    assert [KIM in json.dumps(item) for item in request["items"]] == [True]
    assert LEE not in exported(shop)
    Delivery.objects.update(request=None)
    assert [one["items"] for one in customer_export.export(shop, KIM)["requests"]] == [[]], "its body is deleted"


def test_nothing_of_another_install_is_exported(shop: Install, gold: Audience) -> None:
    before = exported(shop)
    other = make_install(name="Other")
    silver = make_audience(other, "silver")
    enter(silver, KIM)
    Membership.objects.create(audience=silver, identifier=KIM, is_member=True, occurred_ns=1, sequence=1)
    Profile.objects.create(audience=silver, profile=KIM, identifiers=[KIM], occurred_ns=1, has_left=False)
    report = Audit.objects.create(install=other, audience=silver, mode="full", by="sam")
    Difference.objects.create(audit=report, identifier=KIM, kind="not_here", why="")
    ScannedMember.objects.create(audit=report, identifier=KIM)
    Parked.objects.create(install=other, identifier=KIM, reason="refused_by_odp")
    assert exported(shop) == before
    theirs = customer_export.export(other, KIM)
    assert all(theirs[kind] for kind in ("events", "memberships", "profiles", "differences"))


def test_parked_items_that_name_the_customer_are_exported(shop: Install, gold: Audience) -> None:
    for who in (KIM, LEE, f"{KIM}.au"):
        one = message(transition(slug="gold"), who="x")
        one["data"]["email"] = one["data"].pop("_id").replace("x", who)
        ingest.receive(shop, body(one))
    (item,) = customer_export.export(shop, KIM)["parked"]
    assert KIM in item["item"]
    assert f"{KIM}.au" not in exported(shop)


def test_a_parked_text_with_other_people_is_not_exported_itself(shop: Install) -> None:
    ingest.receive(shop, f"{KIM};{LEE}".encode())
    (item,) = customer_export.export(shop, KIM)["parked"]
    assert item["parked"] == Parked.objects.get().pk
    assert item["item"] is None
    assert LEE not in exported(shop)


def test_a_parked_object_with_several_people_is_not_exported_itself(shop: Install) -> None:
    ingest.receive(shop, json.dumps({"events": [], "odd": [{"email": KIM}, {"email": LEE}]}).encode())
    assert LEE not in exported(shop)


def test_what_odp_said_about_a_rejected_change_is_exported(odp: ThreadedSandbox, shop: Install, gold: Audience) -> None:
    odp.fault({"path": "/v3/profiles"}, {"refuse_items": {"identifiers": [KIM], "named": True}})
    happen(gold, (KIM, "exit", 2))
    drain_all(shop)
    (item,) = customer_export.export(shop, KIM)["parked"]
    assert item["audience"] == "lytics_gold"
    assert item["detail"]


def test_lists_that_hold_the_identifier_are_exported_without_the_others(shop: Install, gold: Audience) -> None:
    Profile.objects.create(audience=gold, profile="p-1", identifiers=[KIM, LEE], occurred_ns=1, has_left=False)
    (profile,) = customer_export.export(shop, KIM)["profiles"]
    assert profile["profile"] == "p-1"
    assert LEE not in exported(shop)


def test_members_of_a_scan_under_way_are_exported(shop: Install, gold: Audience) -> None:
    report = Audit.objects.create(install=shop, audience=gold, mode="full", by="sam")
    ScannedMember.objects.create(audit=report, identifier=KIM)
    assert [scanned["audit"] for scanned in customer_export.export(shop, KIM)["scanned"]] == [report.pk]
