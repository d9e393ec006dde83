"""A block that returns for the same reason keeps its start time; another reason starts a new one."""

from collections.abc import Callable
from datetime import timedelta

import pytest
from django.test import Client
from django.utils.timezone import now

from audiences.delivery import claims, holds, leases, settling
from audiences.insight import state
from audiences.models import Audience, Lane
from audiences.receiving import backlog
from sandbox.odp.testing import ThreadedSandbox
from tests.delivering import block_all, drain_all, enter, lane_of, make_audience, make_install
from tests.test_admin import press

pytestmark = pytest.mark.django_db

EARLIER = timedelta(hours=3)


@pytest.fixture
def gold(odp: ThreadedSandbox) -> Audience:
    made = make_audience(make_install(odp))
    enter(made, "kim")
    return made


def claimed(audience: Audience) -> leases.Lease:
    """It was checked in ODP, as after each Unblock, and a worker claims it."""
    Audience.objects.filter(pk=audience.pk).update(look_asked_at=None)
    lease = claims.claim(audience.install_id)
    assert lease is not None
    return lease


def blocked(audience: Audience, reason: str) -> None:
    """By a delivery that ODP rejected as a whole."""
    lease = claimed(audience)
    block_all(lease, reason)


def grows_older(audience: Audience) -> None:
    lane = lane_of(audience)
    assert lane.blocked_at is not None
    Lane.objects.filter(pk=lane.pk).update(blocked_at=lane.blocked_at - EARLIER)


def age(audience: Audience) -> timedelta:
    since = state.blocked_since(lane_of(audience))
    assert since is not None
    return now() - since


def by_a_delivery(audience: Audience, reason: str) -> None:
    blocked(audience, reason)


def by_its_making(audience: Audience, reason: str) -> None:
    assert holds.block_audience(audience.pk, reason)


@pytest.mark.parametrize("again", [by_a_delivery, by_its_making])
def test_the_same_block_keeps_its_beginning(operator: Client, gold: Audience, again: object) -> None:
    assert callable(again)
    blocked(gold, "field has the wrong type")
    grows_older(gold)
    press(operator, "unblock", gold)
    assert lane_of(gold).blocked_at is None
    again(gold, "field has the wrong type")
    assert age(gold) >= EARLIER
    assert "3 h ago" in operator.get("/admin/").content.decode()


def test_a_try_that_delivers_nothing_keeps_the_beginning_of_the_block(operator: Client, gold: Audience) -> None:
    blocked(gold, "field has the wrong type")
    grows_older(gold)
    press(operator, "unblock", gold)
    lease = claimed(gold)
    settling.settle(lease, [leases.Result(lease.spans[0], complete=False)], {gold.pk: {}})
    blocked(gold, "field has the wrong type")
    assert age(gold) >= EARLIER


@pytest.mark.parametrize("again", [by_a_delivery, by_its_making])
def test_another_reason_starts_a_new_count(operator: Client, gold: Audience, again: object) -> None:
    assert callable(again)
    blocked(gold, "field has the wrong type")
    grows_older(gold)
    press(operator, "unblock", gold)
    again(gold, "the list is gone")
    assert age(gold) < EARLIER


def test_the_same_reason_starts_a_new_count_after_a_delivery(operator: Client, gold: Audience) -> None:
    blocked(gold, "field has the wrong type")
    grows_older(gold)
    press(operator, "unblock", gold)
    drain_all(gold.install)
    assert lane_of(gold).delivered_sequence == 1
    enter(gold, "alex")
    blocked(gold, "field has the wrong type")
    assert age(gold) < EARLIER


def test_a_try_that_delivers_nothing_forgets_nothing(operator: Client, gold: Audience) -> None:
    blocked(gold, "field has the wrong type")
    grows_older(gold)
    press(operator, "unblock", gold)
    lease = claimed(gold)
    holds.give_back(lease)
    blocked(gold, "field has the wrong type")
    assert age(gold) >= EARLIER


@pytest.mark.parametrize("again", [by_a_delivery, by_its_making])
def test_a_block_that_comes_back_a_second_time_keeps_its_first_beginning(
    operator: Client, gold: Audience, again: Callable[[Audience, str], None]
) -> None:
    blocked(gold, "field has the wrong type")
    grows_older(gold)
    for _ in range(2):
        press(operator, "unblock", gold)
        again(gold, "field has the wrong type")
    assert age(gold) >= EARLIER


@pytest.mark.parametrize("by_delivery", [True, False])
def test_a_block_that_returns_is_shown_to_the_operator_who_paused_the_audience(
    operator: Client, gold: Audience, by_delivery: bool
) -> None:
    blocked(gold, "field has the wrong type")
    grows_older(gold)
    press(operator, "unblock", gold)
    lease = claimed(gold)
    assert holds.pause(lane_of(gold), by="sam", reason="campaign moved")
    if by_delivery:
        block_all(lease, "field has the wrong type")
    else:
        by_its_making(gold, "field has the wrong type")
    assert age(gold) >= EARLIER
    assert not state.is_set_aside(lane_of(gold))
    assert Lane.objects.filter(backlog.BLOCKED).exists()
    assert "lytics_gold is blocked" in operator.get("/admin/").content.decode()
