"""The result of a soak: the table on the terminal, and docs/soak.md with its pictures."""

from collections.abc import Iterator, Sequence
from html import escape

from benchmarks import svg
from benchmarks.results import hardware
from lytics_sync import env
from tests.chaos.table import today
from tests.soak.curves import WARM_SHARE, Curve
from tests.soak.run import DIFFER, Report

PAGE = env.PROJECT_DIR / "docs" / "soak.md"
PICTURES = env.PROJECT_DIR / "docs" / "pictures"
# The text above this heading is written by hand.
RESULT = "## The last run\n"
COLOURS = ("#2f6fb0", "#c2571a", "#3b8a4f", "#7a4fa3", "#a3293d")
WIDTH, HEIGHT, LEFT, TOP, BOTTOM, RIGHT = 760, 240, 70, 34, 30, 20


def lines(report: Report) -> Iterator[str]:
    """The lines of the result, in Markdown."""
    options, stored = report.options, report.samples[-1].events - report.samples[0].events
    over = f"{options.audiences} audiences and {options.customers:,} customers"
    yield f"{options.minutes:g} minutes at {options.rate:,} events/s over {over}; {stored:,} events were stored."
    with_result, without, under_way = report.audits
    yield f"Audits: {with_result} with a result, {without} without one, {under_way} under way at the end."
    yield f"Probes: {report.probes[0]} succeeded, {report.probes[1]} failed."
    yield f"Of {report.old_events[0]:,} old events, {report.old_events[1]:,} were pruned."
    yield f"At the end, ODP was asked about each of {report.memberships:,} memberships."
    differing = [words for words in report.broken if words.startswith(DIFFER)]
    yield f"{'; '.join(differing) or 'All were equal'}."
    yield from (f"{words}." for words in report.broken if words not in differing)
    yield ""
    yield "| curve | mean | growth over the judged part | |\n|---|--:|--:|---|"
    for verdict in report.verdicts:
        curve = verdict.curve
        growth = "–" if verdict.growth is None else f"{verdict.growth:+,.1f}"
        word = ("flat" if verdict.is_flat else "**grows**") if curve.is_judged else "not judged"
        yield f"| {curve.name} | {verdict.mean:,.1f} {curve.unit} | {growth} | {word} |"


def findings(report: Report) -> Iterator[str]:
    yield from (f"BROKEN: {words}" for words in report.broken)
    for verdict in report.verdicts:
        if not verdict.is_flat:
            growth = "too few samples" if verdict.growth is None else f"{verdict.growth:+,.1f} {verdict.curve.unit}"
            yield f"GROWS: {verdict.curve.name}: {growth}, mean {verdict.mean:,.1f}"


def write(report: Report) -> None:
    pictures: dict[str, list[Curve]] = {}
    for verdict in report.verdicts:
        pictures.setdefault(verdict.curve.picture, []).append(verdict.curve)
    marks = [(report.options.minutes * WARM_SHARE, "judged from here"), *report.happened]
    for name, some in pictures.items():
        drawn = draw(some, minutes=report.samples[-1].seconds / 60, marks=marks)
        (PICTURES / f"soak-{name}.svg").write_text(drawn, encoding="utf-8")
    by_hand = PAGE.read_text(encoding="utf-8").partition(RESULT)[0]
    shown = [f"![{_title(some)}](pictures/soak-{name}.svg)\n" for name, some in pictures.items()]
    said = [RESULT, f"{today()}, seed {report.options.seed}, {hardware()}.\n", *lines(report), "", *shown]
    PAGE.write_text(by_hand + "\n".join(said).rstrip() + "\n", encoding="utf-8")


def draw(some: Sequence[Curve], *, minutes: float, marks: Sequence[tuple[float, str]]) -> str:
    """The curves of one picture over the minutes, with a dashed line at each mark."""
    most = max((value for curve in some for _, value in curve.points), default=0) or 1.0

    def x(minute: float) -> float:
        return LEFT + minute / minutes * (WIDTH - LEFT - RIGHT)

    def y(value: float) -> float:
        return HEIGHT - BOTTOM - value / most * (HEIGHT - TOP - BOTTOM)

    parts = [svg.line([(LEFT, y(0)), (WIDTH - RIGHT, y(0))], "#8896a5", width=1)]
    for share in (0, 0.5, 1):
        value = f"{share * most:,.0f}" if most >= 1_000 else f"{share * most:,.4g}"
        parts.append(svg.text(LEFT - 6, round(y(share * most)) + 4, value, anchor="end"))
        anchor = "end" if share == 1 else "middle"
        parts.append(svg.text(round(x(share * minutes)), HEIGHT - 10, f"{share * minutes:.0f} min", anchor=anchor))
    for number, (minute, words) in enumerate(marks):
        parts.append(svg.line([(x(minute), TOP - 6), (x(minute), y(0))], "#b8c4d0", width=1, dashed=True))
        # In two heights, because a label can be longer than the distance to the next mark.
        parts.append(svg.text(round(x(minute)) + 3, HEIGHT - BOTTOM - 4 - 14 * (number % 2), escape(words)))
    at = LEFT
    for number, curve in enumerate(some):
        colour, words = COLOURS[number % len(COLOURS)], f"{curve.name}{f', {curve.unit}' if curve.unit else ''}"
        parts += [svg.line([(at, 12), (at + 16, 12)], colour, width=3), svg.text(at + 20, 16, escape(words))]
        at += 40 + 7 * len(words)
        parts.append(svg.line([(x(minute), y(value)) for minute, value in curve.points], colour))
    return svg.picture(parts, width=max(WIDTH, at), height=HEIGHT, title=escape(_title(some)))


def _title(some: Sequence[Curve]) -> str:
    return ", ".join(curve.name for curve in some)
