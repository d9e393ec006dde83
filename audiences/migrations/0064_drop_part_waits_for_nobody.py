from django.db import migrations

# drop_part read the part while it kept other processes from adding, opening or dropping one. In a large part that takes
# minutes, and each run of ``prune`` meanwhile waited for it and failed. It takes that lock for the drop alone now. The
# reading needs no lock: no event is added to a part before those of the audiences, and none becomes needed again.
FORWARD = """
DO $do$ BEGIN
EXECUTE format($sql$
    CREATE OR REPLACE FUNCTION %1$I.drop_part(of_number integer, horizon timestamptz, OUT dropped bigint, OUT reason text)
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $body$
    DECLARE
        name text := 'audiences_event_' || of_number;
        needed bigint;
        decides boolean;
    BEGIN
        IF horizon IS NULL OR horizon > clock_timestamp() - interval '1 day' THEN
            RAISE EXCEPTION 'events of the last day are not pruned';
        END IF;
        IF NOT EXISTS (SELECT FROM %1$I.audiences_logpart WHERE number = of_number AND opened_at IS NOT NULL)
            OR NOT EXISTS (SELECT FROM pg_inherits WHERE inhparent = to_regclass('%1$I.audiences_event')
                AND inhrelid = to_regclass(format('%1$I.%%I', name)))
        THEN
            reason := 'there is no such part';
            RETURN;
        END IF;
        IF of_number = %1$I.newest_part()
            OR EXISTS (SELECT FROM %1$I.audiences_audience AS audience WHERE audience.part <= of_number)
        THEN
            reason := 'new events go to it';
            RETURN;
        END IF;
        -- Events behind the horizon of their audience are young, or something needs them: see prune_events.
        EXECUTE format('
            SELECT count(*), count(*) FILTER (WHERE event.sequence > coalesce(horizon.events_to, 0))
            FROM %1$I.%%I AS event
            LEFT JOIN %1$I.audiences_horizon AS horizon ON horizon.audience_id = event.audience_id', name)
        INTO dropped, needed;
        IF needed > 0 THEN
            reason := needed || ' events are needed';
            dropped := NULL;
            RETURN;
        END IF;
        -- Events before it that decide a row of the ledger: prune_events moves them to the part of kept events.
        EXECUTE format('
            SELECT EXISTS (
                SELECT FROM %1$I.%%I AS event
                JOIN %1$I.audiences_membership AS held
                    ON held.audience_id = event.audience_id AND held.identifier = event.identifier
                WHERE held.sequence = event.sequence
                    OR held.occurred_ns = event.occurred_ns AND held.is_member = (event.kind <> 0) AND NOT EXISTS (
                        SELECT FROM %1$I.audiences_event AS own WHERE own.audience_id = event.audience_id
                            AND own.sequence = held.sequence AND own.occurred_ns = held.occurred_ns
                    )
            )', name)
        INTO decides;
        IF decides THEN
            reason := 'an event of it decides a row of the ledger';
            dropped := NULL;
            RETURN;
        END IF;
        -- One process at a time adds or drops parts. Not before the reading, which takes minutes in a large part.
        LOCK TABLE %1$I.audiences_logpart IN SHARE ROW EXCLUSIVE MODE;
        LOCK TABLE %1$I.audiences_event IN ACCESS EXCLUSIVE MODE;
        EXECUTE format('DROP TABLE %1$I.%%I', name);
        DELETE FROM %1$I.audiences_logpart WHERE number = of_number;
    END
    $body$
$sql$, current_schema());
END $do$;
"""


class Migration(migrations.Migration):
    dependencies = [("audiences", "0063_vacuum_after_a_number_of_rows")]

    # The function of before does the same with a longer lock, so the way back changes nothing.
    operations = [migrations.RunSQL(FORWARD, migrations.RunSQL.noop)]
