"""Make the log a table of parts, so that old events can be dropped with their partition.

A log without events becomes one at once. A log with events stays one table, and everything works as before, until
``partition_log`` makes it the first part. Nothing is rewritten: both shapes of the log have the same columns, and a new
column with a constant default is stored in the catalog alone. See docs/decisions/0036-parts-of-the-log.md.
"""

from django.db import migrations, models

import audiences.models.parts

NEWEST_PART = """
INSERT INTO audiences_logpart (number, opened_at) VALUES (1, clock_timestamp());
DO $do$ BEGIN
EXECUTE format($sql$
    CREATE FUNCTION %1$I.newest_part() RETURNS integer
    LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $body$
        SELECT max(number) FROM %1$I.audiences_logpart WHERE opened_at IS NOT NULL
    $body$
$sql$, current_schema());
END $do$;
"""

# make_part: creates the table of a part and attaches it. Neither locks out calls: the table is new, and ATTACH PARTITION
#     allows reads and inserts. The primary key is the part's own: one of the whole table would need the column "part".
# partition_log: makes the log the first part, in an instant. If it has events, the constraint event_is_in_first_part
#     has to be validated before. The caller limits the wait for the lock.
# add_part: creates the next part ahead, if there is none. None: there is one.
# analyze_log: collects statistics of the whole log. PostgreSQL does that by itself for each part only.
# drop_part: drops a part, and gives the number of its events; or the reason for which it stays. It itself holds all
#     reasons. The caller limits the wait for the lock.
FUNCTIONS = """
DO $do$ BEGIN
EXECUTE format($sql$
    CREATE FUNCTION %1$I.make_part(of_number integer) RETURNS void
    LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $body$
    BEGIN
        EXECUTE format('CREATE TABLE %1$I.%%1$I (
                LIKE %1$I.audiences_event INCLUDING DEFAULTS INCLUDING CONSTRAINTS INCLUDING STORAGE,
                PRIMARY KEY (audience_id, sequence))', 'audiences_event_' || of_number);
        EXECUTE format('ALTER TABLE %1$I.audiences_event ATTACH PARTITION %1$I.%%1$I FOR VALUES IN (%%2$s)',
            'audiences_event_' || of_number, of_number);
    END
    $body$;

    CREATE FUNCTION %1$I.partition_log() RETURNS boolean
    LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $body$
    DECLARE
        one record;
        owner regrole;
    BEGIN
        IF (SELECT relkind = 'p' FROM pg_class WHERE oid = to_regclass('%1$I.audiences_event')) THEN
            RETURN false;
        END IF;
        LOCK TABLE %1$I.audiences_event IN ACCESS EXCLUSIVE MODE;
        IF EXISTS (SELECT FROM %1$I.audiences_event) AND NOT EXISTS (
            SELECT FROM pg_constraint WHERE conrelid = to_regclass('%1$I.audiences_event')
                AND conname = 'event_is_in_first_part' AND convalidated
        ) THEN
            RAISE EXCEPTION 'event_is_in_first_part has to be validated before';
        END IF;
        SELECT relowner::regrole INTO owner FROM pg_class WHERE oid = to_regclass('%1$I.audiences_event');
        ALTER TABLE %1$I.audiences_event RENAME TO audiences_event_1;
        ALTER INDEX %1$I.audiences_event_pkey RENAME TO audiences_event_1_pkey;
        ALTER INDEX %1$I.events_of_a_customer RENAME TO audiences_event_1_identifier_idx;
        ALTER INDEX %1$I.events_stored_ahead RENAME TO audiences_event_1_occurred_ns_idx;
        CREATE TABLE %1$I.audiences_event (
            LIKE %1$I.audiences_event_1 INCLUDING DEFAULTS INCLUDING CONSTRAINTS INCLUDING STORAGE
        ) PARTITION BY LIST (part);
        EXECUTE format('ALTER TABLE %1$I.audiences_event OWNER TO %%s', owner);
        ALTER TABLE %1$I.audiences_event DROP CONSTRAINT IF EXISTS event_is_in_first_part;
        ALTER TABLE %1$I.audiences_event ATTACH PARTITION %1$I.audiences_event_1 FOR VALUES IN (1);
        ALTER TABLE %1$I.audiences_event_1 DROP CONSTRAINT IF EXISTS event_is_in_first_part;
        -- The index of the first part becomes part of each: nothing is built.
        CREATE INDEX events_of_a_customer ON %1$I.audiences_event
            USING brin (identifier text_bloom_ops (n_distinct_per_range = 550, false_positive_rate = 0.001))
            WITH (pages_per_range = 8, autosummarize = off);
        CREATE INDEX events_stored_ahead ON %1$I.audiences_event (occurred_ns)
            WHERE occurred_ns > (extract(epoch FROM received_at AT TIME ZONE 'UTC')::bigint + 3600) * 1000000000;
        -- The rights on the log move to the whole table. Nobody but the owner has any on a part.
        FOR one IN
            SELECT acl.privilege_type, CASE acl.grantee WHEN 0 THEN 'PUBLIC' ELSE acl.grantee::regrole::text END AS who
            FROM pg_class, aclexplode(relacl) AS acl
            WHERE pg_class.oid = to_regclass('%1$I.audiences_event_1') AND acl.grantee <> relowner
        LOOP
            EXECUTE format('GRANT %%s ON %1$I.audiences_event TO %%s', one.privilege_type, one.who);
            EXECUTE format('REVOKE %%s ON %1$I.audiences_event_1 FROM %%s', one.privilege_type, one.who);
        END LOOP;
        PERFORM %1$I.make_part(0);
        UPDATE %1$I.audiences_logpart SET opened_at = clock_timestamp() WHERE number = 1;
        RETURN true;
    END
    $body$;

    CREATE FUNCTION %1$I.add_part() RETURNS integer
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $body$
    DECLARE
        added integer;
    BEGIN
        -- One process at a time adds or drops parts.
        LOCK TABLE %1$I.audiences_logpart IN SHARE ROW EXCLUSIVE MODE;
        IF EXISTS (SELECT FROM %1$I.audiences_logpart WHERE opened_at IS NULL) THEN
            RETURN NULL;
        END IF;
        INSERT INTO %1$I.audiences_logpart (number) SELECT max(number) + 1 FROM %1$I.audiences_logpart
        RETURNING number INTO added;
        PERFORM %1$I.make_part(added);
        RETURN added;
    END
    $body$;

    CREATE FUNCTION %1$I.analyze_log() RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $body$
    BEGIN
        IF current_setting('server_version_num')::int >= 180000 THEN
            EXECUTE 'ANALYZE ONLY %1$I.audiences_event';
        ELSE
            ANALYZE %1$I.audiences_event;
        END IF;
    END
    $body$;

    CREATE FUNCTION %1$I.drop_part(of_number integer, horizon timestamptz, OUT dropped bigint, OUT reason text)
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $body$
    DECLARE
        name text := 'audiences_event_' || of_number;
        needed bigint;
        decides boolean;
    BEGIN
        IF horizon IS NULL OR horizon > clock_timestamp() - interval '1 day' THEN
            RAISE EXCEPTION 'events of the last day are not pruned';
        END IF;
        LOCK TABLE %1$I.audiences_logpart IN SHARE ROW EXCLUSIVE MODE;
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
        LOCK TABLE %1$I.audiences_event IN ACCESS EXCLUSIVE MODE;
        EXECUTE format('DROP TABLE %1$I.%%I', name);
        DELETE FROM %1$I.audiences_logpart WHERE number = of_number;
    END
    $body$;

    CREATE OR REPLACE FUNCTION %1$I.summarise_events(open_blocks bigint, blocks_per_range bigint) RETURNS bigint
    LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $body$
        SELECT coalesce(sum(brin_summarize_range(index.indexrelid, block)), 0)::bigint
        -- The parts, or the log while it has none.
        FROM (
            SELECT oid AS relid, substring(relname FROM '_([0-9]+)$')::int AS number FROM pg_class
            WHERE oid IN (SELECT inhrelid FROM pg_inherits WHERE inhparent = to_regclass('%1$I.audiences_event'))
                OR oid = to_regclass('%1$I.audiences_event') AND relkind = 'r'
        ) AS leaf
        JOIN pg_index AS index ON index.indrelid = leaf.relid
        JOIN pg_class AS found ON found.oid = index.indexrelid
        JOIN pg_am AS method ON method.oid = found.relam AND method.amname = 'brin'
        CROSS JOIN LATERAL generate_series(
            0,
            pg_relation_size(leaf.relid) / current_setting('block_size')::bigint
                -- To parts before those of the audiences no call adds events: all ranges but the last are full.
                - CASE WHEN leaf.number < (SELECT min(part) FROM %1$I.audiences_audience) THEN blocks_per_range
                    ELSE open_blocks END,
            blocks_per_range
        ) AS block
    $body$;

    CREATE OR REPLACE FUNCTION %1$I.prune_events(
        of_audience int, behind bigint, many int, horizon timestamptz,
        OUT pruned bigint, OUT reached bigint, OUT is_done boolean
    )
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
    SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off
    SET enable_bitmapscan = off SET enable_sort = off AS $body$
    DECLARE
        bound bigint;
        has_parts boolean;
        is_at_rest boolean;
        going int[];
        stuck int[];
        moved bigint;
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
        ),
        -- Nothing changes or reads events of the install by their place.
        NOT EXISTS (SELECT FROM %1$I.audiences_guidedchange AS change
            WHERE change.install_id = audience.install_id AND change.ended_at IS NULL)
        AND NOT EXISTS (SELECT FROM %1$I.audiences_forgotten AS forgotten
            WHERE forgotten.install_id = audience.install_id AND forgotten.ended_at IS NULL)
        INTO bound, is_at_rest
        FROM %1$I.audiences_lane AS lane JOIN %1$I.audiences_audience AS audience ON audience.id = lane.audience_id
        WHERE lane.audience_id = of_audience;

        has_parts := (SELECT relkind = 'p' FROM pg_class WHERE oid = to_regclass('%1$I.audiences_event'));
        -- The parts whose events stay for the drop: those that are old as a whole, or soon. One that could not be
        -- dropped for a week, because an audience needs events of it, is emptied of the events of the others.
        -- And the parts that could not be dropped for two days: see below.
        SELECT coalesce(array_agg(part.number) FILTER (
                WHERE part.closed_at < horizon + (part.closed_at - part.opened_at)
                    AND part.closed_at > horizon - interval '7 days'), '{}'),
            coalesce(array_agg(part.number) FILTER (WHERE part.closed_at < horizon - interval '2 days'), '{}')
        INTO going, stuck
        FROM (
            SELECT number, opened_at, lead(opened_at) OVER (ORDER BY number) AS closed_at FROM %1$I.audiences_logpart
        ) AS part
        WHERE has_parts;

        WITH looked AS MATERIALIZED (
            SELECT * FROM %1$I.audiences_event AS event
            WHERE event.audience_id = of_audience AND event.sequence > behind AND event.sequence <= bound
            ORDER BY event.sequence LIMIT many
        ),
        -- Up to the first one that is young enough to stay, and whether each decides a row of the ledger: it is the
        -- ledger's own event; or, after a resend, which has the ledger's time and not its event's, has that time.
        old AS MATERIALIZED (
            SELECT event.sequence, event.part, EXISTS (
                SELECT FROM %1$I.audiences_membership AS held
                WHERE held.audience_id = of_audience AND held.identifier = event.identifier AND (
                    held.sequence = event.sequence
                    OR held.occurred_ns = event.occurred_ns AND held.is_member = (event.kind <> 0) AND NOT EXISTS (
                        SELECT FROM %1$I.audiences_event AS own WHERE own.audience_id = of_audience
                            AND own.sequence = held.sequence AND own.occurred_ns = held.occurred_ns
                    )
                )
            ) AS decides
            FROM looked AS event
            WHERE event.sequence < coalesce(
                (SELECT min(young.sequence) FROM looked AS young WHERE young.received_at >= horizon), bound + 1)
        ),
        -- Those that decide survive their part.
        kept AS (
            UPDATE %1$I.audiences_event AS event SET part = 0 FROM old
            WHERE has_parts AND old.decides AND old.part <> 0 AND event.audience_id = of_audience
                AND event.sequence = old.sequence AND event.part = old.part
        ),
        chosen AS MATERIALIZED (
            SELECT event.sequence, event.part FROM old JOIN %1$I.audiences_event AS event
                ON event.audience_id = of_audience AND event.sequence = old.sequence AND event.part = old.part
            WHERE NOT old.decides AND old.part <> ALL (going)
            FOR UPDATE OF event SKIP LOCKED
        ),
        gone AS (
            DELETE FROM %1$I.audiences_event AS event USING chosen
            WHERE event.audience_id = of_audience AND event.sequence = chosen.sequence AND event.part = chosen.part
            RETURNING 1
        ),
        times AS (
            DELETE FROM %1$I.audiences_futuretime AS claim USING old
            WHERE NOT old.decides AND claim.audience_id = of_audience AND claim.sequence = old.sequence
        )
        SELECT (SELECT count(*) FROM gone), coalesce((SELECT max(old.sequence) FROM old), behind),
            (SELECT count(*) FROM old) < many
        INTO pruned, reached, is_done;

        -- Delivered events behind them that something else needs, such as those of the newest Run of an audience without
        -- calls, survive their part too. Waiting ones hold it back: a claim doesn't look in part 0.
        IF is_done AND is_at_rest AND stuck <> '{}' THEN
            WITH needed AS MATERIALIZED (
                SELECT event.sequence, event.part
                FROM %1$I.audiences_audience AS audience
                JOIN %1$I.audiences_lane AS lane ON lane.audience_id = audience.id
                CROSS JOIN LATERAL (
                    SELECT * FROM %1$I.audiences_event AS event
                    WHERE event.audience_id = of_audience AND event.sequence > reached
                        AND event.sequence <= lane.delivered_sequence AND event.part = ANY (stuck)
                        AND event.part < audience.part
                    ORDER BY event.sequence LIMIT many
                ) AS event
                WHERE audience.id = of_audience
            )
            UPDATE %1$I.audiences_event AS event SET part = 0 FROM needed
            WHERE event.audience_id = of_audience AND event.sequence = needed.sequence AND event.part = needed.part;
            GET DIAGNOSTICS moved = ROW_COUNT;
            is_done := moved < many;
        END IF;

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
REVOKE EXECUTE ON FUNCTION make_part, partition_log, add_part, analyze_log, drop_part FROM PUBLIC;
DO $do$ BEGIN
    IF NOT EXISTS (SELECT FROM audiences_event) THEN
        PERFORM partition_log();
    END IF;
END $do$;
"""


class Migration(migrations.Migration):
    dependencies = [("audiences", "0061_audit_next_at")]

    operations = [
        migrations.CreateModel(
            name="LogPart",
            fields=[
                ("number", models.IntegerField(primary_key=True, serialize=False)),
                ("opened_at", models.DateTimeField(null=True)),
            ],
            options={"default_permissions": ()},
        ),
        migrations.RunSQL(NEWEST_PART, "DROP FUNCTION newest_part"),
        migrations.AddField(
            "audience", "part", models.IntegerField(db_default=audiences.models.parts.NewestPart())
        ),
        migrations.AddField("audience", "part_after", models.BigIntegerField(db_default=0, default=0)),
        migrations.AddField("audience", "waiting_part", models.IntegerField(db_default=1, default=1)),
        migrations.AddField("event", "part", models.IntegerField(db_default=1, default=1)),
        migrations.RunSQL(FUNCTIONS),
    ]
