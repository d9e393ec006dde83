"""``python -m tests.soak``, which ``make soak`` calls. On loopback, in its own folder.

make soak                       two hours at 2,000 events/s
make soak MINUTES=3 RATE=200    a trial: shows that it works; its growth means nothing, and nothing is written
"""

import argparse
import os
import sys
from contextlib import suppress

from local.processes import AskedToStop, StackError
from local.stack import stand_alone
from lytics_sync import env
from tests.soak import page
from tests.soak.run import Options, run


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.soak", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--minutes", type=float, default=float(os.environ.get("MINUTES") or 120))
    add("--rate", type=int, default=int(os.environ.get("RATE") or 2_000), help="events per second")
    add("--audiences", type=int, default=int(os.environ.get("AUDIENCES") or 200))
    add("--customers", type=int, default=50_000, help="few enough for all memberships to exist before the judged part")
    add("--seed", type=int, default=int(os.environ.get("SEED") or 1))
    add("--every", type=float, default=10.0, help="seconds between two samples")
    options = parser.parse_args(arguments)
    if min(options.minutes, options.rate, options.audiences, options.customers, options.every) <= 0:
        parser.error("MINUTES, RATE, AUDIENCES, the customers and the seconds between samples are above 0")
    stand_alone()
    load = f"{options.rate:,} events/s over {options.audiences} audiences"
    say(f"{options.minutes:g} minutes at {load}, seed {options.seed}")
    try:
        report = run(Options(**vars(options), say=say))
    except AskedToStop:
        return 130
    except StackError as trouble:
        say(str(trouble))
        return 1
    say("\n" + "\n".join(page.lines(report)) + "\n")
    say("\n".join(page.findings(report)) or "Nothing grows, and nothing is missing.")
    if report.is_trial:
        say("This was a trial: the growth in so short a time means nothing, and nothing is written.")
    elif report.is_overloaded:
        say(f"The sender took {report.sent_minutes:.1f} minutes: this machine was too busy. Nothing is written.")
    else:
        page.write(report)
        say(f"Written: {page.PAGE.relative_to(env.PROJECT_DIR)}")
    return 0 if report.is_clean else 1


def say(text: str) -> None:
    with suppress(OSError):
        print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
