"""Data that the checks of one examination share: the clients of both accounts, and their responses, each read once."""

import time
from functools import cached_property
from urllib.parse import urlsplit

from django.core.exceptions import ImproperlyConfigured

from audiences import lytics_account
from audiences.delivery import odp_account
from audiences.encryption import UNREADABLE, Unreadable
from audiences.insight import trials
from audiences.models import Audience, Install, Retirement
from audiences.operations import installs, lytics_job
from lytics.api import audiences as lytics_audiences
from lytics.api import authorizations as lytics_authorizations
from lytics.api import jobs as lytics_jobs
from lytics.api.audiences import Audience as LyticsAudience
from lytics.api.authorizations import Authorization
from lytics.api.client import Client as LyticsClient
from lytics.api.jobs import Job, JobLog
from lytics.api.outcomes import Answer as LyticsAnswer
from lytics.api.outcomes import Outcome
from lytics.api.reading import Many
from odp import segments
from odp.client import Client
from odp.outcomes import Answer
from odp.regions import host_of

# Seconds for all checks of one examination, and for one request of a check.
SECONDS = 45.0
REQUEST_SECONDS = 8.0
NO_TOKEN = "No API token of the Lytics account is stored for this install, so Lytics was not asked."  # noqa: S105
NO_TOKEN_CURE = "Press Lytics API token on the install's page. Everything else works without one."  # noqa: S105


class NotCheckedError(Exception):
    """A check can't run. ``evidence`` is the reason, and ``cure`` makes the check possible."""

    def __init__(self, evidence: str, cure: str = "") -> None:
        super().__init__(evidence)
        self.evidence, self.cure = evidence, cure


class Case:
    """One examination of one install. Data is requested when a check first needs it, and kept for later checks."""

    def __init__(self, install: Install, *, seconds: float = SECONDS) -> None:
        self.install = install
        self.ends_at = time.monotonic() + seconds
        # Whether the public address answered as this service; set by its first check.
        self.is_reached = False

    # --- ODP ---------------------------------------------------------------------------------------------------

    @cached_property
    def host(self) -> str:
        return host_of(api_key=self.install.odp_api_key, region=self.install.region, host=self.install.odp_host)

    @cached_property
    def api_key(self) -> str:
        if isinstance(self.install.odp_api_key, Unreadable):
            cure = "Put the old encryption key back into FIELD_ENCRYPTION_KEYS, or enter the API key again."
            raise NotCheckedError(f"The stored API key {UNREADABLE}, so ODP was not asked.", cure)
        return self.install.odp_api_key

    @cached_property
    def odp(self) -> Client:
        assert self.api_key
        return odp_account.client_of(self.install, ends_at=self.ends_at)

    @cached_property
    def segments(self) -> frozenset[str] | Answer:
        return segments.ids(self.odp, seconds=REQUEST_SECONDS)

    # --- Lytics ------------------------------------------------------------------------------------------------

    @cached_property
    def lytics(self) -> LyticsClient:
        try:
            client = lytics_account.client_of(self.install, ends_at=self.ends_at)
        except ImproperlyConfigured as problem:
            cure = "Put the old encryption key back into FIELD_ENCRYPTION_KEYS, or enter the API token again."
            raise NotCheckedError(
                f"The stored Lytics API token {UNREADABLE}, so Lytics was not asked.", cure
            ) from problem
        if client is None:
            raise NotCheckedError(NO_TOKEN, NO_TOKEN_CURE)
        client.seconds = min(client.seconds, REQUEST_SECONDS)
        return client

    @cached_property
    def webhook_jobs(self) -> tuple[Job, ...]:
        """All webhook jobs of the account, including completed and deleted ones."""
        return self._listed_jobs.items

    @property
    def unreadable_jobs(self) -> int:
        """The number of jobs without a readable id or settings. This install's job may be among them."""
        return self._listed_jobs.unreadable + sum(not job.is_gone and not job.config for job in self.webhook_jobs)

    @cached_property
    def _listed_jobs(self) -> Many[Job]:
        found = lytics_jobs.jobs(self.lytics, with_deleted=True)
        _must_be_ok(found.answer, "The list of jobs")
        return found

    @cached_property
    def jobs(self) -> tuple[Job, ...]:
        """The webhook jobs that call this install and aren't gone. Raises ``NotCheckedError`` without any."""
        ours = tuple(job for job in self.jobs_of_install if not job.is_gone)
        if not ours:
            raise NotCheckedError("No webhook job of the Lytics account calls this install.")
        return ours

    @cached_property
    def jobs_of_install(self) -> tuple[Job, ...]:
        path = urlsplit(installs.webhook_url(self.install)).path
        return tuple(job for job in self.webhook_jobs if urlsplit(url_of(job)).path.rstrip("/") == path)

    @cached_property
    def lytics_audiences(self) -> dict[str, LyticsAudience]:
        """The audiences in Lytics, by segment id."""
        found = lytics_audiences.audiences(self.lytics)
        _must_be_ok(found.answer, "The list of audiences")
        return {one.segment_id: one for one in found.items}

    def is_deleted_in_lytics(self, segment_id: str) -> bool:
        """Whether Lytics has no such audience. The list alone is no proof: Lytics doesn't document it as complete."""
        if segment_id in self.lytics_audiences:
            return False
        found = lytics_audiences.audience(self.lytics, segment_id)
        if found.answer.outcome is Outcome.NOT_FOUND:
            return True
        _must_be_ok(found.answer, "An audience")
        return False

    @cached_property
    def holds_list(self) -> tuple[bool, str]:
        """Whether the identifier field holds a list, by members in Lytics, and why that isn't known."""
        return lytics_job.identifier_holds_list(self.lytics, self.install, tuple(self.lytics_audiences.values()))

    @cached_property
    def authorizations(self) -> dict[str, Authorization]:
        found = lytics_authorizations.authorizations(self.lytics)
        _must_be_ok(found.answer, "The list of authorizations")
        return {one.auth_id: one for one in found.items}

    def other_exports(self) -> tuple[Job, ...]:
        """The jobs of the account that aren't webhook jobs, as far as Lytics lists them."""
        found = lytics_jobs.jobs(self.lytics, workflow="")
        _must_be_ok(found.answer, "The list of all jobs")
        return tuple(job for job in found.items if job.workflow != lytics_jobs.WEBHOOK)

    def logs_of(self, job: Job) -> tuple[JobLog, ...]:
        found = lytics_jobs.job_logs(self.lytics, job.job_id)
        _must_be_ok(found.answer, f"The log of the job {job.name}")
        return found.items

    @cached_property
    def exported(self) -> frozenset[str]:
        """The segment ids of all audiences that jobs send to this install."""
        return frozenset(segment_id for job in self.jobs for segment_id in job.segment_ids)

    # --- ours --------------------------------------------------------------------------------------------------

    @cached_property
    def audiences(self) -> tuple[Audience, ...]:
        """The install's audiences without the audience of the test customers."""
        return tuple(Audience.objects.filter(install=self.install).exclude(segment_id=trials.SEGMENT_ID))

    @cached_property
    def unretired(self) -> tuple[Audience, ...]:
        """The audiences that are neither retired nor being retired."""
        retired = set(Retirement.objects.filter(audience__install=self.install, undone_at=None).values_list("audience"))
        return tuple(audience for audience in self.audiences if (audience.pk,) not in retired)


def url_of(job: Job) -> str:
    url = job.config.get("webhook_url")
    return url.strip() if isinstance(url, str) else ""


def _must_be_ok(answer: LyticsAnswer, what: str) -> None:
    if answer.is_ok:
        return
    cure = "Ask again in a minute."
    if answer.outcome is Outcome.UNAUTHORISED:
        cure = (
            "Press Lytics API token on the install's page, and enter one that may read audiences, jobs, authorizations."
        )
    raise NotCheckedError(f"{what} could not be read from Lytics: {answer.reason}.", cure)
