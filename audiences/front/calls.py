"""Front page alerts about calls that are rejected for their token or answered 503."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial
from typing import Any, NamedTuple

from django.conf import settings
from django.contrib.contenttypes.models import ContentType
from django.http import HttpRequest
from django.template.defaultfilters import filesizeformat
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.utils.timezone import now

from audiences import sql
from audiences.admin.pages import ago, count, list_url, number, span, url_of
from audiences.admin.verbs import Button
from audiences.front.alerts import Alert, Number, buttons, way_to
from audiences.insight import failures, stalled_work
from audiences.insight.backlogs import Backlog
from audiences.insight.heartbeats import Pulse
from audiences.models import Audience, Install, Token
from audiences.receiving import disk_usage, rejected_calls, tokens
from audiences.receiving.rejected_calls import RejectedCalls, has_calls

# Kinds whose troubles are known only while Redis answers.
REJECTED, UNKNOWN_URL, UNREADABLE, WRONG_METHOD = "rejected", "unknown_url", "unreadable", "wrong_method"
NOT_STORED = "not_stored"
DRAFTS = "drafts"
OF_REDIS = frozenset({REJECTED, NOT_STORED, UNKNOWN_URL, UNREADABLE, WRONG_METHOD, "task", "beat"})
# Installs named in one item; it says how many more there are.
NAMED = 10
# The most entries of an install's history that are searched for the last change of *enabled*.
NEWEST_ENTRIES = 1_000


class Switched(NamedTuple):
    """When *enabled* of an install was changed in the admin, and by whom."""

    install: int
    at: datetime
    by: str


_SWITCHED_AT_LAST = sql.beside(__file__).query("switched_at_last", Switched._make)


def rejected_number(installs: list[Any], found: dict[str, RejectedCalls] | None) -> Number:
    if found is None:
        return Number("rejected calls", "unknown", list_url(Install), False, "Redis does not answer")
    total = sum(one.count for one in found.values())
    theirs = [install for install in installs if has_calls(install.public_id, found)]
    url = url_of(theirs[0]) if len(theirs) == 1 else list_url(Install)
    return Number("rejected calls", number(total), url, not total, "in the last hour")


def without_redis(problem: str) -> list[Alert]:
    """``problem`` is the error of Redis, or of its client, for a write."""
    if not problem:
        return []
    return [
        Alert(
            "redis",
            problem,
            "Nothing is delivered meanwhile. Calls are still stored and accepted, and nothing is lost.",
            None,
            list_url(Audience, state="behind"),
            todo="Start Redis, correct REDIS_URL, or fix the error that it reports. Delivery then continues.",
        )
    ]


def failing_tasks(found: list[failures.Failure]) -> list[Alert]:
    return [
        Alert(
            "task",
            f"The task {failure.task} fails",
            f"{failure.words}. It failed {count(failure.times, 'time')} since the first.",
            failure.since,
            list_url(Audience, state="behind"),
            todo="A worker's log has the traceback. Nothing is lost; what the task does is tried again.",
            cause=failure.task,
        )
        for failure in found
    ]


def without_beat(silent_seconds: float | None, pulse: Pulse) -> list[Alert]:
    """An alert when no task of the schedule runs: because beat is silent, or because all workers were stopped."""
    if silent_seconds is None:
        return []
    silent = timedelta(seconds=silent_seconds)
    last = f"The last task of the schedule ran {span(silent)} ago"
    if pulse.answering:  # hints of calls still start deliveries
        what, todo = "The beat process is silent", "Start beat, or look at its log."
        why = f"{last}; one is due every 10 s. Retries, probes, audits and messages about troubles wait for it."
    elif pulse.silent:  # the alerts about workers say so
        return []
    else:
        what, todo = "No worker runs", "Start the worker processes."
        why = f"{last}, and all workers were stopped. Nothing is delivered, probed, audited or reported."
    return [Alert("beat", what, why, now() - silent, list_url(Audience, state="behind"), todo=todo)]


def work_stands_still(stuck: Sequence[stalled_work.Stuck], pulse: Pulse) -> list[Alert]:
    """One trouble for all installs without any progress."""
    whole = [one for one in stuck if not one.in_part]  # other lines name the audiences of the rest
    if not whole:
        return []
    more = f" and {count(len(whole) - 1, 'more install')}" if len(whole) > 1 else ""
    return [
        Alert(
            "stalled",
            f"Waiting events of {whole[0].install}{more} are not sent",
            f"Nothing holds them up, and nothing has been delivered. {whole[0].why}".strip(),
            whole[0].since,
            list_url(Audience, state="behind"),
            todo="Check that beat runs, and read a worker's log."
            if pulse.answering
            else "No worker answers. Start the worker and beat processes, or look at their logs.",
        )
    ]


def unreadable_secret(problem: str) -> list[Alert]:
    if not problem:
        return []
    return [
        Alert(
            "secret",
            "A stored secret can't be decrypted",
            f"{problem[0].upper()}{problem[1:]}. Deliveries that need it fail; calls are stored.",
            None,
            list_url(Install),
            todo="Put the key that it was written with back into FIELD_ENCRYPTION_KEYS and restart all processes.",
        )
    ]


def rejected(installs: list[Any], found: dict[str, RejectedCalls]) -> list[Alert]:
    """Alerts for the calls of each install that were not stored, for unknown URLs, unreadable requests, and 405."""
    rejecting = [install for install in installs if install.public_id in found]
    live = tokens.live_of(rejecting)
    of_installs = [_rejected_of(install, found[install.public_id], live[install.pk]) for install in rejecting]
    of_installs += [
        _not_stored(install, found[name])
        for install in installs
        if (name := rejected_calls.not_stored(install.public_id)) in found
    ]
    kinds = {
        rejected_calls.UNKNOWN: _to_unknown_url,
        rejected_calls.UNREADABLE: _unreadable,
        rejected_calls.WRONG_METHOD: _by_wrong_method,
    }
    return of_installs + [alert_of(found[name]) for name, alert_of in kinds.items() if name in found]


def _not_stored(install: Any, one: RejectedCalls) -> Alert:
    """Lytics waits as long as the 503 asks and then repeats the same call, so the job may send nothing else."""
    is_over = install.called_at is not None and install.called_at > one.last_at
    cause, todo = {
        rejected_calls.TOO_LARGE: (
            f"The body of the last was over WEBHOOK_BODY_LIMIT, {filesizeformat(settings.WEBHOOK_BODY_LIMIT)}.",
            "In the Lytics job, set Batch Size to 300 and choose few Export Fields; or raise WEBHOOK_BODY_LIMIT here,"
            " and the limit of the proxy.",
        ),
        rejected_calls.TOO_SLOW: (
            f"The body of the last took longer than WEBHOOK_READ_SECONDS, {settings.WEBHOOK_READ_SECONDS:g}.",
            "Look at the network and the proxy between Lytics and this service, or raise WEBHOOK_READ_SECONDS.",
        ),
        rejected_calls.LOCKED: (
            "The last waited in vain for an audience that another transaction locks.",
            "Nothing to do unless it goes on. Then find that transaction in pg_stat_activity, and end its session.",
        ),
    }.get(
        one.what,
        (
            "The last ended in an error of this service.",
            "Read the line “call not stored” in the log of the web process, and correct its cause.",
        ),
    )
    more = "Calls have been stored since." if is_over else "Lytics repeats it, and its job may send nothing else."
    return Alert(
        NOT_STORED,
        f"{count(one.count, 'call')} to {install} got 503 and could not be stored",
        format_html("{} {}", cause, _last_of(one, more)),
        one.since_at,
        url_of(install),
        "held" if is_over else "bad",
        todo=todo,
        install=install.pk,
        message=f"{cause} {more}",
    )


def _to_unknown_url(calls: RejectedCalls) -> Alert:
    return Alert(
        UNKNOWN_URL,
        f"{count(calls.count, 'call')} rejected: no install has the URL that was called",
        _last_of(calls),
        calls.since_at,
        list_url(Install),
        "held",
        todo="If a Lytics job of yours calls from there, copy the webhook URL from its install's page into it"
        " again. Otherwise it came from somebody else, and nothing was let in.",
        message="",
    )


def _unreadable(calls: RejectedCalls) -> Alert:
    return Alert(
        UNREADABLE,
        f"{count(calls.count, 'request')} could not be read and got 503",
        format_html("The last had {}. {}", calls.what or "an unknown fault", _last_of(calls)),
        calls.since_at,
        list_url(Install),
        "held",
        todo="If it came from Lytics or a proxy of yours, correct the webhook URL or the headers there: neither"
        " may hold blanks or special characters. Lytics tries again, and no batch is lost.",
        message=f"The last had {calls.what or 'an unknown fault'}.",
    )


def _by_wrong_method(calls: RejectedCalls) -> Alert:
    return Alert(
        WRONG_METHOD,
        f"{count(calls.count, 'call')} got 405: the method is not POST",
        format_html("The last was {}. {}", calls.what, _last_of(calls, "Nothing of such a call is stored.")),
        calls.since_at,
        list_url(Install),
        "held",
        todo="If it is a Lytics job of yours, set its method to POST. Otherwise it came from somebody else.",
        message=f"The last was {calls.what}. Nothing of such a call is stored.",
    )


def _rejected_of(install: Any, one: RejectedCalls, live: list[Token]) -> Alert:
    what = f"{count(one.count, 'call')} to {install} rejected: the token is wrong, revoked or expired"
    if install.called_at is not None and install.called_at > one.last_at:
        return Alert(
            REJECTED,
            what,
            _last_of(one, "Calls with a valid token have come since."),
            one.since_at,
            url_of(install),
            "held",
            todo="Nothing to do, unless another Lytics job of yours calls from there: copy the header into it again.",
            install=install.pk,
            message="Calls with a valid token have come since.",
        )
    if not live:
        todo = "There is no live token. Make a new one, show it, and put its header into the Lytics job."
        remedy = buttons(install, "new-token", back=url_of(install))
    else:
        todo = "Show the authorization header and copy it into the authorization of the Lytics job again."
        remedy = partial(_show_header, live[0], url_of(install))
    return Alert(
        REJECTED,
        what,
        _last_of(one, "Lytics sends these calls again for about two hours."),
        one.since_at,
        url_of(install),
        todo=todo,
        offers=(remedy, way_to(install, "webhook-url", "Install instructions", "menu_book")),
        install=install.pk,
        message="Lytics sends these calls again for about two hours.",
    )


def _show_header(token: Token, back: str, request: HttpRequest) -> list[Button]:
    offer = buttons(token, "reveal", back=back)
    return [replace(button, label="Show the header") for button in offer(request)]


def _last_of(one: RejectedCalls, more: str = "") -> SafeString:
    return format_html("The last came {} from {}. {}", ago(one.last_at), one.source or "an unknown address", more)


def over_the_mark(installs: list[Any], waiting: Mapping[int, Backlog]) -> list[Alert]:
    """Installs above the high-water mark, whose calls are answered 503."""
    found_alerts = []
    for install in installs:
        backlog = waiting.get(install.pk, Backlog())
        if install.enabled and backlog.free > settings.BACKLOG_HIGH_WATER:
            found_alerts.append(
                Alert(
                    "backlog",
                    f"Calls to {install} are answered 503: {number(backlog.free)} events wait",
                    f"That is more than BACKLOG_HIGH_WATER, {number(settings.BACKLOG_HIGH_WATER)}."
                    " Lytics retries automatically and is accepted again when fewer wait. Nothing is lost.",
                    backlog.oldest_free_at,
                    list_url(Audience, state="behind", install__id__exact=install.pk),
                    todo="If the install is on hold, end that first. Otherwise more arrives than ODP accepts: wait, or"
                    " raise the install's requests per second if your ODP account allows it. Events of paused and"
                    " blocked audiences aren't counted, so leave those audiences as they are until then.",
                    install=install.pk,
                )
            )
    return found_alerts


def over_the_disk_mark(installs: list[Any]) -> list[Alert]:
    """A database over its mark: calls of every install are answered 503."""
    if not disk_usage.is_too_full() or not any(install.enabled for install in installs):
        return []
    return [
        Alert(
            "disk",
            f"All calls are answered 503: the database has {filesizeformat(disk_usage.used())}",
            f"That is more than DATABASE_HIGH_WATER_BYTES, {filesizeformat(settings.DATABASE_HIGH_WATER_BYTES)}. What"
            " waits still goes to ODP; Lytics retries automatically and is accepted below that limit. Nothing is lost.",
            None,
            list_url(Install),
            todo="Give PostgreSQL a larger disk, then raise DATABASE_HIGH_WATER_BYTES and restart web and workers.",
        )
    ]


def switched_off(installs: list[Any]) -> list[Alert]:
    off = [install for install in installs if not install.enabled]
    last = switched_at_last(off)
    return [
        Alert(
            "switched_off",
            f"{install} is switched off",
            "Calls are answered 503, so Lytics retries later; nothing is sent to ODP."
            f"{f' {switched.by} changed that last in the admin.' if switched else ''}",
            switched.at if switched else None,
            url_of(install),
            "held",
            todo="To start it again, open it, switch Enabled on and save.",
            offers=(way_to(install, "id_enabled", "Open the install", "toggle_on"),),
            install=install.pk,
            message="Calls are answered 503, so Lytics retries later; nothing is sent to ODP.",
        )
        for install in off
        for switched in [last.get(install.pk)]
    ]


def drafts(installs: list[Any]) -> list[Alert]:
    """Installs whose events wait for an API key that ODP accepts: one alert for all of them."""
    drafts = [install for install in sorted(installs, key=str) if install.enabled and not install.key_accepted_at]
    waiting = [install for install in drafts if install.backoff_until_at is None]  # an install on hold has its own item
    if not waiting:
        return []
    alone = len(waiting) == 1
    return [
        Alert(
            DRAFTS,
            f"{waiting[0]} is a draft" if alone else f"{number(len(waiting))} installs are drafts",
            "ODP has not accepted "
            + ("its API key" if alone else f"the API keys of {', '.join(str(install) for install in waiting[:NAMED])}")
            + (f" and {number(len(waiting) - NAMED)} more" if len(waiting) > NAMED else "")
            + " yet. Calls from Lytics are stored and nothing is sent to ODP. Nothing is lost.",
            min(install.created_at for install in waiting),
            url_of(waiting[0]) if alone else list_url(Install),
            "held",
            todo="Open the install: its page says what is missing. Stored events are sent once ODP accepts the key.",
        )
    ]


def switched_at_last(installs: Collection[Install]) -> dict[int, Switched]:
    """By install id, the last change of *enabled* made in the admin; changes made elsewhere aren't recorded."""
    if not installs:
        return {}
    kind = ContentType.objects.get_for_model(Install)
    ids = [install.pk for install in installs]
    found = _SWITCHED_AT_LAST.run(installs=ids, kind=kind.pk, entries=NEWEST_ENTRIES).all()
    return {switched.install: switched for switched in found}
