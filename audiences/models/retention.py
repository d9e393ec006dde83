"""The progress of deleting old rows. Written by ``operations/pruning.py`` alone."""

from django.db import models

from audiences.models.audiences import Audience


class Pruning(models.Model):
    """The deletion of one kind of rows: its horizon, and the progress of its present pass over the table.

    A pass begins when the horizon moves, once a day, and goes through the table from the lowest id. ``position`` is the
    last id done; for events it is the last audience done, and ``sequence`` the last number done in the next one.
    """

    kind = models.CharField(max_length=12, primary_key=True)
    # Rows from before this time are deleted, unless something needs them.
    horizon_at = models.DateTimeField(null=True)
    position = models.BigIntegerField(default=0)
    sequence = models.BigIntegerField(default=0)
    is_done = models.BooleanField(default=False)
    # The number of rows deleted in all passes; for request bodies, the number of rows emptied.
    pruned = models.BigIntegerField(default=0)

    class Meta:
        default_permissions = ()

    def __str__(self) -> str:
        return f"pruning of {self.kind}"


class Horizon(models.Model):
    """The numbers of an audience's log up to which events and Runs were deleted, except those that are still needed.

    These columns aren't in the audience's row, which calls lock, or in the lane's row, which deliveries lock.
    """

    audience = models.OneToOneField(
        Audience, on_delete=models.DO_NOTHING, primary_key=True, db_constraint=False, related_name="horizon"
    )
    events_to = models.BigIntegerField(default=0, db_default=0)
    runs_to = models.BigIntegerField(default=0, db_default=0)

    class Meta:
        default_permissions = ()

    def __str__(self) -> str:
        return f"horizon of {self.audience}: events {self.events_to}, runs {self.runs_to}"
