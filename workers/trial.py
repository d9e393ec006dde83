"""Run a test customer: make its calls as Lytics does, and wait for each step. Imports no Celery.

What it passes are the facts that every event leaves behind; nothing on the path knows that this one is a test.
"""

import time
from collections.abc import Callable
from typing import NamedTuple

import structlog
from django.utils.timezone import now

from audiences.delivery import odp_account
from audiences.insight import blocks, state, trials
from audiences.insight.trials import AROUND, CALLED, CLAIMED, DONE, FAILED, IN, MADE, OUT, SHOWN, STORED, TAKEN, Leg
from audiences.models import Audience, Event, Install, Lane, Parked, Receipt, Run, Trial
from audiences.operations import installs
from audiences.receiving import tokens
from odp.client import Client
from odp.graphql import audiences_of
from outgoing.network_errors import elsewhere

log = structlog.get_logger(__name__)

# Seconds to wait for a step, and between two checks of it; ODP is queried less often.
HOP_SECONDS = 30.0
LOOK_SECONDS = 0.1
ASK_SECONDS = 1.0
CALL_SECONDS = 10.0
GRAPHQL_SECONDS = 5.0
# Seconds until ODP must show what it accepted in a probe: its documented bound. A person waits shorter.
SHOWN_SECONDS = 90.0

NO_WORKER = "No worker has taken the event. Start the worker and beat processes, or look at their logs."
NOT_SHOWN = (
    "ODP accepted the entry and doesn't show it. ODP shows most changes within ten seconds and documents 90 s as the"
    " limit, so send another test customer in a minute. If ODP doesn't show that one either: in ODP, under Settings >"
    " App Consent Settings, set the Api app to Opted In, and check the definition of the audience {odp_id}."
)
STILL_SHOWN = (
    "ODP accepted the exit and still shows the customer in the audience. Send another test customer in a minute. If ODP"
    " shows that one too after its exit, press Resync on the page of {odp_id}."
)


class Seen(NamedTuple):
    """A step has succeeded, or can no longer succeed."""

    how: str
    words: str


Look = Callable[[], Seen | None]


def walk(install_id: int, *, pause: Callable[[float], None] = time.sleep) -> None:
    """Let the install's waiting test customer enter and leave. ``pause`` sleeps for the seconds between two checks."""
    trial = trials.begin(install_id)
    if trial is None:
        return
    try:
        entered = _Leg(trial, IN, pause).walk()
        _Leg(trial, OUT, pause, entered=entered).walk()
    except Exception:
        if not Trial.objects.filter(pk=trial.pk).exists():
            log.info("install deleted while its test customer was on the way", install=trial.install.name)
            return
        log.exception("test customer lost", install=trial.install.name)
        raise
    trials.close(trial)


class _Leg:
    """The entry or the exit. ``entered`` is the result of the entry: None before it, False when a step failed."""

    def __init__(self, trial: Trial, leg: Leg, pause: Callable[[float], None], *, entered: bool | None = None) -> None:
        self.trial, self.leg, self.pause, self.entered = trial, leg, pause, entered
        self.began = time.monotonic()
        audience = trials.audience_of(trial.install)
        self.after = audience.last_sequence if audience else 0
        self.event: Event | None = None
        # Why the last query to ODP failed.
        self.silence = ""

    def walk(self) -> bool:
        """Go through the steps. Returns whether all succeeded."""
        if self.entered is False:
            return self._follow()
        return all(hop() for hop in self._hops())

    def _hops(self) -> list[Callable[[], bool]]:
        hops = {
            CALLED: self._call,
            STORED: lambda: self._wait(STORED, self._stored, lambda: "The call was answered 200 and its event is not in"
            " this database: PUBLIC_URL leads to another installation of this service."),
            MADE: lambda: self._wait(MADE, self._made, self._held_or_no_worker),
            CLAIMED: lambda: self._wait(CLAIMED, self._claimed, self._held_or_no_worker),
            TAKEN: lambda: self._wait(TAKEN, self._taken, self._held_or_no_worker),
            SHOWN: lambda: self._wait(SHOWN, self._shown, self._not_shown, every=ASK_SECONDS),
        }  # fmt: skip
        return [hops[name] for name in trials.LEGS[self.leg]]

    def _follow(self) -> bool:
        """Store the exit after a failed entry, so that the customer isn't left in the audience. Returns False."""
        trials.send_straight_in(self.trial, OUT)
        self._note(CALLED, AROUND, "Stored behind the entry, so that the customer ends outside the audience.")
        return False

    def _note(self, hop: str, how: str, words: str) -> bool:
        trials.note(self.trial, self.leg, hop, how, words, ms=round((time.monotonic() - self.began) * 1000))
        return how != FAILED

    def _wait(self, hop: str, look: Look, late: Callable[[], str], *, every: float = 0.0) -> bool:
        seconds = SHOWN_SECONDS if hop == SHOWN and self.trial.is_probe else HOP_SECONDS
        until = time.monotonic() + seconds
        while (seen := look()) is None:
            if time.monotonic() > until:
                return self._note(hop, FAILED, f"Not within {seconds:.0f} s. {late()}")
            self.pause(every or LOOK_SECONDS)
        return self._note(hop, *seen)

    # --- the hops --------------------------------------------------------------------------------------------

    def _call(self) -> bool:
        """Call the address that Lytics calls. If that fails, store the call directly, to test the other steps."""
        body = trials.call(self.trial, self.leg)
        problem, words = _post(self.trial.install, body)
        if not problem:
            return self._note(CALLED, DONE, words)
        trials.send_straight_in(self.trial, self.leg)
        return self._note(
            CALLED,
            AROUND,
            f"{problem} The call was stored directly instead, so that the other steps are tested. Lytics' first call"
            " will show whether Lytics reaches this service.",
        )

    def _stored(self) -> Seen | None:
        self.event = trials.event_of(self.trial, self.leg, after=self.after)
        if self.event is not None:
            return Seen(DONE, f"call {self.event.receipt_id}, event {self.event.sequence} of {self._audience().odp_id}")
        calls = Receipt.objects.filter(install=self.trial.install, received_at__gte=self.trial.started_at)
        call = calls.filter(job=trials.JOB).first()
        if call and call.parked:
            return Seen(FAILED, f"The call was parked: {', '.join(call.parked_reasons)}. Look at Parked.")
        return None

    def _made(self) -> Seen | None:
        audience = self._audience()
        if audience.provisioned_at is None:
            return self._hopeless()
        new = audience.provisioned_at >= self.trial.started_at
        return Seen(DONE, f"{audience.odp_id} was created" if new else f"{audience.odp_id} existed already")

    def _claimed(self) -> Seen | None:
        run = self._run()
        return Seen(DONE, f"run {run.pk}") if run else self._hopeless()

    def _taken(self) -> Seen | None:
        assert self.event is not None
        if self._lane().delivered_sequence < self.event.sequence:
            return self._hopeless()
        # Read after the cursor, which moves when the response of the delivery is stored.
        run = self._run()
        if run is None or run.delivery is None:
            return self._hopeless()
        rejected = Parked.objects.filter(
            audience=run.audience, identifier=self.trial.identifier, closed_at=None
        ).first()
        if rejected:
            return Seen(FAILED, f"ODP rejected it: {rejected.detail} It is parked: look at Parked.")
        status, taken = run.delivery.status, run.delivery.latency_ms
        return Seen(DONE, f"delivery {run.delivery.pk}: ODP answered {status} after {taken} ms")

    def _shown(self) -> Seen | None:
        odp_id = self._audience().odp_id
        found = audiences_of(
            odp_account.client_of(self.trial.install),
            identifier=self.trial.identifier,
            odp_ids=[odp_id],
            seconds=GRAPHQL_SECONDS,
        )
        self.silence = "" if found.by_name else found.answer.reason
        if self.leg == IN:
            return Seen(DONE, f"ODP: in {odp_id}, by fs_user_id and web_user_id") if found.is_in(odp_id) else None
        return Seen(DONE, f"ODP: no longer in {odp_id}") if found.is_out(odp_id) else None

    # --- what they look at -----------------------------------------------------------------------------------

    def _audience(self) -> Audience:
        audience = trials.audience_of(self.trial.install)
        assert audience is not None
        return audience

    def _lane(self) -> Lane:
        return Lane.objects.select_related("audience__install").get(audience=self._audience())

    def _run(self) -> Run | None:
        """The newest run with the event in it."""
        assert self.event is not None
        runs = Run.objects.filter(audience=self.event.audience_id, last_sequence__gte=self.event.sequence)
        covering = runs.filter(first_sequence__lte=self.event.sequence).select_related("delivery", "audience")
        return covering.order_by("-id").first()

    # --- steps that fail -------------------------------------------------------------------------------------

    def _hopeless(self) -> Seen | None:
        """A failure that doesn't end by waiting."""
        lane = self._lane()
        if lane.blocked_at is not None:
            return Seen(FAILED, f"The audience is blocked: {lane.block_reason} {blocks.remedy(lane)}")
        if lane.paused_at is not None:
            return Seen(FAILED, f"The audience is paused by {lane.paused_by}: {lane.pause_reason}. Resume it.")
        install = lane.audience.install
        if not install.enabled:
            return Seen(FAILED, "The install was switched off.")
        if install.backoff_until_at is not None and state.needs_key(install):
            return Seen(FAILED, f"{trials.ON_HOLD}{install.backoff_reason}. {state.remedy(install)}")
        if state.rejects_key(lane.audience.hold_reason):
            return Seen(FAILED, self._on_hold(lane.audience))
        return None

    @staticmethod
    def _on_hold(audience: Audience) -> str:
        return f"The audience can't be created in ODP: {audience.hold_reason}. {state.remedy_of_hold(audience)}"

    def _held_or_no_worker(self) -> str:
        lane = self._lane()
        install = lane.audience.install
        if install.backoff_until_at is not None:
            return f"{trials.ON_HOLD}{install.backoff_reason}. {state.remedy(install)}"
        if lane.audience.hold_failures:
            return self._on_hold(lane.audience)
        if lane.fault_since_at is not None:
            return f"The audience is on hold: {state.fault(lane)}."
        leased_until = (lane.lease_expires_at, lane.audience.making_until_at)
        if any(moment is not None and moment > now() for moment in leased_until):
            return "A worker has claimed the event, and ODP has not responded yet."
        return NO_WORKER

    def _not_shown(self) -> str:
        if self.silence:
            return f"ODP could not be asked: {self.silence}"
        words = NOT_SHOWN if self.leg == IN else STILL_SHOWN
        return words.format(odp_id=self._audience().odp_id)


def _post(install: Install, body: bytes) -> tuple[str, str]:
    """Why the call didn't get through, and what it was answered."""
    url = installs.webhook_url(install)
    live = tokens.live(install)
    if not live:
        return "There is no live token, so Lytics' calls are answered 401. Press New token.", ""
    headers = {"Authorization": installs.authorization(live[0])}
    caller = Client(host=url, api_key="", headers=headers)
    answer = caller.call("POST", "", body=body, seconds=CALL_SECONDS)
    if answer.status is None:
        return f"{url} can't be reached from here: {elsewhere(answer.reason)}.", ""
    if answer.status == 200 and isinstance(answer.json, dict) and "queued" in answer.json:
        return "", f"{url} answered 200"
    return f"{url} answered {answer.status}{_hint(answer.status)}.", ""


def _hint(status: int) -> str:
    return {
        200: ", but not as this service answers: another server is there",
        401: ": the token did not arrive. A proxy removes the Authorization header, or another installation of this"
        " service is there",
        503: ": Lytics would retry later",
    }.get(status, ": a proxy or another server in front of this service answers")
