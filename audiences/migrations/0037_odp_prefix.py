import django.core.validators
from django.db import migrations, models


class Migration(migrations.Migration):

    dependencies = [
        ('audiences', '0034_history_of_a_thing'),
    ]

    operations = [
        migrations.AddField(
            model_name='install',
            name='odp_prefix',
            field=models.CharField(db_default='lytics_', default='lytics_', help_text='The ids of its audiences in ODP begin with it. Two installs that send to one ODP account need different ones, such as lytics_ and lytics_eu_.', max_length=40, validators=[django.core.validators.RegexValidator('^lytics_([a-z0-9]([a-z0-9_]*[a-z0-9])?_)?$', 'A prefix is lytics_, or lytics_ and small letters, digits or underscores with an underscore at the end, such as lytics_eu_.')], verbose_name='prefix of ODP ids'),
        ),
    ]
