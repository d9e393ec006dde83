"""A slug recreated in Lytics: it is reported, and an operator chooses between two audiences and a take-over."""

from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any

import pytest
from django.db import connection
from django.db.models import F
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils.timezone import now

from audiences.agreement import audits
from audiences.delivery import holds
from audiences.delivery.leases import LeaseLostError
from audiences.front import lines
from audiences.models import Audience, Audit, Delivery, GuidedChange, Install, Membership, Resend, Retirement, Run
from audiences.operations import resends, retiring, take_over
from audiences.receiving import ingest
from sandbox.odp.testing import ThreadedSandbox
from tests.delivering import assert_all_is_well, block_all, claim, drain_all, enter, lane_of, lease_runs_out
from tests.guided import segments
from tests.messages import body, message, transition
from tests.threads import PATIENCE

pytestmark = pytest.mark.django_db(transaction=True)

# The list of all troubles: Now merges ten alike into one line.
ALL = lines.url_of_all("")

OLD, NEW = "a" * 32, "b" * 32


_seconds = count()


def at() -> str:
    """Each event a second after the one before."""
    return f"{datetime(2026, 3, 2, tzinfo=UTC) + timedelta(seconds=next(_seconds)):%Y-%m-%dT%H:%M:%SZ}"


def told(install: Install, segment: str, event: str, *who: str) -> None:
    for one in who:
        ingest.receive(install, body(message(transition(event, segment=segment, slug="gold", at=at()), who=one)))


def time_goes_by() -> None:
    """Nothing was sent within the last hour."""
    hour = timedelta(hours=1)
    Run.objects.update(opened_at=F("opened_at") - hour, closed_at=F("closed_at") - hour)
    Delivery.objects.update(opened_at=F("opened_at") - hour, closed_at=F("closed_at") - hour)


@pytest.fixture
def both(shop: Install) -> tuple[Audience, Audience]:
    """The old audience with kim, lee and max; the new one with kim and zoe, and lee, who has left it."""
    told(shop, OLD, "enter", "kim", "lee", "max")
    drain_all(shop)
    told(shop, NEW, "enter", "kim", "zoe", "lee")
    told(shop, NEW, "exit", "lee")
    drain_all(shop)
    time_goes_by()
    old, new = Audience.objects.order_by("pk")
    assert old.odp_id == "lytics_gold"
    return old, new


def send_all(shop: Install) -> None:
    drain_all(shop)
    resends.advance_all(shop.pk, seconds=PATIENCE)
    drain_all(shop)


def press(client: Client, verb: str, audience: Audience, **answers: str) -> Any:
    address = reverse(f"admin:audiences_audience_{verb}", args=[audience.pk])
    seen = client.get(address).context["hidden"]["seen"]
    return client.post(address, {"seen": seen, "reason": "made anew in May", **answers}, follow=True)


def alerts(client: Client) -> list[str]:
    page = client.get(reverse("admin:index"))
    return [one.what for one in page.context["alerts"] if "was recreated" in one.what]


def test_it_is_reported_until_an_operator_keeps_both(operator: Client, both: tuple[Audience, Audience]) -> None:
    _, new = both
    assert alerts(operator) == ["gold was recreated in Lytics (Shop)"]
    press(operator, "keep-both", new)
    assert alerts(operator) == []
    assert {audience.odp_id for audience in Audience.objects.all()} == {"lytics_gold", new.odp_id}
    assert operator.get(reverse("admin:audiences_audience_take-over", args=[new.pk])).status_code == 302


def test_the_new_audience_takes_over_the_old_id_with_its_own_members(
    operator: Client, odp: ThreadedSandbox, shop: Install, both: tuple[Audience, Audience]
) -> None:
    old, new = both
    told(shop, NEW, "enter", "ida")  # waiting during the take-over
    press(operator, "take-over", new)
    told(shop, NEW, "enter", "tom")
    send_all(shop)
    new.refresh_from_db()
    assert new.odp_id == "lytics_gold"
    assert odp.members("lytics_gold") == ["ida", "kim", "tom", "zoe"]
    held = Membership.objects.filter(audience=new, is_member=True)
    assert sorted(held.values_list("identifier", flat=True)) == ["ida", "kim", "tom", "zoe"]
    assert lane_of(new).member_count == 4
    assert "took over its ODP id lytics_gold" in lane_of(old).pause_reason
    assert alerts(operator) == []
    assert_all_is_well(new)


@pytest.mark.parametrize("when", ["before", "between", "after"])
def test_a_customer_who_enters_during_the_take_over_is_a_member(
    odp: ThreadedSandbox, shop: Install, both: tuple[Audience, Audience], when: str
) -> None:
    """Max is one of those who leave, unless the new segment names him, whenever its call comes."""
    old, new = both
    if when == "before":
        told(shop, NEW, "enter", "max")
    assert take_over.take_over(new, old, by="sam", reason="x")
    if when == "between":
        told(shop, NEW, "enter", "max")
    resends.advance_all(shop.pk, seconds=PATIENCE)
    if when == "after":
        told(shop, NEW, "enter", "max")
    send_all(shop)
    assert odp.members("lytics_gold") == ["kim", "max", "zoe"]


def test_many_leave_chunk_by_chunk(
    odp: ThreadedSandbox, shop: Install, both: tuple[Audience, Audience], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resends, "CHUNK", 1)
    old, new = both
    assert take_over.take_over(new, old, by="sam", reason="x")
    send_all(shop)
    assert odp.members("lytics_gold") == ["kim", "zoe"]
    assert not Resend.objects.filter(ended_at=None).exists()


def refused(new: Audience, old: Audience) -> bool:
    before = list(Audience.objects.order_by("pk").values())
    assert not take_over.take_over(new, old, by="sam", reason="x")
    return list(Audience.objects.order_by("pk").values()) == before and lane_of(old).paused_at is None


def test_it_waits_for_the_deliveries_of_the_old_audience(shop: Install, both: tuple[Audience, Audience]) -> None:
    old, new = both
    enter(old, "late")
    assert refused(new, old)


def test_it_does_not_wait_for_the_events_that_a_retirement_holds(both: tuple[Audience, Audience]) -> None:
    old, new = both
    holds.end_log(old.pk, old.last_sequence)
    holds.retire(old.pk)
    enter(old, "late")
    assert take_over.take_over(new, old, by="sam", reason="x")


def test_it_waits_while_the_old_one_was_sent_just_now(
    operator: Client, shop: Install, both: tuple[Audience, Audience]
) -> None:
    old, new = both
    enter(old, "late")
    drain_all(shop)
    assert refused(new, old)
    assert "so it may still be in use" in press(operator, "take-over", new).content.decode()


def test_it_waits_for_a_request_of_the_new_one(shop: Install, both: tuple[Audience, Audience]) -> None:
    old, new = both
    told(shop, NEW, "enter", "ida")
    claim(shop)
    assert refused(new, old)


def test_it_does_not_wait_for_a_lease_that_a_dead_worker_left_behind(
    shop: Install, both: tuple[Audience, Audience]
) -> None:
    """A paused lane is not claimed, so no other worker would end that lease."""
    old, new = both
    told(shop, NEW, "enter", "ida")
    late = claim(shop)
    holds.pause(new.lane, by="ada", reason="a campaign")
    lease_runs_out(new)
    assert take_over.take_over(new, old, by="sam", reason="x")
    with pytest.raises(LeaseLostError):
        block_all(late, "ODP rejected it under its old id")


def test_it_waits_for_the_take_over_before(both: tuple[Audience, Audience]) -> None:
    old, new = both
    assert resends.leave(old, new, after=0, by="sam", reason="x")
    assert refused(new, old)


def test_it_waits_for_a_resync(both: tuple[Audience, Audience]) -> None:
    old, new = both
    assert resends.resync(new, by="sam", reason="x")
    assert refused(new, old)


@pytest.mark.parametrize("kind", GuidedChange.Kind.values)
def test_it_waits_for_a_guided_change(operator: Client, both: tuple[Audience, Audience], kind: str) -> None:
    old, new = both
    change = GuidedChange(install=old.install, kind=kind, before="a", after="b", by="kim", reason="x")
    change.save()
    assert refused(new, old)
    assert "A guided change of the install is under way" in press(operator, "take-over", new).content.decode()
    GuidedChange.objects.update(ended_at=change.asked_at)
    assert take_over.problem_of(old) == ""


def test_an_id_of_passthrough_audiences_is_not_taken_over(
    operator: Client, shop: Install, both: tuple[Audience, Audience]
) -> None:
    """The exits of the old members have to be older than all events of the new segment, and ODP would ignore them."""
    old, new = both
    Install.objects.update(mechanism="passthrough")
    old.install.refresh_from_db()
    assert refused(new, old)
    assert "ODP may order the events of lytics_gold" in press(operator, "take-over", new).content.decode()


def test_a_second_person_changes_nothing(both: tuple[Audience, Audience]) -> None:
    old, new = both
    assert take_over.keep_both(new)
    assert not take_over.keep_both(new)
    assert refused(new, old)


def test_a_pause_of_the_new_one_stays(shop: Install, both: tuple[Audience, Audience]) -> None:
    old, new = both
    holds.pause(new.lane, by="ada", reason="a campaign")
    assert take_over.take_over(new, old, by="sam", reason="x")
    assert lane_of(new).pause_reason == "a campaign"


def test_a_pause_of_the_old_one_says_from_then_on_who_has_its_id(
    shop: Install, both: tuple[Audience, Audience]
) -> None:
    old, new = both
    holds.pause(old.lane, by="ada", reason="a campaign")
    assert take_over.take_over(new, old, by="sam", reason="x")
    words = f"Segment {NEW} took over its ODP id lytics_gold. To end this, press Retire and then Resume. x"
    assert lane_of(old).pause_reason == words


def test_the_old_one_is_resumed_only_once_it_is_retired(
    operator: Client, odp: ThreadedSandbox, shop: Install, both: tuple[Audience, Audience]
) -> None:
    """Its ODP id was the one of the new audience before, so ODP has the members of that audience there."""
    old, new = both
    press(operator, "take-over", new)
    send_all(shop)
    address = reverse("admin:audiences_audience_resume", args=[old.pk])
    assert operator.get(address).status_code == 302
    assert operator.post(address, {"seen": str(lane_of(old).paused_at)}).status_code == 302
    assert lane_of(old).paused_at is not None
    assert retiring.retire(Audience.objects.get(pk=old.pk), by="ada", reason="made anew in May")
    press(operator, "resume", Audience.objects.get(pk=old.pk))
    assert lane_of(old).paused_at is None


def test_the_last_audit_of_the_old_one_asks_for_no_repair(
    operator: Client, shop: Install, both: tuple[Audience, Audience]
) -> None:
    """An audit that ends after the take-over compares with the members of another audience."""
    old, new = both
    Audit.objects.create(
        install=shop, audience=old, mode="full", ended_at=now(), is_newest=True, compared_with_odp=6, differing=2
    )
    Audience.objects.filter(pk=old.pk).update(provisioned_at=None)
    assert [audit.audience for audit in audits.to_act_on()] == [old], "a worker creates it again"
    press(operator, "take-over", new)
    assert not audits.to_act_on()


def test_only_an_older_audience_is_taken_over(both: tuple[Audience, Audience]) -> None:
    old, new = both
    assert (take_over.older(new), take_over.older(old)) == (old, None)


def test_all_recreated_audiences_are_counted(operator: Client, shop: Install) -> None:
    for number in range(13):
        for segment in ("old", "new"):
            slug = f"slug_{number}"
            event = transition("enter", segment=f"{segment}-{number}", slug=slug, at=at())
            ingest.receive(shop, body(message(event, who="kim")))
    assert "13 audiences were recreated in Lytics" in operator.get("/admin/").content.decode()
    assert "3 more recreated audiences" in operator.get(ALL).content.decode()


def test_the_front_page_needs_no_more_queries_for_ten_recreated_audiences(operator: Client, shop: Install) -> None:
    def queries(upto: int) -> int:
        for number in range(upto):
            for segment in ("old", "new"):
                event = transition("enter", segment=f"{segment}-{number}", slug=f"slug_{number}", at=at())
                ingest.receive(shop, body(message(event, who="kim")))
        operator.get(ALL)
        with CaptureQueriesContext(connection) as seen:
            found = [one for one in operator.get(ALL).context["alerts"] if "was recreated" in one.what]
        assert [len(one.buttons) for one in found] == [2] * upto
        return len(seen)

    assert queries(1) == queries(10)


def test_a_customer_whose_exit_odp_rejected_leaves_with_the_members_of_only_the_old_audience(
    odp: ThreadedSandbox, shop: Install, both: tuple[Audience, Audience]
) -> None:
    old, new = both
    odp.fault({"path": "/v3/profiles"}, {"refuse_items": {"identifiers": ["max"]}})
    told(shop, OLD, "exit", "max")
    drain_all(shop)
    odp.clear_faults()
    time_goes_by()
    assert odp.members("lytics_gold") == ["kim", "lee", "max"]
    assert take_over.take_over(new, old, by="sam", reason="made anew")
    send_all(shop)
    assert odp.members("lytics_gold") == ["kim", "zoe"]


def test_a_customer_who_leaves_the_old_one_during_the_take_over_leaves_its_former_id_too(
    odp: ThreadedSandbox, shop: Install, both: tuple[Audience, Audience]
) -> None:
    old, new = both
    assert take_over.take_over(new, old, by="sam", reason="x")
    assert holds.resume(lane_of(old))
    told(shop, OLD, "exit", "max")
    drain_all(shop)
    send_all(shop)
    assert odp.members("lytics_gold") == ["kim", "zoe"]


@pytest.mark.parametrize("retired_before", [False, True])
def test_the_old_one_taken_back_has_nobody_of_the_new_one(
    odp: ThreadedSandbox, shop: Install, both: tuple[Audience, Audience], *, retired_before: bool
) -> None:
    """Its ODP id was the new one's, whose members ODP still has in the field. Zoe has left the new one since."""
    old, new = both

    def work() -> None:
        for _ in range(4):
            send_all(shop)
            retiring.advance_all(shop.pk, seconds=PATIENCE)

    if retired_before:
        assert retiring.retire(old, by="ada", reason="x")
        work()
        time_goes_by()
    assert take_over.take_over(new, old, by="sam", reason="x")
    work()
    if not retired_before:
        assert retiring.retire(old, by="ada", reason="x")
    holds.resume(lane_of(old))
    told(shop, NEW, "exit", "zoe")
    work()
    assert retiring.take_back(old, by="sam", reason="back")
    holds.resume(lane_of(old))
    work()
    old.refresh_from_db()
    assert odp.members(old.odp_id) == ["kim", "lee", "max"]
    assert odp.members("lytics_gold") == ["kim"]
    assert_all_is_well(old, new)


@pytest.mark.parametrize("order", ["before", "after"])
def test_the_former_audience_of_the_new_one_is_deleted_with_the_old_one(
    boss: Client, odp: ThreadedSandbox, shop: Install, both: tuple[Audience, Audience], order: str
) -> None:
    """ODP has the new audience's former members there. The old one has no members, so it needs no exits."""
    old, new = both
    told(shop, OLD, "exit", "kim", "lee", "max")
    drain_all(shop)
    time_goes_by()

    def retire() -> None:
        assert retiring.retire(old, by="ada", reason="x")
        for _ in range(3):
            drain_all(shop)
            retiring.advance_all(shop.pk, seconds=PATIENCE)

    if order == "before":
        retire()
    question = boss.get(reverse("admin:audiences_audience_take-over", args=[new.pk])).content.decode()
    assert f"The old one is retired, so {new.odp_id} (gold) is deleted in ODP." in question or order == "after"
    assert take_over.take_over(new, old, by="sam", reason="x")
    assert odp.members(new.odp_id) == ["kim", "zoe"]
    if order == "after":
        question = boss.get(reverse("admin:audiences_audience_retire", args=[old.pk])).content.decode()
        assert "has only members of the segment that took over its former ODP id, and is deleted in ODP" in question
        told(shop, OLD, "enter", "late")
        retire()
    send_all(shop)
    retiring.advance_all(shop.pk, seconds=PATIENCE)
    assert segments(odp) == ["lytics_gold"]
    assert (lane_of(old).retired_at is None, lane_of(old).paused_at) == (False, None)
    assert not Retirement.objects.filter(retiring.UNFINISHED).exists()
    assert retiring.take_back(old, by="sam", reason="back")
    for _ in range(3):
        send_all(shop)
        retiring.advance_all(shop.pk, seconds=PATIENCE)
    assert odp.members(new.odp_id) == (["late"] if order == "after" else [])


def test_the_old_one_taken_back_before_its_exits_has_its_members_under_its_new_id(
    odp: ThreadedSandbox, shop: Install, both: tuple[Audience, Audience]
) -> None:
    old, new = both
    assert take_over.take_over(new, old, by="sam", reason="x")
    send_all(shop)
    assert retiring.retire(old, by="ada", reason="x")
    holds.resume(lane_of(old))
    assert retiring.take_back(old, by="sam", reason="back")
    for _ in range(3):
        retiring.advance_all(shop.pk, seconds=PATIENCE)
        send_all(shop)
    assert odp.members(new.odp_id) == ["kim", "lee", "max"]
    assert odp.members("lytics_gold") == ["kim", "zoe"]


def test_the_resync_of_taking_back_waits_for_an_earlier_one(
    odp: ThreadedSandbox, shop: Install, both: tuple[Audience, Audience], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The earlier one has sent Kim and Lee under the ODP id of before the take-over."""
    old, new = both
    monkeypatch.setattr(resends, "CHUNK", 1)
    assert resends.resync(old, by="sam", reason="x")
    earlier = Resend.objects.get()
    assert resends.advance(earlier.pk)
    assert resends.advance(earlier.pk)
    drain_all(shop)
    time_goes_by()
    assert take_over.take_over(new, old, by="sam", reason="x")
    assert retiring.retire(old, by="ada", reason="x")
    holds.resume(lane_of(old))
    assert retiring.take_back(old, by="sam", reason="back")
    retiring.advance_all(shop.pk, seconds=PATIENCE)
    for _ in range(3):
        send_all(shop)
        retiring.advance_all(shop.pk, seconds=PATIENCE)
    assert odp.members(new.odp_id) == ["kim", "lee", "max"]


def test_the_old_one_is_retired_after_its_members_have_left(
    operator: Client, odp: ThreadedSandbox, shop: Install, both: tuple[Audience, Audience]
) -> None:
    """The take-over reads the ledger of the old audience, which the exits of a retirement change."""
    old, new = both
    assert take_over.take_over(new, old, by="sam", reason="x")
    leaving = Resend.objects.get(kind=Resend.Kind.LEAVE)
    stop = operator.get(reverse("admin:audiences_resend_stop-leave", args=[leaving.pk])).content.decode()
    assert "About 3 of 3 customers" in stop
    assert "A new one starts" not in stop
    assert retiring.retire(old, by="sam", reason="x")
    assert "the take-over of its former ODP id is under way" in operator.get(reverse("admin:index")).content.decode()
    assert holds.resume(lane_of(old))
    for _ in range(3):
        retiring.advance_all(shop.pk, seconds=PATIENCE)
        drain_all(shop)
    send_all(shop)
    assert odp.members("lytics_gold") == ["kim", "zoe"]
    retiring.advance_all(shop.pk, seconds=PATIENCE)
    drain_all(shop)
    retiring.advance_all(shop.pk, seconds=PATIENCE)
    assert lane_of(old).retired_at is not None
