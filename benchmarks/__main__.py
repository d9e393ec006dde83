"""``python -m benchmarks``, which ``make bench`` runs: on loopback, in a temporary folder, with durable settings.

make bench                            over an hour on two cores; writes docs/benchmarks.md
make bench SCALE=0.01                 a smoke run: shows that it works; its figures mean nothing
make bench ONLY=ingest,drain          these scenarios only; prints, writes nothing
make bench ONLY=ingest,drain WRITE=1  these scenarios as in a full run; replaces their figures in the page
make bench ONLY=audit MEMBERS=20000   an audit with live traffic beside it; 1,000,000 members need a quiet hour
make bench-quick                      the ratios that code changes move, compared with the kept ones
"""

import argparse
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from benchmarks import audit, grid, many_installs, pages, results, saturated, standing  # noqa: F401 — importing them registers their scenarios
from benchmarks.house import House
from benchmarks.results import Results
from benchmarks.scenarios import SCENARIOS, Bench, Scenario, estimate, lines, measure
from local.processes import AskedToStop, StackError
from local.stack import stand_alone

QUICK_SCALE, QUICK_ROUNDS = 0.1, 1
FULL_ROUNDS = 3


def main(arguments: list[str] | None = None) -> int:
    names = [scenario.name for scenario in SCENARIOS]
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--scale", type=float, default=float(os.environ.get("SCALE") or 1), help="1 is a full run")
    add("--rounds", type=int, default=int(os.environ.get("ROUNDS") or 0), help=f"{FULL_ROUNDS} where it writes, else 1")
    add("--only", default=os.environ.get("ONLY", ""), help=", ".join(names))
    add("--write", action="store_true", default=os.environ.get("WRITE", "0") not in ("", "0"), help="keep this piece")
    add("--quick", action="store_true", help="compare ratios with the kept ones; never fails for what was measured")
    told = parser.parse_args(arguments)
    only = told.only.split(",") if told.only else []
    if told.scale <= 0 or told.rounds < 0 or set(only) - set(names):
        parser.error(f"SCALE is a number above 0, ROUNDS a whole one, ONLY any of {', '.join(names)}")
    if told.write and told.scale != 1:
        parser.error("WRITE=1 keeps what was measured at SCALE=1, and nothing else")
    stand_alone()
    folder = Path(tempfile.mkdtemp(prefix="lytics-sync-bench-"))
    try:
        with House(folder, say).open() as house:
            if told.quick:
                return _quick(house)
            chosen = [scenario for scenario in SCENARIOS if not only or scenario.name in only]
            keep = told.write or (told.scale == 1 and not only)
            return _run(house, chosen, scale=told.scale, rounds=told.rounds or (FULL_ROUNDS if keep else 1), keep=keep)
    except AskedToStop:
        return 130
    except StackError as trouble:
        say(str(trouble))
        return 1
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _run(house: House, chosen: Sequence[Scenario], *, scale: float, rounds: int, keep: bool) -> int:
    quick = [one for one in chosen if one.quick] if keep else []
    takes = estimate(chosen, scale=scale, rounds=rounds) + estimate(quick, scale=QUICK_SCALE, rounds=FULL_ROUNDS)
    say(f"{results.hardware()}\n{results.versions(_servers(house))}")
    say(f"Scale {scale:g}, rounds: {rounds}; about {_time(takes)} on two cores\n")
    found = _measure(house, chosen, scale=scale, rounds=rounds)
    say("\n".join(["", *results.table(found), "", *found.all_notes()]))
    if keep:
        # Write before measuring the quick ratios, so that a failure there doesn't lose the results of an hour.
        at, servers = datetime.now(UTC), _servers(house)
        write = partial(results.write, found, lines=lines(), at=at, rounds=rounds, servers=servers)
        write()
        grid.draw(found)
        if quick:
            say("\nOnce more at the scale of bench-quick, for its ratios\n")
            write(quick=_measure(house, quick, scale=QUICK_SCALE, rounds=FULL_ROUNDS).ratios())
        say(f"\nWritten: {results.PAGE.name} and {results.KEPT.name} in docs.")
    elif scale < 1:
        say("\nThis was no full run: sizes are too small for numbers to be believed, and nothing is written.")
    return _ended(house, found)


def _ended(house: House, found: Results) -> int:
    """The exit code: 1 if a scenario didn't finish. A slow result is no failure."""
    if not found.failed:
        return 0
    logs = Path(tempfile.mkdtemp(prefix="lytics-sync-bench-log-"))
    shutil.copytree(house.folder / "log", logs, dirs_exist_ok=True)
    say(f"The logs of all processes are in {logs}.")
    return 1


def _quick(house: House) -> int:
    chosen = [scenario for scenario in SCENARIOS if scenario.quick]
    say(f"About {_time(estimate(chosen, scale=QUICK_SCALE, rounds=QUICK_ROUNDS))} on two cores\n")
    found = _measure(house, chosen, scale=QUICK_SCALE, rounds=QUICK_ROUNDS)
    say("\n".join([*found.all_notes(), "", *results.moved(found)]))
    return _ended(house, found)


def _measure(house: House, chosen: Sequence[Scenario], *, scale: float, rounds: int) -> Results:
    bench = Bench(house, Results(lines(chosen)), scale, rounds)
    began = time.monotonic()
    measure(bench, chosen, say)
    say(f"{_time(time.monotonic() - began)} in all")
    return bench.results


def _time(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} minutes"


def _servers(house: House) -> dict[str, str]:
    said: str = house.sql("SHOW server_version")[0][0]
    return {"PostgreSQL": said.split()[0]}


def say(text: str) -> None:
    with suppress(OSError):
        print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
