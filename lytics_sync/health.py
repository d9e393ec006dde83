"""Health for load balancers and people: whether the process lives, can store a call, and deliveries progress."""

from django.db.utils import Error
from django.http import HttpRequest, JsonResponse

from audiences import readiness, sessions
from audiences.insight import heartbeats, stalled_work


def live(request: HttpRequest) -> JsonResponse:
    """Under gunicorn ``lytics_sync/web_worker.py`` answers instead, because this needs a free thread."""
    return JsonResponse({"status": "alive"})


def ready(request: HttpRequest) -> JsonResponse:
    """200 when a call can be stored and stored secrets can be decrypted. The broker is not needed for that."""
    try:
        problem = readiness.problem()
    except Error as error:
        problem = f"the database does not answer: {type(error).__name__}"
    if problem:
        return JsonResponse({"status": "not ready", "reason": problem}, status=503)
    return JsonResponse({"status": "ready"})


def workers(request: HttpRequest) -> JsonResponse:
    """200 when a worker's heartbeat has arrived within a minute and deliverable work progresses."""
    try:
        pulse, stuck = sessions.read(lambda: (heartbeats.pulse(), stalled_work.stuck()))
    except Error as error:
        return JsonResponse({"status": f"the database does not answer: {type(error).__name__}"}, status=503)
    listed = [
        {"name": worker.name, "version": worker.version, "heard": worker.beat_at, "worked": worker.worked_at}
        for worker in (*pulse.answering, *pulse.silent)
    ]
    status = "silent" if not pulse.answering else "stuck" if stuck else "answering"
    words = {"reason": stuck.words} if stuck else {}
    return JsonResponse({"status": status, **words, "workers": listed}, status=200 if status == "answering" else 503)
