"""The option that lets an identifier leave with the list that no longer holds it."""

import itertools
import json
from typing import Any

import pytest

from audiences import fold, ingest, installs
from audiences.models import Event, Install

pytestmark = pytest.mark.django_db

T1, T2, T3 = (f"2026-02-0{day}T00:00:00Z" for day in (1, 2, 3))


@pytest.fixture
def install() -> Install:
    made = Install(
        name="Arrays", odp_api_key="public.private", identifier_field="_uids", forget_missing_identifiers=True
    )
    installs.create(made)
    return made


def message(event: str, at: str, uids: list[str], *, profile: str | None = "p-1") -> dict[str, Any]:
    transition = {"id": "a1", "slug": "vip_buyers", "event": event, **({} if event == "change" else {event: at})}
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


def test_an_exit_takes_remembered_identifiers_along(install: Install) -> None:
    tell(install, message("enter", T1, ["c-1", "c-2"]))
    tell(install, message("exit", T2, ["c-2"]))
    assert members() == set()


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
@pytest.mark.parametrize("last", ["change", "exit"])
def test_the_order_of_arrival_makes_no_difference(install: Install, order: tuple[int, ...], last: str) -> None:
    told = [message("enter", T1, ["a", "b"]), message("change", T2, ["a", "c"]), message(last, T3, ["a"])]
    for position in order:
        tell(install, told[position])
    assert members() == ({"a"} if last == "change" else set())


def test_lists_of_one_call_follow_each_other(install: Install) -> None:
    tell(install, message("enter", T1, ["a", "b"]), message("change", T2, ["b"]), message("change", T1, ["a", "z"]))
    assert members() == {"b"}


def test_another_profile_keeps_its_own_list(install: Install) -> None:
    tell(install, message("enter", T1, ["a"]), message("enter", T2, ["b"], profile="p-2"))
    assert members() == {"a", "b"}


def test_without_a_lytics_id_nothing_is_remembered(install: Install) -> None:
    tell(install, message("enter", T1, ["a", "b"], profile=None), message("change", T2, ["b"], profile=None))
    assert members() == {"a", "b"}


def test_it_is_off_unless_asked_for(install: Install) -> None:
    install.forget_missing_identifiers = False
    tell(install, message("enter", T1, ["a", "b"]), message("change", T2, ["b"]))
    assert members() == {"a", "b"}
