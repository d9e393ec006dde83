"""Guided changes to another ODP account: columns of a change, and how far each of its audiences is."""

import audiences.encryption
import django.db.models.deletion
from django.db import migrations, models


class Migration(migrations.Migration):

    dependencies = [
        ('audiences', '0044_troubles'),
    ]

    operations = [
        migrations.CreateModel(
            name='AudienceMove',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('stage', models.CharField(choices=[('copy', 'to be copied'), ('verify', 'to be verified'), ('catch_up', 'verified'), ('empty', 'in the new account'), ('done', 'removed from the old account')], default='copy', max_length=10)),
                ('odp_id', models.CharField(max_length=540)),
                ('from_sequence', models.BigIntegerField(default=0)),
                ('rejected', models.PositiveIntegerField(default=0)),
            ],
            options={
                'default_permissions': (),
            },
        ),
        migrations.RemoveConstraint(
            model_name='guidedchange',
            name='change_in_work_has_an_audience',
        ),
        migrations.AddField(
            model_name='guidedchange',
            name='after_identifier',
            field=models.TextField(blank=True, db_default='', default=''),
        ),
        migrations.AddField(
            model_name='guidedchange',
            name='copied_at',
            field=models.DateTimeField(null=True),
        ),
        migrations.AddField(
            model_name='guidedchange',
            name='empties',
            field=models.BooleanField(db_default=False, default=False),
        ),
        migrations.AddField(
            model_name='guidedchange',
            name='lane_tokens',
            field=models.JSONField(null=True),
        ),
        migrations.AddField(
            model_name='guidedchange',
            name='other_api_key',
            field=audiences.encryption.EncryptedTextField(blank=True, db_default='', default=''),
        ),
        migrations.AddField(
            model_name='guidedchange',
            name='other_host',
            field=models.CharField(blank=True, db_default='', default='', max_length=200),
        ),
        migrations.AddField(
            model_name='guidedchange',
            name='other_region',
            field=models.CharField(blank=True, db_default='', default='', max_length=2),
        ),
        migrations.AddField(
            model_name='guidedchange',
            name='rejected',
            field=models.PositiveIntegerField(db_default=0, default=0),
        ),
        migrations.AddField(
            model_name='guidedchange',
            name='request_size',
            field=models.PositiveSmallIntegerField(db_default=0, default=0),
        ),
        migrations.AddField(
            model_name='guidedchange',
            name='sends_exits',
            field=models.BooleanField(db_default=False, default=False),
        ),
        migrations.AddField(
            model_name='guidedchange',
            name='switched_at',
            field=models.DateTimeField(null=True),
        ),
        migrations.AlterField(
            model_name='guidedchange',
            name='kind',
            field=models.CharField(choices=[('mechanism', 'another mechanism'), ('account', 'another ODP account')], max_length=10),
        ),
        migrations.AlterField(
            model_name='guidedchange',
            name='phase',
            field=models.CharField(choices=[('choose', 'choosing the next audience'), ('check', 'making what the new mechanism needs in ODP'), ('switch', 'switching deliveries to the new mechanism'), ('back', 'switching deliveries back'), ('await', 'waiting for the request under way'), ('resend', 'sending the ledger again'), ('prove', 'making the audience for the verification'), ('verify', 'verifying a sample in ODP'), ('replace', 'replacing the definition in ODP'), ('clean', 'deleting the audience for the verification'), ('finish', 'finishing the audience'), ('tell_apart', 'making sure that the key belongs to another account'), ('make', 'making the audience in the new account'), ('copy', 'sending the ledger to the new account'), ('move', 'switching the install to the new account'), ('leases', 'waiting for the requests to the old account'), ('catch_up', 'sending what changed while the ledger was copied'), ('empty', 'emptying the audience in the old account'), ('remove', 'deleting the audience in the old account')], default='choose', max_length=10),
        ),
        migrations.AddConstraint(
            model_name='guidedchange',
            constraint=models.CheckConstraint(condition=models.Q(('ended_at', None), ('other_api_key', ''), _connector='OR'), name='ended_change_keeps_no_key'),
        ),
        migrations.AddConstraint(
            model_name='guidedchange',
            constraint=models.CheckConstraint(condition=models.Q(models.Q(('audience', None), ('phase__in', ('choose', 'tell_apart', 'move', 'leases'))), models.Q(models.Q(('phase__in', ('choose', 'tell_apart', 'move', 'leases')), _negated=True), ('audience__isnull', False)), _connector='OR'), name='change_in_work_has_an_audience'),
        ),
        migrations.AddField(
            model_name='audiencemove',
            name='audience',
            field=models.ForeignKey(on_delete=django.db.models.deletion.PROTECT, related_name='moves', to='audiences.audience'),
        ),
        migrations.AddField(
            model_name='audiencemove',
            name='change',
            field=models.ForeignKey(on_delete=django.db.models.deletion.PROTECT, related_name='moves', to='audiences.guidedchange'),
        ),
        migrations.AddConstraint(
            model_name='audiencemove',
            constraint=models.UniqueConstraint(fields=('change', 'audience'), name='one_move_per_change'),
        ),
    ]
