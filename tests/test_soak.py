"""The soak on a small scale, and the rule that judges its curves."""

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from xml.etree import ElementTree

import pytest
from django.conf import settings

from tests.servers import migrated
from tests.soak import page
from tests.soak.curves import Curve, curves, judge
from tests.soak.run import Options, Report
from tests.soak.samples import OLD_PARTS, Sample, Table


def a_curve(value: Callable[[float], float], *, floor: float = 0, is_judged: bool = True) -> Curve:
    """One point every ten seconds of two hours."""
    points = [(nth / 6, value(nth / 6)) for nth in range(720)]
    return Curve(picture="memory", name="web", unit="MiB", points=points, floor=floor, is_judged=is_judged)


@pytest.mark.parametrize(
    ("value", "is_flat"),
    [
        (lambda minute: 100, True),
        (lambda minute: 100 + minute / 10, True),  # 9 MiB in 90 minutes
        (lambda minute: 100 + minute / 4, False),  # 22 MiB
        (lambda minute: min(minute, 30), True),  # grows only before the judged part
        (lambda minute: 200 - minute, True),  # falls
        (lambda minute: 10_000 if 48 < minute < 49 else 100, True),  # the seconds of a restart
        (lambda minute: 100 + minute % 3, True),  # a saw tooth, as of autovacuum
        (lambda minute: 50 * (minute > 75) + 100, False),  # a step that stays
    ],
)
def test_a_curve_is_flat_unless_it_rises_over_the_judged_part(value: Callable[[float], float], is_flat: bool) -> None:
    assert judge(a_curve(value), minutes=120).is_flat is is_flat


def test_growth_below_the_resolution_of_a_curve_and_curves_that_are_only_drawn_are_flat() -> None:
    assert not judge(a_curve(lambda minute: minute / 40), minutes=120).is_flat
    assert judge(a_curve(lambda minute: minute / 40, floor=8), minutes=120).is_flat
    assert judge(a_curve(lambda minute: minute, is_judged=False), minutes=120).is_flat


def test_a_curve_without_points_in_the_judged_part_is_not_called_flat() -> None:
    curve = Curve(picture="delay", name="p99", unit="ms", points=[(1, 5.0), (2, 5.0)], floor=100)
    assert not judge(curve, minutes=120).is_flat


def test_memory_is_not_judged_for_a_quarter_of_the_run_after_a_restart() -> None:
    def fills_caches(minute: float) -> float:
        return 100 + min(30, minute - 60 if minute >= 60 else minute)

    def leaks(minute: float) -> float:
        return 100 + minute % 60

    assert judge(a_curve(fills_caches), minutes=120).mean < 130
    filled = judge(replace(a_curve(fills_caches), restarts=[60]), minutes=120)
    assert (filled.mean, filled.growth) == (130, 0)
    assert not judge(replace(a_curve(leaks), restarts=[70]), minutes=120).is_flat


def a_sample(seconds: float, *, events: int, old_events: int, index_bytes_per_event: int) -> Sample:
    """A sample of a run with an old log of 10,000 events, of which ``old_events`` are left."""
    return Sample(
        seconds=seconds,
        at=datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=seconds),
        wal_bytes=0,
        events=10_000 + events,
        backlog=0,
        connections=0,
        tables={
            "audiences_event": Table(100 * events, index_bytes_per_event * events, 0),
            OLD_PARTS: Table(100 * old_events, 10 * old_events, 0),
            "audiences_person": Table(7, 7, 0),
        },
        memory={"web": 100},
        logs={},
        p50=None,
        p99=None,
    )


@pytest.mark.parametrize(("first", "last", "is_flat"), [(50, 50, True), (50, 60, True), (50, 80, False)])
def test_the_log_is_judged_by_the_bytes_of_each_event_that_was_sent(first: int, last: int, is_flat: bool) -> None:
    samples = []
    for minute in range(121):
        each = first + round((last - first) * minute / 120)
        left = 10_000 if minute < 60 else 0
        samples.append(a_sample(minute * 60, events=1_000 * minute, old_events=left, index_bytes_per_event=each))
    found = {curve.name: curve for curve in curves(samples, restarts=[])}

    indexes = judge(found["indexes of the log per event"], minutes=120)
    assert indexes.is_flat is is_flat
    assert indexes.mean == pytest.approx(first + (last - first) * 0.625, abs=1)
    # Neither the other tables nor the old parts are counted as the log's; the whole log has all of the latter.
    assert judge(found["tables of the log per event"], minutes=120).mean == 100
    assert {value for _, value in found["tables, without the log"].points} == {7 / 2**20}
    assert found["the whole log"].points[59][1] * 2**20 == pytest.approx(
        59_000 * (100 + samples[59].tables["audiences_event"].index_bytes / 59_000) + 10_000 * 110
    )


def test_a_small_run_compares_all_memberships_and_changes_no_page() -> None:
    before = page.PAGE.read_text(encoding="utf-8")
    own = ("DATABASE_URL", "REDIS_URL", "DATA_DIR", "SECRET_KEY", "MAKELEVEL", "MINUTES", "RATE", "AUDIENCES", "SEED")
    words = ("--minutes", "0.5", "--rate", "60", "--audiences", "4", "--customers", "200", "--every", "1")
    ran = subprocess.run(
        [sys.executable, "-m", "tests.soak", *words],
        env={**{name: value for name, value in os.environ.items() if name not in own}, "CLUSTER": str(migrated())},
        cwd=settings.BASE_DIR,
        capture_output=True,
        text=True,
        check=False,
    )
    said = ran.stdout[-6000:] + ran.stderr[-3000:]
    assert "memberships.\nAll were equal.\n" in ran.stdout, said
    assert ran.returncode == 0, said
    assert "rolling deploy" in ran.stdout, said
    assert "PostgreSQL restarted" in ran.stdout, said
    assert "Of 1,800 old events, 1,800 were pruned." in ran.stdout, said
    # Each curve has points.
    assert "too few samples" not in ran.stdout, said
    assert page.PAGE.read_text(encoding="utf-8") == before


def test_a_picture_has_a_line_for_each_curve_and_a_mark_for_each_event(tmp_path: Path) -> None:
    drawn = page.draw(
        [a_curve(lambda minute: minute), a_curve(lambda minute: 3)],
        minutes=120,
        marks=[(30, "judged from here"), (48, "rolling <deploy>")],
    )
    tree = ElementTree.fromstring(drawn)  # noqa: S314 — our own
    lines = [one for one in tree.iter("{http://www.w3.org/2000/svg}polyline") if len(one.attrib["points"].split()) > 2]
    assert len(lines) == 2
    assert "rolling <deploy>" in [one.text for one in tree.iter("{http://www.w3.org/2000/svg}text")]


@pytest.mark.parametrize(
    ("minutes", "sent_minutes", "is_overloaded"), [(120, 123.8, False), (120, 126.5, True), (0.5, 0.9, False)]
)
def test_a_machine_that_is_too_busy_for_the_rate_is_told(
    minutes: float, sent_minutes: float, is_overloaded: bool
) -> None:
    options = Options(minutes=minutes, rate=1, audiences=1, customers=1, seed=1)
    report = Report(
        options=options,
        sent_minutes=sent_minutes,
        samples=[],
        verdicts=[],
        happened=[],
        audits=(0, 0, 0),
        probes=(0, 0),
        old_events=(0, 0),
        broken=[],
        memberships=0,
    )
    assert report.is_overloaded is is_overloaded
