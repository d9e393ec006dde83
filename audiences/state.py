"""What people are shown of a lane and an install: derived from the facts in the rows, here and nowhere else."""

from dataclasses import dataclass

from django.utils.timezone import now

from audiences import naming
from audiences.models import Install, Lane


@dataclass(frozen=True)
class State:
    """A word, and until when or why. ``trouble`` says whether a person has to do something."""

    word: str
    why: str = ""
    trouble: bool = False


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
