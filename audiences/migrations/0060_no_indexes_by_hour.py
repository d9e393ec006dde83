from django.contrib.postgres.operations import RemoveIndexConcurrently
from django.db import migrations


class Migration(migrations.Migration):
    """Lists find a period by the primary key."""

    atomic = False

    dependencies = [("audiences", "0059_notified_troubles")]

    operations = [
        RemoveIndexConcurrently("delivery", "deliveries_by_hour"),
        RemoveIndexConcurrently("receipt", "receipts_by_hour"),
    ]
