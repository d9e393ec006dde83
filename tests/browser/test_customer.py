"""Why is this customer in that audience, or not? One page says what came, what became of it, and what ODP holds."""

from playwright.sync_api import expect

from sandbox.odp.testing import ThreadedSandbox
from tests.browser.person import Person
from tests.browser.site import Site
from tests.browser.steps import call, connected
from tests.messages import message, transition


def find(person: Person, identifier: str) -> None:
    person.page.get_by_label("Identifier").fill(identifier)
    person.page.get_by_role("button", name="Find").click()


def test_a_customer_is_found_and_odp_is_queried_beside(operator: Person, site: Site, odp: ThreadedSandbox) -> None:
    url, header = connected(operator, odp)
    call(url, header, message(who="kim"), message(transition("exit", at="2026-03-02T09:16:00Z"), who="lee"))
    operator.follow("Audiences")
    operator.becomes("up to date", of="lytics_gold_club")

    operator.follow("Find a customer")
    find(operator, "kim")
    operator.sees("In 1 of 1 audiences, by the ledger; ODP agrees")
    operator.sees("current")
    assert "kim" not in operator.page.url
    find(operator, "lee")
    operator.sees("In no audience, by the ledger; ODP agrees")
    find(operator, "sam")
    operator.sees("No customer found for sam")

    status, _ = odp.odp("POST", "/v3/profiles", {"attributes": {"fs_user_id": "kim", "lytics_gold_club": False}})
    assert status < 300
    find(operator, "kim")
    operator.sees("ODP differs in 1")
    expect(operator.page.get_by_role("link", name="Resync")).to_be_visible()
    assert operator.obstacles() == []
