import audiences.encryption
import django.db.models.deletion
import django.utils.timezone
from django.db import migrations, models


def allow(apps, schema_editor):
    """For the role admin. Django makes the permission after the last migration, which is too late for a group."""
    from django.apps import apps as installed
    from django.contrib.auth.management import create_permissions

    create_permissions(installed.get_app_config("audiences"), verbosity=0, apps=apps)
    permission = apps.get_model("auth", "Permission").objects.get(
        content_type__app_label="audiences", codename="forget_customer"
    )
    for group in apps.get_model("auth", "Group").objects.filter(name="admin"):
        group.permissions.add(permission)


class Migration(migrations.Migration):

    dependencies = [
        ('audiences', '0038_audits'),
    ]

    operations = [
        migrations.CreateModel(
            name='Forgotten',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('digest', models.CharField(max_length=64)),
                ('identifier', audiences.encryption.EncryptedTextField(blank=True, default='')),
                ('token', models.CharField(max_length=64, unique=True)),
                ('tell_odp', models.BooleanField(default=False)),
                ('exits', models.JSONField(null=True)),
                ('by', models.CharField(max_length=150)),
                ('reason', models.TextField(blank=True, default='')),
                ('asked_at', models.DateTimeField(default=django.utils.timezone.now)),
                ('ended_at', models.DateTimeField(null=True)),
                ('counts', models.JSONField(default=dict)),
                ('install', models.ForeignKey(on_delete=django.db.models.deletion.PROTECT, related_name='forgotten', to='audiences.install')),
            ],
            options={
                'ordering': ['-id'],
                'permissions': [('forget_customer', 'Can forget a customer')],
                'default_permissions': (),
                'indexes': [models.Index(fields=['digest'], name='forgotten_by_digest')],
                'constraints': [models.UniqueConstraint(condition=models.Q(('ended_at', None)), fields=('install', 'digest'), name='one_unfinished_forgetting_per_person'), models.CheckConstraint(condition=models.Q(('ended_at', None), ('identifier', ''), _connector='OR'), name='forgotten_person_has_no_identifier')],
            },
        ),
        migrations.RunPython(allow, migrations.RunPython.noop),
    ]
