-- Conditions that several statements of this folder share.

-- fragment: run_is_in_period
-- The Run was opened from "start" on and before "end". All such Runs have numbers from "first" on and before "beyond".
-- Without a period the time isn't read, so that an index alone answers.
id >= %(first)s AND id < %(beyond)s
    AND (%(is_everything)s OR opened_at >= %(start)s AND opened_at < %(end)s)
