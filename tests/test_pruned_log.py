"""A pruned log: it gives the same deliveries as a full one, and an event stays while something needs it."""

import random
import re
from collections.abc import Callable
from datetime import timedelta

import pytest
from django.contrib.auth.models import User
from django.db import DatabaseError, connection, transaction
from django.db.models import Count
from django.test import Client
from django.urls import reverse
from django.utils.timezone import now
from pytest_django.fixtures import Settings

from audiences.insight import customer_export, customers, horizons, state
from audiences.insight.customers import End
from audiences.models import (
    Again,
    Audience,
    Audit,
    Delivery,
    Event,
    Forgotten,
    FutureTime,
    GuidedChange,
    Horizon,
    Install,
    Lane,
    Membership,
    Parked,
    Pruning,
    Resend,
    Retirement,
    Run,
)
from audiences.operations import parked_items, pruning, resends, skips
from audiences.receiving import log_range
from sandbox.odp.testing import ThreadedSandbox
from tests.delivering import (
    assert_all_is_well,
    broken_truths,
    drain_all,
    enter,
    happen,
    ledger_of,
    make_audience,
    make_delivered,
    make_install,
    numbered,
    sandbox,
    writes,
)

pytestmark = pytest.mark.django_db

AGE = """
UPDATE audiences_event SET received_at = received_at - interval '100 days' WHERE audience_id = ANY(%(audiences)s);
UPDATE audiences_delivery SET opened_at = opened_at - interval '100 days', closed_at = closed_at - interval '100 days'
    WHERE install_id = ANY(%(installs)s);
UPDATE audiences_run SET opened_at = opened_at - interval '100 days', closed_at = closed_at - interval '100 days'
    WHERE audience_id = ANY(%(audiences)s);
UPDATE audiences_parked SET parked_at = parked_at - interval '100 days', closed_at = closed_at - interval '100 days'
    WHERE install_id = ANY(%(installs)s);
"""

MANY_EVENTS = """
INSERT INTO audiences_event (audience_id, sequence, identifier, kind, occurred_ns, received_at, forced)
SELECT %(audience)s, number, 'u' || number, 1, number, now() - interval '100 days', false
FROM generate_series(5, %(last)s) AS number;
UPDATE audiences_lane SET delivered_sequence = %(last)s WHERE audience_id = %(audience)s;
UPDATE audiences_audience SET last_sequence = %(last)s WHERE id = %(audience)s;
DELETE FROM audiences_run WHERE audience_id = %(audience)s;
"""


@pytest.fixture(autouse=True)
def kept_90_days(settings: Settings) -> None:
    settings.EVENTS_KEEP_DAYS = 90


def age(*audiences: Audience) -> None:
    """Date all rows of these audiences back by 100 days."""
    with connection.cursor() as cursor:
        values = {"audiences": [one.pk for one in audiences], "installs": [one.install_id for one in audiences]}
        cursor.execute(AGE, values)


def prune() -> int:
    """One pass over everything, whatever was done today."""
    Pruning.objects.update(horizon_at=now() - timedelta(days=5000), is_done=True)
    return pruning.prune(seconds=120, pause=lambda seconds: None)


def prune_wholly() -> None:
    """Until nothing is left to delete: a row goes in a later pass than the row that needs it."""
    while prune():
        pass


def numbers(audience: Audience) -> list[int]:
    return list(Event.objects.filter(audience=audience).order_by("sequence").values_list("sequence", flat=True))


# --- The same deliveries -------------------------------------------------------------------------------------


def what_happens(audience: Audience, chance: random.Random, round_: int) -> None:
    """A round of events, some of them late, repeated or sent again; the same for equal seeds."""
    people = numbered(12)
    happenings = [
        (chance.choice(people), chance.choice(("enter", "exit", "change")), chance.randrange(1, 40) + round_ * 10)
        for _ in range(chance.randrange(1, 25))
    ]
    happen(audience, *happenings, forced=chance.random() < 0.2)


def resync(audience: Audience) -> None:
    assert resends.resync(Audience.objects.get(pk=audience.pk), by="kim", reason="why")
    resends.advance_all(audience.install_id, seconds=60)


@pytest.mark.parametrize("seed", range(6))
def test_a_pruned_log_and_a_full_one_give_the_same_deliveries(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pruning, "ROWS", 7)
    with sandbox() as odp_of_full, sandbox() as odp_of_pruned:
        sides = [
            (odp, make_audience(make_install(odp, name=name), provisioned=False), random.Random(seed))
            for odp, name in ((odp_of_full, "Full"), (odp_of_pruned, "Pruned"))
        ]
        full, pruned = (audience for _, audience, _ in sides)
        for round_ in range(8):
            for _, audience, chance in sides:
                what_happens(audience, chance, round_)
                drain_all(audience.install)
                if chance.random() < 0.3:
                    resync(audience)
                    drain_all(audience.install)
                if chance.random() < 0.3:
                    what_happens(audience, chance, round_)  # waits while the log is pruned
            age(pruned)
            prune()
            if round_ % 3 == 2:
                prune_wholly()
            assert ledger_of(pruned) == ledger_of(full)
            assert broken_truths() == []
        for _, audience, _ in sides:
            drain_all(audience.install)
        assert writes(odp_of_pruned) == writes(odp_of_full)
        assert odp_of_pruned.members("lytics_gold") == odp_of_full.members("lytics_gold")
        assert ledger_of(pruned) == ledger_of(full)
        assert_all_is_well(full, pruned)
        assert len(numbers(pruned)) < len(numbers(full)) == numbers(full)[-1] == numbers(pruned)[-1]


# --- What stays ----------------------------------------------------------------------------------------------


@pytest.fixture
def gold(odp: ThreadedSandbox) -> Audience:
    """An audience with four delivered events of two customers, each in a request of its own, 100 days old."""
    made = make_delivered(make_install(odp), "a")
    for at, (who, what) in enumerate((("a", "exit"), ("b", "enter"), ("a", "enter")), start=2):
        happen(made, (who, what, at))
        drain_all(made.install)
    age(made)
    return made


def test_the_event_that_the_ledger_refers_to_stays(gold: Audience) -> None:
    prune_wholly()
    assert numbers(gold) == [3, 4]
    assert Horizon.objects.get().events_to == 3
    assert_all_is_well(gold)
    happen(gold, ("b", "exit", 9), ("c", "enter", 9))
    drain_all(gold.install)
    age(gold)
    prune_wholly()
    assert numbers(gold) == [4, 5, 6]
    assert_all_is_well(gold)


def an_open_rejected_item(gold: Audience) -> None:
    Parked.objects.create(
        install=gold.install, audience=gold, sequence=2, identifier="a", reason="refused_by_odp", delivery=None
    )
    Membership.objects.filter(audience=gold, identifier="a").update(rejected=True)


def an_unfinished_replay(gold: Audience) -> None:
    span = {"received_from": now(), "received_to": now() + timedelta(days=1)}
    Resend.objects.create(
        install=gold.install, audience=gold, kind="replay", after=1, upto=4, total=3, by="kim", reason="why", **span
    )


def an_unfinished_audit(gold: Audience) -> None:
    Audit.objects.create(install=gold.install, audience=gold, mode="full", by="kim", before_sequence=1)


def a_retirement(gold: Audience) -> None:
    Retirement.objects.create(audience=gold, by="kim", reason="why", began_sequence=1, total=0)


def a_waiting_event(gold: Audience) -> None:
    Lane.objects.update(delivered_sequence=1)


def a_run(gold: Audience) -> None:
    at = now()
    Run.objects.create(
        audience=gold, first_sequence=2, last_sequence=2, sent=1, folded=0, opened_at=at, closed_at=at,
        outcome="delivered",
    )  # fmt: skip


def a_delivery_without_a_final_answer(gold: Audience) -> None:
    delivery = Run.objects.get(first_sequence=2).delivery
    assert delivery is not None
    Delivery.objects.filter(pk=delivery.pk).update(outcome="unknown")


def a_change_of_the_install(gold: Audience) -> None:
    GuidedChange.objects.create(
        install=gold.install, kind="mechanism", before="attribute", after="list", by="kim", reason="why"
    )


def a_customer_being_forgotten(gold: Audience) -> None:
    Forgotten.objects.create(install=gold.install, digest="d", token="lytics-sync-forgotten-x", by="kim")


@pytest.mark.parametrize(
    ("needed_by", "stay"),
    [
        (an_open_rejected_item, [2, 3, 4]),
        (an_unfinished_replay, [2, 3, 4]),
        (an_unfinished_audit, [2, 3, 4]),
        (a_retirement, [2, 3, 4]),
        (a_waiting_event, [2, 3, 4]),
        (a_run, [2, 3, 4]),
        (a_delivery_without_a_final_answer, [2, 3, 4]),
        (a_change_of_the_install, [1, 2, 3, 4]),
        (a_customer_being_forgotten, [1, 2, 3, 4]),
    ],
)
def test_an_event_stays_while_it_is_needed(
    gold: Audience, needed_by: Callable[[Audience], None], stay: list[int]
) -> None:
    needed_by(gold)
    prune_wholly()
    assert numbers(gold) == stay


def test_a_young_event_and_those_behind_it_stay(gold: Audience) -> None:
    Event.objects.filter(sequence=2).update(received_at=now())
    prune_wholly()
    assert numbers(gold) == [2, 3, 4]


def test_an_open_rejected_item_of_one_audience_holds_no_other(odp: ThreadedSandbox) -> None:
    install = make_install(odp)
    gold, blue = (make_audience(install, slug, provisioned=False) for slug in ("gold", "blue"))
    for at in range(1, 5):
        enter(gold, "a", at=at)
        enter(blue, "a", at=at)
        drain_all(install)
    shared = Delivery.objects.annotate(lanes=Count("runs")).filter(lanes=2).earliest("pk")
    rejected = shared.runs.get(audience=gold).first_sequence
    assert rejected < 4
    Delivery.objects.update(answer="words")
    Parked.objects.create(
        install=install, audience=gold, sequence=rejected, identifier="a", reason="refused_by_odp", delivery=shared
    )
    Membership.objects.filter(audience=gold).update(rejected=True)
    age(gold)
    age(blue)
    prune_wholly()
    assert numbers(blue) == [4]
    assert numbers(gold) == list(range(rejected, 5))
    shared.refresh_from_db()
    assert (shared.request, shared.answer, shared.reason) == (None, "", "")
    parked_items.release(Parked.objects.values_list("pk", flat=True), by="kim")
    drain_all(install)
    assert Event.objects.filter(audience=gold, sequence=5, forced=True).exists()


def test_after_a_resend_the_event_with_the_time_of_the_ledger_stays(gold: Audience) -> None:
    happen(gold, ("a", "enter", 1), forced=True)
    drain_all(gold.install)
    held = Membership.objects.get(audience=gold, identifier="a")
    assert (held.sequence, held.occurred_ns) == (5, 4)
    age(gold)
    prune_wholly()
    assert numbers(gold) == [3, 4, 5]
    assert_all_is_well(gold)


def test_what_belongs_to_a_deleted_event_goes_with_it(gold: Audience) -> None:
    for number in (1, 3):
        FutureTime.objects.create(audience=gold, sequence=number, claimed_ns=9, received_at=now())
        Again.objects.create(audience=gold, first_sequence=number, last_sequence=number + 1, cause="replay")
    prune_wholly()
    assert [row.sequence for row in FutureTime.objects.all()] == [3]
    assert [row.first_sequence for row in Again.objects.all()] == [3]


def test_zero_days_keep_the_log(gold: Audience, settings: Settings) -> None:
    settings.EVENTS_KEEP_DAYS = 0
    prune_wholly()
    assert numbers(gold) == [1, 2, 3, 4]


def test_events_of_the_last_day_can_not_be_pruned_at_all(gold: Audience) -> None:
    with connection.cursor() as cursor, pytest.raises(DatabaseError, match="last day"), transaction.atomic():
        cursor.execute("SELECT prune_events(%s, 0, 9, now() - interval '23 hours')", [gold.pk])


def test_a_step_reads_its_own_events_alone_in_a_log_without_statistics(gold: Audience) -> None:
    with connection.cursor() as cursor:
        cursor.execute(MANY_EVENTS, {"audience": gold.pk, "last": 100_000})
        cursor.execute("SELECT pg_stat_get_xact_tuples_fetched('audiences_event_1'::regclass)")
        (before,) = cursor.fetchone()
        for after in (0, 100):
            cursor.execute("SELECT prune_events(%s, %s, 100, now() - interval '90 days')", [gold.pk, after])
        cursor.execute("SELECT pg_stat_get_xact_tuples_fetched('audiences_event_1'::regclass)")
        (read,) = cursor.fetchone()
    assert numbers(gold)[:3] == [3, 4, 201]
    assert read - before < 2_000


def test_skipped_events_are_pruned_with_the_run_that_says_so(gold: Audience) -> None:
    happen(gold, ("a", "exit", 8), ("c", "enter", 8))
    switched_off = Install.objects.filter(pk=gold.install_id)
    switched_off.update(enabled=False)
    skips.skip(gold.install_id, by="kim", reason="restored")
    switched_off.update(enabled=True)
    assert Run.objects.filter(outcome="skipped").count() == 1
    age(gold)
    prune()
    assert broken_truths() == []
    enter(gold, "d", at=9)
    drain_all(gold.install)
    age(gold)
    prune_wholly()
    assert numbers(gold) == [3, 4, 7]
    assert not Run.objects.filter(outcome="skipped").exists()
    assert_all_is_well(gold)


# --- What knows the horizon ----------------------------------------------------------------------------------


def test_an_audit_finds_what_is_missing_after_the_horizon(odp: ThreadedSandbox) -> None:
    gold = make_delivered(make_install(odp), "a", "b")
    age(gold)
    for at in range(2, 6):
        enter(gold, f"u{at}", at=at)
        drain_all(gold.install)
    happen(gold, ("a", "exit", 8))
    drain_all(gold.install)
    prune_wholly()
    assert numbers(gold) == [2, 3, 4, 5, 6, 7]
    assert broken_truths() == []
    with transaction.atomic():
        Event.objects.filter(sequence=4).delete()
        assert {finding[0] for finding in broken_truths()} == {
            "no gap in a lane",
            "ledger is the fold of the delivered log",
        }
        transaction.set_rollback(True)
    with transaction.atomic():
        Event.objects.filter(sequence=2).delete()
        assert {finding[0] for finding in broken_truths()} == {"ledger is the fold of the delivered log"}
        transaction.set_rollback(True)
    Horizon.objects.update(events_to=99)
    assert "cursor not past the last number" in {finding[0] for finding in broken_truths()}


def test_a_replay_finds_the_events_behind_the_horizon(gold: Audience) -> None:
    prune_wholly()
    enter(gold, "d", "e", at=20)
    drain_all(gold.install)
    start, end = now() - timedelta(hours=1), now() + timedelta(hours=1)
    assert log_range.find(gold.pk, start, end, upto=6) == log_range.Stretch(5, 6, 2)
    long_ago = now() - timedelta(days=200)
    assert log_range.find(gold.pk, long_ago, end, upto=6).events == 3


def test_a_replay_from_before_the_horizon_is_rejected_with_the_date(gold: Audience) -> None:
    prune_wholly()
    client = Client()
    client.force_login(User.objects.create_superuser("boss"))
    url = reverse("admin:audiences_audience_replay", args=[gold.pk])
    values = {"start": "2020-01-01T00:00", "end": f"{now():%Y-%m-%dT%H:%M}", "reason": "why"}
    assert "are deleted after 90 days. A replay can" in client.post(url, values).content.decode()
    values["start"] = f"{horizons.day('events')}T00:00"
    assert "A replay can" not in client.post(url, values).content.decode(), "that day is kept"


def test_an_export_of_a_customer_says_from_which_age_rows_are_deleted(gold: Audience) -> None:
    assert customer_export.export(gold.install, "b")["horizons"] == []
    prune_wholly()
    said = customer_export.export(gold.install, "b")["horizons"]
    kinds = [text.partition(" before ")[0] for text in said]
    assert kinds == ["Events", "Request bodies", "Deliveries", "Items closed", "Audits"]
    assert all(re.search(r" are deleted after \d+ days\.$", text) for text in said)


def test_an_event_whose_run_is_deleted_is_not_shown_as_delivered_for_certain(
    odp: ThreadedSandbox, settings: Settings
) -> None:
    """It was folded into the next event, in the same request."""
    settings.EVENTS_KEEP_DAYS = 0
    gold = make_audience(make_install(odp), provisioned=False)
    happen(gold, ("a", "enter", 1), ("a", "exit", 2))
    drain_all(gold.install)
    enter(gold, "b")
    drain_all(gold.install)
    found = [state.of_event(status).word for status in customers.customer_history("a").statuses]
    assert found == ["delivered", "folded"]
    age(gold)
    prune_wholly()
    found = [state.of_event(status).why for status in customers.customer_history("a").statuses]
    assert found == ["", "or folded: its run, which knew that, is deleted"]


def test_a_customer_is_shown_with_the_horizon(gold: Audience) -> None:
    prune_wholly()
    history = customers.customer_history("b")
    assert [(status.event.sequence, status.end) for status in history.statuses] == [(3, End.DELIVERED)]
    assert history.statuses[0].holds
    client = Client()
    client.force_login(User.objects.create_superuser("boss"))
    page = client.post(reverse("find_customer"), {"identifier": "b"}, follow=True).content.decode()
    assert "Events before" in page
    assert "Runs before" in page
