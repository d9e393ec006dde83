from django.core.validators import MaxValueValidator
from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("audiences", "0056_only_in_odp")]

    operations = [
        migrations.AddField(
            "install",
            "parked_limit_per_hour",
            models.PositiveSmallIntegerField(
                default=100,
                db_default=100,
                validators=[MaxValueValidator(10_000)],
                help_text="Now and alerts say when more items are parked within an hour. 0 means never.",
            ),
        )
    ]
