"""Checks of the audiences that Lytics sends, and of other jobs that write to the same ODP account."""

import re
from datetime import timedelta
from urllib.parse import urlsplit

from django.utils.timezone import now

from audiences.models import Audience as OurAudience
from audiences.operations.doctor.case import Case, url_of
from audiences.operations.doctor.lytics_job import LYTICS
from audiences.operations.doctor.registry import Finding, Found, bad, check, good, warning
from audiences.operations.job_contents import contents
from audiences.receiving.audience_lookup import BY_SLUG
from lytics.api.audiences import Audience
from lytics.api.jobs import Job

# Lytics documents that a webhook needs time windows of at least this length.
SHORTEST_WINDOW_MINUTES = 30
NAMED = 5
# The age from which an audience can count as left: the jobs may have been read before its first call came.
NEW = timedelta(minutes=10)
# Minutes of a unit of FilterQL's date arithmetic, as in now-15m. Longer units are never too short.
_UNITS = {"s": 1 / 60, "m": 1, "h": 60}
_WINDOW = re.compile(r"\bnow\s*([-+])\s*(\d+)\s*([a-zA-Z]+)")
# Words in the name or type of a job that writes to ODP. Lytics documents the label Data Platform Audience Export.
_ODP = re.compile(r"optimizely|zaius|data.?platform|(?:^|[^a-z])odp(?:[^a-z]|$)", re.IGNORECASE)
# Hosts of Optimizely Connect Platform, where Optimizely's own Lytics app runs.
_HOSTED_APP = re.compile(r"(?:^|\.)(?:zaius\.app|ocp\.optimizely\.com)$")


def _names(audiences: list[Audience]) -> str:
    named = ", ".join(audience.slug or audience.segment_id for audience in audiences[:NAMED])
    return named + (f" and {len(audiences) - NAMED:,} more" if len(audiences) > NAMED else "")


def _exported(case: Case) -> list[Audience]:
    return [case.lytics_audiences[one] for one in sorted(case.exported) if one in case.lytics_audiences]


@check(LYTICS, "Audiences of the job")
def lytics_audiences(case: Case) -> Found:
    """Whether the audiences of the job exist in Lytics and are valid."""
    unlisted = sorted(case.exported - set(case.lytics_audiences))
    # Each costs a request, so only the named ones are looked up.
    lost = [one for one in unlisted[:NAMED] if case.is_deleted_in_lytics(one)]
    unknown = [one for one in unlisted if one not in lost]
    found: list[Finding] = []
    if lost:
        cure = "Remove them from the job. Their members stay in ODP until you press Retire on the page of the audience."
        found.append(bad(f"{len(lost):,} audiences of the job do not exist: {', '.join(lost)}.", cure))
    if unknown:
        cure = "See in Lytics whether they exist, and remove from the job those that don't."
        words = f"Lytics doesn't list {len(unknown):,} audiences of the job: {', '.join(unknown[:NAMED])}."
        found.append(warning(words, cure))
    if broken := [audience for audience in _exported(case) if audience.is_invalid]:
        why = f" ({broken[0].invalid_reason})" if broken[0].invalid_reason else ""
        found.append(bad(f"Lytics calls {_names(broken)} invalid{why}.", "Correct their definition in Lytics."))
    return found or good(f"The job sends {len(case.exported):,} audiences; all exist and are valid.")


@check(LYTICS, "Audiences that left the job")
def lytics_left(case: Case) -> Found:
    """Whether a job still sends each audience of this install, and Lytics still has it. Retired audiences are left out.

    A partial list of jobs is no evidence.
    """
    found = contents(case)
    settled = [audience for audience in case.unretired if audience.created_at < now() - NEW]
    left = [audience for audience in settled if not found.may_be_sent(audience)]
    if not left:
        return good("A job sends every audience of this install.")
    # Each missing audience costs a request, so only the named ones are looked up.
    named = left[:NAMED]
    deleted = {audience.pk for audience in named if _is_deleted(case, audience)}
    words = ", ".join(
        f"{audience.latest_slug} (deleted in Lytics)" if audience.pk in deleted else audience.latest_slug
        for audience in named
    )
    more = f" and {len(left) - NAMED:,} more" if len(left) > NAMED else ""
    back = "" if len(deleted) == len(left) else "Add them to the job again with Choose audiences, or "
    retire = (
        f"{'p' if back else 'P'}ress Retire on the audience's page: its members leave it in ODP, and it is deleted"
        " there."
    )
    evidence = f"No job sends {len(left):,} audiences any more: {words}{more}. Their members stay in ODP as they are."
    return warning(evidence, back + retire)


def _is_deleted(case: Case, audience: OurAudience) -> bool:
    return not audience.segment_id.startswith(BY_SLUG) and case.is_deleted_in_lytics(audience.segment_id)


@check(LYTICS, "Changed definitions")
def lytics_changed(case: Case) -> Found:
    """Whether audiences were changed after the job was made. Lytics documents that a new job is needed then."""
    # The time of an audience's update is taken for the time of its definition, which is inferred.
    changed = {
        segment_id: audience
        for job in case.jobs
        for segment_id in job.segment_ids
        if (audience := case.lytics_audiences.get(segment_id))
        and audience.updated_at
        and job.created_at
        and audience.updated_at > job.created_at
    }
    if not changed:
        return good("No audience of the job was changed since the job was made.")
    at = max(audience.updated_at for audience in changed.values() if audience.updated_at)
    cure = "Audit these audiences. If they differ, replace the job by a new one with Existing Users."
    words = f"Changed in Lytics after the job was made: {_names(list(changed.values()))}."
    return warning(f"{words} Exits by the new definition may be missing.", cure, at=at)


@check(LYTICS, "Short time windows")
def lytics_windows(case: Case) -> Found:
    """Whether definitions have time windows below 30 minutes, for which Lytics documents no triggers."""
    short = [audience for audience in _exported(case) if shortest_window(audience.definition) < SHORTEST_WINDOW_MINUTES]
    if not short:
        return good("No audience of the job has a time window below 30 minutes.")
    cure = "Use windows of 30 minutes or more in Lytics, or expect entries and exits that never come."
    return warning(f"With a time window below 30 minutes: {_names(short)}.", cure)


def shortest_window(definition: str) -> float:
    """Minutes; infinite without a window."""
    windows = (int(number) * _UNITS[unit] for _, number, unit in _WINDOW.findall(definition) if unit in _UNITS)
    return min((window for window in windows if window), default=float("inf"))


@check(LYTICS, "Other jobs that write to ODP")
def lytics_other_writers(case: Case) -> Found:
    """Whether another job, export or hosted app of the Lytics account writes to ODP, and so overwrites memberships."""
    found = [*map(_second, _doubles(case)), *(_hosted(job, case) for job in case.webhook_jobs if _is_hosted(job))]
    exports = [job for job in case.other_exports() if job.is_active and _ODP.search(f"{job.workflow} {job.name}")]
    for job in exports:
        cure = "Pause that job in Lytics, or have it write fields with another prefix than lytics_."
        words = f"{job.name} ({job.workflow}) writes to ODP too, by default fields of the same names as ours."
        shares = bool(case.exported & set(job.segment_ids)) and case.install.mechanism == "attribute"
        found.append((bad if shares else warning)(words, cure, at=job.updated_at, about=job.name))
    return found or good("No other job of this Lytics account writes to ODP, as far as their names say.")


def _is_hosted(job: Job) -> bool:
    return job.is_active and bool(_HOSTED_APP.search(urlsplit(url_of(job)).hostname or ""))


def _hosted(job: Job, case: Case) -> Finding:
    shares = case.exported & set(job.segment_ids)
    words = f"{job.name} sends to Optimizely's own app, which writes audiences of the same names"
    cure = "Pause that job in Lytics, and uninstall the app in ODP."
    if shares:
        return bad(f"{words}; {len(shares):,} of them are ours.", cure, at=job.updated_at, about=job.name)
    return warning(f"{words}; so far none of ours.", cure, at=job.updated_at, about=job.name)


def _doubles(case: Case) -> list[Job]:
    """The active jobs of this install that send an audience which another of them sends already."""
    seen: set[str] = set()
    doubles = []
    for job in case.jobs:
        if job.is_active and seen & set(job.segment_ids):
            doubles.append(job)
        if job.is_active:
            seen |= set(job.segment_ids)
    return doubles


def _second(job: Job) -> Finding:
    words = f"{job.name} sends audiences that another job sends to this install already."
    cure = "Leave each audience in one job: two send everything twice, and one of them may be out of date."
    return warning(words, cure, about=job.name)
