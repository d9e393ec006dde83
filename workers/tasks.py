"""Celery's tasks: fetch, call, answer."""

from celery import shared_task
from django.conf import settings
from django.core.management import call_command

from audiences import wake
from audiences.delivery import claims
from audiences.insight import confirm as confirming
from audiences.insight import search_index, trials
from audiences.insight import tally as tallying
from audiences.operations import affirm as affirming
from audiences.operations import resends
from workers import drain as draining
from workers import heart, slots, trial


@shared_task(name="workers.tasks.drain", ignore_result=True)
def drain(install_id: int) -> None:
    """Deliver what one install has ready."""
    wake.heard(install_id)
    with slots.slot(install_id) as free:
        if free and draining.drain(install_id, seconds=settings.DRAIN_SECONDS):
            heart.worked()


@shared_task(name="workers.tasks.make", ignore_result=True)
def make(install_id: int) -> None:
    """Make what audiences of one install need in ODP, while others deliver."""
    wake.heard(install_id, wake.MAKE)
    with slots.slot(install_id) as free:
        if free and draining.make(install_id, seconds=settings.DRAIN_SECONDS):
            wake.wake(install_id)
            heart.worked()


@shared_task(name="workers.tasks.resend", ignore_result=True)
def resend(install_id: int) -> None:
    """Append what one install is to send again, as far as there is room."""
    wake.heard(install_id, wake.RESEND)
    with slots.slot(install_id) as free:
        if free:
            resends.go_on(install_id, seconds=settings.DRAIN_SECONDS)


@shared_task(name="workers.tasks.sweep", ignore_result=True)
def sweep() -> None:
    """Wake every install that has something to send: this finds what a lost wake-up missed."""
    for install_id in claims.due():
        wake.wake(install_id)
    for install_id in resends.due():
        wake.wake_resend(install_id)
    trials.give_up_silent()


@shared_task(name="workers.tasks.affirm", ignore_result=True)
def affirm() -> None:
    """Say again what an older request, applied late, may have undone in ODP."""
    affirming.affirm()


@shared_task(name="workers.tasks.heartbeat", ignore_result=True)
def heartbeat(worker: str) -> None:
    """Out of the worker's own queue: work reaches it."""
    heart.heard(worker)


@shared_task(name="workers.tasks.confirm", ignore_result=True)
def confirm(install_id: int) -> None:
    """Ask ODP whether it shows a customer who was delivered."""
    confirming.ask(install_id)


@shared_task(name="workers.tasks.try_out", ignore_result=True)
def try_out(install_id: int) -> None:
    """See an install's test customer through the whole path."""
    trial.walk(install_id)


@shared_task(name="workers.tasks.summarise", ignore_result=True)
def summarise() -> None:
    """Keep the log quick to search for one customer."""
    search_index.summarise()


@shared_task(name="workers.tasks.tally", ignore_result=True)
def tally() -> None:
    """Add up the minutes that have ended."""
    tallying.tally()


@shared_task(name="workers.tasks.clear_sessions", ignore_result=True)
def clear_sessions() -> None:
    """Delete the sessions of people whose login has run out; Django never does that by itself."""
    call_command("clearsessions")
