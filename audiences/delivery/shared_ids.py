"""One ODP id belongs to one audience of an ODP account, across all installs that send to the account.

Two installs may send to one account. If both had an audience under the same id, an exit in one install would remove
customers that the other one entered. So the second audience isn't created in ODP. It is blocked until a person gives it
another id, or its install another prefix.
"""

from django.db.models import Q
from django.utils.timezone import now

from audiences import naming
from audiences.delivery.odp_account import mechanism_for, name_of, same_account
from audiences.models import Audience, AudienceMove, Install
from odp.mechanisms import Refusal
from odp.outcomes import Answer, Outcome


def conflict(audience: Audience) -> Answer | Refusal | None:
    """Why an audience may not be created in ODP under its id; None when it may.

    Of two audiences that aren't in ODP yet, the older one gets the id. An ``Answer`` means try again later: a worker is
    creating the younger audience now, and may not have seen the older one.
    """
    if audience.segment_id == naming.TEST_SEGMENT_ID:
        return None
    for other in _same_id(audience):
        if other.lane.retired_at is not None:
            if audience.reuses_id_at is None:
                choice = (
                    "Press Use another ODP id, because ODP may let exits of that audience win over older entries."
                    if are_ordered_by_time(audience, other)
                    else "Press Reuse the retired id if that is right, and Use another ODP id if not."
                )
                return Refusal(
                    f"The ODP id {audience.odp_id} belonged to an audience of the install {other.install.name}, which"
                    " was retired. Campaigns and experiments that still use the id would get this audience's customers."
                    f" {choice}"
                )
            continue
        if other.provisioned_at is not None or other.pk < audience.pk:
            return Refusal(
                f"The install {other.install.name} sends to the same ODP account and uses the ODP id"
                f" {audience.odp_id} already. With one id, an exit in one install would remove customers that the"
                " other one entered. Press Use another ODP id; or, while no audience of this install is in ODP, enter"
                " another prefix of ODP ids in its settings."
            )
        if other.making_until_at is not None and other.making_until_at > now():
            return Answer(Outcome.RETRY_LATER, f"The install {other.install.name} is creating this ODP id", sent=False)
    # Within the install, only a take-over gives an audience another one's former id.
    moved = moved_from(audience, audience.odp_id)
    if moved is not None and moved.install_id != audience.install_id:
        return Refusal(
            f"The ODP id {audience.odp_id} belonged to {moved.odp_id}, an audience of the install {moved.install.name}."
            " ODP still has its members there. Press Use another ODP id; or, while no audience of this install is in"
            " ODP, enter another prefix of ODP ids in its settings."
        )
    return None


def used_by(audience: Audience) -> Audience | None:
    """The audience of another install that is in ODP under the same id."""
    return next((other for other in _same_id(audience) if other.provisioned_at is not None), None)


def retired_before(audience: Audience, *, after: int = 0) -> Audience | None:
    """The oldest retired audience of another install that had the same id; of those with a key above ``after``."""
    same = (other for other in _same_id(audience) if other.pk > after)
    return next((other for other in same if other.lane.retired_at is not None), None)


def moved_from(audience: Audience, odp_id: str) -> Audience | None:
    """Another audience that had this id in the audience's account before it got another id, or its install changed to
    another account.
    """
    others = Audience.objects.filter(former_odp_ids__contains=[odp_id]).exclude(pk=audience.pk)
    found = others.select_related("install").order_by("pk")
    return next(
        (one for one in found if same_account(one.install, audience.install)), _left_behind(audience.install, odp_id)
    )


def _left_behind(install: Install, odp_id: str) -> Audience | None:
    """An audience of another install that had this id in the install's account, and wasn't emptied there when its
    install changed to another account.
    """
    had = Q(odp_id=odp_id) | Q(audience__former_odp_ids__contains=[odp_id])
    # Without a number, its lane had delivered nothing to that account.
    moves = AudienceMove.objects.filter(had, change__before=name_of(install), from_sequence__gt=0)
    switched = moves.filter(change__switched_at__isnull=False).exclude(change__install=install.pk)
    last = {move.audience_id: move for move in switched.select_related("change", "audience__install").order_by("pk")}
    return next(
        (
            move.audience
            for move in last.values()
            if (move.stage != AudienceMove.Stage.DONE or move.odp_id != odp_id or odp_id in move.change.left_out)
            and not same_account(move.audience.install, install)
        ),
        None,
    )


def was_exchanged(audience: Audience) -> bool:
    """Whether the audience has an id that ODP has, with the members of the newer audience that took over its own."""
    others = Audience.objects.filter(install=audience.install_id, former_odp_ids__contains=[audience.odp_id])
    return others.exclude(pk=audience.pk).exists()


def ids_of(install: Install) -> set[str]:
    """The ids that audiences of the install have, or had before."""
    ids = Audience.objects.filter(install=install).values_list("odp_id", "former_odp_ids")
    return {odp_id for present, former in ids for odp_id in (present, *former)}


def are_ordered_by_time(*audiences: Audience) -> bool:
    """Whether ODP itself may order the events of all these audiences by their times, as those of passthrough audiences.

    Then an event has no effect under an id for which another audience has sent a newer one about the customer.
    """
    return all(mechanism_for(audience).time_step_ns > 1 for audience in audiences)


def taken(install: Install) -> Audience | None:
    """An audience in ODP of another install with the same account, whose ODP id is also in use in ``install``."""
    ids = Audience.objects.filter(install=install, lane__retired_at=None).exclude(segment_id=naming.TEST_SEGMENT_ID)
    others = Audience.objects.filter(provisioned_at__isnull=False, odp_id__in=ids.values("odp_id"))
    others = others.exclude(install=install.pk).select_related("install").order_by("pk")
    return next((other for other in others if same_account(other.install, install)), None)


def _same_id(audience: Audience) -> list[Audience]:
    """The audiences with the same id in other installs of the account, oldest first."""
    installs = Install.objects.exclude(pk=audience.install_id)
    same = Audience.objects.filter(install__in=installs, odp_id=audience.odp_id).select_related("install", "lane")
    return [other for other in same.order_by("pk") if same_account(other.install, audience.install)]
