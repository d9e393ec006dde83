import django.db.models.deletion
from django.db import migrations, models

# The role of the processes can't delete history (``grant_role``). To prune, it calls this function, which deletes nothing
# but rows of the given kind that ended more than a day ago; why a row may go is decided before (operations/pruning.py).
# Audits and differences aren't in it: the role may delete them.
FORWARD = """
DO $do$ BEGIN
EXECUTE format($sql$
    CREATE FUNCTION %1$I.prune_rows(kind text, ids bigint[]) RETURNS bigint
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $body$
    DECLARE
        day_ago CONSTANT timestamptz := clock_timestamp() - interval '1 day';
        pruned bigint;
    BEGIN
        CASE kind
            WHEN 'receipts' THEN
                DELETE FROM %1$I.audiences_receipt WHERE id = ANY(ids) AND received_at < day_ago;
            WHEN 'deliveries' THEN
                DELETE FROM %1$I.audiences_delivery WHERE id = ANY(ids) AND closed_at < day_ago;
            WHEN 'runs' THEN
                DELETE FROM %1$I.audiences_run WHERE id = ANY(ids) AND closed_at < day_ago;
            WHEN 'parked' THEN
                DELETE FROM %1$I.audiences_parked WHERE id = ANY(ids) AND closed_at < day_ago;
            WHEN 'messages' THEN
                DELETE FROM %1$I.audiences_troublemessage WHERE id = ANY(ids)
                    AND coalesce(sent_at, given_up_at) < day_ago;
            WHEN 'troubles' THEN
                DELETE FROM %1$I.audiences_trouble WHERE id = ANY(ids) AND resolved_at < day_ago;
        END CASE;
        GET DIAGNOSTICS pruned = ROW_COUNT;
        RETURN pruned;
    END
    $body$
$sql$, current_schema());
END $do$;
REVOKE EXECUTE ON FUNCTION prune_rows FROM PUBLIC;
"""


class Migration(migrations.Migration):

    dependencies = [
        ('audiences', '0045_another_account'),
    ]

    operations = [
        migrations.CreateModel(
            name='Pruning',
            fields=[
                ('kind', models.CharField(max_length=12, primary_key=True, serialize=False)),
                ('horizon_at', models.DateTimeField(null=True)),
                ('position', models.BigIntegerField(default=0)),
                ('sequence', models.BigIntegerField(default=0)),
                ('is_done', models.BooleanField(default=False)),
                ('pruned', models.BigIntegerField(default=0)),
            ],
            options={
                'default_permissions': (),
            },
        ),
        migrations.CreateModel(
            name='Horizon',
            fields=[
                ('audience', models.OneToOneField(db_constraint=False, on_delete=django.db.models.deletion.DO_NOTHING, primary_key=True, related_name='horizon', serialize=False, to='audiences.audience')),
                ('events_to', models.BigIntegerField(db_default=0, default=0)),
                ('runs_to', models.BigIntegerField(db_default=0, default=0)),
            ],
            options={
                'default_permissions': (),
            },
        ),
        migrations.RunSQL(FORWARD, "DROP FUNCTION prune_rows"),
    ]
