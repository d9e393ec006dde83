from django.contrib.postgres.operations import AddIndexConcurrently
from django.db import migrations, models

INDEX = "minutes_of_an_install"


class Migration(migrations.Migration):
    atomic = False

    dependencies = [("audiences", "0057_parked_limit")]

    operations = [
        # An interrupted build leaves an invalid index behind.
        migrations.RunSQL(f"DROP INDEX CONCURRENTLY IF EXISTS {INDEX}", migrations.RunSQL.noop),
        AddIndexConcurrently("minute", models.Index(fields=["install", "minute"], name=INDEX)),
    ]
