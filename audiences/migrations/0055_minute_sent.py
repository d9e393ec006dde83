from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("audiences", "0054_array_identifiers")]

    operations = [migrations.AddField("minute", "sent", models.BigIntegerField(null=True))]
