"""Checks of the Lytics job that calls an install: state, address, header, method, and silently omitted events."""

from collections.abc import Callable
from datetime import timedelta
from urllib.parse import urlsplit

from django.utils.timezone import now

from audiences.insight import checklist, evidence
from audiences.operations import installs
from audiences.operations.doctor.case import Case, NotCheckedError, url_of
from audiences.operations.doctor.registry import Finding, Found, bad, check, good, unknown, warning
from audiences.operations.lytics_job import mark_in, mark_of
from audiences.receiving import tokens
from lytics.api.authorizations import HEADERS
from lytics.api.jobs import Job
from lytics.api.reading import count, flag, text, texts

LYTICS = "Lytics"
# The time without a call after which a person should check whether that is usual.
QUIET = timedelta(hours=24)
# The age from which omitted events are only a warning.
OMITTED_RECENTLY = timedelta(days=7)
# The longest wait of a batch in seconds that is good. Optimizely recommends 3, and Lytics' default is 5.
LONG_WAIT_SECONDS = 30
# Statuses with which this service asks for another try; Lytics must not give up on them.
RETRIED = {401, 405, 408, 429, *range(500, 600)}
NO_MESSAGE = "No message has come."
JOB_PAGE = "In Lytics, on the job's Configuration page"


def of_each(jobs: tuple[Job, ...], look: Callable[[Job], Finding]) -> Found:
    """The finding of each job, with its name where there are several."""
    found = [look(job) for job in jobs]
    if len(found) == 1:
        return found
    return [
        Finding(one.state, one.evidence, one.cure, one.at, job.name or job.job_id)
        for job, one in zip(jobs, found, strict=True)
    ]


@check(LYTICS, "Calls")
def lytics_calls(case: Case) -> Found:
    """When Lytics last called. This is known without an API token too."""
    last = checklist.calls_of_lytics(case.install).order_by("-id").first()
    if last is None:
        return bad("Lytics has never called.", "Follow the install instructions on the install's page.")
    if now() - last.received_at > QUIET:
        cure = "See whether the job in Lytics runs, and whether its audiences change so seldom."
        return warning("No call came for a day.", cure, at=last.received_at)
    return good("Lytics calls.", at=last.received_at)


@check(LYTICS, "Customer identifier in messages")
def lytics_identifier(case: Case) -> Found:
    """Whether the newest messages have the identifier field, and whether the identifiers look like device ids."""
    words = {"done": "good", "waiting": "unknown", "failing": "bad"}
    return [
        Finding(words[line.state.word], line.state.why or NO_MESSAGE, line.todo, line.at)  # type: ignore[arg-type]
        for line in checklist.lines(case.install)
        if line.name in ("identifier", "vuid")
    ]


@check(LYTICS, "State of the job")
def lytics_state(case: Case) -> Found:
    """Whether a webhook job calls this install, and whether it runs. A failed job stays so until it is restarted."""
    if not case.jobs_of_install:
        host = urlsplit(installs.webhook_url(case.install)).netloc
        words = f"None of the {len(case.webhook_jobs):,} webhook jobs calls the URL of this install."
        for job in case.webhook_jobs:
            if job.name.endswith(f"({case.install.public_id})"):
                words += f" {job.name} has this install's name, and another URL."
            elif urlsplit(url_of(job)).netloc == host:
                words += f" {job.name} calls this server at another path."
        return bad(words, "Press Choose audiences on the install's page, or follow the install instructions there.")
    try:
        return of_each(case.jobs, _state)
    except NotCheckedError:
        gone = case.jobs_of_install[0]
        return bad(f"The job {gone.name} was deleted.", "Make the job again, with Existing Users.", at=gone.updated_at)


def _state(job: Job) -> Finding:
    if job.state == "running":
        return good(f"{job.name} runs.")
    if job.state in ("initializing", "sleeping", "completed") or (0 < job.faults < 3):
        cure = "Check again in some minutes. A job sleeps after a Retry-After and after errors; its log says why."
        return warning(f"{job.name} is in the state {job.state}.", cure, at=job.updated_at)
    if job.state == "unknown":
        return unknown(f"Lytics does not say in which state {job.name} is.", "Look at the job in Lytics.")
    cure = (
        "Look at its log for the cause, then resume or restart it in Lytics. Changes since it stopped may be lost:"
        " audit its audiences afterwards."
    )
    return bad(f"{job.name} is in the state {job.state}.", cure, at=job.updated_at)


@check(LYTICS, "URL of the job")
def lytics_url(case: Case) -> Found:
    """Whether the job calls the webhook URL of this install, by https."""
    ours = urlsplit(installs.webhook_url(case.install))

    def look(job: Job) -> Finding:
        url = urlsplit(url_of(job))
        shown = f"{url.scheme}://{url.netloc}{url.path}"
        cure = f"{JOB_PAGE}, set Webhook URL to {ours.geturl()}."
        if (url.scheme, url.netloc) == (ours.scheme, ours.netloc):
            return good(f"{job.name} calls {shown}.")
        words = f"{job.name} calls {shown}; by PUBLIC_URL, the address is {ours.scheme}://{ours.netloc}."
        return warning(words, f"{cure} If both lead here, correct PUBLIC_URL.")

    return of_each(case.jobs, look)


@check(LYTICS, "Header of the job")
def lytics_header(case: Case) -> Found:
    """Whether the job's authorization sends a live token of this install, as far as Lytics shows it."""
    live = tokens.live(case.install)
    cure = (
        "Copy the request header authorization token from the install's page into a new authorization in Lytics, and"
        " choose it in the job."
    )
    if not live:
        return bad("The install has no live token, so every call is answered 401.", f"Press New token. {cure}")
    used_at = max((token.last_used_at for token in live if token.last_used_at), default=None)

    def look(job: Job) -> Finding:
        known = [case.authorizations[one] for one in job.auth_ids if one in case.authorizations]
        if not job.auth_ids:
            return bad(f"{job.name} has no authorization, so its calls are answered 401.", cure)
        if not known:
            return bad(f"The authorization of {job.name} does not exist.", cure)
        if known[0].kind and known[0].kind != HEADERS:
            return warning(f"The authorization of {job.name} is of the type {known[0].kind}, not {HEADERS}.", cure)
        if mark := mark_in(known[0].label, case.install):
            # An authorization that this service made: its label says which token it sends.
            if any(mark_of(token) == mark for token in live):
                return good(f"The label of the authorization of {job.name} is that of a live token.")
            return bad(f"The authorization of {job.name} is for a token that has ended.", cure)
        shown = text(known[0].fields, "webhook_request_headers")
        if shown:
            if any(str(token.secret) in shown for token in live):
                return good(f"{job.name} sends a live token of this install.")
            return bad(f"{job.name} sends a header without a live token of this install.", cure)
        if used_at:
            return good("Lytics does not show the header; a live token of this install was used.", at=used_at)
        return unknown("Lytics does not show the header, and no call with a live token has come.", cure)

    return of_each(case.jobs, look)


@check(LYTICS, "HTTP method")
def lytics_method(case: Case) -> Found:
    """Whether the job sends its messages by POST, PUT or PATCH; GET and DELETE are answered 405."""

    def look(job: Job) -> Finding:
        method = (text(job.config, "http_method") or "POST").upper()
        if method in ("POST", "PUT", "PATCH"):
            return good(f"{job.name} uses {method}.")
        return bad(f"{job.name} uses {method}, which is answered 405.", f"{JOB_PAGE}, set HTTPMethod to POST.")

    return of_each(case.jobs, look)


@check(LYTICS, "Entries and exits")
def lytics_triggers(case: Case) -> Found:
    """Whether the job sends entries and exits, in Lytics' own format, and those who were members before it was made."""

    def look(job: Job) -> Finding:
        only = text(job.config, "audience_events").lower()
        if text(job.config, "template_id"):
            cure = f"{JOB_PAGE}, choose no template."
            return bad(f"{job.name} has a template, so its calls can have any content.", cure)
        if "exits_only" in only or "enters_only" in only:
            words = f"{job.name} sends {'exits' if 'exits' in only else 'entries'} only, so members stay wrong in ODP."
            return bad(words, f"{JOB_PAGE}, choose entries and exits under Audience Trigger Events.")
        if not flag(job.config, "withbackfill"):
            cure = f"{JOB_PAGE}, choose Existing Users, and audit its audiences."
            return warning(f"{job.name} does not send those who were members before it was made.", cure)
        return good(f"{job.name} sends entries, exits and existing users, without a template.")

    return of_each(case.jobs, look)


@check(LYTICS, "Batches")
def lytics_batches(case: Case) -> Found:
    """Whether the job sends batches, and how long a batch waits. Optimizely recommends 300 events, 3 s and 20 calls."""

    def look(job: Job) -> Finding:
        cure = f"{JOB_PAGE}, choose Batch Events, Batch Size 300, Batch Send Duration 3, Simultaneous Calls 20."
        size, wait = count(job.config, "batch_size") or 10, count(job.config, "batch_flush_duration") or 5
        calls = count(job.config, "worker_count") or 5
        if not flag(job.config, "batch_requests") or size == 1:
            return warning(f"{job.name} makes one call per event, which limits how many it sends.", cure)
        words = f"{job.name} sends up to {size:,} events a call, waits {wait:,} s for a batch, {calls} calls at once."
        if wait > LONG_WAIT_SECONDS:
            return warning(f"{words} Every change arrives that much later.", cure)
        if size * calls < 100:
            return warning(f"{words} A change of a large audience takes long so.", cure)
        return good(words)

    return of_each(case.jobs, look)


@check(LYTICS, "Exported fields")
def lytics_fields(case: Case) -> Found:
    """Whether the job exports the identifier field and ``segment_events``, and not the whole profile."""
    field = case.install.identifier_field

    def look(job: Job) -> Finding:
        fields = set(texts(job.config, "user_fields"))
        if not fields:
            cure = f"{JOB_PAGE}, choose {_exported(field)} and segment_events under Export Fields."
            return warning(f"{job.name} exports whole profiles: large calls, and data that is not needed.", cure)
        wanted = {field} | ({"_id"} if case.install.forget_missing_identifiers else set())
        if lacking := sorted(wanted - fields):
            cure = f"{JOB_PAGE}, add {' and '.join(map(_exported, lacking))} to Export Fields."
            return bad(f"{job.name} does not export {' and '.join(lacking)}.", cure)
        if field != "_id" and field not in texts(job.config, "field_changes"):
            cure = f"{JOB_PAGE}, add {field} to Fields to Trigger, if it holds a list."
            words = f"{job.name} does not tell when {field} changes. A new value in a list would not come."
            return warning(words, cure)
        seen = evidence.of(case.install)
        if "segment_events" not in fields and not seen.found:
            cure = f"{JOB_PAGE}, add segment_events to Export Fields: whether it comes without is not documented."
            return warning(f"{job.name} does not export segment_events, and no message has come with it.", cure)
        return good(f"{job.name} exports {', '.join(sorted(fields))}.")

    return of_each(case.jobs, look)


def _exported(field: str) -> str:
    return "Lytics ID (_id)" if field == "_id" else field


@check(LYTICS, "Limits and quiet windows")
def lytics_limits(case: Case) -> Found:
    """Whether the job caps the number of users or rests at times. Both send less than happens, without an error."""

    def look(job: Job) -> Finding:
        limit = count(job.config, "user_limit") or 0
        if limit:
            period = text(job.config, "user_limit_frequency") or "period"
            words = f"{job.name} sends at most {limit:,} users per {period}."
            return bad(f"{words} The others never come.", f"{JOB_PAGE}, set the user limit to 0.")
        has_window = text(job.config, "quiet_time_of_day") or count(job.config, "quiet_period")
        cure = f"{JOB_PAGE}, remove the quiet window."
        if has_window and flag(job.config, "drop_events_during_quiet_window"):
            return bad(f"{job.name} has a quiet window and drops what happens in it.", cure)
        if has_window:
            return warning(f"{job.name} has a quiet window; changes in it arrive after its end.", cure)
        return good(f"{job.name} has no user limit and no quiet window.")

    return of_each(case.jobs, look)


@check(LYTICS, "Statuses that are not retried")
def lytics_retries(case: Case) -> Found:
    """Whether the job gives up after responses that ask it to come again. It then loses the whole batch."""

    def look(job: Job) -> Finding:
        listed = job.config.get("do_not_retry")
        parts = listed if isinstance(listed, list) else str(listed or "").replace(",", " ").split()
        statuses = sorted({int(part) for part in map(str, parts) if part.isdecimal()})
        if lost := [status for status in statuses if status in RETRIED]:
            words = f"{job.name} does not retry after {', '.join(map(str, lost))}."
            return bad(words, f"{JOB_PAGE}, empty Do not retry for HTTP Status.")
        return good(f"{job.name} retries after every response that asks for it.")

    return of_each(case.jobs, look)


@check(LYTICS, "Omitted events")
def lytics_omitted(case: Case) -> Found:
    """Whether the job's log counts omitted events: those are lost. Users whom the job filters out are counted too."""

    def look(job: Job) -> Finding:
        entries = [entry for entry in case.logs_of(job) if entry.omitted]
        if not entries:
            return good(f"The log of {job.name} counts no omitted event.")
        at = max((entry.logged_at for entry in entries if entry.logged_at), default=None)
        words = f"The log of {job.name} counts {sum(entry.omitted or 0 for entry in entries):,} omitted events."
        cure = (
            "Look at the lines about the public address: Lytics omits what is answered 400, 404 or 413. Then audit"
            " the audiences of the job, and repair what differs."
        )
        return (warning if at and now() - at > OMITTED_RECENTLY else bad)(words, cure, at=at)

    return of_each(case.jobs, look)
