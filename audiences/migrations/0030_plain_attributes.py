from django.db import migrations, models
from django.db.models import Q


def _renamed(model: str, old: str, new: str, field: models.Field) -> list:
    """The attribute ``new`` of the column ``old``."""
    field.db_column = old
    return [
        migrations.RenameField(model, old, new),
        migrations.AlterField(model, new, field),
    ]


# Only Django's state changes: attributes get the words of the admin, columns keep their names. So the processes of the
# version before go on reading and writing them, and nothing runs in the database.
class Migration(migrations.Migration):

    dependencies = [
        ('audiences', '0029_probes'),
    ]

    operations = [
        migrations.SeparateDatabaseAndState(
            state_operations=[
                migrations.RemoveConstraint('install', 'braked_install_says_why'),
                *_renamed('install', 'brake_since_at', 'backoff_since_at', models.DateTimeField(null=True, editable=False)),
                *_renamed('install', 'brake_until_at', 'backoff_until_at', models.DateTimeField(null=True, editable=False)),
                *_renamed('install', 'brake_reason', 'backoff_reason', models.TextField(blank=True, editable=False)),
                *_renamed('install', 'brake_failures', 'backoff_failures', models.PositiveIntegerField(default=0, editable=False)),
                migrations.AddConstraint('install', models.CheckConstraint(
                    name='braked_install_says_why',
                    condition=Q(backoff_until_at=None, backoff_since_at=None, backoff_failures=0)
                    | Q(backoff_until_at__isnull=False, backoff_since_at__isnull=False, backoff_failures__gt=0)
                    & ~Q(backoff_reason=''),
                )),
                migrations.RemoveIndex('delivery', 'deliveries_to_affirm'),
                *_renamed('delivery', 'affirmed_at', 'reconciled_at', models.DateTimeField(null=True)),
                migrations.AddIndex('delivery', models.Index(
                    fields=['closed_at'],
                    condition=Q(reconciled_at=None, outcome__in=['unknown', 'retry_later']),
                    name='deliveries_to_affirm',
                )),
                *_renamed('membership', 'refused', 'rejected', models.BooleanField(default=False)),
            ],
        ),
    ]
