"""The channels for alerts above the list of troubles: the last test of each channel, and its button *Send a test*."""

from dataclasses import dataclass

from django.core.exceptions import PermissionDenied
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from django.urls import URLPattern, path, reverse

from audiences.admin import verbs
from audiences.admin.pages import OperatorAdmin, list_url
from audiences.insight.state import State
from audiences.models import Trouble, TroubleMessage
from audiences.operations import alert_messages

PERMISSION = "audiences.mute_trouble"
URL = "audiences_trouble_test"


@dataclass(frozen=True)
class Tested:
    """A channel of the settings, with the result of its last test. ``url`` is the button that sends a test."""

    label: str
    state: State
    url: str


def tested() -> list[Tested]:
    """All channels of the settings, with the results of their last tests."""
    return [
        Tested(channel.label, end_of(_tests().filter(channel=channel).first()), reverse(f"admin:{URL}", args=[channel]))
        for channel in alert_messages.channels()
    ]


def _tests() -> QuerySet[TroubleMessage]:
    # The messages of tests have no trouble, so the index of that column finds them.
    return TroubleMessage.objects.filter(trouble=None, event=TroubleMessage.Event.TEST)


def end_of(message: TroubleMessage | None) -> State:
    """The state of a message: sent, perhaps in part, given up, or to be sent. Without a message, "not tested"."""
    if message is None:
        return State("not tested")
    if message.sent_at is not None:
        sent = f"sent {message.sent_at:%Y-%m-%d %H:%M:%S} UTC"
        return (
            State("in part", f"{sent}. {message.problem}", alert=True) if message.problem else State("delivered", sent)
        )
    if message.given_up_at is not None:
        return State("given up", f"given up {message.given_up_at:%Y-%m-%d %H:%M:%S} UTC. {message.problem}")
    return State("to be sent", f"to be sent. {message.problem}".rstrip())


def url(admin: OperatorAdmin[Trouble]) -> URLPattern:
    """The page of the button *Send a test*, one per channel."""

    def view(request: HttpRequest, channel: str) -> HttpResponse:
        """GET states the consequence, POST queues the test."""
        if not request.user.has_perm(PERMISSION):
            raise PermissionDenied
        back = list_url(Trouble)
        chosen = next((one for one in alert_messages.channels() if one == channel), None)
        if chosen is None:
            return verbs.go(request, back, warning="The settings don't name this channel, so nothing was sent.")
        latest = _tests().filter(channel=chosen).values_list("pk", flat=True).first()
        if request.method == "POST" and request.POST.get("seen") != str(latest):
            return verbs.go(request, back, warning=verbs.STALE)
        if request.method == "POST":
            (message,) = alert_messages.queue_test([chosen])
            verbs.record(request, [message], "Asked for a test message.")
            done = "A worker sends the test message within some seconds. Reload the page to see the result."
            return verbs.go(request, back, success=done)
        return verbs.confirmation(
            request,
            admin,
            title=f"Test: {chosen.label}",
            label="Send a test",
            consequence=f"One test message is sent by {chosen.label}, to all its receivers. It isn't tried again.",
            hidden={"seen": latest},
            back=back,
            opts=admin.opts,
        )

    return path("test/<slug:channel>/", verbs.view(admin, view), name=URL)
