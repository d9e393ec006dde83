"""Every URL of the admin, found in the resolver, and the permissions that each of them needs.

A URL that is missing here makes ``tests/test_rights.py`` fail, so each new URL gets its permissions.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from django.contrib import admin
from django.contrib.auth.models import Permission
from django.db.models import Model
from django.urls import URLPattern, URLResolver, get_resolver, reverse

# Any one permission of a tuple opens a URL; every tuple has to be satisfied.
Needs = tuple[tuple[str, ...], ...]

# Open to every logged-in user, and without data of the tables; the tests check the responses.
OPEN = {
    *("index", "app_list", "login", "logout", "password_change", "password_change_done", "jsi18n"),
    *("search", "search_everything", "autocomplete", "view_on_site"),
    # Django's redirect from a thing's number to its page, and from an address without its last slash.
    None,
}

OWN: dict[str, tuple[str, ...]] = {
    "find_customer": ("find_customer",),
    "audiences_live": ("view_receipt", "view_delivery"),
    "audiences_run_sent": ("view_run", "view_delivery"),
    "audiences_install_connecting": ("view_install",),
    "audiences_install_doctor": ("test_install",),
    "audiences_install_retry": ("retry_install",),
    "audiences_install_retry-alike": ("retry_install",),
    "audiences_install_full-batches": ("retry_install",),
    "audiences_install_check": ("change_install",),
    "audiences_install_try-out": ("test_install",),
    "audiences_install_new-token": ("add_token",),
    "audiences_install_retire-all": ("retire_audience",),
    "audiences_install_remove": ("delete_install",),
    "audiences_install_lytics-token": ("change_install",),
    "audiences_install_no-lytics-token": ("change_install",),
    "audiences_install_connect": ("change_install",),
    "audiences_install_start-job": ("change_install",),
    "audiences_install_change-mechanism": ("guide_change",),
    "audiences_install_change-account": ("guide_change",),
    "audiences_install_change-identifier": ("guide_change",),
    "audiences_install_stop-change": ("guide_change",),
    "audiences_trouble_mute": ("mute_trouble",),
    "audiences_trouble_unmute": ("mute_trouble",),
    "audiences_trouble_mute-cause": ("mute_trouble",),
    "audiences_trouble_mute-kind": ("mute_trouble",),
    "audiences_trouble_test": ("mute_trouble",),
    "audiences_token_reveal": ("reveal_token",),
    "audiences_token_rotate": ("rotate_token",),
    "audiences_token_name": ("rotate_token",),
    "audiences_token_revoke": ("revoke_token",),
    "audiences_audience_pause": ("pause_audience",),
    "audiences_audience_set-aside": ("pause_audience",),
    "audiences_audience_resume": ("resume_audience",),
    "audiences_audience_unblock": ("unblock_audience",),
    "audiences_audience_unblock_cause": ("unblock_audience",),
    "audiences_audience_unblock_everywhere": ("unblock_audience",),
    "audiences_audience_accept": ("unblock_audience",),
    "audiences_audience_take-ours": ("unblock_audience",),
    "audiences_audience_other-id": ("unblock_audience",),
    "audiences_audience_keep-both": ("resync_audience",),
    "audiences_audience_take-over": ("resync_audience",),
    "audiences_audience_retire": ("retire_audience",),
    "audiences_audience_take-back": ("unblock_audience",),
    "audiences_audience_reuse-id": ("unblock_audience",),
    "audiences_audience_retry": ("retry_install",),
    "audiences_audience_retry-alike": ("retry_install",),
    "audiences_audience_resync-alike": ("resync_audience",),
    "audiences_audience_resync": ("resync_audience",),
    "audiences_audience_replay": ("replay_audience",),
    "audiences_resend_stop-resync": ("resync_audience",),
    "audiences_resend_stop-leave": ("resync_audience",),
    "audiences_resend_stop-repair": ("resync_audience",),
    "audiences_audience_audit": ("resync_audience",),
    "audiences_audit_repair": ("resync_audience",),
    "audiences_audit_stop": ("resync_audience",),
    "audiences_resend_stop-replay": ("replay_audience",),
    "audiences_resend_stop-release": ("release_parked",),
    "audiences_delivery_reveal": ("reveal_parked",),
    "audiences_parked_reveal": ("reveal_parked",),
    "audiences_parked_release": ("release_parked",),
    "audiences_parked_release_group": ("release_parked",),
    "audiences_parked_discard": ("discard_parked",),
    "audiences_parked_discard_group": ("discard_parked",),
    "audiences_audience_csv": ("view_audience",),
    "audiences_receipt_csv": ("view_receipt",),
    "audiences_run_csv": ("view_run",),
    "audiences_delivery_csv": ("view_delivery",),
    "audiences_logentry_csv": ("admin.view_logentry",),
    "auth_user_unlock": ("auth.change_user",),
    "auth_user_password_change": ("auth.change_user",),
    # Adding an account also needs the right to change accounts: the right to add alone would allow creating an admin.
    "auth_user_add": ("auth.add_user", "auth.change_user"),
    "auth_group_add": ("auth.add_group",),
    "audiences_install_add": ("add_install",),
}


@dataclass(frozen=True)
class Url:
    path: str
    name: str | None

    @property
    def needs(self) -> Needs | None:
        """None for a URL that no permission opens. Raises ``KeyError`` for an unknown URL."""
        if self.name in OWN:
            return tuple(_either(codename) for codename in OWN[str(self.name)])
        label, model, page = str(self.name).split("_", 2)
        if page in ("add", "delete"):
            return None
        if page in ("changelist", "change", "history"):
            return (_either(f"{label}.view_{model}"),)
        raise KeyError(f"{self.name} is in neither OPEN nor OWN: who may open it?")


def _either(codename: str) -> tuple[str, ...]:
    """With the right to change something one may look at it."""
    name = codename if "." in codename else f"audiences.{codename}"
    return (name, name.replace(".view_", ".change_")) if ".view_" in name else (name,)


def urls() -> list[Url]:
    """With the number of a row that exists wherever a number belongs."""
    return [Url(_path(names, pattern), pattern.name) for names, pattern in _patterns(get_resolver().url_patterns, ())]


def _patterns(found: Any, above: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], URLPattern]]:
    for one in found:
        names = (*above, str(one.pattern))
        if isinstance(one, URLResolver):
            yield from _patterns(one.url_patterns, names)
        elif "".join(names).startswith("admin/"):
            yield names, one


def _path(names: tuple[str, ...], pattern: URLPattern) -> str:
    if pattern.name in ("find_customer", "search_everything"):
        return reverse(pattern.name)
    if pattern.name is None:
        return "/" + "".join(names).replace("<path:object_id>", "1").split("(")[0]
    regex: re.Pattern[str] = pattern.pattern.regex
    return reverse(f"admin:{pattern.name}", kwargs={name: _value(name, names) for name in regex.groupindex})


def _value(name: str, names: tuple[str, ...]) -> Any:
    if name in ("pk", "object_id", "id") and len(names) > 2:
        return _first(names[1]).pk
    others = {
        "app_label": "audiences",
        "reason": "no_identifier",
        "channel": "email",
        "content_type_id": 1,
        "object_id": 1,
    }
    return others[name] if name in others else _first("audiences/install/").pk


def _first(folder: str) -> Model:
    label, model, _ = folder.split("/")
    of = next(of for of in admin.site._registry if (of._meta.app_label, of._meta.model_name) == (label, model))
    row = of._default_manager.order_by("pk").first()
    assert row is not None, f"the walk needs a row of {of.__name__}"
    return row


def permissions(without: tuple[str, ...] = (), only: Needs | None = None) -> list[Permission]:
    """All that there are except ``without``; or of each tuple of ``only`` the first."""
    every = Permission.objects.select_related("content_type")
    named = {f"{one.content_type.app_label}.{one.codename}": one for one in every}
    if only is not None:
        return [named[either[0]] for either in only]
    return [one for name, one in named.items() if name not in without]
