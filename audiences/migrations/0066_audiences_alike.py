"""For the page Now, which looks for audiences that are alike and for the last audience made in ODP. Each search read all
audiences.
"""

from django.contrib.postgres.operations import AddIndexConcurrently
from django.db import migrations, models

UNUSUAL, BY_SLUG, BY_CREATION = "audiences_with_unusual_id", "audiences_by_slug", "audiences_by_creation"
IS_UNUSUAL = "odp_id <> 'lytics_' || regexp_replace(lower(slug), '[^a-z0-9_]+', '_', 'g') OR slug <> latest_slug"


def _dropped(name: str) -> migrations.RunSQL:
    """An interrupted build leaves an invalid index behind."""
    return migrations.RunSQL(f"DROP INDEX CONCURRENTLY IF EXISTS {name}", migrations.RunSQL.noop)


class Migration(migrations.Migration):
    atomic = False

    dependencies = [("audiences", "0065_difference_profile")]

    operations = [
        _dropped(UNUSUAL),
        migrations.RunSQL(
            # An expression and not a condition, because PostgreSQL keeps statistics of expressions: it must know that
            # few audiences are unusual.
            f"CREATE INDEX CONCURRENTLY {UNUSUAL} ON audiences_audience (({IS_UNUSUAL}))",
            f"DROP INDEX CONCURRENTLY {UNUSUAL}",
        ),
        _dropped(BY_SLUG),
        AddIndexConcurrently("audience", models.Index(fields=["install", "latest_slug"], name=BY_SLUG)),
        _dropped(BY_CREATION),
        AddIndexConcurrently("audience", models.Index(fields=["install", "provisioned_at"], name=BY_CREATION)),
        migrations.RunSQL("ANALYZE audiences_audience", migrations.RunSQL.noop),
    ]
