-- Parts that several statements of this folder share. {{name}} inserts one.

-- fragment: store_calls
-- The CTEs after "allowed" and "grown", and the result: the ids of the Receipts in the order of the calls, and the
-- number of events. "allowed" has one row, or none to store nothing. "grown" has one row (id, number, by, ahead) per
-- audience whose last number grows. The parameters are arrays: received to parked_reasons have one element per call,
-- numbers to calls one per event.
-- One row, if it is allowed and every audience exists and is named once. Without it nothing is stored.
complete AS (
    SELECT 1 FROM allowed WHERE (SELECT count(DISTINCT id) FROM grown) = cardinality(%(counts)s::int[])
),
-- One Receipt per call. Ids are drawn in the order of the rows, so they have the order of the calls.
receipt AS (
    INSERT INTO audiences_receipt
        (install_id, received_at, source, job, bytes, messages, queued, parked, skipped, parked_reasons)
    SELECT %(install)s::bigint, at, nullif(source, '')::inet, job, bytes, messages, queued, parked, skipped,
        reasons::jsonb
    FROM complete, unnest(
        %(received)s::timestamptz[], %(sources)s::text[], %(jobs)s::text[], %(bytes)s::int[], %(messages)s::int[],
        %(queued)s::int[], %(parked)s::int[], %(skipped)s::int[], %(parked_reasons)s::text[]
    ) WITH ORDINALITY AS call(at, source, job, bytes, messages, queued, parked, skipped, reasons, number)
    WHERE %(has_receipts)s
    ORDER BY call.number
    RETURNING id
),
-- Their ids in one row. Materialized, or PostgreSQL would sort them again for each event.
receipts AS MATERIALIZED (SELECT array_agg(id ORDER BY id) AS ids FROM receipt),
-- Takes the numbers: an event's number is its place in the arrays plus "before" of its audience. Its part of the log is
-- the audience's, which doesn't change while the audience is locked.
numbered AS (
    UPDATE audiences_audience AS audience SET last_sequence = audience.last_sequence + grown.by
    FROM grown, complete WHERE audience.id = grown.id
    RETURNING audience.id, grown.number, audience.last_sequence - grown.by - grown.ahead AS before, audience.part
),
-- The events, in ascending order of their keys per audience: descending order makes the B-tree split pages in half.
stored AS (
    INSERT INTO audiences_event
        (audience_id, sequence, identifier, kind, occurred_ns, received_at, forced, receipt_id, part)
    SELECT numbered.id, before + place, identifier, kind, occurred_ns, (%(received)s::timestamptz[])[call], %(forced)s,
        coalesce(receipts.ids[call], %(receipt_id)s::bigint), numbered.part
    FROM unnest(
        %(numbers)s::int[], %(identifiers)s::text[], %(kinds)s::smallint[], %(moments)s::bigint[], %(calls)s::int[]
    ) WITH ORDINALITY AS fact(number, identifier, kind, occurred_ns, call, place)
    JOIN numbered ON numbered.number = fact.number
    CROSS JOIN receipts
    ORDER BY place
    RETURNING 1
)
SELECT (SELECT ids FROM receipts) AS receipts, (SELECT count(*) FROM stored) AS events

-- fragment: runs_with_cause
-- FROM and WHERE of the Runs that a range of a cause overlaps. The ranges of an audience don't overlap each other, so
-- the first ones that end after the start of a Run are enough: at most one for each of its events.
FROM audiences_run AS run
CROSS JOIN LATERAL (
    SELECT later.cause, later.first_sequence FROM audiences_again AS later
    WHERE later.audience_id = run.audience_id AND later.last_sequence >= run.first_sequence
    ORDER BY later.last_sequence LIMIT run.last_sequence - run.first_sequence + 1
) AS near
WHERE near.cause = %(cause)s AND near.first_sequence <= run.last_sequence
