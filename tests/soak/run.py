"""One soak: start the house, send at the rate, sample, audit, deploy, restart PostgreSQL, and compare memberships."""

import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random

from local.processes import Program, StackError
from local.stack import python
from sandbox.lytics.api.__main__ import DEFAULT_TOKEN
from tests.chaos import faults
from tests.chaos.house import House, Install
from tests.soak import old_log
from tests.soak.curves import Verdict, curves, judge
from tests.soak.samples import Sample, take

# The moments of the deploy and of PostgreSQL's restart, as shares of the run; both are in the judged part.
DEPLOY_SHARE, RESTART_SHARE = 0.35, 0.5
# A shorter run only shows that everything works.
JUDGED_MINUTES = 60
# The most that the sender may take, as a multiple of the minutes. The calls that it sends twice take it 3 % longer. If
# it takes longer still, the machine had no time for this rate, and delays, sessions and batches follow its load.
LATE_SENDER = 1.05
# Minutes between two audits of one audience each.
AUDIT_MINUTES = 5
AUDIT_SAMPLE = 100
# Messages in a call; fewer at a low rate, for at least one call per second.
BATCH = 300
# Seconds until all events are delivered, and until ODP shows what it accepted.
DRAIN_SECONDS, VISIBLE_SECONDS = 300, 30
# Seconds after the stream until the old log is pruned. Beat starts a run every 30 seconds.
PRUNE_SECONDS = 120
NAME = "soak"
DIFFER = "memberships differ"
SETTINGS = {"PROBE_MINUTES": "1", "LOOK_MINUTES": "1", "AUDIT_HOURS": "1", **old_log.SETTINGS}
WHO = "soak"
_TOKEN = (
    "from audiences.lytics_account import set_token; from audiences.models import Install;"
    f" set_token(Install.objects.get(name={NAME!r}), {DEFAULT_TOKEN!r})"
)
# Requests the audit; the workers carry it out.
_AUDIT = (
    "from audiences.agreement import audits; from audiences.models import Audience;"
    " [audits.ask(one, mode='sample', by={who!r}, sample={sample})"
    " for one in Audience.objects.filter(provisioned_at__isnull=False).order_by('pk')[{nth}:{nth} + 1]]"
)
_AUDITS = """
SELECT count(*) FILTER (WHERE ended_at IS NOT NULL AND problem = ''), count(*) FILTER (WHERE problem <> ''),
    count(*) FILTER (WHERE ended_at IS NULL)
FROM audiences_audit
"""
_AUDITS_THAT_FOUND = """
SELECT audience.odp_id, audit.differing
FROM audiences_audit AS audit JOIN audiences_audience AS audience ON audience.id = audit.audience_id
WHERE audit.ended_at IS NOT NULL AND audit.differing > 0
"""
_BACKLOG = """
SELECT coalesce(sum(audience.last_sequence - lane.delivered_sequence), 0)::bigint
FROM audiences_lane AS lane JOIN audiences_audience AS audience ON audience.id = lane.audience_id
"""


@dataclass(frozen=True, kw_only=True)
class Options:
    minutes: float
    rate: int
    audiences: int
    customers: int
    seed: int
    # Seconds between two samples.
    every: float = 10.0
    say: Callable[[str], None] = print


@dataclass(kw_only=True)
class Report:
    options: Options
    # How long the sender took.
    sent_minutes: float
    samples: list[Sample]
    verdicts: list[Verdict]
    # The minute and the name of each deploy and restart.
    happened: list[tuple[float, str]]
    # The audits with a result, those without one, and those under way.
    audits: tuple[int, int, int]
    # The probes that succeeded, and those that failed.
    probes: tuple[int, int]
    # The events of the old log, and those of them that were pruned.
    old_events: tuple[int, int]
    # Undelivered events, differing memberships, and audits that found differences.
    broken: list[str]
    memberships: int

    @property
    def is_clean(self) -> bool:
        if self.broken or self.is_overloaded:
            return False
        return self.is_trial or all(verdict.is_flat for verdict in self.verdicts)

    @property
    def is_trial(self) -> bool:
        """Whether the run was too short to say anything about growth."""
        return self.options.minutes < JUDGED_MINUTES

    @property
    def is_overloaded(self) -> bool:
        """Whether the machine was too busy for the rate, so that the curves say nothing about growth."""
        return not self.is_trial and self.sent_minutes > LATE_SENDER * self.options.minutes


def run(options: Options) -> Report:
    folder = Path(tempfile.mkdtemp(prefix="lytics-sync-soak-"))
    house = House(folder=folder, settings=SETTINGS, workers=2, is_plain=True)
    try:
        with house.open():
            return _Run(house, options).report()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class _Run:
    def __init__(self, house: House, options: Options) -> None:
        self.house, self.options = house, options
        self.samples: list[Sample] = []
        self.happened: list[tuple[float, str]] = []
        self.audits_asked = 0
        self.broken: list[str] = []
        self._old_parts: list[str] = []
        seconds = 60 * options.minutes
        self._due: list[tuple[float, Callable[[], None]]] = sorted(
            [
                (DEPLOY_SHARE * seconds, self._deploy),
                (RESTART_SHARE * seconds, self._restart),
                *((60 * (minute + 0.2), self._audit) for minute in range(0, int(options.minutes), AUDIT_MINUTES)),
            ],
            key=lambda due: due[0],
        )
        self.began = 0.0

    @property
    def _minute(self) -> float:
        return (time.monotonic() - self.began) / 60

    def report(self) -> Report:
        options = self.options
        installs = (NAME, "attribute", 0), (old_log.NAME, "attribute", 0)
        install, _ = self.house.connect(*installs, then=_TOKEN)
        old = old_log.OldLog(self.house, events=round(60 * options.rate * options.minutes))
        memberships = self.house.folder / "memberships.json"
        self._old_parts = old.part_tables
        self.began = time.monotonic()
        self._sample()
        code, said = self.house.fleet.run(self._sender(install, memberships), each=lambda _log: self._tick())
        if code:
            raise StackError(f"the sender ended with code {code}: {said[-300:]}")
        sent_minutes = self._minute
        self._drain()
        if not self.house.wait(lambda: old.pruned() >= old.events, seconds=PRUNE_SECONDS):
            self.broken.append(f"{old.events - old.pruned():,} old events were not pruned")
        restarts = [minute for minute, _ in self.happened]
        return Report(
            options=options,
            sent_minutes=sent_minutes,
            samples=self.samples,
            verdicts=[judge(curve, minutes=sent_minutes) for curve in curves(self.samples, restarts=restarts)],
            happened=self.happened,
            audits=self._audits(),
            probes=self._probes(),
            old_events=(old.events, old.pruned()),
            memberships=self._compare(memberships),
            broken=self.broken,
        )

    def _sender(self, install: Install, memberships: Path) -> Program:
        options = self.options
        return Program(
            name="sandbox-sender",
            command=python(
                *("-m", "sandbox.lytics", "--url", install.url, "--authorization", install.authorization, "--json"),
                *("--events", str(round(options.rate * 60 * options.minutes)), "--rate", str(options.rate)),
                *("--audiences", str(options.audiences), "--customers", str(options.customers)),
                *("--seed", str(options.seed), "--state", str(self.house.stack.lytics_state)),
                # A late call arrives minutes after Lytics' API knows its events, and audits would call them missing.
                *(
                    "--batch",
                    str(min(BATCH, options.rate)),
                    "--late",
                    "0",
                    "--retry-scale",
                    "0.05",
                    "--progress",
                    "none",
                    "--memberships",
                    str(memberships),
                ),
            ),
        )

    # --- Steps during the stream -----------------------------------------------------------------------------

    def _tick(self) -> None:
        """Called about twenty times a second. A step lets time pass, and samples that fall into it are left out."""
        if not self.samples or time.monotonic() - self.began - self.samples[-1].seconds >= self.options.every:
            self._sample()
        if self._due and time.monotonic() - self.began >= self._due[0][0]:
            self._due.pop(0)[1]()

    def _sample(self) -> None:
        last = self.samples[-1] if self.samples else None
        self.samples.append(take(self.house, began=self.began, last=last, old_parts=self._old_parts))
        if last is None or int(self.samples[-1].seconds / 60) > int(last.seconds / 60):
            one = self.samples[-1]
            delay = "–" if one.p99 is None else f"{one.p99:.2f} s"
            self.options.say(
                f"{self._minute:6.1f} min  {one.events:,} events, delay p99 {delay}, backlog {one.backlog:,}"
            )

    def _note(self, what: str) -> None:
        self.happened.append((self._minute, what))
        self.options.say(f"{self._minute:6.1f} min  {what}")

    def _deploy(self) -> None:
        self._note("rolling deploy")
        faults.deploy(self.house, Random(self.options.seed))

    def _restart(self) -> None:
        self._note("PostgreSQL restarted")
        faults.restart_postgres(self.house, Random(self.options.seed))

    def _audit(self) -> None:
        """Ask for an audit of one audience, in turn: every member in Lytics, and some people in ODP."""
        words = _AUDIT.format(who=WHO, sample=AUDIT_SAMPLE, nth=self.audits_asked % self.options.audiences)
        self.house.manage("shell", "--no-imports", "-c", words)
        self.audits_asked += 1

    # --- The end ---------------------------------------------------------------------------------------------

    def _drain(self) -> None:
        if not self.house.wait(lambda: self.house.sql(_BACKLOG) == [(0,)], seconds=DRAIN_SECONDS):
            self.broken.append(f"{self.house.sql(_BACKLOG)[0][0]:,} events were not delivered in {DRAIN_SECONDS} s")

    def _audits(self) -> tuple[int, int, int]:
        """The numbers of audits with a result, of those without one, and of those under way.

        Without a result: the audience grew while Lytics listed its members, for example.
        """
        for odp_id, differing in self.house.sql(_AUDITS_THAT_FOUND):
            self.broken.append(f"an audit of {odp_id}: {differing} differ")
        with_result, without, under_way = self.house.sql(_AUDITS)[0]
        return with_result, without, under_way

    def _probes(self) -> tuple[int, int]:
        """The numbers of probes that succeeded and that failed."""
        failed = 'hops @> \'[{"how": "failed"}]\''
        rows = self.house.sql(
            f"SELECT count(*) FILTER (WHERE NOT {failed}), count(*) FILTER (WHERE {failed})"
            " FROM audiences_trial WHERE closed_at IS NOT NULL"
        )
        return rows[0][0], rows[0][1]

    def _compare(self, memberships: Path) -> int:
        """Compare memberships in ODP with those sent, person by person. Returns the number of memberships."""
        lanes = self.house.folder / "lanes.json"
        lanes.write_text(self.house.manage("lane_status", "--json"), encoding="utf-8")
        files = ("--memberships", str(memberships), "--lanes", str(lanes), "--patience", str(VISIBLE_SECONDS))
        odp = ("--odp-host", self.house.odp.url, "--odp-api-key", f"{NAME}.secret")
        code, table = self.house.fleet.run(Program(name="compare", command=python("-m", "local.compare", *odp, *files)))
        rows = [line for line in table.splitlines() if line.endswith((" yes", " NO"))]
        if code:
            differing = [line for line in table.splitlines() if ": ODP lacks " in line or ": only ODP has " in line]
            self.broken.append(f"{DIFFER}: {'; '.join(differing[:5]) or 'ODP could not be asked'}")
        return sum(int(row.split()[1].replace(",", "")) for row in rows)
