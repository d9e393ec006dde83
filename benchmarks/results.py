"""Medians, spreads and ratios of a run, and changes since the kept run; for the terminal and docs/benchmarks.md."""

import json
import os
import platform
import statistics
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from lytics_sync import env

PAGE = env.PROJECT_DIR / "docs" / "benchmarks.md"
KEPT = env.PROJECT_DIR / "docs" / "benchmarks.json"
# The generated part of the page starts here. The part above is written by hand.
RESULT = "## Measured\n"
# A ratio has moved if it differs from the kept one by more than this share and is outside the spread of the kept one.
MOVED = 0.15
PACKAGES = ("Django", "djangorestframework", "celery", "gunicorn", "psycopg", "redis", "requests", "msgspec")


@dataclass(frozen=True)
class Against:
    """A line of the same run to compare with, and the floor of the ratio, if there is one.

    ``more`` means that a higher ratio is better.
    """

    line: str
    bar: float | None = None
    more: bool = True


@dataclass(frozen=True)
class Line:
    """One measured quantity. ``bar`` is an absolute floor, in contrast to the ratios of ``against``."""

    name: str
    scenario: str
    unit: str
    more: bool = True
    against: tuple[Against, ...] = ()
    bar: float | None = None


@dataclass
class Results:
    """The values of each line in the order of measurement, and notes on what couldn't be measured.

    ``runs`` has the date of each scenario where results of several runs are combined. Otherwise it is empty.
    """

    lines: Mapping[str, Line]
    values: dict[str, list[float]] = field(default_factory=dict)
    notes: dict[str, list[str]] = field(default_factory=dict)
    runs: dict[str, str] = field(default_factory=dict)
    failed: bool = False

    @property
    def scenarios(self) -> list[str]:
        return list(dict.fromkeys(line.scenario for line in self.lines.values()))

    def record(self, name: str, value: float) -> None:
        assert name in self.lines, f"{name} is in no scenario"
        self.values.setdefault(name, []).append(value)

    def note(self, scenario: str, words: str) -> None:
        said = self.notes.setdefault(scenario, [])
        if words not in said:
            said.append(words)

    def fail(self, scenario: str, words: str) -> None:
        self.failed = True
        self.note(scenario, f"Failed: {words}")

    def all_notes(self) -> list[str]:
        return [words for scenario in self.scenarios for words in self.notes.get(scenario, [])]

    def comparable(self, line: Line, other: str) -> bool:
        return other in self.lines and self.runs.get(line.scenario) == self.runs.get(self.lines[other].scenario)

    def ratios(self) -> dict[str, list[float]]:
        """The ratios of each round, because a change of the machine's speed affects both sides of a round alike."""
        found = {}
        for line in self.lines.values():
            for against in line.against:
                if not self.comparable(line, against.line):
                    continue
                ours, theirs = self.values.get(line.name, []), self.values.get(against.line, [])
                if len(ours) != len(theirs):
                    ours, theirs = [statistics.median(ours or [0])], [statistics.median(theirs or [0])]
                pairs = [mine / other for mine, other in zip(ours, theirs, strict=True) if other]
                if pairs:
                    found[f"{line.name} : {against.line}"] = pairs
        return found


# --- Tables --------------------------------------------------------------------------------------------------


def table(results: Results) -> Iterator[str]:
    """The lines of a Markdown table."""
    ratios, shown = results.ratios(), ""
    yield "| scenario | what | median | spread | unit | bar | ratio |"
    yield "|---|---|--:|--:|---|--:|---|"
    for line in results.lines.values():
        values = results.values.get(line.name)
        if not values:
            continue
        title, shown = ("" if line.scenario == shown else _titled(results, line.scenario)), line.scenario
        median, spread = statistics.median(values), f"{_number(min(values))} – {_number(max(values))}"
        told = "; ".join(_told(results, line, against, ratios) for against in line.against)
        bar = "" if line.bar is None else _bar(median, line.bar, more=line.more, number=_number)
        yield f"| {title} | {line.name} | {_number(median)} | {spread} | {line.unit} | {bar} | {told} |"


def _titled(results: Results, scenario: str) -> str:
    run = results.runs.get(scenario)
    return f"{scenario} ({run})" if run else scenario


def _told(results: Results, line: Line, against: Against, ratios: Mapping[str, list[float]]) -> str:
    found = ratios.get(f"{line.name} : {against.line}")
    if not found:
        elsewhere = results.values.get(against.line) and not results.comparable(line, against.line)
        return f"{against.line}: {'of another run' if elsewhere else 'not measured'}"
    ratio = statistics.median(found)
    bar = "" if against.bar is None else f" (bar {_bar(ratio, against.bar, more=against.more, number='{:g}'.format)})"
    return f"{_short(ratio)} of {against.line}{bar}"


def _bar(value: float, bar: float, *, more: bool, number: Callable[[float], str]) -> str:
    passes = value >= bar if more else value <= bar
    return f"{'≥' if more else '≤'} {number(bar)}{'' if passes else ', **missed**'}"


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else _short(value)


def _short(value: float) -> str:
    return f"{value:.3g}"


def hardware() -> str:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{os.cpu_count()} cores of {processor()}, {memory:.0f} GB, load average {os.getloadavg()[2]:.1f}"


def processor() -> str:
    try:
        said = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        said = ""
    models = [line.partition(":")[2].strip() for line in said.splitlines() if line.startswith("model name")]
    return (models or [platform.machine()])[0]


def versions(servers: Mapping[str, str]) -> str:
    known = {"Python": platform.python_version(), **servers, **{name: version(name) for name in PACKAGES}}
    return ", ".join(f"{name} {number}" for name, number in known.items())


# --- Kept results ----------------------------------------------------------------------------------------------


def write(
    found: Results,
    *,
    lines: Mapping[str, Line],
    at: datetime,
    rounds: int,
    servers: Mapping[str, str],
    quick: Mapping[str, list[float]] | None = None,
) -> None:
    """Replace the kept results of these scenarios, and generate the page from all kept results.

    ``quick`` has the ratios that bench-quick compares with.
    """
    kept = _kept()
    run = f"{at:%Y-%m-%d %H:%M} UTC, {rounds} round{'s' * (rounds > 1)}"
    for scenario in found.scenarios:
        values = {line.name: _values(found, line) for line in found.lines.values() if line.scenario == scenario}
        kept["measured"][scenario] = {"run": run, "values": values, "notes": found.notes.get(scenario, [])}
    for name, ratios in (quick or {}).items():
        kept["quick"][name] = [round(ratio, 4) for ratio in (min(ratios), statistics.median(ratios), max(ratios))]
    kept["machine"] = (
        f"The newest on {hardware()}; everything shares these, the sender and the ODP double too.\n{versions(servers)}."
    )
    everything = _together(kept["measured"], lines)
    # Drop results of scenarios that no longer exist under this title.
    kept["measured"] = {title: one for title, one in kept["measured"].items() if title in everything.scenarios}
    kept["quick"] = {name: kept["quick"][name] for name in _ratio_names(lines) if name in kept["quick"]}
    KEPT.write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    by_hand = PAGE.read_text(encoding="utf-8").partition(RESULT)[0]
    notes = [f"- {words}" for words in everything.all_notes()]
    said = [RESULT, kept["machine"], "", *table(everything), "", *notes]
    PAGE.write_text(by_hand + "\n".join(said).rstrip() + "\n", encoding="utf-8")


def _values(found: Results, line: Line) -> list[float]:
    return [round(value, 4) for value in found.values.get(line.name, [])]


def _together(measured: Mapping[str, Any], lines: Mapping[str, Line]) -> Results:
    everything = Results(lines)
    for scenario in everything.scenarios:
        if one := measured.get(scenario):
            everything.runs[scenario] = one["run"]
            everything.values |= {name: values for name, values in one["values"].items() if name in lines}
            everything.notes[scenario] = one["notes"]
    return everything


def _ratio_names(lines: Mapping[str, Line]) -> list[str]:
    return [f"{line.name} : {against.line}" for line in lines.values() for against in line.against]


def _kept() -> dict[str, Any]:
    if not KEPT.exists():
        return {"machine": "", "measured": {}, "quick": {}}
    kept: dict[str, Any] = json.loads(KEPT.read_text(encoding="utf-8"))
    return kept


def moved(results: Results) -> list[str]:
    """A table of each ratio beside the kept one, and the names of those that moved. For information only."""
    kept = _kept()["quick"]
    found = results.ratios()
    wide = max((len(name) for name in found), default=0)
    told, names = [f"{'ratio':{wide}}  {'now':>7}  {'kept':>7}  spread of the kept one"], []
    for name, values in found.items():
        now = statistics.median(values)
        if name not in kept:
            told.append(f"{name:{wide}}  {_short(now):>7}")
            continue
        least, before, most = kept[name]
        row = f"{name:{wide}}  {_short(now):>7}  {_short(before):>7}  {_short(least)} – {_short(most)}"
        if not min(least, before * (1 - MOVED)) <= now <= max(most, before * (1 + MOVED)):
            names.append(name)
            row += f"   moved {'up' if now > before else 'down'}"
        told.append(row)
    told.append("")
    if not kept:
        return [
            *told,
            "There is nothing to compare with yet: docs/benchmarks.json comes from a full run of make bench.",
        ]
    if missing := [name for name in kept if name not in found]:
        told.append(f"Not measured this time: {'; '.join(missing)}.")
    compared = len(found.keys() & kept.keys())
    if not names:
        return [*told, f"None of {compared} ratios has moved."]
    return [*told, f"{len(names)} of {compared} ratios moved, which a busy machine may do too: {'; '.join(names)}."]
