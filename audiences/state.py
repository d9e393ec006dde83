"""What people are shown of a lane and an install: derived from the facts in the rows, here and nowhere else."""

from dataclasses import dataclass

from django.utils.timezone import now

from audiences import naming
from audiences.models import Delivery, Install, Lane, Parked, Receipt, Run, Token
from odp.outcomes import Outcome, outcome_of

# How a word is coloured: all is well, under way, held by a person or for a while, in trouble. Others stay grey.
_TONES = {
    "good": ("going", "up to date", "delivered", "queued", "live", "released"),
    "busy": ("sending", "waiting", "being created", "to be created", "open"),
    "held": ("paused", "held back", "partly parked", "retry later", "unknown", "ending"),
    "bad": ("blocked", "braked", "parked", "refused", "unauthorised"),
}
_TONE_OF = {word: tone for tone, words in _TONES.items() for word in words}


@dataclass(frozen=True)
class State:
    """A word, and until when or why. ``trouble`` says whether a person has to do something."""

    word: str
    why: str = ""
    trouble: bool = False

    @property
    def tone(self) -> str:
        return _TONE_OF.get(self.word, "none")


def of_install(install: Install) -> State:
    if not install.enabled:
        return State("off", "Lytics is asked to come back later")
    if install.brake_until_at is not None:
        return State(
            "braked",
            f"{install.brake_reason} — {install.brake_failures} in a row"
            f" since {install.brake_since_at:%Y-%m-%d %H:%M:%S} UTC, next try at {install.brake_until_at:%H:%M:%S} UTC",
            trouble=True,
        )
    return State("going")


def remedy(install: Install) -> str:
    """What a person can do about a brake. The reason begins with ODP's status where there was one."""
    status = install.brake_reason.partition(":")[0]
    if status.isdecimal() and outcome_of(int(status)) is Outcome.UNAUTHORISED:
        return "Give the install an API key that ODP takes: open it, enter the key, save."
    return "It goes on by itself as soon as ODP answers; look at the install's ODP host and at ODP's status page."


def of_lane(lane: Lane) -> State:
    """The state of a lane whose audience and install have been fetched with it."""
    audience = lane.audience
    waiting = backlog(lane)
    if lane.blocked_at is not None:
        return State("blocked", lane.block_reason, trouble=True)
    if lane.paused_at is not None:
        return State("paused", f"by {lane.paused_by}: {lane.pause_reason}")
    if not waiting:
        return State("up to date")
    if lane.lease_expires_at is not None and lane.lease_expires_at > now():
        return State("sending" if audience.provisioned_at else "being created")
    install = of_install(audience.install)
    if install.word in ("off", "braked"):
        return State("held back", f"install {install.word}: {install.why}")
    return State("waiting" if audience.provisioned_at else "to be created")


def of_request(record: Delivery | Run) -> State:
    """The state of a delivery or a run: how it ended, or that nobody knows yet."""
    if record.closed_at is None:
        return State("open", "Under way, or its worker is gone; whoever claims the lane next closes it.")
    reason = record.reason if isinstance(record, Delivery) else ""
    return State(record.outcome.replace("_", " "), reason, trouble=record.outcome == Outcome.UNAUTHORISED)


def of_receipt(receipt: Receipt) -> State:
    return State(receipt.verdict)


def of_parked(parked: Parked) -> State:
    if parked.closed_at is None:
        return State("parked", trouble=True)
    by = f"by {parked.closed_by}, " if parked.closed_by else ""
    return State(parked.resolution, f"{by}{parked.closed_at:%Y-%m-%d %H:%M} UTC")


def of_token(token: Token) -> State:
    if token.revoked_at is not None:
        return State("revoked", f"{token.revoked_at:%Y-%m-%d %H:%M} UTC")
    if token.expires_at is None:
        return State("live")
    if token.expires_at <= now():
        return State("ended", f"{token.expires_at:%Y-%m-%d %H:%M} UTC")
    return State("ending", f"until {token.expires_at:%Y-%m-%d %H:%M} UTC")


def backlog(lane: Lane) -> int:
    """Events accepted and not yet delivered."""
    return lane.audience.last_sequence - lane.delivered_sequence


def warnings(lane: Lane) -> list[str]:
    """What is not wrong and still surprises people about an audience."""
    audience = lane.audience
    told = []
    if audience.latest_slug != audience.slug:
        told.append(f"The slug was edited in Lytics to {audience.latest_slug}; the ODP id stays {audience.odp_id}.")
    if audience.odp_id != naming.odp_id(audience.slug):
        told.append(
            f"Another segment already had the id {naming.odp_id(audience.slug)}, so this one is {audience.odp_id}."
        )
    return told
