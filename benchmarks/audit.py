"""An audit of MEMBERS members (20,000) against both sandboxes, in full, with live traffic of another install beside it.

``make bench ONLY=audit MEMBERS=1000000`` takes about an hour, mostly to deliver the members to the sandbox before.
"""

import json
import os
import sqlite3
import time
from contextlib import closing
from pathlib import Path

from benchmarks import usage
from benchmarks.house import Sending
from benchmarks.load import Load, Report
from benchmarks.scenarios import Bench, Needs, _came, _end_to_end, _warm, line, scenario
from local.processes import Program, StackError, free_port, listens
from local.stack import python
from sandbox.lytics.account import Account
from sandbox.odp.world import DEFAULT_PRIVATE_KEY

MEMBERS, LIVE_EVENTS_PER_SECOND = 20_000, 2_000
TOKEN = "sandbox-lytics-token"  # noqa: S105 — of the sandbox
BESIDE = "end to end beside an audit"
# Seconds of live traffic in one load.
PART = 10
# The most seconds for the delivery, and for the audit, per 1,000 members; and their lowest value.
SECONDS_PER_THOUSAND, LEAST_SECONDS = 6, 300

_CREATE = """
from audiences import lytics_account
from audiences.models import Audience, Install, Lane
from audiences.operations import installs
install = Install(name="Audited", odp_host={host!r}, odp_api_key={key!r}, requests_per_second=0)
installs.create(install)
lytics_account.set_token(install, {token!r})
names = {{"segment_id": "gold", "slug": "gold", "latest_slug": "gold", "odp_id": "lytics_gold"}}
gold = Audience.objects.create(install=install, **names)
Lane.objects.create(audience=gold)
Install.objects.filter(pk=install.pk).update(enabled=True)
print(gold.pk)
"""
_ASK = """
from audiences.agreement import audits
from audiences.models import Audience, Audit
print(audits.ask(Audience.objects.get(pk={audience}), mode=Audit.Mode.FULL, by="bench").pk)
"""
_ENTER = """
INSERT INTO audiences_event (audience_id, sequence, identifier, kind, occurred_ns, received_at, forced)
SELECT %s, n, 'member' || lpad(n::text, 9, '0'), 1, n, now(), false FROM generate_series(1, %s) AS n
"""
_LEFT = "SELECT last_sequence - delivered_sequence FROM audiences_audience JOIN audiences_lane ON audience_id = id"
_RESULT = (
    "SELECT extract(epoch FROM ended_at - asked_at)::float, problem, differing, compared_with_lytics, compared_with_odp"
    " FROM audiences_audit WHERE id = %s AND ended_at IS NOT NULL"
)


@scenario(
    f"an audit of {MEMBERS:,} members (MEMBERS) in Lytics and ODP, beside {LIVE_EVENTS_PER_SECOND:,}/s live",
    Needs.NOTHING,
    line("audit", "minutes", better="less"),
    line("peak memory (RSS) of a worker's process during an audit", "MiB", better="less"),
    line(f"{BESIDE}, p50", "ms", better="less"),
    line(f"{BESIDE}, p99", "ms", better="less"),
    seconds=280,
    once=True,
)
def audit(bench: Bench) -> None:
    members = int(os.environ.get("MEMBERS") or bench.size(MEMBERS, 1_000))
    house, state = bench.house, bench.house.folder / "lytics.sqlite3"
    _fill_lytics(state, members)
    lytics, odp = free_port(), free_port()
    odp_command = python("-m", "sandbox.odp", "--port", str(odp), "--keep-requests", "100")
    odp_command += [word for name in ("profiles", "lists", "graphql") for word in (f"--rate-{name}", "0")]
    lytics_command = python("-m", "sandbox.lytics.api", "--port", str(lytics), "--state", str(state), "--token", TOKEN)
    sandboxes = (
        Program(name="sandbox-odp", command=odp_command, ready=lambda _pid: listens(odp)),
        Program(name="sandbox-lytics", command=lytics_command, ready=lambda _pid: listens(lytics)),
    )
    before = dict(house.settings)
    house.settings |= {"LYTICS_API_URL": f"http://127.0.0.1:{lytics}"}
    try:
        with house.running(*sandboxes), house.bridge():
            _measure(bench, members, f"http://127.0.0.1:{odp}")
    finally:
        house.settings = before
        house.sql("DELETE FROM audiences_lyticsaccount")
        house.sql("UPDATE audiences_install SET enabled = false WHERE name = 'Audited'")


def _fill_lytics(file: Path, members: int) -> None:
    account, people = Account(file), [f"member{number:09}" for number in range(1, members + 1)]
    account.write("INSERT INTO audience (segment_id, slug) VALUES ('gold', 'gold')")
    account.close()
    with closing(sqlite3.connect(file)) as database, database:
        profiles = ((one, json.dumps({"_id": one})) for one in people)
        database.executemany("INSERT INTO profile VALUES (?, ?)", profiles)
        database.executemany("INSERT INTO membership VALUES ('gold', ?, 0)", ((one,) for one in people))


def _measure(bench: Bench, members: int, odp: str) -> None:
    house = bench.house
    most = max(LEAST_SECONDS, members * SECONDS_PER_THOUSAND // 1_000)
    live = _warm(bench, audiences=60)
    script = _CREATE.format(host=odp, key=DEFAULT_PRIVATE_KEY, token=TOKEN)
    audience = int(house.manage("shell", "--verbosity", "0", "-c", script).split()[-1])
    house.sql(_ENTER, audience, members)
    house.sql("UPDATE audiences_audience SET last_sequence = %s WHERE id = %s", members, audience)
    house.analyze()
    if not house.wait(lambda: house.sql(f"{_LEFT} WHERE id = %s", audience) == [(0,)], seconds=most):
        raise StackError(f"the members were not delivered to the sandbox in {most} s")
    house.double.forget()
    audit_id = int(house.manage("shell", "--verbosity", "0", "-c", _ASK.format(audience=audience)).split()[-1])
    report, peak = Report(), 0.0
    # Each part begins after the one before has ended, so the live rate is slightly below this.
    rate = bench.size(LIVE_EVENTS_PER_SECOND, 200)
    load = Load(calls=max(1, PART * rate // 100), batch=100, rate=rate)
    ends_at = time.monotonic() + most
    while not (found := house.sql(_RESULT, audit_id)):
        if time.monotonic() > ends_at:
            raise StackError(f"the audit did not end in {most} s")
        part: Sending = house.begin(live, load)
        while not part.is_over:
            peak = max(peak, *(usage.largest_rss_mib(pid) for name, pid in house.pids().items() if "worker" in name))
            house.rest(1)
        report.acks += house.finish(part).acks
    seconds, problem, differing, with_lytics, with_odp = found[0]
    if problem or differing or with_lytics != members or with_odp != members:
        raise StackError(f"the audit found {differing} of {with_lytics} and {with_odp} people to differ. {problem}")
    stamps = [stamp for stamp, _, _ in report.acks]
    if not house.wait(lambda: _came(bench, stamps) >= len(stamps) * load.batch, seconds=60):
        raise StackError("after 60 seconds some live events had not reached ODP")
    bench.note(
        f"The audit: {members:,} members, {rate:,} live events/s, the default waits for events under way included."
    )
    bench.record("audit", seconds / 60)
    bench.record("peak memory (RSS) of a worker's process during an audit", peak)
    _end_to_end(bench, BESIDE, report)
