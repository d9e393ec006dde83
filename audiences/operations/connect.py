"""Connect an install in Lytics: create, change and start the webhook job and its authorization over Lytics' API.

A new job is held, so that a person sees it before Lytics sends events. A run can be repeated at any time: it reads the
present state and creates what is missing. One run at a time holds the lease of the ``LyticsAccount``. If a writing
request gets no response, the run keeps its lease until it expires, so that Lytics has finished the request before
another run reads the state.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import structlog
from django.core.exceptions import ImproperlyConfigured
from django.utils.timezone import now

from audiences import lytics_account
from audiences.encryption import opened
from audiences.models import Install, Token
from audiences.operations import installs
from audiences.operations.lytics_job import (
    Found,
    NotConnectedError,
    UnansweredError,
    authorization_label,
    job_name,
    look,
    mark_in,
    mark_of,
    rejected,
    settings_of,
)
from audiences.receiving import tokens
from lytics.api.audiences import Audience
from lytics.api.authorizations import authorizations, create_authorization
from lytics.api.client import Client
from lytics.api.jobs import Job, bounce, create_job, job, replace_job, resume
from lytics.api.outcomes import Answer, Outcome
from lytics.api.webhook_settings import DifferentSetting

log = structlog.get_logger(__name__)

# Seconds for all requests of a run, and for its lease. Lytics has at least the difference to finish a request that got
# no response.
SECONDS = 60.0
LEASE_SECONDS = 150.0


@dataclass(frozen=True)
class Plan:
    """The changes that a run makes in Lytics. ``auth_id`` is empty when the authorization has to be created."""

    found: Found
    added: tuple[Audience, ...]
    removed: tuple[Audience, ...]
    needs_authorization: bool
    auth_id: str
    starts: bool

    @property
    def changes_job(self) -> bool:
        return bool(self.added or self.removed or self.needs_authorization)

    @property
    def steps(self) -> list[str]:
        known = self.found.job
        made = (
            ["Create the authorization with the webhook token"] if self.needs_authorization and not self.auth_id else []
        )
        if known is None:
            made += [f"Create the job with {_slugs(self.added)}, held"] if self.added else []
        else:
            made += ["Use this install's valid webhook token in the job"] if self.needs_authorization else []
            made += [f"Add {_slugs(self.added)} to the job"] if self.added else []
            made += [f"Remove {_slugs(self.removed)} from the job"] if self.removed else []
        return [*made, *(["Start the job"] if self.starts else [])]


@dataclass(frozen=True)
class Report:
    """The result of a run. ``steps`` were done or, in a dry run, would be done."""

    found: Found
    steps: tuple[str, ...]
    notes: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        known = self.found.job
        in_job = [_audience_json(segment_id, audience) for segment_id, audience in self.found.in_job()]
        return {
            "webhook_url": self.found.settings.webhook_url,
            "job": {"id": known.job_id, "name": known.name, "state": known.state, "audiences": in_job}
            if known
            else None,
            "steps": list(self.steps),
            "differences": [_difference_json(difference) for difference in self.found.differences],
            "notes": list(self.notes),
            "audiences": [_audience_json(audience.segment_id, audience) for audience in self.found.audiences],
        }


def connect(
    install: Install,
    *,
    add: Sequence[str] = (),
    remove: Sequence[str] = (),
    start: bool = False,
    dry_run: bool = False,
    seconds: float = SECONDS,
) -> Report:
    """Add and remove audiences of the job, and start it. ``add`` and ``remove`` are slugs or ids of Lytics' audiences.

    Raises ``NotConnectedError``.
    """
    client = client_of(install, seconds=seconds)
    if dry_run:
        plan = _plan(install, look(client, install), add=add, remove=remove, start=start)
        return Report(plan.found, tuple(plan.steps), _notes(install, plan))
    lease = lytics_account.lease(install, until=now() + timedelta(seconds=LEASE_SECONDS))
    if lease is None:
        raise NotConnectedError(_busy(install))
    try:
        report = _run(client, install, add=add, remove=remove, start=start)
    except NotConnectedError as problem:
        if not isinstance(problem, UnansweredError):
            lytics_account.release(lease)
        raise
    lytics_account.release(lease)
    return report


def client_of(install: Install, *, seconds: float = SECONDS) -> Client:
    """The client of Lytics' API. Raises ``NotConnectedError`` without a token, or if it can't be decrypted."""
    try:
        client = lytics_account.client_of(install, ends_at=time.monotonic() + seconds)
    except ImproperlyConfigured as problem:
        raise NotConnectedError(f"The stored Lytics API token can't be used. {problem}") from problem
    if client is None:
        raise NotConnectedError("This install has no Lytics API token.", by_hand=True)
    return client


def by_hand(install: Install, *, audiences: str, dry_run: bool = False) -> dict[str, list[tuple[str, str]]]:
    """What to enter in Lytics by hand, page by page. It contains the webhook token.

    If the install has no permanent webhook token, one is created, except in a dry run.
    """
    if dry_run and not _lasting(install):
        raise NotConnectedError("This install has no permanent webhook token. A run would create one.")
    token = _token(install)
    return {
        "Jobs, Create New, Webhook, Audience Triggers Webhook": [("Label", job_name(install))],
        "New Authorization, Provide authorization as request header or parameter": [
            ("Label", authorization_label(install, token)),
            ("Request header", f"Authorization: {_authorization(token)}"),
        ],
        "Configuration": settings_of(install).in_words(audiences),
    }


def _run(client: Client, install: Install, *, add: Sequence[str], remove: Sequence[str], start: bool) -> Report:
    plan = _plan(install, look(client, install), add=add, remove=remove, start=start)
    auth_id = plan.auth_id
    if plan.needs_authorization and not auth_id:
        auth_id = _make_authorization(client, install)
    known = plan.found.job
    if known is None and plan.added:
        known = _make_job(client, install, plan, auth_id)
    elif known is not None and plan.changes_job:
        known = _change_job(client, install, plan, known, auth_id)
    found = replace(plan.found, job=known)
    if plan.starts and known is not None and not found.is_started:
        found = replace(found, job=_start(client, found, known))
    lytics_account.look_again(install)
    log.info("connected in lytics", install=install.public_id, steps=plan.steps)
    return Report(found, tuple(plan.steps), _notes(install, plan))


def _plan(install: Install, found: Found, *, add: Sequence[str], remove: Sequence[str], start: bool) -> Plan:
    chosen, leaving = found.chosen(add), found.chosen(remove)
    if both := {one.segment_id for one in chosen} & {one.segment_id for one in leaving}:
        raise NotConnectedError(f"{_slugs([one for one in chosen if one.segment_id in both])} can't join and leave.")
    if found.job and (chosen or leaving):
        _must_show_audiences(found.job)
    present = found.job.segment_ids if found.job else ()
    added = tuple(audience for audience in chosen if audience.segment_id not in present)
    removed = tuple(audience for audience in leaving if audience.segment_id in present)
    if invalid := [audience for audience in added if audience.is_invalid]:
        raise NotConnectedError(f"Lytics calls {_slugs(invalid)} invalid: {invalid[0].invalid_reason or 'no reason'}.")
    if removed and not added and {one.segment_id for one in removed} >= set(present):
        raise NotConnectedError("A job needs an audience. To stop all of them, pause or delete the job in Lytics.")
    if found.job is None and not added and start:
        raise NotConnectedError("There is no job to start. Choose audiences first.")
    needs_authorization, auth_id = _authorization_for(install, found) if found.job or added else (False, "")
    return Plan(found, added, removed, needs_authorization, auth_id, start and not found.is_started)


def _authorization_for(install: Install, found: Found) -> tuple[bool, str]:
    """Whether the job needs an authorization of ours, and the id of a usable one in Lytics; empty when it has none.

    A job keeps the authorization that a person created: which token it sends can't be read.
    """
    in_job = found.job.auth_ids if found.job else ()
    if found.authorizations is None:
        if in_job:
            return False, ""
        raise NotConnectedError("Lytics doesn't list authorizations to this API token.", by_hand=True)
    lasting = {mark_of(token) for token in _lasting(install)}
    ours = {one.auth_id: mark for one in found.authorizations if (mark := mark_in(one.label, install))}
    if in_job and not ours.keys() & set(in_job):
        return False, ""
    usable = [auth_id for auth_id, mark in ours.items() if mark in lasting]
    if set(usable) & set(in_job):
        return False, ""
    return True, usable[0] if usable else ""


# --- requests that write -------------------------------------------------------------------------------------------


def _is_uncertain(answer: Answer) -> bool:
    """Whether Lytics may have carried out the request without confirming it."""
    return answer.outcome is Outcome.RETRY_LATER and answer.sent and not answer.is_rate_limited


def _unanswered(what: str, answer: Answer) -> UnansweredError:
    return UnansweredError(
        f"Lytics gave no usable response to the request to {what} ({answer.reason}) and shows no effect yet. It may"
        f" still carry it out, so nothing else is tried for {LEASE_SECONDS:.0f} s. Then run this again: it looks first."
    )


def _make_authorization(client: Client, install: Install) -> str:
    token = _token(install)
    label, what = authorization_label(install, token), "create the authorization"
    made = create_authorization(client, label=label, header=_authorization(token))
    if made.item is not None:
        return made.item.auth_id
    if not _is_uncertain(made.answer):
        raise rejected(what, made.answer)
    for one in authorizations(client).items:
        if mark_in(one.label, install) == mark_of(token):
            return one.auth_id
    raise _unanswered(what, made.answer)


def _make_job(client: Client, install: Install, plan: Plan, auth_id: str) -> Job:
    config = plan.found.settings.config([audience.segment_id for audience in plan.added])
    made = create_job(client, name=job_name(install), auth_ids=[auth_id], config=config)
    if made.item is not None:
        return made.item
    if not _is_uncertain(made.answer):
        raise rejected("create the job", made.answer)
    try:
        seen = look(client, install).job
    except NotConnectedError:
        seen = None
    if seen is None:
        raise _unanswered("create the job", made.answer)
    return seen


def _change_job(client: Client, install: Install, plan: Plan, known: Job, auth_id: str) -> Job:
    """Read the whole job again, change its audiences and authorization, and write it back. Other settings stay."""
    read = job(client, known.job_id)
    if read.item is None:
        raise rejected("show the job", read.answer)
    fresh, leaving = read.item, {audience.segment_id for audience in plan.removed}
    _must_show_audiences(fresh)
    segment_ids = [segment_id for segment_id in fresh.segment_ids if segment_id not in leaving]
    segment_ids += [audience.segment_id for audience in plan.added if audience.segment_id not in segment_ids]
    if not segment_ids:
        raise NotConnectedError("Another person changed the job, and no audience would be left in it.")
    auth_ids = list(fresh.auth_ids)
    if plan.needs_authorization:
        ours = {one.auth_id for one in plan.found.authorizations or () if mark_in(one.label, install)}
        auth_ids = [*(one for one in auth_ids if one not in ours), auth_id]
    config = {**fresh.config, "segment_ids": segment_ids}
    written = replace_job(client, fresh, config=config, auth_ids=auth_ids)
    if written.item is None and not _is_uncertain(written.answer):
        raise rejected("change the job", written.answer)
    seen = job(client, known.job_id).item or written.item
    if seen is not None and set(seen.segment_ids) == set(segment_ids) and (auth_id in seen.auth_ids or not auth_id):
        return seen
    if written.item is None:
        raise _unanswered("change the job", written.answer)
    raise NotConnectedError("Lytics accepted the change of the job and shows other audiences or authorizations.")


def _must_show_audiences(known: Job) -> None:
    if not known.shows_audiences:
        words = f"Lytics does not show all audiences of the job {known.name}, so a change here could remove some."
        raise NotConnectedError(f"{words} Change it in Lytics.", by_hand=True)


def _start(client: Client, found: Found, known: Job) -> Job:
    if wrong := [difference for difference in found.differences if difference.prevents_start]:
        words = "; ".join(f"{one.label} is {one.theirs} instead of {one.ours}" for one in wrong)
        raise NotConnectedError(f"The job is not started, because no event would arrive: {words}. Change it in Lytics.")
    answer = bounce(client, known.job_id) if known.state == "failed" else resume(client, known.job_id)
    by_hand = f"Start it in Lytics: Jobs, {known.name}."
    if not answer.is_ok and not _is_uncertain(answer):
        raise NotConnectedError(f"{rejected('start the job', answer).words} {by_hand}")
    seen = job(client, known.job_id).item
    if seen is None:
        raise NotConnectedError(
            f"Whether the job started can't be read. Run this again, or look in Lytics: {known.name}."
        )
    if not replace(found, job=seen).is_started:
        raise NotConnectedError(f"Lytics was asked to start the job and says that it is {seen.state}. {by_hand}")
    return seen


# --- tokens and words --------------------------------------------------------------------------------------------


def _token(install: Install) -> Token:
    """The newest webhook token that never expires, or a new token."""
    if lasting := _lasting(install):
        return lasting[0]
    try:
        return tokens.create(install, name="Lytics job")
    except tokens.NoFreeSlotError as problem:
        raise NotConnectedError(
            "Both webhook tokens of this install will end, so neither can be given to Lytics. Revoke one of them."
        ) from problem


def _lasting(install: Install) -> list[Token]:
    return [token for token in tokens.live(install) if token.expires_at is None]


def _authorization(token: Token) -> str:
    try:
        opened(token.secret)
    except ImproperlyConfigured as problem:
        raise NotConnectedError(f"The webhook token of this install can't be used. {problem}") from problem
    return installs.authorization(token)


def _busy(install: Install) -> str:
    until = lytics_account.leased_until(install)
    at = f" until {until:%H:%M:%S} UTC at the latest" if until else ""
    return (
        f"Another run is connecting this install{at}, or an earlier one ended without a response from Lytics. Run this"
        " again then: it looks at what is there first."
    )


def _notes(install: Install, plan: Plan) -> tuple[str, ...]:
    notes = [plan.found.note] if plan.found.note else []
    if plan.added and plan.found.job is not None:
        notes.append(
            f"Whether Lytics sends the present members of {_slugs(plan.added)}, which joins a job that exists, is not"
            " documented. Compare the members here with Lytics' size after the first calls."
        )
    if plan.removed:
        notes.append(f"The members of {_slugs(plan.removed)} stay in ODP as they are.")
    if not install.enabled:
        notes.append("The install is off, so calls of the job are answered 503 until it is on.")
    if plan.needs_authorization and plan.found.job is not None:
        notes.append("The former authorization is still in Lytics; delete it there when no other job uses it.")
    return tuple(notes)


def _slugs(audiences: Sequence[Audience]) -> str:
    return ", ".join(audience.slug or audience.segment_id for audience in audiences)


def _audience_json(segment_id: str, audience: Audience | None) -> dict[str, Any]:
    return {
        "segment_id": segment_id,
        "slug": audience.slug if audience else None,
        "name": audience.name if audience else None,
        "size": audience.size if audience else None,
    }


def _difference_json(difference: DifferentSetting) -> dict[str, Any]:
    return {
        "setting": difference.label,
        "key": difference.key,
        "ours": difference.ours,
        "theirs": difference.theirs,
        "why": difference.why,
        "prevents_start": difference.prevents_start,
    }
