-- name: back_off
-- Starts or prolongs the backoff of an install after a failure. Gives the number of failures.
-- One statement: requests that were in flight together fail together, and only the first of them raises the number of
-- failures. The others started when the number was lower. The clock can't tell them from a later retry, because a pause
-- with full jitter may be over before they fail.
UPDATE audiences_install SET
    brake_failures = brake_failures + CASE WHEN brake_failures IN (0, %(failures)s) THEN 1 ELSE 0 END,
    brake_since_at = coalesce(brake_since_at, clock_timestamp()),
    brake_until_at = greatest(brake_until_at, clock_timestamp() + make_interval(secs => %(seconds)s)),
    brake_reason = %(reason)s
WHERE id = %(install)s
RETURNING brake_failures AS failures
