"""The front page alert about the certificate of the public address."""

from urllib.parse import urlsplit

from django.conf import settings

from audiences.admin.pages import list_url
from audiences.front.alerts import Alert
from audiences.insight.certificate import Certificate
from audiences.models import Install

KIND = "certificate"


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
