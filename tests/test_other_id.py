"""A blocked audience can always be mended from here: under another ODP id, or set aside with a reason."""

from typing import Any

import pytest
from django.test import Client
from django.urls import reverse

from audiences.delivery import holds, provision
from audiences.delivery.leases import LeaseLostError
from audiences.insight import state
from audiences.models import Audience, Install, Lane, Resend
from audiences.operations import other_id, prefixes, resends
from audiences.receiving import ingest
from sandbox.odp.testing import ThreadedSandbox
from tests.delivering import (
    assert_all_is_well,
    block_all,
    claim,
    drain_all,
    enter,
    happen,
    lane_of,
    lease_runs_out,
    make_audience,
    make_delivered,
    make_install,
    numbered,
)
from tests.messages import body, message, transition
from tests.threads import PATIENCE

pytestmark = pytest.mark.django_db(transaction=True)

REASON = "its field is a string there"


@pytest.fixture
def gold(shop: Install) -> Audience:
    """An audience that has delivered, is blocked now, and has new events."""
    made = make_delivered(shop, *numbered(7))
    holds.block_audience(made.pk, REASON)
    enter(made, "late")
    return made


def send_again(shop: Install) -> None:
    drain_all(shop)
    resends.advance_all(shop.pk, seconds=PATIENCE)
    drain_all(shop)


def press(client: Client, verb: str, audience: Audience, **answers: str) -> Any:
    address = reverse(f"admin:audiences_audience_{verb}", args=[audience.pk])
    asked = client.get(address)
    if asked.status_code != 200:
        return asked
    seen = asked.context["hidden"]["seen"]
    return client.post(address, {"seen": seen, "reason": "known since May", **answers}, follow=True)


def test_everybody_known_is_sent_under_the_other_id(
    operator: Client, odp: ThreadedSandbox, shop: Install, gold: Audience
) -> None:
    press(operator, "other-id", gold, odp_id="lytics_gold_2")
    send_again(shop)
    gold.refresh_from_db()
    assert gold.odp_id == "lytics_gold_2"
    assert lane_of(gold).blocked_at is None
    assert odp.members("lytics_gold_2") == sorted([*numbered(7), "late"])
    assert odp.members("lytics_gold") == sorted(numbered(7))
    assert_all_is_well(gold)


def test_a_new_segment_of_the_slug_gets_no_id_under_which_odp_still_has_members(
    operator: Client, odp: ThreadedSandbox, shop: Install, gold: Audience
) -> None:
    press(operator, "other-id", gold, odp_id="lytics_gold_2")
    ingest.receive(shop, body(message(transition(segment="recreated", slug="gold"), who="zoe")))
    send_again(shop)
    new = Audience.objects.get(segment_id="recreated")
    assert new.odp_id == "lytics_gold_recrea"
    assert odp.members(new.odp_id) == ["zoe"]


def move(audience: Audience, odp_id: str) -> None:
    """Give it another id, and have everybody sent there."""
    holds.block_audience(audience.pk, REASON)
    audience = Audience.objects.select_related("install", "lane").get(pk=audience.pk)
    assert other_id.problem_of(audience, odp_id) == ""
    assert other_id.use(audience, odp_id, by="sam", reason="x")
    send_again(audience.install)


def test_an_id_between_two_others_still_has_its_members_too(
    odp: ThreadedSandbox, shop: Install, gold: Audience
) -> None:
    move(gold, "lytics_gold_2")
    move(gold, "lytics_gold_3")
    ingest.receive(shop, body(message(transition(segment="another", slug="gold_2"), who="zoe")))
    send_again(shop)
    new = Audience.objects.get(segment_id="another")
    assert new.odp_id == "lytics_gold_2_anothe"
    assert odp.members(new.odp_id) == ["zoe"]


@pytest.mark.parametrize("is_of_twin", [False, True])
def test_nobody_chooses_an_id_under_which_odp_has_members_of_another_audience(
    odp: ThreadedSandbox, shop: Install, gold: Audience, *, is_of_twin: bool
) -> None:
    move(gold, "lytics_gold_2")
    silver = make_audience(make_install(odp, name="Twin") if is_of_twin else shop, "silver")
    assert "still has members of lytics_gold_2 (gold) of Shop" in other_id.problem_of(silver, "lytics_gold")
    holds.block_audience(gold.pk, REASON)
    enter(gold, "ida")
    happen(gold, ("u0001", "exit", 5))
    move(gold, "lytics_gold")
    assert "u0001" not in odp.members("lytics_gold"), "it may have its own id again, with its present members"
    assert "ida" in odp.members("lytics_gold")


def test_another_install_of_the_account_gets_no_former_id(odp: ThreadedSandbox, shop: Install, gold: Audience) -> None:
    move(gold, "lytics_gold_2")
    twin = make_audience(make_install(odp, name="Twin"), provisioned=False)
    enter(twin, "zoe")
    drain_all(twin.install)
    assert "belonged to lytics_gold_2, an audience of the install Shop" in lane_of(twin).block_reason
    move(twin, "lytics_gold_twin")
    assert odp.members("lytics_gold_twin") == ["zoe"]


def test_an_id_may_be_the_former_one_of_another_account(odp: ThreadedSandbox, gold: Audience) -> None:
    move(gold, "lytics_gold_2")
    elsewhere = make_audience(make_install(odp, name="Twin", odp_api_key="another.key"), "silver")
    assert other_id.problem_of(elsewhere, "lytics_gold") == ""


def test_another_prefix_gives_no_former_id(shop: Install, gold: Audience) -> None:
    Audience.objects.filter(pk=gold.pk).update(odp_id="lytics_eu_gold")
    move(gold, "lytics_x")
    Audience.objects.filter(pk=gold.pk).update(slug="x", latest_slug="x", segment_id="x")
    new = make_audience(shop, provisioned=False)
    Install.objects.update(odp_prefix="lytics_eu_")
    assert prefixes.apply(shop, before="lytics_") == 0
    new.refresh_from_db()
    assert new.odp_id == "lytics_gold"


@pytest.mark.parametrize(
    ("odp_id", "problem"),
    [
        ("gold", "An ODP id is lytics_"),
        ("lytics_Gold", "An ODP id is lytics_"),
        ("lytics_", "An ODP id is lytics_"),
        ("lytics_gold\n", "present"),  # what a form strips
        ("lytics_gold", "present"),
        ("lytics_silver", "Another audience has this id"),
        ("lytics_" + "x" * 200, "at most 100 characters"),
    ],
)
def test_an_invalid_id_is_reported_and_changes_nothing(
    operator: Client, shop: Install, gold: Audience, odp_id: str, problem: str
) -> None:
    make_audience(shop, "silver")
    assert problem in press(operator, "other-id", gold, odp_id=odp_id).content.decode()
    gold.refresh_from_db()
    assert gold.odp_id == "lytics_gold"
    assert lane_of(gold).blocked_at is not None


def test_the_id_of_another_install_of_the_same_account_is_rejected(odp: ThreadedSandbox, gold: Audience) -> None:
    make_audience(make_install(odp, name="Twin"), "silver")
    make_audience(make_install(odp, name="Stranger", odp_api_key="another.key"), "bronze")
    assert "Twin" in other_id.problem_of(gold, "lytics_silver")
    assert other_id.problem_of(gold, "lytics_bronze") == ""


def test_nothing_is_changed_while_a_request_is_under_way(shop: Install, gold: Audience) -> None:
    holds.unblock(gold.lane)
    claim(shop)
    holds.block_audience(gold.pk, REASON)
    assert not other_id.use(gold, "lytics_gold_2", by="sam", reason="x")
    assert Audience.objects.get().odp_id == "lytics_gold"
    assert lane_of(gold).blocked_at is not None


def test_a_lease_that_a_dead_worker_left_behind_holds_nothing_up(shop: Install, gold: Audience) -> None:
    """A blocked lane is not claimed, so no other worker would end that lease."""
    holds.unblock(gold.lane)
    late = claim(shop)
    holds.block_audience(gold.pk, REASON)
    lease_runs_out(gold)
    assert other_id.use(gold, "lytics_gold_2", by="sam", reason="x")
    assert (lane_of(gold).blocked_at, lane_of(gold).lease_token) == (None, None)
    with pytest.raises(LeaseLostError):
        block_all(late, "ODP rejected it under its old id")


def test_nothing_is_changed_while_it_is_being_resynced(gold: Audience) -> None:
    """Its first chunks may be in the log before the new id, its last ones after it."""
    assert resends.resync(gold, by="sam", reason="x")
    assert not other_id.use(gold, "lytics_gold_2", by="sam", reason="x")
    assert Audience.objects.get().odp_id == "lytics_gold"
    assert lane_of(gold).blocked_at is not None
    assert Resend.objects.count() == 1


def test_a_worker_that_was_creating_the_old_id_has_created_nothing(
    odp: ThreadedSandbox, shop: Install, gold: Audience
) -> None:
    provision.look_again(gold.pk)
    Lane.objects.update(blocked_at=None, block_reason="")
    making = provision.claim(shop.pk)
    assert making is not None
    holds.block_audience(gold.pk, REASON)
    assert other_id.use(gold, "lytics_gold_2", by="sam", reason="x")
    assert not provision._end(making, made=True)
    send_again(shop)
    assert odp.members("lytics_gold_2") == sorted([*numbered(7), "late"])


def test_decisions_about_the_old_id_are_not_made_about_the_new_one(gold: Audience) -> None:
    provision.allow_retired_id(gold.pk)
    Audience.objects.update(foreign_definition="a", accepted_definition="b", replaced_definition="c")
    assert other_id.use(gold, "lytics_gold_2", by="kim", reason="x")
    gold.refresh_from_db()
    assert gold.reuses_id_at is None
    assert (gold.foreign_definition, gold.accepted_definition, gold.replaced_definition) == ("", "", "")


def test_an_audience_that_never_delivered_needs_no_resync(odp: ThreadedSandbox, shop: Install) -> None:
    made = make_audience(shop, provisioned=False)
    enter(made, "kim")
    holds.block_audience(made.pk, REASON)
    assert other_id.use(made, "lytics_gold_2", by="sam", reason="x")
    assert not Resend.objects.exists()
    drain_all(shop)
    assert odp.members("lytics_gold_2") == ["kim"]


def test_an_audience_set_aside_is_shown_with_its_reason_and_keeps_its_events(
    operator: Client, odp: ThreadedSandbox, shop: Install, gold: Audience
) -> None:
    press(operator, "set-aside", gold)
    page = operator.get(reverse("admin:index"))
    (told,) = [one for one in page.context["alerts"] if "lytics_gold" in one.what]
    assert (told.what, told.tone) == ("lytics_gold is set aside (Shop)", "held")
    assert "known since May" in told.why
    lane = lane_of(gold)
    assert state.of_lane(Lane.objects.select_related("audience__install").get(pk=gold.pk)).word == "set aside"
    assert lane.blocked_at is not None
    drain_all(shop)
    assert "late" not in odp.members("lytics_gold")
    press(operator, "resume", gold)
    press(operator, "unblock", gold)
    drain_all(shop)
    assert "late" in odp.members("lytics_gold")
    assert_all_is_well(gold)


def test_an_audience_paused_before_its_block_is_shown_until_it_is_set_aside(
    operator: Client, shop: Install, gold: Audience
) -> None:
    holds.unblock(gold.lane)
    holds.pause(gold.lane, by="sam", reason="campaign moved")
    holds.block_audience(gold.pk, REASON)

    def told() -> list[str]:
        page = operator.get(reverse("admin:index"))
        return [one.what for one in page.context["alerts"] if "lytics_gold" in one.what]

    blocked = reverse("admin:audiences_audience_changelist"), {"state": "blocked"}
    assert told() == ["lytics_gold is blocked (Shop)"]
    assert "lytics_gold" in operator.get(*blocked).content.decode()
    press(operator, "set-aside", gold)
    assert told() == ["lytics_gold is set aside (Shop)"]
    assert "lytics_gold" not in operator.get(*blocked).content.decode()
    assert press(operator, "set-aside", gold).status_code == 302


def test_an_audience_set_aside_delivers_only_after_both_buttons_and_each_says_so(
    operator: Client, shop: Install, gold: Audience
) -> None:
    holds.set_aside(lane_of(gold), by="kim", reason="later")

    def consequence(verb: str) -> str:
        return str(operator.get(reverse(f"admin:audiences_audience_{verb}", args=[gold.pk])).context["consequence"])

    assert "until you also press Unblock" in consequence("resume")
    assert "then sent to ODP" not in consequence("resume")
    assert "once it is resumed" in consequence("unblock")
    shown = press(operator, "unblock", gold).content.decode()
    assert "It stays paused until it is resumed." in shown
    assert "then sent to ODP" in consequence("resume")
