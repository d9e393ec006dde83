"""What several scenes begin with: a pair of accounts is connected, and Lytics calls."""

import re
import urllib.request
from typing import Any

from sandbox.odp.testing import ControlledSandbox
from tests.browser.person import Person
from tests.messages import body


def connect(person: Person, odp: ControlledSandbox) -> tuple[str, str]:
    """*Install App*: the form is filled in and saved. What there is to paste into Lytics: URL and header."""
    person.follow("Installs")
    person.page.get_by_role("link", name="Add install").first.click()
    person.page.get_by_label(re.compile("^Name")).fill("Shop")
    person.page.get_by_label("ODP private API key").fill(odp.private_key)
    person.page.locator("summary").filter(has_text="More").click()
    person.page.get_by_label("ODP host").fill(odp.url)
    person.page.get_by_role("button", name="Save", exact=True).click()
    person.sees("ODP accepts the API key.")
    person.sees("Install Instructions")
    return person.copies("Webhook URL"), person.copies("Authorization header")


# Fills in and sends the form without drawing a page.
CONNECT = """
async ([key, host]) => {
  const read = async (answer) => new DOMParser().parseFromString(await answer.text(), "text/html");
  const path = "/admin/audiences/install/add/";
  const form = new FormData((await read(await fetch(path))).querySelector("#install_form"));
  for (const [name, value] of Object.entries({ name: "Shop", odp_api_key: key, odp_host: host })) form.set(name, value);
  const page = await read(await fetch(path, { method: "POST", body: form }));
  return ["webhook-url", "authorization-header"].map((id) => page.getElementById(id).value);
}
"""


def connected(person: Person, odp: ControlledSandbox) -> tuple[str, str]:
    """``connect`` for scenes that begin later; three pages less take 1.5 s of CPU less."""
    url, header = person.page.evaluate(CONNECT, [odp.private_key, odp.url])
    return url, header


def call(url: str, header: str, *messages: Any) -> None:
    """One call of the webhook job."""
    name, _, value = header.partition(": ")
    request = urllib.request.Request(url, body(*messages), {name: value, "Content-Type": "application/json"})  # noqa: S310
    urllib.request.urlopen(request, timeout=60).close()  # noqa: S310 — on loopback


def make_field_of_another_type(odp: ControlledSandbox, name: str) -> None:
    """Cause a block: create a field with the audience's id and another type in ODP."""
    field = {"name": name, "display_name": "Something else", "type": "string"}
    status, _ = odp.odp("POST", "/v3/schema/objects/customers/fields", field)
    assert status < 300
