"""Blocked audiences of one cause are one trouble, unblocked together; lists sort, search and download."""

from typing import Any

import pytest
from django.contrib.admin.models import LogEntry
from django.test import Client
from django.urls import reverse
from django.utils.timezone import now

from audiences.admin import blocked
from audiences.delivery import holds
from audiences.front import groups, lines
from audiences.front.alerts import ALERTS_LISTED
from audiences.models import Audience, Delivery, Install, Lane, Receipt, Run
from tests.delivering import make_audience
from tests.people import someone
from tests.test_admin import hidden

pytestmark = pytest.mark.django_db

LIST = "/admin/audiences/audience/"


@pytest.fixture
def three(install: Install) -> list[Audience]:
    """Blocked for one cause, in words that name each of them."""
    made = [make_audience(install, slug) for slug in ("gold", "silver", "tin")]
    for audience in made:
        why = f"field '{audience.odp_id}' must be a boolean"
        Lane.objects.filter(pk=audience.pk).update(blocked_at=now(), block_reason=why)
    return made


def told(client: Client, address: str = "/admin/") -> list[Any]:
    return [one for one in client.get(address).context["alerts"] if "blocked" in one.what]


def test_the_page_of_an_audience_that_is_stuck_says_what_waits_and_what_to_do(
    viewer: Client, three: list[Audience]
) -> None:
    gold, silver, tin = three
    lanes = Lane.objects.filter(pk__in=[silver.pk, tin.pk])
    lanes.update(blocked_at=None, block_reason="")
    failing = {"hold_failures": 2, "hold_reason": "503: busy", "hold_since_at": now(), "hold_until_at": now()}
    Audience.objects.filter(pk=silver.pk).update(provisioned_at=None, last_sequence=3, **failing)
    Audience.objects.filter(pk=gold.pk).update(last_sequence=1)

    def warnings(audience: Audience) -> Any:
        return viewer.get(f"{LIST}{audience.pk}/change/").context["warnings"]

    (words,) = warnings(gold)
    assert words.startswith(
        "1 event waiting. Other audiences are not affected. Fix the cause in ODP, then press Unblock."
    )
    assert warnings(silver) == ["3 events waiting. It is retried automatically, and delays no other audience."]
    assert warnings(tin) == []
    holds.pause(Lane.objects.get(pk=gold.pk), by="kim", reason="known")
    assert warnings(gold) == []


def test_audiences_blocked_by_one_cause_are_one_alert_whose_button_unblocks_each(
    operator: Client, viewer: Client, install: Install, three: list[Audience]
) -> None:
    other = make_audience(install, "other")
    Lane.objects.filter(pk=other.pk).update(blocked_at=now(), block_reason="something else")
    assert [one.what for one in told(viewer)] == ["3 audiences are blocked (Shop)", "lytics_other is blocked (Shop)"]
    assert told(viewer)[0].buttons == []
    (button,) = told(operator)[0].buttons
    assert button.label == "Unblock all 3 of this cause"
    assert told(operator)[0].todo.endswith("press Use another ODP id or Set aside on the page of each audience.")
    assert told(operator)[1].todo.endswith("press Use another ODP id or Set aside.")
    asked = operator.get(button.url).content.decode()
    assert "lytics_gold, lytics_silver, lytics_tin" in asked
    assert viewer.get(button.url).status_code == 403
    assert viewer.post(button.url, hidden(asked)).status_code == 403
    assert Lane.objects.filter(blocked_at__isnull=False).count() == 4
    operator.post(button.url, hidden(asked))
    assert [lane.audience.odp_id for lane in Lane.objects.filter(blocked_at__isnull=False)] == ["lytics_other"]
    logged = LogEntry.objects.filter(change_message="Unblocked, with 2 others.")
    assert {entry.object_id for entry in logged} == {str(audience.pk) for audience in three}


@pytest.mark.parametrize(
    ("why", "todo"),
    [
        ("400: the name is taken", "press Unblock. Waiting events"),
        ("lytics_gold: events 3–5 are not all there", "Keep the audience blocked"),
        ("The ODP id is used already. Press Use another ODP id.", "Do what the reason says."),
    ],
)
def test_an_alert_says_what_to_do_about_the_block(viewer: Client, install: Install, why: str, todo: str) -> None:
    gold = make_audience(install, "gold")
    Lane.objects.filter(pk=gold.pk).update(blocked_at=now(), block_reason=why)
    assert todo in told(viewer)[0].todo


def test_causes_that_differ_only_in_masked_words_are_one_alert(viewer: Client, install: Install) -> None:
    for number in range(3):
        audience = make_audience(install, f"club_{number}")
        why = f"field '{audience.odp_id}' of 'kim{number}@example.com' must be a boolean"
        Lane.objects.filter(pk=audience.pk).update(blocked_at=now(), block_reason=why)
    assert [one.what for one in told(viewer)] == ["3 audiences are blocked (Shop)"]


def test_of_many_causes_the_most_frequent_are_listed_and_the_others_counted(viewer: Client, install: Install) -> None:
    for number in range(groups.READ + 15):
        audience = make_audience(install, f"club_{number}")
        why = "the field is gone" if number % 13 == 0 else f"cause {number}"
        Lane.objects.filter(pk=audience.pk).update(blocked_at=now(), block_reason=why)
    shown = told(viewer, lines.url_of_all(""))
    causes = 1 + groups.READ + 15 - 5
    assert shown[0].what == "5 audiences are blocked (Shop)"
    assert len(shown) == ALERTS_LISTED + 1
    assert shown[-1].what == f"{causes - ALERTS_LISTED} more reasons for blocked audiences"
    (blocked,) = [one for one in viewer.get("/admin/").context["numbers"] if one.label == "blocked audiences"]
    assert blocked.value == str(groups.READ + 15)


def test_a_block_of_another_install_is_another_trouble(viewer: Client, three: list[Audience]) -> None:
    elsewhere = Install.objects.create(name="Elsewhere", odp_api_key="k")
    Audience.objects.filter(pk=three[0].pk).update(install=elsewhere)
    assert {one.what for one in told(viewer)} == {
        "2 audiences are blocked (Shop)",
        "lytics_gold is blocked (Elsewhere)",
    }


def test_ticked_audiences_are_unblocked_with_permission_and_not_from_a_stale_page(
    operator: Client, viewer: Client, three: list[Audience]
) -> None:
    ticked = {"action": "unblock_selected", "_selected_action": [three[0].pk, three[1].pk]}
    assert 'name="_selected_action"' in operator.get(LIST).content.decode()
    assert 'name="_selected_action"' not in viewer.get(LIST).content.decode()
    asked = operator.post(LIST, ticked).content.decode()
    answers = {**ticked, "seen": hidden(asked)["seen"]}
    viewer.post(LIST, answers)
    assert Lane.objects.filter(blocked_at__isnull=False).count() == 3
    Lane.objects.filter(pk=three[0].pk).update(blocked_at=now())
    assert "changed after the page was loaded" in operator.post(LIST, answers, follow=True).content.decode()
    assert Lane.objects.filter(blocked_at__isnull=False).count() == 3
    asked = operator.post(LIST, ticked).content.decode()
    operator.post(LIST, {**ticked, "seen": hidden(asked)["seen"]})
    assert list(Lane.objects.filter(blocked_at__isnull=False).values_list("pk", flat=True)) == [three[2].pk]


def test_the_file_of_audiences_has_the_state_of_each_and_is_logged(viewer: Client, three: list[Audience]) -> None:
    Lane.objects.filter(pk=three[1].pk).update(blocked_at=None, block_reason="")
    answer: Any = viewer.post(f"{LIST}csv/?state=blocked")
    lines = b"".join(answer.streaming_content).decode().splitlines()
    assert [line.split(",")[:2] for line in lines] == [
        ["audience", "install"],
        ["lytics_tin", "Shop"],
        ["lytics_gold", "Shop"],
    ]
    assert all(",blocked," in line for line in lines[1:])
    assert "state=blocked" in LogEntry.objects.get(object_repr="list").change_message
    assert 'action="csv/' in viewer.get(LIST).content.decode()


def test_audiences_are_sorted_by_members_and_backlog_and_name(viewer: Client, three: list[Audience]) -> None:
    for place, audience in enumerate(three):
        Lane.objects.filter(pk=audience.pk).update(member_count=place)
        Audience.objects.filter(pk=audience.pk).update(last_sequence=5 - place)
    columns = viewer.get(LIST).context["cl"].list_display
    by_members, by_backlog, by_name = (columns.index(name) for name in ("members", "waiting", "name"))
    gold, silver, tin = (audience.pk for audience in three)
    for order, expected in (
        (f"-{by_members}", [tin, silver, gold]),
        (f"{by_backlog}", [tin, silver, gold]),
        (f"-{by_name}", [tin, silver, gold]),
        (f"{by_name}", [gold, silver, tin]),
    ):
        found = viewer.get(LIST, {"o": order}).context["cl"].result_list
        assert [audience.pk for audience in found] == expected, order


def test_unblocking_a_cause_needs_a_role(three: list[Audience]) -> None:
    url = reverse("admin:audiences_audience_unblock_cause", args=[three[0].pk])
    assert someone("", "nobody").post(url, {"seen": "x"}).status_code == 403


def test_what_was_unblocked_before_an_error_is_in_the_history(
    operator: Client, three: list[Audience], monkeypatch: pytest.MonkeyPatch
) -> None:
    url = reverse("admin:audiences_audience_unblock_cause", args=[three[0].pk])
    asked = hidden(operator.get(url).content.decode())
    unblock = holds.unblock

    def fails_at_the_last(lane: Lane) -> bool:
        if lane.pk == three[2].pk:
            raise RuntimeError
        return unblock(lane)

    monkeypatch.setattr(holds, "unblock", fails_at_the_last)
    with pytest.raises(RuntimeError):
        operator.post(url, asked)
    entries = LogEntry.objects.order_by("pk").values_list("object_id", "change_message")
    assert list(entries) == [(str(one.pk), "Unblocked, with 1 other.") for one in three[:2]]
    assert Lane.objects.filter(blocked_at=None).count() == 2


def test_installs_are_sorted_by_blocked_audiences_and_show_the_last_delivery(
    viewer: Client, install: Install, three: list[Audience]
) -> None:
    other = Install.objects.create(name="acme", odp_api_key="k")
    accepted(other)
    url = "/admin/audiences/install/"
    page = viewer.get(url)
    assert [one.name for one in page.context["cl"].result_list] == ["acme", "Shop"]
    assert [one.delivered_at is None for one in page.context["cl"].result_list] == [False, True]
    columns = page.context["cl"].list_display
    for column, expected in (("held", ["Shop", "acme"]), ("last_delivered", ["acme", "Shop"])):
        for order, names in ((f"-{columns.index(column)}", expected), (f"{columns.index(column)}", expected[::-1])):
            found = viewer.get(url, {"o": order}).context["cl"].result_list
            assert [one.name for one in found] == names, order


def accepted(install: Install) -> Delivery:
    return Delivery.objects.create(
        install=install,
        endpoint="/v3/profiles",
        opened_at=now(),
        closed_at=now(),
        outcome="delivered",
        items=1,
        bytes=1,
        worker="w",
        version="1",
    )


def test_runs_and_calls_are_searched_by_number_and_by_name(
    viewer: Client, install: Install, three: list[Audience]
) -> None:
    usual = {"sent": 1, "folded": 0, "opened_at": now(), "closed_at": now(), "outcome": "delivered"}
    runs = [Run.objects.create(audience=one, first_sequence=1, last_sequence=1, **usual) for one in three]
    call = Receipt.objects.create(install=install, bytes=1, messages=1, queued=1, parked=0, skipped=0)
    for model, term, expected in (
        ("run", "gold", [runs[0].pk]),
        ("run", "lytics_silver", [runs[1].pk]),
        ("run", str(runs[2].pk), [runs[2].pk]),
        ("run", "gol", []),
        ("receipt", str(call.pk), [call.pk]),
        ("receipt", "shop", [call.pk]),
        ("receipt", "nobody", []),
    ):
        page = viewer.get(f"/admin/audiences/{model}/", {"q": term})
        assert [row.pk for row in page.context["cl"].result_list] == expected, (model, term)
        assert 'name="q"' in page.content.decode()


def test_audiences_and_installs_say_how_many_match(viewer: Client, three: list[Audience]) -> None:
    assert "3 in all" in viewer.get(LIST).content.decode()
    assert "1 in all" in viewer.get(LIST, {"q": "gold"}).content.decode()
    assert "1 in all" in viewer.get("/admin/audiences/install/").content.decode()
    assert "in all" not in viewer.get("/admin/audiences/run/").content.decode()


@pytest.mark.parametrize("name", ["audience", "install", "run", "delivery", "receipt", "parked", "token"])
def test_no_list_shows_the_bound_of_its_pages_as_a_count(viewer: Client, three: list[Audience], name: str) -> None:
    shown = viewer.get(f"/admin/audiences/{name}/").content.decode()
    assert "<title>" in shown
    assert "results" not in shown.partition("</h1>")[0]
    assert "Show all" not in shown


# --- One cause in several installs ----------------------------------------------------------------------------


@pytest.fixture
def everywhere() -> list[Install]:
    """Six installs, each on hold, so that the page has more troubles than lines; in five the same cause blocks one or
    two audiences, and in the last another one does.
    """
    made = []
    for number in range(6):
        install = Install.objects.create(name=f"Shop {number}", odp_api_key="k", odp_host="http://127.0.0.1:9")
        accepted(install)
        Install.objects.filter(pk=install.pk).update(
            backoff_since_at=now(), backoff_until_at=now(), backoff_failures=1, backoff_reason=f"reason {number}"
        )
        made.append(install)
        for slug in ("gold", "tin")[: 1 + number % 2]:
            audience = make_audience(install, slug)
            why = "something else" if number == 5 else f"field '{audience.odp_id}' must be a boolean"
            Lane.objects.filter(pk=audience.pk).update(blocked_at=now(), block_reason=why)
    return made


def of_all_installs(client: Client) -> Any:
    (line,) = [one for one in told(client) if one.what.startswith("7 audiences")]
    return line


def test_one_button_unblocks_what_a_cause_blocks_in_all_installs(
    operator: Client, viewer: Client, everywhere: list[Install]
) -> None:
    assert of_all_installs(viewer).buttons == []
    (button,) = [one for one in of_all_installs(operator).buttons if one.label.startswith("Unblock")]
    assert button.label == "Unblock all 7 of this cause"
    asked = operator.get(button.url).content.decode()
    assert "Unblock (7)" in asked
    assert "Shop 0: 1, Shop 1: 2, Shop 2: 1, Shop 3: 2, Shop 4: 1" in asked
    assert viewer.get(button.url).status_code == 403
    assert viewer.post(button.url, hidden(asked)).status_code == 403
    assert Lane.objects.filter(blocked_at__isnull=False).count() == 9
    page = operator.post(button.url, hidden(asked), follow=True)
    assert "Unblocked: 7 audiences." in page.content.decode()
    assert {lane.audience.install.name for lane in Lane.objects.filter(blocked_at__isnull=False)} == {"Shop 5"}
    logged = LogEntry.objects.filter(change_message="Unblocked, with 6 others.")
    unblocked = Lane.objects.filter(blocked_at=None).values_list("pk", flat=True)
    assert {entry.object_id for entry in logged} == {str(pk) for pk in unblocked}


def test_a_line_of_several_causes_has_no_button_for_one_of_them(operator: Client, everywhere: list[Install]) -> None:
    for number, lane in enumerate(Lane.objects.filter(blocked_at__isnull=False)):
        Lane.objects.filter(pk=lane.pk).update(block_reason=f"cause {number % 3}")
    for line in told(operator):
        labels = [button.label for button in line.buttons if button.label.startswith("Unblock all")]
        if line.what.startswith("9 audiences"):
            assert labels == []
        for label in labels:
            assert label.split()[2] == line.what.split()[0], line.what


def test_what_became_blocked_since_the_question_makes_it_stale(operator: Client, everywhere: list[Install]) -> None:
    (button,) = [one for one in of_all_installs(operator).buttons if one.label.startswith("Unblock")]
    asked = operator.get(button.url).content.decode()
    more = make_audience(everywhere[0], "silver")
    Lane.objects.filter(pk=more.pk).update(blocked_at=now(), block_reason=f"field '{more.odp_id}' must be a boolean")
    answer = operator.post(button.url, hidden(asked), follow=True).content.decode()
    assert "changed after the page was loaded" in answer
    assert Lane.objects.filter(blocked_at__isnull=False).count() == 10


def test_the_dialog_names_ten_installs_and_counts_the_others(operator: Client) -> None:
    for number in range(13):
        install = Install.objects.create(name=f"Shop {number:02}", odp_api_key="k")
        accepted(install)
        audience = make_audience(install, "gold")
        Lane.objects.filter(pk=audience.pk).update(blocked_at=now(), block_reason="the field is gone")
    buttons = [button for one in told(operator) for button in one.buttons if button.label.startswith("Unblock all")]
    assert [button.label for button in buttons] == ["Unblock all 13 of this cause"]
    asked = operator.get(buttons[0].url).content.decode()
    assert "Shop 09: 1 and 3 more installs" in asked


def test_a_number_that_was_not_counted_is_not_on_the_button(operator: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """PostgreSQL returns the largest groups only, and others may have the same cause."""
    monkeypatch.setattr(groups, "READ", 11)
    for number in range(13):
        install = Install.objects.create(name=f"Shop {number:02}", odp_api_key="k")
        accepted(install)
        audience = make_audience(install, "gold")
        Lane.objects.filter(pk=audience.pk).update(blocked_at=now(), block_reason="the field is gone")
    (button,) = [button for one in told(operator) for button in one.buttons if button.label.startswith("Unblock all")]
    assert button.label == "Unblock all of this cause"
    assert "Unblock (13)" in operator.get(button.url).content.decode()


def test_one_press_unblocks_a_bounded_number_and_says_how_many_are_left(
    operator: Client, everywhere: list[Install], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocked, "AT_ONCE", 5)
    url = reverse("admin:audiences_audience_unblock_everywhere", args=[Lane.objects.order_by("pk")[0].pk])
    for expected, left in ((5, "2 more audiences of this cause are left for the next time."), (2, "")):
        asked = operator.get(url).content.decode()
        assert f"Unblock ({expected})" in asked
        assert left in asked
        operator.post(url, hidden(asked))
        still = Lane.objects.filter(blocked_at__isnull=False, block_reason__contains="boolean").order_by("pk")
        assert still.count() == 7 - 5 - (2 if not left else 0)
        if still:
            url = reverse("admin:audiences_audience_unblock_everywhere", args=[still[0].pk])


def test_reasons_that_are_masked_to_the_same_words_are_one_group(install: Install) -> None:
    for slug, who in (("gold", "kim@example.com"), ("silver", "lee@example.com")):
        lane = Lane.objects.filter(pk=make_audience(install, slug).pk)
        lane.update(blocked_at=now(), block_reason=f"ODP has no profile of {who}")
    found = groups.blocked_by_cause()
    assert (found.count, found.lanes, [group.lanes for group in found.read]) == (1, 2, [2])
