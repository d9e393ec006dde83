"""An operator moves an install to another ODP account, sees how far it is, and stops it."""

import re

from sandbox.odp.testing import ThreadedSandbox
from sandbox.odp.world import Options
from tests.browser.person import Person
from tests.browser.site import Site
from tests.browser.steps import call, connect
from tests.delivering import UNLIMITED
from tests.messages import message
from tests.threads import eventually

AUDIENCE = "lytics_gold_club"


def has_both(odp: ThreadedSandbox) -> bool:
    try:
        return odp.members(AUDIENCE) == ["kim", "lee"]
    except ValueError:  # the audience has not been created yet
        return False


def test_the_members_are_copied_to_another_account(operator: Person, site: Site, odp: ThreadedSandbox) -> None:
    url, header = connect(operator, odp)
    call(url, header, message(who="kim"), message(who="lee"))
    eventually(lambda: has_both(odp))
    operator.finds("Change account")
    with ThreadedSandbox(Options(private_key="another.account", settings=UNLIMITED)) as new:
        dialog = operator.opens("Change account")
        operator.sees("2 members")
        dialog.get_by_label("ODP private API key").fill("another.account")
        dialog.get_by_label("ODP host").fill(new.url)
        dialog.get_by_label(re.compile("Empty it after the switch")).check()
        dialog.get_by_label("Reason").fill("a new contract")
        dialog.get_by_role("button", name="Change account").click()
        operator.sees("has begun")
        operator.finds("may be applied late")
        assert new.members(AUDIENCE) == ["kim", "lee"]
        operator.presses("Stop the change")
        operator.finds("Stopped by operator")
        assert odp.members(AUDIENCE) == ["kim", "lee"]
