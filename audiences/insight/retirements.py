"""Texts about an audience that was retired, is being retired, or was taken back."""

from audiences.insight.sentences import sentence
from audiences.models import Audience, Retirement


def words(audience: Audience) -> list[str]:
    """The newest retirement, for the audience's page; empty without one, or when it was taken back completely."""
    retirement = Retirement.objects.filter(audience=audience).order_by("-pk").first()
    return [] if retirement is None or retirement.restored_at is not None else [_sentence(retirement)]


def _sentence(retirement: Retirement) -> str:
    if retirement.undone_at is not None:
        back = f"{retirement.undone_by} took it back: {sentence(retirement.undone_reason)}"
        return f"{back} The members whom the retirement took out are being entered again."
    why = f"by {retirement.by}, {retirement.asked_at:%Y-%m-%d %H:%M} UTC: {sentence(retirement.reason)}"
    if retirement.ended_at is not None:
        return f"Retired {why} {retirement.left_in_odp}".strip()
    return f"Being retired {why} {step(retirement)}"


def step(retirement: Retirement) -> str:
    """The progress of an unfinished retirement."""
    if retirement.emptied_at is None:
        total = max(retirement.total, retirement.done)
        return f"{retirement.done:,} of {total:,} exits are queued; then its real-time audience is deleted in ODP."
    return "All exits are queued. When they are delivered, its real-time audience is deleted in ODP."
