from django.db import migrations, models
import django.db.models.deletion
import django.utils.timezone


def allow(apps, schema_editor):
    """Retiring deletes an audience in ODP, so it is the admins' button, as discarding is."""
    from django.apps import apps as installed
    from django.contrib.auth.management import create_permissions

    create_permissions(installed.get_app_config("audiences"), verbosity=0, apps=apps)
    Permission = apps.get_model("auth", "Permission")
    for group in apps.get_model("auth", "Group").objects.filter(name="admin"):
        group.permissions.add(
            *Permission.objects.filter(content_type__app_label="audiences", codename="retire_audience")
        )


class Migration(migrations.Migration):

    dependencies = [
        ('audiences', '0041_guided_changes'),
    ]

    operations = [
        migrations.AlterModelOptions(
            name='audience',
            options={'ordering': ['install', 'odp_id'], 'permissions': [('pause_audience', 'Can pause an audience'), ('resume_audience', 'Can resume an audience'), ('unblock_audience', 'Can unblock an audience'), ('resync_audience', 'Can resync an audience'), ('replay_audience', 'Can replay a time range of an audience'), ('retire_audience', 'Can retire an audience')]},
        ),
        migrations.AddField(
            model_name='audience',
            name='reuses_id_at',
            field=models.DateTimeField(null=True),
        ),
        migrations.AddField(
            model_name='lane',
            name='retired_at',
            field=models.DateTimeField(null=True),
        ),
        migrations.AddField(
            model_name='lane',
            name='retired_sequence',
            field=models.BigIntegerField(null=True),
        ),
        migrations.AlterField(
            model_name='again',
            name='cause',
            field=models.CharField(choices=[('replay', 'replay'), ('resync', 'resync'), ('release', 'release'), ('leave', 'take-over'), ('repair', 'repair'), ('retire', 'retirement'), ('restore', 'taking back a retired audience'), ('unanswered', 'a delivery without a final answer')], max_length=10),
        ),
        migrations.AddIndex(
            model_name='lane',
            index=models.Index(condition=models.Q(('retired_at__isnull', False)), fields=['retired_at'], name='retired_lanes'),
        ),
        migrations.AddConstraint(
            model_name='lane',
            constraint=models.CheckConstraint(condition=models.Q(('retired_at', None), ('retired_sequence__isnull', False), _connector='OR'), name='retired_lane_has_an_end'),
        ),
        migrations.CreateModel(
            name='Retirement',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('by', models.CharField(max_length=150)),
                ('reason', models.TextField()),
                ('asked_at', models.DateTimeField(default=django.utils.timezone.now)),
                ('began_sequence', models.BigIntegerField()),
                ('total', models.BigIntegerField()),
                ('done', models.BigIntegerField(default=0)),
                ('after_identifier', models.TextField(blank=True, default='')),
                ('emptied_at', models.DateTimeField(null=True)),
                ('ended_at', models.DateTimeField(null=True)),
                ('left_in_odp', models.TextField(blank=True, default='')),
                ('undone_at', models.DateTimeField(null=True)),
                ('undone_by', models.CharField(blank=True, default='', max_length=150)),
                ('undone_reason', models.TextField(blank=True, default='')),
                ('restored_sequence', models.BigIntegerField(default=0)),
                ('restored_at', models.DateTimeField(null=True)),
                ('audience', models.ForeignKey(on_delete=django.db.models.deletion.PROTECT, related_name='retirements', to='audiences.audience')),
            ],
            options={
                'default_permissions': (),
                'indexes': [models.Index(condition=models.Q(models.Q(('ended_at', None), ('undone_at', None)), models.Q(('restored_at', None), ('undone_at__isnull', False)), _connector='OR'), fields=['audience'], name='unfinished_retirements')],
                'constraints': [models.UniqueConstraint(condition=models.Q(('restored_at', None)), fields=('audience',), name='one_retirement_per_audience'), models.CheckConstraint(condition=models.Q(models.Q(('by', ''), _negated=True), models.Q(('reason', ''), _negated=True)), name='retirement_says_who_and_why'), models.CheckConstraint(condition=models.Q(('ended_at', None), ('emptied_at__isnull', False), _connector='OR'), name='retirement_ends_when_emptied'), models.CheckConstraint(condition=models.Q(models.Q(('restored_at', None), ('undone_at', None), ('undone_by', '')), models.Q(('undone_at__isnull', False), models.Q(('undone_by', ''), _negated=True)), _connector='OR'), name='undone_retirement_says_by_whom')],
            },
        ),
        migrations.RunPython(allow, migrations.RunPython.noop),
    ]
