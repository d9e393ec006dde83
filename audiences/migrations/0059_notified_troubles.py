"""Name the attributes of Trouble for what they hold. The columns keep their names, for processes of the version before."""

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("audiences", "0058_minutes_of_an_install")]

    operations = [
        migrations.SeparateDatabaseAndState(
            state_operations=[
                migrations.RenameField("trouble", "told_at", "notified_at"),
                migrations.AlterField(
                    "trouble", "notified_at", models.DateTimeField(db_column="told_at", null=True)
                ),
                migrations.RenameField("trouble", "told_tone", "notified_tone"),
                migrations.AlterField(
                    "trouble",
                    "notified_tone",
                    models.CharField(blank=True, db_column="told_tone", default="", max_length=8),
                ),
            ]
        )
    ]
