from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("audiences", "0050_alert_limits")]

    operations = [
        migrations.AddField(
            model_name="trouble",
            name="mute_reason",
            field=models.TextField(blank=True, db_default="", default=""),
        ),
    ]
