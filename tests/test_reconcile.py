"""A request that ODP applies after it was given up: what it undid is said again, and nothing else is."""

import time
from datetime import timedelta
from typing import Any

import pytest
from django.db import OperationalError, transaction
from django.utils.timezone import now

from audiences.delivery import holds, request_records, unconfirmed
from audiences.models import Audience, Delivery, Event, Install, Membership
from audiences.operations.reconcile import reconcile as reconcile_now
from audiences.receiving import ingest
from odp.outcomes import Outcome
from sandbox.odp.testing import ThreadedSandbox
from tests.delivering import (
    assert_all_is_well,
    claim,
    drain_all,
    enter,
    give_up,
    happen,
    lease_runs_out,
    make_audience,
    make_delivered,
    make_install,
    writes,
)
from tests.threads import PATIENCE, start
from workers import drain

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def shop(odp: ThreadedSandbox, settings: Any) -> Install:
    settings.RECONCILE_AFTER_SECONDS = 0
    return make_install(odp)


@pytest.fixture
def gold(shop: Install) -> Audience:
    return make_delivered(shop, "somebody")


def supersede(odp: ThreadedSandbox, shop: Install, gold: Audience, *, applied_after: float = 0.5) -> None:
    """Anna's entry is given up and applied late; her exit, which is newer, is delivered."""
    give_up(odp, shop, applied_after=applied_after)
    happen(gold, ("anna", "exit", 20))
    drain_all(shop)


def members(odp: ThreadedSandbox) -> list[str]:
    return sorted(odp.members("lytics_gold"))


def until(odp: ThreadedSandbox, expected: list[str]) -> None:
    for _ in range(100):
        if members(odp) == expected:
            return
        time.sleep(0.05)
    raise AssertionError(f"{members(odp)} is not {expected}")


def test_it_corrects_the_effect_of_a_request_applied_late(odp: ThreadedSandbox, shop: Install, gold: Audience) -> None:
    enter(gold, "anna", "ben", at=10)
    supersede(odp, shop, gold, applied_after=1.5)
    assert members(odp) == ["ben", "somebody"]

    until(odp, ["anna", "ben", "somebody"])  # wrong, although each response was a success
    before = len(writes(odp))
    assert reconcile_now() == 1
    drain_all(shop)

    assert members(odp) == ["ben", "somebody"]
    assert [item["attributes"]["lytics_gold"] for item in writes(odp)[before]] == [False]
    assert_all_is_well(gold)


def test_nothing_is_appended_after_the_end_of_a_retiring_log(
    odp: ThreadedSandbox, shop: Install, gold: Audience
) -> None:
    enter(gold, "anna", at=10)
    supersede(odp, shop, gold)
    holds.end_log(gold.pk, Audience.objects.get(pk=gold.pk).last_sequence)
    assert reconcile_now() == 0


def test_it_waits_until_odp_is_done_with_the_request(
    odp: ThreadedSandbox, shop: Install, gold: Audience, settings: Any
) -> None:
    enter(gold, "anna", at=10)
    supersede(odp, shop, gold)
    settings.RECONCILE_AFTER_SECONDS = 300
    assert reconcile_now() == 0
    Delivery.objects.update(closed_at=now() - timedelta(seconds=301))
    assert reconcile_now() == 1


def test_it_says_nothing_again_where_nothing_newer_was_sent(
    odp: ThreadedSandbox, shop: Install, gold: Audience
) -> None:
    enter(gold, "anna", at=10)
    give_up(odp, shop, applied_after=0.5)
    drain_all(shop)
    enter(gold, "ben", at=10)
    drain_all(shop)
    assert reconcile_now() == 0
    assert Delivery.objects.get(outcome=Outcome.RETRY_LATER).reconciled_at is not None


def test_it_reconciles_a_request_whose_worker_died(odp: ThreadedSandbox, shop: Install, gold: Audience) -> None:
    enter(gold, "anna", at=10)
    lease = claim(shop)
    request_records.open_delivery(lease, endpoint="/v3/profiles", items=1, size=1, sent={gold.pk: 1}, of={gold.pk: 1})
    lease_runs_out(gold)
    happen(gold, ("anna", "exit", 20))
    drain_all(shop)
    assert Delivery.objects.filter(outcome=Outcome.UNKNOWN).count() == 1
    assert reconcile_now() == 1


def test_it_does_so_once(odp: ThreadedSandbox, shop: Install, gold: Audience) -> None:
    enter(gold, "anna", at=10)
    supersede(odp, shop, gold)
    (delivery,) = unconfirmed.doubtful(seconds=0)
    assert reconcile_now() == 1
    assert not unconfirmed.mark(delivery), "a worker that found it too, and comes later"
    drain_all(shop)
    assert reconcile_now() == 0
    assert Event.objects.filter(identifier="anna", forced=True).count() == 1


def test_it_leaves_a_rejected_change_parked(odp: ThreadedSandbox, shop: Install, gold: Audience) -> None:
    enter(gold, "anna", at=10)
    supersede(odp, shop, gold)
    Membership.objects.filter(identifier="anna").update(rejected=True)
    assert reconcile_now() == 0


def test_a_crash_before_the_commit_leaves_it_to_be_done(
    odp: ThreadedSandbox, shop: Install, gold: Audience, monkeypatch: pytest.MonkeyPatch
) -> None:
    enter(gold, "anna", at=10)
    supersede(odp, shop, gold)

    def crash(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as broken:
        broken.setattr(ingest, "append", crash)
        with pytest.raises(KeyboardInterrupt):
            reconcile_now()
    assert reconcile_now() == 1


def test_two_workers_share_the_work(
    odp: ThreadedSandbox, shop: Install, gold: Audience, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second one looks while the first has marked the Delivery and not committed: it neither waits nor repeats."""
    enter(gold, "anna", at=10)
    supersede(odp, shop, gold)
    append, counts = ingest.append, []

    def looked_at_meanwhile(*args: Any, **kwargs: Any) -> Any:
        monkeypatch.setattr(ingest, "append", append)
        counts.append(start(reconcile_now)[0].result(PATIENCE))
        return append(*args, **kwargs)

    monkeypatch.setattr(ingest, "append", looked_at_meanwhile)
    counts.append(reconcile_now())
    assert counts == [0, 1]


def test_a_change_without_new_state_does_not_hide_it(odp: ThreadedSandbox, shop: Install, gold: Audience) -> None:
    """It moves the ledger on without being sent."""
    happen(gold, ("anna", "exit", 10))
    give_up(odp, shop, applied_after=1.5)
    enter(gold, "anna", at=20)
    drain_all(shop)
    happen(gold, ("anna", "change", 30))
    until(odp, ["somebody"])  # wrong by now
    assert reconcile_now() == 1
    drain_all(shop)
    until(odp, ["anna", "somebody"])
    assert_all_is_well(gold)


def test_a_newer_change_that_arrives_meanwhile_wins(odp: ThreadedSandbox, shop: Install, gold: Audience) -> None:
    enter(gold, "anna", at=10)
    supersede(odp, shop, gold)
    enter(gold, "anna", at=30)
    assert reconcile_now() == 1
    drain_all(shop)
    until(odp, ["anna", "somebody"])
    assert_all_is_well(gold)


def test_every_customer_of_the_request_is_checked_and_sent_once(
    odp: ThreadedSandbox, shop: Install, gold: Audience
) -> None:
    pro = make_audience(shop, "pro", provisioned=False)
    enter(pro, "somebody")
    drain_all(shop)
    happen(gold, *((who, "enter", 10) for who in ("anna", "ben", "eve", "carl")))
    happen(gold, ("anna", "change", 11), ("eve", "exit", 11), ("dora", "enter", 10))
    enter(pro, "anna", "fred", "greg", at=10)
    give_up(odp, shop, applied_after=0.5)
    drain_all(shop)
    # Of the first one, one in the middle and the last; not of eve, nor of those with something newer elsewhere.
    happen(gold, *((who, "exit", 20) for who in ("anna", "carl", "dora")), ("greg", "enter", 20))
    happen(pro, ("fred", "exit", 20))
    drain_all(shop)
    assert reconcile_now() == 4
    said = Event.objects.filter(forced=True).values_list("audience__slug", "identifier", "kind")
    assert sorted(said) == [("gold", "anna", 0), ("gold", "carl", 0), ("gold", "dora", 0), ("pro", "fred", 0)]
    drain_all(shop)
    assert_all_is_well(gold, pro)


def test_all_requests_are_checked_in_any_number(odp: ThreadedSandbox, shop: Install, gold: Audience) -> None:
    for who in ("anna", "ben", "carl", "dora"):
        enter(gold, who, at=10)
        give_up(odp, shop, applied_after=0.4)
        happen(gold, (who, "exit", 20))
        drain_all(shop)
    assert reconcile_now() == 4


def test_a_failing_delivery_does_not_delay_others_and_is_tried_again(
    odp: ThreadedSandbox, shop: Install, gold: Audience, monkeypatch: pytest.MonkeyPatch
) -> None:
    for who in ("anna", "ben", "carl"):
        enter(gold, who, at=10)
        give_up(odp, shop, applied_after=0.4)
        happen(gold, (who, "exit", 20))
        drain_all(shop)
    append = ingest.append

    def fail_for_anna(facts: Any, **options: Any) -> Any:
        if any(fact.identifier == "anna" for some in facts.values() for fact in some):
            raise LookupError("no such thing")
        return append(facts, **options)

    with monkeypatch.context() as patched:
        patched.setattr(ingest, "append", fail_for_anna)
        assert reconcile_now() == 2
    assert reconcile_now() == 1
    drain_all(shop)
    assert_all_is_well(gold)


def test_a_database_that_is_away_ends_the_sweep(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error is the database's, so no delivery is blamed in the log, and the next one isn't tried."""
    tried = []

    def mark(delivery_id: int) -> bool:
        tried.append(delivery_id)
        raise OperationalError("the server is gone")

    monkeypatch.setattr(unconfirmed, "doubtful", lambda *, seconds: [1, 2])
    monkeypatch.setattr(unconfirmed, "mark", mark)
    with pytest.raises(OperationalError):
        reconcile_now()
    assert tried == [1]


def test_a_request_that_another_worker_looks_at_is_left_to_it(
    odp: ThreadedSandbox, shop: Install, gold: Audience
) -> None:
    enter(gold, "anna", at=10)
    supersede(odp, shop, gold)
    with transaction.atomic():
        (delivery,) = unconfirmed.doubtful(seconds=0)
        assert unconfirmed.mark(delivery)
        (other,) = start(reconcile_now)
        assert other.result(PATIENCE) == 0


def test_a_request_that_was_never_sent_is_not_reconciled(shop: Install) -> None:
    opened = Delivery.objects.create(
        install=shop, endpoint="/v3/profiles", outcome="", items=1, bytes=2, opened_at=now()
    )
    request_records.close_delivery(opened.pk, drain.TOO_LATE)
    opened.refresh_from_db()
    assert (opened.outcome, opened.reconciled_at is not None) == (Outcome.RETRY_LATER, True)


def test_a_request_may_be_applied_until_it_is_answered_or_reconciled(shop: Install) -> None:
    opened = Delivery.objects.create(
        install=shop, endpoint="/v3/profiles", outcome="", items=1, bytes=2, opened_at=now()
    )
    assert unconfirmed.may_be_applied([opened.pk]), "its worker has died, and nobody has closed it yet"
    for outcome, may_be in ((Outcome.UNKNOWN, True), (Outcome.RETRY_LATER, True), (Outcome.DELIVERED, False)):
        Delivery.objects.update(outcome=outcome, closed_at=now())
        assert unconfirmed.may_be_applied([opened.pk]) == may_be
    Delivery.objects.update(outcome=Outcome.UNKNOWN, reconciled_at=now())
    assert not unconfirmed.may_be_applied([opened.pk])
