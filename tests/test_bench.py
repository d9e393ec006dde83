"""The benchmarks on a very small scale: they run and report; no speed is asserted."""

import io
import json
import os
import re
import signal
import statistics
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings

from benchmarks import __main__ as main
from benchmarks import grid, results
from benchmarks.double import Double, most_in_a_second
from benchmarks.house import House
from benchmarks.load import PLACE, Load, batches
from benchmarks.results import Against, Line, Results
from benchmarks.scenarios import SCENARIOS, Scenario, estimate, lines
from benchmarks.sender import _read_answer, body
from local.processes import STOP_SIGNALS, AskedToStop, Fleet, free_port, listens
from lytics.times import nanoseconds
from tests.servers import migrated
from tests.threads import PATIENCE

OWN = ("DATABASE_URL", "REDIS_URL", "DATA_DIR", "SECRET_KEY", "MAKELEVEL", "SCALE", "ROUNDS", "ONLY", "WRITE")


def run(*words: str) -> "subprocess.CompletedProcess[str]":
    """In a separate process with separate servers."""
    environment = {name: value for name, value in os.environ.items() if name not in OWN} | {"CLUSTER": str(migrated())}
    command = [sys.executable, "-m", *words]
    return subprocess.run(command, env=environment, cwd=settings.BASE_DIR, capture_output=True, text=True, check=False)


def test_a_smoke_run_measures_in_and_out_and_writes_nothing() -> None:
    before = results.PAGE.read_text(encoding="utf-8")
    ran = run("benchmarks", "--scale", "0.002", "--only", "ingest,drain")
    assert ran.returncode == 0, ran.stdout[-3000:] + ran.stderr[-3000:]
    for line in ("limit: one bare statement a call", "ingest", "drain"):
        assert re.search(rf"\| {line} \| [\d.,]+", ran.stdout), ran.stdout
    assert "This was no full run" in ran.stdout
    assert results.PAGE.read_text(encoding="utf-8") == before


def test_a_scenario_that_is_not_there_is_one_sentence() -> None:
    ran = run("benchmarks", "--only", "everything")
    assert ran.returncode == 2
    assert "ONLY any of ingest, acknowledged" in ran.stderr


def test_a_signal_ends_the_wait_of_any_fleet(tmp_path: Path) -> None:
    """A scenario waits in the fleet of the servers, and starts its processes in others."""
    house = House(tmp_path, print)
    house.servers = Fleet(folder=tmp_path, env={}, tell=print)
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    try:
        house.listen_to_signals()
        house.fleets = [house.servers]
        with house.running():
            signal.raise_signal(signal.SIGTERM)
            with pytest.raises(AskedToStop):
                house.rest(PATIENCE)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_the_double_counts_items_and_knows_the_calls_they_came_by() -> None:
    port = free_port()
    words = [sys.executable, "-m", "benchmarks.double", "--port", str(port), "--delay", "0"]
    with subprocess.Popen(words, cwd=settings.BASE_DIR) as process:
        try:
            while not listens(port):
                assert process.poll() is None
            double = Double(port)
            import requests

            items = [{"attributes": {"fs_user_id": f"{call:09d}rest"}} for call in (7, 7, 8)]
            assert requests.post(f"{double.url}/v3/profiles", json=items, timeout=5).status_code == 202
            seen = double.seen(with_calls=True)
            assert (seen["requests"], seen["items"]) == (1, 3)
            assert [(stamp, count) for stamp, _, count in seen["by_call"]] == [(7, 2), (8, 1)]
            double.forget()
            assert double.seen()["items"] == 0
        finally:
            process.kill()


ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
CHUNKED = ANSWER + b'Transfer-Encoding: chunked\r\n\r\n10\r\n{"received":300}\r\n0\r\n\r\n'
COUNTED = ANSWER + b'Content-Length: 16\r\n\r\n{"received":300}'


class Pieces(io.RawIOBase):
    """What a socket gives when it gives few bytes at a time."""

    def __init__(self, sent: bytes, *, size: int) -> None:
        self.sent, self.size = sent, size

    def readable(self) -> bool:
        return True

    def readinto(self, room: Any) -> int:
        some, self.sent = self.sent[: self.size], self.sent[self.size :]
        room[: len(some)] = some
        return len(some)


@pytest.mark.parametrize("answer", [CHUNKED, COUNTED])
@pytest.mark.parametrize("size", [1, 7, len(CHUNKED) - 10, 65536])
def test_a_sender_reads_each_answer_to_its_end(answer: bytes, size: int) -> None:
    answers = io.BufferedReader(Pieces(answer * 2, size=size))
    _read_answer(answers)
    _read_answer(answers)
    assert answers.read() == b""


def test_a_failing_sender_shows_the_response() -> None:
    refused = CHUNKED.replace(b"200 OK", b"503 Busy").replace(b"received", b"come_bak")
    with pytest.raises(ConnectionError, match=r"503 Busy.*come_bak"):
        _read_answer(io.BytesIO(refused))
    with pytest.raises(ConnectionError, match="hung up"):
        _read_answer(io.BytesIO(CHUNKED[:-3]))


def test_no_time_is_sent_twice() -> None:
    """Otherwise a cache of parsed times would make the benchmark look fast."""
    [first, second, *_] = batches(Load(calls=2), seed=1)
    sent = (body(first) + body(second)).replace(PLACE, "000000001") + body(first).replace(PLACE, "000000041")
    times = re.findall(r'"(?:enter|exit)":"([^"]+)"', sent)
    assert len(set(times[:300])) == 300
    assert not set(times[:300]) & set(times[600:])
    # What the limit stores of the same event is the same moment.
    assert nanoseconds(times[0]) == int(first[0].occurred_ns.replace(PLACE, "000000001"))


def test_the_most_in_any_second_is_found_wherever_that_second_begins() -> None:
    assert most_in_a_second([0.0, 0.9, 1.0, 1.1, 1.85, 3.0]) == 4
    assert most_in_a_second([]) == 0


def test_a_load_is_passed_to_another_process_completely() -> None:
    from benchmarks.load import load_of, parser

    load = Load(calls=7, rate=2_000, first_audience=3)
    assert load_of(parser(None).parse_args(load.words())) == load


def test_only_a_full_size_is_kept() -> None:
    ran = run("benchmarks", "--only", "ingest", "--scale", "0.5", "--write")
    assert ran.returncode == 2
    assert "WRITE=1 keeps what was measured at SCALE=1" in ran.stderr


# --- telling --------------------------------------------------------------------------------------------------

LINES = {
    "ours": Line("ours", "a race", "events/s", against=(Against("theirs", 0.9),), bar=40),
    "theirs": Line("theirs", "their race", "events/s"),
}


def results_of(**values: Sequence[float]) -> Results:
    """As a run of the scenarios to which these lines belong has them."""
    ran = {LINES[name].scenario for name in values}
    found = Results({name: line for name, line in LINES.items() if line.scenario in ran})
    for name, measured in values.items():
        for value in measured:
            found.record(name, value)
    return found


def a_race() -> Results:
    return results_of(ours=(50, 30, 66), theirs=(100, 50, 100))


def test_a_ratio_is_taken_round_by_round() -> None:
    assert statistics.median(a_race().ratios()["ours : theirs"]) == 0.6


def test_only_a_missed_bar_is_marked() -> None:
    said = "\n".join(results.table(a_race()))
    assert "0.6 of theirs (bar ≥ 0.9, **missed**)" in said
    assert "| events/s | ≥ 40 |" in said
    assert "| events/s | ≥ 40, **missed** |" in "\n".join(results.table(results_of(ours=(39,), theirs=(30,))))


@pytest.fixture
def docs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A page to write to, and no ratios yet."""
    monkeypatch.setattr(results, "PAGE", tmp_path / "page.md")
    monkeypatch.setattr(results, "KEPT", tmp_path / "kept.json")
    results.PAGE.write_text(f"By hand.\n\n{results.RESULT}\nAn old table.\n", encoding="utf-8")
    return tmp_path


def write(found: Results, *, day: int = 1, quick: Results | None = None) -> str:
    """The page after it."""
    at, ratios = datetime(2026, 3, day, 9, 15, tzinfo=UTC), quick.ratios() if quick else None
    results.write(found, lines=LINES, at=at, rounds=3, servers={"PostgreSQL": "18.4"}, quick=ratios)
    return results.PAGE.read_text(encoding="utf-8")


@pytest.mark.usefixtures("docs")
def test_a_full_run_keeps_handwritten_text() -> None:
    said = write(a_race())
    assert said.startswith("By hand.\n")
    assert "| a race (2026-03-01 09:15 UTC, 3 rounds) | ours | 50 |" in said
    assert "An old table" not in said


@pytest.mark.usefixtures("docs")
def test_a_partial_run_replaces_only_its_own_results() -> None:
    found = a_race()
    found.note("a race", "It rained.")
    write(found, quick=a_race())
    said = write(results_of(ours=(90,)), day=2)
    assert "| a race (2026-03-02 09:15 UTC, 3 rounds) | ours | 90 |" in said
    assert "| their race (2026-03-01 09:15 UTC, 3 rounds) | theirs | 100 |" in said
    assert "It rained" not in said
    # Of two days, on which the machine may have been two machines.
    assert "theirs: of another run" in said
    assert results.moved(a_race())[-1] == "None of 1 ratios has moved."
    assert "0.9 of theirs" in write(results_of(ours=(90,), theirs=(100,)), day=3)


@pytest.mark.usefixtures("docs")
def test_a_failed_scenario_replaces_its_old_values_with_the_failure() -> None:
    write(a_race())
    failed = Results({"ours": LINES["ours"]})
    failed.fail("a race", "the road is closed")
    said = write(failed, day=2)
    assert "- Failed: the road is closed" in said
    assert "| ours |" not in said
    assert "| theirs | 100 |" in said


@pytest.mark.usefixtures("docs")
def test_results_of_removed_measurements_are_deleted(monkeypatch: pytest.MonkeyPatch) -> None:
    write(a_race(), quick=a_race())
    monkeypatch.delitem(LINES, "theirs")
    assert "their" not in write(results_of(ours=(50,))).replace("theirs: not measured", "")
    assert json.loads(results.KEPT.read_text(encoding="utf-8"))["measured"].keys() == {"a race"}


def test_each_ratio_is_compared_with_the_stored_one_and_changed_ones_are_named(docs: Path) -> None:
    assert "nothing to compare with" in results.moved(a_race())[-1]
    kept = {"ours : theirs": [0.85, 0.9, 0.95], "ours : somebody": [1, 1, 1]}
    (docs / "kept.json").write_text(json.dumps({"quick": kept}), encoding="utf-8")
    assert results.moved(a_race()) == [
        "ratio              now     kept  spread of the kept one",
        "ours : theirs      0.6      0.9  0.85 – 0.95   moved down",
        "",
        "Not measured this time: ours : somebody.",
        "1 of 1 ratios moved, which a busy machine may do too: ours : theirs.",
    ]


@pytest.mark.usefixtures("docs")
@pytest.mark.parametrize(("keep", "rounds"), [(True, 2), (False, 1)])
def test_a_run_writes_on_request_and_repeats_the_ratios_of_bench_quick(
    keep: bool, rounds: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    measured: list[tuple[list[str], float, int]] = []

    def measure(_: object, chosen: Sequence[Scenario], *, scale: float, rounds: int) -> Results:
        measured.append(([one.name for one in chosen], scale, rounds))
        found = Results(lines(chosen))
        for name in found.lines:
            found.record(name, 100)
        return found

    monkeypatch.setattr(main, "_measure", measure)
    monkeypatch.setattr(main, "_servers", lambda _: {"PostgreSQL": "18.4"})
    chosen = [one for one in SCENARIOS if one.name in ("drain", "drain_without_order", "hot")]
    house = House(results.PAGE.parent, print)
    assert main._run(house, chosen, scale=1, rounds=rounds, keep=keep) == 0
    printed = capsys.readouterr().out
    assert "Scale 1, rounds: " in printed
    again = [(["drain", "drain_without_order"], main.QUICK_SCALE, main.FULL_ROUNDS)]
    assert measured == [(["drain", "drain_without_order", "hot"], 1, rounds), *(again if keep else [])]
    assert results.KEPT.exists() is keep
    if keep:
        assert "drain of one audience | 100" in results.PAGE.read_text(encoding="utf-8")
        assert json.loads(results.KEPT.read_text(encoding="utf-8"))["quick"] == {
            "drain : drain with order off": [1, 1, 1]
        }


def test_a_full_run_is_estimated_at_about_an_hour() -> None:
    quick = [one for one in SCENARIOS if one.quick]
    full = estimate(SCENARIOS, scale=1, rounds=main.FULL_ROUNDS)
    again = estimate(quick, scale=main.QUICK_SCALE, rounds=main.FULL_ROUNDS)
    assert 40 < (full + again) / 60 < 75
    assert estimate(quick, scale=main.QUICK_SCALE, rounds=1) < 120


def test_the_page_has_the_mark_below_which_a_full_run_writes() -> None:
    assert results.PAGE.read_text(encoding="utf-8").count(results.RESULT) == 1


def test_the_page_states_the_bar_of_each_scenario() -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", results.PAGE.read_text(encoding="utf-8"), re.MULTILINE))
    assert list(rows) == [one.name for one in SCENARIOS]
    for one in SCENARIOS:
        bars = [bar for line in one.lines for bar in (line.bar, *(against.bar for against in line.against))]
        assert [
            bar for bar in bars if bar is not None and not re.search(rf"(?<![\d.,]){bar:,g}\b", rows[one.name])
        ] == []


def test_workers_without_order_can_still_be_made_from_the_bridge() -> None:
    """They replace statements of ``lanes`` by their text, and say so when that has changed."""
    command = [sys.executable, "-c", "import benchmarks.unordered"]
    ran = subprocess.run(command, cwd=settings.BASE_DIR, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr[-2000:]


def test_the_picture_of_the_grid_has_two_bars_for_each_measured_shape(tmp_path: Path) -> None:
    found = Results(lines())
    for shape, limit, stored in ((grid.TEN, 100_000, 60_000), (grid.MANY, 50_000, 40_000)):
        found.record(shape.limit, limit)
        found.record(shape.stored, stored)
    grid.draw(found, to=tmp_path / "grid.svg")
    picture = (tmp_path / "grid.svg").read_text(encoding="utf-8")
    assert re.findall(r">([\d,]+)</text>", picture) == ["100,000", "60,000", "50,000", "40,000"]
    widths = [int(width) for width in re.findall(rf'x="{grid.LEFT}" y="\d+" width="(\d+)"', picture)]
    assert widths == [grid.WIDTH, grid.WIDTH * 6 // 10, grid.WIDTH // 2, grid.WIDTH * 4 // 10]
    assert picture.count("300 over 200<") == 1
    grid.draw(Results(lines()), to=tmp_path / "none.svg")
    assert not (tmp_path / "none.svg").exists()


@pytest.mark.parametrize("page", ["README.md", "docs/scaling.md"])
def test_the_figures_of_a_page_are_the_measured_ones(page: str) -> None:
    kept = json.loads((settings.BASE_DIR / "docs/benchmarks.json").read_text(encoding="utf-8"))["measured"]
    measured = {
        name: statistics.median(values)
        for scenario in kept.values()
        for name, values in scenario["values"].items()
        if name in ("ingest", "drain")
    }
    text = " ".join((settings.BASE_DIR / page).read_text(encoding="utf-8").split())
    said = re.search(r"Two (?:CPU )?cores that do everything receive ([\d,]+) events/s .*? deliver ([\d,]+)/s", text)
    assert said
    figures = [int(figure.replace(",", "")) for figure in said.groups()]
    assert figures == pytest.approx([measured["ingest"], measured["drain"]], rel=0.1)
