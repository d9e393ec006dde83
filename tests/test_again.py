"""Every run and delivery says what caused it, and what is sent again is not counted as delivered a second time."""

from datetime import timedelta
from typing import Any

import pytest
from django.utils.timezone import now

from audiences import again, resends, tally
from audiences.affirm import affirm
from audiences.models import Again, Audience, Delivery, Install, Minute, Run
from odp.outcomes import Outcome
from sandbox.odp.testing import ThreadedSandbox
from tests.delivering import brake_runs_out, drain_all, enter, happen, make_audience, make_install
from tests.people import someone
from workers import drain

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def shop(odp: ThreadedSandbox, settings: Any) -> Install:
    settings.DELIVERY_DEADLINE_SECONDS = 0.3
    settings.AFFIRM_AFTER_SECONDS = 0
    return make_install(odp)


@pytest.fixture
def gold(shop: Install) -> Audience:
    audience = make_audience(shop, "gold", provisioned=False)
    enter(audience, "anna", "ben", at=5)
    drain_all(shop)
    return audience


def cause_of(run: Run) -> str:
    return again.causes([run])[run.pk]


def resync(shop: Install, gold: Audience) -> None:
    assert resends.resync(gold, by="kim", reason="why not")
    resends.go_on(shop.pk, seconds=5)


def test_what_lytics_sent_has_no_other_cause(shop: Install, gold: Audience) -> None:
    assert cause_of(Run.objects.latest("pk")) == "Lytics"
    assert not Again.objects.exists()


def test_a_resync_is_named_with_its_number_on_the_run_and_on_its_delivery(shop: Install, gold: Audience) -> None:
    resync(shop, gold)
    drain_all(shop)
    run = Run.objects.latest("pk")
    resend = gold.resends.get()
    assert cause_of(run) == f"resync {resend.pk}"
    viewer = someone("viewer")
    for url in ("/admin/audiences/run/", f"/admin/audiences/delivery/{run.delivery_id}/change/"):
        assert f"resync {resend.pk}" in viewer.get(url).content.decode()


def test_a_run_of_both_names_both(shop: Install, gold: Audience) -> None:
    happen(gold, ("cleo", "enter", 9))
    resync(shop, gold)
    drain_all(shop)
    run = Run.objects.latest("pk")
    assert (run.first_sequence, run.last_sequence) == (3, 5)
    assert cause_of(run) == f"Lytics, resync {gold.resends.get().pk}"


def test_what_a_delivery_without_an_answer_had_sent_again_names_that_delivery(
    odp: ThreadedSandbox, shop: Install, gold: Audience
) -> None:
    enter(gold, "dora", at=10)
    odp.fault({"path": "/v3/profiles", "times": 1}, {"delay_seconds": 1.0})
    assert drain.turn(shop.pk)
    unanswered = Delivery.objects.latest("pk")
    assert unanswered.outcome == Outcome.RETRY_LATER
    brake_runs_out(shop)
    happen(gold, ("dora", "exit", 20))
    drain_all(shop)
    assert affirm() == 1
    drain_all(shop)
    assert cause_of(Run.objects.latest("pk")) == f"sent again after delivery {unanswered.pk:,}"


def test_what_is_sent_again_is_counted_apart_so_no_more_is_delivered_than_came(shop: Install, gold: Audience) -> None:
    happen(gold, ("cleo", "enter", 9))
    resync(shop, gold)
    drain_all(shop)
    start = (now() - timedelta(minutes=2)).replace(second=0, microsecond=0)
    tally.add_up(start, start + timedelta(minutes=4))
    minutes = list(Minute.objects.all())
    assert (sum(one.delivered for one in minutes), sum(one.again for one in minutes)) == (3, 2)
