"""For load balancers and people: is this process alive, and could it take a call now."""

from django.db import connection
from django.db.migrations.executor import MigrationExecutor
from django.db.utils import Error
from django.http import HttpRequest, JsonResponse

from audiences import heartbeats

_ready_once = False


def live(request: HttpRequest) -> JsonResponse:
    return JsonResponse({"status": "alive"})


def ready(request: HttpRequest) -> JsonResponse:
    """200 when the database answers and is migrated: then a call can be stored. The broker is not needed for that."""
    try:
        problem = _problem()
    except Error as error:
        problem = f"the database does not answer: {type(error).__name__}"
    if problem:
        return JsonResponse({"status": "not ready", "reason": problem}, status=503)
    return JsonResponse({"status": "ready"})


def workers(request: HttpRequest) -> JsonResponse:
    """200 when at least one worker has proved lately that work reaches it; with each one's last heartbeat."""
    try:
        pulse = heartbeats.pulse()
    except Error as error:
        return JsonResponse({"status": f"the database does not answer: {type(error).__name__}"}, status=503)
    told = [
        {"name": worker.name, "version": worker.version, "heard": worker.beat_at, "worked": worker.worked_at}
        for worker in (*pulse.answering, *pulse.silent)
    ]
    status = "answering" if pulse.answering else "silent"
    return JsonResponse({"status": status, "workers": told}, status=200 if pulse.answering else 503)


def _problem() -> str:
    global _ready_once
    if not _ready_once:
        executor = MigrationExecutor(connection)
        if executor.migration_plan(executor.loader.graph.leaf_nodes()):
            return "the database is not migrated"
        _ready_once = True
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")
    return ""
