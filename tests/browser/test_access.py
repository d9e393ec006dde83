"""Everybody can use the pages: with a keyboard, by ear, in the dark and on a telephone."""

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, expect

from tests.browser.person import Person
from tests.browser.site import Site
from tests.browser.steps import call, connected, make_field_of_another_type
from tests.delivering import sandbox
from tests.messages import message, transition

LISTS = (
    *(f"audiences/{name}" for name in ("audience", "parked", "receipt", "run", "delivery", "install", "token")),
    *("auth/user", "auth/group", "admin/logentry"),
)


@pytest.fixture(scope="module")
def troubled(running: Site, browser: Browser) -> Iterator[Person]:
    """An administrator on a site with a parked item, a blocked and a paused audience, and an install on hold."""
    with sandbox() as odp:
        person = Person(browser, running.url, reduced_motion="reduce")
        person.log_in("admin")
        url, header = connected(person, odp)
        make_field_of_another_type(odp, "lytics_sale")
        call(url, header, message(), message(who=None), message(transition(segment="s2", slug="sale")))
        person.follow("Audiences")
        person.becomes("blocked", of="lytics_sale")
        person.becomes("up to date", of="lytics_gold_club")
        person.page.get_by_role("link", name="lytics_gold_club").click()
        person.presses("Pause", reason="The campaign moved")
        person.sees("Paused lytics_gold_club.")
        odp.control("/sandbox/keys/revoke", {"key": odp.private_key, "after_seconds": 0})
        call(url, header, message(transition(segment="s3", slug="stock")))
        person.follow("Now")
        # On a slow machine the audience of the test customer can't be created either, and both are one trouble.
        person.finds("can't be created in ODP (Shop)")
        yield person
        person.leave()
        running.forget()


def pages_of(person: Person) -> Iterator[str]:
    """Open the front page, every list, of each the page of its first row, and the dialog of an audience."""

    def opened(path: str) -> str:
        person.go(path)
        person.page.wait_for_load_state("networkidle")
        return path

    yield from map(opened, ("/admin/", "/admin/audiences/install/add/"))
    for name in LISTS:
        yield opened(f"/admin/{name}/")
        first = person.page.locator("#result_list tbody a[href*='/change/']").first
        if first.count():
            page = str(first.get_attribute("href"))
            yield opened(page)
            if name == "audiences/audience":
                yield opened(page.replace("/change/", "/resync/").partition("?")[0])


def test_nothing_keeps_anybody_from_using_a_page(troubled: Person) -> None:
    page, obstacles = troubled.page, {}
    for path in pages_of(troubled):
        obstacles[path, "light"] = troubled.obstacles()
        page.evaluate("document.documentElement.classList.add('dark')")
        obstacles[path, "dark"] = troubled.obstacles()
        page.set_viewport_size({"width": 390, "height": 900})
        obstacles[path, "narrow"] = troubled.obstacles()
        page.set_viewport_size({"width": 1280, "height": 900})
    told = [f"{path}, {how}: {what}" for (path, how), found in obstacles.items() for what in found]
    assert not told, "\n".join(told)


def test_the_charts_follow_the_page(troubled: Person) -> None:
    troubled.go("/admin/")
    expect(troubled.page.locator("section#front-charts")).to_be_visible()


def test_focus_goes_into_the_dialog_and_comes_back(troubled: Person) -> None:
    troubled.go("/admin/")
    opener = troubled.page.get_by_role("link", name="Unblock")
    opener.focus()
    troubled.page.keyboard.press("Enter")
    dialog = troubled.page.get_by_role("dialog")
    expect(dialog.locator(":focus")).to_have_count(1)
    for _ in range(5):
        troubled.page.keyboard.press("Tab")
        expect(dialog.locator(":focus")).to_have_count(1)
    troubled.page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()
    expect(opener).to_be_focused()


def test_keyboard_focus_is_visible(troubled: Person) -> None:
    troubled.go("/admin/")
    hidden = []
    for _ in range(40):
        troubled.page.keyboard.press("Tab")
        place = troubled.page.evaluate(
            """() => {
                const at = document.activeElement, look = getComputedStyle(at);
                const is = look.outlineStyle !== "none" && parseFloat(look.outlineWidth) > 0;
                return [is || look.boxShadow !== "none", at.outerHTML.replace(/\\s+/g, " ").slice(0, 140)];
            }"""
        )
        if not place[0] and "<body" not in place[1]:
            hidden.append(place[1])
    assert hidden == []


def test_the_account_menu_opens_without_a_mouse(troubled: Person) -> None:
    troubled.go("/admin/")
    troubled.page.get_by_role("button", name="admin").focus()
    troubled.page.keyboard.press("Enter")
    expect(troubled.page.get_by_role("button", name="Log out")).to_be_visible()
