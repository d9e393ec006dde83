"""Long names without a space stay within their cell, line and heading, on a desktop and on a telephone."""

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser

from tests.browser.person import Person
from tests.browser.site import Site

# As long as the columns allow, and nothing in it at which a line may break.
LONG = "Wolldecken" * 20
FILL = f"""
import json
from django.utils.timezone import now
from audiences.models import *
from audiences.operations import installs, troubles
from audiences.operations.troubles import Seen
long, at = {LONG!r}, now()
made = []
for number in range(2):
    install = Install(name=f"{{long[:98]}}{{number}}", odp_api_key="public.private", odp_host="http://127.0.0.1:9",
        key_accepted_at=at, backoff_since_at=at if number else None, backoff_until_at=at if number else None,
        backoff_reason=f"503: {{long}}" if number else "", backoff_failures=number)
    installs.create(install)
    Token.objects.filter(install=install).update(name=long[:60])
    made.append(install)
install = made[0]
for number, state in enumerate((
    {{}},
    {{"blocked_at": at, "block_reason": long}},
    {{"paused_at": at, "paused_by": long[:150], "pause_reason": long}},
    {{"fault_since_at": at, "fault_until_at": at, "fault_reason": long}},
)):
    slug = f"{{long}}{{number}}"
    audience = Audience.objects.create(install=install, segment_id=slug, slug=slug, latest_slug=f"{{slug}}x",
        odp_id=f"lytics_{{slug}}", provisioned_at=at, last_sequence=5)
    Lane.objects.create(audience=audience, **state)
receipt = Receipt.objects.create(install=install, job=long, bytes=1, messages=1, queued=1, parked=1, skipped=0)
ends = {{"opened_at": at, "closed_at": at, "outcome": "refused"}}
delivery = Delivery.objects.create(install=install, endpoint="/v3/profiles", items=1, bytes=2, worker=long[:100],
    version="0", reason=long, answer=json.dumps({{"detail": long}}), **ends)
Run.objects.create(audience=audience, delivery=delivery, first_sequence=1, last_sequence=1, sent=1, folded=0, **ends)
Event.objects.create(audience=audience, sequence=1, identifier=long, kind=1, occurred_ns=1, received_at=at)
Parked.objects.create(install=install, audience=audience, reason="no_identifier", detail=long)
Resend.objects.create(install=install, audience=audience, kind="resync", by=long[:150], reason=long, total=0,
    ended_at=at)
troubles.check([Seen(kind="blocked", what=f"{{long}} is blocked", why=long, path="/admin/", install=install.pk)])
"""
LISTS = ("install", "audience", "parked", "receipt", "run", "delivery", "resend", "trouble", "token")
WIDTHS = (1440, 390)

# Text that is painted outside of the box of its cell, card or heading, or of the window. Parts with a bar of their own
# to scroll sideways, and text that ends in an ellipsis, are meant to hold more than they show.
OUTSIDE = """
() => {
  const found = new Set(), walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  const scrolls = (element) => ["auto", "scroll", "hidden", "clip"].includes(getComputedStyle(element).overflowX);
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    const parent = node.parentElement;
    if (!node.data.trim() || parent.matches(".material-symbols-outlined")) continue;
    if (!parent.checkVisibility({ visibilityProperty: true, opacityProperty: true })) continue;
    let clipped = false;
    for (let at = parent; at && at !== document.body; at = at.parentElement) clipped ||= scrolls(at);
    const box = parent.closest("td, th, .ls-card, .ls-number, .ls-button, h1, #header-inner") ?? document.body;
    const range = document.createRange();
    range.selectNodeContents(node);
    const text = range.getBoundingClientRect(), room = box.getBoundingClientRect();
    if (clipped && !box.matches("td, th, .ls-card, .ls-number, .ls-button")) continue;
    if (text.width && (text.right > room.right + 1 || text.left < room.left - 1))
      found.add(`${box.tagName}: ${parent.outerHTML.replace(/\\s+/g, " ").slice(0, 140)}`);
  }
  if (document.documentElement.scrollWidth > innerWidth) found.add("the page scrolls sideways");
  return [...found];
}
"""


@pytest.fixture(scope="module")
def reader(running: Site, browser: Browser) -> Iterator[Person]:
    running.execute(FILL)
    person = Person(browser, running.url, reduced_motion="reduce")
    person.log_in("admin")
    yield person
    person.leave()
    running.forget()


def pages_of(person: Person) -> Iterator[str]:
    """Open each page: the plain ones, the lists, and of each list the pages of its rows."""
    ahead = ["/admin/", "/admin/?troubles=all", "/admin/find-customer/", "/admin/audiences/delivery/live/"]
    ahead += [f"/admin/audiences/{name}/" for name in LISTS]
    for path in ahead:
        person.go(path)
        person.page.wait_for_load_state("networkidle")
        yield path
        rows = person.page.locator("#result_list tbody a[href*='/change/']")
        pages = {str(row.get_attribute("href")).partition("?")[0] for row in rows.all()}
        ahead += sorted(pages.difference(ahead))


def test_a_long_name_stays_in_its_place(reader: Person) -> None:
    page, found = reader.page, []
    for path in pages_of(reader):
        for width in WIDTHS:
            page.set_viewport_size({"width": width, "height": 900})
            found += [f"{path} at {width} px: {what}" for what in page.evaluate(OUTSIDE)]
    assert not found, "\n".join(found)
