"""The second pass of an audit: wait for events under way, then compare Lytics' members with the ledger."""

from datetime import timedelta
from typing import NamedTuple

from django.conf import settings
from django.utils.timezone import now

from audiences import sql
from audiences.agreement import array_identifiers
from audiences.agreement.steps import Step, Wait
from audiences.models import Audience, Audit

# The most differences stored per pass. All differences are counted.
MOST = 10_000


class _Compared(NamedTuple):
    compared: int
    differing: int
    moving: int


_COMPARE = sql.beside(__file__).query("compare", _Compared._make)

WORDS = {
    "refused": "ODP rejected this change; it is parked.",
    "never_sent": "Lytics never sent this customer for this audience, or the events were skipped.",
    "entry_not_sent": "Lytics has not sent the entry.",
    "exit_not_sent": "Lytics has not sent the exit.",
}


def settle(audit: Audit) -> Step:
    """Wait until the lane has delivered the events up to the audit's beginning, and for ``AUDIT_SETTLE_SECONDS``.

    Lytics' calls arrive in that time, and ODP shows within 90 s what it accepted (documented).
    """
    at = now()
    since = min(audit.settled_since_at or at, at)  # a later time was stored before a clock was set back
    audience = Audience.objects.select_related("lane").get(pk=audit.audience_id)
    is_behind = audience.lane.delivered_sequence < audit.before_sequence
    left = timedelta(seconds=settings.AUDIT_SETTLE_SECONDS) - (at - since)
    if is_behind or left > timedelta(0):
        return Step({"settled_since_at": since}, seconds=max(Wait.LONG, left.total_seconds()))
    phase = Audit.Phase.COMPARE if audit.scan_began_at else Audit.Phase.ODP
    return Step({"phase": phase, "settled_since_at": since})


def compare(audit: Audit) -> Step:
    found = _COMPARE.run(
        audit=audit.pk, audience=audit.audience_id, before=audit.before_sequence, most=audit.most or MOST, **WORDS
    ).one()
    assert found is not None
    return Step(
        {
            "phase": Audit.Phase.ODP,
            "compared_with_lytics": found.compared,
            "differing": found.differing,
            "moving": found.moving,
            **array_identifiers.explain(
                audit, entry_not_sent=WORDS["entry_not_sent"], exit_not_sent=WORDS["exit_not_sent"]
            ),
        }
    )
