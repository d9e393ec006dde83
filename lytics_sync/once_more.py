"""Retry a request once in a new database session when its session turned out to be unusable."""

from collections.abc import Callable
from typing import Any

from django.db import DEFAULT_DB_ALIAS, connection, connections
from django.http import HttpRequest
from django.http.response import HttpResponseBase

from audiences.sessions import READ_ONLY
from lytics_sync.database_away import DatabaseAway, note

Handler = Callable[[HttpRequest], HttpResponseBase]

_READING = ("GET", "HEAD", "OPTIONS")


def once_more(get_response: Handler) -> Handler:
    """Outside the other middleware, because they read sessions and accounts.

    A request that writes is retried only when nothing was stored: the session was read-only, no transaction was
    committed, and no statement outside a transaction wrote.
    """

    def middleware(request: HttpRequest) -> HttpResponseBase:
        response = answer(request)
        if isinstance(response, DatabaseAway):
            note(response)
        return response

    def answer(request: HttpRequest) -> HttpResponseBase:
        session: Any = connections[DEFAULT_DB_ALIAS]
        session.lost, session.committed = "", False
        if request.method in _READING:
            response = get_response(request)
            return get_response(request) if _is_lost(response) else response
        with session.execute_wrapper(_note_writing):
            response = get_response(request)
        if _is_lost(response) and session.lost == READ_ONLY and not session.committed:
            return get_response(request)
        return response

    return middleware


def _is_lost(response: HttpResponseBase) -> bool:
    session: Any = connection
    return (response.status_code == 500 or isinstance(response, DatabaseAway)) and bool(session.lost)


def _note_writing(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
    result = execute(sql, params, many, context)
    session = context["connection"]
    if not session.in_atomic_block and str(sql).lstrip()[:6].upper() != "SELECT":
        session.committed = True
    return result
