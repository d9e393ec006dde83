"""Lanes: the order of claims, the protection of a lease, and the rows that settling writes."""

import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.conf import settings
from django.db import IntegrityError, connection, transaction
from django.db.models import Count
from django.utils.timezone import now

from audiences.delivery import claims, holds, provision, reading, request_records, settling
from audiences.delivery.fold import Entry, Held, fold
from audiences.delivery.leases import GapError, Lease, LeaseLostError, Ledger, Result
from audiences.models import Audience, Delivery, Event, Install, Lane, Run
from audiences.receiving import ingest
from odp.outcomes import Answer, Outcome
from tests.delivering import (
    block_all,
    broken_truths,
    claim,
    cursor_of,
    deliveries,
    enter,
    everything,
    happen,
    lane_of,
    lease_runs_out,
    ledger_of,
    make_audience,
    make_install,
    numbered,
    parked,
    runs_of,
    waiting,
)
from tests.messages import body, message, transition
from tests.threads import PATIENCE, Gate, eventually, start, together, waiting_for_a_lock

pytestmark = pytest.mark.django_db

DELIVERED = Answer(Outcome.DELIVERED, status=202)
at_once = pytest.mark.django_db(transaction=True)


@pytest.fixture
def shop(db: None) -> Install:
    return make_install()


def ready(install: Install, slug: str, events: int = 1, **options: Any) -> Audience:
    """An audience with ``count`` waiting events."""
    audience = make_audience(install, slug, **options)
    enter(audience, *numbered(events))
    return audience


def spans(lease: Lease | None) -> dict[str, tuple[int, int]]:
    return {span.odp_id: (span.first, span.last) for span in lease.spans} if lease else {}


def give_back_served(lease: Lease) -> None:
    """As after a request that ODP could not take: nothing moved, but it was their turn."""
    holds.give_back(lease)


def deliver(lease: Lease, *, refuse: tuple[str, ...] = (), stop: tuple[str, ...] = (), words: str = "not him") -> None:
    """Open, and settle as if ODP took all but those to refuse; those to stop got no answer."""
    entries, ledger = reading.read(lease)
    folded = {audience: fold(events, ledger[audience]) for audience, events in entries.items()}
    sent = {audience: len(made.send) for audience, made in folded.items() if made.send}
    of = {audience: len(events) for audience, events in entries.items()}
    delivery = (
        request_records.open_delivery(lease, endpoint="/v3/profiles", items=1, size=2, sent=sent, of=of)
        if sent
        else None
    )
    results = [
        result_of(lease, span.audience_id, folded[span.audience_id].send, refuse, stop, of[span.audience_id], words)
        for span in lease.spans
    ]
    for result in results:
        if result.complete:
            result.accepted.extend(folded[result.span.audience_id].unchanged)
    answer = Answer(Outcome.RETRY_LATER, "busy") if stop else DELIVERED
    settling.settle(lease, results, ledger, delivery_id=delivery, answer=answer)


def result_of(
    lease: Lease,
    audience: int,
    send: list[Entry],
    refuse: tuple[str, ...],
    stop: tuple[str, ...],
    events: int,
    words: str,
) -> Result:
    span = next(span for span in lease.spans if span.audience_id == audience)
    return Result(
        span,
        complete=not any(entry.identifier in stop for entry in send),
        events=events,
        sent=bool(send),
        accepted=[entry for entry in send if entry.identifier not in refuse + stop],
        rejected=[(entry, words) for entry in send if entry.identifier in refuse],
    )


# --- What waits for the disk ----------------------------------------------------------------------------------


def waits_for_the_disk() -> bool:
    with connection.cursor() as cursor:
        cursor.execute("SHOW synchronous_commit")
        return bool(cursor.fetchone() == ("on",))


@at_once
def test_a_claim_and_a_settle_wait_for_no_disk_and_all_else_does(shop: Install) -> None:
    """Above all the open Delivery before a request: after a crash, the next worker has to find it."""
    ready(shop, "a")
    with connection.cursor() as cursor:
        cursor.execute("SET synchronous_commit = on")
    try:
        with transaction.atomic():
            lease = claim(shop)
            assert not waits_for_the_disk()
        with transaction.atomic():
            open_one(lease)
            assert waits_for_the_disk()
        holds.give_back(lease)
        lease = claim(shop)
        assert waits_for_the_disk()
        with transaction.atomic():
            deliver(lease)
            assert not waits_for_the_disk()
        assert waits_for_the_disk()
    finally:
        connection.close()


# --- Order of claims ------------------------------------------------------------------------------------------


def test_it_serves_the_lane_longest_unserved_first(shop: Install) -> None:
    first, second, third = (ready(shop, slug, events=4) for slug in ("a", "b", "c"))
    for audience in (second, third, first):
        Lane.objects.filter(pk=audience.pk).update(last_served_at=now())
    order = []
    for _ in range(6):
        lease = claim(shop, capacity=1)
        order += list(spans(lease))
        give_back_served(lease)
    assert order == ["lytics_b", "lytics_c", "lytics_a"] * 2


def test_a_lane_that_was_never_served_is_claimed_first(shop: Install) -> None:
    ready(shop, "a", events=2)
    give_back_served(claim(shop, capacity=1))
    ready(shop, "b")
    assert spans(claim(shop, capacity=1)) == {"lytics_b": (1, 1)}


def test_a_backlog_delays_a_live_change_by_one_turn_at_most(shop: Install) -> None:
    ready(shop, "deep", events=50)
    deliver(claim(shop, capacity=10))
    ready(shop, "live")
    assert spans(claim(shop, capacity=10)) == {"lytics_live": (1, 1), "lytics_deep": (11, 19)}


def test_it_packs_several_lanes_until_the_request_is_full(shop: Install) -> None:
    for slug, events in (("a", 3), ("b", 3), ("c", 9), ("d", 1)):
        ready(shop, slug, events=events)
    lease = claim(shop, capacity=10)
    assert spans(lease) == {"lytics_a": (1, 3), "lytics_b": (1, 3), "lytics_c": (1, 4)}
    assert lease.more
    rest = claim(shop, capacity=10)
    assert spans(rest) == {"lytics_d": (1, 1)}
    assert not rest.more


def test_a_lane_that_fits_exactly_leaves_no_room(shop: Install) -> None:
    ready(shop, "a", events=4)
    ready(shop, "b", events=6)
    lease = claim(shop, capacity=10)
    assert spans(lease) == {"lytics_a": (1, 4), "lytics_b": (1, 6)}
    assert not lease.more


def test_a_lane_is_claimed_again_up_to_the_same_number_or_not_at_all(shop: Install) -> None:
    """Its last request failed and may have been applied: fewer events would fold to something older."""
    again = ready(shop, "b", events=2)
    deliver(claim(shop), stop=tuple(numbered(2)))
    ready(shop, "a", events=3)
    for later, found in (((), {"lytics_a": (1, 3), "lytics_b": (1, 2)}), (("late",), {"lytics_b": (1, 2)})):
        enter(again, *later)
        Lane.objects.exclude(pk=again.pk).update(last_served_at=None)
        lease = claim(shop, capacity=5)
        assert spans(lease) == {"lytics_a": (1, 3), **found}
        holds.give_back(lease)
    Lane.objects.exclude(pk=again.pk).update(last_served_at=None)
    assert spans(claim(shop, capacity=4)) == {"lytics_a": (1, 3)}


def test_a_lane_is_claimed_again_up_to_the_same_number_when_less_fits_by_now(shop: Install) -> None:
    """A person made the requests smaller, or ODP rejected a large one, after a request that may have been applied."""
    ready(shop, "a", events=8)
    deliver(claim(shop, capacity=1))
    deliver(claim(shop, capacity=6), stop=tuple(numbered(8)))
    ready(shop, "b", events=1)
    Lane.objects.filter(audience__slug="b").update(last_served_at=now())
    lease = claim(shop, capacity=2)
    assert spans(lease) == {"lytics_a": (2, 7)}
    assert lease.more


def test_a_deep_lane_is_claimed_in_parts_that_fit(shop: Install) -> None:
    ready(shop, "deep", events=25)
    taken = []
    while lease := claims.claim(shop.pk, capacity=10):
        taken.append((*spans(lease)["lytics_deep"], lease.more))
        deliver(lease)
    assert taken == [(1, 10, True), (11, 20, True), (21, 25, False)]


@pytest.mark.parametrize(
    ("values", "capacity"),
    [
        ({}, 500),
        ({"batch_size": 100}, 100),
        ({"batch_size": 100, "learned_batch_size": 30}, 30),
        ({"batch_size": 20, "learned_batch_size": 30}, 20),
        ({"mechanism": "list", "batch_size": 100}, 100),
        # Two events of ODP for each change.
        ({"mechanism": "passthrough", "batch_size": 100}, 50),
        ({"mechanism": "passthrough", "batch_size": 1}, 1),
    ],
)
def test_a_request_holds_as_many_items_as_the_install_allows(values: dict[str, Any], capacity: int) -> None:
    install = make_install(**values)
    ready(install, "deep", events=600)
    assert spans(claim(install)) == {"lytics_deep": (1, capacity)}


def test_an_install_is_due_once_and_has_nothing_to_make_for_an_audience_without_events(shop: Install) -> None:
    make_audience(shop, "empty", provisioned=False)
    assert (claims.due(), waiting(shop)) == ([], (False, False))
    ready(shop, "a")
    ready(shop, "b")
    assert (claims.due(), waiting(shop)) == ([shop.pk], (False, True))


def test_it_leaves_the_lanes_of_other_installs_alone(shop: Install) -> None:
    other = make_install(name="Other")
    ready(other, "a")
    assert claims.claim(shop.pk) is None
    assert spans(claim(other)) == {"lytics_a": (1, 1)}


def test_a_claimed_lane_is_not_claimed_by_another_worker(shop: Install) -> None:
    ready(shop, "a", events=5)
    claim(shop, capacity=2)
    assert claims.claim(shop.pk, capacity=2) is None


def test_there_is_nothing_to_claim_when_all_is_delivered(shop: Install) -> None:
    make_audience(shop, "empty")
    assert claims.claim(shop.pk) is None
    assert claims.claim(987_654) is None


def pause(audience: Audience) -> Callable[[], Any]:
    holds.pause(lane_of(audience), by="ada", reason="looking into it")
    return lambda: holds.resume(lane_of(audience))


def block(audience: Audience) -> Callable[[], Any]:
    Lane.objects.filter(pk=audience.pk).update(blocked_at=now(), block_reason="field gone")
    return lambda: holds.unblock(lane_of(audience))


@pytest.mark.parametrize("hold", [pause, block])
def test_a_held_lane_is_passed_over_and_keeps_its_events(
    shop: Install, hold: Callable[[Audience], Callable[[], Any]]
) -> None:
    held, other = ready(shop, "a", events=3), ready(shop, "b")
    let_go = hold(held)
    lease = claim(shop)
    assert spans(lease) == {"lytics_b": (1, 1)}
    deliver(lease)
    assert claims.due() == []
    assert waiting(shop) == (False, False)
    assert let_go() is True
    assert let_go() is False
    assert claims.due() == [shop.pk]
    assert spans(claim(shop)) == {"lytics_a": (1, 3)}
    assert cursor_of(other) == 1


def test_pausing_twice_keeps_the_first_reason(shop: Install) -> None:
    lane = lane_of(make_audience(shop))
    assert holds.pause(lane, by="ada", reason="first")
    assert not holds.pause(lane, by="bob", reason="second")
    lane.refresh_from_db()
    assert (lane.paused_by, lane.pause_reason) == ("ada", "first")


def test_an_audience_that_is_not_made_in_odp_yet_is_claimed_apart(shop: Install) -> None:
    ready(shop, "made")
    ready(shop, "new", provisioned=False)
    assert waiting(shop) == (True, True)
    assert spans(claim(shop)) == {"lytics_made": (1, 1)}
    making = provision.claim(shop.pk)
    assert making is not None
    assert making.audience.odp_id == "lytics_new"
    assert waiting(shop) == (False, False)


@pytest.mark.parametrize(
    ("values", "may"),
    [
        ({}, True),
        ({"enabled": False}, False),
        ({"backoff_until_at": +60}, False),
        ({"backoff_until_at": -1}, True),
    ],
)
def test_an_install_on_hold_or_disabled_is_not_claimed(values: dict[str, Any], may: bool) -> None:
    if seconds := values.get("backoff_until_at"):
        at = now() + timedelta(seconds=seconds)
        values = {"backoff_until_at": at, "backoff_since_at": now(), "backoff_reason": "503", "backoff_failures": 1}
    install = make_install(**values)
    ready(install, "a")
    assert claims.due() == ([install.pk] if may else [])
    assert bool(claims.claim(install.pk)) is may


# --- How many at once -----------------------------------------------------------------------------------------


def test_no_more_requests_are_under_way_than_the_install_allows() -> None:
    install = make_install(max_in_flight=2)
    for slug in "abc":
        ready(install, slug)
    first, _ = claim(install, capacity=1), claim(install, capacity=1)
    assert claims.claim(install.pk, capacity=1) is None
    deliver(first)
    assert spans(claim(install, capacity=1)) == {"lytics_c": (1, 1)}


def test_one_request_with_many_lanes_is_one_request() -> None:
    install = make_install(max_in_flight=2)
    for slug in "abc":
        ready(install, slug)
    claim(install, capacity=2)
    assert spans(claim(install, capacity=2)) == {"lytics_c": (1, 1)}


def test_a_request_whose_lease_expired_is_no_longer_under_way() -> None:
    install = make_install(max_in_flight=1)
    dead = ready(install, "a")
    claim(install)
    ready(install, "b")
    assert claims.claim(install.pk) is None
    lease_runs_out(dead)
    assert spans(claim(install)) == {"lytics_a": (1, 1), "lytics_b": (1, 1)}


def test_after_a_failure_one_request_at_a_time_finds_out_whether_odp_is_back() -> None:
    at = now()
    install = make_install(backoff_until_at=at, backoff_since_at=at, backoff_reason="503", backoff_failures=3)
    ready(install, "a")
    ready(install, "b")
    probe = claim(install, capacity=1)
    assert claims.claim(install.pk, capacity=1) is None
    holds.give_back(probe)
    assert claims.claim(install.pk, capacity=1) is not None


@at_once
def test_two_claimers_at_once_never_share_a_lane(shop: Install) -> None:
    for number in range(40):
        ready(shop, f"a{number:02}", events=2)
    begin = Gate(8).after(lambda: None)

    def claim_five_times() -> list[Lease]:
        begin()
        return [lease for _ in range(5) if (lease := claims.claim(shop.pk, capacity=5))]

    leases = [lease for claimed in together(*[claim_five_times] * 8) for lease in claimed]
    claimed = [span.audience_id for lease in leases for span in lease.spans]
    assert len(claimed) == len(set(claimed)) == 40
    assert Lane.objects.exclude(lease_token=None).count() == 40


@at_once
@pytest.mark.parametrize("limit", ["max_in_flight", "probe"])
def test_two_claimers_at_once_do_not_step_over_the_limit_together(limit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    at = now()
    in_backoff = {"backoff_until_at": at, "backoff_since_at": at, "backoff_reason": "503", "backoff_failures": 1}
    install = make_install(**({"max_in_flight": 1} if limit == "max_in_flight" else in_backoff))
    for slug in "ab":
        ready(install, slug)
    # Both count requests in flight slowly, and the claim with room for both lanes is slower.
    count = "count(DISTINCT lane.lease_token)"
    slowly = claims._CLAIM.replace(count, f"{count} + length(pg_sleep(0.3 * %(capacity)s)::text)")
    monkeypatch.setattr(claims, "_CLAIM", slowly)
    begin = Gate(2).after(lambda: None)

    def claim_with(capacity: int) -> Lease | None:
        begin()
        return claims.claim(install.pk, capacity=capacity)

    leases = together(lambda: claim_with(1), lambda: claim_with(2))
    assert sorted(lease is None for lease in leases) == [False, True]


# --- What a lease protects ------------------------------------------------------------------------------------


def open_one(lease: Lease) -> int:
    ids = lease.audience_ids
    return request_records.open_delivery(
        lease, endpoint="/v3/profiles", items=1, size=2, sent=dict.fromkeys(ids, 1), of=dict.fromkeys(ids, 1)
    )


def test_claiming_the_lane_of_a_dead_worker_closes_its_request_as_unknown(shop: Install) -> None:
    audience = ready(shop, "a")
    open_one(claim(shop))
    lease_runs_out(audience)
    claim(shop)
    assert runs_of(audience) == [(1, 1, 1, 0, "unknown")]
    (delivery,) = Delivery.objects.all()
    assert (delivery.outcome, delivery.closed_at is not None) == ("unknown", True)
    assert "sent again" in delivery.reason


def test_only_the_runs_of_claimed_lanes_are_closed(shop: Install) -> None:
    dead, alive = ready(shop, "a"), ready(shop, "b")
    open_one(claim(shop, capacity=1))
    open_one(claim(shop, capacity=1))
    lease_runs_out(dead)
    claim(shop)
    assert runs_of(dead) == [(1, 1, 1, 0, "unknown")]
    assert runs_of(alive) == [(1, 1, 1, 0, "")]
    assert [outcome for outcome, _, _ in deliveries()] == ["unknown", ""]


def control_of(install: Install, *, opened: timedelta) -> Delivery:
    """A request about a customer without an audience, which no Run leads to."""
    return Delivery.objects.create(install=install, endpoint="/v3/profiles", opened_at=now() - opened, items=1, bytes=2)


def test_a_young_request_without_a_run_is_not_closed_with_an_abandoned_one(shop: Install) -> None:
    audience = ready(shop, "a")
    open_one(claim(shop))
    lease_runs_out(audience)
    dead, long_ago = timedelta(seconds=settings.LEASE_SECONDS + 1), timedelta(hours=1)
    elsewhere = control_of(make_install(name="Other"), opened=long_ago)
    young, old = control_of(shop, opened=timedelta(0)), control_of(shop, opened=dead)
    claim(shop)
    still_open = Delivery.objects.filter(closed_at=None).order_by("pk")
    assert list(still_open) == [elsewhere, young]
    assert Delivery.objects.get(pk=old.pk).outcome == "unknown"


def test_an_old_request_without_a_run_is_closed_though_a_younger_one_is_under_way(shop: Install) -> None:
    young = control_of(shop, opened=timedelta(0))
    old = control_of(shop, opened=timedelta(seconds=settings.LEASE_SECONDS + 1))
    ready(shop, "a")
    claim(shop)
    assert list(Delivery.objects.filter(closed_at=None)) == [young]
    assert Delivery.objects.get(pk=old.pk).outcome == "unknown"


def test_nothing_a_worker_does_after_it_lost_its_lease_changes_a_row(shop: Install) -> None:
    audience = ready(shop, "a", events=3)
    late = claim(shop)
    entries, ledger = reading.read(late)
    delivery = open_one(late)
    lease_runs_out(audience)
    open_one(claim(shop))
    before = everything()
    (span,) = late.spans
    result = Result(span, events=3, sent=True, accepted=entries[audience.pk])
    with pytest.raises(LeaseLostError):
        settling.settle(late, [result], ledger, delivery_id=delivery, answer=DELIVERED)
    with pytest.raises(LeaseLostError):
        settling.settle(late, [Result(span, rejected=[(entries[audience.pk][0], "no")])], ledger)
    with pytest.raises(LeaseLostError):
        open_one(late)
    with pytest.raises(LeaseLostError):
        block_all(late, "no use")
    request_records.close_delivery(delivery, DELIVERED)
    request_records.close_abandoned(late)
    holds.hold(late, "an error of ours")
    holds.give_back(late)
    assert everything() == before


def test_an_error_of_ours_closes_the_request_at_once_and_keeps_its_beginning_when_it_repeats(shop: Install) -> None:
    audience = ready(shop, "a")
    open_one(lease := claim(shop))
    holds.hold(lease, "an error of ours")
    assert [*Delivery.objects.values_list("outcome", "reason")] == [("unknown", "an error of ours")]
    since = lane_of(audience).fault_since_at
    Lane.objects.update(fault_until_at=now())
    holds.hold(claim(shop), "another one")
    assert (lane_of(audience).fault_since_at, lane_of(audience).fault_reason) == (since, "another one")


@pytest.mark.parametrize("late_step", ["closes what was left open", "fails"])
def test_a_late_worker_does_not_close_the_request_of_the_next_one(shop: Install, late_step: str) -> None:
    taken, kept = ready(shop, "a"), ready(shop, "b")
    late = claim(shop)
    lease_runs_out(taken)
    open_one(claim(shop, capacity=1))
    if late_step == "fails":
        holds.hold(late, "an error of ours")
        assert (lane_of(kept).fault_reason, lane_of(taken).fault_reason) == ("an error of ours", "")
    else:
        request_records.close_abandoned(late)
    assert runs_of(taken) == [(1, 1, 1, 0, "")]
    assert [outcome for outcome, _, _ in deliveries()] == [""]


@at_once
def test_writing_runs_waits_for_no_call_that_numbers_events(shop: Install) -> None:
    audience = ready(shop, "a")
    lease = claim(shop)
    numbering, written = threading.Event(), threading.Event()

    def call() -> None:
        with transaction.atomic():
            Audience.objects.select_for_update().get(pk=audience.pk)
            numbering.set()
            assert written.wait(PATIENCE)

    def work() -> None:
        assert numbering.wait(PATIENCE)
        delivery = open_one(lease)
        entries, ledger = reading.read(lease)
        results = [Result(span, events=1, accepted=entries[span.audience_id]) for span in lease.spans]
        settling.settle(lease, results, ledger, delivery_id=delivery, answer=DELIVERED)
        written.set()

    together(call, work)
    assert (Run.objects.count(), cursor_of(audience)) == (2, 1)


def test_a_lease_that_lost_one_of_its_lanes_changes_none_of_the_others(shop: Install) -> None:
    taken, kept = ready(shop, "a"), ready(shop, "b")
    late = claim(shop)
    lease_runs_out(taken)
    claim(shop, capacity=1)
    before = everything()
    entries, ledger = reading.read(late)
    results = [Result(span, events=1, accepted=entries[span.audience_id]) for span in late.spans]
    with pytest.raises(LeaseLostError):
        settling.settle(late, results, ledger)
    with pytest.raises(LeaseLostError):
        open_one(late)
    assert everything() == before
    holds.give_back(late)
    assert (lane_of(kept).lease_token, lane_of(taken).lease_token is None) == (None, False)


def test_a_late_worker_may_settle_a_lane_that_was_not_claimed_again(
    shop: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    audience = ready(shop, "a")
    opened = request_records.open_delivery

    def then_stand_still(*args: Any, **kwargs: Any) -> int:
        delivery = opened(*args, **kwargs)
        lease_runs_out(audience)
        return delivery

    monkeypatch.setattr(request_records, "open_delivery", then_stand_still)
    deliver(claim(shop))
    assert (cursor_of(audience), lane_of(audience).lease_token) == (1, None)


def test_a_claim_lasts_as_long_as_is_set(shop: Install, settings: Any) -> None:
    settings.LEASE_SECONDS = 1000
    audience = ready(shop, "a")
    claim(shop)
    expires_at = lane_of(audience).lease_expires_at
    assert expires_at is not None
    assert now() + timedelta(seconds=900) < expires_at <= now() + timedelta(seconds=1000)


def test_a_claim_that_finds_the_install_on_hold_releases_its_lanes(
    shop: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    audience = ready(shop, "a")
    with monkeypatch.context() as patched:
        patched.setattr(claims, "_LOCK", claims._LOCK.replace("WHERE id = ", "WHERE id <> "))
        assert claims.claim(shop.pk) is None
    assert lane_of(audience).lease_token is None
    assert spans(claim(shop)) == {"lytics_a": (1, 1)}


@at_once
def test_a_call_waits_for_no_claim(shop: Install) -> None:
    """Its Receipt points to the install, which a claim has locked."""
    ready(shop, "a")
    with transaction.atomic():
        claim(shop)
        word = transition(segment="segment-a", slug="a")
        (call,) = start(lambda: ingest.receive(shop, body(message(word))))
        assert call.result(PATIENCE).queued == 1


def test_opening_a_delivery_makes_the_lease_last_as_long_as_a_new_one(shop: Install) -> None:
    audience = ready(shop, "a")
    lease = claim(shop)
    nearly_over = now() + timedelta(seconds=settings.LEASE_SECONDS / 2)
    Lane.objects.filter(pk=audience.pk).update(lease_expires_at=nearly_over)
    open_one(lease)
    expires_at = lane_of(audience).lease_expires_at
    assert expires_at is not None
    assert expires_at > nearly_over + timedelta(seconds=settings.LEASE_SECONDS / 4)


def test_an_expired_lease_opens_no_delivery_even_if_its_lane_is_unclaimed(shop: Install) -> None:
    """It isn't counted any more, so another may have the install's place by now."""
    audience = ready(shop, "a")
    lease = claim(shop)
    lease_runs_out(audience)
    with pytest.raises(LeaseLostError):
        open_one(lease)
    assert not Delivery.objects.exists()


@at_once
def test_a_settle_that_is_late_but_first_is_not_undone_by_the_claim_behind_it(
    shop: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The claim has read the old cursor and waits for the row that the settle holds."""
    audience = ready(shop, "a", events=3)
    late = claim(shop, capacity=2)
    entries, ledger = reading.read(late)
    lease_runs_out(audience)
    write_ledger, moved = settling._write_ledger, Gate(2)

    def hold(results: list[Result], ledger: Ledger) -> None:
        write_ledger(results, ledger)
        moved.after(lambda: None)()
        eventually(waiting_for_a_lock)

    def claim_behind() -> Lease | None:
        moved.after(lambda: None)()
        return claims.claim(shop.pk)

    monkeypatch.setattr(settling, "_write_ledger", hold)
    result = Result(late.spans[0], events=2, accepted=entries[audience.pk])
    settled, claimed = start(lambda: settling.settle(late, [result], ledger), claim_behind)
    settled.result(PATIENCE)
    assert claimed.result(PATIENCE) is None
    assert (cursor_of(audience), lane_of(audience).lease_token) == (2, None)
    monkeypatch.undo()
    assert spans(claim(shop)) == {"lytics_a": (3, 3)}


@at_once
def test_a_worker_that_renews_its_lease_in_the_last_moment_keeps_it(
    shop: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The claim has read that the lease is over, by a clock half a lease ahead, and waits for the row."""
    audience = ready(shop, "a")
    lease = claim(shop)
    half = settings.LEASE_SECONDS / 2
    Lane.objects.filter(pk=audience.pk).update(lease_expires_at=now() + timedelta(seconds=half - 1))
    ahead = f"<= clock_timestamp() + interval '{half} s'"
    monkeypatch.setattr(claims, "_CLAIM", claims._CLAIM.replace("<= clock_timestamp()", ahead))
    renewed = Gate(2)

    def open_slowly() -> int:
        with transaction.atomic():
            opened = open_one(lease)
            renewed.after(lambda: None)()
            eventually(waiting_for_a_lock)
        return opened

    def claim_behind() -> Lease | None:
        renewed.after(lambda: None)()
        return claims.claim(shop.pk)

    opening, claiming = start(open_slowly, claim_behind)
    assert opening.result(PATIENCE)
    assert claiming.result(PATIENCE) is None
    assert runs_of(audience) == [(1, 1, 1, 0, "")]


# --- Reading --------------------------------------------------------------------------------------------------


def test_a_gap_in_the_log_is_reported_before_anything_is_sent(shop: Install) -> None:
    audience = ready(shop, "a", events=5)
    Event.objects.filter(audience=audience, sequence=3).delete()
    with pytest.raises(GapError, match="lytics_a: events 1–5 are not all there"):
        reading.read(claim(shop))


def test_each_lane_is_read_with_its_own_part_of_the_ledger(shop: Install) -> None:
    gold, vip = ready(shop, "gold"), ready(shop, "vip")
    deliver(claim(shop))
    happen(gold, ("u0000", "exit", 2), ("new", "enter", 2))
    happen(vip, ("new", "enter", 2))
    entries, ledger = reading.read(claim(shop))
    assert [entry.identifier for entry in entries[gold.pk]] == ["u0000", "new"]
    assert (list(ledger[gold.pk]), list(ledger[vip.pk])) == (["u0000"], [])


# --- Settling -------------------------------------------------------------------------------------------------


def test_settling_writes_down_everything_at_once(shop: Install) -> None:
    audience = make_audience(shop)
    happen(audience, ("kim", "enter", 5), ("lee", "enter", 5), ("mo", "exit", 5), ("kim", "enter", 5))
    deliver(claim(shop), refuse=("lee",))
    lane = lane_of(audience)
    assert (lane.delivered_sequence, lane.lease_token, lane.lease_expires_at) == (4, None, None)
    # In Lytics lee is a member, although ODP rejected it.
    assert lane.member_count == 2
    assert ledger_of(audience) == {"kim": (True, 5, False), "lee": (True, 5, True), "mo": (False, 5, False)}
    assert runs_of(audience) == [(1, 4, 3, 1, "delivered")]
    assert deliveries() == [("delivered", 202, 1)]
    assert parked() == [("lytics_gold", "lee", "")]


def test_members_are_counted_as_they_come_and_go(shop: Install) -> None:
    audience = make_audience(shop)
    counts = []
    for step, events in enumerate(
        [
            [("a", "enter"), ("b", "enter"), ("c", "enter")],
            [("a", "exit"), ("unknown", "exit")],
            [("a", "enter"), ("b", "change"), ("d", "change")],
            [("a", "exit"), ("b", "exit"), ("c", "exit"), ("d", "exit")],
        ],
        start=1,
    ):
        happen(audience, *((who, what, step) for who, what in events))
        deliver(claim(shop))
        counts.append(lane_of(audience).member_count)
    assert counts == [3, 2, 4, 0]


def test_a_run_of_which_nothing_had_to_be_sent_is_in_the_history(shop: Install) -> None:
    audience = make_audience(shop)
    enter(audience, "kim")
    deliver(claim(shop))
    enter(audience, "kim", "kim")
    deliver(claim(shop))
    assert runs_of(audience) == [(1, 1, 1, 0, "delivered"), (2, 3, 0, 2, "delivered")]
    assert Run.objects.filter(delivery=None).count() == 1
    assert Delivery.objects.count() == 1


def test_partial_answers_are_recorded_but_the_cursor_does_not_move(shop: Install) -> None:
    audience = make_audience(shop)
    enter(audience, "kim", "lee", "mo")
    deliver(claim(shop), refuse=("lee",), stop=("mo",))
    assert (cursor_of(audience), lane_of(audience).lease_token) == (0, None)
    assert ledger_of(audience) == {"kim": (True, 1, False), "lee": (True, 1, True)}
    assert runs_of(audience) == [(1, 3, 3, 0, "retry_later")]
    assert parked() == [("lytics_gold", "lee", "")]
    lease = claim(shop)
    entries, ledger = reading.read(lease)
    assert [entry.identifier for entry in fold(entries[audience.pk], ledger[audience.pk]).send] == ["mo"]
    deliver(lease)
    assert (cursor_of(audience), lane_of(audience).member_count) == (3, 3)
    assert len(parked()) == 1


def test_a_second_rejection_of_a_customer_updates_the_parked_item(shop: Install) -> None:
    audience = make_audience(shop)
    for at in (1, 2, 3):
        enter(audience, "lee", at=at)
        deliver(claim(shop), refuse=("lee",), words=f"not\x00 him, {at}")
    assert parked() == [("lytics_gold", "lee", "")]
    (item,) = audience.parked.all()
    assert (item.sequence, item.detail, item.delivery_id) == (3, "not him, 3", Delivery.objects.latest("pk").pk)


def test_only_customers_that_are_still_parked_count_as_rejected(shop: Install) -> None:
    audience = make_audience(shop)
    enter(audience, "lee", "mo", "kim")
    deliver(claim(shop), refuse=("lee", "mo"))
    happen(audience, ("lee", "exit", 2))
    deliver(claim(shop))
    enter(audience, "lee", "mo", "kim", at=3)
    lease = claim(shop)
    assert lease.has_rejections
    assert reading.rejected_customers(lease, {"lee", "mo", "kim"}) == {"mo"}


def test_odp_knows_an_audience_once_it_accepted_any_membership_of_it(shop: Install) -> None:
    refused, left = make_audience(shop, "a"), make_audience(shop, "b")
    enter(refused, "lee")
    happen(left, ("kim", "exit", 1))
    assert not reading.was_taken(left.pk)
    deliver(claim(shop), refuse=("lee",))
    assert not reading.was_taken(refused.pk)
    assert reading.was_taken(left.pk)


def test_a_parked_item_is_superseded_when_odp_accepts_something_newer(shop: Install) -> None:
    audience, other = make_audience(shop, "gold"), make_audience(shop, "vip")
    for each in (audience, other):
        enter(each, "lee", "mo")
    deliver(claim(shop), refuse=("lee", "mo"))
    happen(audience, ("lee", "exit", 2))
    deliver(claim(shop))
    assert sorted(parked()) == [
        ("lytics_gold", "lee", "superseded"),
        ("lytics_gold", "mo", ""),
        ("lytics_vip", "lee", ""),
        ("lytics_vip", "mo", ""),
    ]
    assert ledger_of(audience)["lee"] == (False, 2, False)


def test_a_change_of_a_rejected_customer_is_sent_and_supersedes(shop: Install) -> None:
    audience = make_audience(shop)
    enter(audience, "lee")
    deliver(claim(shop), refuse=("lee",))
    happen(audience, ("lee", "change", 2))
    deliver(claim(shop))
    assert parked() == [("lytics_gold", "lee", "superseded")]
    assert runs_of(audience)[-1] == (2, 2, 1, 0, "delivered")


def test_a_rejected_change_that_is_resent_and_accepted_is_closed(shop: Install) -> None:
    """As a resync or a replay sends it: the same change, forced."""
    audience = make_audience(shop)
    enter(audience, "lee", "mo")
    deliver(claim(shop), refuse=("lee", "mo"))
    happen(audience, ("lee", "enter", 1), forced=True)
    deliver(claim(shop))
    assert sorted(parked()) == [("lytics_gold", "lee", "superseded"), ("lytics_gold", "mo", "")]
    assert (ledger_of(audience)["lee"], ledger_of(audience)["mo"]) == ((True, 1, False), (True, 1, True))
    assert broken_truths() == []


@pytest.mark.parametrize("kind", ["enter", "exit"])
def test_a_rejection_of_a_known_customer_keeps_the_member_count_of_the_ledger(shop: Install, kind: str) -> None:
    audience = make_audience(shop)
    enter(audience, "kim", "lee")
    deliver(claim(shop))
    happen(audience, ("kim", kind, 2))
    deliver(claim(shop), refuse=("kim",))
    assert lane_of(audience).member_count == (2 if kind == "enter" else 1)
    assert broken_truths() == []


def test_the_ledger_never_goes_back_even_for_a_worker_that_should_not_be(shop: Install) -> None:
    audience = make_audience(shop)
    happen(audience, ("kim", "exit", 9))
    deliver(claim(shop))
    happen(audience, ("kim", "enter", 3))
    lease = claim(shop)
    entries, _ = reading.read(lease)
    stale = Result(lease.spans[0], events=1, accepted=entries[audience.pk])
    with pytest.raises(IntegrityError), transaction.atomic():
        settling.settle(lease, [stale], {audience.pk: {}})
    assert ledger_of(audience) == {"kim": (False, 9, False)}
    settling.settle(lease, [stale], {audience.pk: {"kim": Held(is_member=False, occurred_ns=1)}})
    assert ledger_of(audience) == {"kim": (False, 9, False)}


def test_blocking_holds_the_lane_with_its_reason_and_keeps_its_events(shop: Install) -> None:
    audience, other = ready(shop, "a", events=3), ready(shop, "b")
    block_all(claim(shop, capacity=3), "field\x00 gone")
    lane = lane_of(audience)
    assert (lane.block_reason, lane.blocked_at is not None) == ("field gone", True)
    assert (lane.delivered_sequence, lane.lease_token) == (0, None)
    assert lane_of(other).blocked_at is None
    assert (parked(), runs_of(audience)) == ([], [])


def test_a_settle_that_fails_half_way_has_changed_nothing(shop: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    audience = ready(shop, "a", events=2)
    lease = claim(shop)

    def power_cut(*args: Any) -> None:
        raise SystemExit

    monkeypatch.setattr(settling, "_record_folded", power_cut)
    with pytest.raises(SystemExit):
        deliver(lease, refuse=("u0001",))
    assert (cursor_of(audience), ledger_of(audience), parked()) == (0, {}, [])
    assert runs_of(audience) == [(1, 2, 2, 0, "")]
    assert lane_of(audience).lease_token == lease.token


def test_no_audience_has_two_open_runs(shop: Install) -> None:
    for slug in "abc":
        ready(shop, slug, events=3)
    for _ in range(4):
        lease = claim(shop, capacity=2)
        open_one(lease)
        lease_runs_out(*Audience.objects.all())
    open_runs = Run.objects.filter(closed_at=None).values("audience").annotate(runs=Count("pk"))
    assert all(row["runs"] == 1 for row in open_runs)
