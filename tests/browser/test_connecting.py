"""Connecting a pair of accounts with no more knowledge than the vendor's article."""

from playwright.sync_api import expect

from sandbox.odp.testing import ThreadedSandbox
from tests.browser.person import Person
from tests.browser.site import Site
from tests.browser.steps import connect


def test_from_an_empty_admin_to_an_audience_in_odp(operator: Person, site: Site, odp: ThreadedSandbox) -> None:
    url, header = connect(operator, odp)
    operator.presses("Send a test customer")
    trial = operator.page.locator(".ls-trial")
    expect(trial.locator("h3 .ls-pill")).to_have_text("done")
    expect(trial.locator("tbody .ls-pill")).to_have_text(["done"] * 11)
    members = site.is_called(url, header)
    # The check list refreshes automatically.
    operator.sees("Connected")
    operator.follow("Audiences")
    for odp_id, inside in members.items():
        operator.becomes("up to date", of=odp_id)
        assert sorted(odp.members(odp_id)) == inside
    operator.follow("Now")
    operator.finds("All is well")


def test_the_doctor_shows_what_is_good_and_what_needs_a_person(
    operator: Person, site: Site, odp: ThreadedSandbox
) -> None:
    connect(operator, odp)
    operator.page.get_by_role("link", name="Doctor", exact=True).click()
    lines = operator.page.locator("#doctor table")
    expect(lines).to_have_count(4)
    for title, state in (("Broker", "good"), ("API key", "good"), ("Body limit", "good"), ("Calls", "bad")):
        row = operator.page.locator("#doctor tr", has=operator.page.get_by_role("cell", name=title, exact=True))
        expect(row.locator(".ls-pill")).to_have_text(state)
