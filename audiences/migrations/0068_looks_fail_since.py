"""Since when the looks at an install's audiences in ODP fail, so that *Now* can say it."""

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("audiences", "0067_former_odp_ids")]

    operations = [
        migrations.AddField(
            model_name="install",
            name="looks_fail_since_at",
            field=models.DateTimeField(editable=False, null=True),
        ),
    ]
