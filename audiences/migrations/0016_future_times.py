"""Transition times that were too far ahead of the clock to be believed."""

import django.db.models.deletion
from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("audiences", "0015_skip")]

    operations = [
        migrations.CreateModel(
            name="FutureTime",
            fields=[
                (
                    "pk",
                    models.CompositePrimaryKey(
                        "audience_id", "sequence", blank=True, editable=False, primary_key=True, serialize=False
                    ),
                ),
                ("sequence", models.BigIntegerField()),
                ("claimed_ns", models.BigIntegerField()),
                ("received_at", models.DateTimeField()),
                (
                    "audience",
                    models.ForeignKey(
                        db_constraint=False,
                        db_index=False,
                        on_delete=django.db.models.deletion.DO_NOTHING,
                        to="audiences.audience",
                    ),
                ),
            ],
            options={
                "default_permissions": (),
                "indexes": [models.Index(fields=["received_at"], name="future_times_by_time")],
            },
        ),
    ]
