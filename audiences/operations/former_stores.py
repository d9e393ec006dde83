"""Exits of a forgotten customer for fields and lists in ODP that no lane delivers to.

After a change to another mechanism, the previous field or list stays in ODP with its members. A change back uses it
again, and sends the ledger, which no longer has a customer who was forgotten since. The same is true of a retired
audience that is taken back: its field or list stays, and has the customer if a person skipped the customer's exit.
"""

from audiences.delivery import shared_ids
from audiences.delivery.odp_account import client_of, mechanism_of
from audiences.models import GuidedChange, Install, Membership
from odp.mechanisms import Change, encode
from odp.outcomes import Outcome

# Seconds of one request to ODP.
SECONDS = 8.0


class SilentError(Exception):
    """An exit got no final response. The next call sends all exits of the customer again."""


def send_exits(install_id: int, identifier: str) -> bool:
    """Send an exit for each audience of the customer by each mechanism that the audience doesn't use now, and by its
    own where ODP doesn't have the audience.

    Returns False when the install is switched off, and raises ``SilentError``. A rejected exit counts as accepted,
    because ODP rejects it where the audience never had the field or list.
    """
    install = Install.objects.get(pk=install_id)
    changed = GuidedChange.objects.filter(install=install, kind=GuidedChange.Kind.MECHANISM)
    used = {name for names in changed.values_list("before", "after") for name in names}
    ledger = Membership.objects.filter(identifier=identifier, audience__install=install)
    for row in ledger.select_related("audience__install"):
        own = {row.audience.mechanism or install.mechanism}
        no_lane = own if (row.is_member or row.rejected) and row.audience.provisioned_at is None else set()
        names = used - own | no_lane
        if names and shared_ids.used_by(row.audience) is not None:
            continue  # the exit would remove a customer whom another install entered
        for name in sorted(names):
            # Read before each request: there may be hundreds, and switching off ends them.
            if not Install.objects.filter(pk=install_id, enabled=True).exists():
                return False
            mechanism, audience = mechanism_of(install, name), row.audience
            left_ns = row.occurred_ns + mechanism.time_step_ns
            left = Change(audience.pk, audience.odp_id, identifier, False, left_ns, row.sequence)
            body = encode(mechanism.items((left,)))
            answer = client_of(install).call("POST", mechanism.path, body=body, seconds=SECONDS)
            if answer.outcome not in (Outcome.DELIVERED, Outcome.REJECTED):
                raise SilentError
    return True
