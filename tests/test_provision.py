"""Provisioning: an audience is made in ODP before its first delivery, once, by whoever holds its lane."""

import threading
from datetime import timedelta
from typing import Any

import pytest
from django.utils.timezone import now
from pytest_django.fixtures import Settings

from audiences import brake, lanes, naming, operations, provision
from audiences.admin.audiences import Unblock
from audiences.models import Audience, Delivery, Install, Parked
from odp.deadline import TooLateError
from odp.mechanisms import Attribute
from odp.outcomes import Answer, Outcome
from sandbox.odp.testing import ThreadedSandbox
from tests.delivering import (
    assert_all_is_well,
    brake_runs_out,
    claim,
    drain_all,
    enter,
    everything,
    lane_of,
    lease_runs_out,
    make_audience,
    make_install,
    writes,
)
from tests.threads import Gate, start, together
from workers import drain

pytestmark = pytest.mark.django_db
at_once = pytest.mark.django_db(transaction=True)
FIELDS = "/v3/schema/objects/customers/fields"


@pytest.fixture
def shop(odp: ThreadedSandbox, db: None) -> Install:
    return make_install(odp)


def new_audience(install: Install, slug: str = "gold") -> Audience:
    """One with an event, that ODP knows nothing of."""
    audience = make_audience(install, slug, provisioned=False)
    enter(audience, "kim")
    return audience


def is_provisioned(audience: Audience) -> bool:
    return Audience.objects.get(pk=audience.pk).provisioned_at is not None


def made(odp: ThreadedSandbox) -> list[str]:
    """What was created in ODP, in order."""
    return [
        f"{request['method']} {request['path']}"
        for request in odp.requests()
        if request["method"] != "GET" and (request["status"] or 0) < 300 and request["path"] != "/v3/profiles"
    ]


def test_an_audience_is_made_before_anything_of_it_is_delivered(odp: ThreadedSandbox, shop: Install) -> None:
    audience = new_audience(shop)
    drain_all(shop)
    assert [f"{request['method']} {request['path']}" for request in odp.requests()] == [
        f"POST {FIELDS}",
        "GET /v3/segments/lytics_gold",
        "PUT /v3/segments/lytics_gold",
        "POST /v3/profiles",
    ]
    _, segment = odp.odp("GET", "/v3/segments/lytics_gold")
    assert (segment["description"], segment["metadata"]) == ("Lytics - gold", {"display_name": "Lytics - gold"})
    assert odp.members("lytics_gold") == ["kim"]
    assert odp.members("lytics_gold", by="web_user_id") == ["kim"]
    assert_all_is_well(audience)


def test_an_audience_without_events_is_not_made(odp: ThreadedSandbox, shop: Install) -> None:
    make_audience(shop, provisioned=False)
    assert provision.provision_one(shop.pk) is False
    assert odp.requests() == []


def test_its_name_is_the_slug_that_its_id_was_made_from(odp: ThreadedSandbox, shop: Install) -> None:
    audience = new_audience(shop)
    Audience.objects.filter(pk=audience.pk).update(slug="Gold Club!", latest_slug="Platinum")
    drain_all(shop)
    _, segment = odp.odp("GET", "/v3/segments/lytics_gold")
    assert segment["description"] == naming.label("Gold Club!") == "Lytics - Gold Club!"


def test_one_audience_that_waits_does_not_hold_up_those_that_are_there(odp: ThreadedSandbox, shop: Install) -> None:
    odp.odp("POST", FIELDS, {"name": "lytics_new", "display_name": "Other", "type": "string"})
    new, ready = new_audience(shop, "new"), new_audience(shop, "ready")
    drain_all(shop)
    assert (is_provisioned(new), is_provisioned(ready)) == (False, True)
    assert odp.members("lytics_ready") == ["kim"]


def test_each_of_many_is_made_and_another_worker_is_woken_for_the_rest(
    odp: ThreadedSandbox, shop: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    woken: list[int] = []
    monkeypatch.setattr(provision, "wake", woken.append)
    audiences = [new_audience(shop, slug) for slug in "abc"]
    for _ in audiences:
        assert provision.provision_one(shop.pk) is True
    assert provision.provision_one(shop.pk) is False
    assert woken == [shop.pk, shop.pk]
    assert all(map(is_provisioned, audiences))


# --- Trouble -------------------------------------------------------------------------------------------------


def test_a_field_of_another_type_blocks_the_audience_with_the_reason(odp: ThreadedSandbox, shop: Install) -> None:
    odp.odp("POST", FIELDS, {"name": "lytics_gold", "display_name": "Other", "type": "string"})
    audience = new_audience(shop)
    drain_all(shop)
    lane = lane_of(audience)
    assert "The customer field lytics_gold is there with type string, not boolean." in lane.block_reason
    assert (lane.delivered_sequence, lane.lease_token, is_provisioned(audience)) == (0, None, False)
    assert writes(odp) == []
    assert not Install.objects.get().brake_failures


def test_a_blocked_audience_is_made_and_delivered_once_a_person_mended_it(odp: ThreadedSandbox, shop: Install) -> None:
    odp.odp("POST", FIELDS, {"name": "lytics_gold", "display_name": "Other", "type": "string"})
    audience = new_audience(shop)
    drain_all(shop)
    odp.reset()
    enter(audience, "lee")
    assert drain_all(shop) == 0
    lanes.unblock(lane_of(audience))
    drain_all(shop)
    assert odp.members("lytics_gold") == ["kim", "lee"]
    assert_all_is_well(audience)


@pytest.mark.parametrize(
    ("then", "slow"), [({"status": 503}, False), ({"status": 403}, True), ({"close": "before"}, False)]
)
def test_trouble_brakes_the_install_and_blames_no_audience(
    odp: ThreadedSandbox, shop: Install, settings: Settings, then: dict[str, Any], slow: bool
) -> None:
    settings.PROBE_SECONDS = 600
    audience = new_audience(shop)
    odp.fault({"path": "/v3/segments"}, then)
    drain_all(shop)
    install, lane = Install.objects.get(), lane_of(audience)
    assert install.brake_failures == 1
    assert install.brake_since_at is not None
    assert install.brake_until_at is not None
    assert ((install.brake_until_at - install.brake_since_at).total_seconds() > 500) is slow
    assert (lane.blocked_at, lane.lease_token, is_provisioned(audience)) == (None, None, False)
    odp.clear_faults()
    brake_runs_out(install)
    drain_all(shop)
    assert Install.objects.get().brake_failures == 0
    assert odp.members("lytics_gold") == ["kim"]
    assert_all_is_well(audience)


def test_after_trouble_a_provisioning_that_went_well_releases_the_brake(odp: ThreadedSandbox, shop: Install) -> None:
    new_audience(shop)
    brake.apply(shop, Answer(Outcome.RETRY_LATER, "503"))
    brake_runs_out(shop)
    assert provision.provision_one(shop.pk) is True
    assert Install.objects.get().brake_failures == 0


def test_a_gate_that_stays_shut_gives_the_lane_back_and_brakes_nobody(odp: ThreadedSandbox, shop: Install) -> None:
    audience = new_audience(shop)

    def gate(install: Install, path: str, until: float) -> None:
        assert (install, path) == (shop, FIELDS)
        raise TooLateError

    assert provision.provision_one(shop.pk, gate=gate) is False
    assert (lane_of(audience).lease_token, Install.objects.get().brake_failures) == (None, 0)
    assert odp.requests() == []


def test_all_calls_together_are_over_before_the_lease_is(
    odp: ThreadedSandbox, shop: Install, settings: Settings
) -> None:
    settings.DELIVERY_DEADLINE_SECONDS = 0.3
    audience = new_audience(shop)
    # Each call by itself would be in time.
    odp.fault({}, {"delay_seconds": 0.2})
    drain_all(shop)
    assert not is_provisioned(audience)
    assert "in time" in Install.objects.get().brake_reason
    assert not any(request["method"] == "PUT" for request in odp.requests())


# --- Two at once ---------------------------------------------------------------------------------------------


@at_once
def test_two_workers_at_once_make_one(odp: ThreadedSandbox, shop: Install) -> None:
    audience = new_audience(shop)
    begin = Gate(4).after(lambda: None)

    def worker() -> bool:
        begin()
        return provision.provision_one(shop.pk)

    assert sorted(together(*[worker] * 4)) == [False, False, False, True]
    assert made(odp) == [f"POST {FIELDS}", "PUT /v3/segments/lytics_gold"]
    assert is_provisioned(audience)


@at_once
def test_while_one_worker_makes_it_no_other_claims_its_lane(
    odp: ThreadedSandbox, shop: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    audience = new_audience(shop)
    ensuring, go_on = threading.Event(), threading.Event()
    ensure = Attribute.ensure

    def hold(*args: Any, **kwargs: Any) -> Any:
        ensuring.set()
        go_on.wait(30)
        return ensure(*args, **kwargs)

    monkeypatch.setattr(Attribute, "ensure", hold)
    (first,) = start(lambda: provision.provision_one(shop.pk))
    ensuring.wait(30)
    assert provision.provision_one(shop.pk) is False
    assert lanes.claim(shop.pk) is None
    assert drain.turn(shop.pk) is False
    go_on.set()
    assert first.result(30) is True
    assert is_provisioned(audience)


@at_once
def test_a_worker_that_lost_its_lease_in_the_middle_does_no_harm(
    odp: ThreadedSandbox, shop: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It slept between the field and the segment; another has made the audience and delivers to it."""
    audience = new_audience(shop)
    ensure = Attribute.ensure

    def sleep_first(*args: Any, **kwargs: Any) -> Any:
        monkeypatch.setattr(Attribute, "ensure", ensure)
        lease_runs_out(audience)
        assert provision.provision_one(shop.pk) is True
        lease = claim(shop)
        problem = ensure(*args, **kwargs)
        assert lane_of(audience).lease_token == lease.token
        return problem

    monkeypatch.setattr(Attribute, "ensure", sleep_first)
    assert provision.provision_one(shop.pk) is True
    assert made(odp) == [f"POST {FIELDS}", "PUT /v3/segments/lytics_gold"]
    assert lane_of(audience).lease_token is not None, "the delivery's lease is not the late worker's to give back"


def test_a_late_refusal_blocks_nothing(odp: ThreadedSandbox, shop: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    audience = new_audience(shop)
    odp.odp("POST", FIELDS, {"name": "lytics_gold", "display_name": "Other", "type": "string"})
    ensure = Attribute.ensure

    def sleep_after(*args: Any, **kwargs: Any) -> Any:
        problem = ensure(*args, **kwargs)
        lease_runs_out(audience)
        claim(shop, provisioned=False)
        before.update(everything())
        return problem

    before: dict[str, list[Any]] = {}
    monkeypatch.setattr(Attribute, "ensure", sleep_after)
    drain_once_quietly(shop)
    assert everything() == before


def drain_once_quietly(install: Install) -> None:
    assert drain.turn(install.pk) in (True, False)
    assert not Delivery.objects.exists()


def test_unblock_makes_again_what_somebody_has_deleted_in_odp(odp: ThreadedSandbox, shop: Install) -> None:
    gold = new_audience(shop)
    drain_all(shop)
    odp.reset()
    enter(gold, "lee", "sam")
    drain_all(shop)
    assert "lytics_gold" in lane_of(gold).block_reason
    assert Unblock().do(Audience.objects.select_related("lane").get(pk=gold.pk), by="kim", answers={})
    drain_all(shop)
    assert odp.members("lytics_gold") == ["lee", "sam"]
    assert_all_is_well(gold)


def test_so_does_a_release_of_the_one_change_that_was_refused_for_it(odp: ThreadedSandbox, shop: Install) -> None:
    gold = new_audience(shop)
    drain_all(shop)
    odp.reset()
    enter(gold, "lee")
    drain_all(shop)
    Audience.objects.update(provisioned_at=now() - timedelta(hours=1))
    assert operations.release(Parked.objects.values_list("pk", flat=True), by="kim") == (1, 0)
    drain_all(shop)
    assert odp.members("lytics_gold") == ["lee"]
    assert_all_is_well(gold)


def test_releasing_many_looks_once(odp: ThreadedSandbox, shop: Install) -> None:
    gold = new_audience(shop)
    drain_all(shop)
    provision.look_again(gold.pk, unless_within=timedelta(minutes=1))
    assert is_provisioned(gold)
    provision.look_again(gold.pk)
    assert not is_provisioned(gold)
