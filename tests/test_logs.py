"""Log lines: one format for every library, a traceback for every exception, one id per call, no identifier."""

import io
import json
import logging
import logging.config
import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import pytest
import structlog
from celery import Task
from django.conf import settings
from django.db import IntegrityError
from django.http import HttpRequest, HttpResponse
from django.http.response import HttpResponseBase
from django.test import Client, override_settings
from django.urls import path, reverse

from audiences.insight import trace
from audiences.models import Audience, Delivery, Install, Membership, Receipt
from audiences.operations import installs
from lytics_sync import logs
from sandbox.odp.testing import ThreadedSandbox
from tests.delivering import backoff_runs_out, drain_all
from workers.app import app

SECRETIVE = "anna.maria@example.com"

# Every logger whose errors an operator has to understand: those of this service, Django, Celery and gunicorn.
LOGGERS = ("audiences.receiving.ingest", "django.request", "celery.app.trace", "gunicorn.error", "asyncio")


@contextmanager
def written(form: str = "text") -> Iterator[io.StringIO]:
    """What the processes would write to stderr, down to the debug lines."""
    stream = io.StringIO()
    made = logging.config.DictConfigurator(logs.config(form=form, level="DEBUG"))
    handler = logging.StreamHandler(stream)
    handler.setFormatter(made.configure_formatter(made.config["formatters"]["line"]))
    root = logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    try:
        yield stream
    finally:
        root.removeHandler(handler)
        root.setLevel(level)


def fail(values: str) -> NoReturn:
    raise ValueError(values)


@pytest.mark.parametrize("name", LOGGERS)
def test_an_error_of_any_library_has_its_traceback(name: str) -> None:
    with written() as text, written("json") as lines:
        try:
            fail("a reason")
        except ValueError:
            logging.getLogger(name).error("It failed for %s", "somebody", exc_info=True)
    for shown in (text.getvalue(), json.loads(lines.getvalue())["exception"]):
        assert "in fail" in shown
        assert "ValueError: a reason" in shown
    assert text.getvalue().startswith("timestamp=")
    assert f'level=error logger={name} event="It failed for somebody"' in text.getvalue()
    assert json.loads(lines.getvalue())["level"] == "error"


def broken(request: HttpRequest) -> HttpResponse:
    fail("a broken page")


urlpatterns = [path("broken", broken)]


@override_settings(ROOT_URLCONF=__name__)
def test_a_page_that_fails_leaves_its_traceback_and_its_request_id() -> None:
    with written("json") as lines:
        answer = Client(raise_request_exception=False).get("/broken")
    (line,) = [json.loads(line) for line in lines.getvalue().splitlines() if "broken page" in line]
    assert answer.status_code == 500
    assert "in broken" in line["exception"]
    assert line["request_id"] == answer.headers["X-Request-ID"]


def test_a_task_that_fails_leaves_its_traceback_and_its_name() -> None:
    @app.task(name=f"tests.{uuid.uuid4()}")
    def break_down() -> None:
        fail("a broken task")

    task: Task[Any, Any] = break_down
    with written("json") as lines:
        task.apply()
    (line,) = [json.loads(line) for line in lines.getvalue().splitlines() if "broken task" in line]
    assert "in fail" in line["exception"]
    assert line["task"] == task.name


def test_a_value_with_any_characters_stays_in_one_line() -> None:
    odd = 'a "quoted" = value\nwith \\ two lines'
    with written() as text, written("json") as lines:
        structlog.get_logger("odd").warning("odd", **{"a key": odd, "none": None, "yes": True})
    assert len(text.getvalue().splitlines()) == 1
    assert json.loads(lines.getvalue())["a key"] == odd
    assert "yes=true" in text.getvalue()


def test_a_broker_that_is_away_leaves_one_short_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = logs.NowAndThen()
    logger = logging.getLogger("tests.library")
    logger.addFilter(kept)
    moment = [0]  # a thread of another test may read the clock, too
    monkeypatch.setattr("lytics_sync.logs.time.monotonic", lambda: moment[0])
    try:
        with written("json") as lines:
            for moment[0] in range(130):
                try:
                    fail("connection refused")
                except ValueError:
                    logger.error("Message Error: %s\n%r", "refused", ["a stack"], exc_info=True)
    finally:
        logger.removeFilter(kept)
    found = [json.loads(line) for line in lines.getvalue().splitlines()]
    assert [line["event"] for line in found] == [
        "Message Error: refused",
        "Message Error: refused (59 more lines like this one were left out)",
        "Message Error: refused (59 more lines like this one were left out)",
    ]
    assert {line["level"] for line in found} == {"warning"}
    assert not any("exception" in line for line in found)


@pytest.mark.parametrize("name", logs.REPEATING)
def test_each_library_that_repeats_itself_has_that_filter(name: str) -> None:
    made = settings.LOGGING["loggers"][name]
    assert made == {"level": "WARNING", "filters": ["now_and_then"]}


# --- One id from the answer to the tables ---------------------------------------------------------------------


def call(install: Install, body: Any, **headers: str) -> HttpResponseBase:
    (token,) = install.tokens.all()
    return Client().post(
        f"/webhooks/lytics/{install.public_id}",
        json.dumps(body),
        content_type="application/json",
        headers={"Authorization": installs.authorization(token), **headers},
    )


def message(identifier: str, **more: Any) -> dict[str, Any]:
    at = "2026-02-01T10:00:00Z"
    event = {"id": "0a" * 16, "slug": "gold", "event": "enter", "enter": at}
    return {"data": {"_id": identifier, "segment_events": [event], **more}, "meta": {"timestamp": at}}


@pytest.mark.django_db
def test_an_answer_leads_to_its_log_line_and_its_receipt(install: Install) -> None:
    with written("json") as lines:
        answer = call(install, [message("u1")])
    (line,) = [json.loads(line) for line in lines.getvalue().splitlines() if "call stored" in line]
    assert line["request_id"] == answer.headers["X-Request-ID"]
    assert answer.headers["X-Receipt"] == str(line["receipt"]) == str(Receipt.objects.get().pk)


@pytest.mark.django_db
def test_a_call_that_is_not_stored_has_a_request_id_too(install: Install) -> None:
    Install.objects.update(enabled=False)
    answer = call(install, [message("u1")])
    assert answer.status_code == 503
    assert len(answer.headers["X-Request-ID"]) == 32
    assert "X-Receipt" not in answer.headers


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("behind", "given", "kept"),
    [
        (True, "from-the.proxy_1", True),
        (True, "two words", False),
        (True, "x" * 65, False),
        (True, "", False),
        (False, "from-anybody", False),
    ],
)
def test_the_request_id_of_a_proxy_is_kept_if_it_is_plain(
    install: Install, behind: bool, given: str, kept: bool
) -> None:
    with override_settings(BEHIND_PROXY=behind):
        answer = call(install, [message("u1")], **{"X-Request-ID": given})
    assert (answer.headers["X-Request-ID"] == given) is kept
    assert answer.headers["X-Request-ID"]


@pytest.mark.django_db(transaction=True)
def test_each_request_to_odp_has_a_line_with_its_delivery(odp: ThreadedSandbox) -> None:
    shop = Install(name="Shop", odp_host=odp.url, odp_api_key=odp.private_key, requests_per_second=0)
    installs.create(shop)
    call(shop, [message("u1")])
    with written("json") as lines:
        drain_all(shop)
    found = [json.loads(line) for line in lines.getvalue().splitlines() if '"delivery"' in line]
    assert [(line["delivery"], line["outcome"], line["items"]) for line in found if line["event"] == "delivery"] == [
        (Delivery.objects.get().pk, "delivered", 1)
    ]


@pytest.mark.django_db(transaction=True)
def test_a_call_leads_to_its_deliveries_and_a_delivery_to_its_calls(
    odp: ThreadedSandbox, admin_client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop = Install(name="Shop", odp_host=odp.url, odp_api_key=odp.private_key, requests_per_second=0)
    installs.create(shop)
    for names in (("u1",), ("u2", "u3"), ("u4",)):
        for name in names:
            call(shop, [message(name)])
        drain_all(shop)
    first, second, third, fourth = Receipt.objects.order_by("pk")
    one, two, three = Delivery.objects.order_by("pk")
    found = [trace.deliveries_of(receipt) for receipt in (first, second, third, fourth)]
    assert found == [[one.pk], [two.pk], [two.pk], [three.pk]]
    assert [trace.receipts_of(delivery) for delivery in (one, two, three)] == [
        [first.pk],
        [second.pk, third.pk],
        [fourth.pk],
    ]
    page = admin_client.get(reverse("admin:audiences_receipt_change", args=[third.pk])).content.decode()
    assert f'href="{reverse("admin:audiences_delivery_change", args=[two.pk])}"' in page
    assert f'href="{reverse("admin:audiences_delivery_change", args=[three.pk])}"' not in page
    page = admin_client.get(reverse("admin:audiences_delivery_change", args=[two.pk])).content.decode()
    assert f'href="{reverse("admin:audiences_receipt_change", args=[third.pk])}"' in page
    assert "and more" not in page
    monkeypatch.setattr(trace, "SHOWN", 1)
    monkeypatch.setattr(trace, "RUNS", 1)
    page = admin_client.get(reverse("admin:audiences_delivery_change", args=[two.pk])).content.decode()
    assert f">{second.pk:,}</a> and more" in page, "only the first of them is named"
    page = admin_client.get(reverse("admin:audiences_receipt_change", args=[first.pk])).content.decode()
    assert f">{one.pk:,}</a>" in page
    monkeypatch.setattr(trace, "RUNS", 0)
    page = admin_client.get(reverse("admin:audiences_receipt_change", args=[first.pk])).content.decode()
    assert "none among the first 0 runs" in page


# --- No personal data -----------------------------------------------------------------------------------------


@pytest.mark.django_db(transaction=True)
def test_no_identifier_of_a_customer_is_logged(odp: ThreadedSandbox) -> None:
    """Through receiving, parking, refusals in ODP's own words, a failed request and a broken constraint."""
    shop = Install(name="Shop", odp_host=odp.url, odp_api_key=odp.private_key, requests_per_second=0)
    installs.create(shop)
    words = f"fs_user_id '{SECRETIVE}' is invalid"
    with written() as text, written("json") as lines:
        call(shop, [message(SECRETIVE), message("", email=SECRETIVE), SECRETIVE, {"data": {"_id": SECRETIVE}}])
        call(shop, SECRETIVE)
        odp.fault({"path": "/v3/profiles", "times": 1}, {"status": 503, "body": {"message": words}})
        drain_all(shop)
        backoff_runs_out(shop)
        odp.fault(
            {"path": "/v3/profiles"},
            {"refuse_items": {"identifiers": [SECRETIVE], "named": True, "message": words}},
        )
        drain_all(shop)
        audience = Audience.objects.get()
        for _ in range(2):
            try:
                Membership.objects.create(
                    audience=audience, identifier=SECRETIVE, occurred_ns=1, sequence=1, is_member=True
                )
            except IntegrityError:
                logging.getLogger("django.request").exception("not stored")
    assert "duplicate key" in text.getvalue()
    assert SECRETIVE not in text.getvalue()
    assert SECRETIVE not in lines.getvalue()


# --- Warnings and uncaught exceptions -------------------------------------------------------------------------

BEGIN = "import django; django.setup(); import threading, warnings; "
OF_PYTHON = {
    "a warning": "warnings.warn('odd')",
    "a warning of two lines": "warnings.warn('odd\\nlines')",
    "an exception": "raise ValueError('odd')",
    "a group of exceptions of two lines": "raise ExceptionGroup('odd', [ValueError('two\\nlines'), KeyError('odd')])",
    "an exception of a thread": "threading.Thread(target=lambda: int('odd')).start()",
    "an exception of a finalizer": "type('T', (), {'__del__': lambda self: int('odd')})()",
    "a line of Django": "import logging; logging.getLogger('django').warning('odd')",
    "a line of runserver": "import logging; logging.getLogger('django.server').warning('odd')",
}


@pytest.mark.parametrize("what", OF_PYTHON)
@pytest.mark.parametrize("debug", ["0", "1"])
def test_what_python_and_django_write_by_themselves_is_one_object_in_one_line(what: str, debug: str) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", BEGIN + OF_PYTHON[what]],
        env={**os.environ, "LOG_FORMAT": "json", "DEBUG": debug, "DJANGO_SETTINGS_MODULE": "lytics_sync.settings"},
        capture_output=True,
        text=True,
    )
    (line,) = [json.loads(line) for line in (ended.stderr + ended.stdout).splitlines()]
    assert {"timestamp", "level", "logger", "event"} <= set(line)
    assert "odd" in json.dumps(line)
