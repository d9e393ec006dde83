"""A fault appears on the front page, and an operator corrects it with the button shown there."""

import re

from sandbox.odp.testing import ThreadedSandbox
from tests.browser.person import Person
from tests.browser.site import Site
from tests.browser.steps import call, connected, make_field_of_another_type
from tests.delivering import UNLIMITED
from tests.messages import message

AUDIENCE = "lytics_gold_club"


def test_a_revoked_key_is_replaced_and_delivery_continues(operator: Person, site: Site, odp: ThreadedSandbox) -> None:
    url, header = connected(operator, odp)
    operator.follow("Now")
    odp.control("/sandbox/keys/revoke", {"key": odp.private_key, "after_seconds": 0})
    odp.control("/sandbox/accounts", {"private_key": "other.secret", **UNLIMITED})
    call(url, header, message(who="kim"), message(who="lee"))
    operator.sees("can't be created in ODP")
    operator.sees("enter the account's private key")

    operator.page.get_by_role("link", name="Enter a key").click()
    operator.page.get_by_label("ODP private API key").fill("other.secret")
    operator.page.get_by_role("button", name="Save", exact=True).click()
    operator.sees("ODP accepts the API key.")
    operator.follow("Now")
    operator.finds("All is well")
    assert odp.control(f"/sandbox/memberships/{AUDIENCE}?account=other")["members"] == ["kim", "lee"]


def test_a_blocked_audience_is_unblocked_in_the_dialog(operator: Person, site: Site, odp: ThreadedSandbox) -> None:
    url, header = connected(operator, odp)
    operator.follow("Now")
    make_field_of_another_type(odp, AUDIENCE)
    call(url, header, message(who="kim"))
    operator.finds("is there with type string, not boolean")

    odp.reset()
    operator.presses("Unblock", beside=f"{AUDIENCE} is blocked")
    operator.sees(f"Unblocked {AUDIENCE}")
    operator.finds("All is well")
    assert odp.members(AUDIENCE) == ["kim"]


def test_items_without_their_identifier_are_released(operator: Person, site: Site, odp: ThreadedSandbox) -> None:
    url, header = connected(operator, odp)
    operator.follow("Now")
    call(url, header, *(message(who=f"{name}@example.com", field="email") for name in ("kim", "lee", "sam")))
    operator.finds("3 parked: no identifier")
    operator.page.get_by_role("link", name="Identifier field").click()
    operator.page.get_by_label(re.compile("^Customer.* identifier field")).fill("email")
    operator.page.get_by_role("button", name="Save", exact=True).click()
    operator.sees("Shop is saved.")

    operator.follow("Now")
    operator.presses("Release all", beside="no identifier")
    operator.sees("Releasing 3 items")
    operator.follow("Now")
    operator.finds("All is well")
    assert odp.members(AUDIENCE) == ["kim@example.com", "lee@example.com", "sam@example.com"]
