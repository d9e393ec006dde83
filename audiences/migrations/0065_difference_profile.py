from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("audiences", "0064_drop_part_waits_for_nobody")]

    operations = [
        migrations.AddField(
            model_name="difference",
            name="profile",
            field=models.TextField(blank=True, db_default="", default=""),
        ),
    ]
