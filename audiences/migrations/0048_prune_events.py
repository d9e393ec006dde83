from django.db import migrations

# The role of the processes can't delete events (``grant_role``). To prune the log, it calls this function, which itself
# holds all reasons for which an event stays: see docs/retention.md. It takes one step: it looks at the next ``many``
# events of an audience behind a number, and deletes those that were received before the horizon and that nothing needs.
# With these plans it reads no more events than that, also before PostgreSQL has statistics of the log: it would then
# read and sort all of them to find the first ``many``.
FORWARD = """
DO $do$ BEGIN
EXECUTE format($sql$
    CREATE FUNCTION %1$I.prune_events(
        of_audience int, behind bigint, many int, horizon timestamptz,
        OUT pruned bigint, OUT reached bigint, OUT is_done boolean
    )
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
    SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off
    SET enable_bitmapscan = off SET enable_sort = off AS $body$
    DECLARE
        bound bigint;
    BEGIN
        IF horizon IS NULL OR horizon > clock_timestamp() - interval '1 day' THEN
            RAISE EXCEPTION 'events of the last day are not pruned';
        END IF;
        -- The last event that nothing but the ledger may need; least() ignores NULL.
        SELECT least(
            -- Later ones aren't delivered.
            lane.delivered_sequence,
            -- Those of Runs that are there, but for Runs of skipped events.
            (SELECT run.first_sequence - 1 FROM %1$I.audiences_run AS run
                WHERE run.audience_id = of_audience AND run.outcome <> 'skipped'
                ORDER BY run.first_sequence, run.id LIMIT 1),
            -- A release sends the event of an open rejected item again.
            (SELECT min(parked.sequence) - 1 FROM %1$I.audiences_parked AS parked
                WHERE parked.audience_id = of_audience AND parked.closed_at IS NULL AND parked.sequence IS NOT NULL),
            -- An unfinished replay reads the events behind its last one.
            (SELECT min(resend.after) FROM %1$I.audiences_resend AS resend
                WHERE resend.audience_id = of_audience AND resend.kind = 'replay' AND resend.ended_at IS NULL),
            -- An unfinished audit reads those behind its beginning.
            (SELECT min(audit.before_sequence) FROM %1$I.audiences_audit AS audit
                WHERE audit.audience_id = of_audience AND audit.ended_at IS NULL),
            -- Taking a retired audience back reads those behind the beginning of the retirement.
            (SELECT min(retirement.began_sequence) FROM %1$I.audiences_retirement AS retirement
                WHERE retirement.audience_id = of_audience AND retirement.restored_at IS NULL),
            -- None while the install is being changed, or a customer of it forgotten.
            (SELECT 0 FROM %1$I.audiences_guidedchange AS change
                WHERE change.install_id = audience.install_id AND change.ended_at IS NULL LIMIT 1),
            (SELECT 0 FROM %1$I.audiences_forgotten AS forgotten
                WHERE forgotten.install_id = audience.install_id AND forgotten.ended_at IS NULL LIMIT 1)
        ) INTO bound
        FROM %1$I.audiences_lane AS lane JOIN %1$I.audiences_audience AS audience ON audience.id = lane.audience_id
        WHERE lane.audience_id = of_audience;

        WITH looked AS MATERIALIZED (
            SELECT event.sequence, event.received_at FROM %1$I.audiences_event AS event
            WHERE event.audience_id = of_audience AND event.sequence > behind AND event.sequence <= bound
            ORDER BY event.sequence LIMIT many
        ),
        -- Up to the first one that is young enough to stay.
        old AS MATERIALIZED (
            SELECT looked.sequence FROM looked WHERE looked.sequence < coalesce(
                (SELECT min(young.sequence) FROM looked AS young WHERE young.received_at >= horizon), bound + 1)
        ),
        -- The ledger's own event stays. After a resend, which has the ledger's time and not its event's, the event with
        -- that time stays too.
        chosen AS MATERIALIZED (
            SELECT event.sequence FROM old JOIN %1$I.audiences_event AS event
                ON event.audience_id = of_audience AND event.sequence = old.sequence
            WHERE NOT EXISTS (
                SELECT FROM %1$I.audiences_membership AS held
                WHERE held.audience_id = of_audience AND held.identifier = event.identifier AND (
                    held.sequence = event.sequence
                    OR held.occurred_ns = event.occurred_ns AND held.is_member = (event.kind <> 0) AND NOT EXISTS (
                        SELECT FROM %1$I.audiences_event AS own WHERE own.audience_id = of_audience
                            AND own.sequence = held.sequence AND own.occurred_ns = held.occurred_ns
                    )
                )
            )
            FOR UPDATE OF event SKIP LOCKED
        ),
        gone AS (
            DELETE FROM %1$I.audiences_event AS event USING chosen
            WHERE event.audience_id = of_audience AND event.sequence = chosen.sequence RETURNING event.sequence
        ),
        times AS (
            DELETE FROM %1$I.audiences_futuretime AS claim USING gone
            WHERE claim.audience_id = of_audience AND claim.sequence = gone.sequence
        )
        SELECT (SELECT count(*) FROM gone), coalesce((SELECT max(old.sequence) FROM old), behind),
            (SELECT count(*) FROM old) < many
        INTO pruned, reached, is_done;

        DELETE FROM %1$I.audiences_again AS range
        WHERE range.audience_id = of_audience AND range.last_sequence <= reached;
        INSERT INTO %1$I.audiences_horizon AS stored (audience_id, events_to, runs_to)
        SELECT of_audience, reached, 0 WHERE reached > 0
        ON CONFLICT (audience_id) DO UPDATE SET events_to = greatest(stored.events_to, excluded.events_to)
        WHERE stored.events_to < excluded.events_to;
    END
    $body$
$sql$, current_schema());
END $do$;
REVOKE EXECUTE ON FUNCTION prune_events FROM PUBLIC;
"""


class Migration(migrations.Migration):
    dependencies = [("audiences", "0047_another_identifier_field")]

    operations = [migrations.RunSQL(FORWARD, "DROP FUNCTION prune_events")]
