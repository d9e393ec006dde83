"""The grid: calls of different shapes, each against the bare limit for its shape, and its picture."""

import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from benchmarks import svg
from benchmarks.house import House
from benchmarks.load import Load
from benchmarks.results import Against, Line, Results
from benchmarks.scenarios import Bench, Needs, line, percentile, rate, scenario
from local.processes import free_port, listens
from lytics_sync import env

PICTURE = env.PROJECT_DIR / "docs" / "pictures" / "grid.svg"
EMPTY = "an empty DRF view"
PACED = "300 calls/s of one event: acknowledged, p99"
# Audiences of the install, where a call has fewer.
AUDIENCES = 200


class Shape(NamedTuple):
    """The events of a call, and the number of audiences that they are spread over."""

    events: int
    audiences: int
    calls: int

    @property
    def title(self) -> str:
        return f"{self.events} over {self.audiences:,}"

    @property
    def limit(self) -> str:
        return f"{self.title}: limit"

    @property
    def stored(self) -> str:
        return f"{self.title}: stored"

    @property
    def p99(self) -> str:
        return f"{self.title}: acknowledged, p99"

    def load(self, bench: Bench) -> Load:
        calls = bench.size(self.calls, 20)
        return Load(calls=calls, batch=self.events, spread=self.audiences, audiences=max(AUDIENCES, self.audiences))


SINGLE, TEN, MANY = Shape(1, 1, 3_000), Shape(300, 10, 1_000), Shape(300, 200, 800)
SHAPES = (
    SINGLE,
    Shape(10, 10, 2_500),
    Shape(30, 10, 2_000),
    Shape(300, 1, 1_000),
    TEN,
    Shape(300, 50, 1_000),
    MANY,
    Shape(300, 1_000, 500),
)


def _lines(shape: Shape) -> Iterator[Line]:
    yield line(shape.limit, "events/s", better="more")
    if shape.events < 30:
        yield line(shape.stored, "events/s", Against(shape.limit), better="more")
    elif shape.events < 300:
        yield line(shape.stored, "events/s", Against(shape.limit), Against(SINGLE.stored, 10), better="more")
    elif shape is MANY:
        yield line(shape.stored, "events/s", Against(shape.limit, 0.5), Against(TEN.stored, 0.6), better="more")
    else:
        yield line(shape.stored, "events/s", Against(shape.limit, 0.5), better="more")
    yield line(shape.p99, "ms", better="less", bar=500)


@scenario(
    "calls of different shapes, saturating: 20 callers, events over audiences",
    Needs.WEB,
    line(EMPTY, "calls/s", better="more"),
    line("calls of one event", "calls/s", Against(EMPTY, 0.45), better="more", bar=1_000),
    line(PACED, "ms", better="less", bar=50),
    *(one for shape in SHAPES for one in _lines(shape)),
    seconds=75,
)
def grid(bench: Bench) -> None:
    def empty() -> None:
        load = replace(SINGLE.load(bench), calls=bench.size(6_000, 20))
        with _empty_view(bench.house) as url:
            bench.house.send_to(url, replace(load, calls=40))
            bench.record(EMPTY, rate(bench.house.send_to(url, load), load))

    bench.in_turn(empty, *(lambda shape=shape: _measure(bench, shape) for shape in SHAPES))


def _measure(bench: Bench, shape: Shape) -> None:
    load = shape.load(bench)

    def limit() -> None:
        install = bench.house.fresh(audiences=load.audiences)
        bench.house.store_bare(install, replace(load, calls=40))
        bench.house.sql("CHECKPOINT")
        bench.record(shape.limit, rate(bench.house.store_bare(install, load), load))

    def ours() -> None:
        install = bench.house.fresh(audiences=load.audiences)
        bench.house.send(install, replace(load, calls=40))
        bench.house.analyze()
        bench.house.sql("CHECKPOINT")
        report = bench.house.send(install, load)
        bench.record(shape.stored, rate(report, load))
        bench.record(shape.p99, percentile([seconds * 1000 for _, _, seconds in report.acks], 0.99))
        if shape is SINGLE:
            bench.record("calls of one event", rate(report, load))
            paced = bench.house.send(install, replace(load, calls=bench.size(900, 20), rate=300))
            bench.record(PACED, percentile([seconds * 1000 for _, _, seconds in paced.acks], 0.99))

    bench.in_turn(limit, ours)


@contextmanager
def _empty_view(house: House) -> Iterator[str]:
    """The same web server with the empty view."""
    port, web = free_port(), house.stack.web()
    others = {
        "lytics_sync.wsgi:application": "benchmarks.empty_view:application",
        f"{house.stack.host}:{house.stack.port}": f"127.0.0.1:{port}",
    }
    command = [others.get(word, word) for word in web.command]
    with house.running(replace(web, name="empty-view", command=command, ready=lambda _pid: listens(port))):
        yield f"http://127.0.0.1:{port}/"


# --- The picture ---------------------------------------------------------------------------------------------

ROW, LEFT, WIDTH = 46, 150, 560


def draw(found: Results, *, to: Path = PICTURE) -> None:
    """Two bars per shape: the bare limit and what was stored, in events per second."""
    values = {name: statistics.median(some) for name, some in found.values.items() if some}
    shapes = [shape for shape in SHAPES if shape.limit in values and shape.stored in values]
    if not shapes:
        return
    most = max(max(values[shape.limit], values[shape.stored]) for shape in shapes)
    rows = [
        svg.text(0, 16, "events over audiences"),
        svg.text(LEFT, 16, "events/s"),
        *(svg.bar(LEFT + 90, 5, 24, "#b8c4d0") + svg.text(LEFT + 120, 16, "bare limit"),),
        *(svg.bar(LEFT + 220, 5, 24, "#2f6fb0") + svg.text(LEFT + 250, 16, "stored"),),
    ]
    for number, shape in enumerate(shapes):
        top = 34 + number * ROW
        rows.append(svg.text(0, top + 20, shape.title))
        for name, at, colour in ((shape.limit, top, "#b8c4d0"), (shape.stored, top + svg.BAR + 1, "#2f6fb0")):
            width = max(1, round(WIDTH * values[name] / most))
            rows += [svg.bar(LEFT, at, width, colour), svg.text(LEFT + width + 6, at + 12, f"{values[name]:,.0f}")]
    picture = svg.picture(
        rows,
        width=LEFT + WIDTH + 80,
        height=34 + len(shapes) * ROW,
        title="Events stored per second, by the shape of a call, beside the bare limit",
    )
    to.write_text(picture, encoding="utf-8")
