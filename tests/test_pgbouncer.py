"""The service behind PgBouncer in transaction mode, where each transaction uses another session.

These tests are skipped without PgBouncer on PATH.
"""

import json
import os
import re
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from functools import partial
from html import unescape
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from django.contrib.auth.models import User
from django.db import connection, transaction
from django.forms import ModelChoiceField
from django.test import Client
from django.urls import reverse
from django.utils.timezone import now

from audiences.admin import csv_file
from audiences.insight import customers, rollup, search_index
from audiences.models import Audience, Install, Receipt
from audiences.operations import audit, reconcile, resends, rotation
from audiences.receiving import ingest, log_range
from local.processes import free_port
from local.stack import Memory, Stack, manage
from sandbox.odp.testing import ControlledSandbox
from tests import bouncer
from tests.bouncer import POOL, Bouncer
from tests.browser.site import Site
from tests.delivering import assert_all_is_well, drain_all, make_install, numbered, sandbox
from tests.messages import body, message
from tests.threads import PATIENCE, eventually, start
from tests.web import Web

if bouncer.find() is None:
    pytest.skip(bouncer.MISSING, allow_module_level=True)
pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(scope="module")
def pooler() -> Iterator[Bouncer]:
    running = Bouncer(os.environ["DATABASE_URL"])
    running.start()
    yield running
    running.stop()


@pytest.fixture
def pooled(transactional_db: None, pooler: Bouncer, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """This process, too, reaches the test database through it."""
    options = {**connection.settings_dict["OPTIONS"], "prepare_threshold": None}
    connection.close()
    for name, value in {"HOST": "127.0.0.1", "PORT": str(pooler.port), "OPTIONS": options}.items():
        monkeypatch.setitem(connection.settings_dict, name, value)
    # As soon as all its connections are there, they take turns.
    eventually(lambda: len({session() for _ in range(POOL)}) == POOL)
    yield
    connection.close()
    assert pooler.left_behind(connection.settings_dict["NAME"]) == set()


def session() -> int:
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        row = cursor.fetchone()
    return int(row[0]) if row else 0


@pytest.fixture
def shop(pooled: None, odp: ControlledSandbox) -> Install:
    """An install that has received, delivered and parked something."""
    made = make_install(odp)
    for who in numbered(9):
        ingest.receive(made, body(message(who=who)))
    ingest.receive(made, b"not json")
    drain_all(made)
    return made


def test_every_page_of_the_admin_opens(shop: Install) -> None:
    person = Client()
    person.force_login(User.objects.create_superuser("boss"))
    seen, ahead = {"/admin/logout/"}, ["/admin/"]
    while ahead:
        page = person.get(ahead.pop())
        assert page.status_code in (200, 302, 405), page  # some only lead on, or are buttons
        for link in re.findall(r'href="(/admin/[^"]*)"', page.content.decode()):
            place = urlsplit(unescape(link)).path
            if place not in seen:
                seen.add(place)
                ahead.append(place)
    assert len(seen) > 40


def test_a_choice_among_rows_is_whole(pooled: None, odp: ControlledSandbox) -> None:
    """Django reads those with a server-side cursor by default."""
    Install.objects.bulk_create(Install(name=f"Shop {number}", odp_api_key="key") for number in range(300))
    field = ModelChoiceField(Install.objects.all(), empty_label=None)
    assert len(field.widget.optgroups("install", [])) == 300


def test_a_list_is_downloaded_whole(shop: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(csv_file, "ROWS", 3)
    person = Client()
    person.force_login(User.objects.create_superuser("boss"))
    answer: Any = person.post(reverse("admin:audiences_receipt_csv"))
    assert len(b"".join(answer.streaming_content).splitlines()) == 1 + Receipt.objects.count() == 11


def test_sent_events_are_resent_searched_counted_and_audited(shop: Install, odp: ControlledSandbox) -> None:
    gold = Audience.objects.get()
    hour = (now() - timedelta(hours=1), now() + timedelta(hours=1))
    assert resends.resync(gold, by="boss", reason="to see")
    stretch = log_range.find(gold.pk, *hour, upto=gold.last_sequence)
    assert resends.replay(gold, stretch, start=hour[0], end=hour[1], by="boss", reason="to see")
    resends.advance_all(shop.pk, seconds=PATIENCE)
    drain_all(shop)
    reconcile.reconcile()
    search_index.summarise()
    rollup.roll_up()
    rotation.rotate()
    assert len(customers.customer_history("u0003").statuses) == 3
    assert odp.members("lytics_gold_club") == numbered(9)
    assert_all_is_well(gold)
    assert audit.audit() == []


def test_waiting_too_long_for_a_connection_is_answered_503(
    install: Install, tmp_path: Path, transactional_db: None
) -> None:
    """More calls than connections, and all connections wait for a locked row."""
    ingest.receive(install, body(message()))
    small = Bouncer(os.environ["DATABASE_URL"], default_pool_size="2", min_pool_size="0", query_wait_timeout="2")
    small.start()
    web = Web(tmp_path, DATABASE_URL=small.url_of(connection.settings_dict["NAME"]), PREPARED_STATEMENTS="off")
    try:
        where, token = f"/webhooks/lytics/{install.public_id}", install.tokens.get().secret

        def call(number: int) -> tuple[int, str | None]:
            answer = web.call("POST", where, body(message(who=f"u{number}")), Authorization=token)
            return answer.status, answer.headers["Retry-After"]

        with transaction.atomic():
            Audience.objects.select_for_update().get()
            calls = start(*[lambda number=number: call(number) for number in range(8)])
            eventually(lambda: sum(answer.done() for answer in calls) == 6)
        assert sorted(answer.result(PATIENCE) for answer in calls) == [(200, None)] * 2 + [(503, "1")] * 6
        assert Receipt.objects.count() == 3
        assert {call(number)[0] for number in range(20)} == {200}
    finally:
        web.stop()
        small.stop()


# --- As on two machines ---------------------------------------------------------------------------------------


def test_a_whole_fleet_delivers_all_events(pooler: Bouncer, tmp_path: Path) -> None:
    """Two web processes on ports of their own, each called for an install, two workers of different size, and beat."""
    site = Site(tmp_path, server=pooler.url, PREPARED_STATEMENTS="off", HEARTBEAT_SECONDS="1")
    try:
        site.start()
        second = Stack(
            folder=tmp_path, port=free_port(), host="127.0.0.1", memory=Memory(file=tmp_path / "2", values={})
        )
        (small,) = second.workers(["worker-of-3"])
        site.fleet.start(
            replace(second.web(), name="web-2"), replace(small, command=[*small.command, "--concurrency", "3"])
        )
        with sandbox() as one, sandbox() as other:
            for port, odp in ((urlsplit(site.url).port, one), (second.port, other)):
                connected = run(site, "create_install", f"at {port}", *connection_of(odp))
                url = urlsplit(connected["webhook_url"])._replace(netloc=f"127.0.0.1:{port}").geturl()
                sent = site.is_called(url, connected["authorization"], events=2000, audiences=4)
                assert len(sent) == 4
                eventually(partial(holds, odp, sent))
        eventually(lambda: len(answering(second.port)) == 2)
        assert run(site, "audit_log")["clean"]
        # Calls that come again and the sweep would make up for statements that fail.
        logs = [log.read_text(encoding="utf-8") for log in site.fleet.logs.glob("*.log")]
        assert [line for log in logs for line in log.splitlines() if "psycopg.errors" in line] == []
        assert pooler.left_behind(site.database) == set()
    finally:
        site.stop()


def answering(port: int) -> list[str]:
    """The workers that one of the web processes hears of."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/health/workers", timeout=30) as answer:
        return [worker["name"] for worker in json.load(answer)["workers"]]


def holds(odp: ControlledSandbox, sent: dict[str, list[str]]) -> bool:
    """Each audience is there, which is created with its first delivery, and has these members."""
    _, there = odp.odp("GET", "/v3/segments")
    return set(sent) <= set(there["segment_ids"]) and {name: odp.members(name) for name in sent} == sent


def connection_of(odp: ControlledSandbox) -> list[str]:
    return ["--odp-api-key", odp.private_key, "--odp-host", odp.url, "--requests-per-second", "0"]


def run(site: Site, *words: str) -> Any:
    code, said = site.fleet.run(manage(*words, "--json"))
    assert code == 0, said
    return json.loads(said)
