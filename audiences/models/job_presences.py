"""Whether a Lytics job still sends each audience, by the last look at the jobs."""

from django.db import models
from django.db.models import Q

from audiences.models.audiences import Audience


class JobPresence(models.Model):
    """Whether a Lytics job still sends an audience to its install. Written by ``operations/job_looks.py``.

    Only audiences that a look has seen in a job have a row: calls for the others came from a job that the API token
    doesn't show, so nothing is known about them.
    """

    audience = models.OneToOneField(Audience, on_delete=models.CASCADE, primary_key=True, related_name="job_presence")
    # The time of the last look that found the audience in a job, and the id of that job.
    seen_at = models.DateTimeField()
    job_id = models.TextField()
    # The time since which looks find that no job sends the audience, or that Lytics has deleted it.
    gone_at = models.DateTimeField(null=True)
    is_deleted = models.BooleanField(default=False, db_default=False)
    # The last time that Lytics was asked whether it has deleted the audience, which its list lacks.
    asked_at = models.DateTimeField(null=True)

    class Meta:
        default_permissions = ()
        # For the front page, which reads only audiences that are gone. These are few.
        indexes = [models.Index(fields=["gone_at"], condition=Q(gone_at__isnull=False), name="gone_from_job")]
        constraints = [
            models.CheckConstraint(
                name="deleted_audience_is_gone", condition=Q(is_deleted=False) | Q(gone_at__isnull=False)
            )
        ]

    def __str__(self) -> str:
        return f"{self.audience} in the Lytics job"
