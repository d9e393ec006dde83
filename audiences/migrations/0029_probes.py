from django.db import migrations, models


class Migration(migrations.Migration):

    dependencies = [
        ('audiences', '0028_room_for_updates'),
    ]

    operations = [
        migrations.AddField(
            model_name='trial',
            name='is_probe',
            field=models.BooleanField(db_default=False, default=False),
        ),
    ]
