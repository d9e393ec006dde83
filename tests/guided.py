"""Guided changes one step at a time, and workers that die in them."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
from django.db import transaction
from django.utils.timezone import now

from audiences.delivery import claims
from audiences.models import Audience, GuidedChange, Install, Resend
from audiences.operations import changes, resends
from sandbox.odp.testing import ThreadedSandbox
from tests.delivering import drain_all, enter, happen, make_audience
from tests.threads import PATIENCE
from workers import drain

# More steps than a change takes, waits included.
MOST = 80
# Where a worker dies in a step.
DEATHS = ("before storing", "after storing")
# When workers deliver the events that come between two steps: before the next step, after it, or with a request under
# way during it.
DELIVERED, WAITING, UNDER_WAY = "delivered", "waiting", "under way"
# The number of further steps during which a request is under way.
LASTS = 3


class Killed(BaseException):
    """The process is gone."""


def audience_with_members(shop: Install, slug: str = "gold") -> Audience:
    """Kim, Lee and Mia are members; Pat has left."""
    made = make_audience(shop, slug, provisioned=False)
    enter(made, "kim", "lee", "mia", "pat")
    happen(made, ("pat", "exit", 5))
    drain_all(shop)
    return Audience.objects.get(pk=made.pk)


def step(shop: Install) -> bool:
    """Take one step, as if the waiting time were over. Returns whether the change continues."""
    token = changes.lease(shop.pk)
    if token is None:
        GuidedChange.objects.update(next_at=None)
        token = changes.lease(shop.pk)
    if token is None or changes.step(token) is None:
        return False
    changes.give_back(token)
    return True


def work(shop: Install) -> None:
    """Run the other tasks of the workers."""
    drain_all(shop)
    if Resend.objects.filter(install=shop, ended_at=None).exists():
        resends.advance_all(shop.pk, seconds=PATIENCE)
        drain_all(shop)


def send_events(gold: Audience, at: int) -> None:
    """Kim leaves, a new customer enters, and Pat enters again."""
    happen(gold, ("kim", "exit", at), ("new", "enter", at), ("pat", "enter", at))


def places(shop: Install) -> Iterator[int]:
    """Take all steps of a change. Yields the number of steps before each one."""
    for number in range(MOST):
        yield number
        work(shop)
        if not step(shop):
            return
    raise AssertionError(GuidedChange.objects.values().latest("pk"))


@contextmanager
def undone(*odps: ThreadedSandbox) -> Iterator[None]:
    """At the end of the block, undo what it did to the tables and to ODP. So a walk tries several continuations of one
    place without taking the steps before the place again."""
    with ExitStack() as stack, transaction.atomic():
        for odp in odps:
            stack.enter_context(odp.undone())
        yield
        transaction.set_rollback(True)


def steps_with_events(shop: Install, gold: Audience, *, events_at: int, mode: str, stop_at: int = -1) -> Iterator[int]:
    """Take the remaining steps of a change, with events after ``events_at`` steps and a stop after ``stop_at``. Yields
    the number of steps before each one."""
    lease = None
    for number in range(MOST):
        if number == stop_at:
            changes.stop(GuidedChange.objects.get(ended_at=None), by="lee")
        if number == events_at:
            send_events(gold, at=100)
            if mode == UNDER_WAY:
                lease = claims.claim(shop.pk)
        if mode == DELIVERED or number != events_at:
            work(shop)
        goes_on = step(shop)
        if lease is not None and (number == events_at + LASTS or not goes_on):
            drain.deliver(lease)
            lease = None
        yield number
        if not goes_on:
            work(shop)
            return
    raise AssertionError(GuidedChange.objects.values().latest("pk"))


def steps_with_deaths(
    shop: Install, monkeypatch: pytest.MonkeyPatch, when: str, *, work: Callable[[Install], None] = work
) -> Iterator[int]:
    """Try each step once by a worker that dies at its end, and then by another one. Yields after each death."""
    store = changes._store
    is_dying = False

    def store_or_die(*args: Any, **kwargs: Any) -> float | None:
        if not is_dying:
            return store(*args, **kwargs)
        if when == "after storing":
            store(*args, **kwargs)
        raise Killed

    monkeypatch.setattr(changes, "_store", store_or_die)
    for number in range(MOST):
        token = changes.lease(shop.pk)
        assert token is not None
        is_dying = True
        with pytest.raises(Killed):
            changes.step(token)
        assert changes.lease(shop.pk) is None, "the dead worker's lease holds"
        is_dying = False
        yield number
        GuidedChange.objects.update(lease_until_at=now(), next_at=None)
        work(shop)
        goes_on = step(shop)
        work(shop)
        if not goes_on:
            return
    raise AssertionError(GuidedChange.objects.values().latest("pk"))


def segments(odp: ThreadedSandbox) -> list[str]:
    return sorted(odp.odp("GET", "/v3/segments")[1]["segment_ids"])
