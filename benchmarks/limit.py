"""The limit of the machine: one statement inserts the rows of a call into the same tables, without Django and HTTP.

``python -m benchmarks.limit --url postgres://… --calls N``. The statement is the one of ``plain_calls.py``, with its
lock in the same round trip and the same commit. Its parameters are built before the measurement.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate

import psycopg

from benchmarks import load
from benchmarks.load import PLACE, Call, Fact

LOCK = b"SELECT id FROM audiences_audience WHERE id = ANY($1::int[]) ORDER BY id FOR NO KEY UPDATE"
STATEMENT = b"""
WITH receipt AS (
    INSERT INTO audiences_receipt
        (install_id, received_at, source, job, bytes, messages, queued, parked, skipped, parked_reasons)
    VALUES ($1, now(), '127.0.0.1', 'bench', 79000, $6, $6, 0, 0, '{}') RETURNING id
), incoming AS (
    SELECT * FROM unnest($2::int[], $3::text[], $4::smallint[], $5::bigint[])
        WITH ORDINALITY AS t(audience_id, identifier, kind, occurred_ns, place)
), numbered AS (
    UPDATE audiences_audience AS audience SET last_sequence = audience.last_sequence + grown.by
    FROM unnest($7::int[], $8::int[], $9::int[]) AS grown(audience_id, by, ahead)
    WHERE audience.id = grown.audience_id
    RETURNING audience.id, audience.last_sequence - grown.by - grown.ahead AS before
)
INSERT INTO audiences_event (audience_id, sequence, identifier, kind, occurred_ns, received_at, forced, receipt_id)
SELECT audience_id, before + place, identifier, kind, occurred_ns, now(), false, receipt.id
FROM incoming JOIN numbered ON numbered.id = incoming.audience_id CROSS JOIN receipt ORDER BY place
"""


def prepare(url: str, install: int) -> Callable[[Sequence[list[Fact]]], Callable[[], Call]]:
    with psycopg.connect(url) as server:
        rows = server.execute("SELECT segment_id, id FROM audiences_audience WHERE install_id = %s", [install])
        known: dict[str, int] = dict(rows.fetchall())
    place = PLACE.encode()

    def connect(batches: Sequence[list[Fact]]) -> Callable[[], Call]:
        values = [_values(install, known, facts) for facts in batches]

        def caller() -> Call:
            server = psycopg.connect(url, autocommit=True)
            cursor = psycopg.RawCursor(server)

            def call(stamp: int) -> None:
                stamped = [
                    value.replace(place, b"%09d" % stamp).decode() if isinstance(value, bytes) else value
                    for value in values[stamp % len(values)]
                ]
                with server.pipeline():
                    psycopg.RawCursor(server).execute(LOCK, [stamped[-3]], prepare=True)
                    cursor.execute(STATEMENT, stamped, prepare=True)
                if cursor.rowcount != len(batches[0]):
                    raise RuntimeError(f"{cursor.rowcount} rows of {len(batches[0])}")

            return call

        return caller

    return connect


def _values(install: int, known: dict[str, int], facts: Sequence[Fact]) -> list[object]:
    """The parameters of the statement. Those in bytes still need the stamp."""
    facts = sorted(facts, key=lambda fact: known[f"s{fact.audience}"])
    audiences = [known[f"s{fact.audience}"] for fact in facts]
    counts = Counter(audiences)
    return [
        install,
        _array(audiences),
        _array(fact.identifier for fact in facts).encode(),
        _array(int(fact.is_enter) for fact in facts),
        _array(fact.occurred_ns for fact in facts).encode(),
        len(facts),
        _array(counts.keys()),
        _array(counts.values()),
        _array(accumulate([*counts.values()][:-1], initial=0)),
    ]


def _array(values: Iterable[object]) -> str:
    return "{" + ",".join(map(str, values)) + "}"


if __name__ == "__main__":
    parser = load.parser(__doc__)
    parser.add_argument("--url", required=True)
    parser.add_argument("--install", type=int, required=True)
    options = parser.parse_args()
    load.tell(load.drive(load.load_of(options), prepare(options.url, options.install)))
