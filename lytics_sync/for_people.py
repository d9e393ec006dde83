"""Middleware for people's pages: sessions, accounts and messages. Calls of Lytics pass without it.

A call has a token and no cookie, so this middleware would find nothing to do there, and would cost about a tenth of the
CPU time that a call of one event spends outside the database and the web server. Django's middleware against CSRF stays
in the settings under its own name, because ``check --deploy`` looks for it; it costs a call little.
"""

from typing import cast

from django.contrib.auth.middleware import AuthenticationMiddleware
from django.contrib.messages.middleware import MessageMiddleware
from django.contrib.sessions.middleware import SessionMiddleware
from django.http import HttpRequest
from django.http.response import HttpResponseBase
from django.utils.deprecation import MiddlewareMixin

from lytics_sync.routing import is_call


class _ForPeople(MiddlewareMixin):
    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        if is_call(request):
            return cast(HttpResponseBase, self.get_response(request))
        return cast(HttpResponseBase, super().__call__(request))


class Sessions(_ForPeople, SessionMiddleware):
    pass


class Accounts(_ForPeople, AuthenticationMiddleware):
    pass


class Messages(_ForPeople, MessageMiddleware):
    pass
