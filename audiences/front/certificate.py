"""The front page alert about the certificate of the public address."""

from datetime import timedelta
from urllib.parse import urlsplit

from django.conf import settings
from django.utils.timezone import now

from audiences.admin.pages import list_url
from audiences.front.alerts import Alert
from audiences.insight.certificate import Certificate
from audiences.models import Install, Trouble

KIND = "certificate"
# By then a worker has looked again, at the interval of ``look_at_certificate``.
LOOKED_AGAIN = timedelta(minutes=15)


def is_unknown(found: Certificate | None) -> bool:
    """Whether the result was lost, as when Redis was emptied, and no worker has looked since."""
    if found is not None or urlsplit(settings.PUBLIC_URL).scheme != "https":
        return False
    lately = Trouble.objects.filter(kind=KIND, resolved_at=None, last_seen_at__gt=now() - LOOKED_AGAIN)
    return lately.exists()


def alerts(found: Certificate | None) -> list[Alert]:
    if found is None or found.word == "good":
        return []
    host = urlsplit(settings.PUBLIC_URL).hostname
    return [
        Alert(
            KIND,
            f"The certificate of {host} ends soon" if found.ends_at else f"The certificate of {host} is not trusted",
            f"{found.words} Lytics calls https only, and no call arrives with a certificate that isn't valid.",
            None,
            list_url(Install),
            "bad" if found.word == "bad" else "held",
            todo=found.cure,
        )
    ]
