"""The parts of the log: the partitions of ``audiences_event``. See docs/decisions/0036-parts-of-the-log.md."""

from typing import Any

from django.db import models

# Events that were kept when their part was dropped, because they decide a row of the ledger. It is never dropped.
KEPT = 0
# The part of events that were stored before the log had parts.
FIRST = 1


class NewestPart(models.Func):
    """The part that new events go to, as the database function that new audiences get it from."""

    function = "newest_part"
    output_field: "models.Field[Any, Any]" = models.IntegerField()


class LogPart(models.Model):
    """One part of the log, in the table ``audiences_event_<number>``.

    The newest row has no ``opened_at``: it was created ahead, and no event goes to it yet. Rows are created and deleted
    with their tables by the functions ``add_part`` and ``drop_part`` alone.
    """

    number = models.IntegerField(primary_key=True)
    opened_at = models.DateTimeField(null=True)

    class Meta:
        default_permissions = ()

    def __str__(self) -> str:
        return f"part {self.number}"
