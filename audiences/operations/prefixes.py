"""Give an install another prefix of ODP ids. Only audiences that aren't in ODP yet get new ids; ids in ODP stay."""

from django.db import transaction

from audiences import naming
from audiences.delivery import holds, provision, shared_ids
from audiences.models import Install, Lane
from audiences.wake import wake


def apply(install: Install, *, before: str) -> int:
    """Give audiences that aren't in ODP yet ids under the stored prefix, and unblock them. Returns how many.

    An audience whose new id is taken or too long keeps its id. So does a retired audience, whose id was in ODP.
    """
    with transaction.atomic():
        # While this lock is held, calls create no audience (``receiving/audience_lookup.py``).
        prefix = Install.objects.select_for_update(no_key=True).get(pk=install.pk).odp_prefix
        lanes = Lane.objects.select_for_update(of=("self",)).select_related("audience")
        unmade = lanes.filter(audience__install=install, audience__provisioned_at=None, retired_sequence=None)
        waiting = list(unmade.order_by("pk"))
        taken = shared_ids.ids_of(install)
        renamed = 0
        for lane in waiting:
            odp_id = prefix + lane.audience.odp_id.removeprefix(before)
            fits = len(odp_id) <= naming.LONGEST_ODP_ID
            if lane.audience.odp_id.startswith(before) and fits and odp_id not in taken:
                provision.use_id(lane.pk, odp_id)
                holds.unblock(lane)
                renamed += 1
        transaction.on_commit(lambda: wake(install.pk), robust=True)
    return renamed
