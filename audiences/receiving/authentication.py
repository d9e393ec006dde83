"""Who calls: an install's public id in the URL and one of its tokens in the header.

A process remembers callers whose last call was stored as a plain call. Their next call needs no round trip for the
token: the statement that stores it checks that the token is still live and that the install's settings are the same.
Every other response is given only after the token was looked up.
"""

from dataclasses import dataclass, field
from typing import Any

from rest_framework.authentication import BaseAuthentication
from rest_framework.request import Request

from audiences import sessions
from audiences.models import Install, Token
from audiences.receiving import invalid_tokens, tokens

# The most callers that a process remembers, more than there are tokens. When it is reached, all are dropped.
REMEMBERED_AT_MOST = 1_000

_remembered: dict[tuple[str, str], tuple[Install, Token]] = {}


@dataclass
class Caller:
    """The caller of a call. With ``is_remembered``, the token has not been checked again since an earlier call."""

    request: Request
    install: Install
    token: Token
    key: tuple[str, str] = field(repr=False)
    is_remembered: bool

    def look_up(self) -> Install:
        """Look the token up, unless that was done for this call. Raises what a caller with a wrong token gets."""
        if self.is_remembered:
            self.forget()
            self.install, self.token = _look_up(self.request)
            self.is_remembered = False
        return self.install

    def remember(self) -> None:
        if not self.is_remembered:
            if len(_remembered) >= REMEMBERED_AT_MOST:
                _remembered.clear()
            _remembered[self.key] = self.install, self.token

    def forget(self) -> None:
        _remembered.pop(self.key, None)


class TokenAuthentication(BaseAuthentication):
    """``Authorization: Bearer <token>``, or the token alone. All failures get the same response."""

    def authenticate(self, request: Request) -> tuple[Install, Caller]:
        public_id, authorization = _credentials(request)
        key = public_id, tokens.presented(authorization)
        known = _remembered.get(key)
        install, token = known or _look_up(request)
        return install, Caller(request, install, token, key, is_remembered=known is not None)

    def authenticate_header(self, request: Request) -> str:
        """Without it, DRF would answer 403."""
        return "Bearer"


def _credentials(request: Request) -> tuple[str, str]:
    kwargs: Any = (request.parser_context or {}).get("kwargs", {})
    return kwargs.get("public_id", ""), request.META.get("HTTP_AUTHORIZATION", "")


def _look_up(request: Request) -> tuple[Install, Token]:
    public_id, authorization = _credentials(request)
    install, token = sessions.read(lambda: tokens.authenticate(public_id=public_id, authorization=authorization))
    if install is None or token is None:
        raise invalid_tokens.refusal(request, install, words="This URL and this token do not belong together.")
    return install, token
