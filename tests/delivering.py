"""What the tests of delivery share: an install that delivers to the sandbox ODP, audiences in it, and their events."""

from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from django.db import connection, transaction
from django.test import override_settings
from django.utils.timezone import now

from audiences.delivery import claims, drafts, holds, leases, reading, request_records, settling
from audiences.models import Audience, Delivery, Event, Install, Lane, Membership, Parked, Run
from audiences.operations import audit
from audiences.receiving import ingest
from lytics.facts import Fact, Kind
from odp.outcomes import Outcome
from sandbox.odp.testing import ControlledSandbox, ThreadedSandbox
from sandbox.odp.world import DEFAULT_PRIVATE_KEY, Options
from workers import drain

UNLIMITED = {"rates": {"profiles": 0, "lists": 0, "graphql": 0}}
NOWHERE = "http://127.0.0.1:9"
# identifier, what happened, and when, in nanoseconds.
Happening = tuple[str, str, int]


@contextmanager
def sandbox(**assumptions: Any) -> Iterator[ThreadedSandbox]:
    """A sandbox ODP without rate limits, on a thread of this process."""
    with ThreadedSandbox(Options(settings={**UNLIMITED, "assumptions": assumptions})) as odp:
        yield odp


def make_install(odp: ControlledSandbox | None = None, **values: Any) -> Install:
    """An install without a pace, unless the test is about it."""
    usual = {"name": "Shop", "odp_host": odp.url if odp else NOWHERE, "odp_api_key": DEFAULT_PRIVATE_KEY}
    return Install.objects.create(**{**usual, "requests_per_second": 0, **values})


def make_checked_install(odp: ControlledSandbox, **values: Any) -> Install:
    """An install whose ODP key has been accepted."""
    made = make_install(odp, **values)
    drafts.note_key(made.pk, problem="")
    return Install.objects.get(pk=made.pk)


def make_audience(install: Install, slug: str = "gold", *, provisioned: bool = True) -> Audience:
    made = Audience.objects.create(
        install=install,
        segment_id=f"segment-{slug}",
        slug=slug,
        latest_slug=slug,
        odp_id=f"lytics_{slug}",
        provisioned_at=now() if provisioned else None,
    )
    Lane.objects.create(audience=made)
    return made


def make_delivered(install: Install, *identifiers: str, at: int = 1) -> Audience:
    """An audience that ODP has, with these members."""
    made = make_audience(install, provisioned=False)
    enter(made, *identifiers, at=at)
    drain_all(install)
    return Audience.objects.select_related("install").get(pk=made.pk)


def happen(audience: Audience, *happenings: Happening, forced: bool = False) -> None:
    """Events are accepted, as a webhook call would."""
    facts = [Fact("", "", identifier, Kind[what.upper()], occurred_ns) for identifier, what, occurred_ns in happenings]
    with transaction.atomic():
        ingest.append({audience.pk: facts}, received_at=now(), forced=forced)


def enter(audience: Audience, *identifiers: str, at: int = 1) -> None:
    happen(audience, *((identifier, "enter", at) for identifier in identifiers))


def give_up(odp: ThreadedSandbox, install: Install, *, applied_after: float) -> Delivery:
    """The next request is given up at a deadline of 0.3 s, and ODP applies it after this number of seconds.

    Other requests keep their deadline, which a busy machine needs.
    """
    odp.fault({"path": "/v3/profiles", "times": 1}, {"delay_seconds": applied_after})
    with override_settings(DELIVERY_DEADLINE_SECONDS=0.3):
        assert drain.turn(install.pk)
    given_up = Delivery.objects.latest("pk")
    assert given_up.outcome == Outcome.RETRY_LATER
    backoff_runs_out(install)
    return given_up


def a_log(audience: Audience, events: int) -> None:
    """A log of that many events, a few of them of Kim, all over it."""
    with connection.cursor() as cursor:
        if not Event.objects.exists():
            # A new file: the pages of earlier tests have free space, and their ranges are summarised already.
            cursor.execute("TRUNCATE audiences_event CASCADE")
        cursor.execute(
            "INSERT INTO audiences_event (audience_id, sequence, identifier, kind, occurred_ns, received_at, forced)"
            " SELECT %s, n, CASE WHEN n %% 90000 = 7 THEN 'kim' ELSE md5((n / 2)::text) END, 1, n, now(), false"
            " FROM generate_series(1, %s) AS n",
            [audience.pk, events],
        )
    Audience.objects.filter(pk=audience.pk).update(last_sequence=events)


def numbered(count: int, prefix: str = "u") -> list[str]:
    return [f"{prefix}{number:04}" for number in range(count)]


def drain_all(install: Install) -> int:
    """Turns until nothing is left to do now; how many there were."""
    for turns in range(2_000):
        if not drain.turn(install.pk):
            return turns
    raise AssertionError("it never comes to an end")


def waiting(install: Install) -> tuple[bool, bool]:
    """Whether an audience waits to be made, and one to be delivered."""
    work = claims.work(install.pk)
    assert work is not None
    return work.unprovisioned, work.ready > 0


# --- Time passes ---------------------------------------------------------------------------------------------


def lease_runs_out(*audiences: Audience) -> None:
    Lane.objects.filter(audience__in=audiences, lease_token__isnull=False).update(lease_expires_at=now())


def backoff_runs_out(install: Install) -> None:
    Install.objects.filter(pk=install.pk, backoff_until_at__isnull=False).update(backoff_until_at=now())


def making_runs_out(*audiences: Audience) -> None:
    Audience.objects.filter(pk__in=[audience.pk for audience in audiences], making_token__isnull=False).update(
        making_until_at=now()
    )


def hold_runs_out(install: Install) -> None:
    Audience.objects.filter(install=install, hold_failures__gt=0).update(hold_until_at=now())


def time_passes(seconds: float) -> None:
    """Simulate the passing of time: move the times of leases, backoffs, audience holds and checks into the past."""
    moments = {
        "install": ("brake_since_at", "brake_until_at"),
        "lane": ("lease_expires_at", "fault_since_at", "fault_until_at"),
        "audience": ("look_asked_at", "making_until_at", "hold_since_at", "hold_until_at"),
    }
    with connection.cursor() as cursor:
        for table, columns in moments.items():
            moved = ", ".join(f"{column} = {column} - make_interval(secs => %(by)s)" for column in columns)
            cursor.execute(f"UPDATE audiences_{table} SET {moved}", {"by": seconds})


# --- What the tables hold ------------------------------------------------------------------------------------


def lane_of(audience: Audience) -> Lane:
    return Lane.objects.get(pk=audience.pk)


def cursor_of(audience: Audience) -> int:
    return lane_of(audience).delivered_sequence


def ledger_of(audience: Audience) -> dict[str, tuple[bool, int, bool]]:
    """By identifier: whether a member, as of when, and whether ODP rejected it."""
    rows = Membership.objects.filter(audience=audience)
    return {row.identifier: (row.is_member, row.occurred_ns, row.rejected) for row in rows}


def runs_of(audience: Audience) -> list[tuple[int, int, int, int, str]]:
    """First and last number, sent, folded, outcome; oldest first."""
    rows = Run.objects.filter(audience=audience).order_by("pk")
    return [(row.first_sequence, row.last_sequence, row.sent, row.folded, row.outcome) for row in rows]


def deliveries() -> list[tuple[str, int | None, int]]:
    """Outcome, status, items; oldest first."""
    return list(Delivery.objects.order_by("pk").values_list("outcome", "status", "items"))


def parked() -> list[tuple[str, str, str]]:
    """Audience, identifier and resolution of every parked refusal, oldest first."""
    rows = Parked.objects.order_by("pk").values_list("audience__odp_id", "identifier", "resolution")
    return [(odp_id or "", identifier, resolution) for odp_id, identifier, resolution in rows]


def everything() -> dict[str, list[Any]]:
    """Every row that a delivery may change, for tests in which none may."""
    tables = ("lane", "run", "delivery", "parked", "membership", "install", "audience", "event")
    found = {}
    with connection.cursor() as cursor:
        for table in tables:
            cursor.execute(f"SELECT * FROM audiences_{table} AS t ORDER BY t::text")
            found[table] = cursor.fetchall()
    return found


def broken_truths() -> list[Any]:
    """The violations that the audit finds, also within an open test transaction."""
    if not connection.in_atomic_block:
        return list(audit.audit())
    return [(truth, *violation) for truth in audit.TRUTHS for violation in audit.violations(truth)]


def assert_all_is_well(*audiences: Audience) -> None:
    """Everything that was accepted has been delivered, folded or parked, and every truth holds."""
    assert broken_truths() == []
    for audience in audiences:
        lane = Lane.objects.select_related("audience").get(pk=audience.pk)
        assert (lane.delivered_sequence, lane.lease_token) == (lane.audience.last_sequence, None)
    assert not Run.objects.filter(closed_at=None).exists()
    assert not Delivery.objects.filter(closed_at=None).exists()


# --- What ODP saw --------------------------------------------------------------------------------------------


def writes(odp: ControlledSandbox, since: int = 0) -> list[list[Any]]:
    """The items of each write of memberships, in order of arrival."""
    import json

    paths = ("/v3/profiles", "/v3/lists/subscriptions", "/v3/events")
    seen = [request for request in odp.requests(since, bodies=True) if request["path"] in paths]
    return [json.loads(request["body"]) for request in seen if request["method"] == "POST"]


def claim(install: Install, **options: Any) -> leases.Lease:
    lease = claims.claim(install.pk, **options)
    assert lease is not None
    return lease


def block_all(lease: leases.Lease, reason: str) -> None:
    """Block all lanes of a lease."""
    holds.block(lease, dict.fromkeys(lease.audience_ids, reason))


def step_of(name: str) -> ModuleType:
    """The module of ``audiences/delivery`` that has the step ``name``."""
    (module,) = (
        module
        for module in (claims, reading, request_records, settling, holds)
        if name in vars(module) and vars(module)[name].__module__ == module.__name__
    )
    return module
