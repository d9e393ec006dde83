"""Guided changes to another identifier field: columns of a change, and how many differences an audit stores."""

from django.db import migrations, models


class Migration(migrations.Migration):

    dependencies = [
        ('audiences', '0046_retention'),
    ]

    operations = [
        migrations.RemoveConstraint(
            model_name='guidedchange',
            name='change_in_work_has_an_audience',
        ),
        migrations.AddField(
            model_name='audit',
            name='most',
            field=models.PositiveIntegerField(db_default=0, default=0),
        ),
        migrations.AddField(
            model_name='guidedchange',
            name='audit_id',
            field=models.BigIntegerField(null=True),
        ),
        migrations.AddField(
            model_name='guidedchange',
            name='last_audience_id',
            field=models.BigIntegerField(db_default=0, default=0),
        ),
        migrations.AddField(
            model_name='guidedchange',
            name='repairs',
            field=models.PositiveSmallIntegerField(db_default=0, default=0),
        ),
        migrations.AlterField(
            model_name='guidedchange',
            name='kind',
            field=models.CharField(choices=[('mechanism', 'another mechanism'), ('account', 'another ODP account'), ('identifier', 'another identifier field')], max_length=10),
        ),
        migrations.AlterField(
            model_name='guidedchange',
            name='phase',
            field=models.CharField(choices=[('choose', 'choosing the next audience'), ('check', 'making what the new mechanism needs in ODP'), ('switch', 'switching deliveries to the new mechanism'), ('back', 'switching deliveries back'), ('await', 'waiting for the request under way'), ('resend', 'sending the ledger again'), ('prove', 'making the audience for the verification'), ('verify', 'verifying a sample in ODP'), ('replace', 'replacing the definition in ODP'), ('clean', 'deleting the audience for the verification'), ('finish', 'finishing the audience'), ('tell_apart', 'making sure that the key belongs to another account'), ('make', 'making the audience in the new account'), ('copy', 'sending the ledger to the new account'), ('move', 'switching the install to the new account'), ('leases', 'waiting for the requests to the old account'), ('catch_up', 'sending what changed while the ledger was copied'), ('empty', 'emptying the audience in the old account'), ('remove', 'deleting the audience in the old account'), ('read_by', 'switching the identifier field'), ('calls', 'waiting for the calls that were read by the old field'), ('audit', 'comparing with the members in Lytics'), ('repair', 'sending the differences')], default='choose', max_length=10),
        ),
        migrations.AddConstraint(
            model_name='guidedchange',
            constraint=models.CheckConstraint(condition=models.Q(models.Q(('audience', None), ('phase__in', ('choose', 'tell_apart', 'move', 'leases', 'read_by', 'calls'))), models.Q(models.Q(('phase__in', ('choose', 'tell_apart', 'move', 'leases', 'read_by', 'calls')), _negated=True), ('audience__isnull', False)), _connector='OR'), name='change_in_work_has_an_audience'),
        ),
    ]
