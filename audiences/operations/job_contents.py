"""The audiences that the Lytics jobs of an install send, as the doctor and the scheduled look read them."""

from collections.abc import Mapping
from dataclasses import dataclass

from audiences.models import Audience
from audiences.operations.doctor.case import Case, NotCheckedError
from audiences.receiving.audience_lookup import BY_SLUG


@dataclass(frozen=True)
class Contents:
    """The audiences of the jobs that call an install. ``jobs`` has the ids of all listed webhook jobs, old ones too.

    ``_job_by_name`` has the id of the job for each segment id, and for each slug with the prefix of ``segment_id``.
    """

    jobs: frozenset[str]
    names_all: bool
    _job_by_name: Mapping[str, str]

    def job_of(self, audience: Audience) -> str:
        """The id of a job that sends the audience; empty when no job does.

        Lytics documents that jobs list segment ids. A slug in their place counts too.
        """
        names = (audience.segment_id, audience.segment_id.removeprefix(BY_SLUG), audience.latest_slug)
        return next((self._job_by_name[name] for name in names if name in self._job_by_name), "")

    def may_be_sent(self, audience: Audience) -> bool:
        """Whether a job sends the audience or may send it: slugs of segments that Lytics doesn't list are unknown."""
        return bool(self.job_of(audience)) or (audience.segment_id.startswith(BY_SLUG) and not self.names_all)


def contents(case: Case) -> Contents:
    """Read the jobs. Raises ``NotCheckedError`` without a complete list: a partial one is no evidence of an absence."""
    if case.unreadable_jobs:
        raise NotCheckedError(f"Webhook jobs that can't be read, maybe also this install's: {case.unreadable_jobs:,}.")
    if unreadable := [job.name for job in case.jobs if not job.shows_audiences]:
        raise NotCheckedError(f"Lytics does not show all audiences of {', '.join(unreadable)}.")
    job_by_name = {segment_id: job.job_id for job in case.jobs for segment_id in job.segment_ids}
    slugs = {
        BY_SLUG + known.slug: job_id
        for segment_id, job_id in job_by_name.items()
        if (known := case.lytics_audiences.get(segment_id))
    }
    jobs = frozenset(job.job_id for job in case.webhook_jobs)
    return Contents(jobs, case.exported <= case.lytics_audiences.keys(), {**slugs, **job_by_name})
