-- The settings with which PostgreSQL plans sorted reads, until the end of the transaction.

-- name: follow_indexes
-- Sorting, and the reads that need it afterwards, only where no index has the order.
SELECT set_config('enable_sort', 'off', true), set_config('enable_incremental_sort', 'off', true),
    set_config('enable_bitmapscan', 'off', true), set_config('enable_seqscan', 'off', true)

-- name: choose_freely
-- PostgreSQL's defaults.
SELECT set_config('enable_sort', 'on', true), set_config('enable_incremental_sort', 'on', true),
    set_config('enable_bitmapscan', 'on', true), set_config('enable_seqscan', 'on', true)
