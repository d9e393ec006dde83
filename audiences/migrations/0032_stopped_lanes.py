from django.db import migrations, models

# The front page lists and counts these audiences. They are few, so the indexes are small, and an update changes them
# only when an audience stops or goes on: the other updates stay HOT. Each is built in milliseconds, and processes of the
# version before don't notice them.


class Migration(migrations.Migration):

    dependencies = [
        ('audiences', '0031_twins'),
    ]

    operations = [
        migrations.AddIndex(
            model_name='audience',
            index=models.Index(condition=models.Q(('hold_failures__gt', 0)), fields=['hold_since_at'], name='audiences_on_hold'),
        ),
        migrations.AddIndex(
            model_name='lane',
            index=models.Index(condition=models.Q(('blocked_at__isnull', False)), fields=['blocked_at'], name='blocked_lanes'),
        ),
        migrations.AddIndex(
            model_name='lane',
            index=models.Index(condition=models.Q(('paused_at__isnull', False)), fields=['paused_at'], name='paused_lanes'),
        ),
        migrations.AddIndex(
            model_name='lane',
            index=models.Index(condition=models.Q(('fault_since_at__isnull', False)), fields=['fault_since_at'], name='faulty_lanes'),
        ),
    ]
