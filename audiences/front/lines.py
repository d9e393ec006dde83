"""The lines of the page *Now*: at most ten, each for one trouble or for several alike with buttons for all of them.

Each trouble has its own line while ten lines are enough. Otherwise troubles of one install and cause share a line; if
that is not enough, troubles of one cause; and then all of a kind, beginning with the kind that takes most lines.
"""

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from django.http import HttpRequest
from django.utils.http import urlencode

from audiences.admin import together
from audiences.admin.addresses import address
from audiences.admin.pages import ago, number
from audiences.admin.troubles import Mute, is_muted, mute_in_words
from audiences.front.alerts import Alert, Offer, Shown, buttons, link
from audiences.models import Trouble

# The most lines of the page, and the most troubles that one line unfolds to.
LINES = 10
UNFOLDED = 10
# Troubles on one page of the list of all, and the parameter of its address.
PER_PAGE = 25
ALL = "troubles"

# An alert, and its stored trouble if a check has stored it.
Known = tuple[Alert, Trouble | None]

# What a line says about several troubles of a kind.
WORDS = {
    "task": "{} tasks fail",
    "worker": "{} workers are silent",
    "on_hold": "{} installs are on hold",
    "probe": "{} installs: it is not proven that ODP shows what is sent",
    "rejected": "Calls to {} installs are rejected",
    "token": "Lytics still uses {} tokens that expire soon",
    "backlog": "Calls to {} installs are answered 503",
    "delay": "Events of {} installs wait for too long",
    "silent": "{} installs: Lytics is silent",
    "switched_off": "{} installs are switched off",
    "channel": "{} channels for alerts fail",
    "blocked": "{} audiences are blocked",
    "twin": "{} audiences are not in ODP as this service created them",
    "audit": "{} audits found differences or have no result",
    "left_job": "{} audiences left the Lytics job or were deleted in Lytics",
    "retired_with_events": "{} retired audiences get events",
    "retiring": "{} audiences are being retired or taken back",
    "made_anew": "{} audiences were recreated in Lytics",
    "similar_slugs": "{} audiences have ids that differ only by a suffix",
    "creation": "{} audiences can't be created or checked in ODP",
    "error": "{} audiences can't be delivered",
    "parked": "{} groups of parked items",
    "parked_growth": "{} installs: many items were parked within an hour",
    "change": "{} guided changes wait or are incomplete",
    "forgetting": "{} installs: customers aren't forgotten yet",
    "looks": "{} installs: audiences can't be looked at in ODP",
    "retention": "{} troubles with deleting old rows",
    "paused": "{} audiences are paused or set aside",
    "no_call": "{} installs have had no call yet",
}


def lines(known: Iterable[Known], request: HttpRequest, *, of_install: str) -> list[Shown]:
    """The lines for one person, worst first, and muted ones last. ``of_install`` is the public id of the only install
    whose troubles these are, or empty.
    """
    groups = _grouped(_worst_first(known))
    shown, rest = (groups, []) if len(groups) <= LINES else (groups[: LINES - 1], groups[LINES - 1 :])
    found = [_line(group, request, of_install) for group in shown]
    if rest:
        more = sum(alert.many for group in rest for alert, _ in group)
        found.append(_way_to_all(f"And {number(more)} more", of_install))
    return found


@dataclass(frozen=True)
class Listed:
    """One page of all troubles, or of all of a kind."""

    alerts: list[Shown]
    page: int
    pages: int
    total: int
    # The addresses of the pages before and after, empty where there are none.
    previous: str
    following: str


def listed(known: Iterable[Known], request: HttpRequest, *, of_install: str) -> Listed:
    """The page of the list that the request asks for, with the parameters ``kind`` and ``p``."""
    kind, asked = request.GET.get("kind", ""), request.GET.get("p", "")
    chosen = [one for one in _worst_first(known) if kind in ("", one[0].kind)]
    pages = max(1, -(-len(chosen) // PER_PAGE))
    page = min(max(int(asked[:9]) if asked.isdecimal() else 1, 1), pages)
    alerts = [alert.shown(request, trouble) for alert, trouble in chosen[PER_PAGE * (page - 1) : PER_PAGE * page]]
    same = {"kind": kind} if kind else {}
    return Listed(
        alerts,
        page,
        pages,
        len(chosen),
        url_of_all(of_install, **same, p=page - 1) if page > 1 else "",
        url_of_all(of_install, **same, p=page + 1) if page < pages else "",
    )


def url_of_all(of_install: str, **more: Any) -> str:
    """The address of the list of all troubles, of which ``more`` chooses a kind or a page."""
    query = {ALL: "all", **({"install": of_install} if of_install else {}), **more}
    return f"{address('admin:index')}?{urlencode(query)}"


def _worst_first(known: Iterable[Known]) -> list[Known]:
    return sorted(known, key=lambda one: (_is_muted(one), one[0].tone != "bad"))


def _is_muted(one: Known) -> bool:
    return one[1] is not None and is_muted(one[1])


def _alone(one: Known) -> Hashable:
    return id(one[0])


def _kind(one: Known) -> Hashable:
    """Troubles that are muted never share a line with those that aren't."""
    return one[0].kind, _is_muted(one)


def _cause(one: Known) -> Hashable:
    return _kind(one), one[0].cause, one[0].is_rest


def _cause_in_install(one: Known) -> Hashable:
    return _cause(one), one[0].install


def _grouped(known: Sequence[Known]) -> list[list[Known]]:
    """The troubles by line."""
    for key in (_alone, _cause_in_install, _cause):
        groups = _merged(known, key)
        if len(groups) <= LINES:
            break
    # The unlisted troubles of a kind join the listed ones where those are one line, so that its number is complete.
    counts = Counter(_kind(group[0]) for group in groups)
    rests = {_kind(one) for one in known if one[0].is_rest}
    whole = {kind for kind in rests if counts[kind] == 2} if key is not _alone else set()
    while True:
        groups = _merged(known, lambda one: _kind(one) if _kind(one) in whole else key(one))
        kind, many = Counter(_kind(group[0]) for group in groups).most_common(1)[0] if groups else (None, 0)
        if len(groups) <= LINES or many == 1:
            return groups
        whole.add(kind)


def _merged(known: Iterable[Known], key: Callable[[Known], Hashable]) -> list[list[Known]]:
    found: dict[Hashable, list[Known]] = {}
    for one in known:
        found.setdefault(key(one), []).append(one)
    return [*found.values()]


def _line(group: Sequence[Known], request: HttpRequest, of_install: str) -> Shown:
    (first, trouble), many = group[0], sum(alert.many for alert, _ in group)
    if len(group) == 1:
        return first.shown(request, trouble)
    words = WORDS.get(first.kind)
    unfolded = [alert.shown(request, trouble) for alert, trouble in group[:UNFOLDED]]
    if len(group) > UNFOLDED:
        unfolded.append(_way_to_all(f"All {number(many)}", of_install, kind=first.kind))
    since = min((alert.since for alert, _ in group if alert.since), default=None)
    return Shown(
        what=words.format(number(many)) if words else f"{first.what}, and {number(many - 1)} more like it",
        why="",
        since=ago(since) if since else "",
        url=url_of_all(of_install, kind=first.kind),
        tone=first.tone,
        todo="",
        buttons=[button for offer in _offers(group) for button in offer(request)],
        muted=f"Muted {mute_in_words(trouble)}" if trouble and _is_muted(group[0]) else "",
        unfolded=unfolded,
    )


def _offers(group: Sequence[Known]) -> list[Offer]:
    """The buttons for all troubles of a line: what ends their cause, if they have one cause, and Mute."""
    listed = [alert for alert, _ in group if not alert.is_rest]
    bulks = {alert.bulk.scope if alert.bulk else None: alert.bulk for alert in listed}
    wider = {alert.wider for alert in listed}
    stored = {trouble.pk: trouble for _, trouble in group if trouble and not is_muted(trouble)}
    for_all = wider if len(wider) == 1 and None not in wider else bulks.values()
    offers = [bulk.offer for bulk in for_all if bulk and len(for_all) == 1]
    if len(stored) == 1:
        return [*offers, buttons(next(iter(stored.values())), "mute")]
    if stored:
        first = next(iter(stored.values()))
        is_one_cause = len(listed) == len(group) and len({alert.cause for alert in listed}) == 1
        url = together.url(first, "mute-cause" if is_one_cause else "mute-kind")
        # The dialog counts those that aren't listed.
        label = "Mute all" if len(listed) < len(group) else f"Mute all {number(len(stored))}"
        offers.append(link(Mute.permission, label, Mute.icon, url))
    return offers


def _way_to_all(words: str, of_install: str, **chosen: str) -> Shown:
    return Shown(words, "", "", url_of_all(of_install, **chosen), "", "", [])
