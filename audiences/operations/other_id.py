"""Choose another ODP id for a blocked audience whose own id is taken by an object that we can't change or delete.

ODP has no API to rename or delete a field, so such an audience would stay blocked forever (docs/odp-wire.md).
"""

import re

from django.db import IntegrityError, transaction

from audiences.delivery import holds, odp_account, provision, shared_ids
from audiences.models import Audience, Membership
from audiences.operations import resends
from audiences.wake import wake

LONGEST = 100
_FORM = re.compile(r"lytics_[a-z0-9_]+")


def problem_of(audience: Audience, odp_id: str) -> str:
    """Why the audience can't have that id; empty when it can."""
    if not _FORM.fullmatch(odp_id) or len(odp_id) > LONGEST:
        return f"An ODP id is lytics_ and small letters, digits and underscores, {LONGEST} characters at most."
    if odp_id == audience.odp_id:
        return "This is its present ODP id."
    for other in Audience.objects.filter(odp_id=odp_id).select_related("install"):
        if other.install_id == audience.install_id or odp_account.same_account(other.install, audience.install):
            return f"Another audience has this id: segment {other.segment_id} of {other.install}."
    if (moved := shared_ids.moved_from(audience, odp_id)) is not None:
        return f"ODP still has members of {moved} of {moved.install} under this id, which it had before."
    return ""


def reuse(audience: Audience, *, by: str) -> bool:
    """Let the audience have the ODP id of retired audiences, by a person's decision. False when it isn't blocked, or
    ODP may order the events of both by time.

    ODP may still have members of the retired ones: those whose exit it rejected, or a person skipped. They leave.
    """
    retired = shared_ids.retired_before(audience)
    if retired is not None and shared_ids.are_ordered_by_time(audience, retired):
        return False
    with transaction.atomic():
        done = holds.unblock(audience.lane)
        if done:
            provision.allow_retired_id(audience.pk)
            if retired is not None:
                reason = f"reuses the ODP id of {retired.install.name}"
                resends.leave(audience, retired, after=retired.last_sequence, by=by, reason=reason)
    if done:
        wake(audience.install_id)
    return done


def use(audience: Audience, odp_id: str, *, by: str, reason: str) -> bool:
    """Unblock the audience under another id and send its whole ledger there.

    False when it is no longer blocked, one of its requests is under way, the id has been taken, or a resync is
    unfinished. Memberships sent under the old id stay in ODP.
    """
    try:
        with transaction.atomic():
            done = holds.unblock(audience.lane, idle=True)
            if done:
                provision.use_id(audience.pk, odp_id)
            if done and Membership.objects.filter(audience=audience).exists():
                done = resends.resync(audience, by=by, reason=reason)
            if not done:
                transaction.set_rollback(True)
    except IntegrityError:
        return False
    if done:
        wake(audience.install_id)
    return done
