"""Making an audience in ODP: once, as documented, and never over what is there."""

from collections.abc import Iterator

import pytest

from audiences.models import Audience, Install
from audiences.provision import provision_one
from sandbox.odp.testing import ThreadedSandbox
from tests.delivering import enter, lane_of, make_audience, make_install, sandbox
from tests.threads import together

pytestmark = pytest.mark.django_db(transaction=True)

FIELDS = "/v3/schema/objects/customers/fields"


@pytest.fixture
def odp() -> Iterator[ThreadedSandbox]:
    with sandbox() as running:
        yield running


@pytest.fixture
def shop(odp: ThreadedSandbox) -> Install:
    return make_install(odp)


@pytest.fixture
def gold(shop: Install) -> Audience:
    made = make_audience(shop, "gold", provisioned=False)
    enter(made, "a")
    return made


def is_provisioned(audience: Audience) -> bool:
    return Audience.objects.get(pk=audience.pk).provisioned_at is not None


def test_it_makes_the_field_and_the_audience_with_the_fixed_names(
    odp: ThreadedSandbox, shop: Install, gold: Audience
) -> None:
    assert provision_one(shop.pk)
    status, field = odp.odp("GET", f"{FIELDS}/lytics_gold")
    assert (status, field["type"], field["display_name"]) == (200, "boolean", "Lytics - gold")
    status, segment = odp.odp("GET", "/v3/segments/lytics_gold")
    assert status == 200
    assert (segment["description"], segment["metadata"]["display_name"]) == ("Lytics - gold", "Lytics - gold")
    assert is_provisioned(gold)
    assert lane_of(gold).lease_token is None


def test_what_is_there_already_is_success_and_is_not_overwritten(
    odp: ThreadedSandbox, shop: Install, gold: Audience
) -> None:
    odp.odp("POST", FIELDS, {"name": "lytics_gold", "display_name": "Mine", "type": "boolean"})
    theirs = {
        "description": "Changed by a person",
        "metadata": {"display_name": "Theirs"},
        "definition": {
            "root_condition": {
                "customer_condition": {"customer_filter": {"path_reference": {"value": "customer.lytics_gold"}}}
            }
        },
    }
    odp.odp("PUT", "/v3/segments/lytics_gold", theirs)
    assert provision_one(shop.pk)
    assert is_provisioned(gold)
    assert odp.odp("GET", "/v3/segments/lytics_gold")[1]["description"] == "Changed by a person"


def test_a_field_of_another_type_blocks_with_a_reason(odp: ThreadedSandbox, shop: Install, gold: Audience) -> None:
    odp.odp("POST", FIELDS, {"name": "lytics_gold", "display_name": "Mine", "type": "string"})
    provision_one(shop.pk)
    assert "string, not boolean" in lane_of(gold).block_reason
    assert not is_provisioned(gold)


def test_a_display_name_that_is_taken_does_not_stand_in_the_way(
    odp: ThreadedSandbox, shop: Install, gold: Audience
) -> None:
    odp.odp("POST", FIELDS, {"name": "other", "display_name": "Lytics - gold", "type": "string"})
    assert provision_one(shop.pk)
    assert odp.odp("GET", f"{FIELDS}/lytics_gold")[1]["display_name"] == "Lytics - gold (lytics_gold)"


def test_a_failure_brakes_and_leaves_the_audience_for_the_next_try(
    odp: ThreadedSandbox, shop: Install, gold: Audience
) -> None:
    odp.fault({"path": "/v3/segments", "times": 1}, {"status": 403, "body": {"message": "Forbidden"}})
    assert not provision_one(shop.pk)
    shop.refresh_from_db()
    assert "403" in shop.brake_reason
    assert (is_provisioned(gold), lane_of(gold).lease_token) == (False, None)


def test_two_workers_at_once_make_one(odp: ThreadedSandbox, shop: Install, gold: Audience) -> None:
    together(*[lambda: provision_one(shop.pk)] * 4)
    puts = [request for request in odp.requests() if request["method"] == "PUT"]
    assert len(puts) == 1
    assert is_provisioned(gold)
