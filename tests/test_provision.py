"""Provisioning: an audience is created in ODP before its first delivery, once, by the worker that leases it."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import pytest
from django.db import transaction
from django.test import Client as DjangoClient
from django.utils.timezone import now
from pytest_django.fixtures import Settings

from audiences import naming
from audiences.admin.audience_verbs import Unblock
from audiences.admin.definition_verbs import AcceptDefinition
from audiences.delivery import backoff, claims, holds, provision
from audiences.insight import state
from audiences.models import Audience, Delivery, Install, Lane, Parked
from audiences.operations import parked_items, resends
from audiences.receiving import ingest
from lytics.facts import Fact, Kind
from odp.mechanisms import Attribute, Refusal
from odp.outcomes import Answer, Outcome
from outgoing.deadline import TooLateError
from sandbox.odp.testing import ThreadedSandbox
from tests.delivering import (
    assert_all_is_well,
    backoff_runs_out,
    claim,
    drain_all,
    enter,
    everything,
    hold_runs_out,
    lane_of,
    make_audience,
    make_install,
    making_runs_out,
    time_passes,
    writes,
)
from tests.test_admin import press
from tests.threads import PATIENCE, Gate, eventually, start, together
from workers import drain

pytestmark = pytest.mark.django_db
at_once = pytest.mark.django_db(transaction=True)
SECOND = 10**9
FIELDS = "/v3/schema/objects/customers/fields"


def new_audience(install: Install, slug: str = "gold") -> Audience:
    """One with an event, that ODP knows nothing of."""
    audience = make_audience(install, slug, provisioned=False)
    enter(audience, "kim")
    return audience


def is_provisioned(audience: Audience) -> bool:
    return Audience.objects.get(pk=audience.pk).provisioned_at is not None


def made(odp: ThreadedSandbox) -> list[str]:
    """The objects created in ODP, in order."""
    return [
        f"{request['method']} {request['path']}"
        for request in odp.requests()
        if request["method"] != "GET" and (request["status"] or 0) < 300 and request["path"] != "/v3/profiles"
    ]


def test_an_audience_is_made_before_anything_of_it_is_delivered(odp: ThreadedSandbox, shop: Install) -> None:
    audience = new_audience(shop)
    drain_all(shop)
    assert [f"{request['method']} {request['path']}" for request in odp.requests()] == [
        f"GET {FIELDS}/lytics_gold",
        f"POST {FIELDS}",
        f"GET {FIELDS}/lytics_gold",
        "GET /v3/segments/lytics_gold",
        "PUT /v3/segments/lytics_gold",
        "GET /v3/segments/lytics_gold",
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


def test_an_audience_that_waits_does_not_delay_those_that_exist(odp: ThreadedSandbox, shop: Install) -> None:
    odp.odp("POST", FIELDS, {"name": "lytics_new", "display_name": "Other", "type": "string"})
    new, ready = new_audience(shop, "new"), new_audience(shop, "ready")
    drain_all(shop)
    assert (is_provisioned(new), is_provisioned(ready)) == (False, True)
    assert odp.members("lytics_ready") == ["kim"]


def test_each_of_many_is_made_and_another_worker_is_woken_for_the_rest(
    odp: ThreadedSandbox, shop: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    woken: list[int] = []
    monkeypatch.setattr(provision, "wake_making", woken.append)
    audiences = [new_audience(shop, slug) for slug in "abc"]
    for _ in audiences:
        assert provision.provision_one(shop.pk) is True
    assert provision.provision_one(shop.pk) is False
    assert woken == [shop.pk, shop.pk]
    assert all(map(is_provisioned, audiences))


# --- Trouble --------------------------------------------------------------------------------------------------


def test_a_field_of_another_type_blocks_the_audience_with_the_reason(odp: ThreadedSandbox, shop: Install) -> None:
    odp.odp("POST", FIELDS, {"name": "lytics_gold", "display_name": "Other", "type": "string"})
    audience = new_audience(shop)
    drain_all(shop)
    lane = lane_of(audience)
    assert "The customer field lytics_gold is there with type string, not boolean." in lane.block_reason
    assert (lane.delivered_sequence, lane.lease_token, is_provisioned(audience)) == (0, None, False)
    assert writes(odp) == []
    assert not Install.objects.get().backoff_failures


def test_a_blocked_audience_is_made_and_delivered_once_a_person_mended_it(odp: ThreadedSandbox, shop: Install) -> None:
    odp.odp("POST", FIELDS, {"name": "lytics_gold", "display_name": "Other", "type": "string"})
    audience = new_audience(shop)
    drain_all(shop)
    odp.reset()
    enter(audience, "lee")
    assert drain_all(shop) == 0
    holds.unblock(lane_of(audience))
    drain_all(shop)
    assert odp.members("lytics_gold") == ["kim", "lee"]
    assert_all_is_well(audience)


TROUBLE = {
    "503": {"status": 503},
    "429": {"status": 429},
    "a refused key": {"status": 403},
    "a connection that ends": {"close": "before"},
    "a maintenance page": {
        "status": 200,
        "body": "Service is under maintenance",
        "headers": {"Content-Type": "text/plain"},
    },
}


@pytest.mark.parametrize("then", TROUBLE.values(), ids=TROUBLE.keys())
def test_a_failed_creation_puts_the_audience_on_hold_and_no_install(
    odp: ThreadedSandbox, shop: Install, settings: Settings, then: dict[str, Any]
) -> None:
    settings.BACKOFF_FIXED_SECONDS = settings.BACKOFF_FIRST_SECONDS = 600
    audience = new_audience(shop)
    odp.fault({"path": "/v3/segments"}, then)
    drain_all(shop)
    audience.refresh_from_db()
    assert (audience.hold_failures, audience.making_token, is_provisioned(audience)) == (1, None, False)
    assert audience.hold_reason
    assert Install.objects.get().backoff_failures == 0
    assert lane_of(audience).blocked_at is None
    odp.clear_faults()
    hold_runs_out(shop)
    drain_all(shop)
    audience.refresh_from_db()
    assert (audience.hold_failures, audience.hold_until_at, audience.hold_reason) == (0, None, "")
    assert odp.members("lytics_gold") == ["kim"]
    assert_all_is_well(audience)


def test_a_field_whose_type_can_not_be_stored_blocks_its_audience(odp: ThreadedSandbox, shop: Install) -> None:
    odp.fault({"path": FIELDS}, {"status": 200, "body": r'{"type": "\ud83d\u0000"}'})
    audience = new_audience(shop)
    drain_all(shop)
    assert "with type ?, not boolean" in lane_of(audience).block_reason
    assert Install.objects.get().backoff_failures == 0


@pytest.mark.parametrize(
    "stored", [None, Refusal("half an emoji: \ud83d")], ids=["in making it", "in storing the result"]
)
def test_a_fault_of_ours_puts_that_audience_on_hold_and_no_other(
    odp: ThreadedSandbox, shop: Install, monkeypatch: pytest.MonkeyPatch, stored: Refusal | None
) -> None:
    ensure = Attribute.ensure

    def fails(self: Attribute, client: Any, odp_id: str, *args: Any, **kwargs: Any) -> Any:
        if odp_id != "lytics_odd":
            return ensure(self, client, odp_id, *args, **kwargs)
        if stored is None:
            raise KeyError("no such thing")
        return stored

    monkeypatch.setattr(Attribute, "ensure", fails)
    odd, gold = new_audience(shop, "odd"), new_audience(shop)
    drain_all(shop)
    odd.refresh_from_db()
    assert (odd.hold_failures, odd.hold_reason.startswith("Unexpected error: '•••'")) == (1, True)
    assert Install.objects.get().backoff_failures == 0
    assert_all_is_well(gold)


def test_its_pauses_grow_and_a_rejected_key_is_probed_slowly(
    odp: ThreadedSandbox, shop: Install, monkeypatch: pytest.MonkeyPatch, settings: Settings
) -> None:
    monkeypatch.setattr("audiences.delivery.backoff.random.uniform", lambda low, high: high)
    settings.BACKOFF_FIXED_SECONDS = 1000
    audience = new_audience(shop)
    pauses, since = [], set()
    for status in (503, 503, 503, 403):
        odp.clear_faults()
        odp.fault({"path": "/v3/segments"}, {"status": status})
        hold_runs_out(shop)
        assert provision.provision_one(shop.pk) is True
        assert provision.provision_one(shop.pk) is False, "its next try is not due"
        audience.refresh_from_db()
        assert audience.hold_until_at is not None
        pauses.append(round((audience.hold_until_at - now()).total_seconds(), 0))
        since.add(audience.hold_since_at)
    assert len(since) == 1, "on hold since the first failure"
    first = settings.BACKOFF_FIRST_SECONDS
    assert pauses == [round(first), round(2 * first), round(4 * first), 1000]


def test_a_making_that_goes_well_says_nothing_of_deliveries(odp: ThreadedSandbox, shop: Install) -> None:
    new_audience(shop)
    backoff.apply(shop, Answer(Outcome.RETRY_LATER, "503", retry_after=600))
    assert provision.provision_one(shop.pk) is False, "nothing goes to an account in backoff"
    backoff_runs_out(shop)
    assert provision.provision_one(shop.pk) is True
    assert Install.objects.get().backoff_failures == 1
    drain_all(shop)
    assert Install.objects.get().backoff_failures == 0


def test_a_creation_uses_no_slot_of_a_delivery(odp: ThreadedSandbox) -> None:
    shop = make_install(odp, max_in_flight=1)
    new_audience(shop, "new")
    enter(make_audience(shop, "known"), "kim")
    for failures in (0, 1):
        making = provision.claim(shop.pk)
        assert making is not None
        lease = claim(shop)
        assert [span.odp_id for span in lease.spans] == ["lytics_known"], failures
        holds.give_back(lease)
        making_runs_out(making.audience)
        backoff.apply(shop, Answer(Outcome.RETRY_LATER, "503"))
        backoff_runs_out(shop)


HOUR, STEP = 3600, 300
DOWN = {
    "503": {"status": 503},
    "a refused key": {"status": 403},
    "hanging": {"delay_seconds": 5},
    "gone": {"close": "before"},
}


@pytest.mark.parametrize("then", [None, *DOWN.values()], ids=["well", *DOWN.keys()])
@pytest.mark.parametrize("path", ["/v3/schema", "/v3/segments"])
def test_an_hour_without_the_schema_api_does_not_delay_existing_audiences(
    odp: ThreadedSandbox, shop: Install, settings: Settings, path: str, then: dict[str, Any] | None
) -> None:
    """One new and twenty known ones: the known ones of each five minutes are delivered by the first turn."""
    step = STEP if then is None or "delay_seconds" not in then else 3 * STEP
    new = new_audience(shop, "new")
    known = [make_audience(shop, f"known{number}") for number in range(20)]
    for audience in known:
        assert odp.odp("POST", FIELDS, {"name": audience.odp_id, "display_name": audience.odp_id, "type": "boolean"})
    if then is not None:
        odp.fault({"path": path}, then)
        settings.DELIVERY_DEADLINE_SECONDS = 0.5 if "delay_seconds" in then else settings.DELIVERY_DEADLINE_SECONDS
    for round_ in range(HOUR // step):
        before = len(writes(odp))
        with transaction.atomic():
            facts = [Fact("", "", f"u{round_}", Kind.ENTER, 1)]
            ingest.append({audience.pk: facts for audience in known}, received_at=now())
        with monkeypatched_deadline(settings):
            assert drain.turn(shop.pk) is True
        assert len(writes(odp)) == before + 1
        delivered = Lane.objects.filter(audience__in=known).values_list("delivered_sequence", flat=True)
        assert set(delivered) == {round_ + 1}
        drain_all(shop)
        assert Install.objects.get().backoff_failures == 0
        time_passes(step)
    assert is_provisioned(new) is (then is None)
    odp.clear_faults()
    hold_runs_out(shop)
    drain_all(shop)
    assert odp.members("lytics_new") == ["kim"]
    assert_all_is_well(new, *known)


@contextmanager
def monkeypatched_deadline(settings: Settings) -> Iterator[None]:
    """A delivery gets the time that it has outside of this test, so that a busy machine fails none."""
    short, settings.DELIVERY_DEADLINE_SECONDS = settings.DELIVERY_DEADLINE_SECONDS, 8
    yield
    settings.DELIVERY_DEADLINE_SECONDS = short


def test_the_audience_with_the_fewest_failures_is_tried_next(odp: ThreadedSandbox, shop: Install) -> None:
    first, second = new_audience(shop, "first"), new_audience(shop, "second")
    odp.fault({"path": f"{FIELDS}/lytics_first"}, {"status": 503})
    assert provision.provision_one(shop.pk) is True
    hold_runs_out(shop)
    assert provision.provision_one(shop.pk) is True
    assert (is_provisioned(first), is_provisioned(second)) == (False, True)


def test_fewer_failures_count_more_than_a_longer_wait(odp: ThreadedSandbox, shop: Install) -> None:
    often, once = new_audience(shop, "often"), new_audience(shop, "once")
    held = {"hold_reason": "503", "hold_since_at": now() - timedelta(hours=1)}
    for audience, failures, minutes in ((often, 9, 2), (once, 1, 1)):
        until = now() - timedelta(minutes=minutes)
        Audience.objects.filter(pk=audience.pk).update(hold_failures=failures, hold_until_at=until, **held)
    assert provision.provision_one(shop.pk) is True
    assert (is_provisioned(often), is_provisioned(once)) == (False, True)


def test_the_sweep_finds_one_to_be_made_and_none_that_is_on_hold(odp: ThreadedSandbox, shop: Install) -> None:
    audience = new_audience(shop)
    assert claims.due() == [shop.pk]
    Audience.objects.update(
        hold_failures=1, hold_reason="503", hold_since_at=now(), hold_until_at=now() + timedelta(minutes=1)
    )
    assert claims.due() == []
    assert provision.try_now(install_id=shop.pk, audience_id=audience.pk)
    assert claims.due() == [shop.pk]
    assert not provision.try_now(install_id=shop.pk, audience_id=audience.pk + 1)


def test_the_audience_of_a_paused_lane_is_not_made_until_a_person_resumes_it(
    odp: ThreadedSandbox, shop: Install
) -> None:
    audience = new_audience(shop)
    holds.pause(lane_of(audience), by="anna", reason="not yet")
    assert claims.due() == []
    assert provision.provision_one(shop.pk) is False
    assert odp.requests() == []
    holds.resume(lane_of(audience))
    assert provision.provision_one(shop.pk) is True


# --- Looking again --------------------------------------------------------------------------------------------


@pytest.fixture
def made_ones(odp: ThreadedSandbox, shop: Install) -> tuple[Audience, Audience]:
    gold, other = new_audience(shop), new_audience(shop, "other")
    drain_all(shop)
    return gold, other


def test_a_check_is_requested_for_one_audience_only(made_ones: tuple[Audience, Audience]) -> None:
    gold, other = made_ones
    provision.look_again(gold.pk)
    gold.refresh_from_db()
    other.refresh_from_db()
    assert (gold.look_asked_at is not None, other.look_asked_at) == (True, None)


@pytest.mark.parametrize("then", TROUBLE.values(), ids=TROUBLE.keys())
def test_an_audience_that_can_not_be_checked_continues_delivering(
    odp: ThreadedSandbox, shop: Install, settings: Settings, made_ones: tuple[Audience, Audience], then: dict[str, Any]
) -> None:
    settings.BACKOFF_FIXED_SECONDS = settings.BACKOFF_FIRST_SECONDS = 600
    gold, _ = made_ones
    odp.fault({"path": "/v3/segments"}, then)
    provision.look_again(gold.pk)
    enter(gold, "lee")
    assert claims.claim(shop.pk) is None, "the look comes first"
    drain_all(shop)
    assert odp.members("lytics_gold") == ["kim", "lee"]
    gold.refresh_from_db()
    assert (gold.hold_failures, gold.look_asked_at is None) == (1, False)
    odp.clear_faults()
    hold_runs_out(shop)
    drain_all(shop)
    gold.refresh_from_db()
    assert (gold.hold_failures, gold.look_asked_at) == (0, None)
    assert_all_is_well(gold)


def test_a_check_that_no_worker_starts_delays_deliveries_for_seconds_only(
    shop: Install, made_ones: tuple[Audience, Audience]
) -> None:
    gold, _ = made_ones
    provision.look_again(gold.pk)
    enter(gold, "lee")
    assert provision.claim(shop.pk) is not None
    assert claims.claim(shop.pk) is None
    time_passes(claims.LOOK_SECONDS)
    assert claims.claim(shop.pk) is not None


def test_a_check_requested_during_another_check_is_still_done(
    odp: ThreadedSandbox, shop: Install, made_ones: tuple[Audience, Audience], monkeypatch: pytest.MonkeyPatch
) -> None:
    gold, _ = made_ones
    ensure = Attribute.ensure

    def ask_again(*args: Any, **kwargs: Any) -> Any:
        monkeypatch.setattr(Attribute, "ensure", ensure)
        problem = ensure(*args, **kwargs)
        Audience.objects.filter(pk=gold.pk).update(look_asked_at=now() + timedelta(seconds=1))
        return problem

    monkeypatch.setattr(Attribute, "ensure", ask_again)
    provision.look_again(gold.pk)
    assert provision.provision_one(shop.pk) is True
    assert provision.provision_one(shop.pk) is True
    assert provision.provision_one(shop.pk) is False


@pytest.mark.parametrize("mechanism", ["attribute", "list", "passthrough"])
def test_resync_creates_again_what_was_deleted_in_odp(odp: ThreadedSandbox, settings: Settings, mechanism: str) -> None:
    settings.ODP_PASSTHROUGH_DEFINITION = {"passthrough": {"audience_id": "lytics_gold"}}
    shop = make_install(odp, mechanism=mechanism)
    gold = make_audience(shop, provisioned=False)
    enter(gold, "kim", at=SECOND)
    drain_all(shop)
    assert odp.odp("DELETE", "/v3/segments/lytics_gold")[0] == 200
    enter(gold, "lee", at=2 * SECOND)
    drain_all(shop)
    assert odp.odp("GET", "/v3/segments/lytics_gold")[0] == 404
    assert resends.resync(gold, by="kim", reason="it was deleted")
    resends.advance_all(shop.pk, seconds=PATIENCE)
    drain_all(shop)
    assert odp.odp("GET", "/v3/segments/lytics_gold")[0] == 200
    assert odp.members("lytics_gold") == ["kim", "lee"]
    assert_all_is_well(gold)


def test_another_definition_blocks_until_a_person_accepts_it(odp: ThreadedSandbox, shop: Install) -> None:
    """The mechanism was changed: the segment in ODP reads a field that is no longer written."""
    gold = new_audience(shop)
    drain_all(shop)
    Install.objects.update(mechanism="list")
    enter(gold, "lee")
    provision.look_again(gold.pk)
    drain_all(shop)
    lane = lane_of(gold)
    assert "ODP has customer.lytics_gold = true" in lane.block_reason
    assert "would write member of the list lytics_gold" in lane.block_reason
    assert lane.delivered_sequence == 1
    gold = Audience.objects.select_related("lane", "install").get(pk=gold.pk)
    assert AcceptDefinition().offered(gold)
    assert AcceptDefinition().do(gold, by="ada", answers={}) is not None
    assert AcceptDefinition().do(gold, by="ada", answers={}) is None, "the page is stale"
    drain_all(shop)
    assert_all_is_well(gold)
    assert "a person has accepted it" in " ".join(state.warnings(lane_of(gold)))


@pytest.mark.parametrize("how", ["resync", "unblock"])
def test_a_definition_that_a_person_changed_in_odp_is_noticed(
    odp: ThreadedSandbox, shop: Install, operator: DjangoClient, how: str
) -> None:
    gold = new_audience(shop)
    drain_all(shop)
    odp.odp("POST", "/v3/lists", {"name": "newsletter"})
    definition = {
        "root_condition": {"customer_condition": {"customer_filter": {"is_list_member": {"list": "newsletter"}}}}
    }
    assert odp.odp("DELETE", "/v3/segments/lytics_gold")[0] == 200
    odp.odp("PUT", "/v3/segments/lytics_gold", {"description": "x", "metadata": {}, "definition": definition})
    if how == "resync":
        assert resends.resync(gold, by="kim", reason="to look")
        resends.advance_all(shop.pk, seconds=PATIENCE)
    else:
        holds.block_audience(gold.pk, "something else")
        press(operator, "unblock", gold)
    drain_all(shop)
    assert "ODP has member of the list newsletter" in lane_of(gold).block_reason


def test_a_decision_to_replace_a_definition_outlives_another_refusal(odp: ThreadedSandbox, shop: Install) -> None:
    """A field of another type blocks the audience. The decision is still stored when the type has been corrected."""
    gold = new_audience(shop)
    odp.odp("POST", FIELDS, {"name": "lytics_gold", "display_name": "Other", "type": "string"})
    Audience.objects.filter(pk=gold.pk).update(replaced_definition="a digest")
    drain_all(shop)
    gold.refresh_from_db()
    assert lane_of(gold).blocked_at is not None
    assert gold.replaced_definition == "a digest"


def test_a_decision_to_replace_a_definition_takes_back_an_earlier_acceptance(shop: Install) -> None:
    gold = make_audience(shop)
    Audience.objects.update(accepted_definition="earlier", foreign_definition="present")
    assert not provision.replace(gold.pk, "earlier")
    assert provision.replace(gold.pk, "present")
    gold.refresh_from_db()
    assert (gold.replaced_definition, gold.accepted_definition) == ("present", "")


def test_exactly_one_foreign_definition_is_accepted(odp: ThreadedSandbox, shop: Install) -> None:
    gold = new_audience(shop)
    odp.odp("POST", "/v3/lists", {"name": "newsletter"})
    definition = {
        "root_condition": {"customer_condition": {"customer_filter": {"is_list_member": {"list": "newsletter"}}}}
    }
    odp.odp("PUT", "/v3/segments/lytics_gold", {"description": "x", "metadata": {}, "definition": definition})
    drain_all(shop)
    gold.refresh_from_db()
    assert not provision.accept(gold.pk, "")
    assert not provision.accept(gold.pk, "another")
    assert provision.accept(gold.pk, gold.foreign_definition)
    assert not provision.accept(gold.pk, "")
    assert Audience.objects.get().accepted_definition == gold.foreign_definition
    holds.unblock(lane_of(gold))
    drain_all(shop)
    assert_all_is_well(gold)
    odp.odp("POST", "/v3/lists", {"name": "buyers"})
    definition["root_condition"]["customer_condition"]["customer_filter"]["is_list_member"]["list"] = "buyers"
    odp.odp("PUT", "/v3/segments/lytics_gold", {"description": "x", "metadata": {}, "definition": definition})
    provision.look_again(gold.pk)
    drain_all(shop)
    assert "member of the list buyers" in lane_of(gold).block_reason


def test_a_closed_rate_limiter_releases_the_creation_without_a_failure(odp: ThreadedSandbox, shop: Install) -> None:
    audience = new_audience(shop)

    def gate(install: Install, path: str, until: float) -> None:
        assert (install, path) == (shop, f"{FIELDS}/lytics_gold")
        raise TooLateError

    assert provision.provision_one(shop.pk, gate=gate) is False
    audience.refresh_from_db()
    assert (audience.making_token, audience.hold_failures, Install.objects.get().backoff_failures) == (None, 0, 0)
    assert odp.requests() == []


def test_all_calls_together_are_over_before_the_lease_is(
    odp: ThreadedSandbox, shop: Install, settings: Settings
) -> None:
    settings.DELIVERY_DEADLINE_SECONDS = 0.3
    audience = new_audience(shop)
    # Each single call would be in time.
    odp.fault({}, {"delay_seconds": 0.2})
    assert provision.provision_one(shop.pk) is True
    assert not is_provisioned(audience)
    assert "in time" in Audience.objects.get().hold_reason
    assert not any(request["method"] == "PUT" for request in odp.requests())


# --- Two at once ----------------------------------------------------------------------------------------------


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
        go_on.wait(PATIENCE)
        return ensure(*args, **kwargs)

    monkeypatch.setattr(Attribute, "ensure", hold)
    (first,) = start(lambda: provision.provision_one(shop.pk))
    ensuring.wait(PATIENCE)
    assert provision.provision_one(shop.pk) is False
    assert claims.claim(shop.pk) is None
    assert drain.turn(shop.pk) is False
    go_on.set()
    assert first.result(PATIENCE) is True
    assert is_provisioned(audience)


@at_once
def test_twenty_that_hang_leave_the_other_workers_to_deliveries(
    odp: ThreadedSandbox, shop: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = make_audience(shop, "known")
    odp.odp("POST", FIELDS, {"name": "lytics_known", "display_name": "known", "type": "boolean"})
    new = [new_audience(shop, f"new{number}") for number in range(20)]
    hanging, go_on = threading.Semaphore(0), threading.Event()
    ensure = Attribute.ensure

    def hang(*args: Any, **kwargs: Any) -> Any:
        hanging.release()
        go_on.wait(PATIENCE)
        return ensure(*args, **kwargs)

    monkeypatch.setattr(Attribute, "ensure", hang)
    begin = Gate(10).after(lambda: None)

    def worker() -> bool:
        begin()
        return provision.provision_one(shop.pk)

    workers = start(*[worker] * 10)
    for _ in range(claims.MAKING_AT_ONCE):
        assert hanging.acquire(timeout=PATIENCE)
    free = len(workers) - claims.MAKING_AT_ONCE
    eventually(lambda: sum(each.done() for each in workers) == free)
    assert not hanging.acquire(blocking=False)
    enter(known, "lee")
    assert drain.turn(shop.pk) is True
    assert lane_of(known).delivered_sequence == 1
    go_on.set()
    assert sorted(each.result(PATIENCE) for each in workers) == [False] * free + [True] * claims.MAKING_AT_ONCE
    assert sum(map(is_provisioned, new)) == claims.MAKING_AT_ONCE


@at_once
def test_a_worker_that_lost_its_lease_in_the_middle_does_no_harm(
    odp: ThreadedSandbox, shop: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It slept before its first call; another has made the audience and delivers to it."""
    audience = new_audience(shop)
    ensure = Attribute.ensure

    def sleep_first(*args: Any, **kwargs: Any) -> Any:
        monkeypatch.setattr(Attribute, "ensure", ensure)
        making_runs_out(audience)
        assert provision.provision_one(shop.pk) is True
        lease = claim(shop)
        problem = ensure(*args, **kwargs)
        assert lane_of(audience).lease_token == lease.token
        return problem

    monkeypatch.setattr(Attribute, "ensure", sleep_first)
    assert provision.provision_one(shop.pk) is True
    assert made(odp) == [f"POST {FIELDS}", "PUT /v3/segments/lytics_gold"]
    assert lane_of(audience).lease_token is not None, "the delivery's lease is not the late worker's to give back"


@pytest.mark.parametrize("late", ["a refusal", "trouble", "success"])
def test_a_late_answer_changes_nothing(
    odp: ThreadedSandbox, shop: Install, monkeypatch: pytest.MonkeyPatch, late: str
) -> None:
    audience = new_audience(shop)
    if late == "a refusal":
        odp.odp("POST", FIELDS, {"name": "lytics_gold", "display_name": "Other", "type": "string"})
    if late == "trouble":
        odp.fault({"path": FIELDS}, {"status": 503})
    ensure = Attribute.ensure

    def sleep_after(*args: Any, **kwargs: Any) -> Any:
        problem = ensure(*args, **kwargs)
        making_runs_out(audience)
        assert provision.claim(shop.pk) is not None
        before.update(everything())
        return problem

    before: dict[str, list[Any]] = {}
    monkeypatch.setattr(Attribute, "ensure", sleep_after)
    drain_once_quietly(shop)
    assert everything() == before


def drain_once_quietly(install: Install) -> None:
    assert drain.turn(install.pk) in (True, False)
    assert not Delivery.objects.exists()


def test_unblock_creates_again_what_was_deleted_in_odp(odp: ThreadedSandbox, shop: Install) -> None:
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


def test_releasing_a_change_rejected_for_a_deleted_field_creates_the_field_again(
    odp: ThreadedSandbox, shop: Install
) -> None:
    gold = new_audience(shop)
    drain_all(shop)
    odp.reset()
    enter(gold, "lee")
    drain_all(shop)
    Audience.objects.update(provisioned_at=now() - timedelta(hours=1))
    assert parked_items.release(Parked.objects.values_list("pk", flat=True), by="kim") == (1, 0)
    drain_all(shop)
    assert odp.members("lytics_gold") == ["lee"]
    assert_all_is_well(gold)


def test_releasing_many_looks_once(odp: ThreadedSandbox, shop: Install) -> None:
    gold = new_audience(shop)
    drain_all(shop)
    provision.look_again(gold.pk, unless_within=timedelta(minutes=1))
    assert Audience.objects.get().look_asked_at is None
    Audience.objects.update(provisioned_at=now() - timedelta(hours=1))
    provision.look_again(gold.pk, unless_within=timedelta(minutes=1))
    asked = Audience.objects.get().look_asked_at
    assert asked is not None
    provision.look_again(gold.pk, unless_within=timedelta(minutes=1))
    assert Audience.objects.get().look_asked_at == asked
    provision.look_again(gold.pk)
    assert Audience.objects.get().look_asked_at != asked


def test_a_look_is_asked_for_after_the_clock_was_set_back(shop: Install) -> None:
    made = make_audience(shop)
    Audience.objects.update(provisioned_at=now() + timedelta(hours=1))
    provision.look_again(made.pk)
    assert Audience.objects.get().look_asked_at is not None
