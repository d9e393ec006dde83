"""The word for where an audience stands, as every page shows it."""

import pytest

from audiences import brake, lanes, state
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


def test_one_that_is_not_in_odp_yet_is_to_be_created(gold: Audience) -> None:
    Audience.objects.update(provisioned_at=None)
    enter(gold, "kim")
    assert word(gold) == "to be created"
    claim(gold.install, provisioned=False)
    assert word(gold) == "being created"


def test_what_needs_a_person_comes_before_what_a_person_did(gold: Audience) -> None:
    enter(gold, "kim")
    lanes.pause(lane_of(gold), by="ada", reason="a campaign")
    assert word(gold) == "paused"
    lanes.resume(lane_of(gold))
    lanes.block(claim(gold.install), "field gone")
    lanes.pause(lane_of(gold), by="ada", reason="a campaign")
    assert word(gold) == "blocked"


def test_one_whose_install_may_not_send_is_held_back(gold: Audience) -> None:
    enter(gold, "kim")
    brake.apply(gold.install, Answer(Outcome.RETRY_LATER, "503: busy", retry_after=600.0))
    assert word(gold) == "held back"
    brake.release(gold.install)
    assert word(gold) == "waiting"
    Install.objects.update(enabled=False)
    assert word(gold) == "held back"
