from django.db import migrations

# A process of the version before deletes an unused install without its Rhythm, which it doesn't know. PostgreSQL deletes
# the Rhythm then; otherwise the foreign key would forbid to delete the install.
REPLACE_FOREIGN_KEY = """
DO $$
DECLARE name text;
BEGIN
    SELECT conname INTO STRICT name FROM pg_constraint
    WHERE conrelid = 'audiences_rhythm'::regclass AND contype = 'f';
    EXECUTE format('ALTER TABLE audiences_rhythm DROP CONSTRAINT %1$I, ADD CONSTRAINT %1$I FOREIGN KEY (install_id)
        REFERENCES audiences_install (id) ON DELETE CASCADE DEFERRABLE INITIALLY DEFERRED', name);
END $$
"""


class Migration(migrations.Migration):
    dependencies = [("audiences", "0051_mute_reason")]

    operations = [migrations.RunSQL(REPLACE_FOREIGN_KEY, migrations.RunSQL.noop)]
