"""Front page alerts for installs whose audiences can't be read in ODP, so that changes made there stay unnoticed."""

from collections.abc import Collection
from datetime import timedelta

from django.conf import settings
from django.utils.timezone import now

from audiences.admin.pages import list_url, url_of
from audiences.front.alerts import Alert, Extent, and_more
from audiences.models import Install

KIND = "looks"
# Looks also fail while ODP restarts, and each is repeated after LOOK_MINUTES.
LATE = timedelta(hours=1)


def alerts(installs: Collection[Install], extent: Extent) -> list[Alert]:
    """Without installs that ask ODP nothing now: those that are off, drafts or on hold have alerts of their own."""
    if not settings.LOOK_MINUTES:
        return []
    before = now() - max(LATE, 3 * timedelta(minutes=settings.LOOK_MINUTES))
    late = [
        install
        for install in installs
        if install.enabled
        and install.key_accepted_at is not None
        and install.backoff_until_at is None
        and install.looks_fail_since_at is not None
        and install.looks_fail_since_at < before
    ]
    shown = [
        Alert(
            KIND,
            f"Audiences can't be looked at in ODP ({install})",
            "So nothing here shows what somebody changed or deleted there meanwhile. Deliveries continue.",
            install.looks_fail_since_at,
            url_of(install),
            "held",
            todo="Press Doctor on the install's page: it says how ODP responds.",
            install=install.pk,
        )
        for install in late[: extent.most]
    ]
    return shown + and_more(KIND, len(late), "installs without looks at their audiences", list_url(Install), extent)
