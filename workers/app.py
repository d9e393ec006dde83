"""The Celery application. Its messages are hints: nothing is lost when one is, and two are as good as one."""

import gc
import os
import sys
import warnings
from threading import Thread
from typing import Any

import structlog
from celery import Celery
from celery.exceptions import CPendingDeprecationWarning
from celery.signals import (
    beat_init,
    celeryd_after_setup,
    setup_logging,
    task_failure,
    task_prerun,
    worker_init,
    worker_ready,
    worker_shutdown,
    worker_shutting_down,
)
from celery.utils.nodenames import worker_direct
from celery.worker import state
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.utils.log import configure_logging
from structlog.contextvars import bind_contextvars, clear_contextvars

from audiences import start_checks

log = structlog.get_logger(__name__)

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "lytics_sync.settings")

# At each lost connection: Celery 6 may cancel running tasks then. A delivery that is under way ends as it would have.
warnings.filterwarnings("ignore", category=CPendingDeprecationWarning)

app = Celery("lytics_sync")
if "celery" in sys.argv[0]:
    # Celery would read the settings later, and end with a traceback. It warns users who are root before it has a log.
    try:
        configure_logging(settings.LOGGING_CONFIG, settings.LOGGING)
    except ImproperlyConfigured as error:
        start_checks.refuse(str(error))
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks(["workers"])
# By default Celery closes a thread's database connection before and after each task. A new connection is a new
# PostgreSQL process, which costs more than a short task.
app.conf["CELERY_DB_REUSE_MAX"] = 2**31


@task_prerun.connect
def _name_task_in_log(sender: Any, task_id: str, **kwargs: object) -> None:
    """Each line that a task writes names it, and no line carries what an earlier task on this thread has bound."""
    clear_contextvars()
    bind_contextvars(task=sender.name, task_id=task_id)


@task_failure.connect
def _note_failure(sender: Any, exception: BaseException, **kwargs: object) -> None:
    """Count the failure for the front page."""
    from audiences.insight import failures

    failures.note(str(sender.name), exception)


@task_failure.connect
def _leave_connection(**kwargs: object) -> None:
    """Close the connection after a failure, because its prepared statements may be from before a migration."""
    from django.db import connection

    connection.close()


@worker_init.connect
@beat_init.connect
def _check_settings(**kwargs: object) -> None:
    """Both signals come before the first task. Celery lets ``SystemExit`` pass."""
    import django

    django.setup()
    start_checks.check()


@setup_logging.connect
def _use_django_logging(**kwargs: object) -> None:
    """Celery would replace the handlers that settings.LOGGING made; one format for every process instead."""
    configure_logging(settings.LOGGING_CONFIG, settings.LOGGING)
    # Celery's signal handlers write plain text there. Python allows None: a process may have no stdout.
    sys.__stdout__ = None  # type: ignore[misc] # a Final in the stubs


@worker_shutting_down.connect
def _log_shutdown(sig: str, how: str, **kwargs: object) -> None:
    """Log from a thread: Celery calls this in a signal handler, which may have interrupted a write to the log."""
    Thread(target=log.info, args=("worker shutting down",), kwargs={"signal": sig, "how": how.lower()}).start()


@celeryd_after_setup.connect
def _share_out_slots(instance: Any, **kwargs: object) -> None:
    from workers import slots

    # Celery's reserved requests are those that run and those that wait.
    slots.share_out(instance.concurrency, waiting=lambda: len(state.reserved_requests) - instance.concurrency)


@worker_ready.connect
def _start_heart(sender: Any, **kwargs: object) -> None:
    from django.conf import settings

    from audiences import sessions
    from workers import heartbeat_monitor

    name = str(sender.hostname)
    every: float = settings.HEARTBEAT_SECONDS

    def send() -> None:
        """Send directly into the worker's own queue, which no other worker consumes."""
        app.send_task(
            "workers.tasks.heartbeat",
            args=[name],
            queue=worker_direct(name),  # type: ignore[arg-type] # a Queue will do, says Celery itself
            expires=every * 4,
            retry=False,
        )

    sessions.bound(settings.DATABASE_WORKER_SECONDS)
    heartbeat_monitor.start(name, send=send, every=every, port=settings.WORKER_HEALTH_PORT)
    gc.freeze()  # what is loaded now is never garbage: full collections need not scan all of Django and Celery


@worker_shutdown.connect
def _stop_heart(**kwargs: object) -> None:
    from audiences import tracing
    from workers import heartbeat_monitor

    heartbeat_monitor.stop()
    tracing.stop()
