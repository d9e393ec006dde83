"""What an operator does by hand: release, discard, replay, resync. Each appends to the log; nothing in it is edited."""

from collections.abc import Iterable

from django.db import transaction
from django.utils.timezone import now

from audiences import ingest
from audiences.models import Audience, Event, Membership, Parked
from audiences.secrets import decrypt
from audiences.wake import wake
from lytics.payload import Fact, Kind

# Events appended in one transaction by a replay or a resync: the audience's lock is held for as long as that takes.
CHUNK = 5_000


def release(parked_ids: Iterable[int], *, by: str) -> tuple[int, int]:
    """Let parked items go on. Returns how many left the page and how many stay, because they still can't be read.

    An item of a call is read again with the install's present settings. A change that ODP refused is appended once
    more at its old time, so that anything newer still wins.
    """
    released = stayed = 0
    for parked_id in parked_ids:
        with transaction.atomic():
            parked = (
                Parked.objects.select_for_update(of=("self",))
                .select_related("install", "receipt")
                .filter(pk=parked_id, closed_at=None)
                .first()
            )
            if parked is None:
                continue
            if _append_again(parked) if parked.sequence is not None else _read_again(parked):
                _close(parked, by=by, resolution=Parked.Resolution.RELEASED)
                released += 1
            else:
                stayed += 1
    return released, stayed


def discard(parked_ids: Iterable[int], *, by: str) -> int:
    """Give parked items up; the rows stay, with who did it. Returns how many."""
    open_items = Parked.objects.filter(pk__in=list(parked_ids), closed_at=None)
    return open_items.update(closed_at=now(), closed_by=by, resolution=Parked.Resolution.DISCARDED)


def _close(parked: Parked, *, by: str, resolution: str) -> None:
    Parked.objects.filter(pk=parked.pk).update(closed_at=now(), closed_by=by, resolution=resolution)


def _append_again(parked: Parked) -> bool:
    event = Event.objects.get(pk=(parked.audience_id, parked.sequence))
    fact = Fact("", "", event.identifier, Kind(event.kind), event.occurred_ns)
    ingest.append([(event.audience_id, fact)], received_at=now(), forced=True)
    transaction.on_commit(lambda: wake(parked.install_id))
    return True


def _read_again(parked: Parked) -> bool:
    """Whether everything in the item could be read this time; what could, is in the log either way."""
    return ingest.read_again(
        parked.install, decrypt(bytes(parked.raw or b"")), receipt=parked.receipt, at=parked.parked_at
    )


def replay(audience: Audience, *, first: int, last: int) -> int:
    """Append the events from ``first`` to ``last`` again, to be sent even where the ledger agrees. Returns how many.

    Their times are the old ones, so an event that something newer has made moot is folded again.
    """
    appended = 0
    # Not beyond the last one there is: from there on we would replay our own replay.
    last = min(last, Audience.objects.values_list("last_sequence", flat=True).get(pk=audience.pk))
    for start in range(first, last + 1, CHUNK):
        events = Event.objects.filter(audience=audience, sequence__range=(start, min(last, start + CHUNK - 1)))
        facts = [Fact("", "", e.identifier, Kind(e.kind), e.occurred_ns) for e in events.order_by("sequence")]
        _append_forced(audience, facts)
        appended += len(facts)
    wake(audience.install_id)
    return appended


def resync(audience: Audience) -> int:
    """Append the audience's whole ledger, to be sent again: ODP then holds what we hold. Returns how many."""
    appended, after = 0, ""
    while True:
        held = list(Membership.objects.filter(audience=audience, identifier__gt=after).order_by("identifier")[:CHUNK])
        if not held:
            wake(audience.install_id)
            return appended
        kinds = {True: Kind.ENTER, False: Kind.EXIT}
        facts = [Fact("", "", row.identifier, kinds[row.is_member], row.occurred_ns) for row in held]
        _append_forced(audience, facts)
        appended, after = appended + len(held), held[-1].identifier


def _append_forced(audience: Audience, facts: list[Fact]) -> None:
    with transaction.atomic():
        ingest.append([(audience.pk, fact) for fact in facts], received_at=now(), forced=True)
