from django.db import migrations

# The role of the processes can't change or delete events and memberships (``grant_role``). To forget a customer, it calls
# this function, which does nothing else, and which puts nothing but a token in the place of an identifier.
FORWARD = """
DO $do$ BEGIN
EXECUTE format($sql$
    CREATE FUNCTION %1$I.forget_customer(
        of_install bigint, who text, token text, audiences int[], sequences bigint[],
        OUT events bigint, OUT memberships bigint
    )
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET enable_seqscan = off AS $body$
    BEGIN
        IF NOT starts_with(token, 'lytics-sync-forgotten-') THEN
            RAISE EXCEPTION 'not a token: %%', token;
        END IF;
        UPDATE %1$I.audiences_event AS event SET identifier = token
        FROM unnest(audiences, sequences) AS found(audience_id, sequence), %1$I.audiences_audience AS audience
        WHERE event.audience_id = found.audience_id AND event.sequence = found.sequence AND event.identifier = who
            AND audience.id = event.audience_id AND audience.install_id = of_install;
        GET DIAGNOSTICS events = ROW_COUNT;
        WITH dropped AS (
            DELETE FROM %1$I.audiences_membership AS held USING %1$I.audiences_audience AS audience
            WHERE held.identifier = who AND audience.id = held.audience_id AND audience.install_id = of_install
            RETURNING held.audience_id, held.is_member
        ),
        counted AS (
            UPDATE %1$I.audiences_lane AS lane SET member_count = lane.member_count - 1
            FROM dropped WHERE dropped.is_member AND lane.audience_id = dropped.audience_id
        )
        SELECT count(*) INTO memberships FROM dropped;
    END
    $body$
$sql$, current_schema());
END $do$;
REVOKE EXECUTE ON FUNCTION forget_customer FROM PUBLIC;
"""


class Migration(migrations.Migration):
    dependencies = [("audiences", "0042_retire")]

    operations = [migrations.RunSQL(FORWARD, "DROP FUNCTION forget_customer")]
