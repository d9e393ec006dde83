"""What a person can do to an install: retry, check its key, try full batches, make a token, delete it."""

from typing import Any

from django.contrib.admin.models import DELETION
from django.db.models.functions import Lower
from django.http import HttpRequest, HttpResponse

from audiences.admin import verbs
from audiences.admin.odp_live import KeyCheck, check_key
from audiences.admin.pages import (
    OperatorAdmin,
    count,
    list_url,
    number,
    url_of,
)
from audiences.admin.together import Together
from audiences.admin.tokens import AskName
from audiences.admin.verbs import STALE, Verb
from audiences.delivery import backoff, drafts, provision
from audiences.insight import state
from audiences.models import Install
from audiences.receiving import tokens
from audiences.wake import wake
from odp.regions import host_of

NOT_GRANTED = (
    "Nothing was deleted: this server's database role may not delete installs. Have the owner of the tables run"
    " manage.py grant_role again."
)


def saved(request: HttpRequest, install: Install, found: KeyCheck | None, *, after: str = "") -> HttpResponse:
    """One message: what was saved and, if the key was checked, ODP's answer."""
    if found is not None and not found.works:
        draft = " as a draft" if install.key_accepted_at is None else ""
        return verbs.go(request, url_of(install), warning=f"{install} is saved{draft}. {found.words}")
    key_result = f" {found.words}" if found else ""
    return verbs.go(request, url_of(install), success=f"{install} is saved.{key_result}{after}")


def deliver_now(install: Install) -> None:
    """End the holds of the install and its audiences, and wake the workers, because ODP accepts the key."""
    backoff.release(install)
    provision.try_now(install_id=install.pk)
    wake(install.pk)


class RetryNow(Verb[Install]):
    name, label, icon, permission = "retry", "Retry now", "refresh", "audiences.retry_install"

    def offered(self, install: Install) -> bool:
        return install.backoff_until_at is not None

    def seen(self, install: Install) -> str:
        return str(install.backoff_since_at)

    def consequence(self, install: Install) -> str:
        return (
            f"One request is sent to ODP now. If ODP accepts it, delivery continues; if not, it"
            f" backs off again. Nothing is lost. Last response: {install.backoff_reason}"
        )

    def do(self, install: Install, *, by: str, answers: dict[str, Any]) -> str | None:
        backoff.release(install)
        provision.try_now(install_id=install.pk)
        wake(install.pk)
        return f"Trying {install} again now."


def _on_hold(_: Install) -> list[Install]:
    """The installs that wait for ODP, without those whose key ODP rejects: a retry doesn't help them."""
    held = Install.objects.filter(enabled=True, backoff_until_at__isnull=False).order_by(Lower("name"), "pk")
    return [install for install in held if not state.needs_key(install)]


RETRY_ALIKE = Together(
    RetryNow(),
    "retry-alike",
    "install",
    "Retried",
    _on_hold,
    lambda _, names: (
        f"One request is sent to ODP now for each of {names}. Where ODP accepts it, delivery continues; the others back"
        " off again. Nothing is lost."
    ),
)


class TryFullBatches(Verb[Install]):
    name, label, icon = "full-batches", "Try full batches again", "unfold_more"
    permission = "audiences.retry_install"

    def offered(self, install: Install) -> bool:
        return install.learned_batch_size is not None

    def seen(self, install: Install) -> str:
        return str(install.learned_batch_size)

    def consequence(self, install: Install) -> str:
        learned = count(install.learned_batch_size or 0, "item")
        return (
            f"ODP rejected a request of this install as too large, so requests hold at most {learned}. From now on"
            f" up to {number(install.batch_size)} are tried again. If ODP still rejects that as too large, smaller ones"
            " are sent at once and the limit is found again. Nothing is lost."
        )

    def do(self, install: Install, *, by: str, answers: dict[str, Any]) -> str | None:
        if not backoff.forget_batch_size(install):
            return None
        return f"{install} tries up to {number(install.batch_size)} items in a request again."


class CheckKey(Verb[Install]):
    name, label, icon, permission = "check", "Check the key", "key", "audiences.change_install"

    def consequence(self, install: Install) -> str:
        host = host_of(api_key=install.odp_api_key, region=install.region, host=install.odp_host)
        stored = " If ODP accepts it, stored events are sent at once." if install.key_accepted_at is None else ""
        return f"The stored API key is checked with ODP at {host}. Nothing is changed there.{stored}"

    def do(self, install: Install, *, by: str, answers: dict[str, Any]) -> str | None:
        found = check_key(install)
        if found.works and install.key_accepted_at is None:
            deliver_now(install)
        return found.words if found.works else verbs.Failure(found.words)


class Delete(Verb[Install]):
    """Of an install that was made by mistake: nothing hangs on it yet."""

    name, label, icon, permission = "remove", "Delete", "delete", "audiences.delete_install"
    danger = True

    def offered(self, install: Install) -> bool:
        return not drafts.undeletable(install)

    def consequence(self, install: Install) -> str:
        live = count(len(tokens.live(install)), "token")
        return (
            f"{install} goes with its settings, its API key and its {live}: Lytics jobs that call its webhook URL are"
            " answered 401 from then on. It has no audiences, events or calls, and in ODP nothing changes. It can't be"
            " brought back."
        )

    def too_late(self, install: Install) -> str:
        return f"{install} can't be deleted. {drafts.undeletable(install)}" if drafts.undeletable(install) else STALE

    def pressed(self, admin: OperatorAdmin[Install], request: HttpRequest, pk: int) -> HttpResponse:
        """As any verb, but return to the list, because the page of the install is gone."""
        install, back = verbs.approach(admin, self, request, pk)
        if (
            request.method != "POST"
            or not self.offered(install)
            or request.POST.get("seen") != self.version_tag(install)
        ):
            return verbs.press(admin, self, request, pk)
        try:
            if not drafts.delete(pk):
                return verbs.go(request, back, warning=self.too_late(install))
        except drafts.NotGrantedError:
            return verbs.go(request, back, warning=NOT_GRANTED)
        verbs.record(request, [install], "Deleted, with its settings, its API key and its tokens.", flag=DELETION)
        return verbs.go(request, list_url(Install), success=f"{install} is deleted.")


class NewToken(Verb[Install]):
    name, label, icon, permission = "new-token", "New token", "add", "audiences.add_token"
    form = AskName

    def offered(self, install: Install) -> bool:
        return len(tokens.live(install)) < 2

    def consequence(self, install: Install) -> str:
        return "A second token is created. Both work until one is revoked; there can't be more than two."

    def do(self, install: Install, *, by: str, answers: dict[str, Any]) -> str | None:
        try:
            tokens.create(install, name=answers["token_name"])
        except tokens.NoFreeSlotError:
            return None
        return f"A new token of {install} is live."
