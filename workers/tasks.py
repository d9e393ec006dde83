"""Celery's tasks: fetch, call, answer."""

from celery import shared_task
from django.conf import settings

from audiences import lanes, wake
from workers import drain as draining


@shared_task(name="workers.tasks.drain", ignore_result=True)
def drain(install_id: int) -> None:
    """Deliver what one install has ready."""
    wake.heard(install_id)
    draining.drain(install_id, seconds=settings.DRAIN_SECONDS)


@shared_task(name="workers.tasks.sweep", ignore_result=True)
def sweep() -> None:
    """Wake every install that has something to send: this finds what a lost wake-up missed."""
    for install_id in lanes.due():
        wake.wake(install_id)
