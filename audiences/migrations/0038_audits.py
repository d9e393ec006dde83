import audiences.encryption
import django.db.models.deletion
import django.utils.timezone
from django.db import migrations, models


def let_them_be_seen(apps, schema_editor):
    """By every role. Django makes the permission after the last migration, which is too late for a group to hold it."""
    from django.apps import apps as installed
    from django.contrib.auth.management import create_permissions

    create_permissions(installed.get_app_config("audiences"), verbosity=0, apps=apps)
    view = apps.get_model("auth", "Permission").objects.get(
        content_type__app_label="audiences", codename="view_audit"
    )
    for group in apps.get_model("auth", "Group").objects.filter(name__in=["viewer", "operator", "admin"]):
        group.permissions.add(view)


class Migration(migrations.Migration):

    dependencies = [
        ('audiences', '0037_odp_prefix'),
    ]

    operations = [
        migrations.CreateModel(
            name='Audit',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('mode', models.CharField(choices=[('quick', 'Sizes'), ('sample', 'A sample'), ('full', 'Every person')], max_length=6)),
                ('share', models.FloatField(default=1.0)),
                ('by', models.CharField(max_length=150)),
                ('asked_at', models.DateTimeField(default=django.utils.timezone.now)),
                ('started_at', models.DateTimeField(null=True)),
                ('ended_at', models.DateTimeField(null=True)),
                ('problem', models.TextField(blank=True, default='')),
                ('note', models.TextField(blank=True, default='')),
                ('phase', models.CharField(choices=[('scan', 'Reading Lytics'), ('settle', 'Waiting for what is under way'), ('compare', 'Comparing with Lytics'), ('odp', 'Asking ODP'), ('done', 'Done')], default='scan', max_length=7)),
                ('lease_until_at', models.DateTimeField(null=True)),
                ('before_sequence', models.BigIntegerField(default=0)),
                ('scan_began_at', models.DateTimeField(null=True)),
                ('scan_token', models.TextField(blank=True, default='')),
                ('scan_starts', models.PositiveIntegerField(default=0)),
                ('settled_since_at', models.DateTimeField(null=True)),
                ('after_identifier', models.TextField(blank=True, default='')),
                ('lytics_size', models.BigIntegerField(null=True)),
                ('ledger_size', models.BigIntegerField(null=True)),
                ('odp_low', models.BigIntegerField(null=True)),
                ('odp_high', models.BigIntegerField(null=True)),
                ('scanned', models.BigIntegerField(default=0)),
                ('compared_with_lytics', models.BigIntegerField(default=0)),
                ('compared_with_odp', models.BigIntegerField(default=0)),
                ('moving', models.BigIntegerField(default=0)),
                ('differing', models.BigIntegerField(default=0)),
                ('explained', models.BigIntegerField(default=0)),
            ],
            options={
                'ordering': ['-id'],
                'default_permissions': ('view',),
            },
        ),
        migrations.CreateModel(
            name='Difference',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('identifier', models.TextField()),
                ('kind', models.CharField(choices=[('not_here', 'member in Lytics, not here'), ('not_lytics', 'member here, not in Lytics'), ('not_odp', 'member here, not in ODP'), ('still_odp', 'not a member here, in ODP'), ('half_odp', 'in ODP by one identifier only')], max_length=10)),
                ('why', models.TextField(blank=True, default='')),
                ('is_explained', models.BooleanField(default=False)),
            ],
            options={
                'ordering': ['id'],
                'default_permissions': (),
            },
        ),
        migrations.CreateModel(
            name='LyticsAccount',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('api_token', audiences.encryption.EncryptedTextField()),
                ('changed_at', models.DateTimeField(default=django.utils.timezone.now)),
            ],
            options={
                'default_permissions': (),
            },
        ),
        migrations.CreateModel(
            name='ScannedMember',
            fields=[
                ('pk', models.CompositePrimaryKey('audit_id', 'identifier', blank=True, editable=False, primary_key=True, serialize=False)),
                ('identifier', models.TextField()),
                ('audit', models.ForeignKey(db_constraint=False, db_index=False, on_delete=django.db.models.deletion.CASCADE, to='audiences.audit')),
            ],
            options={
                'default_permissions': (),
            },
        ),
        migrations.RemoveConstraint(
            model_name='resend',
            name='resend_says_of_what',
        ),
        migrations.AlterField(
            model_name='again',
            name='cause',
            field=models.CharField(choices=[('replay', 'replay'), ('resync', 'resync'), ('release', 'release'), ('leave', 'take-over'), ('repair', 'repair'), ('unanswered', 'a delivery without a final answer')], max_length=10),
        ),
        migrations.AlterField(
            model_name='resend',
            name='kind',
            field=models.CharField(choices=[('replay', 'replay'), ('resync', 'resync'), ('release', 'release'), ('leave', 'take-over'), ('repair', 'repair')], max_length=10),
        ),
        migrations.AddConstraint(
            model_name='resend',
            constraint=models.CheckConstraint(condition=models.Q(models.Q(('audience', None), ('kind', 'release'), models.Q(('parked_reason', ''), _negated=True)), models.Q(('audience__isnull', False), ('kind', 'resync')), models.Q(('audience__isnull', False), ('kind__in', ('leave', 'repair')), ('upto__gt', 0)), models.Q(('audience__isnull', False), ('kind', 'replay'), ('received_from__isnull', False), ('received_to__gt', models.F('received_from')), ('received_to__isnull', False)), _connector='OR'), name='resend_says_of_what'),
        ),
        migrations.AddField(
            model_name='audit',
            name='audience',
            field=models.ForeignKey(on_delete=django.db.models.deletion.PROTECT, related_name='audits', to='audiences.audience'),
        ),
        migrations.AddField(
            model_name='audit',
            name='install',
            field=models.ForeignKey(on_delete=django.db.models.deletion.PROTECT, related_name='audits', to='audiences.install'),
        ),
        migrations.AddField(
            model_name='difference',
            name='audit',
            field=models.ForeignKey(on_delete=django.db.models.deletion.CASCADE, related_name='differences', to='audiences.audit'),
        ),
        migrations.AddField(
            model_name='lyticsaccount',
            name='install',
            field=models.OneToOneField(on_delete=django.db.models.deletion.CASCADE, related_name='lytics', to='audiences.install'),
        ),
        migrations.AddConstraint(
            model_name='audit',
            constraint=models.UniqueConstraint(condition=models.Q(('ended_at', None)), fields=('audience',), name='one_unfinished_audit_per_audience'),
        ),
        migrations.AddConstraint(
            model_name='difference',
            constraint=models.UniqueConstraint(fields=('audit', 'identifier', 'kind'), name='one_difference_per_person_and_kind'),
        ),
        migrations.AddField(
            model_name='audit',
            name='is_newest',
            field=models.BooleanField(default=False),
        ),
        migrations.AddIndex(
            model_name='audit',
            index=models.Index(fields=['audience', '-id'], name='audits_of_an_audience'),
        ),
        migrations.AddIndex(
            model_name='audit',
            index=models.Index(fields=['install', '-id'], name='audits_of_an_install'),
        ),
        migrations.AddIndex(
            model_name='audit',
            index=models.Index(condition=models.Q(('is_newest', True), models.Q(('differing__gt', 0), models.Q(('problem', ''), _negated=True), _connector='OR')), fields=['-id'], name='bad_audits'),
        ),
        migrations.RunPython(let_them_be_seen, migrations.RunPython.noop),
    ]
