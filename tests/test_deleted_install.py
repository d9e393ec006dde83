"""Deleting an install while a task works: before whichever statement of the task, the task ends without an error."""

from collections.abc import Callable
from threading import Thread
from typing import Any

import pytest
from django.db import OperationalError, connection
from django.utils.timezone import now

from audiences.delivery import drafts
from audiences.models import Install, Trouble
from audiences.operations import installs
from sandbox.odp.testing import ThreadedSandbox
from sandbox.odp.world import DEFAULT_PRIVATE_KEY
from workers import tasks

pytestmark = pytest.mark.django_db(transaction=True)

TASKS_OF_INSTALL: list[Any] = [
    tasks.drain,
    tasks.make,
    tasks.resend,
    tasks.look,
    tasks.audit,
    tasks.change,
    tasks.try_out,
]
TASKS_OF_ALL: list[Any] = [
    tasks.sweep,
    tasks.reconcile,
    tasks.probe,
    tasks.look_at_twins,
    tasks.look_at_jobs,
    tasks.ask_audits,
    tasks.summarise,
    tasks.check_troubles,
    tasks.send_alerts,
    tasks.prune,
]


class Deletion:
    """Deletes the install in another session, as the button does, before the statement with a number (from 0)."""

    def __init__(self, install: Install, *, before: int) -> None:
        self.install, self.before, self.statements = install, before, 0

    def __call__(self, execute: Callable[..., Any], statement: str, params: Any, many: bool, context: Any) -> Any:
        if self.statements == self.before:
            deleting = Thread(target=self._delete)
            deleting.start()
            deleting.join()
        self.statements += 1
        return execute(statement, params, many, context)

    def _delete(self) -> None:
        try:
            with connection.cursor() as cursor:
                cursor.execute("SET lock_timeout = '50ms'")
            drafts.delete(self.install.pk)
        except OperationalError:  # the task keeps the install until its transaction ends
            pass
        finally:
            connection.close()


def mistake(odp: ThreadedSandbox) -> Install:
    made = Install(name="Mistake", odp_api_key=DEFAULT_PRIVATE_KEY, odp_host=odp.url, key_accepted_at=now())
    installs.create(made)
    return made


@pytest.mark.parametrize("task", [*TASKS_OF_INSTALL, *TASKS_OF_ALL], ids=lambda task: task.name.rpartition(".")[2])
def test_a_task_ends_without_an_error_when_an_install_is_deleted_meanwhile(task: Any, odp: ThreadedSandbox) -> None:
    before, statements = 0, 1
    while before < statements:
        install = mistake(odp)
        deletion = Deletion(install, before=before)
        with connection.execute_wrapper(deletion):
            task(*[install.pk] * (task in TASKS_OF_INSTALL))
        statements = deletion.statements
        drafts.delete(install.pk)
        Trouble.objects.all().delete()
        before += 1
    assert not Install.objects.exists()
