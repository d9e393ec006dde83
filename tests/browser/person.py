"""A person at the browser who reads pages and presses buttons."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from playwright.sync_api import Browser, Locator, Page, Request, expect

from tests.browser.site import PASSWORD

# A machine that is busy with something else is no bug.
PATIENCE = 120_000
expect.set_options(timeout=PATIENCE)


OBSTACLES = Path(__file__).with_name("access.js").read_text(encoding="utf-8")

# Collects all texts that an element shows.
NOTE_WORDS = """
(said) => {
  said.words = [];
  new MutationObserver(() => said.words.push(said.textContent)).observe(said, { childList: true });
}
"""


class Person:
    """Records what a page should never do: send a request to another host, or log an error on the console."""

    def __init__(self, browser: Browser, url: str, **look: Any) -> None:
        self.url = url
        self.context = browser.new_context(base_url=url, **{"viewport": {"width": 1280, "height": 900}, **look})
        self.context.set_default_timeout(PATIENCE)
        self.context.grant_permissions(["clipboard-read", "clipboard-write"], origin=url)
        self.asked_elsewhere: list[str] = []
        self.complaints: list[str] = []
        self.context.on("request", self._note)
        self.page = self._listen(self.context.new_page())

    def _note(self, request: Request) -> None:
        here, asked = urlsplit(self.url), urlsplit(request.url)
        if asked.scheme not in ("data", "blob") and asked.netloc != here.netloc:
            self.asked_elsewhere.append(request.url)

    def _listen(self, page: Page) -> Page:
        page.on("console", lambda said: self.complaints.append(said.text) if said.type == "error" else None)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        return page

    def leave(self) -> None:
        self.context.close()
        self.was_well()

    def was_well(self) -> None:
        asked_elsewhere, complaints = self.asked_elsewhere[:], self.complaints[:]
        self.asked_elsewhere.clear()
        self.complaints.clear()
        assert not asked_elsewhere, asked_elsewhere
        assert not complaints, complaints

    # --- what they do ------------------------------------------------------------------------------------------

    def log_in(self, name: str, password: str = PASSWORD) -> None:
        self.go("/admin/")
        self.page.get_by_label("Username").fill(name)
        self.page.get_by_label("Password").fill(password)
        self.page.get_by_role("button", name="Log in").click()
        self.sees("Now")

    def go(self, path: str) -> None:
        answer = self.page.goto(path)
        assert answer
        assert answer.ok, f"{path}: {answer.status}"

    def follow(self, link: str) -> None:
        """Open a page by its link in the sidebar."""
        self.page.locator("#nav-sidebar").get_by_role("link").filter(has_text=link).click()

    def opens(self, button: str, *, beside: str = "") -> Locator:
        """Press ``button``, of the trouble that speaks of ``beside`` if that is given; the dialog that comes."""
        place = self.page.locator(".ls-trouble", has_text=beside) if beside else self.page.locator("#main")
        place.get_by_role("link", name=button).first.click()
        dialog = self.page.get_by_role("dialog")
        expect(dialog).to_be_visible()
        return dialog

    def presses(self, button: str, *, beside: str = "", **answers: str) -> None:
        """The same, and say yes."""
        dialog = self.opens(button, beside=beside)
        for label, text in answers.items():
            dialog.get_by_label(label.capitalize()).fill(text)
        dialog.get_by_role("button").click()

    def copies(self, what: str) -> str:
        """Press the copy button beside a field; returns the clipboard."""
        box = self.page.locator(".ls-copy", has=self.page.get_by_label(what))
        self.page.wait_for_load_state()  # before its scripts are loaded, a press does nothing
        said = box.locator("[data-said]").element_handle()
        said.evaluate(NOTE_WORDS)  # "Copied" is shown for 2 s; a busy machine may look too late
        box.get_by_role("button").click()
        self.page.wait_for_function("(said) => said.words.length", arg=said)
        assert said.evaluate("(said) => said.words[0]") == "Copied"
        text: str = self.page.evaluate("navigator.clipboard.readText()")
        return text

    # --- what they see -----------------------------------------------------------------------------------------

    def sees(self, text: str) -> None:
        expect(self.page.locator("body")).to_contain_text(text)

    def obstacles(self) -> list[str]:
        """Accessibility violations on this page."""
        found: list[str] = self.page.evaluate(OBSTACLES)
        return found

    def finds(self, text: str) -> None:
        """The same after reloading the page instead of waiting for it to refresh."""
        self._look_again(lambda: text in self.page.locator("#main").inner_text(), lambda: self.sees(text))

    def becomes(self, word: str, *, of: str) -> None:
        """The state of one row of a list."""
        state = self.page.locator("tr", has_text=of).locator(".ls-pill").first
        self._look_again(lambda: state.count() and state.inner_text() == word, lambda: expect(state).to_have_text(word))

    def _look_again(self, holds: Callable[[], Any], at_last: Callable[[], None]) -> None:
        until, pause = time.monotonic() + PATIENCE / 1000, 250
        while not holds() and time.monotonic() < until:
            self.page.wait_for_timeout(pause)
            self.page.reload()  # 0.3 s of CPU
            pause = min(2 * pause, 4000)
        at_last()
