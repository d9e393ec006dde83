from django.db import migrations

# Only the owner of an index may summarise it. The function does nothing else, for whoever ``grant_role`` lets call it,
# and names what it works on with its schema, so that no table of the caller's can take its place.
FORWARD = """
DO $do$ BEGIN
EXECUTE format($sql$
    CREATE FUNCTION %1$I.summarise_events(open_blocks bigint, blocks_per_range bigint) RETURNS bigint
    LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $body$
        SELECT coalesce(sum(brin_summarize_range('%1$I.events_of_a_customer'::regclass, block)), 0)::bigint
        FROM generate_series(
            0,
            pg_relation_size('%1$I.audiences_event'::regclass) / current_setting('block_size')::bigint - open_blocks,
            blocks_per_range
        ) AS block
    $body$
$sql$, current_schema());
END $do$;
REVOKE EXECUTE ON FUNCTION summarise_events FROM PUBLIC;
"""


class Migration(migrations.Migration):
    dependencies = [("audiences", "0019_again")]

    operations = [migrations.RunSQL(FORWARD, "DROP FUNCTION summarise_events")]
