"""Front page alerts about installs that Lytics hasn't called for longer than usual."""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from django.conf import settings
from django.utils.timezone import now

from audiences.admin.pages import list_url, span, url_of
from audiences.front.alerts import Alert, Extent, and_more, way_to
from audiences.front.calls import Switched, switched_at_last
from audiences.insight import probes
from audiences.insight.backlogs import Backlog
from audiences.models import Install
from audiences.receiving import disk_usage
from audiences.receiving.rejected_calls import RejectedCalls, has_calls

KIND = "silent"
# A gap is found between two test customers, and the first one may have been sent before the last call.
BEFORE = timedelta(days=1)


def silent_senders(
    installs: list[Any],
    limits: Mapping[int, timedelta],
    waiting: Mapping[int, Backlog],
    rejections: Mapping[str, RejectedCalls],
    extent: Extent,
) -> list[Alert]:
    """Alerts for enabled installs without a call for longer than their limit, except installs with rejected calls.

    While an install was off, its calls were answered 503, so that time is no silence; nor is the time in which this
    service didn't run.
    """
    if disk_usage.is_too_full():
        return []
    without_call = [
        install
        for install in installs
        if install.enabled
        and install.pk in limits
        and install.called_at is not None
        and now() - install.called_at > limits[install.pk]
        and not has_calls(install.public_id, rejections)
        and waiting.get(install.pk, Backlog()).free <= settings.BACKLOG_HIGH_WATER
    ]
    switched = switched_at_last(without_call)
    since = {install: _since(install, switched.get(install.pk)) for install in without_call}
    gaps = probes.gaps(min(since.values()) - BEFORE) if since else []
    silent = [
        install
        for install in without_call
        if now() - since[install] - _within(gaps, since[install]) > limits[install.pk]
    ]
    shown = [
        Alert(
            KIND,
            f"{install}: Lytics has been silent for {span(now() - since[install])}",
            f"{_limit(install, limits[install.pk])} Audiences in ODP no longer change.",
            since[install],
            url_of(install),
            todo="Look in Lytics whether the job of this webhook runs, and restart it if it failed. If nothing has"
            " changed in its audiences, press Mute; this ends with the next call.",
            offers=(way_to(install, "webhook-url", "Install instructions", "menu_book"),),
            install=install.pk,
        )
        for install in silent[: extent.most]
    ]
    return shown + and_more(KIND, len(silent), "silent senders", list_url(Install), extent)


def _since(install: Any, switched: Switched | None) -> datetime:
    """When the silence began: with the last call, or when a person switched the install on after it."""
    called_at: datetime = install.called_at
    return max(called_at, switched.at) if switched else called_at


def _within(gaps: Sequence[tuple[datetime, datetime]], since: datetime) -> timedelta:
    """The length of the gaps after ``since``."""
    return sum((max(end - max(start, since), timedelta()) for start, end in gaps), timedelta())


def _limit(install: Install, limit: timedelta) -> str:
    of = "" if install.silence_limit_hours is not None else ", learned from its calls"
    return f"That is more than the limit of the install{of}: {span(limit)}."
