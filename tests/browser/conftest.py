"""One browser and one running site for all tests here. Each test starts with an empty site and its own ODP."""

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser

from sandbox.odp.testing import ThreadedSandbox
from tests.browser import chromium
from tests.browser.person import Person
from tests.browser.site import Site
from tests.delivering import sandbox


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skipped here and not in the fixture, so that pytest reports all of them in one line."""
    if "browser" in getattr(item, "fixturenames", ()) and chromium.find() is None:
        pytest.skip(chromium.MISSING)


@pytest.fixture(scope="package")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    path = chromium.find()
    assert path
    with chromium.launched(path, home=tmp_path_factory.mktemp("home")) as launched:
        yield launched


@pytest.fixture(scope="package")
def running(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    site = Site(tmp_path_factory.mktemp("site"))
    try:
        site.start()
        yield site
    finally:
        site.stop()


@pytest.fixture
def site(running: Site) -> Iterator[Site]:
    yield running
    running.forget()


@pytest.fixture
def odp() -> Iterator[ThreadedSandbox]:
    with sandbox() as running:
        yield running


@pytest.fixture(scope="package")
def warm(running: Site, browser: Browser) -> Iterator[Person]:
    """With the scripts, styles and fonts of the pages in the browser's cache; loading them takes 1 s of CPU."""
    person = Person(browser, running.url)
    yield person
    person.leave()


@pytest.fixture
def operator(site: Site, warm: Person) -> Iterator[Person]:
    warm.context.clear_cookies()
    warm.log_in("operator")
    yield warm
    # A page that stayed open would ask for rows that are deleted after the test; the next test would get the error.
    warm.page.goto("about:blank")
    warm.was_well()
