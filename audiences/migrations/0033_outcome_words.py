# Words for people only: the stored value stays, and no statement runs.

from django.db import migrations, models


class Migration(migrations.Migration):

    dependencies = [
        ('audiences', '0032_stopped_lanes'),
    ]

    operations = [
        migrations.AlterField(
            model_name='delivery',
            name='outcome',
            field=models.CharField(blank=True, choices=[('delivered', 'delivered'), ('retry_later', 'retry later'), ('refused', 'rejected'), ('unauthorised', 'unauthorised'), ('unknown', 'unknown')], max_length=12),
        ),
        migrations.AlterField(
            model_name='run',
            name='outcome',
            field=models.CharField(blank=True, choices=[('delivered', 'delivered'), ('retry_later', 'retry later'), ('refused', 'rejected'), ('unauthorised', 'unauthorised'), ('unknown', 'unknown'), ('skipped', 'skipped')], max_length=12),
        ),
    ]
