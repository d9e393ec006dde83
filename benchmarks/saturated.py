"""Calls over 200 audiences for minutes: whether the service slows down, and what happens while workers deliver."""

from dataclasses import replace
from typing import NamedTuple

from benchmarks.load import Load, Report
from benchmarks.results import Against
from benchmarks.scenarios import Bench, Needs, line, percentile, rate, scenario

MINUTES = 10
AUDIENCES = 200
FIRST, LAST = "stored in the first minute of ten", "stored in the last minute of ten"
# The machine alone makes single minutes differ by a fifth, upwards and downwards. Halves average that.
FIRST_HALF, SECOND_HALF = "stored in the first five minutes", "stored in the last five minutes"
P99 = "acknowledged in ten minutes, p99"
DEAD, HOT = "dead versions of the 200 audience rows, most", "HOT share of the updates of audience rows"
SPREADS = (10, 200)


@scenario(
    f"{MINUTES} minutes saturated: 20 callers, 300 events over {AUDIENCES} audiences",
    Needs.WEB,
    line(FIRST, "events/s", better="more"),
    line(LAST, "events/s", Against(FIRST, 0.95), better="more"),
    line(FIRST_HALF, "events/s", better="more"),
    line(SECOND_HALF, "events/s", Against(FIRST_HALF, 0.95), better="more"),
    line(P99, "ms", better="less", bar=500),
    line(DEAD, "rows", better="less"),
    line(HOT, "of 1", better="more"),
    seconds=60 * MINUTES + 20,
    once=True,
)
def saturated(bench: Bench) -> None:
    load = Load(calls=40, audiences=AUDIENCES, spread=AUDIENCES)
    install = bench.house.fresh(audiences=AUDIENCES)
    bench.house.send(install, load)
    bench.house.analyze()
    seconds = max(5.0, 60 * MINUTES * bench.scale)
    trial = replace(load, calls=bench.size(2_000, 40))
    speed = rate(bench.house.send(install, trial), trial)
    before = _updates(bench)
    sending = bench.house.begin(install, replace(load, calls=max(40, round(speed * seconds / load.batch))))
    dead = [0]
    while not bench.house.wait(lambda: sending.is_over, seconds=1):
        dead.append(_updates(bench).dead)
    report = bench.house.finish(sending)
    after = _updates(bench)
    tenths = _tenths(report, batch=load.batch)
    bench.record(FIRST, tenths[0])
    bench.record(LAST, tenths[-1])
    bench.record(FIRST_HALF, sum(tenths[:5]) / 5)
    bench.record(SECOND_HALF, sum(tenths[5:]) / 5)
    bench.record(P99, percentile([took * 1000 for _, _, took in report.acks], 0.99))
    bench.record(DEAD, max(dead))
    bench.record(HOT, (after.hot - before.hot) / max(1, after.all - before.all))
    bench.note(
        f"Saturated: {len(report.acks) * load.batch:,} events in {report.ended - report.began:.0f} s; events/s in each"
        f" tenth of the time: {', '.join(f'{tenth:,.0f}' for tenth in tenths)}; the audience rows have"
        f" {bench.house.sql('SELECT pg_size_pretty(pg_table_size(%s))', 'audiences_audience')[0][0]} at the end."
    )


class _Updates(NamedTuple):
    """PostgreSQL's statistics of the audience rows: all updates, HOT updates, and dead versions."""

    all: int
    hot: int
    dead: int


def _updates(bench: Bench) -> _Updates:
    rows = bench.house.sql(
        "SELECT n_tup_upd, n_tup_hot_upd, n_dead_tup FROM pg_stat_user_tables WHERE relname = 'audiences_audience'"
    )
    return _Updates(*rows[0])


def _tenths(report: Report, *, batch: int) -> list[float]:
    """Events per second that were acknowledged in each tenth of the time."""
    each = (report.ended - report.began) / 10
    counts = [0] * 10
    for _, due, took in report.acks:
        counts[min(9, int((due + took - report.began) / each))] += batch
    return [count / each for count in counts]


def _in(spread: int) -> str:
    return f"in, {spread} audiences a call, workers delivering"


def _out(spread: int) -> str:
    return f"out, {spread} audiences a call, web receiving"


@scenario(
    "saturating while workers deliver, pace off: 300 events over 10 and over 200 audiences a call",
    Needs.STACK,
    line(_in(10), "events/s", better="more"),
    line(_in(200), "events/s", Against(_in(10), 0.7), better="more"),
    line(_out(10), "events/s", better="more"),
    line(_out(200), "events/s", Against(_out(10), 0.7), better="more"),
    seconds=60,
)
def many_audiences(bench: Bench) -> None:
    def measure(spread: int) -> None:
        install = bench.house.fresh(audiences=AUDIENCES)
        load = Load(calls=40, audiences=AUDIENCES, spread=spread)
        bench.house.send(install, load)
        bench.house.settled()
        bench.house.analyze()
        bench.house.sql("CHECKPOINT")
        bench.house.double.forget()
        report = bench.house.send(install, replace(load, calls=bench.size(2_500, 60)))
        delivered = bench.house.double.seen()["items"]
        bench.record(_in(spread), len(report.acks) * load.batch / (report.ended - report.began))
        bench.record(_out(spread), delivered / (report.ended - report.began))

    bench.in_turn(*(lambda spread=spread: measure(spread) for spread in SPREADS))
