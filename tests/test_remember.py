"""The option that lets an identifier leave with the list that no longer holds it."""

import itertools
import json
from typing import Any

import pytest

from audiences.delivery import fold
from audiences.models import Audience, Event, Install, Parked, Profile, Receipt
from audiences.operations import installs, parked_items
from audiences.receiving import ingest
from lytics import times
from tests.threads import together

pytestmark = pytest.mark.django_db

T1, T2, T3 = (f"2026-02-0{day}T00:00:00Z" for day in (1, 2, 3))


@pytest.fixture
def install() -> Install:
    made = Install(
        name="Arrays", odp_api_key="public.private", identifier_field="_uids", forget_missing_identifiers=True
    )
    installs.create(made)
    return made


def message(
    event: str, at: str, uids: Any, *, profile: str | None = "p-1", segment: str = "a1", slug: str | None = "vip_buyers"
) -> dict[str, Any]:
    transition = {"id": segment, "event": event, **({} if event == "change" else {event: at})}
    transition |= {"slug": slug} if slug else {}
    data = {"_uids": uids, "segment_events": [transition], **({"_id": profile} if profile else {})}
    return {"data": data, "meta": {"object": "user", "timestamp": at}}


def members() -> set[str]:
    """The memberships that the log adds up to."""
    events = Event.objects.values_list("sequence", "identifier", "kind", "occurred_ns")
    return {name for name, entry in fold.newest(fold.Entry(*row) for row in events).items() if entry.kind}


def tell(install: Install, *messages: dict[str, Any]) -> None:
    ingest.receive(install, json.dumps(messages).encode())


def test_an_identifier_missing_from_a_newer_list_leaves(install: Install) -> None:
    tell(install, message("enter", T1, ["c-1", "c-2"]))
    tell(install, message("change", T2, ["c-2", "c-3"]))
    assert members() == {"c-2", "c-3"}


def test_an_exit_removes_remembered_identifiers_too(install: Install) -> None:
    tell(install, message("enter", T1, ["c-1", "c-2"]))
    tell(install, message("exit", T2, ["c-2"]))
    assert members() == set()


@pytest.mark.parametrize("event", ["change", "exit"])
def test_a_list_with_nothing_in_it_says_that_all_are_gone(install: Install, event: str) -> None:
    tell(install, message("enter", T1, ["c-1", "c-2"]))
    tell(install, message(event, T2, []), message("change", T1, ["c-3"]))
    assert members() == set()
    assert not Parked.objects.exists()
    assert Receipt.objects.latest("pk").queued == 4  # c-3 was sent, and all three have left


def test_a_list_with_nothing_in_it_makes_no_audience(install: Install) -> None:
    tell(install, message("enter", T1, []))
    assert not Audience.objects.exists()
    tell(install, message("enter", T2, ["a"]))
    assert members() == {"a"}


@pytest.mark.parametrize(("uids", "profile"), [(None, "p-1"), ("", "p-1"), ([""], "p-1"), ([], None)])
def test_no_identifier_is_no_list_with_nothing_in_it(install: Install, uids: Any, profile: str | None) -> None:
    """A field that a job has ceased to export must not empty an audience."""
    tell(install, message("enter", T1, ["a"]))
    tell(install, message("change", T2, uids, profile=profile))
    assert members() == {"a"}
    assert Parked.objects.get().reason == "unusable_identifier"


def test_two_lists_of_one_moment_are_one(install: Install) -> None:
    tell(install, message("enter", T1, ["a"]))
    tell(install, message("enter", T1, ["b"]))
    tell(install, message("change", T2, ["b"]))
    assert members() == {"b"}


def test_a_list_is_remembered_for_its_audience_alone(install: Install) -> None:
    tell(install, message("enter", T1, ["a", "b"]), message("enter", T1, ["a", "b"], segment="a2", slug="gold"))
    tell(install, message("change", T2, ["b"]))
    exits = Event.objects.filter(kind=0).values_list("audience__segment_id", "identifier")
    assert [*exits] == [("a1", "a")]


def test_a_list_parked_for_its_slug_is_remembered_once_released(install: Install) -> None:
    tell(install, message("enter", T1, ["a", "b"], slug=None))
    assert {item.reason for item in Parked.objects.all()} == {"unknown_slug"}
    tell(install, message("enter", T1, ["c"], profile="p-2"))
    parked_items.release(Parked.objects.values_list("pk", flat=True), by="boss")
    tell(install, message("change", T2, ["b"]))
    assert members() == {"b", "c"}


def test_calls_about_one_profile_at_once_follow_each_other(transactional_db: None, install: Install) -> None:
    """Each list comes in its own call; in any order of storage, only the members of the newest list stay."""
    days = [f"2026-02-{day:02}T00:00:00Z" for day in range(1, 21)]
    tell(install, message("enter", T1, ["a"], profile="other"))
    together(*[lambda day=day: tell(install, message("change", day, [f"u{day}"])) for day in days])
    assert members() == {"a", f"u{days[-1]}"}


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
@pytest.mark.parametrize("last", ["change", "exit"])
def test_the_order_of_arrival_makes_no_difference(install: Install, order: tuple[int, ...], last: str) -> None:
    told = [message("enter", T1, ["a", "b"]), message("change", T2, ["a", "c"]), message(last, T3, ["a"])]
    for position in order:
        tell(install, told[position])
    assert members() == ({"a"} if last == "change" else set())


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_a_late_exit_takes_no_identifier_from_a_profile_that_gained_it(
    install: Install, order: tuple[int, ...]
) -> None:
    told = [
        message("exit", T1, ["a", "b"]),
        message("enter", T2, ["b"], profile="p-2"),
        message("enter", T3, ["a"]),
    ]
    for position in order:
        tell(install, told[position])
    assert members() == {"a", "b"}


@pytest.mark.parametrize("first", ["change", "exit"])
def test_an_exit_wins_over_a_list_of_the_same_moment(install: Install, first: str) -> None:
    tell(install, message("enter", T1, ["a"]))
    told = {"change": message("change", T2, ["a", "b"]), "exit": message("exit", T2, ["a"])}
    tell(install, told.pop(first))
    tell(install, *told.values())
    assert members() == set()


def test_lists_of_one_call_follow_each_other(install: Install) -> None:
    tell(install, message("enter", T1, ["a", "b"]), message("change", T2, ["b"]), message("change", T1, ["a", "z"]))
    assert members() == {"b"}


def test_another_profile_keeps_its_own_list(install: Install) -> None:
    tell(install, message("enter", T1, ["a"]), message("enter", T2, ["b"], profile="p-2"))
    assert members() == {"a", "b"}


def test_without_a_lytics_id_nothing_is_remembered(install: Install) -> None:
    tell(install, message("enter", T1, ["a", "b"], profile=None), message("change", T2, ["b"], profile=None))
    assert members() == {"a", "b"}


def test_it_is_off_by_default(install: Install) -> None:
    install.forget_missing_identifiers = False
    tell(install, message("enter", T1, ["a", "b"]), message("change", T2, ["b"]))
    assert members() == {"a", "b"}


def test_a_list_from_the_future_gives_way_to_the_next_real_one(install: Install) -> None:
    """Older versions remembered lists at times ahead of the clock."""
    tell(install, message("enter", T1, ["c-1", "c-2"]))
    Profile.objects.update(occurred_ns=times.nanoseconds("2199-01-01T00:00:00Z"))
    tell(install, message("change", T2, ["c-2", "c-3"]))
    assert members() == {"c-2", "c-3"}
    assert Profile.objects.get().occurred_ns == times.nanoseconds(T2)
