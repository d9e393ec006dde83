"""Celery's tasks: fetch, call, answer."""

from functools import partial

from celery import shared_task
from django.conf import settings
from django.core.management import call_command

from audiences import tallies, wake
from audiences.agreement import audits
from audiences.delivery import claims, clock
from audiences.front import troubles
from audiences.insight import certificate, delays, probes, rollup, schedule, search_index, trials
from audiences.operations import alert_messages, changes, forgetting, job_looks, pruning, resends, retiring, twins
from audiences.operations import reconcile as reconciling
from workers import drain as draining
from workers import heartbeat_monitor, making, pace, slots, trial


@shared_task(name="workers.tasks.drain", ignore_result=True)
def drain(install_id: int) -> None:
    """Deliver what one install has ready."""
    wake.heard(install_id)
    with slots.slot(install_id) as free:
        if free and draining.drain(install_id, seconds=settings.DRAIN_SECONDS):
            heartbeat_monitor.worked()


@shared_task(name="workers.tasks.make", ignore_result=True)
def make(install_id: int) -> None:
    """Make what audiences of one install need in ODP, while others deliver."""
    wake.heard(install_id, wake.MAKE)
    with slots.slot(install_id, drains=False) as free, making.alone(install_id) as alone:
        if free and alone and making.make(install_id, seconds=settings.DRAIN_SECONDS):
            wake.wake(install_id)
            heartbeat_monitor.worked()


@shared_task(name="workers.tasks.resend", ignore_result=True)
def resend(install_id: int) -> None:
    """Append events of one install's Resends while its backlog has room, and advance what is being retired."""
    wake.heard(install_id, wake.RESEND)
    with slots.slot(install_id, drains=False) as free:
        if free:
            resends.advance_all(install_id, seconds=settings.DRAIN_SECONDS, gives_way=slots.gives_way)
            retiring.advance_all(
                install_id, seconds=settings.DRAIN_SECONDS, gate=pace.pass_gate, gives_way=slots.gives_way
            )


@shared_task(name="workers.tasks.sweep", ignore_result=True)
def sweep() -> None:
    """Wake every install that has something to send: this finds what a lost wake-up missed."""
    tallies.SWEEPS.add()
    for install_id in claims.due():
        wake.wake(install_id)
    for install_id in {*resends.due(), *retiring.due()}:
        wake.wake_resend(install_id)
    for install_id in changes.due():
        wake.wake_change(install_id)
    trials.give_up_silent()


@shared_task(name="workers.tasks.reconcile", ignore_result=True)
def reconcile() -> None:
    """Send the ledger's state again where ODP may have applied an abandoned request late.

    Also notes that beat runs, and corrects the times of a clock that was ahead.
    """
    schedule.note()
    clock.correct()
    reconciling.reconcile()


@shared_task(name="workers.tasks.heartbeat", ignore_result=True)
def heartbeat(worker: str) -> None:
    """A message from the worker's own queue: it proves that work reaches this worker."""
    heartbeat_monitor.heard(worker)


@shared_task(name="workers.tasks.try_out", ignore_result=True)
def try_out(install_id: int) -> None:
    """Run an install's waiting test customer."""
    trial.walk(install_id)


@shared_task(name="workers.tasks.probe", ignore_result=True)
def probe() -> None:
    """Start the test customers that are due."""
    probes.start_due()


@shared_task(name="workers.tasks.look_at_twins", ignore_result=True)
def look_at_twins() -> None:
    """Wake workers for the installs whose audiences in ODP are due for a look."""
    twins.start_due()


@shared_task(name="workers.tasks.look_at_jobs", ignore_result=True)
def look_at_jobs() -> None:
    """Look at the Lytics jobs of the installs that are due: which audiences they still send."""
    job_looks.look_at_due(seconds=settings.DRAIN_SECONDS)


@shared_task(name="workers.tasks.look", ignore_result=True)
def look(install_id: int) -> None:
    """Look at some audiences of one install in ODP."""
    wake.heard(install_id, wake.LOOK)
    twins.look(install_id, gate=pace.pass_gate)


@shared_task(name="workers.tasks.audit", ignore_result=True)
def audit(install_id: int) -> None:
    """Take the next steps of an audit of one install."""
    wake.heard(install_id, wake.AUDIT)
    with slots.beside(install_id) as free:
        if free:
            note = partial(slots.note_audit_request, install_id)
            audits.advance_all(install_id, seconds=settings.DRAIN_SECONDS, note_request=note)


@shared_task(name="workers.tasks.ask_audits", ignore_result=True)
def ask_audits() -> None:
    """Continue forgetting, ask for the audits that are due, and wake the installs that have unfinished ones."""
    forgetting.advance_all()
    audits.ask_due()
    for install_id in audits.due():
        wake.wake_audit(install_id)


@shared_task(name="workers.tasks.change", ignore_result=True)
def change(install_id: int) -> None:
    """Take steps of the guided change of one install."""
    wake.heard(install_id, wake.CHANGE)
    with slots.slot(install_id, drains=False) as free:
        if free:
            changes.advance(install_id, seconds=settings.DRAIN_SECONDS, gate=pace.pass_gate, gives_way=slots.gives_way)


@shared_task(name="workers.tasks.summarise", ignore_result=True)
def summarise() -> None:
    """Summarise new blocks of the log in the index that finds a customer."""
    search_index.summarise()


@shared_task(name="workers.tasks.roll_up", ignore_result=True)
def roll_up() -> None:
    """Compute the Minutes that have ended, and the delays for metrics."""
    rollup.roll_up()
    delays.add_up()


@shared_task(name="workers.tasks.look_at_certificate", ignore_result=True)
def look_at_certificate() -> None:
    """Ask the public address for its certificate."""
    certificate.look()


@shared_task(name="workers.tasks.check_troubles", ignore_result=True)
def check_troubles() -> None:
    """Store the current troubles of the page Now, and queue messages about the new and the resolved ones."""
    troubles.check()


@shared_task(name="workers.tasks.send_alerts", ignore_result=True)
def send_alerts() -> None:
    """Send the messages about troubles that are due."""
    alert_messages.send_due(seconds=settings.DRAIN_SECONDS)


@shared_task(name="workers.tasks.clear_sessions", ignore_result=True)
def clear_sessions() -> None:
    """Delete expired login sessions; Django doesn't do that automatically."""
    call_command("clearsessions")


@shared_task(name="workers.tasks.prune", ignore_result=True)
def prune() -> None:
    """Delete some of the rows that are older than their retention."""
    pruning.prune()
