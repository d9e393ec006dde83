"""No page or search needs more queries with 50 installs of 500 audiences than with 2 installs of 5."""

import pytest
from django.contrib import admin
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext

from tests import many

# More rows than with few audiences, so that a query for each row is noticed, and few enough to be rendered quickly.
ROWS_OF_A_PAGE = 20


@pytest.fixture(autouse=True)
def short_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    for shown in admin.site._registry.values():
        monkeypatch.setattr(shown, "list_per_page", ROWS_OF_A_PAGE)


def queries(client: Client, address: str, posted: dict[str, str] | None = None) -> int:
    with CaptureQueriesContext(connection) as captured:
        answer = client.get(address) if posted is None else client.post(address, posted)
    assert answer.status_code == 200, address
    return len(captured)


def test_no_page_needs_more_queries_for_more_installs_and_audiences(admin_client: Client) -> None:
    many.fill(2, 5)
    asked = [*((address, None) for address in many.addresses()), *many.searches()]
    for address, posted in {address.partition("?")[0]: (address, posted) for address, posted in asked}.values():
        queries(admin_client, address, posted)  # what Django asks once per process
    few = [queries(admin_client, address, posted) for address, posted in asked]
    many.fill(50, 500)
    found = [queries(admin_client, address, posted) for address, posted in asked]
    more = [(*one, before, after) for one, before, after in zip(asked, few, found, strict=True) if after > before]
    assert more == []
