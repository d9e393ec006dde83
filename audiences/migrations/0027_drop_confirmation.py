from django.db import migrations, models

# The table stays for one version, because processes of the version before write it. Its foreign keys go: without the
# model Django no longer deletes a row of this table with its install, and the key would forbid to delete the install.
DROP_FOREIGN_KEYS = """
DO $$
DECLARE name text;
BEGIN
    FOR name IN SELECT conname FROM pg_constraint
        WHERE conrelid = 'audiences_confirmation'::regclass AND contype = 'f'
    LOOP
        EXECUTE format('ALTER TABLE audiences_confirmation DROP CONSTRAINT %I', name);
    END LOOP;
END $$
"""
COPY = """
UPDATE audiences_install AS install SET key_asked_at = said.key_asked_at, key_problem = said.key_problem
FROM audiences_confirmation AS said WHERE said.install_id = install.id AND said.key_asked_at IS NOT NULL
"""


class Migration(migrations.Migration):

    dependencies = [
        ('audiences', '0026_stored_ahead'),
    ]

    operations = [
        migrations.AddField(
            model_name='install',
            name='key_asked_at',
            field=models.DateTimeField(editable=False, null=True),
        ),
        migrations.AddField(
            model_name='install',
            name='key_problem',
            field=models.TextField(blank=True, db_default='', default='', editable=False),
        ),
        migrations.RunSQL(COPY, migrations.RunSQL.noop),
        migrations.SeparateDatabaseAndState(
            database_operations=[migrations.RunSQL(DROP_FOREIGN_KEYS, migrations.RunSQL.noop)],
            state_operations=[migrations.DeleteModel(name='Confirmation')],
        ),
    ]
