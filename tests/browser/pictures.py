"""The pictures of the documentation, written by ``make pictures``.

It starts a stack as ``make run`` does in a temporary folder, with a sandbox ODP and sample events, and causes a few
faults. Run it after changing a page, and look at the result.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg
from playwright.sync_api import Browser, expect

from local.processes import free_port, is_free
from sandbox.odp.testing import ControlledSandbox
from tests.browser import chromium
from tests.browser.person import Person
from tests.browser.steps import call, make_field_of_another_type
from tests.messages import message, transition

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "docs" / "pictures"
WIDTH = 1280
# So that the whole sidebar is seen.
LOWEST = 740


@dataclass(frozen=True)
class Picture:
    """One page, cut off at ``height``; a shorter page gives a shorter picture."""

    name: str
    path: str
    height: int = 900
    dark: bool = False
    # The row of the list at ``path`` that is opened, and the part of its page that is unfolded.
    row: str = ""
    unfold: str = ""
    # The customer to search for.
    find: str = ""


WELL = (
    Picture("now", "/admin/"),
    Picture("install", "/admin/audiences/install/", row="Demo", height=1000),
    Picture("audience", "/admin/audiences/audience/", row="lytics_vip_buyers", unfold=".ls-run >> nth=0"),
    Picture("deliveries", "/admin/audiences/delivery/", height=740),
)
FOUND = (Picture("customer", "/admin/find-customer/", find="kim"),)
TROUBLED = (
    Picture("troubles", "/admin/"),
    Picture("parked", "/admin/audiences/parked/", height=740),
    Picture("audiences", "/admin/audiences/audience/", dark=True),
)


HOURS = """
INSERT INTO audiences_minute (install_id, minute, received, parked, delivered, delay_p50_ms, delay_p99_ms)
SELECT install.id, at, events, 0, events, 95 + 30 * wave, 210 + 160 * wave
FROM (SELECT min(id) AS id FROM audiences_install) AS install,
    generate_series(date_trunc('minute', now()) - interval '7 hours', now() - interval '1 minute', '1 minute') AS at,
    LATERAL (SELECT (1 + sin(extract(epoch FROM at) / 2700)) / 2) AS w(wave),
    LATERAL (SELECT (2200 + 2600 * wave)::bigint) AS e(events)
ON CONFLICT DO NOTHING
"""


def main() -> int:
    path = chromium.find()
    if path is None:
        print(f"No pictures: {chromium.MISSING}.", file=sys.stderr)
        return 1
    with (
        tempfile.TemporaryDirectory(prefix="lytics-sync-pictures-") as folder,
        stack(Path(folder) / "data") as made,
        chromium.launched(path, home=Path(folder)) as browser,
    ):
        take(browser, made, WELL)
        make_a_customer(browser, made)
        take(browser, made, FOUND)
        make_trouble(browser, made)
        take(browser, made, TROUBLED)
    return 0


# --- The stack -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Made:
    """What the local runner remembers of its stack."""

    url: str
    password: str
    odp: ControlledSandbox
    install: dict[str, str]

    def is_called(self, *messages: Any) -> None:
        path = urlsplit(self.install["webhook_url"]).path
        call(f"{self.url}{path}", f"Authorization: {self.install['authorization']}", *messages)


@contextmanager
def stack(folder: Path) -> Iterator[Made]:
    port = 8000 if is_free(8000) else free_port()
    own = {"DATA_DIR": str(folder), "PORT": str(port), "EVENTS": "6000", "SEED": "423852", "PYTHONUNBUFFERED": "1"}
    # Uses its own servers and ignores those of the environment.
    inherited = {name: value for name, value in os.environ.items() if name not in ("DATABASE_URL", "REDIS_URL")}
    with subprocess.Popen(
        [sys.executable, "-m", "local", "run"],
        cwd=ROOT,
        env={**inherited, **own},
        stdout=subprocess.PIPE,
        text=True,
    ) as runner:
        try:
            assert runner.stdout is not None
            last = ""
            for line in runner.stdout:
                if line.startswith("Running"):
                    break
                last = line.strip() or last
            else:
                raise SystemExit(f"The stack did not come up: {last}")
            known = dict(line.split("=", 1) for line in (folder / "local.env").read_text().splitlines()[1:])
            odp = ControlledSandbox()
            odp.url = f"http://127.0.0.1:{known['SANDBOX_PORT']}"
            install = json.loads(known["DEMO_INSTALL"])
            live_through_hours(known["DATABASE_URL"])
            yield Made(f"http://127.0.0.1:{port}", known["ADMIN_PASSWORD"], odp, install)
        finally:
            runner.terminate()


def live_through_hours(database: str) -> None:
    """Minutes of the hours before, which this stack was not there for: the charts would be a line at their end."""
    with psycopg.connect(database) as server:
        server.execute(HOURS)


def make_a_customer(browser: Browser, made: Made) -> None:
    enter = [message(transition(segment=f"a{n}", slug=slug)) for n, slug in enumerate(("gold_club", "winter_shoppers"))]
    made.is_called(*enter, message(transition("exit", segment="a1", slug="winter_shoppers", at="2026-03-03T08:00:00Z")))
    with logged_in(browser, made) as person:
        person.go("/admin/audiences/audience/?q=winter")
        person.becomes("up to date", of="lytics_winter_shoppers")


# --- The trouble -----------------------------------------------------------------------------------------------


def make_trouble(browser: Browser, made: Made) -> None:
    with logged_in(browser, made) as person:
        open_row(person, "/admin/audiences/audience/", "lytics_win_back")
        person.presses("Pause", reason="The campaign moved to March")
    make_field_of_another_type(made.odp, "lytics_spring_sale")
    made.odp.fault(
        {"path": "/v3/profiles"}, {"refuse_items": {"identifiers": ["c-1"], "message": "value of fs_user_id too long"}}
    )
    made.is_called(*(message(who=f"kim-{n}@example.com", field="email") for n in range(37)))
    made.is_called(*(message(transition(segment="5e", slug="spring_sale"), who=f"c-{n}") for n in range(240)))
    made.is_called(message(transition(segment="6f", slug="back_in_stock"), who="c-1"))
    with logged_in(browser, made) as person:
        for alert in ("is paused", "is blocked", "no identifier", "rejected by ODP"):
            person.finds(alert)
        made.odp.control("/sandbox/keys/revoke", {"key": made.odp.private_key, "after_seconds": 0})
        made.is_called(*(message(transition(segment="6f", slug="back_in_stock"), who=f"d-{n}") for n in range(90)))
        person.finds("is on hold")


# --- The pictures ----------------------------------------------------------------------------------------------


@contextmanager
def logged_in(browser: Browser, made: Made, **look: Any) -> Iterator[Person]:
    person = Person(browser, made.url, **look)
    person.log_in("admin", made.password)
    yield person
    person.leave()


def take(browser: Browser, made: Made, pictures: tuple[Picture, ...]) -> None:
    for dark in (False, True):
        wanted = [picture for picture in pictures if picture.dark == dark]
        if not wanted:
            continue
        with logged_in(browser, made, color_scheme="dark" if dark else "light", reduced_motion="reduce") as person:
            for picture in wanted:
                shoot(person, picture)


def open_row(person: Person, path: str, row: str) -> None:
    person.go(path)
    if row:
        person.page.locator("#result_list").get_by_role("link", name=row, exact=True).first.click()
        expect(person.page.locator("h1")).to_contain_text(row, ignore_case=True)


def shoot(person: Person, picture: Picture) -> None:
    page = person.page
    page.set_viewport_size({"width": WIDTH, "height": LOWEST})
    open_row(person, picture.path, picture.row)
    if picture.unfold:
        page.locator(picture.unfold).locator("summary").click()
    if picture.find:
        page.get_by_label("Identifier").fill(picture.find)
        page.get_by_role("button", name="Find").click()
        person.sees("ODP agrees")
    page.wait_for_load_state("networkidle")
    # As high as its content, at most ``height``.
    needed: int = page.evaluate("document.querySelector('#content').getBoundingClientRect().bottom + scrollY")
    page.set_viewport_size({"width": WIDTH, "height": min(picture.height, max(int(needed) + 24, LOWEST))})
    page.mouse.move(0, 0)
    page.evaluate("document.activeElement.blur(); scrollTo(0, 0)")
    file = FOLDER / f"{picture.name}.png"
    page.screenshot(path=file, animations="disabled")
    print(f"  ✓ {file.relative_to(ROOT)}  {file.stat().st_size // 1000} kB")


if __name__ == "__main__":
    sys.exit(main())
