"""Exits of a forgotten customer for the fields and lists that the install's audiences used before.

After a change to another mechanism, the previous field or list stays in ODP with its members. A change back uses it
again, and sends the ledger, which no longer has a customer who was forgotten since.
"""

from audiences.delivery.odp_account import client_of, mechanism_of
from audiences.models import GuidedChange, Install, Membership
from odp.mechanisms import Change, encode
from odp.outcomes import Outcome

# Seconds of one request to ODP.
SECONDS = 8.0


class SilentError(Exception):
    """An exit got no final response. The next call sends all exits of the customer again."""


def send_exits(install_id: int, identifier: str) -> bool:
    """Send an exit for each audience of the customer by each mechanism that the audience doesn't use now.

    Returns False when the install is switched off, and raises ``SilentError``. A rejected exit counts as accepted,
    because ODP rejects it where the audience never had the field or list.
    """
    install = Install.objects.get(pk=install_id)
    changed = GuidedChange.objects.filter(install=install, kind=GuidedChange.Kind.MECHANISM)
    used = {name for names in changed.values_list("before", "after") for name in names}
    rows = Membership.objects.filter(identifier=identifier, audience__install=install).select_related("audience")
    if not used or not rows:
        return True
    client = client_of(install)
    for row in rows:
        for name in sorted(used - {row.audience.mechanism or install.mechanism}):
            # Read before each request: there may be hundreds, and switching off ends them.
            if not Install.objects.filter(pk=install_id, enabled=True).exists():
                return False
            mechanism, audience = mechanism_of(install, name), row.audience
            left = Change(audience.pk, audience.odp_id, identifier, False, row.occurred_ns, row.sequence)
            answer = client.call("POST", mechanism.path, body=encode(mechanism.items((left,))), seconds=SECONDS)
            if answer.outcome not in (Outcome.DELIVERED, Outcome.REJECTED):
                raise SilentError
    return True
