"""The chaos runner on a small scale: a dozen faults and the judge, and mutations that the judge must detect."""

import os
import re
import subprocess
import sys

import pytest
from django.conf import settings

from tests.servers import migrated

# One of each important kind, so spaced that nothing has to be started twice within seconds.
FAULTS = (
    "worker,web,odp_500_applied,zombie,broker,backend,odp_late,web_worker,broker_frozen,beat,odp_refuses,postgres"  #
)
SEED = "1"


def chaos(*flags: str) -> "subprocess.CompletedProcess[str]":
    """In a separate process with separate servers, because it kills them."""
    own = ("DATABASE_URL", "REDIS_URL", "DATA_DIR", "SECRET_KEY", "MAKELEVEL", "EVENTS", "KILLS", "SEED", "TWIN")
    return subprocess.run(
        [sys.executable, "-m", "tests.chaos", "--quick", "--seed", SEED, *flags],
        env={**{name: value for name, value in os.environ.items() if name not in own}, "CLUSTER": str(migrated())},
        cwd=settings.BASE_DIR,
        capture_output=True,
        text=True,
        check=False,
    )


def test_nothing_is_lost_or_reordered_whichever_process_is_killed() -> None:
    run = chaos("--events", "12000", "--audiences", "5", "--gap", "0.8", "--faults", FAULTS)
    assert run.returncode == 0, run.stdout[-6000:] + run.stderr[-3000:]
    assert "Nothing lost, nothing out of order." in run.stdout


@pytest.mark.parametrize(
    ("twin", "promise", "faults", "flags"),
    [
        # No process has to be started again: the order of the stream is enough.
        ("fold_by_arrival", "memberships at ODP are the fold of what was accepted", "emptied", ("--spare-workers",)),
        # Or, on a busy machine, what comes of that first.
        (
            "claim_ignoring_leases",
            "(no lane was in two requests at once|no customer went back to an older state)",
            "odp_slow",
            # It sends the same customers again and again, so nothing that comes later proves more.
            ("--events", "2000", "--stuck", "3"),
        ),
    ],
)
def test_the_judge_catches_a_bridge_that_breaks_a_promise(
    twin: str, promise: str, faults: str, flags: tuple[str, ...]
) -> None:
    small = ("--events", "1000", "--audiences", "2", "--gap", "0.5", "--stuck", "6")
    run = chaos(*small, "--faults", faults, "--twin", twin, *flags)
    assert run.returncode == 1, run.stdout[-6000:] + run.stderr[-3000:]
    assert re.search(f"BROKEN: {promise}", run.stdout)
