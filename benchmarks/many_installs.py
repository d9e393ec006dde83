"""Fifty installs, four of them sick: what the others notice of a dead ODP, a backlog, rejections and many audiences.

Each install has the default rate limit, ODP's documented ten requests a second.
"""

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

from benchmarks import sender
from benchmarks.house import Install
from benchmarks.load import Load, Report, batches
from benchmarks.results import Against
from benchmarks.scenarios import Bench, Needs, _came, _end_to_end, line, scenario
from local.processes import StackError

INSTALLS, AUDIENCES, MANY, BACKLOG = 50, 5, 1_000, 1_000_000
CALLS_PER_SECOND, CALLERS = 40, 8
ALONE, BESIDE = "end to end of 46 installs alone", "end to end of 46 installs beside four sick ones"
SICK = ("dead", "rejected", "backlog", "many")

# One process creates all installs, because starting it takes seconds.
_CREATE = """
import json
from audiences.models import Install
from audiences.operations import installs
made = []
for name, host in json.loads({given!r}):
    install = Install(name=name, odp_host=host, odp_api_key="bench.bench")
    token = installs.create(install)
    made.append([install.pk, install.public_id, installs.webhook_url(install), installs.authorization(token)])
print(json.dumps(made))
"""
_AUDIENCES = """
INSERT INTO audiences_audience (install_id, segment_id, slug, latest_slug, odp_id, last_sequence, created_at,
    provisioned_at)
SELECT %s, 's' || n, 'bench_' || n, 'bench_' || n, 'lytics_bench_' || n, 0, now(), now()
FROM generate_series(0, %s) AS n
"""
_LANES = """
INSERT INTO audiences_lane (audience_id, delivered_sequence, member_count, paused_by, pause_reason, block_reason)
SELECT id, 0, 0, '', '', '' FROM audiences_audience
"""


class _Rejecting(BaseHTTPRequestHandler):
    """An ODP that rejects each request and says nothing about the reason."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        content = b'{"title":"Bad Request","status":400}'
        self.send_response(400)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args: object) -> None:
        """Requests aren't logged."""


class _RejectingServer(ThreadingHTTPServer):
    def handle_error(self, request: object, client_address: object) -> None:
        """A worker that ends closes its connections, which is no error here."""


@contextmanager
def _sick_accounts() -> Iterator[tuple[str, str]]:
    """The addresses of an ODP that accepts connections and never responds, and of one that rejects everything."""
    with socket.create_server(("127.0.0.1", 0), backlog=1_000) as dead:
        rejecting = _RejectingServer(("127.0.0.1", 0), _Rejecting)
        threading.Thread(target=rejecting.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{dead.getsockname()[1]}", f"http://127.0.0.1:{rejecting.server_port}"
        finally:
            rejecting.shutdown()
            rejecting.server_close()


@scenario(
    f"{INSTALLS} installs: a dead ODP, a backlog of {BACKLOG:,}, an ODP that rejects, {MANY:,} audiences, 46 others",
    Needs.STACK,
    line(f"{ALONE}, p50", "ms", better="less"),
    line(f"{ALONE}, p99", "ms", better="less"),
    line(f"{BESIDE}, p50", "ms", better="less"),
    line(f"{BESIDE}, p99", "ms", Against(f"{ALONE}, p99", 1.1, more=False), better="less"),
    seconds=120,
    once=True,
)
def many_installs(bench: Bench) -> None:
    with _sick_accounts() as (dead, rejecting):
        hosts = {"dead": dead, "rejected": rejecting}
        names = [*SICK, *(f"other {number}" for number in range(INSTALLS - len(SICK)))]
        installs = _create(bench, [(name, hosts.get(name, bench.house.double.url)) for name in names])
        sick, others = dict(zip(SICK, installs, strict=False)), installs[len(SICK) :]
        try:
            _fill(bench, sick, installs)
            _measure(bench, others, ALONE)
            for install in sick.values():
                bench.house.hold(install, go=True)
            bench.house.wait(lambda: bench.house.double.seen()["requests"] > 0, seconds=30)
            _measure(bench, others, BESIDE)
            if not _left(bench, sick["backlog"]):
                bench.note("The backlog ended before the calls of the others, so their figures beside it are too good.")
        finally:
            bench.house.sql("UPDATE audiences_install SET enabled = false WHERE name = ANY(%s)", names)


def _create(bench: Bench, accounts: Sequence[tuple[str, str]]) -> list[Install]:
    bench.house.clear()
    printed = bench.house.manage("shell", "--verbosity", "0", "-c", _CREATE.format(given=json.dumps(accounts)))
    made = []
    for pk, _, url, authorization in json.loads(printed.strip().splitlines()[-1]):
        made.append(Install(pk, bench.house.stack.public_url + urlsplit(url).path, authorization))
    return made


def _fill(bench: Bench, sick: dict[str, Install], installs: Sequence[Install]) -> None:
    """Give each install its audiences, and the sick ones what they have to send while they are off."""
    many = bench.size(MANY, 50)
    for install in installs:
        audiences = many if install == sick["many"] else AUDIENCES
        bench.house.sql(_AUDIENCES, install.pk, audiences - 1)
    bench.house.sql(_LANES)
    for name, events in (("dead", 20_000), ("rejected", 20_000), ("backlog", BACKLOG), ("many", 20 * MANY)):
        bench.house.hold(sick[name], go=False)
        bench.house.fill(sick[name], bench.size(events, 60_000 if name == "backlog" else 2_000))


def _left(bench: Bench, install: Install) -> bool:
    statement = (
        "SELECT count(*) FROM audiences_lane AS lane JOIN audiences_audience AS audience ON audience.id = audience_id"
        " WHERE install_id = %s AND last_sequence > delivered_sequence"
    )
    return bool(bench.house.sql(statement, install.pk)[0][0])


def _measure(bench: Bench, installs: Sequence[Install], name: str) -> None:
    load = Load(calls=bench.size(60 * CALLS_PER_SECOND, 400), batch=10, audiences=AUDIENCES, spread=AUDIENCES)
    _send(bench, installs, replace(load, calls=2 * len(installs)))
    report = _send(bench, installs, load)
    live = [stamp for stamp, _, _ in report.acks]
    if not bench.house.wait(lambda: _came(bench, live) >= load.calls * load.batch, seconds=60):
        raise StackError("after 60 seconds some events of the other installs had not reached ODP")
    _end_to_end(bench, name, report)


def _send(bench: Bench, installs: Sequence[Install], load: Load) -> Report:
    """Paced calls to all installs in turn. Their rate is low, so threads of this process are enough."""
    first, bench.house.next_stamp = bench.house.next_stamp, bench.house.next_stamp + load.calls
    report, began = Report(began=time.monotonic()), time.monotonic() + 0.1
    facts = batches(load, seed=0)

    def caller(place: int) -> None:
        calls: dict[int, Callable[[int], None]] = {}
        try:
            for number in range(place, load.calls, CALLERS):
                due, chosen = began + number / CALLS_PER_SECOND, number % len(installs)
                if chosen not in calls:
                    calls[chosen] = sender.prepare(installs[chosen].url, installs[chosen].authorization)(facts)()
                time.sleep(max(0.0, due - time.monotonic()))
                calls[chosen](first + number)
                report.acks.append((first + number, due, time.monotonic() - due))
        except Exception as error:  # noqa: BLE001 — raised below
            report.trouble = f"{type(error).__name__}: {error}"

    threads = [threading.Thread(target=partial(caller, place)) for place in range(CALLERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if report.trouble:
        raise StackError(f"the load was not taken: {report.trouble}")
    return report
