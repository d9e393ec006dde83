"""Differences with Lytics that come from identifier fields that hold lists: shortened lists and merged profiles.

Lytics never names an identifier that left a list, and reports no merge. What can be known follows from three sources:
the profiles in Lytics' scan, the newest list that Lytics sent of each profile (with *forget missing identifiers* on),
and the identifiers that were named together in one message (without it).
"""

from audiences import sql
from audiences.models import Audit, Difference

WORDS = {
    "left_list": "The identifier left its profile's list, and the profile is still a member.",
    "merged": "Merged profile: the identifier moved to another profile, or its profile became part of another one.",
}
# The most differences whose reason is searched for.
MOST = 10_000
# Lytics documents at most this number of identifiers for a profile.
LONGEST_LIST = 50

_EXPLAIN = sql.beside(__file__).command("explain")


def explain(audit: Audit, *, entry_not_sent: str, exit_not_sent: str) -> dict[str, int]:
    """Store the reason of differences that come from lists, and return the numbers of both reasons as audit columns.

    Only the two given reasons are replaced. All differences are counted, so that a repeated step of a killed audit
    returns the same numbers.
    """
    if not audit.array_option:
        return {}
    stored = Difference.objects.filter(audit=audit)
    unexplained = stored.filter(why__in=(entry_not_sent, exit_not_sent)).order_by("id")
    if differing := list(unexplained.values_list("id", "identifier", "why")[:MOST]):
        _EXPLAIN.run(
            audit=audit.pk,
            audience=audit.audience_id,
            ids=[pk for pk, _, _ in differing],
            identifiers=[identifier for _, identifier, _ in differing],
            are_members=[why == exit_not_sent for _, _, why in differing],
            longest=LONGEST_LIST,
            **WORDS,
        )
    return {name: stored.filter(why=why).count() for name, why in WORDS.items()}
