"""Database sessions end when they are of no use, and no statement keeps a process waiting for ever."""

import os
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
from django.contrib.auth.models import User
from django.core.exceptions import ImproperlyConfigured
from django.db import connection
from django.http import HttpRequest, HttpResponse
from django.test import Client, RequestFactory

from audiences.models import Event, Install
from audiences.sessions import READ_ONLY
from lytics_sync import database_url
from lytics_sync.once_more import once_more
from tests.messages import body, message
from tests.threads import start, together
from tests.web import Web, web_of_a_module

pytestmark = pytest.mark.django_db(transaction=True)

THREADS = 20


def _admin() -> "psycopg.Connection[Any]":
    url = os.environ["DATABASE_URL"].rsplit("/", 1)[0] + "/postgres"
    return psycopg.connect(url, autocommit=True)


def end_other_sessions() -> None:
    """What a restart of PostgreSQL is to its clients."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )


@contextmanager
def read_only() -> Iterator[None]:
    """Sessions opened in this context are read-only until they end, like sessions to a standby."""
    name = connection.settings_dict["NAME"]
    with _admin() as admin:
        admin.execute(f'ALTER DATABASE "{name}" SET default_transaction_read_only = on')
        try:
            yield
        finally:
            admin.execute(f'ALTER DATABASE "{name}" RESET default_transaction_read_only')


web = web_of_a_module()


def cookie() -> str:
    User.objects.create_superuser("boss", password="a-long-password")
    client = Client()
    client.force_login(User.objects.get())
    return f"sessionid={client.cookies['sessionid'].value}"


def status_within(web: Web, seconds: float, method: str, path: str, content: Any = None, **headers: str) -> int:
    """The status; ``TimeoutError`` when nothing comes for that long."""
    asking = web.http(timeout=seconds)
    asking.request(method, path, body=content, headers=headers)
    with closing(asking):
        return int(asking.getresponse().status)


def caller(web: Web, install: Install) -> Any:
    token, where = install.tokens.get().secret, f"/webhooks/lytics/{install.public_id}"

    def call(who: str) -> int:
        return status_within(web, 10, "POST", where, body(message(who=who)), Authorization=token)

    return call


def caller_of_a_known_audience(web: Web, install: Install) -> Any:
    """Callers who name a new audience at once wait for one another, and some of them in vain."""
    call = caller(web, install)
    assert call("first") == 200
    return call


def every_thread_opens_a_session(web: Web) -> None:
    """With 40 requests of the cheapest kind that reads from the database, as many at a time as there are threads."""
    for _ in range(2):
        together(*[lambda: web.call("GET", "/health/workers")] * THREADS)


def test_every_page_is_well_after_a_restart_of_postgresql(web: Web) -> None:
    session = cookie()
    for path in ("/health/ready", "/health/workers", "/admin/", "/admin/audiences/install/"):
        every_thread_opens_a_session(web)
        before = web.call("GET", path, Cookie=session).status
        end_other_sessions()
        asked = [lambda path=path: int(web.call("GET", path, Cookie=session).status)] * THREADS
        assert set(together(*asked)) == {before} <= {200, 503}, path
    assert "failed in the server" not in web.log.read_text(encoding="utf-8")


def test_calls_are_stored_right_after_a_restart_of_postgresql(web: Web, install: Install) -> None:
    call = caller_of_a_known_audience(web, install)
    assert set(together(*[lambda: call("a")] * THREADS)) == {200}
    end_other_sessions()
    assert [call(f"b{number}") for number in range(40)] == [200] * 40


def test_no_thread_stays_on_a_read_only_session(web: Web, install: Install) -> None:
    call = caller(web, install)
    with read_only():
        end_other_sessions()
        assert set(together(*[lambda: call("window")] * THREADS)) == {503}
        every_thread_opens_a_session(web)
    assert [call(f"after-{number}") for number in range(40)] == [200] * 40
    assert not Event.objects.filter(identifier="window").exists()


def test_a_form_is_saved_once_in_a_new_session_when_its_own_was_read_only(web: Web, install: Install) -> None:
    client = Client()
    User.objects.create_superuser("boss", password="a-long-password")
    client.force_login(User.objects.get())
    session = f"sessionid={client.cookies['sessionid'].value}; csrftoken={'c' * 32}"
    with read_only():
        end_other_sessions()
        every_thread_opens_a_session(web)
    made = web.call(
        "POST",
        "/admin/auth/group/add/",
        f"name=Watchers&csrfmiddlewaretoken={'c' * 32}",
        Cookie=session,
        Content_Type="application/x-www-form-urlencoded",
    )
    assert made.status == 302
    with connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM auth_group WHERE name = 'Watchers'")
        assert cursor.fetchone() == (1,)
        cursor.execute("DELETE FROM auth_group WHERE name = 'Watchers'")


@pytest.mark.parametrize(
    ("method", "lost", "status", "stored", "times"),
    [
        ("GET", "57P01", 500, True, 2),
        ("GET", "57P01", 404, False, 1),
        ("GET", "", 500, False, 1),
        ("POST", READ_ONLY, 500, False, 2),
        ("POST", READ_ONLY, 500, True, 1),
        ("POST", READ_ONLY, 302, False, 1),
        ("POST", "57P01", 500, False, 1),
    ],
)
def test_a_request_is_repeated_once_where_its_session_was_lost_and_it_stored_nothing(
    method: str, lost: str, status: int, stored: bool, times: int
) -> None:
    asked = []

    def answer(request: HttpRequest) -> HttpResponse:
        asked.append(request)
        session: Any = connection
        session.lost = lost
        if stored:
            with connection.cursor() as cursor:
                cursor.execute("UPDATE auth_group SET name = name")
        return HttpResponse(status=status)

    assert once_more(answer)(RequestFactory().generic(method, "/admin/")).status_code == status
    assert len(asked) == times


@pytest.mark.parametrize("calls", [1, THREADS * 3])
def test_a_frozen_database_costs_seconds_and_liveness_needs_no_thread(web: Web, install: Install, calls: int) -> None:
    call = caller_of_a_known_audience(web, install)
    assert set(together(*[lambda: call("warm")] * THREADS)) == {200}
    with web.database.frozen():
        busy = start(*[lambda: call("frozen")] * calls)
        # Long before any thread is free again.
        assert [status_within(web, 3, "GET", "/health/live") for _ in range(5)] == [200] * 5
        assert {future.result() for future in busy} == {503}
    assert [call(f"thawed-{number}") for number in range(10)] == [200] * 10


# --- DATABASE_URL ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("postgres://u:p%40%2Fs@h/db", {"HOST": "h", "PORT": "", "USER": "u", "PASSWORD": "p@/s", "NAME": "db"}),
        ("postgres://u:p@h1:5432,h2:5433/db", {"HOST": "h1,h2", "PORT": "5432,5433"}),
        ("postgres://u@[2001:db8::1]:6432/db", {"HOST": "2001:db8::1", "PORT": "6432"}),
        ("postgresql:///db?host=/run/postgresql&user=u", {"HOST": "/run/postgresql", "USER": "u", "NAME": "db"}),
        ("postgres://u@%2Frun%2Fpostgresql/db", {"HOST": "/run/postgresql"}),
    ],
)
def test_a_database_url_is_read_as_libpq_reads_it(url: str, expected: dict[str, str]) -> None:
    found = database_url.read(url, prepared=True)
    assert {name: found[name] for name in expected} == expected


def test_options_of_libpq_replace_the_defaults() -> None:
    url = "postgres://u@h1,h2/db?target_session_attrs=read-write&tcp_user_timeout=500&sslmode=verify-full"
    options: Any = database_url.read(url, prepared=True)["OPTIONS"]
    assert options["target_session_attrs"] == "read-write"
    assert (options["tcp_user_timeout"], options["sslmode"], options["keepalives_idle"]) == ("500", "verify-full", 5)


@pytest.mark.parametrize(
    "url", ["mysql://u:geheim@h/db", "postgres://u:ge heim@h/db", "postgres://u:geheim@h/d?what=1"]
)
def test_an_invalid_database_url_is_reported_without_its_password(url: str) -> None:
    with pytest.raises(ImproperlyConfigured) as refusal:
        database_url.read(url, prepared=True)
    assert "heim" not in str(refusal.value)


@pytest.mark.parametrize("name", ["connect_timeout", "keepalives", "keepalives_idle", "tcp_user_timeout"])
@pytest.mark.parametrize("value", ["x", "", "5s", "0.5", "inf"])
def test_an_option_that_is_no_whole_number_is_named(name: str, value: str) -> None:
    with pytest.raises(ImproperlyConfigured, match=f"{name} in DATABASE_URL must be a whole number, not '{value}'"):
        database_url.read(f"postgres://u:geheim@h/d?{name}={value}", prepared=True)


@pytest.mark.parametrize(
    "value",
    [
        *("sslmode=requre", "target_session_attrs=writable", "channel_binding=yes", "load_balance_hosts=rand"),
        *("require_auth=foo", "ssl_min_protocol_version=TLSv9", "sslrootcert=system&sslmode=require", "gssencmode="),
    ],
)
def test_a_value_that_libpq_refuses_is_named_at_the_start(value: str) -> None:
    with pytest.raises(ImproperlyConfigured, match=rf"DATABASE_URL can't be used: .*{value.partition('=')[0]}"):
        database_url.read(f"postgres://u:geheim@h1,h2/d?{value}", prepared=True)


@pytest.mark.parametrize("servers", ["h:99999", "h:0", "h1,h2:1,h3:x", "ss:geheim@h"])
def test_a_port_that_is_none_is_reported_without_it(servers: str) -> None:
    with pytest.raises(ImproperlyConfigured, match=r"(?i)port in DATABASE_URL|DATABASE_URL can") as refusal:
        database_url.read(f"postgres://u:p@{servers}/d", prepared=True)
    assert "geheim" not in str(refusal.value)


@pytest.mark.parametrize("servers", ["", "h", "h:5432", "h1,h2", "h1:1,h2:2", "[::1]:5432", "%2Frun%2Fpostgresql"])
def test_any_servers_are_read_without_asking_them(servers: str) -> None:
    assert database_url.read(f"postgres://u:geheim@{servers}/d?sslmode=prefer", prepared=True)["NAME"] == "d"


def test_the_writable_host_is_found_among_several(tmp_path: Path, install: Install) -> None:
    """The first host refuses every connection."""
    url = os.environ["DATABASE_URL"].rsplit("/", 1)[0] + f"/{connection.settings_dict['NAME']}"
    head, _, server = url.rpartition("@")
    web = Web(tmp_path, DATABASE_URL=f"{head}@127.0.0.1:1,{server}?target_session_attrs=read-write")
    try:
        assert caller(web, install)("a") == 200
    finally:
        web.stop()
