"""Tokens: what Lytics sends in its request header. Shown on their install's page."""

from datetime import timedelta
from typing import Any

from django import forms
from django.contrib import admin
from django.db.models import Case, TextField, Value, When
from django.db.models.functions import Cast, Coalesce, Lower, Now, NullIf
from django.http import HttpRequest
from django.utils.safestring import SafeString
from django.utils.timezone import now
from unfold.widgets import UnfoldAdminSelectWidget, UnfoldAdminTextInputWidget

from audiences.admin.opened import one_line
from audiences.admin.pages import HistoryAdmin, link, pill_and_why, span
from audiences.admin.verbs import Verb
from audiences.insight import state
from audiences.models import Token
from audiences.receiving import tokens

# In the order live, ending, ended, revoked: ``state.of_token`` in SQL.
STATE_ORDER = Case(
    When(revoked_at__isnull=False, then=3),
    When(expires_at=None, then=0),
    When(expires_at__lte=Now(), then=2),
    default=1,
)


class AskUntil(forms.Form):
    hours = forms.TypedChoiceField(
        label="Keep the old token for",
        coerce=int,
        choices=[(1, "an hour"), (24, "a day"), (168, "a week")],
        initial=24,
        widget=UnfoldAdminSelectWidget,
        help_text="Until then both work, so no call is rejected while the Lytics job is changed.",
    )


class AskName(forms.Form):
    token_name = forms.CharField(
        label="Name",
        max_length=60,
        required=False,
        widget=UnfoldAdminTextInputWidget(attrs={"autofocus": True}),
        help_text="What it is for, such as the name of the Lytics job that sends it. Can be left empty.",
    )

    def clean_token_name(self) -> str:
        return one_line(self.cleaned_data["token_name"])


class Reveal(Verb[Token]):
    name, label, icon, permission = "reveal", "Show", "visibility", "audiences.reveal_token"

    def offered(self, token: Token) -> bool:
        return state.of_token(token).word in ("live", "ending")

    def consequence(self, token: Token) -> str:
        return (
            "The authorization header is shown once, to be copied into Lytics. Whoever has it can send events to this"
            " install. This is logged in the token's history."
        )

    def do(self, token: Token, *, by: str, answers: dict[str, Any]) -> str | None:
        return "Authorization header shown, this once."

    def also(self, request: HttpRequest, token: Token) -> None:
        request.session["revealed_token"] = token.pk


class Rotate(Verb[Token]):
    name, label, icon, permission = "rotate", "Rotate", "autorenew", "audiences.rotate_token"
    form = AskUntil

    def offered(self, token: Token) -> bool:
        return [other.pk for other in tokens.live(token.install)] == [token.pk] and token.expires_at is None

    def seen(self, token: Token) -> str:
        return str(token.pk)

    def consequence(self, token: Token) -> str:
        used = f"last used {token.last_used_at:%Y-%m-%d %H:%M} UTC" if token.last_used_at else "never used"
        return (
            f"A new token is made beside this one ({used}). Put the new header into the Lytics job before the old one"
            " ends: after that, calls with the old token get 401, and Lytics retries them."
        )

    def do(self, token: Token, *, by: str, answers: dict[str, Any]) -> str | None:
        until = now() + timedelta(hours=answers["hours"])
        try:
            tokens.create(token.install, name=token.name)
        except tokens.NoFreeSlotError:
            return None
        tokens.revoke(token, at=until)
        return f"A new token is live; the old one ends at {until:%Y-%m-%d %H:%M} UTC."


class Name(Verb[Token]):
    name, label, icon, permission = "name", "Name", "edit", "audiences.rotate_token"
    form = AskName

    def consequence(self, token: Token) -> str:
        called = f"It is called {token.name} now" if token.name else "It has no name yet"
        return f"A name tells the tokens of an install apart. {called} ({tokens.ending(token)})."

    def do(self, token: Token, *, by: str, answers: dict[str, Any]) -> str | None:
        token.name = answers["token_name"]
        token.save(update_fields=["name"])
        return f"Named {token}."


class Revoke(Verb[Token]):
    name, label, icon, permission = "revoke", "Revoke", "block", "audiences.revoke_token"
    danger = True

    def offered(self, token: Token) -> bool:
        return token.revoked_at is None

    def consequence(self, token: Token) -> str:
        other = next((other for other in tokens.live(token.install) if other.pk != token.pk), None)
        left = (
            "It is the only live token, so every call is answered 401 then."
            if other is None
            else f"The other live token ({tokens.ending(other)}) {_used(other)}"
            + (": put its header into the Lytics job first." if other.last_used_at is None else " and still works.")
        )
        return (
            f"Lytics used this token ({tokens.ending(token)}) {_last(token)}. Calls with it are answered 401 from now"
            f" on, and this can't be undone. {left}"
            if token.last_used_at
            else f"This token ({tokens.ending(token)}) has never been used. Calls with it are answered 401 from now on,"
            f" and this can't be undone. {left}"
        )

    def seen(self, token: Token) -> str:
        """The live tokens, and whether each has been used: after a first use the decision is another one."""
        return repr([(other.pk, other.last_used_at is None) for other in tokens.live(token.install)])

    def do(self, token: Token, *, by: str, answers: dict[str, Any]) -> str | None:
        tokens.revoke(token)
        return f"Revoked {token}."


def _last(token: Token) -> str:
    assert token.last_used_at is not None
    return f"{span(now() - token.last_used_at)} ago"


def _used(token: Token) -> str:
    return "has never been used" if token.last_used_at is None else f"was last used {_last(token)}"


@admin.register(Token)
class TokenAdmin(HistoryAdmin[Token]):
    verbs = (Reveal(), Rotate(), Name(), Revoke())
    empty_words = "No token yet."
    list_display = ("token", "pill", "install", "created_at", "last_used_at", "last_used_from")
    sortable_by = list_display
    list_filter = ("install",)
    list_select_related = ("install",)
    fields = (("install", "pill"), ("created_at", "expires_at"), ("last_used_at", "last_used_from"))
    readonly_fields = ("pill",)

    @admin.display(ordering=Lower(Coalesce(NullIf("name", Value("")), Cast("slot", TextField()))))
    def token(self, token: Token) -> SafeString | str:
        return link(token, f"{token} ({tokens.ending(token)})")

    @admin.display(description="state", ordering=STATE_ORDER)
    def pill(self, token: Token) -> SafeString:
        return pill_and_why(state.of_token(token))
