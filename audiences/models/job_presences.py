"""What the Lytics job has of each audience, as the last look found it."""

from django.db import models
from django.db.models import Q

from audiences.models.audiences import Audience


class JobPresence(models.Model):
    """Whether a Lytics job still sends an audience to its install. Written by ``operations/job_looks.py``.

    Only audiences that a look has seen in a job have a row: calls for the others came from a job that the API token
    doesn't show, so nothing is known about them.
    """

    audience = models.OneToOneField(Audience, on_delete=models.CASCADE, primary_key=True, related_name="job_presence")
    # The last look that saw it in a job, and that job.
    seen_at = models.DateTimeField()
    job_id = models.TextField()
    # Since when looks have found that no job sends it any more, or that Lytics has deleted it.
    gone_at = models.DateTimeField(null=True)
    is_deleted = models.BooleanField(default=False, db_default=False)
    # When Lytics was last asked whether it has deleted it, because its list of audiences lacked it.
    asked_at = models.DateTimeField(null=True)

    class Meta:
        default_permissions = ()
        # For the front page. Few audiences are gone; the others aren't indexed.
        indexes = [models.Index(fields=["gone_at"], condition=Q(gone_at__isnull=False), name="gone_from_job")]
        constraints = [
            models.CheckConstraint(
                name="deleted_audience_is_gone", condition=Q(is_deleted=False) | Q(gone_at__isnull=False)
            )
        ]

    def __str__(self) -> str:
        return f"{self.audience} in the Lytics job"
