"""Probes on the front page: whether ODP shows what was sent, and since when it doesn't."""

from collections.abc import Mapping
from typing import Any

from django.utils.timezone import now

from audiences.admin.pages import list_url, span, url_of
from audiences.front.alerts import Alert, Extent, Number, and_more, buttons, way_to
from audiences.insight.probes import Proof
from audiences.models import Install

KIND = "probe"
NEVER = "ODP has never shown a test customer."


def proof_number(installs: list[Any], proofs: Mapping[int, Proof]) -> Number:
    """The age of the oldest proof among the installs that are on and have one."""
    tried = [proofs[install.pk] for install in installs if install.enabled and proofs[install.pk].word != "none"]
    bad = sum(proof.is_bad for proof in tried)
    times = [proof.at for proof in tried if proof.at]
    if not times:
        without = (
            "no result of a test customer yet" if any(install.enabled for install in installs) else "no install is on"
        )
        value, note = "none yet", f"{bad} failing" if bad else without
    else:
        value = f"{span(now() - min(times))} ago"
        note = f"{bad} of {len(tried)} failing" if bad else f"all {len(tried)}" if len(tried) > 1 else "test customer"
    well = not bad if times or bad else None
    return Number("ODP shows what is sent", value, list_url(Install), well, note)


def not_proven(installs: list[Any], proofs: Mapping[int, Proof], extent: Extent) -> list[Alert]:
    """Alerts for installs whose test customer failed, except installs on hold, which have an alert already."""
    failing = [
        (install, proofs[install.pk])
        for install in installs
        if install.enabled and install.backoff_until_at is None and proofs[install.pk].is_bad
    ]
    shown = [
        Alert(
            KIND,
            f"{install}: ODP doesn't show what is sent"
            if proof.word == "failing"
            else f"{install}: whether ODP shows what is sent is unknown",
            f"{proof.why} {f'ODP last showed a test customer {span(now() - proof.at)} ago.' if proof.at else NEVER}",
            proof.since,
            f"{url_of(install)}#connecting",
            todo="Correct the cause, then send a test customer.",
            offers=(buttons(install, "try-out"), way_to(install, "id_odp_api_key", "The ODP account", "key")),
            install=install.pk,
            message=str(proof.why),
        )
        for install, proof in failing[: extent.most]
    ]
    return shown + and_more(KIND, len(failing), "installs whose test customer failed", list_url(Install), extent)
