from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("audiences", "0039_forgotten")]

    operations = [
        migrations.AddField(
            model_name="lyticsaccount",
            name="connecting_until_at",
            field=models.DateTimeField(null=True),
        ),
    ]
