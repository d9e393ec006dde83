"""Blocked audiences grouped by cause, with one button that unblocks a group."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from django.http import HttpRequest, HttpResponse

from audiences.admin import together, verbs
from audiences.admin.pages import list_url, number
from audiences.insight import state
from audiences.models import Audience, Lane

if TYPE_CHECKING:
    from audiences.admin.audiences import AudienceAdmin


def cause(lane: Lane) -> str:
    """The reason of the block without the audience's own names, so that one fault in ODP is one cause."""
    words = lane.block_reason
    for name in sorted({lane.audience.odp_id, lane.audience.latest_slug, lane.audience.slug}, key=len, reverse=True):
        words = words.replace(name, "…") if name else words
    return words


def groups(lanes: Iterable[Lane]) -> list[list[Lane]]:
    """Lanes of one install and one cause, the largest group first and in it the longest blocked."""
    found: dict[tuple[int, str], list[Lane]] = {}
    for lane in sorted(lanes, key=lambda lane: str(state.blocked_since(lane))):
        found.setdefault((lane.audience.install_id, cause(lane)), []).append(lane)
    return sorted(found.values(), key=len, reverse=True)


def of_cause(admin: "AudienceAdmin", request: HttpRequest, pk: int) -> HttpResponse:
    """All that are blocked for the cause of this one."""
    lanes = Lane.objects.filter(blocked_at__isnull=False).select_related("audience__install")
    wanted = next((group for group in groups(lanes) if any(lane.pk == pk for lane in group)), [])
    some = [lane.pk for lane in wanted if not state.is_set_aside(lane)]
    return unblock(admin, request, some, back=verbs.way_back(request, list_url(Audience, state="blocked")))


def unblock(
    admin: "AudienceAdmin", request: HttpRequest, ids: Sequence[int], *, back: str, hidden: dict[str, Any] | None = None
) -> HttpResponse:
    """Ask, and then unblock each as its own button would, with an entry in the history of each."""
    verb = next(verb for verb in admin.verbs if verb.name == "unblock")
    audiences = list(admin.get_queryset(request).filter(pk__in=ids, lane__blocked_at__isnull=False).order_by("pk"))
    waiting = sum(state.backlog(audience.lane) for audience in audiences)
    reasons = dict.fromkeys(cause(audience.lane) for audience in audiences)
    return together.press(
        admin,
        verb,
        request,
        audiences,
        what="audience",
        past="Unblocked",
        consequence=(
            f"What {together.names(audiences)} need in ODP is checked, and created where it is missing."
            f" Then the {number(waiting)} waiting events are sent again. Unless the cause is fixed"
            f" in ODP they will be blocked again, for the same reason: {'; '.join([*reasons][:3])}"
        ),
        back=back,
        hidden=hidden,
    )
