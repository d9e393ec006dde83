from django.db import migrations, models


class Migration(migrations.Migration):

    dependencies = [
        ('audiences', '0024_lane_fault'),
    ]

    operations = [
        migrations.AddField(
            model_name='minute',
            name='arrived',
            field=models.JSONField(null=True),
        ),
        migrations.AddIndex(
            model_name='again',
            index=models.Index(fields=['cause', '-id'], name='agains_by_cause'),
        ),
    ]
