"""The size of an audience's ledger, found in bounded time."""

import json

from audiences.models import Audience, Lane, Membership

# The most rows that are counted. Counting ten million takes longer than DATABASE_WEB_SECONDS.
COUNTED = 100_000


def of(audience: Audience, *, since: int = 0) -> int:
    """The number of rows whose deciding event has a number above ``since``. From ``COUNTED`` rows on it is an estimate
    of PostgreSQL, or the number of members if that is larger.
    """
    rows = Membership.objects.filter(audience=audience)
    counted = rows[:COUNTED].count()
    if counted < COUNTED:
        return rows.filter(sequence__gt=since).count() if since else counted
    members = Lane.objects.values_list("member_count", flat=True).get(pk=audience.pk)
    newest = Audience.objects.values_list("last_sequence", flat=True).get(pk=audience.pk)
    (estimate,) = json.loads(rows.explain(format="json"))
    size = max(counted, members, int(estimate["Plan"]["Plan Rows"]))
    # Each row has a deciding event of its own.
    return min(size, max(0, newest - since)) if since else size
