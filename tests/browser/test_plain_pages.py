"""Pages without a session follow the theme too: that of the browser, or the one that the admin's switch has stored."""

import re
from typing import Literal

import pytest
from playwright.sync_api import Browser, Page

from tests.browser.site import Site


def brightness(page: Page, name: str) -> float:
    """Of a colour of the body, from 0 (black) to 255 (white)."""
    colour = page.evaluate("name => getComputedStyle(document.body)[name]", name)
    red, green, blue = (int(part) for part in re.findall(r"\d+", colour)[:3])
    return (red + green + blue) / 3


@pytest.mark.parametrize(
    ("browser_prefers", "stored", "is_dark"),
    [
        ("light", None, False),
        ("dark", None, True),
        ("dark", '"auto"', True),
        ("light", '"dark"', True),
        ("dark", '"light"', False),
    ],
)
def test_an_error_page_is_as_dark_as_the_admin(
    site: Site, browser: Browser, browser_prefers: Literal["light", "dark"], stored: str | None, is_dark: bool
) -> None:
    context = browser.new_context(base_url=site.url, color_scheme=browser_prefers)
    try:
        if stored is not None:
            context.add_init_script(f"localStorage.setItem('adminTheme', '{stored}')")
        page = context.new_page()
        answer = page.goto("/nothing/")
        assert answer is not None
        assert answer.status == 404
        assert (brightness(page, "backgroundColor") < 60) == is_dark
        assert (brightness(page, "color") > 180) == is_dark
    finally:
        context.close()
