from django.contrib.postgres.operations import AddIndexConcurrently
from django.db import migrations, models

# Without this index, the history of one thing reads the whole of *Who did what* of its kind, and sorts it.
INDEX = "log_of_a_thing"


class Migration(migrations.Migration):

    atomic = False

    dependencies = [
        ('admin', '0003_logentry_add_action_flag_choices'),
        ('audiences', '0033_outcome_words'),
    ]

    operations = [
        # An interrupted build leaves an invalid index behind.
        migrations.RunSQL(f"DROP INDEX CONCURRENTLY IF EXISTS {INDEX}", migrations.RunSQL.noop),
        migrations.RunSQL(
            f"CREATE INDEX CONCURRENTLY {INDEX} ON django_admin_log (content_type_id, object_id, action_time DESC)",
            reverse_sql=f"DROP INDEX CONCURRENTLY IF EXISTS {INDEX}",
        ),
        migrations.RunSQL("DROP INDEX CONCURRENTLY IF EXISTS resends_of_a_kind", migrations.RunSQL.noop),
        AddIndexConcurrently(
            model_name='resend',
            index=models.Index(fields=['kind', '-id'], name='resends_of_a_kind'),
        ),
    ]
