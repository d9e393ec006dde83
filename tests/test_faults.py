"""An unexpected error of this service holds only the affected audience, and ends without an operator."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.db import transaction
from django.test import Client
from django.utils.timezone import now

from audiences import sessions
from audiences.delivery import account_switch, claims, holds, leases, provision
from audiences.insight import heartbeats
from audiences.models import Audience, GuidedChange, Install, Lane, Retirement
from audiences.operations import changes, retiring, skips
from audiences.receiving import audience_lookup, backlog
from sandbox.odp.testing import ThreadedSandbox
from tests.delivering import (
    assert_all_is_well,
    backoff_runs_out,
    drain_all,
    enter,
    lane_of,
    make_audience,
    runs_of,
    step_of,
    time_passes,
    writes,
)
from tests.test_admin import press
from tests.threads import PATIENCE, eventually, start, waiting_for_a_lock
from workers import drain

pytestmark = pytest.mark.django_db(transaction=True)

NAMES = ("gold", "silver", "bronze")


@pytest.fixture
def three(odp: ThreadedSandbox, shop: Install) -> tuple[Audience, ...]:
    """Three audiences that are in ODP, each with an event."""
    made = tuple(make_audience(shop, name, provisioned=False) for name in NAMES)
    for audience in made:
        enter(audience, "a")
    while provision.provision_one(shop.pk):
        pass
    return made


def fail_for(audience: Audience, monkeypatch: pytest.MonkeyPatch, where: str) -> pytest.MonkeyPatch:
    """From now on that step fails for requests in which the audience is."""
    module = step_of(where)
    original = getattr(module, where)

    def fail(lease: leases.Lease, *args: Any, **kwargs: Any) -> Any:
        if audience.pk in lease.audience_ids:
            raise LookupError("no such thing\nand more")
        return original(lease, *args, **kwargs)

    monkeypatch.setattr(module, where, fail)
    return monkeypatch


def members(odp: ThreadedSandbox) -> list[list[str]]:
    return [odp.members(f"lytics_{name}") for name in NAMES]


def on_page(client: Client, path: str = "/admin/") -> str:
    return str(client.get(path).content.decode())


@pytest.mark.parametrize("where", ["read", "open_delivery", "settle"])
def test_only_the_failing_audience_waits_and_others_of_its_claim_continue(
    odp: ThreadedSandbox,
    shop: Install,
    three: tuple[Audience, ...],
    monkeypatch: pytest.MonkeyPatch,
    where: str,
    operator: Client,
) -> None:
    _, silver, _ = three
    fail_for(silver, monkeypatch, where)
    drain_all(shop)
    assert_all_is_well(three[0], three[2])
    lane = lane_of(silver)
    assert (lane.delivered_sequence, lane.lease_token) == (0, None)
    assert lane.fault_reason == "Unexpected error in delivery: no such thing"
    assert lane.fault_until_at is not None
    assert lane.fault_until_at > now() + timedelta(seconds=20)
    shop.refresh_from_db()
    assert shop.backoff_until_at is None
    assert claims.due() == []
    for page in (on_page(operator), on_page(operator, f"/admin/audiences/audience/{silver.pk}/change/")):
        assert "Unexpected error in delivery: no such thing" in page
        assert "Retry now" in page
    assert backlog.of(shop.pk) == 0


def test_other_audiences_continue_while_it_waits_and_fails_again(
    odp: ThreadedSandbox, shop: Install, three: tuple[Audience, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_for(three[1], monkeypatch, "read")
    drain_all(shop)
    for round_of in range(3):
        for audience in three:
            enter(audience, f"b{round_of}", at=2)
        before = len(writes(odp))
        drain_all(shop)
        assert len(writes(odp)) == before + 1
        time_passes(31)
    assert [len(runs_of(audience)) for audience in three] == [4, 0, 4]


def test_a_failed_audience_is_delivered_and_its_error_cleared_when_the_cause_is_gone(
    odp: ThreadedSandbox, shop: Install, three: tuple[Audience, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        fail_for(three[1], patched, "settle")
        drain_all(shop)
    drain_all(shop)
    assert lane_of(three[1]).delivered_sequence == 0
    time_passes(31)
    assert claims.due() == [shop.pk]
    drain_all(shop)
    assert_all_is_well(*three)
    assert members(odp) == [["a"]] * 3
    assert not Lane.objects.filter(backlog.FAULTY).exists()


def test_retry_now_tries_it_at_once(
    shop: Install, three: tuple[Audience, ...], monkeypatch: pytest.MonkeyPatch, operator: Client
) -> None:
    with monkeypatch.context() as patched:
        fail_for(three[1], patched, "read")
        drain_all(shop)
    press(operator, "retry", three[1])
    assert drain_all(shop) > 0
    assert_all_is_well(*three)


def test_skipped_events_leave_no_fault_behind(
    shop: Install, three: tuple[Audience, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_for(three[1], monkeypatch, "read")
    drain_all(shop)
    Install.objects.update(enabled=False)
    skips.skip(shop.pk, by="boss", reason="restored")
    assert not Lane.objects.filter(backlog.FAULTY).exists()


# --- health ---------------------------------------------------------------------------------------------------


def health() -> int:
    heartbeats.note("worker", worked_seconds_ago=None)
    return int(Client().get("/health/workers").status_code)


def test_health_is_red_for_one_audience_that_an_error_of_ours_holds(
    shop: Install, three: tuple[Audience, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        fail_for(three[1], patched, "read")
        drain_all(shop)
        assert health() == 200
        time_passes(61)
        assert health() == 503
        enter(three[0], "b", at=2)
        drain_all(shop)  # the install delivers, and that audience doesn't
        assert health() == 503
    time_passes(31)
    drain_all(shop)
    assert health() == 200


def test_health_is_red_for_an_audience_that_an_error_of_ours_keeps_from_being_made(
    odp: ThreadedSandbox, shop: Install, three: tuple[Audience, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(install: Install) -> Any:
        raise LookupError("no such thing")

    drain_all(shop)
    odd = make_audience(shop, "odd", provisioned=False)
    enter(odd, "a")
    monkeypatch.setattr(provision, "mechanism_for", fail)
    assert provision.provision_one(shop.pk)
    time_passes(61)
    assert health() == 503


@pytest.mark.parametrize("how", ["paused", "blocked", "off", "ODP fails", "nothing waits"])
def test_health_stays_green_where_a_person_or_odp_holds_the_audience_too(
    shop: Install, three: tuple[Audience, ...], monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    fail_for(three[1], monkeypatch, "read")
    drain_all(shop)
    time_passes(61)
    match how:
        case "paused":
            holds.pause(lane_of(three[1]), by="kim", reason="later")
        case "blocked":
            holds.block_audience(three[1].pk, "no such field")
        case "off":
            Install.objects.update(enabled=False)
        case "ODP fails":
            Install.objects.update(
                backoff_failures=1, backoff_since_at=now(), backoff_until_at=now(), backoff_reason="503: busy"
            )
            backoff_runs_out(shop)
        case "nothing waits":
            Lane.objects.filter(pk=three[1].pk).update(delivered_sequence=1)
    assert health() == 200


def test_health_stays_green_for_an_audience_that_odp_does_not_make(
    odp: ThreadedSandbox, shop: Install, three: tuple[Audience, ...]
) -> None:
    drain_all(shop)
    odd = make_audience(shop, "odd", provisioned=False)
    enter(odd, "a")
    odp.fault({"path": "/v3/schema"}, {"status": 503})
    drain_all(shop)
    time_passes(61)
    assert health() == 200


# --- an audience that another transaction locks ---------------------------------------------------------------


def _make(gold: Audience) -> Callable[[], object]:
    Audience.objects.filter(pk=gold.pk).update(provisioned_at=None)
    return lambda: provision.claim(gold.install_id)


def _retire(gold: Audience) -> Callable[[], object]:
    assert retiring.retire(gold, by="sam", reason="left the job")
    return lambda: retiring.advance(Retirement.objects.get().pk)


def _change(gold: Audience) -> Callable[[], object]:
    what = {"kind": "mechanism", "before": "attribute", "after": "list", "was": "attribute", "phase": "switch"}
    GuidedChange.objects.create(install=gold.install, audience=gold, by="sam", reason="lists", **what)
    token = changes.lease(gold.install_id)
    assert token is not None
    return lambda: changes.step(token)


@pytest.mark.parametrize("begin", [_make, _retire, _change])
def test_work_that_waits_for_a_locked_audience_delays_no_delivery(
    shop: Install, monkeypatch: pytest.MonkeyPatch, begin: Callable[[Audience], Callable[[], object]]
) -> None:
    """A web process that is frozen in a transaction keeps an audience locked."""
    monkeypatch.setattr(sessions, "LOCK_MILLISECONDS", 50)
    gold, silver = make_audience(shop), make_audience(shop, "silver")
    for audience in (gold, silver):
        enter(audience, "kim")
    work = begin(gold)
    with transaction.atomic():
        audience_lookup.lock([gold.pk])
        (working,) = start(work)
        eventually(lambda: working.done() or waiting_for_a_lock())
        (claiming,) = start(lambda: claims.claim(shop.pk))
        lease = claiming.result(PATIENCE)
        in_vain = working.result(PATIENCE)
    assert silver.pk in lease.audience_ids
    assert work() != in_vain


def test_a_locked_install_is_not_put_on_hold(shop: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    """No audience is created as long as another transaction locks the install."""
    monkeypatch.setattr(sessions, "LOCK_MILLISECONDS", 10)
    enter(make_audience(shop, provisioned=False), "kim")
    with transaction.atomic():
        account_switch.lock(shop.pk)
        (turning,) = start(lambda: drain.turn(shop.pk))
        assert turning.result(PATIENCE) is False
    assert Install.objects.get().backoff_failures == 0
