"""The tables, and the constraints that PostgreSQL enforces. docs/glossary.md defines the terms.

One writer per fact: ``ingest`` and ``plain_calls`` create Events and Receipts, ``delivery/`` writes Lanes, Runs,
Deliveries and the ledger, ``delivery/backoff.py`` the backoff of an Install, ``resends`` Resends. The state that pages
show is derived from these facts (``insight/state.py``).
"""

from audiences.models.audiences import Audience, Lane, Membership, Profile
from audiences.models.audits import Audit, Difference, ScannedMember
from audiences.models.changes import AudienceMove, GuidedChange
from audiences.models.deliveries import FAILED, OUTCOMES, SKIPPED, SLOW_MS, Delivery, Run, Skip, rare
from audiences.models.evidence import Minute, Rhythm, Trial, Worker
from audiences.models.forgotten import Forgotten
from audiences.models.installs import Install, LyticsAccount, Pace, Token, new_public_id
from audiences.models.job_presences import JobPresence
from audiences.models.log import BLOCKS_PER_RANGE, Event, FutureTime, Receipt
from audiences.models.parked import Parked
from audiences.models.parts import LogPart
from audiences.models.resends import Again, Resend
from audiences.models.retention import Horizon, Pruning
from audiences.models.retirements import Retirement
from audiences.models.troubles import Trouble, TroubleMessage
from audiences.models.twins import Twin

__all__ = [
    "BLOCKS_PER_RANGE",
    "FAILED",
    "OUTCOMES",
    "SKIPPED",
    "SLOW_MS",
    "Again",
    "Audience",
    "AudienceMove",
    "Audit",
    "Delivery",
    "Difference",
    "Event",
    "Forgotten",
    "FutureTime",
    "GuidedChange",
    "Horizon",
    "Install",
    "JobPresence",
    "Lane",
    "LogPart",
    "LyticsAccount",
    "Membership",
    "Minute",
    "Pace",
    "Parked",
    "Profile",
    "Pruning",
    "Receipt",
    "Resend",
    "Retirement",
    "Rhythm",
    "Run",
    "ScannedMember",
    "Skip",
    "Token",
    "Trial",
    "Trouble",
    "TroubleMessage",
    "Twin",
    "Worker",
    "new_public_id",
    "rare",
]
