"""Jobs, which Lytics also calls works: our webhook export, its settings, its state and its log."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from lytics.api.client import Client
from lytics.api.outcomes import Answer
from lytics.api.reading import Fields, Many, One, count, flag, many, mapping, moment, one, text, texts

# Documented in the body of a request. One page of the API reference spells the path ``webhook-triggers``.
WEBHOOK = "webhook_triggers"
_FAULT = re.compile(r"fault-?(\d{1,9})?")
_ACTIVE = {"running", "sleeping", "initializing"}
_GONE = {"deleted", "deleting", "completed"}


@dataclass(frozen=True)
class Job:
    """One job. ``config`` has the settings under the names of Lytics' API.

    Documented states: running, sleeping, paused, pausing, initializing, failed, completed, deleted, deleting, unknown,
    and ``fault-N`` after N errors. ``fields`` is the job as Lytics sent it, for ``replace_job``.
    """

    job_id: str
    name: str
    workflow: str
    state: str
    config: Fields
    auth_ids: tuple[str, ...]
    created_at: datetime | None
    updated_at: datetime | None
    is_hidden: bool
    fields: Fields = field(repr=False)

    @property
    def faults(self) -> int:
        """The number of errors in a row; 0 when the state isn't a fault."""
        found = _FAULT.match(self.state)
        return int(found[1] or 1) if found else 0

    @property
    def is_active(self) -> bool:
        """Whether the job sends, or will send without a person's help: Lytics retries after a fault."""
        return self.state in _ACTIVE or self.faults > 0

    @property
    def is_gone(self) -> bool:
        """Whether the job will never send again."""
        return self.state in _GONE

    @property
    def segment_ids(self) -> tuple[str, ...]:
        return texts(self.config, "segment_ids")

    @property
    def shows_audiences(self) -> bool:
        """Whether all audiences of the job are readable. They are a required setting, so an empty list says nothing."""
        listed = self.config.get("segment_ids")
        return bool(self.segment_ids) and isinstance(listed, list) and len(self.segment_ids) == len(listed)


@dataclass(frozen=True)
class JobLog:
    """One entry of a job's log. Documented: ``context`` has ``added``, ``omitted`` and ``removed``.

    That ``omitted`` above zero means lost events is inferred: Lytics omits calls that were answered 400, 404 or 413,
    and the count also has users whom the job filters out.
    """

    job_id: str
    logged_at: datetime | None
    level: str
    code: str
    message: str = field(repr=False)
    added: int | None
    omitted: int | None
    removed: int | None
    fields: Fields = field(repr=False)


def jobs(client: Client, *, workflow: str = WEBHOOK, with_deleted: bool = False) -> Many[Job]:
    """The jobs of a workflow, or of all workflows when it is empty (inferred: the parameter is a filter).

    ``with_deleted`` adds completed, killed and hidden ones (documented).
    """
    query = {**({"workflow": workflow} if workflow else {}), **({"show_all": "true"} if with_deleted else {})}
    return many(client.get("v2", "job", query=query), _job, name="list of jobs")


def job(client: Client, job_id: str) -> One[Job]:
    return one(client.get("v2", "job", job_id), _job, name="job")


def job_logs(client: Client, job_id: str) -> Many[JobLog]:
    """The log of a job since its creation, oldest entry first (documented: sorted by time)."""
    answer = client.get("v2", "job", job_id, "logs", query={"include_errors": "true"})
    return many(answer, _job_log, name="log of a job")


def create_job(
    client: Client, *, name: str, auth_ids: Sequence[str], config: Mapping[str, Any], workflow: str = WEBHOOK
) -> One[Job]:
    """Create a job that doesn't run yet: without ``run_job=false`` it starts at once (documented).

    How a held job starts is unknown; ``resume`` is the likely way. Ten integrations an hour may be created, and
    200 exports may be active (documented). After a request without a response, look for the job before creating one.
    """
    content = {"name": name, "workflow": workflow, "auth_ids": list(auth_ids), "config": dict(config)}
    return one(client.post("v2", "job", query={"run_job": "false"}, content=content), _job, name="job")


def replace_job(
    client: Client,
    known: Job,
    *,
    config: Mapping[str, Any],
    name: str | None = None,
    auth_ids: Sequence[str] | None = None,
) -> One[Job]:
    """Write ``known`` back with another ``config``, and with ``auth_ids`` if they are given.

    Documented: the request replaces the job, and resets settings that it leaves out. So the whole job is written back
    as it was read, with unknown fields.
    """
    content = {**known.fields, "config": dict(config), "name": known.name if name is None else name}
    content |= {} if auth_ids is None else {"auth_ids": list(auth_ids)}
    return one(client.put("v2", "job", known.workflow, known.job_id, content=content), _job, name="job")


def pause(client: Client, job_id: str) -> Answer:
    return client.post("v2", "job", job_id, "pause")


def resume(client: Client, job_id: str) -> Answer:
    return client.post("v2", "job", job_id, "resume")


def bounce(client: Client, job_id: str) -> Answer:
    """Restart a job (documented)."""
    return client.post("v2", "job", job_id, "bounce")


def _job(fields: Fields) -> Job | None:
    job_id = text(fields, "id", "job_id")
    if not job_id:
        return None
    return Job(
        job_id=job_id,
        name=text(fields, "name"),
        workflow=text(fields, "workflow"),
        state=text(fields, "status", "state").lower() or "unknown",
        config=mapping(fields, "config"),
        auth_ids=texts(fields, "auth_ids"),
        created_at=moment(fields, "created"),
        updated_at=moment(fields, "updated"),
        is_hidden=flag(fields, "hidden"),
        fields=fields,
    )


def _job_log(fields: Fields) -> JobLog:
    context = mapping(fields, "context")
    return JobLog(
        job_id=text(fields, "job_id"),
        logged_at=moment(fields, "timestamp"),
        level=text(fields, "level").lower(),
        code=text(fields, "code"),
        message=text(fields, "message"),
        added=count(context, "added"),
        omitted=count(context, "omitted"),
        removed=count(context, "removed"),
        fields=fields,
    )
