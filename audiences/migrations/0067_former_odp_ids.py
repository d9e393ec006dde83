"""The ODP ids that an audience had before: ODP still has its members there, so no other audience may get one of them."""

import django.contrib.postgres.fields
from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("audiences", "0066_audiences_alike")]

    operations = [
        migrations.AddField(
            model_name="audience",
            name="former_odp_ids",
            field=django.contrib.postgres.fields.ArrayField(
                base_field=models.CharField(max_length=540),
                db_default=models.Value([]),
                default=list,
                editable=False,
                size=None,
            ),
        ),
    ]
