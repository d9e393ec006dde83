"""One button for all audiences that a cause blocks, in one install or in all."""

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from django.http import HttpRequest, HttpResponse

from audiences.admin import together, verbs
from audiences.admin.pages import count, list_url, number
from audiences.insight import state
from audiences.models import Audience, Lane

if TYPE_CHECKING:
    from audiences.admin.audiences import AudienceAdmin

# Audiences that are unblocked within the request, each in a transaction of its own: 1,000 take a few seconds.
AT_ONCE = 1_000


def cause(lane: Lane) -> str:
    """The reason of the block without the audience's own names, so that one fault in ODP is one cause."""
    words = lane.block_reason
    for name in sorted({lane.audience.odp_id, lane.audience.latest_slug, lane.audience.slug}, key=len, reverse=True):
        words = words.replace(name, "…") if name else words
    return words


def of_cause(admin: "AudienceAdmin", request: HttpRequest, pk: int, *, everywhere: bool = False) -> HttpResponse:
    """Unblock all audiences with the cause of this one, in its install or everywhere, except those set aside."""
    lanes = list(Lane.objects.filter(blocked_at__isnull=False).select_related("audience__install").order_by("pk"))
    first = next((lane for lane in lanes if lane.pk == pk), None)
    some = [
        lane.pk
        for lane in lanes
        if first is not None
        and (everywhere or lane.audience.install_id == first.audience.install_id)
        and cause(lane) == cause(first)
        and not state.is_set_aside(lane)
    ]
    return unblock(admin, request, some, back=verbs.way_back(request, list_url(Audience, state="blocked")))


def unblock(
    admin: "AudienceAdmin", request: HttpRequest, ids: Sequence[int], *, back: str, hidden: dict[str, Any] | None = None
) -> HttpResponse:
    """Show the confirmation or, by POST, press *Unblock* for each audience, at most ``AT_ONCE``."""
    left = len(ids) - AT_ONCE
    later = f". {count(left, 'more audience')} of this cause are left for the next time." if left > 0 else ""
    verb = next(verb for verb in admin.verbs if verb.name == "unblock")
    audiences = list(
        admin.get_queryset(request).filter(pk__in=ids[:AT_ONCE], lane__blocked_at__isnull=False).order_by("pk")
    )
    waiting = sum(state.backlog(audience.lane) for audience in audiences)
    reasons = dict.fromkeys(cause(audience.lane) for audience in audiences)
    installs = Counter(str(audience.install) for audience in audiences)
    return together.press(
        admin,
        verb,
        request,
        audiences,
        what="audience",
        past="Unblocked",
        consequence=(
            f"{_of_each(installs)}What {together.names(audiences)} need in ODP is checked, and created where it is"
            f" missing. Then the {number(waiting)} waiting events are sent again. Unless the cause is fixed"
            f" in ODP they will be blocked again, for the same reason: {'; '.join([*reasons][:3])}{later}"
        ),
        back=back,
        hidden=hidden,
    )


def _of_each(installs: Counter[str]) -> str:
    """The number of audiences of each install, if there are several."""
    if len(installs) < 2:
        return ""
    some = ", ".join(f"{name}: {number(many)}" for name, many in sorted(installs.items())[: together.NAMED])
    unnamed = len(installs) - together.NAMED
    more = f" and {count(unnamed, 'more install')}" if unnamed > 0 else ""
    return f"{some}{more}. "
