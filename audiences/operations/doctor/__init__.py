"""The doctor: live checks of all preconditions and silent causes of failure that the two vendors' contracts name.

Each check is one small function in a registry; ``docs/doctor.md`` lists them. The order of these imports is the order
of the lines: checks without network first, the slowest checks last.
"""

# isort: off
from audiences.operations.doctor import service
from audiences.operations.doctor import retention
from audiences.operations.doctor import odp_account
from audiences.operations.doctor import members
from audiences.operations.doctor import public_address
from audiences.operations.doctor import lytics_job
from audiences.operations.doctor import lytics_audiences

# isort: on
from audiences.operations.doctor.case import Case
from audiences.operations.doctor.registry import CHECKS, GROUPS, WORDS, Check, Finding, Line, examine, merged

__all__ = [
    "CHECKS",
    "GROUPS",
    "WORDS",
    "Case",
    "Check",
    "Finding",
    "Line",
    "examine",
    "lytics_audiences",
    "lytics_job",
    "members",
    "merged",
    "odp_account",
    "public_address",
    "retention",
    "service",
]
