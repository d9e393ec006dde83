"""Draining as a whole: from events in the log to the sandbox ODP, with failures in between."""

import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import pytest
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.db import ProgrammingError, connection
from django.db.models import F
from django.utils.timezone import now

from audiences.delivery import claims, holds, leases, provision, reading, request_records, settling
from audiences.models import Audience, Delivery, Event, Install, Lane, Parked, Run
from audiences.operations import parked_items, resends
from audiences.receiving import log_range
from odp.client import Client
from odp.outcomes import Answer
from sandbox.odp.testing import ROOT, ThreadedSandbox
from sandbox.odp.world import Options
from tests.delivering import (
    UNLIMITED,
    Happening,
    assert_all_is_well,
    backoff_runs_out,
    broken_truths,
    claim,
    cursor_of,
    deliveries,
    drain_all,
    enter,
    happen,
    hold_runs_out,
    lane_of,
    lease_runs_out,
    ledger_of,
    make_audience,
    make_delivered,
    make_install,
    making_runs_out,
    numbered,
    parked,
    runs_of,
    step_of,
    writes,
)
from tests.threads import PATIENCE, eventually, together
from workers import drain, pace, tasks

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def gold(shop: Install) -> Audience:
    return make_audience(shop, "gold", provisioned=False)


# --- Sent requests -----------------------------------------------------------------------------------------------


def test_events_become_memberships(odp: ThreadedSandbox, shop: Install, gold: Audience) -> None:
    happen(gold, ("a", "enter", 1), ("b", "enter", 1), ("b", "exit", 2))
    drain_all(shop)
    assert odp.members("lytics_gold") == ["a"]
    assert odp.members("lytics_gold", "web_user_id") == ["a"]
    assert_all_is_well(gold)


def test_an_older_enter_after_a_newer_exit_revives_nobody(odp: ThreadedSandbox, shop: Install, gold: Audience) -> None:
    happen(gold, ("a", "exit", 5))
    drain_all(shop)
    happen(gold, ("a", "enter", 4))
    drain_all(shop)
    assert [item["attributes"]["lytics_gold"] for request in writes(odp) for item in request] == [False]
    assert_all_is_well(gold)


def test_a_repeat_sends_nothing(odp: ThreadedSandbox, shop: Install, gold: Audience) -> None:
    for _ in range(2):
        happen(gold, ("a", "enter", 1), ("b", "exit", 1))
        drain_all(shop)
    assert len(writes(odp)) == 1
    assert runs_of(gold)[-1] == (3, 4, 0, 2, "delivered")


def test_a_change_of_a_member_sends_nothing_and_one_of_a_stranger_does(
    odp: ThreadedSandbox, shop: Install, gold: Audience
) -> None:
    happen(gold, ("a", "enter", 1))
    drain_all(shop)
    happen(gold, ("a", "change", 2), ("b", "change", 2))
    drain_all(shop)
    assert [item["attributes"]["fs_user_id"] for item in writes(odp)[-1]] == ["b"]
    assert ledger_of(gold)["a"] == (True, 2, False)


def test_audiences_of_one_customer_share_an_item(odp: ThreadedSandbox, shop: Install) -> None:
    gold, silver = make_audience(shop, "gold"), make_audience(shop, "silver")
    for name in ("gold", "silver"):
        field = {"name": f"lytics_{name}", "display_name": name, "type": "boolean"}
        odp.odp("POST", "/v3/schema/objects/customers/fields", field)
    happen(gold, ("a", "enter", 1))
    happen(silver, ("a", "exit", 1))
    drain_all(shop)
    (request,) = writes(odp)
    assert request == [
        {"attributes": {"fs_user_id": "a", "web_user_id": "a", "lytics_gold": True, "lytics_silver": False}}
    ]


@pytest.mark.parametrize("mechanism", ["attribute", "list", "passthrough"])
def test_every_mechanism_ends_in_the_same_audience(odp: ThreadedSandbox, settings: Any, mechanism: str) -> None:
    settings.ODP_PASSTHROUGH_DEFINITION = {"passthrough": {}}
    odp.settings(passthrough="on")
    shop = make_install(odp, mechanism=mechanism)
    gold = make_audience(shop, "gold", provisioned=False)
    happen(gold, ("a", "enter", 1_000_000_000), ("b", "enter", 1_000_000_000), ("b", "exit", 2_000_000_000))
    drain_all(shop)
    assert odp.members("lytics_gold") == ["a"]
    assert_all_is_well(gold)


# --- when ODP says no --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("named", [True, False])
def test_rejected_customers_are_parked_and_the_others_arrive(
    odp: ThreadedSandbox, shop: Install, gold: Audience, named: bool
) -> None:
    bad = {"identifiers": ["u0003", "u0017"], "named": named, "message": "no such customer"}
    odp.fault({"path": "/v3/profiles"}, {"refuse_items": bad})
    enter(gold, *numbered(40))
    drain_all(shop)
    assert set(odp.members("lytics_gold")) == set(numbered(40)) - {"u0003", "u0017"}
    assert sorted(identifier for _, identifier, _ in parked()) == ["u0003", "u0017"]
    words = "no such customer" if named else "400: the request has invalid items"
    assert {item.detail for item in Parked.objects.all()} == {words}
    assert_all_is_well(gold)


@pytest.mark.parametrize("rejection", ["whole", "partial"])
@pytest.mark.parametrize("key", ["event", "index", "profile"])
def test_it_does_not_matter_whether_odp_took_the_good_ones_of_a_refused_request(
    odp: ThreadedSandbox, shop: Install, gold: Audience, rejection: str, key: str
) -> None:
    odp.assume(batch_rejection=rejection, invalids_key=key)
    odp.fault({"path": "/v3/profiles"}, {"refuse_items": {"identifiers": ["u0003"], "named": True}})
    enter(gold, *numbered(10))
    drain_all(shop)
    assert len(odp.members("lytics_gold")) == 9
    assert [identifier for _, identifier, _ in parked()] == ["u0003"]
    assert_all_is_well(gold)


def test_a_field_that_odp_does_not_see_yet_blocks_its_audience_until_a_person_says_go(
    odp: ThreadedSandbox, shop: Install, gold: Audience
) -> None:
    odp.assume(field_delay_seconds=60)
    enter(gold, "a", "b")
    drain_all(shop)
    assert lane_of(gold).block_reason == "unknown field lytics_gold"
    assert parked() == []
    odp.advance(61)
    holds.unblock(lane_of(gold))
    drain_all(shop)
    assert odp.members("lytics_gold") == ["a", "b"]
    assert_all_is_well(gold)


def test_one_bad_customer_in_500_costs_ten_more_requests(odp: ThreadedSandbox, shop: Install, gold: Audience) -> None:
    odp.fault({"path": "/v3/profiles"}, {"refuse_items": {"identifiers": ["u0000"], "named": False}})
    enter(gold, *numbered(500))
    drain_all(shop)
    assert len(deliveries()) - 1 <= 10
    assert len(odp.members("lytics_gold")) == 499


def test_an_audience_of_which_odp_accepts_nothing_is_blocked_and_others_continue(
    odp: ThreadedSandbox, shop: Install, gold: Audience
) -> None:
    silver = make_audience(shop, "silver", provisioned=False)
    odp.fault({"path": "/v3/profiles"}, {"refuse_field": "lytics_gold", "named": True, "message": "not now"})
    enter(gold, *numbered(20))
    enter(silver, *numbered(20))
    drain_all(shop)
    assert "not now" in lane_of(gold).block_reason
    assert (cursor_of(gold), parked()) == (0, [])
    assert len(odp.members("lytics_silver")) == 20
    odp.clear_faults()
    assert holds.unblock(lane_of(gold))
    drain_all(shop)
    assert len(odp.members("lytics_gold")) == 20
    assert_all_is_well(gold, silver)


@pytest.mark.parametrize("taken_before", [True, False])
def test_one_bad_change_alone_parks_and_never_blocks_an_audience_that_works(
    odp: ThreadedSandbox, shop: Install, gold: Audience, taken_before: bool
) -> None:
    """ODP takes the customer, and refuses them in this one audience: of a new audience nothing else is known."""
    if taken_before:
        enter(gold, "a")
        drain_all(shop)
    odp.fault({"path": "/v3/profiles"}, {"refuse_field": "lytics_gold", "named": True, "message": "not this one"})
    enter(gold, "b")
    drain_all(shop)
    assert bool(lane_of(gold).blocked_at) is not taken_before
    assert parked() == ([("lytics_gold", "b", "")] if taken_before else [])
    odp.clear_faults()
    enter(gold, "c")
    holds.unblock(lane_of(gold))
    drain_all(shop)
    assert "c" in odp.members("lytics_gold")
    assert_all_is_well(gold)


def test_a_refused_item_is_sent_again_on_release_and_closes(
    odp: ThreadedSandbox, shop: Install, gold: Audience
) -> None:
    odp.fault({"path": "/v3/profiles"}, {"refuse_items": {"identifiers": ["a"], "named": True}})
    enter(gold, "a", "b")
    drain_all(shop)
    odp.clear_faults()
    assert parked_items.release([Parked.objects.get().pk], by="kim") == (1, 0)
    drain_all(shop)
    assert odp.members("lytics_gold") == ["a", "b"]
    assert parked() == [("lytics_gold", "a", "released")]
    assert ledger_of(gold)["a"] == (True, 1, False)
    assert_all_is_well(gold)


def test_a_late_older_event_does_not_get_past_a_refused_newer_one(
    odp: ThreadedSandbox, shop: Install, gold: Audience
) -> None:
    odp.fault({"path": "/v3/profiles"}, {"refuse_items": {"identifiers": ["a"], "named": True}})
    happen(gold, ("a", "exit", 5), ("b", "enter", 1))
    drain_all(shop)
    odp.clear_faults()
    happen(gold, ("a", "enter", 4))
    drain_all(shop)
    assert odp.members("lytics_gold") == ["b"]
    assert_all_is_well(gold)


@pytest.mark.parametrize("act", ["replay", "resync"])
def test_what_odp_has_lost_comes_back(odp: ThreadedSandbox, shop: Install, gold: Audience, act: str) -> None:
    happen(gold, ("a", "enter", 1), ("b", "exit", 1))
    drain_all(shop)
    odp.reset(keep_schema=True)
    assert odp.members("lytics_gold") == []
    if act == "replay":
        start, end = now() - timedelta(hours=1), now()
        stretch = log_range.find(gold.pk, start, end, upto=2)
        assert resends.replay(gold, stretch, start=start, end=end, by="kim", reason="ODP lost it")
    else:
        assert resends.resync(gold, by="kim", reason="ODP lost it")
    tasks.resend(shop.pk)
    drain_all(shop)
    assert odp.members("lytics_gold") == ["a"]
    assert_all_is_well(gold)


# --- when ODP can't ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "then",
    [
        {"status": 500},
        {"status": 503, "apply": True},
        {"status": 429, "headers": {"Retry-After": "600"}},
        {"status": 200, "html": True},
        {"status": 403, "body": {"message": "Forbidden"}},
        {"close": "before"},
        {"close": "after"},
    ],
)
def test_a_failure_starts_a_backoff_and_blames_no_event(
    odp: ThreadedSandbox, shop: Install, gold: Audience, monkeypatch: pytest.MonkeyPatch, then: dict[str, Any]
) -> None:
    monkeypatch.setattr(
        "audiences.delivery.backoff.random.uniform", lambda _, longest: longest
    )  # full jitter may be over at once
    odp.fault({"path": "/v3/profiles", "times": 1}, then)
    enter(gold, "a", "b")
    drain_all(shop)
    shop.refresh_from_db()
    assert (cursor_of(gold), parked(), lane_of(gold).lease_token) == (0, [], None)
    assert shop.backoff_reason
    backoff_runs_out(shop)
    drain_all(shop)
    shop.refresh_from_db()
    assert (shop.backoff_until_at, shop.backoff_failures) == (None, 0)
    assert odp.members("lytics_gold") == ["a", "b"]
    assert_all_is_well(gold)


def test_a_failure_in_the_middle_of_an_isolation_sends_nothing_twice_and_loses_nothing(
    odp: ThreadedSandbox, shop: Install, gold: Audience
) -> None:
    odp.fault({"path": "/v3/profiles"}, {"refuse_items": {"identifiers": ["u0007"], "named": False}})
    odp.fault({"path": "/v3/profiles", "nth": 4}, {"status": 500, "headers": {"Retry-After": "600"}})
    enter(gold, *numbered(16))
    drain_all(shop)
    assert (cursor_of(gold), sorted(ledger_of(gold)), parked()) == (0, numbered(7), [])
    assert broken_truths() == []  # with the ledger ahead of the cursor
    for _ in range(3):
        backoff_runs_out(shop)
        drain_all(shop)
    accepted = [r for r in odp.requests(bodies=True) if r["path"] == "/v3/profiles" and r["status"] == 202]
    assert sum(request["items"] for request in accepted) == 15
    assert [identifier for _, identifier, _ in parked()] == ["u0007"]
    assert_all_is_well(gold)


def test_a_failure_before_the_control_is_answered_blames_no_customer_of_a_refused_audience(
    odp: ThreadedSandbox, shop: Install, gold: Audience
) -> None:
    odp.fault({"path": "/v3/profiles"}, {"refuse_field": "lytics_gold", "named": True, "message": "not now"})
    odp.fault({"path": "/v3/profiles", "times": 1}, {"status": 503, "headers": {"Retry-After": "600"}})
    enter(gold, *numbered(20))
    drain_all(shop)
    assert [status for _, status, _ in deliveries()] == [400, 503]
    assert (parked(), ledger_of(gold), cursor_of(gold), lane_of(gold).blocked_at) == ([], {}, 0, None)
    backoff_runs_out(shop)
    drain_all(shop)
    assert "not now" in lane_of(gold).block_reason
    assert parked() == []


@pytest.mark.parametrize(("mechanism", "most_bytes"), [("attribute", 1_000), ("passthrough", 2_500)])
def test_a_size_that_odp_takes_is_learned_in_items(
    odp: ThreadedSandbox, settings: Any, mechanism: str, most_bytes: int
) -> None:
    settings.ODP_PASSTHROUGH_DEFINITION = {"passthrough": {}}
    shop = make_install(odp, mechanism=mechanism)
    gold = make_audience(shop, "gold", provisioned=False)
    enter(gold, *numbered(40), at=10**9)
    drain.turn(shop.pk)
    odp.assume(max_body_bytes=most_bytes)
    drain_all(shop)
    shop.refresh_from_db()
    largest = max(items for outcome, _, items in deliveries() if outcome == "delivered")
    assert shop.learned_batch_size == largest < 40
    refusals = len([outcome for outcome, _, _ in deliveries() if outcome == "refused"])
    enter(gold, *numbered(40), at=2 * 10**9)
    drain_all(shop)
    assert len([outcome for outcome, _, _ in deliveries() if outcome == "refused"]) == refusals
    assert len(odp.members("lytics_gold")) == 40
    assert_all_is_well(gold)


def test_a_customer_of_whom_something_is_parked_does_not_spoil_the_request_of_the_others(
    odp: ThreadedSandbox, shop: Install, gold: Audience
) -> None:
    odp.fault({"path": "/v3/profiles"}, {"refuse_items": {"identifiers": ["bad"], "named": False}})
    enter(gold, "bad", *numbered(20))
    drain_all(shop)
    before = len(writes(odp))
    enter(gold, "bad", *numbered(20), at=2)
    drain_all(shop)
    assert [len(request) for request in writes(odp)[before:]] == [20, 1]
    assert parked() == [("lytics_gold", "bad", "")]
    assert_all_is_well(gold)


def test_of_two_events_in_the_same_moment_the_exit_wins(odp: ThreadedSandbox, shop: Install, gold: Audience) -> None:
    happen(gold, ("a", "exit", 5), ("a", "enter", 5), ("b", "enter", 5))
    drain_all(shop)
    happen(gold, ("b", "exit", 5), ("b", "enter", 5))
    drain_all(shop)
    assert odp.members("lytics_gold") == []
    assert_all_is_well(gold)


# --- a worker that dies ------------------------------------------------------------------------------------------


class Killed(BaseException):
    """What kill -9 is to the code that runs: nothing after it happens."""


DEATHS = ["claim", "read", "open_delivery", "before the request", "after the request", "settle"]


@pytest.mark.parametrize("where", DEATHS)
def test_whoever_comes_next_finishes_what_a_killed_worker_began(
    odp: ThreadedSandbox, shop: Install, gold: Audience, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    enter(gold, "a", "b")
    drain.turn(shop.pk)  # makes the audience
    with monkeypatch.context() as patched:
        _die(patched, where)
        with pytest.raises(Killed):
            drain_all(shop)
    assert claims.claim(shop.pk) is None  # the lease holds for now
    lease_runs_out(gold)
    drain_all(shop)
    assert odp.members("lytics_gold") == ["a", "b"]
    assert_all_is_well(gold)
    planted = where in ("open_delivery", "before the request", "after the request", "settle")
    assert [outcome for outcome, _, _ in deliveries()] == (["unknown", "delivered"] if planted else ["delivered"])
    assert len(writes(odp)) == (2 if where in ("after the request", "settle") else 1)


def _die(patched: pytest.MonkeyPatch, where: str) -> None:
    def after(function: Any) -> Any:
        def killed(*args: Any, **kwargs: Any) -> Any:
            function(*args, **kwargs)
            raise Killed

        return killed

    def at_once(*args: Any, **kwargs: Any) -> Answer:
        raise Killed

    if where == "before the request":
        patched.setattr(Client, "call", at_once)
    elif where == "after the request":
        patched.setattr(Client, "call", after(Client.call))
    elif where == "settle":
        patched.setattr(settling, "settle", at_once)
    else:
        module = step_of(where)
        patched.setattr(module, where, after(getattr(module, where)))


def test_a_worker_that_dies_between_two_requests_of_an_isolation_leaves_all_of_it_to_the_next(
    odp: ThreadedSandbox, shop: Install, gold: Audience, monkeypatch: pytest.MonkeyPatch
) -> None:
    odp.fault({"path": "/v3/profiles"}, {"refuse_items": {"identifiers": ["u0005"], "named": False}})
    enter(gold, *numbered(8))
    drain.turn(shop.pk)
    calls = 0
    call = Client.call

    def die_at_the_third(*args: Any, **kwargs: Any) -> Answer:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise Killed
        return call(*args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(Client, "call", die_at_the_third)
        with pytest.raises(Killed):
            drain_all(shop)
    assert [outcome for outcome, _, _ in deliveries()] == ["refused", "delivered", ""]
    assert (cursor_of(gold), ledger_of(gold), parked()) == (0, {}, [])
    lease_runs_out(gold)
    drain_all(shop)
    assert [identifier for _, identifier, _ in parked()] == ["u0005"]
    assert len(odp.members("lytics_gold")) == 7
    assert_all_is_well(gold)


def test_a_control_whose_worker_died_is_closed_as_unknown_like_any_other_request(
    odp: ThreadedSandbox, shop: Install, gold: Audience, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It names no audience, so no Run leads to it."""
    odp.fault({"path": "/v3/profiles"}, {"refuse_field": "lytics_gold", "named": False})
    enter(gold, "a")
    drain.turn(shop.pk)
    call = Client.call

    def die_with_the_control(client: Client, method: str, path: str, **kwargs: Any) -> Answer:
        if b"lytics_gold" not in kwargs["body"]:
            raise Killed
        return call(client, method, path, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(Client, "call", die_with_the_control)
        with pytest.raises(Killed):
            drain_all(shop)
    assert [outcome for outcome, _, _ in deliveries()] == ["refused", ""]
    lease_runs_out(gold)
    Delivery.objects.update(opened_at=now() - timedelta(seconds=settings.LEASE_SECONDS))
    drain_all(shop)
    assert [outcome for outcome, _, _ in deliveries()] == ["refused", "unknown", "refused", "delivered", "refused"]
    assert lane_of(gold).block_reason == "400: the request has invalid items"


def test_a_request_that_is_under_way_is_not_closed_by_a_claim_of_other_lanes(shop: Install) -> None:
    gold, silver = make_audience(shop, "gold"), make_audience(shop, "silver")
    enter(gold, "a")
    request_records.open_delivery(
        claim(shop), endpoint="/v3/profiles", items=1, size=2, sent={gold.pk: 1}, of={gold.pk: 1}
    )
    Delivery.objects.update(opened_at=now() - timedelta(hours=1))
    enter(silver, "a")
    claim(shop)
    assert [outcome for outcome, _, _ in deliveries()] == [""]
    assert Run.objects.filter(closed_at=None).count() == 1


def test_a_control_that_is_under_way_is_not_closed_by_a_claim_of_other_lanes(shop: Install) -> None:
    enter(make_audience(shop, "gold"), "a")
    request_records.open_delivery(claim(shop), endpoint="/v3/profiles", items=1, size=2, sent={}, of={})
    enter(make_audience(shop, "silver"), "a")
    claim(shop)
    assert [outcome for outcome, _, _ in deliveries()] == [""]


def test_a_worker_that_dies_between_backoff_and_settle_blames_no_audience(
    odp: ThreadedSandbox, shop: Install, gold: Audience, monkeypatch: pytest.MonkeyPatch
) -> None:
    odp.fault({"path": "/v3/profiles", "times": 1}, {"status": 503, "headers": {"Retry-After": "600"}})
    enter(gold, "a")
    drain.turn(shop.pk)
    with monkeypatch.context() as patched:
        _die(patched, "settle")
        with pytest.raises(Killed):
            drain_all(shop)
    lease_runs_out(gold)
    assert drain_all(shop) == 0  # the backoff alone holds the install
    backoff_runs_out(shop)
    drain_all(shop)
    assert odp.members("lytics_gold") == ["a"]
    assert_all_is_well(gold)


# --- kill -9 -----------------------------------------------------------------------------------------------------

WORKER = """
import django, sys
django.setup()
from workers import drain, tasks
drain.drain(int(sys.argv[1]), seconds=60)
"""


@contextmanager
def worker(install: Install) -> Iterator[subprocess.Popen[bytes]]:
    """A separate process that drains on the tests' database."""
    made = connection.settings_dict
    url = f"postgres://{made['USER']}:{made['PASSWORD']}@{made['HOST']}:{made['PORT']}/{made['NAME']}"
    env = {**os.environ, "DATABASE_URL": url, "DJANGO_SETTINGS_MODULE": "lytics_sync.settings"}
    env["FIELD_ENCRYPTION_KEYS"] = ",".join(settings.FIELD_ENCRYPTION_KEYS)
    process = subprocess.Popen([sys.executable, "-c", WORKER, str(install.pk)], env=env, cwd=ROOT)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize(
    ("path", "then"),
    [
        ("/v3/profiles", {"delay_seconds": 60, "close": "before"}),
        ("/v3/profiles", {"status": 202, "apply": True, "drip_seconds": 60}),
        ("/v3/segments", {"status": 404, "drip_seconds": 60}),
    ],
    ids=["before ODP applies it", "after ODP applied it", "between the field and the audience"],
)
def test_a_worker_killed_with_9_in_the_middle_of_a_request_costs_a_lease_and_nothing_else(
    odp: ThreadedSandbox, shop: Install, gold: Audience, path: str, then: dict[str, Any]
) -> None:
    odp.fault({"path": path, "times": 1}, then)
    enter(gold, *numbered(20))
    with worker(shop) as process:
        # Not earlier: a request without its body leaves the fault for the next one.
        eventually(lambda: [request for request in odp.requests() if request["fault"]])
        process.kill()
        process.wait()
    is_delivery = path == "/v3/profiles"
    assert (lane_of(gold).lease_token is not None) is is_delivery
    assert Audience.objects.filter(pk=gold.pk, making_token__isnull=False).exists() is not is_delivery
    assert [outcome for outcome, _, _ in deliveries()] == [""] * is_delivery
    assert drain_all(shop) == 0  # the lease holds, and with it the order
    lease_runs_out(gold)
    making_runs_out(gold)
    drain_all(shop)
    assert [outcome for outcome, _, _ in deliveries()] == ["unknown"] * is_delivery + ["delivered"]
    assert odp.members("lytics_gold") == numbered(20)
    assert_all_is_well(gold)


# --- late, lost and early ----------------------------------------------------------------------------------------


def test_a_worker_that_wakes_after_its_lease_neither_sends_nor_writes(
    odp: ThreadedSandbox, shop: Install, gold: Audience, monkeypatch: pytest.MonkeyPatch
) -> None:
    enter(gold, "a")
    drain.turn(shop.pk)
    lease = claim(shop)
    lease_runs_out(gold)
    other = claim(shop)
    with pytest.raises(leases.LeaseLostError):
        drain.deliver(lease)
    assert writes(odp) == []
    drain.deliver(other)
    assert_all_is_well(gold)


def test_of_a_lease_that_lost_one_lane_the_others_go_on_at_once(
    odp: ThreadedSandbox, shop: Install, gold: Audience, monkeypatch: pytest.MonkeyPatch
) -> None:
    silver = make_audience(shop, "silver", provisioned=False)
    enter(gold, "a")
    enter(silver, "a")
    assert provision.provision_one(shop.pk)
    assert provision.provision_one(shop.pk)
    read = reading.read

    def sleep_after(lease: leases.Lease) -> Any:
        patched.undo()
        lease_runs_out(gold)
        others.append(claim(shop))
        return read(lease)

    others: list[leases.Lease] = []
    with monkeypatch.context() as patched:
        patched.setattr(reading, "read", sleep_after)
        assert drain.turn(shop.pk) is True
    assert (lane_of(gold).lease_token, lane_of(silver).lease_token) == (others[0].token, None)
    assert writes(odp) == []
    drain.deliver(others[0])
    drain_all(shop)
    assert_all_is_well(gold, silver)


def test_a_request_does_not_start_when_its_lease_is_nearly_over(
    odp: ThreadedSandbox, shop: Install, gold: Audience, settings: Any
) -> None:
    settings.LEASE_SECONDS = settings.DELIVERY_DEADLINE_SECONDS + drain.LEASE_MARGIN
    enter(gold, "a")
    drain.turn(shop.pk)
    drain.turn(shop.pk)
    assert writes(odp) == []
    assert (cursor_of(gold), lane_of(gold).lease_token) == (0, None)
    shop.refresh_from_db()
    assert shop.backoff_until_at is None


@pytest.mark.parametrize(
    ("where", "kind"), [("claim", LookupError), ("read", ProgrammingError), ("settle", ImproperlyConfigured)]
)
def test_an_unexpected_error_about_all_audiences_backs_the_install_off_and_says_why(
    odp: ThreadedSandbox,
    shop: Install,
    gold: Audience,
    monkeypatch: pytest.MonkeyPatch,
    where: str,
    kind: type[Exception],
) -> None:
    def fail(*args: Any, **kwargs: Any) -> Any:
        raise kind("no such thing\nand more")

    enter(gold, "a")
    assert drain.turn(shop.pk)  # makes the audience
    monkeypatch.setattr(step_of(where), where, fail)
    with pytest.raises(kind):
        drain.turn(shop.pk)
    shop.refresh_from_db()
    assert shop.backoff_until_at is not None
    assert shop.backoff_reason == "Unexpected error in delivery: no such thing"
    assert (cursor_of(gold), lane_of(gold).lease_token) == (0, None)
    assert claims.due() == []


def test_the_time_it_takes_to_plant_the_flag_is_time_of_the_lease(
    odp: ThreadedSandbox, shop: Install, gold: Audience, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The row says when the lease ends, and the commit that renewed it may have been answered late."""
    settings.LEASE_SECONDS = settings.DELIVERY_DEADLINE_SECONDS + drain.LEASE_MARGIN + 0.3
    plant = request_records.open_delivery

    def answered_late(*args: Any, **kwargs: Any) -> int:
        planted = plant(*args, **kwargs)
        time.sleep(0.4)
        return planted

    monkeypatch.setattr(request_records, "open_delivery", answered_late)
    enter(gold, "a")
    drain.turn(shop.pk)
    drain.turn(shop.pk)
    assert writes(odp) == []
    assert cursor_of(gold) == 0


def test_a_rejection_ends_a_backoff_like_any_other_final_answer(
    odp: ThreadedSandbox, shop: Install, gold: Audience
) -> None:
    enter(gold, "somebody")
    drain_all(shop)
    odp.fault({"path": "/v3/profiles", "times": 1}, {"status": 503})
    odp.fault({"path": "/v3/profiles"}, {"refuse_items": {"identifiers": ["a"], "named": True}})
    enter(gold, "a")
    drain.turn(shop.pk)
    assert Install.objects.get().backoff_failures == 1
    backoff_runs_out(shop)
    drain_all(shop)
    assert [outcome for outcome, _, _ in deliveries()][-1] == "refused"
    assert Install.objects.get().backoff_failures == 0


def test_further_requests_of_one_lease_stand_in_line_like_others(
    odp: ThreadedSandbox, shop: Install, gold: Audience, monkeypatch: pytest.MonkeyPatch
) -> None:
    lined_up: list[str] = []
    monkeypatch.setattr(pace, "jump_line", lambda install, path: lined_up.append(path))
    odp.fault({"path": "/v3/profiles"}, {"refuse_items": {"identifiers": ["u0005"], "named": False}})
    enter(gold, *numbered(8))
    drain_all(shop)
    assert len(lined_up) == len(deliveries()) - 1 > 1


@pytest.mark.parametrize(("accepted", "outcome"), [(False, "retry_later"), (True, "delivered")])
def test_a_setting_says_what_a_2xx_without_a_body_means(
    odp: ThreadedSandbox, shop: Install, gold: Audience, settings: Any, accepted: bool, outcome: str
) -> None:
    settings.ODP_EMPTY_IS_ACCEPTED = accepted
    odp.fault({"path": "/v3/profiles", "times": 1}, {"status": 202, "body": ""})
    enter(gold, "a")
    assert drain.turn(shop.pk)  # makes the audience
    drain.turn(shop.pk)
    assert [outcome for outcome, _, _ in deliveries()] == [outcome]


def test_the_longest_retry_after_that_is_believed_is_a_setting(
    odp: ThreadedSandbox, shop: Install, gold: Audience, settings: Any
) -> None:
    settings.ODP_LONGEST_RETRY_AFTER_SECONDS = 120
    odp.fault({"path": "/v3/profiles", "times": 1}, {"status": 429, "headers": {"Retry-After": "9999"}})
    enter(gold, "a")
    assert drain.turn(shop.pk)  # makes the audience
    drain.turn(shop.pk)
    shop.refresh_from_db()
    assert shop.backoff_until_at is not None
    assert timedelta(seconds=100) < shop.backoff_until_at - now() <= timedelta(seconds=120)


def test_the_default_lease_outlives_the_deadline_and_the_settle() -> None:
    assert settings.LEASE_SECONDS > settings.DELIVERY_DEADLINE_SECONDS + drain.LEASE_MARGIN


def test_a_hole_in_the_log_blocks_the_lane_before_anything_is_sent(
    odp: ThreadedSandbox, shop: Install, gold: Audience
) -> None:
    enter(gold, "a", "b", "c")
    Event.objects.filter(audience=gold, sequence=2).delete()
    drain_all(shop)
    assert "not all there" in lane_of(gold).block_reason
    assert writes(odp) == []
    assert not Delivery.objects.exists()


# --- everything at once ------------------------------------------------------------------------------------------


def test_a_hole_in_the_log_of_one_lane_holds_no_other_lane(odp: ThreadedSandbox, shop: Install) -> None:
    gold, vip = make_delivered(shop, "kim"), make_audience(shop, "vip")
    enter(gold, "a", "b")
    enter(vip, "a", "b")
    Event.objects.filter(audience=vip, sequence=1).delete()
    drain_all(shop)
    assert (lane_of(gold).block_reason, cursor_of(gold)) == ("", 3)
    assert lane_of(vip).block_reason == "lytics_vip: events 1–2 are not all there"


def test_after_every_kind_of_trouble_at_once_odp_holds_what_lytics_said(settings: Any) -> None:
    """Four workers; late, repeated and reordered events; failures before and after ODP applied what it got."""
    settings.BACKOFF_FIRST_SECONDS, settings.BACKOFF_LONGEST_SECONDS, settings.BACKOFF_FIXED_SECONDS = 0.01, 0.05, 0.05
    chance = random.Random(20)
    with ThreadedSandbox(Options(settings=UNLIMITED, shuffled=True, latency=(0, 0.01))) as odp:
        odp.fault({}, {"refuse_items": {"identifier_contains": "bad", "named": False}})
        alerts: list[dict[str, Any]] = [
            {"status": 500},
            {"status": 503, "apply": True},
            {"close": "after"},
            {"close": "before"},
            {"status": 429, "headers": {"Retry-After": "0"}},
            {"status": 202, "html": True},
        ]
        for seed, then in enumerate(alerts):
            odp.fault({"probability": 0.06, "seed": seed}, then)
        shop = make_install(odp, batch_size=40)
        audiences = [make_audience(shop, f"a{number}", provisioned=False) for number in range(6)]
        customers = [*numbered(60), "bad one"]
        newest: dict[tuple[int, str], tuple[int, bool]] = {}

        def receive() -> None:
            for _ in range(60):
                audience = chance.choice(audiences)
                happenings: list[Happening] = [
                    (chance.choice(customers), chance.choice(["enter", "exit", "change"]), chance.randint(1, 50))
                    for _ in range(40)
                ]
                for identifier, what, at in happenings:
                    key = (audience.pk, identifier)
                    newest[key] = max(newest.get(key, (0, False)), (at, what == "exit"))
                happen(audience, *happenings)

        received = threading.Event()
        behind = Lane.objects.filter(audience__last_sequence__gt=F("delivered_sequence"), blocked_at=None)

        def work() -> None:
            until = time.monotonic() + PATIENCE
            # Also while an audience is on hold: after the end of the faults, no response would reject its bad customer.
            while not received.is_set() or behind.exists():
                assert time.monotonic() < until
                drain.drain(shop.pk, seconds=1)
                time.sleep(0.002)

        def receive_all() -> None:
            receive()
            received.set()

        together(receive_all, *[work] * 4)
        odp.clear_faults()
        backoff_runs_out(shop)
        hold_runs_out(shop)
        drain_all(shop)
        for audience in audiences:
            expected = {who for (pk, who), (_, left) in newest.items() if pk == audience.pk and not left}
            assert set(odp.members(audience.odp_id)) == expected - {"bad one"}
        assert {identifier for _, identifier, _ in parked()} == {"bad one"}
        assert set(odp.summary()["peak_concurrency_per_field"].values()) == {1}
    assert_all_is_well(*audiences)


def test_a_request_that_failed_and_was_applied_is_never_followed_by_an_older_state(odp: ThreadedSandbox) -> None:
    """The request that comes after it has less room for the lane, and must not end between the two changes."""
    shop = make_install(odp, batch_size=4)
    deep, other = make_audience(shop, "deep", provisioned=False), make_audience(shop, "other", provisioned=False)
    enter(deep, "somebody")
    enter(other, "somebody")
    drain_all(shop)
    happen(deep, ("kim", "enter", 10), ("lee", "enter", 10), ("kim", "exit", 20), ("mo", "enter", 10))
    odp.fault({"path": "/v3/profiles", "times": 1}, {"status": 500, "apply": True})
    before = len(writes(odp))
    assert drain.turn(shop.pk)
    enter(other, "pat", "sam")
    Lane.objects.filter(pk=other.pk).update(last_served_at=None)
    backoff_runs_out(shop)
    drain_all(shop)
    items = [item["attributes"] for write in writes(odp)[before:] for item in write]
    assert [item["lytics_deep"] for item in items if item["fs_user_id"] == "kim"] == [False, False]
    assert_all_is_well(deep, other)


def test_a_change_mends_what_a_request_that_failed_and_was_applied_has_told(odp: ThreadedSandbox) -> None:
    """By the ledger nothing would differ: it never heard of the exit that ODP has."""
    shop = make_install(odp)
    gold = make_audience(shop, "gold", provisioned=False)
    enter(gold, "kim", at=10)
    drain_all(shop)
    happen(gold, ("kim", "exit", 20))
    odp.fault({"path": "/v3/profiles", "times": 1}, {"status": 500, "apply": True})
    assert drain.turn(shop.pk)
    assert odp.members("lytics_gold") == []
    happen(gold, ("kim", "enter", 30), ("kim", "change", 40))
    backoff_runs_out(shop)
    drain_all(shop)
    assert odp.members("lytics_gold") == ["kim"]
    assert_all_is_well(gold)
