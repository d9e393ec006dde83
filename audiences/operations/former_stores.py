"""Exits of a forgotten customer for fields and lists in ODP that no lane delivers to.

After a change to another mechanism, the previous field or list stays in ODP with its members. A change back uses it
again, and sends the ledger, which no longer has a customer who was forgotten since. The same is true of a retired
audience that is taken back: its field or list stays, and has the customer if a person skipped the customer's exit, or
if ODP applied an abandoned request late. *Use another ODP id* and a take-over leave the members of an audience under
its former ODP id.
"""

from collections.abc import Iterator
from copy import copy

from audiences.delivery import shared_ids
from audiences.delivery.odp_account import client_of, mechanism_of
from audiences.models import Audience, GuidedChange, Install, Membership, Resend
from odp.mechanisms import Change, encode
from odp.outcomes import Outcome

# Seconds of one request to ODP.
SECONDS = 8.0


class SilentError(Exception):
    """An exit got no final response. The next call sends all exits of the customer again."""


def send_exits(install_id: int, identifier: str) -> bool:
    """Send an exit for each audience of the customer by each mechanism that the audience doesn't use now, and by its
    own where no lane delivers one.

    Returns False when the install is switched off, and raises ``SilentError``. A rejected exit counts as accepted,
    because ODP rejects it where the audience never had the field or list.
    """
    install = Install.objects.get(pk=install_id)
    ledger = Membership.objects.filter(identifier=identifier, audience__install=install)
    for row in ledger.select_related("audience__install", "audience__lane"):
        for audience, name in _stores(install, row):
            if shared_ids.used_by(audience) is not None:
                continue  # the exit would remove a customer whom another install entered
            # Read before each request: there may be hundreds, and switching off ends them.
            if not Install.objects.filter(pk=install_id, enabled=True).exists():
                return False
            mechanism = mechanism_of(install, name)
            left_ns = row.occurred_ns + mechanism.time_step_ns
            left = Change(audience.pk, audience.odp_id, identifier, False, left_ns, row.sequence)
            body = encode(mechanism.items((left,)))
            answer = client_of(install).call("POST", mechanism.path, body=body, seconds=SECONDS)
            if answer.outcome not in (Outcome.DELIVERED, Outcome.REJECTED):
                raise SilentError
    return True


def _stores(install: Install, row: Membership) -> Iterator[tuple[Audience, str]]:
    """The audiences and mechanisms whose fields or lists may have the customer, and get no exit by a lane."""
    audience = row.audience
    changed = GuidedChange.objects.filter(install=install, kind=GuidedChange.Kind.MECHANISM)
    used = {name for names in changed.values_list("before", "after") for name in names}
    own = {audience.mechanism or install.mechanism}
    is_delivered = audience.provisioned_at is not None and audience.lane.retired_sequence is None
    for name in sorted(used - own if is_delivered else used | own):
        yield audience, name
    present = Audience.objects.filter(install=install, odp_id__in=audience.former_odp_ids)
    # What a take-over exchanged belongs to another audience now.
    for former_id in sorted({*audience.former_odp_ids} - {*present.values_list("odp_id", flat=True)}):
        former = copy(audience)
        former.odp_id = former_id
        for name in sorted(used | own):
            yield former, name
    taken = Resend.objects.filter(kind=Resend.Kind.LEAVE, audience=audience, upto__lt=audience.pk)
    lost = Audience.objects.filter(install=install, pk__in=taken.values("upto"), provisioned_at=None)
    for old in lost.select_related("install"):
        yield old, old.mechanism or install.mechanism
