"""The buttons of an install that call Lytics' API: its API token, the audiences of the webhook job, and its start."""

import time
from typing import Any

from django import forms
from django.http import HttpRequest, HttpResponse
from unfold.widgets import UnfoldAdminCheckboxSelectMultipleWidget, UnfoldAdminPasswordWidget

from audiences import lytics_account
from audiences.admin import verbs
from audiences.admin.pages import OperatorAdmin, count, number
from audiences.admin.verbs import STALE, Failure, Verb
from audiences.models import Install
from audiences.operations.connect import client_of, connect
from audiences.operations.lytics_job import Found, NotConnectedError, check_token, look

# Seconds for all requests to Lytics of one page.
SECONDS = 20.0
BY_HAND = "The Install Instructions on this page say what to enter in Lytics by hand."


class AskApiToken(forms.Form):
    api_token = forms.CharField(
        label="Lytics API token",
        max_length=500,
        widget=UnfoldAdminPasswordWidget(attrs={"autocomplete": "off", "spellcheck": "false", "autofocus": True}),
        help_text="Create it in Lytics under Access Tokens, with roles that may read audiences and profiles and manage"
        " jobs and authorizations. Choose no expiry, or enter another in time. Stored encrypted and never shown again.",
    )


class SetApiToken(Verb[Install]):
    name, label, icon, permission = "lytics-token", "Lytics API token", "vpn_key", "audiences.change_install"
    form = AskApiToken

    def consequence(self, install: Install) -> str:
        stored = " It replaces the stored one." if lytics_account.has_token(install) else ""
        return (
            "With an API token this service can create the authorization and the webhook job in Lytics, and compare"
            f" members. Everything else works without. Lytics is asked whether it accepts the token.{stored}"
        )

    def do(self, install: Install, *, by: str, answers: dict[str, Any]) -> str | None:
        token = answers["api_token"].strip()
        found = check_token(lytics_account.client_with(token, ends_at=time.monotonic() + SECONDS))
        if found.is_rejected:
            return Failure(f"The Lytics API token is not stored. {found.words}")
        lytics_account.set_token(install, token)
        done = f"The Lytics API token is stored. {found.words}"
        return done if found.is_complete else Failure(done)


class RemoveApiToken(Verb[Install]):
    name, label, icon, permission = "no-lytics-token", "Remove API token", "key_off", "audiences.change_install"
    danger = True

    def offered(self, install: Install) -> bool:
        return lytics_account.has_token(install)

    def consequence(self, install: Install) -> str:
        return (
            f"The Lytics API token of {install} is deleted. Events continue; audits against Lytics and changes of the"
            " job are not possible without it. Revoke the token in Lytics as well."
        )

    def do(self, install: Install, *, by: str, answers: dict[str, Any]) -> str | None:
        lytics_account.set_token(install, "")
        return "The Lytics API token is removed."


class OfJob(Verb[Install]):
    """A button whose page shows the state in Lytics. ``pressed`` reads it once per request."""

    permission = "audiences.change_install"

    def __init__(self, found: Found | None = None) -> None:
        self.seen_in_lytics = found

    @property
    def found(self) -> Found:
        assert self.seen_in_lytics is not None, "pressed reads Lytics first"
        return self.seen_in_lytics

    def offered(self, install: Install) -> bool:
        return lytics_account.has_token(install)

    def too_late(self, instance: Install) -> str:
        return STALE if lytics_account.has_token(instance) else "This install has no Lytics API token."

    def seen(self, install: Install) -> str:
        """The compared state of the job. It excludes the state of a started job, which changes every minute."""
        job = self.found.job
        return repr((job.job_id, self.found.is_started, sorted(job.config.items(), key=str))) if job else ""

    def pressed(self, admin: OperatorAdmin[Install], request: HttpRequest, pk: int) -> HttpResponse:
        install, back = verbs.approach(admin, self, request, pk)
        if not self.offered(install):
            return verbs.go(request, back, warning=self.too_late(install))
        try:
            found = look(client_of(install, seconds=SECONDS), install)
        except NotConnectedError as problem:
            return verbs.go(request, back, warning=_words(problem))
        return verbs.press(admin, type(self)(found), request, pk)


class Connect(OfJob):
    name, label, icon = "connect", "Choose audiences", "cable"

    def consequence(self, install: Install) -> str:
        job = self.found.job
        if job is None:
            return (
                "The authorization with this install's webhook token and one job for all audiences are created in"
                " Lytics, with the settings of the Install Instructions. The job is held: Lytics sends nothing before"
                f" you press Start the job. {self.found.note}"
            )
        return (
            f"{job.name} is {job.state}. Audiences that you select join it, and audiences that you deselect leave it;"
            " everything else in the job stays as it is, including changes that a person made. Members of an audience"
            f" that leaves stay in ODP. {differing(self.found)} {self.found.note}"
        )

    def asks(self, instance: Install, answers: Any) -> forms.Form:
        present = self.found.job.segment_ids if self.found.job else ()
        form = forms.Form(answers)
        form.fields["segment_ids"] = forms.MultipleChoiceField(
            label="Audiences",
            choices=[
                (one.segment_id, f"{one.slug} ({'size unknown' if one.size is None else number(one.size)})")
                for one in sorted(self.found.audiences, key=lambda one: one.slug)
                if not one.is_invalid or one.segment_id in present
            ],
            initial=list(present),
            required=self.found.job is None,
            widget=UnfoldAdminCheckboxSelectMultipleWidget,
            help_text="With their present members by Lytics.",
        )
        return form

    def do(self, install: Install, *, by: str, answers: dict[str, Any]) -> str | None:
        listed = {audience.segment_id for audience in self.found.audiences}
        present = set(self.found.job.segment_ids if self.found.job else ()) & listed
        wanted = set(answers["segment_ids"])
        return _done(install, add=sorted(wanted - present), remove=sorted(present - wanted))


class StartJob(OfJob):
    name, label, icon = "start-job", "Start the job", "play_arrow"

    def consequence(self, install: Install) -> str:
        job = self.found.job
        if job is None:
            return "There is no job of this install in Lytics yet. Press Choose audiences first."
        if self.found.is_started:
            return f"{job.name} is {job.state} already. {differing(self.found)}"
        joined = [(segment_id, audience) for segment_id, audience in self.found.in_job()]
        members = number(sum(audience.size or 0 for _, audience in joined if audience))
        names = ", ".join(audience.slug if audience else segment_id for segment_id, audience in joined)
        return (
            f"{job.name} is {job.state}. From now on Lytics sends the members who enter and leave {names}, and first"
            f" those who are in them: about {members}. {differing(self.found)} {self.found.note}"
        )

    def do(self, install: Install, *, by: str, answers: dict[str, Any]) -> str | None:
        return _done(install, start=True)


LYTICS_VERBS: tuple[Verb[Install], ...] = (SetApiToken(), Connect(), StartJob(), RemoveApiToken())


def differing(found: Found) -> str:
    """The job's settings that differ from ours, in words."""
    if found.job is None:
        return ""
    words = "; ".join(f"{one.label} is {one.theirs} instead of {one.ours} ({one.why})" for one in found.differences)
    return f"Its settings differ from ours and are left alone: {words}" if words else "Its settings are ours."


def _done(install: Install, **wanted: Any) -> str:
    try:
        report = connect(install, seconds=SECONDS, **wanted)
    except NotConnectedError as problem:
        return Failure(_words(problem))
    job = report.found.job
    steps = "; ".join(report.steps) or "Nothing had to be changed"
    state = f" The job in Lytics is {job.state} with {count(len(job.segment_ids), 'audience')}." if job else ""
    return " ".join([f"{steps}.{state}", *report.notes])


def _words(problem: NotConnectedError) -> str:
    return f"{problem.words} {BY_HAND}" if problem.by_hand else problem.words
