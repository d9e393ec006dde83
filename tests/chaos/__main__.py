"""``python -m tests.chaos``, which ``make chaos`` calls: a run by seed, and a verdict. On loopback, in its own folder.

make chaos                                      some minutes
make chaos EVENTS=1000000 KILLS=500 SEED=7      as long as it takes
make chaos TWIN=no_sweep                        a mutation of the service; has to fail
"""

import argparse
import os
import sys
from contextlib import suppress
from pathlib import Path
from random import Random

from local.processes import AskedToStop, StackError
from local.stack import stand_alone
from lytics_sync import env
from tests.chaos import schedule
from tests.chaos.faults import FAULTS
from tests.chaos.run import OBEDIENT, QUICK, USUAL, Options, Report, a_seed, run
from tests.chaos.stream import RETRY_SCALE
from tests.chaos.table import back_within, findings, hardware, lines, today
from tests.chaos.twins import TWINS

PAGE = env.PROJECT_DIR / "docs" / "chaos.md"
# The text above this heading is written by hand.
RESULT = "## The last big run\n"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.chaos", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--seed", type=int, default=_given("SEED", a_seed()))
    add("--events", type=int, default=_given("EVENTS", 60_000))
    add("--kills", type=int, default=_given("KILLS", 40), help="deaths, in a mix of all kinds")
    add("--others", type=int, default=_given("OTHERS", 1), help="how often each other fault strikes")
    add("--audiences", type=int, default=_given("AUDIENCES", 50))
    add("--gap", type=float, default=2.5, help="seconds between two faults, about")
    add("--faults", default="", help="these and no others, in this order: " + ", ".join(FAULTS))
    add("--quick", action="store_true", help="short deadlines and leases, and one worker less")
    add("--spare-workers", action="store_true", help="don't kill all workers at once at the end of the stream")
    add("--stuck", type=float, default=90, help="seconds without progress after which it is over")
    add(
        "--obedient", action="store_true", help="the settings and the pauses of a real sender: Retry-After as delivered"
    )
    add("--times", type=int, default=1, help="the faults of --faults so often, one round after the other")
    add("--within", type=float, default=0, help="seconds in which deliveries have to be back after each fault")
    add("--twin", default=os.environ.get("TWIN", ""), help=", ".join(TWINS))
    add("--write", action="store_true", help=f"put the table into {PAGE.relative_to(env.PROJECT_DIR)}")
    told = parser.parse_args(arguments)
    if told.twin not in ("", *TWINS):
        parser.error(f"TWIN is one of {', '.join(TWINS)}, not {told.twin!r}")
    dice = Random(f"{told.seed}/schedule")
    if told.faults:
        steps = schedule.timed(told.faults.split(",") * told.times, gap=told.gap, dice=dice)
    else:
        steps = schedule.drawn(kills=told.kills, others=told.others, gap=told.gap, dice=dice)
    options = Options(
        seed=told.seed,
        events=told.events,
        audiences=told.audiences,
        steps=steps,
        settings=QUICK if told.quick else OBEDIENT if told.obedient else USUAL,
        workers=2 if told.quick else 3,
        retry_scale=1.0 if told.obedient else RETRY_SCALE,
        twin=told.twin,
        spares_workers=told.spare_workers,
        stuck_seconds=told.stuck,
        say=say,
    )
    stand_alone()
    say(f"Seed {told.seed}: {told.events:,} events, {len(steps)} faults, about {schedule.seconds(steps) / 60:.0f} min")
    try:
        report = run(options)
    except AskedToStop:
        return 130
    except StackError as trouble:
        say(str(trouble))
        return 1
    if told.within:
        report.checks.append(back_within(report, seconds=told.within))
    say("\n" + "\n".join(lines(report)) + "\n")
    say("\n".join(findings(report)) or f"Nothing lost, nothing out of order. Seed {told.seed}.")
    if told.write and report.is_clean:
        _write(report)
    return 0 if report.is_clean else 1


def _given(name: str, default: int) -> int:
    """As make passes it on."""
    return int(os.environ.get(name) or default)


def _write(report: Report) -> None:
    options = report.options
    kept = PAGE.read_text(encoding="utf-8").partition(RESULT)[0]
    said = [
        RESULT,
        f"Seed {options.seed}, {today()}, {hardware()}. {options.audiences} audiences of four installs, one of them",
        "with a pace of 10 requests a second; three workers, the third with its clock a minute ahead all along.\n",
        *lines(report),
        "",
    ]
    Path(PAGE).write_text(kept + "\n".join(said), encoding="utf-8")


def say(text: str) -> None:
    with suppress(OSError):
        print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
