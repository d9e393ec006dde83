"""The whole path: calls as Lytics makes them go in at the webhook, and the vendor's own SDK asks ODP who qualifies."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from django.test import Client
from optimizely.optimizely import Optimizely

from audiences.models import Audience, Install, Parked
from audiences.operations import installs
from sandbox.odp.testing import RunningSandbox
from tests.delivering import assert_all_is_well, drain_all
from tests.test_optimizely_sdk_against_sandbox import datafile, user

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def odp() -> Iterator[RunningSandbox]:
    with RunningSandbox("--rate-profiles", "0") as running:
        yield running


@pytest.fixture
def sdk(odp: RunningSandbox) -> Iterator[Optimizely]:
    client = Optimizely(datafile=datafile(odp, odp.public_key))
    yield client
    client.close()


@pytest.fixture
def shop(odp: RunningSandbox) -> Install:
    made = Install(name="Shop", odp_host=odp.url, odp_api_key=odp.private_key, requests_per_second=0)
    installs.create(made)
    return made


def call(install: Install, *messages: Any) -> dict[str, Any]:
    """One call of the webhook job; what it was answered."""
    (token,) = install.tokens.all()
    answered = Client().post(
        f"/webhooks/lytics/{install.public_id}",
        json.dumps(messages),
        content_type="application/json",
        headers={"Authorization": installs.authorization(token)},
    )
    assert answered.status_code == 200
    told: dict[str, Any] = answered.json()
    return told


def message(identifier: str, event: str, at: str) -> dict[str, Any]:
    transition = {"id": "0a" * 16, "slug": "high_value", "event": event, event: at}
    return {
        "id": "15000000000000000007",
        "data": {"_id": identifier, "segment_events": [transition]},
        "meta": {"object": "user", "subscription_id": "5c" * 16, "timestamp": at},
    }


def test_a_customer_who_entered_qualifies_and_one_who_left_does_not(
    odp: RunningSandbox, shop: Install, sdk: Optimizely
) -> None:
    told = call(
        shop,
        message("stays", "enter", "2026-02-01T10:00:00.123456789Z"),
        message("leaves", "enter", "2026-02-01T10:00:00Z"),
        message("leaves", "exit", "2026-02-01T10:00:00.000000001Z"),
        "not a message",
    )
    assert (told["received"], told["queued"], told["parked_reasons"]) == (4, 3, {"not_a_message": 1})
    drain_all(shop)
    stays, leaves, unknown = (user(sdk, name) for name in ("stays", "leaves", "unknown"))
    assert stays.fetch_qualified_segments() is True
    assert stays.get_qualified_segments() == ["lytics_high_value"]
    assert leaves.fetch_qualified_segments() is True
    assert leaves.get_qualified_segments() == []
    assert unknown.fetch_qualified_segments() is False
    assert Parked.objects.get().reason == "not_a_message"
    assert_all_is_well(Audience.objects.get())


def test_calls_that_arrive_late_and_twice_change_nothing(odp: RunningSandbox, shop: Install, sdk: Optimizely) -> None:
    late = message("kim", "enter", "2026-02-01T10:00:00Z")
    call(shop, message("kim", "exit", "2026-02-01T11:00:00Z"))
    drain_all(shop)
    for _ in range(2):
        call(shop, late)
        drain_all(shop)
    kim = user(sdk, "kim")
    assert kim.fetch_qualified_segments() is True
    assert kim.get_qualified_segments() == []
    assert_all_is_well(Audience.objects.get())
