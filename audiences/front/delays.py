"""Front page alerts about events that wait for longer than their install's limit."""

from collections.abc import Collection, Mapping
from datetime import timedelta
from typing import Any

from django.conf import settings
from django.utils.timezone import now

from audiences.admin.pages import list_url, number, span
from audiences.front.alerts import Alert, Extent, and_more, way_to
from audiences.insight.backlogs import Backlog
from audiences.models import Audience, Install

KIND = "delay"


def late_events(
    installs: list[Any], waiting: Mapping[int, Backlog], extent: Extent, *, without: Collection[str] = ()
) -> list[Alert]:
    """Alerts for installs with an event that could be sent and has waited for longer than the limit.

    Left out are installs that have an alert with the cause already: those that are off, drafts, on hold or above the
    high-water mark, and the installs with the names ``without``.
    """
    late = [
        (install, now() - backlog.oldest_free_at)
        for install in installs
        if (backlog := waiting.get(install.pk)) is not None
        and install.enabled
        and install.key_accepted_at is not None
        and install.backoff_until_at is None
        and backlog.oldest_free_at is not None
        and backlog.free <= settings.BACKLOG_HIGH_WATER
        and str(install) not in without
        and install.delay_limit_minutes
        and now() - backlog.oldest_free_at > timedelta(minutes=install.delay_limit_minutes)
    ]
    shown = [
        Alert(
            KIND,
            f"{install}: events wait for {span(delay)}",
            f"{number(waiting[install.pk].free)} events wait that nothing holds up. The install's limit is"
            f" {install.delay_limit_minutes} min.",
            waiting[install.pk].oldest_free_at,
            list_url(Audience, state="behind", install__id__exact=install.pk),
            todo="Wait if a large change of an audience is under way in Lytics. Otherwise raise the install's requests"
            " per second if its ODP account allows it, or start more workers.",
            offers=(way_to(install, "id_delay_limit_minutes", "Change the limit", "schedule"),),
            install=install.pk,
        )
        for install, delay in late[: extent.most]
    ]
    return shown + and_more(KIND, len(late), "installs with late events", list_url(Install), extent)
