"""The verification of guided changes: who is in the sample, and who differs from it in ODP."""

from collections.abc import Iterable
from typing import Any

import pytest

from audiences.delivery.odp_account import client_of
from audiences.models import Audience, Event, Membership
from audiences.operations import verification
from sandbox.odp.testing import ThreadedSandbox
from tests.delivering import enter, happen, make_audience, make_delivered, make_install
from tests.threads import PATIENCE

NEW, OLD = "lytics_new", "lytics_old"
# What ODP shows of a person by both identifiers.
SHOWN, HIDDEN = [{NEW, OLD}] * 2, [set[str](), None]


def person(identifier: str, **values: Any) -> Membership:
    return Membership(**{"identifier": identifier, "is_member": True, "sequence": 1, "occurred_ns": 1, **values})


def names(rows: Iterable[Membership]) -> list[str]:
    return [row.identifier for row in rows]


def test_a_person_whom_one_identifier_shows_and_the_other_does_not_differs() -> None:
    people = [person("kim"), person("pat", is_member=False)]
    assert names(verification.differing(people, [{NEW}, None, set(), {NEW}], NEW)) == ["kim", "pat"]


def test_members_whom_the_old_definition_does_not_show_count_only_if_the_new_one_shows_nobody() -> None:
    people = [person("kim"), person("lee")]
    assert verification.differing(people, [*SHOWN, *HIDDEN], NEW, OLD) == []
    assert names(verification.differing(people, [*HIDDEN, *HIDDEN], NEW, OLD)) == ["kim", "lee"]
    assert names(verification.differing(people, [*SHOWN, {OLD}, {OLD}], NEW, OLD)) == ["lee"]


def test_a_person_who_left_counts_whatever_the_old_definition_shows() -> None:
    people = [person("kim"), person("pat", is_member=False)]
    assert names(verification.differing(people, [*SHOWN, {NEW}, {NEW}], NEW, OLD)) == ["pat"]


@pytest.fixture
def gold(db: None) -> Audience:
    """Events 1 to 4; ODP rejected the state of Lee, and Mia's was decided by an event after them."""
    made = make_audience(make_install())
    enter(made, "kim", "lee", "mia", "pat")
    happen(made, ("mia", "exit", 9))
    for row in (person("kim"), person("lee", rejected=True), person("mia", sequence=5), person("pat", sequence=4)):
        row.audience = made
        row.save(force_insert=True)
    return made


def test_the_sample_has_the_people_of_the_events_whom_odp_did_not_reject(gold: Audience) -> None:
    assert names(verification.sample(gold.pk, first=1, last=3, seed=1)) == ["kim", "mia"]
    assert names(verification.sample(gold.pk, first=4, last=4, seed=1)) == ["pat"]
    assert verification.sample(gold.pk, first=5, last=4, seed=1) == []


@pytest.mark.parametrize("has_log", [True, False])
def test_the_sample_of_the_ledger_has_no_state_that_is_newer_or_rejected(gold: Audience, has_log: bool) -> None:
    if not has_log:
        Event.objects.filter(audience=gold).delete()
    assert names(verification.of_ledger(gold.pk, upto=4, seed=1)) == ["kim", "pat"]


def test_a_sample_that_the_log_does_not_fill_is_no_larger_than_another_one(
    gold: Audience, monkeypatch: pytest.MonkeyPatch
) -> None:
    Event.objects.exclude(identifier="pat").delete()
    Membership.objects.bulk_create(person(f"a{number}", audience=gold) for number in range(4))
    monkeypatch.setattr(verification, "SAMPLE", 4)
    assert names(verification.of_ledger(gold.pk, upto=4, seed=1)) == ["a0", "a1", "a2", "pat"]


def test_a_difference_of_a_person_who_changed_in_the_meantime_does_not_count(gold: Audience) -> None:
    rows = list(Membership.objects.filter(audience=gold).order_by("identifier"))
    Membership.objects.filter(identifier="kim").update(is_member=False)
    Membership.objects.filter(identifier="lee").update(sequence=9)
    Membership.objects.filter(identifier="mia").delete()
    assert names(verification.unchanged(gold, rows)) == ["pat"]


@pytest.mark.django_db
def test_members_whom_the_old_account_does_not_show_are_left_out_if_it_answers(odp: ThreadedSandbox) -> None:
    gold = make_delivered(make_install(odp), "kim")
    odp.odp("POST", "/v3/profiles", {"attributes": {"fs_user_id": "half", gold.odp_id: True}})
    people = [person("kim"), person("half"), person("hidden"), person("pat", is_member=False)]

    def left() -> list[str]:
        old = client_of(gold.install)
        return names(verification.without_hidden(old, gold.odp_id, people, seconds=PATIENCE))

    assert left() == ["kim", "pat"]
    odp.fault({}, {"status": 503, "body": {"message": "down"}})
    assert left() == ["kim", "half", "hidden", "pat"]
