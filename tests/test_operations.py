"""Release and discard of parked items. Resends are tested in test_resend.py."""

from typing import Any

import pytest
from cryptography.fernet import Fernet
from pytest_django.fixtures import Settings

from audiences.models import Event, Install, Parked, Profile, Receipt
from audiences.operations import parked_items
from audiences.receiving import ingest
from audiences.receiving.ingest import receive
from lytics import payload, reasons
from lytics.facts import Kind
from tests.messages import AT_NS, body, message, single, transition
from tests.threads import Gate, together

pytestmark = pytest.mark.django_db

ENTER, EXIT, CHANGE = Kind.ENTER, Kind.EXIT, Kind.CHANGE


@pytest.fixture(autouse=True)
def woken(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The installs for which workers were woken."""
    told: list[int] = []
    monkeypatch.setattr(parked_items, "wake", told.append)
    monkeypatch.setattr(ingest, "wake", told.append)
    return told


def log() -> list[tuple[str, int, int, bool]]:
    events = Event.objects.order_by("audience_id", "sequence")
    return list(events.values_list("identifier", "kind", "occurred_ns", "forced"))


def release_all(by: str = "ada") -> tuple[int, int]:
    return parked_items.release(list(Parked.objects.order_by("pk").values_list("pk", flat=True)), by=by)


def correct(install: Install, **values: Any) -> None:
    Install.objects.filter(pk=install.pk).update(**values)


# --- Release --------------------------------------------------------------------------------------------------


@pytest.mark.django_db(transaction=True)
def test_items_without_an_identifier_are_released_once_the_field_is_corrected(
    install: Install, woken: list[int]
) -> None:
    people = [message(who=who, field="user_id") for who in ("kim", ["lee", "mo"])]
    receive(install, body(*people))
    assert (log(), woken) == ([], [])
    correct(install, identifier_field="user_id")
    assert release_all() == (2, 0)
    assert log() == [(who, ENTER, AT_NS, False) for who in ("kim", "lee", "mo")]
    assert woken == [install.pk] * 2
    for parked in Parked.objects.all():
        assert (parked.resolution, parked.closed_by) == ("released", "ada")
        assert parked.closed_at is not None
    assert set(Event.objects.values_list("receipt_id", flat=True)) == {Receipt.objects.get().pk}


def test_an_item_that_still_can_not_be_read_stays(install: Install) -> None:
    receive(install, body(message(field="user_id"), "oops", message(transition("paused"))))
    assert release_all() == (0, 3)
    assert not Parked.objects.exclude(closed_at=None).exists()
    assert log() == []


def test_an_item_that_no_key_opens_stays(install: Install, settings: Settings) -> None:
    receive(install, body(message(who="kim", field="user_id")))
    correct(install, identifier_field="user_id")
    keys, settings.FIELD_ENCRYPTION_KEYS = settings.FIELD_ENCRYPTION_KEYS, [Fernet.generate_key().decode()]
    assert release_all() == (0, 1)
    settings.FIELD_ENCRYPTION_KEYS = keys
    assert release_all() == (1, 0)


def test_releasing_twice_appends_once(install: Install) -> None:
    receive(install, body(message(field="user_id")))
    correct(install, identifier_field="user_id")
    assert release_all() == (1, 0)
    assert release_all() == (0, 0)
    assert len(log()) == 1


@pytest.mark.django_db(transaction=True)
def test_two_operators_who_release_one_item_at_once_append_it_once(install: Install) -> None:
    receive(install, body(message(field="user_id")))
    correct(install, identifier_field="user_id")
    ready = Gate(2).after(lambda: None)

    def press() -> tuple[int, int]:
        ready()
        return release_all()

    assert sorted(together(press, press)) == [(0, 0), (1, 0)]
    assert len(log()) == 1


def test_a_released_item_keeps_its_old_time_so_that_newer_events_still_win(install: Install) -> None:
    late = message(transition(at=None), meta={"object": "user"}, field="user_id")
    receive(install, single(late))
    at = Parked.objects.get().parked_at
    correct(install, identifier_field="user_id")
    release_all()
    event = Event.objects.get()
    assert event.occurred_at == at
    assert event.received_at > at


def test_an_item_with_an_odd_time_uses_the_time_of_its_message_on_release(install: Install) -> None:
    receive(install, single(message(transition(at="yesterday"))))
    assert Parked.objects.get().reason == reasons.UNREADABLE_TIME
    assert release_all() == (1, 0)
    assert log() == [("kim", ENTER, AT_NS + 4_250_000_000, False)]


def test_an_id_without_a_slug_is_released_once_the_slug_is_known(install: Install) -> None:
    leave = message(transition("exit", slug=None, at="2026-03-02T09:15:00.000000001Z"))
    receive(install, body(leave, message(transition("change", slug=None), who="lee")))
    assert release_all() == (0, 2)
    receive(install, body(message(who="mo")))
    assert release_all() == (2, 0)
    assert log() == [
        ("mo", ENTER, AT_NS, False),
        ("kim", EXIT, AT_NS + 1, False),
        ("lee", CHANGE, AT_NS + 4_250_000_000, False),
    ]


def test_an_id_without_a_slug_keeps_its_profile_for_the_release(install: Install) -> None:
    """Without it, an identifier that a later list lacks would stay in the audience."""
    correct(install, identifier_field="_uids", forget_missing_identifiers=True)
    install.refresh_from_db()
    listed = message(transition(slug=None), who=["kim", "lee"], field="_uids")
    listed["data"]["_id"] = "profile-1"
    receive(install, body(listed))
    receive(install, body(message(who="mo", field="_uids")))
    assert release_all() == (2, 0)
    assert list(Profile.objects.values_list("profile", "identifiers")) == [("profile-1", ["kim", "lee"])]


def test_the_readable_part_of_an_item_is_released_even_if_the_rest_stays(install: Install) -> None:
    receive(install, single(message(transition(), transition("paused"), field="user_id")))
    correct(install, identifier_field="user_id")
    assert release_all() == (0, 2)
    assert {(who, kind) for who, kind, *_ in log()} == {("kim", ENTER)}


def test_a_message_with_too_many_events_for_its_call_is_continued_automatically(
    install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(payload, "FACTS_AT_MOST", 2)
    receive(install, body(message(), message(who=["lee", "mo"])))
    assert [who for who, *_ in log()] == ["kim"]
    assert release_all() == (1, 0)
    assert [who for who, *_ in log()] == ["kim", "lee", "mo"]


def test_a_body_that_was_no_json_can_be_released_and_stays(install: Install) -> None:
    receive(install, b"\x00\xff junk")
    assert release_all() == (0, 1)


# --- Discard --------------------------------------------------------------------------------------------------


def test_a_discarded_item_stays_as_a_row_that_says_who_discarded_it(install: Install) -> None:
    receive(install, body("oops", 5))
    first, second = Parked.objects.order_by("pk")
    assert parked_items.discard([first.pk], by="ada") == 1
    first.refresh_from_db()
    assert (first.resolution, first.closed_by) == ("discarded", "ada")
    assert first.raw is not None
    assert parked_items.discard([first.pk, second.pk], by="bob") == 1
    first.refresh_from_db()
    assert first.closed_by == "ada"


def test_a_discarded_item_is_not_released(install: Install) -> None:
    receive(install, body(message(field="user_id")))
    parked_items.discard(list(Parked.objects.values_list("pk", flat=True)), by="ada")
    correct(install, identifier_field="user_id")
    assert release_all() == (0, 0)
    assert log() == []
