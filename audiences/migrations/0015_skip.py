"""Events that a person decided not to send.

The new constraint is added unchecked and then validated, so that no table is locked while it is read.
"""

import django.db.models.deletion
import django.utils.timezone
from django.contrib.postgres.operations import AddConstraintNotValid, ValidateConstraint
from django.db import migrations, models
from django.db.models import Q


class Migration(migrations.Migration):
    atomic = False

    dependencies = [("audiences", "0014_runs_unchecked_keys")]

    operations = [
        migrations.CreateModel(
            name="Skip",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("by", models.CharField(max_length=150)),
                ("reason", models.TextField()),
                ("at", models.DateTimeField(default=django.utils.timezone.now)),
                (
                    "install",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.PROTECT, related_name="skips", to="audiences.install"
                    ),
                ),
            ],
            options={
                "default_permissions": (),
                "constraints": [
                    models.CheckConstraint(name="skip_says_who_and_why", condition=~Q(by="") & ~Q(reason=""))
                ],
            },
        ),
        migrations.AddField(
            model_name="run",
            name="skip",
            field=models.ForeignKey(
                db_constraint=False,
                db_index=False,
                null=True,
                on_delete=django.db.models.deletion.PROTECT,
                related_name="runs",
                to="audiences.skip",
            ),
        ),
        migrations.AlterField(
            model_name="run",
            name="outcome",
            field=models.CharField(
                blank=True,
                choices=[
                    ("delivered", "delivered"),
                    ("retry_later", "retry later"),
                    ("refused", "refused"),
                    ("unauthorised", "unauthorised"),
                    ("unknown", "unknown"),
                    ("skipped", "skipped"),
                ],
                max_length=12,
            ),
        ),
        AddConstraintNotValid(
            model_name="run",
            constraint=models.CheckConstraint(
                name="skipped_run_says_who_and_why",
                condition=Q(outcome="skipped", skip__isnull=False) | (~Q(outcome="skipped") & Q(skip=None)),
            ),
        ),
        ValidateConstraint(model_name="run", name="skipped_run_says_who_and_why"),
    ]
