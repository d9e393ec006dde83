"""Drafts: installs whose API key ODP has never accepted. And deleting an install that was a mistake.

A draft takes calls and stores them like any other install; its events are sent once ODP accepts the key. The only
writer of ``Install.key_accepted_at``, ``key_asked_at`` and ``key_problem``, and the only place that deletes an install.
"""

from collections.abc import Collection
from typing import Any, NamedTuple

from django.db import IntegrityError, ProgrammingError, transaction
from django.db.models import PROTECT
from django.db.models.functions import Now

from audiences import naming, sql
from audiences.models import Audience, Delivery, Forgotten, Install, Parked, Receipt, Trial

# PostgreSQL's code for a right that the role of the process doesn't have.
_NO_RIGHT = "42501"
# Why rows of these kinds keep their install.
_REASONS = {
    Audience: "It has audiences and events.",
    Receipt: "It has received calls.",
    Parked: "It has received calls.",
    Trial: "A test customer was sent with it.",
    Delivery: "A test customer was sent with it.",
    Forgotten: "A customer was forgotten in it, and the record of that is kept.",
}


class Kept(NamedTuple):
    install_id: int


_KEEP = sql.beside(__file__).query("keep_installs", Kept._make)


class NotGrantedError(Exception):
    """The database role of this process may not delete installs."""


def accepted(install_id: int) -> None:
    """ODP has accepted the key: it answered a check, or an audience was made with it."""
    Install.objects.filter(pk=install_id, key_accepted_at=None).update(key_accepted_at=Now())


def note_key(install_id: int, *, problem: str) -> None:
    """Record ODP's response to the API key; ``problem`` is empty when ODP accepted it."""
    Install.objects.filter(pk=install_id).update(key_asked_at=Now(), key_problem=problem)
    if not problem:
        accepted(install_id)


def forget(install_id: int) -> None:
    """Forget whether ODP accepts the key, because the account may have changed.

    An install with audiences of Lytics in ODP can't change its account here, so it doesn't become a draft.
    """
    Install.objects.filter(pk=install_id).update(key_asked_at=None, key_problem="")
    made = Audience.objects.filter(install=install_id, provisioned_at__isnull=False)
    if not made.exclude(segment_id=naming.TEST_SEGMENT_ID).exists():
        Install.objects.filter(pk=install_id).update(key_accepted_at=None)


def missing(install: Install) -> str:
    """Why ODP has not accepted the key, in ODP's words where it was asked."""
    return install.key_problem or "ODP has not been asked whether it accepts the API key."


def undeletable(install: Install) -> str:
    """Why an install can't be deleted; empty when all rows that refer to it would be deleted with it."""
    protecting = [each.related_model for each in Install._meta.related_objects if each.on_delete is PROTECT]
    models: list[Any] = [*_REASONS, *protecting]
    for model in models:
        if model._default_manager.filter(install=install).exists():
            why = _REASONS.get(model) or f"It has {model._meta.verbose_name_plural}."
            return f"{why} Switch it off instead."
    return ""


def keep(install_ids: Collection[int]) -> set[int]:
    """Keep installs from being deleted until the transaction ends. Returns the ids of those that still exist.

    A task that has read an install and stores a row that refers to it calls this first.
    """
    return {row.install_id for row in _KEEP.run(installs=list(install_ids)).all()} if install_ids else set()


def delete(install_id: int) -> bool:
    """Delete an install with its tokens. False when it is gone, or can't be deleted any more.

    A call that arrives meanwhile waits for the row's lock and then finds no install: it is answered 503 or 401, and
    nothing of it is stored.
    """
    try:
        with transaction.atomic():
            install = Install.objects.select_for_update().filter(pk=install_id).first()
            if install is None or undeletable(install):
                return False
            install.delete()
    except ProgrammingError as error:
        if getattr(error.__cause__, "sqlstate", "") != _NO_RIGHT:
            raise
        raise NotGrantedError from error
    except IntegrityError:
        # During an upgrade: processes of the next version store rows of a table that this version doesn't know.
        return False
    return True
