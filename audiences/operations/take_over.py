"""An audience that was recreated in Lytics: a new segment with the slug of an older one.

The new audience gets its own ODP id, and an operator chooses: both stay, or the new audience takes over the old ODP
id, so that personalisation by that id continues. Then the members of only the old audience leave it.
"""

from datetime import timedelta
from typing import NamedTuple

from django.conf import settings
from django.db import IntegrityError, transaction
from django.utils.timezone import now

from audiences import naming, sql
from audiences.delivery import holds, provision, shared_ids
from audiences.models import Audience, GuidedChange, Lane, Resend, Retirement, Run
from audiences.operations import resends, retiring
from audiences.wake import wake

# ODP may apply an abandoned request late; after this many reconcile periods it is certainly done.
RECONCILE_PERIODS = 3


class Pair(NamedTuple):
    id: int
    older_id: int
    total: int


_UNDECIDED = sql.beside(__file__, id_is_unusual=naming.IS_UNUSUAL).query("undecided_pairs", Pair._make)


def undecided_pairs(limit: int, install_id: int | None = None) -> tuple[list[tuple[Audience, Audience]], int]:
    """Audiences of one install or of all with the slug of an older audience of their install, undecided yet.

    Returns the first pairs (audience, older audience) and the number of all pairs, with two queries in total.
    """
    pairs = _UNDECIDED.run(install=install_id, limit=limit).all()
    if not pairs:
        return [], 0
    ids = {pk for pair in pairs for pk in (pair.id, pair.older_id)}
    found = Audience.objects.select_related("install", "lane").defer("install__odp_api_key").in_bulk(ids)
    shown = [(found[pair.id], found[pair.older_id]) for pair in pairs if pair.id in found and pair.older_id in found]
    return shown, pairs[0].total


def older(audience: Audience) -> Audience | None:
    """The newest older audience of the install with the same slug."""
    same = Audience.objects.filter(install=audience.install_id, latest_slug=audience.latest_slug, pk__lt=audience.pk)
    return same.select_related("lane", "install").order_by("-pk").first()


def keep_both(audience: Audience) -> bool:
    """Record a person's choice. False if the choice was made before."""
    return bool(Audience.objects.filter(pk=audience.pk, slug_settled_at=None).update(slug_settled_at=now()))


def problem_of(old: Audience) -> str:
    """Why the old audience's id can't be taken over now; empty when it can."""
    quiet = timedelta(seconds=RECONCILE_PERIODS * settings.RECONCILE_AFTER_SECONDS)
    if shared_ids.are_ordered_by_time(old):
        return (
            f"ODP may order the events of {old} by their times, so its members could stay, and older entries of the new"
            " segment could have no effect. Press Keep both."
        )
    if Retirement.objects.filter(retiring.UNFINISHED, audience=old).exists():
        return f"{old} is being retired or taken back. Wait until that is done."
    if GuidedChange.objects.filter(install=old.install_id, ended_at=None).exists():
        return "A guided change of the install is under way and works with its audiences' ODP ids. Wait for its end."
    if Resend.objects.filter(kind=Resend.Kind.LEAVE, audience=old, ended_at=None).exists():
        return f"The take-over of {old} itself is under way. Wait for that: its members are known only then."
    if old.last_sequence > old.lane.delivered_sequence and old.lane.retired_at is None:
        return f"{old} still has events to deliver. Wait for that: its members are known only then."
    if Run.objects.filter(audience=old, opened_at__gt=now() - quiet).exists():
        return (
            f"{old} was sent to ODP within the last {quiet.total_seconds() / 60:.0f} minutes, so it may still be in"
            " use. Wait that long, or press Keep both."
        )
    return ""


def has_lost_its_id(audience: Audience) -> bool:
    """Whether another audience took over the ODP id and nothing of this one was sent to ODP since. Delivering again
    would show its members under an id where ODP has others, so it has to be retired first.
    """
    if audience.provisioned_at is not None or audience.lane.retired_at is not None:
        return False
    taken = resends.take_overs_of(audience).exists()
    return taken and not Retirement.objects.filter(retiring.UNFINISHED, audience=audience).exists()


def take_over(new: Audience, old: Audience, *, by: str, reason: str) -> bool:
    """Move the old audience's ODP id to the new audience, pause the old one, and send what follows from the change.

    False when either has a request under way or a resync, when the old one has received events since, or when the
    choice was made already.
    """
    try:
        with transaction.atomic():
            list(Lane.objects.select_for_update().filter(pk__in=[new.pk, old.pk]).order_by("pk"))
            list(Audience.objects.select_for_update().filter(pk__in=[new.pk, old.pk]).order_by("pk"))
            old = Audience.objects.select_related("lane", "install").get(pk=old.pk)
            free = holds.end_expired_leases([new.pk, old.pk]) and not problem_of(old)
            done = free and keep_both(new) and _exchange(new, old, by=by, reason=reason)
            if not done:
                transaction.set_rollback(True)
    except IntegrityError:
        return False
    if done:
        wake(new.install_id)
    return done


def _exchange(new: Audience, old: Audience, *, by: str, reason: str) -> bool:
    ids = Audience.objects.in_bulk([new.pk, old.pk])
    theirs, ours = ids[old.pk].odp_id, ids[new.pk].odp_id
    for pk, odp_id in ((old.pk, f"{ours} of {old.pk}"), (new.pk, theirs), (old.pk, ours)):
        provision.use_id(pk, odp_id)
    holds.resume(old.lane)
    words = f"Segment {new.segment_id} took over its ODP id {theirs}. To end this, press Retire and then Resume."
    holds.pause(old.lane, by=by, reason=f"{words} {reason}")
    retiring.delete_again(old)
    leaving = resends.leave(new, old, after=old.lane.delivered_sequence, by=by, reason=reason)
    return leaving and resends.resync(ids[new.pk], by=by, reason=reason)
