"""What a release says of each item: in the message, in its history and on its page."""

import pytest
from django.contrib.admin.models import LogEntry
from django.test import Client
from django.urls import reverse

from audiences.models import Install, Parked
from audiences.operations import parked_items
from audiences.receiving.ingest import receive
from tests.messages import body, message

pytestmark = pytest.mark.django_db(transaction=True)

LIST = "/admin/audiences/parked/"


@pytest.fixture
def items(install: Install) -> list[Parked]:
    """Two items without an identifier, of which the corrected field reads the first."""
    receive(install, body(message(who="kim", field="user_id"), message(who="lee", field="other_field")))
    Install.objects.filter(pk=install.pk).update(identifier_field="user_id")
    return list(Parked.objects.order_by("pk"))


def history_of(item: Parked) -> str:
    return str(LogEntry.objects.get(object_id=str(item.pk), content_type__model="parked").change_message)


def test_ticked_items_that_stay_parked_are_not_recorded_as_released(operator: Client, items: list[Parked]) -> None:
    ticked = {"action": "release_selected", "_selected_action": [item.pk for item in items]}
    asked = operator.post(LIST, ticked)
    page = operator.post(LIST, {**ticked, **asked.context["hidden"]}, follow=True)
    assert [str(told) for told in page.context["messages"]] == ["Released 1. 1 still can't be read and stay parked."]
    released, stayed = items
    assert history_of(released).startswith("Released")
    assert history_of(stayed).startswith("Not released")
    assert [item.resolution for item in Parked.objects.order_by("pk")] == ["released", ""]


def test_what_was_read_before_an_error_is_in_its_history(
    operator: Client, items: list[Parked], monkeypatch: pytest.MonkeyPatch
) -> None:
    ticked = {"action": "release_selected", "_selected_action": [item.pk for item in items]}
    asked = operator.post(LIST, ticked)
    release_one, oldest = parked_items.release_one, items[0]

    def fails_at_the_last(parked_id: int, *, by: str, identifier_field: str = "") -> bool | None:
        if parked_id == oldest.pk:
            raise RuntimeError
        return release_one(parked_id, by=by, identifier_field=identifier_field)

    monkeypatch.setattr(parked_items, "release_one", fails_at_the_last)
    with pytest.raises(RuntimeError):
        operator.post(LIST, {**ticked, **asked.context["hidden"]})
    assert history_of(items[1]).startswith("Not released")


def test_ticked_items_of_which_one_was_closed_since_are_left_alone(operator: Client, items: list[Parked]) -> None:
    ticked = {"action": "release_selected", "_selected_action": [item.pk for item in items]}
    asked = operator.post(LIST, ticked)
    for item in items:
        parked_items.discard([item.pk], by="somebody else")
        page = operator.post(f"{LIST}?resolution=all", {**ticked, **asked.context["hidden"]}, follow=True)
        assert ["nothing was done" in str(told) for told in page.context["messages"]] == [True]
    assert not LogEntry.objects.exists()


def test_one_item_that_stays_parked_is_not_recorded_as_released(operator: Client, items: list[Parked]) -> None:
    for item, expected in zip(items, ("Released", "Not released"), strict=True):
        url = reverse("admin:audiences_parked_release", args=[item.pk])
        hidden = operator.get(url).context["hidden"]
        page = operator.post(url, hidden, follow=True)
        (told,) = page.context["messages"]
        assert (str(told).startswith(expected), told.level_tag) == (
            True,
            "success" if expected == "Released" else "warning",
        )
        assert history_of(item).startswith(expected)
