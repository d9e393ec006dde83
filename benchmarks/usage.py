"""Memory (PSS) and CPU seconds of processes and their descendants, from Linux' /proc."""

import os
import re
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")


def family(pid: int) -> list[int]:
    """A process and its descendants, by parent process: PostgreSQL's children have sessions of their own."""
    members = [pid]
    for member in members:
        try:
            tasks = list(Path(f"/proc/{member}/task").iterdir())
            members += [int(child) for task in tasks for child in (task / "children").read_text("ascii").split()]
        except OSError:  # the process has ended
            continue
    return members


def cpu_seconds(pid: int) -> float:
    """CPU seconds so far, including those of descendants that have ended."""
    total = 0
    for member in family(pid):
        try:
            fields = Path(f"/proc/{member}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        except OSError:
            continue
        total += sum(map(int, fields[11:15]))
    return total / _TICKS


def pss_mib(pid: int) -> float:
    """Proportional set size in MiB: shared memory is divided among its processes."""
    total = 0
    for member in family(pid):
        try:
            said = Path(f"/proc/{member}/smaps_rollup").read_text(encoding="ascii")
        except OSError:
            continue
        if found := re.search(r"^Pss:\s+(\d+) kB", said, re.MULTILINE):
            total += int(found[1])
    return total / 1024


def largest_rss_mib(pid: int) -> float:
    """The resident set size in MiB of the largest process among a process and its descendants."""
    return max(map(_rss_mib, family(pid)), default=0.0)


def _rss_mib(pid: int) -> float:
    try:
        said = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    except OSError:
        return 0.0
    found = re.search(r"^VmRSS:\s+(\d+) kB", said, re.MULTILINE)
    return int(found[1]) / 1024 if found else 0.0
