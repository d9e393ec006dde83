"""The state of an audience, as every page shows it."""

from datetime import UTC, datetime, timedelta

import pytest
from django.utils.timezone import now

from audiences.delivery import backoff, holds, provision
from audiences.insight import state
from audiences.models import Audience, Install, Lane
from odp.outcomes import Answer, Outcome
from tests.delivering import claim, enter, lane_of, lease_runs_out, make_audience, make_install

pytestmark = pytest.mark.django_db


@pytest.fixture
def gold(db: None) -> Audience:
    return make_audience(make_install())


def word(audience: Audience) -> str:
    return state.of_lane(Lane.objects.select_related("audience__install").get(pk=audience.pk)).word


def test_an_audience_is_up_to_date_waiting_or_sending(gold: Audience) -> None:
    assert word(gold) == "up to date"
    enter(gold, "kim")
    assert word(gold) == "waiting"
    claim(gold.install)
    assert word(gold) == "sending"
    lease_runs_out(gold)
    assert word(gold) == "waiting"


def test_an_audience_missing_in_odp_is_to_be_created(gold: Audience) -> None:
    Audience.objects.update(provisioned_at=None)
    enter(gold, "kim")
    assert word(gold) == "to be created"
    assert provision.claim(gold.install.pk) is not None
    assert word(gold) == "being created"


def test_an_audience_that_can_not_be_created_is_on_hold_and_says_until_when(gold: Audience) -> None:
    Audience.objects.update(
        provisioned_at=None,
        hold_failures=3,
        hold_reason="503: busy",
        hold_since_at=datetime(2026, 7, 1, 12, tzinfo=UTC),
        hold_until_at=datetime(2026, 7, 1, 13, tzinfo=UTC),
    )
    assert word(gold) == "up to date"
    enter(gold, "kim")
    shown = state.of_lane(Lane.objects.select_related("audience__install").get(pk=gold.pk))
    assert shown == state.State(
        "on hold",
        "it can't be created in ODP: 503: busy — 3 in a row since 2026-07-01 12:00:00 UTC, next try at 13:00:00 UTC",
        alert=True,
    )
    Install.objects.update(
        backoff_until_at=now(), backoff_since_at=now(), backoff_failures=1, backoff_reason="503: busy"
    )
    assert state.hold(lane_of(gold).audience).endswith("next try when its install is no longer on hold")
    Install.objects.update(backoff_until_at=None, backoff_since_at=None, backoff_failures=0, backoff_reason="")
    Audience.objects.update(provisioned_at=now())
    shown = state.of_lane(Lane.objects.select_related("audience__install").get(pk=gold.pk))
    assert shown.word == "waiting"
    assert "Deliveries continue." in state.warnings(lane_of(gold))[-1]


def test_a_state_that_needs_a_person_precedes_one_that_a_person_chose(gold: Audience) -> None:
    enter(gold, "kim")
    holds.pause(lane_of(gold), by="ada", reason="a campaign")
    assert word(gold) == "paused"
    holds.block_audience(gold.pk, "field gone")
    assert word(gold) == "blocked"
    holds.set_aside(lane_of(gold), by="ada", reason="known")
    assert word(gold) == "set aside"


def test_a_block_of_a_clock_that_was_ahead_can_be_set_aside(gold: Audience) -> None:
    holds.block_audience(gold.pk, "field gone")
    Lane.objects.update(blocked_at=now() + timedelta(hours=1))
    holds.set_aside(lane_of(gold), by="ada", reason="known")
    assert word(gold) == "set aside"


def test_an_audience_of_an_install_that_may_not_send_is_held_back(gold: Audience) -> None:
    enter(gold, "kim")
    backoff.apply(gold.install, Answer(Outcome.RETRY_LATER, "503: busy", retry_after=600.0))
    assert word(gold) == "held back"
    backoff.release(gold.install)
    assert word(gold) == "waiting"
    Install.objects.update(enabled=False)
    assert word(gold) == "held back"
