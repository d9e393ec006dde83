"""Checks of the Lytics job that calls an install: state, address, header, method, and silently omitted events."""

from collections.abc import Callable
from datetime import timedelta
from urllib.parse import urlsplit

from django.utils.timezone import now

from audiences.insight import checklist, evidence
from audiences.operations import installs
from audiences.operations.doctor.case import Case, NotCheckedError, url_of
from audiences.operations.doctor.registry import Finding, Found, Word, bad, check, good, unknown, warning
from audiences.operations.lytics_job import mark_in, mark_of, settings_of
from audiences.receiving import tokens
from lytics.api.authorizations import HEADERS
from lytics.api.jobs import Job
from lytics.api.reading import text, texts
from lytics.api.webhook_settings import LABELS, SEGMENT_EVENTS, Harm, WebhookSettings, is_same_url

LYTICS = "Lytics"
# The time without a call after which a person should check whether that is usual.
QUIET = timedelta(hours=24)
# The age from which omitted events are only a warning.
OMITTED_RECENTLY = timedelta(days=7)
# The settings of the job that each check compares with ours; the URL and the audiences have checks of their own.
SETTINGS = {
    "lytics_method": ("http_method",),
    "lytics_triggers": ("audience_events", "withbackfill", "template_id"),
    "lytics_batches": ("batch_requests", "batch_size", "batch_flush_duration", "worker_count"),
    "lytics_fields": ("user_fields", "field_changes"),
    "lytics_limits": ("user_limit", "quiet_time_of_day", "quiet_period", "drop_events_during_quiet_window"),
    "lytics_retries": ("do_not_retry",),
}
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
    words: dict[str, Word] = {"done": "good", "waiting": "unknown", "failing": "bad"}
    return [
        Finding(words[line.state.word], line.state.why or NO_MESSAGE, line.todo, line.at)
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
        return bad(
            f"The job {gone.name} is {gone.state}.", "Make the job again, with Existing Users.", at=gone.updated_at
        )


def _state(job: Job) -> Finding:
    if job.state == "running":
        return good(f"{job.name} runs.")
    if job.state in ("initializing", "sleeping") or (0 < job.faults < 3):
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
        if is_same_url(shown, ours.geturl()):
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


def _compared(case: Case, name: str, wanted: WebhookSettings, *, also_exported: tuple[str, ...] = ()) -> Found:
    """Compare the settings of a check with ours. ``also_exported`` counts as chosen under Export Fields."""
    keys = SETTINGS[name]

    def look(job: Job) -> Finding:
        chosen = texts(job.config, "user_fields")
        config = {**job.config, "user_fields": [*chosen, *also_exported]} if chosen and also_exported else job.config
        found = [one for one in wanted.differences(config) if one.key in keys]
        words = [f"{one.label} of {job.name} is {one.theirs} instead of {one.ours}." for one in found]
        harm = max((one.harm for one in found), default=Harm.NONE)
        if harm is Harm.NONE:
            labels = ", ".join(LABELS[key] for key in keys)
            return good(" ".join([f"{job.name} is right in {labels}.", *(f"{one} It works." for one in words)]))
        harmful = [(one, what) for one, what in zip(found, words, strict=True) if one.harm]
        evidence = " ".join(f"{what} {one.why}" for one, what in harmful)
        cure = f"{JOB_PAGE}, set {', and '.join(f'{one.label} to {one.ours}' for one, _ in harmful)}."
        return warning(evidence, cure) if harm is Harm.RISK else bad(evidence, f"{cure} Then audit its audiences.")

    return of_each(case.jobs, look)


@check(LYTICS, "HTTP method")
def lytics_method(case: Case) -> Found:
    """Whether the job sends its messages by POST, PUT or PATCH; GET and DELETE are answered 405."""
    return _compared(case, "lytics_method", settings_of(case.install))


@check(LYTICS, "Entries and exits")
def lytics_triggers(case: Case) -> Found:
    """Whether the job sends entries and exits, in Lytics' own format, and those who were members before it was made."""
    return _compared(case, "lytics_triggers", settings_of(case.install))


@check(LYTICS, "Batches")
def lytics_batches(case: Case) -> Found:
    """Whether batches are as large and as quick as Optimizely recommends, or better: 300 events, 3 s and 20 calls."""
    return _compared(case, "lytics_batches", settings_of(case.install))


@check(LYTICS, "Exported fields")
def lytics_fields(case: Case) -> Found:
    """Whether the job exports ``segment_events`` and the identifier field. A field of lists must also trigger it."""
    jobs, (holds_list, note) = case.jobs, case.holds_list
    # Whether segment_events comes without being chosen is not documented, so messages that have it count.
    also = (SEGMENT_EVENTS,) if evidence.of(case.install).found else ()
    wanted = settings_of(case.install, holds_list=holds_list)
    found = _compared(case, "lytics_fields", wanted, also_exported=also)
    field = case.install.identifier_field
    if note and not wanted.holds_list and not all(field in texts(job.config, "field_changes") for job in jobs):
        cure = f"{JOB_PAGE}, choose {field} under Fields to Trigger, if it holds a list."
        unsure = unknown(f"Whether {field} holds a list is not known. {note}", cure)
        return [*([found] if isinstance(found, Finding) else found), unsure]
    return found


@check(LYTICS, "Limits and quiet windows")
def lytics_limits(case: Case) -> Found:
    """Whether the job caps the number of users or rests at times. Both send less than happens, without an error."""
    return _compared(case, "lytics_limits", settings_of(case.install))


@check(LYTICS, "Statuses that are not retried")
def lytics_retries(case: Case) -> Found:
    """Whether the job gives up after responses that ask it to come again. It then loses the whole batch."""
    return _compared(case, "lytics_retries", settings_of(case.install))


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
