"""For load balancers and people: is this process alive, and could it take a call now."""

from django.db import connection
from django.db.migrations.executor import MigrationExecutor
from django.db.utils import Error
from django.http import HttpRequest, JsonResponse

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
