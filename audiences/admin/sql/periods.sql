-- Where a period begins and ends in a table whose numbers follow its times.

-- name: number_at
-- The number that the first row of a time has, if times never decrease from one number to the next: the row before it
-- is earlier, and the next row is not. By bisection of the primary key, so the time needs no index. The admin puts each
-- table, and its column, in the place of this one.
WITH RECURSIVE
-- Bisects the range of numbers from "low" up to "high" at its middle. Where no row has a number between the middle and
-- the high end, the upper half is empty.
steps AS (
    SELECT coalesce(min(id), 0) AS low, coalesce(max(id), 0) + 1 AS high FROM audiences_delivery
    UNION ALL
    SELECT CASE WHEN middle.opened_at < %(at)s THEN middle.id + 1 ELSE steps.low END,
        CASE WHEN middle.opened_at < %(at)s THEN steps.high ELSE (steps.low + steps.high) / 2 END
    FROM steps LEFT JOIN LATERAL (
        SELECT id, opened_at FROM audiences_delivery
        WHERE id >= (steps.low + steps.high) / 2 AND id < steps.high ORDER BY id LIMIT 1
    ) AS middle ON true
    WHERE steps.low < steps.high
)
SELECT low AS number FROM steps WHERE low = high
