"""The state of an install in Lytics: the webhook job that calls it, its authorization, and Lytics' audiences.

The job is found by our webhook URL and by its name, the authorization by its label, so no id of Lytics is stored here,
and no second job or authorization is created. Only reads.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from audiences.models import Install, Token
from audiences.operations import installs
from lytics.api.audiences import Audience, audiences
from lytics.api.authorizations import Authorization, authorizations
from lytics.api.client import Client
from lytics.api.jobs import Job, jobs
from lytics.api.members import scan
from lytics.api.outcomes import Answer, Outcome
from lytics.api.reading import Many, text
from lytics.api.webhook_settings import LYTICS_ID, DifferentSetting, WebhookSettings, is_same_url

Thing = TypeVar("Thing")

# Characters of the install's name in a label; Lytics documents 64 for names of audiences, and none for these.
NAME_LENGTH = 30
# Characters of a token's digest in the label of its authorization: they distinguish tokens and don't reveal them.
MARK_LENGTH = 8


class NotConnectedError(Exception):
    """The reason why a run stopped. ``by_hand``: a retry won't help, but a person can do it in Lytics."""

    def __init__(self, words: str, *, by_hand: bool = False) -> None:
        super().__init__(words)
        self.words = words
        self.by_hand = by_hand


class UnansweredError(NotConnectedError):
    """A writing request got no response and has no visible effect yet. Lytics may still carry it out."""


@dataclass(frozen=True)
class Found:
    """The state read from Lytics; ``note`` is about the identifier field.

    ``authorizations`` is None when the API token may not list them.
    """

    settings: WebhookSettings
    audiences: tuple[Audience, ...]
    job: Job | None
    authorizations: tuple[Authorization, ...] | None
    note: str = ""

    @property
    def differences(self) -> list[DifferentSetting]:
        return self.settings.differences(self.job.config) if self.job else []

    @property
    def is_started(self) -> bool:
        return self.job is not None and self.job.is_active

    def chosen(self, names: Iterable[str]) -> list[Audience]:
        """The audiences with these slugs or ids. Raises ``NotConnectedError`` for an unknown one."""
        known = {audience.slug: audience for audience in self.audiences}
        known |= {audience.segment_id: audience for audience in self.audiences}
        names = list(dict.fromkeys(names))
        if unknown := [name for name in names if name not in known]:
            slugs = ", ".join(sorted(audience.slug for audience in self.audiences)[:30])
            raise NotConnectedError(f"Lytics has no audience {', '.join(unknown)}. It has {slugs or 'none'}.")
        return list({known[name].segment_id: known[name] for name in names}.values())

    def in_job(self) -> list[tuple[str, Audience | None]]:
        """The job's audiences by id; None for an audience that Lytics no longer lists."""
        known = {audience.segment_id: audience for audience in self.audiences}
        return [(segment_id, known.get(segment_id)) for segment_id in (self.job.segment_ids if self.job else ())]


def look(client: Client, install: Install) -> Found:
    """Read the state with three or four requests. Raises ``NotConnectedError`` when Lytics doesn't show enough."""
    known = _read(audiences(client), "the audiences")
    listed = _read(jobs(client, with_deleted=True), "the jobs")
    job = _job_of(install, listed)
    auths = authorizations(client)
    if not auths.answer.is_ok and auths.answer.outcome is Outcome.RETRY_LATER:
        raise rejected("list the authorizations", auths.answer)
    holds_list, note = identifier_holds_list(client, install, known.items)
    settings = settings_of(install, holds_list=holds_list)
    return Found(settings, known.items, job, auths.items if auths.answer.is_ok and not auths.unreadable else None, note)


def settings_of(install: Install, *, holds_list: bool = False) -> WebhookSettings:
    """The settings of a right job. An install that forgets missing identifiers says itself that its field is a list."""
    return WebhookSettings(
        webhook_url=installs.webhook_url(install),
        identifier_field=install.identifier_field,
        holds_list=holds_list or install.forget_missing_identifiers,
        needs_lytics_id=install.forget_missing_identifiers,
    )


def rejected(what: str, answer: Answer) -> NotConnectedError:
    """The exception for a rejected request, with a reason that a person can act on."""
    if answer.outcome is Outcome.UNAUTHORISED:
        words = f"Lytics doesn't allow this API token to {what} ({answer.reason})."
        return NotConnectedError(words, by_hand=True)
    if answer.is_rate_limited:
        later = (
            "It allows ten new integrations an hour, and limits requests. Try again later; nothing is created twice."
        )
        return NotConnectedError(f"Lytics is limiting requests and did not {what} ({answer.reason}). {later}")
    if answer.outcome is Outcome.RETRY_LATER:
        return NotConnectedError(f"Lytics could not be asked to {what}: {answer.reason}. Try again later.")
    return NotConnectedError(f"Lytics did not {what}: {answer.reason}.", by_hand=True)


@dataclass(frozen=True)
class TokenCheck:
    """The result of checking an API token. ``is_rejected``: Lytics doesn't know the token.

    ``is_complete``: the token may read all that ``connect`` reads.
    """

    is_rejected: bool
    is_complete: bool
    words: str


def check_token(client: Client) -> TokenCheck:
    """Check the token with three reads. Only creating something would show whether the token may create."""
    listed = audiences(client)
    if not listed.answer.is_ok:
        is_rejected = listed.answer.outcome is Outcome.UNAUTHORISED
        return TokenCheck(is_rejected, False, rejected("list the audiences", listed.answer).words)
    others = {"jobs": jobs(client).answer, "authorizations": authorizations(client).answer}
    problems = [rejected(f"list the {name}", answer).words for name, answer in others.items() if not answer.is_ok]
    accepted = f"Lytics accepts the API token and shows {len(listed.items)} audiences."
    return TokenCheck(False, not problems, " ".join([accepted, *problems]))


def job_name(install: Install) -> str:
    return f"Lytics Sync: {install.name[:NAME_LENGTH]} ({install.public_id})"


def authorization_label(install: Install, token: Token) -> str:
    return f"Lytics Sync: {install.name[:NAME_LENGTH]} ({install.public_id}, token {mark_of(token)})"


def mark_of(token: Token) -> str:
    return token.digest[:MARK_LENGTH]


def mark_in(label: str, install: Install) -> str:
    """The token mark in the label of an authorization of this install; empty for other authorizations."""
    found = re.search(rf"\({re.escape(install.public_id)}, token ([0-9a-f]+)\)$", label.strip())
    return found[1] if found else ""


def _read(listed: Many[Thing], what: str) -> Many[Thing]:
    if not listed.answer.is_ok:
        raise rejected(f"list {what}", listed.answer)
    return listed


def _job_of(install: Install, listed: Many[Job]) -> Job | None:
    """Find the job by URL and name, else by URL alone, else by name alone: a person may have created or edited it."""
    url, mark = installs.webhook_url(install), f"({install.public_id})"
    alive = [job for job in listed.items if not job.is_gone]
    calling = [job for job in alive if is_same_url(text(job.config, "webhook_url"), url)]
    named = [job for job in alive if job.name.endswith(mark)]
    for group in ([job for job in calling if job in named], calling, named):
        if len(group) > 1:
            names = "; ".join(f"{job.name or 'without a name'} ({job.job_id}, {job.state})" for job in group)
            raise NotConnectedError(
                f"{len(group)} jobs in Lytics could be this install's: {names}. Keep one, or let the name of one end"
                f" with {mark}."
            )
        if group:
            return group[0]
    if listed.unreadable:
        raise NotConnectedError(
            f"Webhook jobs in Lytics that can't be read: {listed.unreadable}. This install's may be among them."
        )
    return None


def identifier_holds_list(client: Client, install: Install, known: Sequence[Audience]) -> tuple[bool, str]:
    """Whether the identifier field holds a list, read from the first members of the largest audience; and a note."""
    field = install.identifier_field
    if field == LYTICS_ID:
        return False, ""
    largest = max((audience for audience in known if audience.size), key=lambda one: one.size or 0, default=None)
    if largest is None:
        return False, f"No audience has members yet, so {field} could not be looked at."
    page = next(scan(client, largest.segment_id, fields=[field]))
    if not page.answer.is_ok:
        return False, f"Members could not be read: {page.answer.reason}."
    values = [member.fields[field] for member in page.members if member.fields.get(field) not in (None, "", [])]
    holds_list = any(isinstance(value, list) for value in values)
    if not values:
        return holds_list, f"Of the first {len(page.members)} members of {largest.slug} in Lytics, none has {field}."
    return holds_list, ""
