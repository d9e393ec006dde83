"""Pages while PostgreSQL is down: 503 with an explanation and automatic reload, and one log line for all of them."""

from collections.abc import Iterator

import pytest
from django.test import Client
from structlog.testing import capture_logs

from lytics_sync import database_away
from tests.people import someone
from tests.test_lost_sessions import accept_connections, end_session

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def away(monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    """A logged-in person whose requests find no database."""
    client = someone("admin")
    client.raise_request_exception = False
    monkeypatch.setattr(database_away, "_logged_at", -database_away.QUIET_SECONDS)
    accept_connections(False)
    end_session()
    try:
        yield client
    finally:
        accept_connections(True)


@pytest.mark.parametrize("path", ["/admin/", "/admin/audiences/install/", "/admin/login/?next=/admin/", "/admin/live/"])
def test_a_page_says_that_the_database_is_away_and_loads_again(away: Client, path: str) -> None:
    answer = away.get(path)
    page = answer.content.decode()
    assert (answer.status_code, answer["Retry-After"]) == (503, "5")
    assert "The database does not answer" in page
    assert '<meta http-equiv="refresh" content="5">' in page
    assert "Traceback" not in page
    assert answer["X-Request-ID"]


def test_a_form_that_is_sent_gets_the_same_page(away: Client) -> None:
    assert away.post("/admin/login/", {"username": "kim", "password": "x"}).status_code == 503


def test_an_outage_is_one_log_line_and_no_traceback(away: Client, caplog: pytest.LogCaptureFixture) -> None:
    with capture_logs() as lines:
        for _ in range(5):
            away.get("/admin/")
    assert [line["event"] for line in lines] == ["PostgreSQL does not answer; pages are answered 503"]
    assert [record for record in caplog.records if record.exc_info] == []


def test_pages_are_well_again_with_the_database(away: Client) -> None:
    assert away.get("/admin/").status_code == 503
    accept_connections(True)
    assert away.get("/admin/").status_code == 200


def test_another_error_stays_a_500(boss: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object) -> None:
        raise LookupError("no such thing")

    boss.raise_request_exception = False
    monkeypatch.setattr("audiences.insight.stalled_work.all_stuck", fail)
    assert boss.get("/admin/").status_code == 500
