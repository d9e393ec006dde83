"""One trace from a call of Lytics to ODP's answer. Without the setting nothing of it is loaded, asked or sent."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.db import connection
from django.test import Client
from pytest_django.fixtures import Settings

from audiences import tracing
from audiences.delivery import reading, settling
from audiences.models import Audience, Delivery, Install, Receipt
from audiences.operations import installs
from local.processes import free_port
from local.stack import Memory, Stack
from lytics_sync.env import PROJECT_DIR
from sandbox.odp.testing import ThreadedSandbox
from sandbox.odp.world import DEFAULT_PRIVATE_KEY
from tests.collector import Collector, Seen, running
from tests.delivering import claim, drain_all
from tests.messages import body, message
from tests.threads import PATIENCE, eventually
from tests.web import Web
from workers import delivery_spans, drain

pytestmark = pytest.mark.django_db(transaction=True)

SERVER = "POST /webhooks/lytics/{public_id}"
PERSON = "kim.secret@example.com"


@pytest.fixture
def collector() -> Iterator[Collector]:
    with running() as made:
        yield made


@pytest.fixture
def on(settings: Settings, monkeypatch: pytest.MonkeyPatch, collector: Collector) -> Iterator[None]:
    """Tracing in this process, to the collector."""
    settings.OTEL_TRACES_EXPORTER = "otlp"
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
    monkeypatch.setattr(tracing, "_export", None)
    monkeypatch.setattr(tracing, "_has_failed", False)
    yield
    tracing.stop()


@pytest.fixture
def shop(odp: ThreadedSandbox, db: None) -> Install:
    """An install with a token, which delivers to the sandbox ODP."""
    made = Install(name="Shop", odp_host=odp.url, odp_api_key=DEFAULT_PRIVATE_KEY, requests_per_second=0)
    installs.create(made)
    call(made, "first")
    drain_all(made)
    return made


def call(install: Install, *who: str, status: int = 200, **headers: Any) -> int:
    """A call with an event for each of these people. The id of its Receipt."""
    answer = Client().post(
        f"/webhooks/lytics/{install.public_id}",
        body(*(message(who=one) for one in who)),
        content_type="application/json",
        headers={"Authorization": install.tokens.get().secret, **headers},
    )
    assert answer.status_code == status
    return int(answer.headers.get("X-Receipt", 0))


def ids(context: tracing.Context) -> tuple[str, str]:
    return f"{context.trace_id:032x}", f"{context.span_id:016x}"


def of_call(collector: Collector, receipt: int) -> dict[str, Seen]:
    """The spans of the trace of a call, by their names."""
    (server,) = [span for span in collector.named(SERVER) if span.attributes["lytics_sync.receipt"] == receipt]
    return {span.name: span for span in collector.spans if span.trace == server.trace}


def assert_goes_from_call_to_answer(spans: dict[str, Seen], odp_span: str) -> None:
    assert sorted(spans) == sorted([SERVER, "store call", "deliver", odp_span])
    parents = {name: span.parent for name, span in spans.items()}
    assert parents == {
        SERVER: "",
        "store call": spans[SERVER].id,
        "deliver": spans["store call"].id,
        odp_span: spans["deliver"].id,
    }
    assert all(span.start <= span.end for span in spans.values())
    assert spans[SERVER].start <= spans["store call"].start
    assert spans["deliver"].start <= spans[odp_span].start


# --- on -------------------------------------------------------------------------------------------------------


def test_one_trace_goes_from_the_call_to_the_answer_of_odp(on: None, shop: Install, collector: Collector) -> None:
    receipt = call(shop, PERSON)
    drain_all(shop)
    tracing.stop()
    delivery = Delivery.objects.latest("pk")
    spans = of_call(collector, receipt)
    odp_span = f"POST {delivery.endpoint}"
    assert_goes_from_call_to_answer(spans, odp_span)
    assert spans[SERVER].attributes["http.response.status_code"] == 200
    assert spans["store call"].attributes["lytics_sync.events"] == 1
    assert spans[odp_span].attributes["http.response.status_code"] == delivery.status
    assert spans[odp_span].attributes["lytics_sync.outcome"] == "delivered"
    assert spans[odp_span].attributes["lytics_sync.delivery"] == delivery.pk
    assert not any(span.failed for span in spans.values())
    assert collector.services == {"lytics-sync"}


class Preempted:
    """``time`` as a thread sees it that loses the processor for a millisecond more after each look at the clock."""

    def __init__(self) -> None:
        self.lost_ns = 0

    def time_ns(self) -> int:
        self.lost_ns += 1_000_000
        return time.time_ns() - self.lost_ns

    def __getattr__(self, name: str) -> Any:
        return getattr(time, name)


def test_no_span_begins_before_its_parent_when_a_thread_loses_the_processor(
    on: None, shop: Install, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracing, "time", Preempted())
    receipt = call(shop, PERSON)
    drain_all(shop)
    tracing.stop()
    assert_goes_from_call_to_answer(of_call(collector, receipt), f"POST {Delivery.objects.latest('pk').endpoint}")


def test_a_request_of_many_calls_is_linked_with_each(on: None, shop: Install, collector: Collector) -> None:
    receipts = [call(shop, f"{number}@example.com") for number in range(5)]
    drain_all(shop)
    tracing.stop()
    stored = [ids(tracing.of_receipt(shop.public_id, receipt)) for receipt in receipts]
    first, *others = [of_call(collector, receipt) for receipt in receipts]
    request = f"POST {Delivery.objects.latest('pk').endpoint}"
    assert_goes_from_call_to_answer(first, request)
    assert first["deliver"].links == set(stored[1:])
    for spans in others:
        assert set(spans) == {SERVER, "store call", "deliver"}
        assert spans["deliver"].parent == spans["store call"].id
        assert spans["deliver"].links == {(first["deliver"].trace, first["deliver"].id)}
        assert spans["deliver"].attributes["lytics_sync.calls"] == 5


def test_a_request_has_a_bounded_number_of_spans_and_links(
    on: None, shop: Install, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery_spans, "MOST_CALLS", 3)
    for number in range(5):
        call(shop, f"{number}@example.com")
    drain_all(shop)
    tracing.stop()
    # One more is of the call before, which made the audience.
    delivered = [span for span in collector.named("deliver") if span.attributes["lytics_sync.calls"] == 5]
    assert sorted(len(span.links) for span in delivered) == [1, 1, 2]


def test_a_call_below_a_trace_of_its_caller_is_in_both(on: None, shop: Install, collector: Collector) -> None:
    theirs, span = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    receipt = call(shop, PERSON, traceparent=f"00-{theirs}-{span}-01")
    drain_all(shop)
    tracing.stop()
    spans = of_call(collector, receipt)
    assert set(spans) == {SERVER}
    assert (spans[SERVER].trace, spans[SERVER].parent) == (theirs, span)
    (stored,) = [one for one in collector.named("store call") if one.attributes["lytics_sync.receipt"] == receipt]
    assert (stored.trace, stored.id) == ids(tracing.of_receipt(shop.public_id, receipt))
    assert stored.parent == ""
    assert stored.links == {(theirs, spans[SERVER].id)}
    assert spans[SERVER].links == {(stored.trace, stored.id)}
    assert {one.name for one in collector.spans if one.trace == stored.trace} > {"store call", "deliver"}


@pytest.mark.parametrize("header", ["", "00-0-0-01", "nonsense", f"00-{'0' * 32}-{'0' * 16}-01", "x" * 5000])
def test_a_caller_with_a_bad_traceparent_gets_a_trace_of_its_own(
    on: None, shop: Install, collector: Collector, header: str
) -> None:
    receipt = call(shop, PERSON, traceparent=header)
    tracing.stop()
    assert of_call(collector, receipt)[SERVER].parent == ""


def test_the_outcome_of_a_failed_request_is_in_its_span_without_the_words_of_odp(
    on: None, shop: Install, odp: ThreadedSandbox, collector: Collector
) -> None:
    receipt = call(shop, PERSON)
    odp.fault({"path": "/v3/"}, {"status": 500, "body": {"title": f"{PERSON} is not welcome"}})
    drain.drain(shop.pk, seconds=PATIENCE)
    tracing.stop()
    spans = of_call(collector, receipt)
    request = spans[f"POST {Delivery.objects.latest('pk').endpoint}"]
    assert request.failed
    assert request.attributes["http.response.status_code"] == 500
    assert spans["deliver"].failed
    assert spans["deliver"].words == "retry_later"
    assert PERSON.encode() not in collector.bytes


def test_no_span_names_a_person(on: None, shop: Install, collector: Collector) -> None:
    call(shop, PERSON)
    drain_all(shop)
    tracing.stop()
    assert len(collector.spans) >= 4
    assert PERSON.encode() not in collector.bytes
    assert b"first" not in collector.bytes


def test_a_call_answered_503_has_a_failed_span(on: None, shop: Install, collector: Collector) -> None:
    Install.objects.filter(pk=shop.pk).update(enabled=False)
    call(shop, PERSON, status=503)
    tracing.stop()
    (span,) = collector.named(SERVER)[-1:]
    assert (span.failed, span.attributes["http.response.status_code"]) == (True, 503)


def test_a_call_without_a_valid_token_has_no_span(on: None, shop: Install, collector: Collector) -> None:
    call(shop, PERSON, status=401, Authorization="wrong")
    tracing.stop()
    assert [span.attributes["http.response.status_code"] for span in collector.named(SERVER)] == [200]


def test_a_delivery_that_raises_has_a_failed_span_without_the_words_of_the_error(
    on: None, shop: Install, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise ValueError(PERSON)

    receipt = call(shop, PERSON)
    monkeypatch.setattr(settling, "settle", fail)
    lease = claim(shop)
    drain._deliver_or_give_back(lease)
    tracing.stop()
    span = of_call(collector, receipt)["deliver"]
    assert (span.failed, span.words) == (True, delivery_spans.UNEXPECTED)
    assert PERSON.encode() not in collector.bytes


@pytest.mark.parametrize("sampler", ["traceidratio", "parentbased_traceidratio"])
def test_web_and_workers_sample_the_same_calls(
    shop: Install, collector: Collector, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest, sampler: str
) -> None:
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", sampler)
    monkeypatch.setenv("OTEL_TRACES_SAMPLER_ARG", "0.5")
    request.getfixturevalue("on")
    receipts = [call(shop, f"{number}@example.com") for number in range(30)]
    expected = [one for one in receipts if tracing.export().is_sampled(tracing.of_receipt(shop.public_id, one))]
    drain_all(shop)
    tracing.stop()
    assert 0 < len(expected) < 30
    assert {span.attributes["lytics_sync.receipt"] for span in collector.named(SERVER)} == set(expected)
    traces = {span.trace for span in collector.named(SERVER)}
    assert {span.trace for span in collector.named("deliver")} == traces


@pytest.mark.parametrize("asked", [False, True])
def test_odp_gets_a_traceparent_only_if_a_setting_asks_for_it(
    on: None, shop: Install, odp: ThreadedSandbox, collector: Collector, settings: Settings, asked: bool
) -> None:
    settings.ODP_TRACEPARENT = asked
    receipt = call(shop, PERSON)
    drain_all(shop)
    tracing.stop()
    endpoint = Delivery.objects.latest("pk").endpoint
    headers = {name.lower(): value for name, value in odp.requests()[-1]["headers"].items()}
    span = of_call(collector, receipt)[f"POST {endpoint}"]
    assert headers.get("traceparent") == (f"00-{span.trace}-{span.id}-01" if asked else None)


# --- a collector that is away ---------------------------------------------------------------------------------


def test_without_a_collector_calls_and_deliveries_are_as_ever(
    shop: Install, odp: ThreadedSandbox, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    request.getfixturevalue("on")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "1")
    for number in range(50):
        call(shop, f"{number}@example.com")
    drain_all(shop)
    assert Receipt.objects.count() == 51
    assert len(odp.members(Audience.objects.get().odp_id)) == 51


def test_the_end_of_a_process_waits_for_no_collector_without_a_limit(
    on: None, shop: Install, collector: Collector
) -> None:
    collector.answers.clear()
    call(shop, PERSON)
    tracing.export().stop(0.2)
    assert collector.has_asked.wait(PATIENCE)
    assert collector.spans == []  # it has not answered, and the process goes on


@pytest.mark.parametrize("where", ["of_caller", "is_sampled"])
def test_an_error_of_tracing_fails_no_call_and_no_delivery_and_ends_tracing(
    on: None, shop: Install, odp: ThreadedSandbox, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    monkeypatch.setattr(tracing.export(), where, lambda _: 1 / 0)
    call(shop, PERSON)
    drain_all(shop)
    assert not tracing.is_on()
    assert len(odp.members(Audience.objects.get().odp_id)) == 2


# --- off ------------------------------------------------------------------------------------------------------

OFF = """
import sys
sys.modules["opentelemetry"] = None  # as if it weren't installed: redis imports it when it is
import lytics_sync.wsgi, workers.tasks
from lytics_sync import warm_up
from audiences.models import Install
from workers import drain
warm_up.rehearse_a_call()
drain.drain(Install.objects.get().pk, seconds=1)
print({"audiences.span_export", "workers.delivery_spans"} & set(sys.modules))
"""


def test_off_imports_nothing_and_delivers_without_the_packages(shop: Install, odp: ThreadedSandbox) -> None:
    call(shop, PERSON)
    url = os.environ["DATABASE_URL"].rsplit("/", 1)[0] + f"/{connection.settings_dict['NAME']}"
    ended = subprocess.run(
        [sys.executable, "-c", OFF],
        env={**os.environ, "DATABASE_URL": url, "DJANGO_SETTINGS_MODULE": "lytics_sync.settings"},
        cwd=PROJECT_DIR,
        capture_output=True,
        text=True,
        check=True,
    )
    assert ended.stdout.splitlines()[-1] == "set()"
    assert len(odp.members(Audience.objects.get().odp_id)) == 2


def test_off_asks_the_database_nothing_and_derives_nothing(
    shop: Install, odp: ThreadedSandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module, name in ((tracing, "of_receipt"), (tracing, "export"), (reading, "receipts")):
        monkeypatch.setattr(module, name, lambda *_: 1 / 0)
    call(shop, PERSON)
    drain_all(shop)
    assert len(odp.members(Audience.objects.get().odp_id)) == 2


def test_only_one_module_imports_the_optional_packages() -> None:
    importing = [
        str(file.relative_to(PROJECT_DIR))
        for room in ("audiences", "local", "lytics", "lytics_sync", "odp", "outgoing", "sandbox", "workers")
        for file in (PROJECT_DIR / room).rglob("*.py")
        if "from opentelemetry" in (text := file.read_text(encoding="utf-8")) or "import opentelemetry" in text
    ]
    assert importing == ["audiences/span_export.py"]


# --- the real processes ---------------------------------------------------------------------------------------


def deliver_a_call(web: Web, folder: Path, shop: Install, odp: ThreadedSandbox) -> int:
    """Start a worker beside ``web``, make a call, and wait for its delivery. Returns the id of the Receipt."""
    stack = Stack(folder=folder, port=web.port, host="127.0.0.1", memory=Memory(file=folder / "local.env", values={}))
    web.fleet.start(*stack.workers(["worker-1"]))
    token = shop.tokens.get().secret
    answer = web.call("POST", f"/webhooks/lytics/{shop.public_id}", body(message(who=PERSON)), Authorization=token)
    assert answer.status == 200
    eventually(lambda: len(odp.members(Audience.objects.get().odp_id)) == 2)
    return int(answer.headers["X-Receipt"])


def test_one_trace_goes_through_the_real_web_process_and_worker(
    tmp_path: Path, shop: Install, odp: ThreadedSandbox, collector: Collector
) -> None:
    """The processes would send spans after a minute, so these come because the processes were stopped."""
    web = Web(
        tmp_path,
        OTEL_TRACES_EXPORTER="otlp",
        OTEL_EXPORTER_OTLP_ENDPOINT=collector.url,
        OTEL_BSP_SCHEDULE_DELAY="60000",
        OTEL_SERVICE_NAME="ours",
    )
    try:
        receipt = deliver_a_call(web, tmp_path, shop, odp)
        assert collector.spans == []
    finally:
        web.stop()
    assert_goes_from_call_to_answer(of_call(collector, receipt), f"POST {Delivery.objects.latest('pk').endpoint}")
    assert collector.services == {"ours"}


def test_the_real_processes_end_although_the_collector_answers_nothing(
    tmp_path: Path, shop: Install, odp: ThreadedSandbox, collector: Collector
) -> None:
    collector.answers.clear()
    web = Web(tmp_path, OTEL_TRACES_EXPORTER="otlp", OTEL_EXPORTER_OTLP_ENDPOINT=collector.url)
    try:
        deliver_a_call(web, tmp_path, shop, odp)
        processes = [child.process for group in web.fleet.groups for child in group]
    finally:
        web.stop()
    assert collector.has_asked.is_set()
    assert collector.spans == []
    # Neither was killed for taking too long.
    assert [process.poll() for process in processes if process] == [0, 0]


@pytest.mark.parametrize("program", ["web", "worker", "beat"])
def test_each_process_refuses_to_start_without_the_packages(tmp_path: Path, program: str) -> None:
    package = tmp_path / "opentelemetry"
    package.mkdir()
    (package / "__init__.py").write_text("raise ImportError(\"No module named 'opentelemetry'\")\n", encoding="ascii")
    (tmp_path / "run").mkdir()  # beat's schedule
    stack = Stack(folder=tmp_path, port=0, host="127.0.0.1", memory=Memory(file=tmp_path / "env", values={}))
    chosen = {"web": stack.web(), "worker": next(iter(stack.workers())), "beat": stack.beat()}[program]
    environment = {**os.environ, **chosen.env, "PYTHONPATH": str(tmp_path), "OTEL_TRACES_EXPORTER": "otlp"}
    ended = subprocess.run(chosen.command, env=environment, cwd=PROJECT_DIR, capture_output=True, text=True, timeout=60)
    assert ended.returncode != 0
    assert "Not started: " in ended.stderr
    assert "requirements-tracing.lock" in ended.stderr
