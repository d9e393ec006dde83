"""Who calls: an install's public id in the URL and one of its tokens in the header."""

from typing import Any

from rest_framework.authentication import BaseAuthentication
from rest_framework.request import Request

from audiences import sessions
from audiences.models import Install, Token
from audiences.receiving import invalid_tokens, tokens


class TokenAuthentication(BaseAuthentication):
    """``Authorization: Bearer <token>``, or the token alone. All failures get the same response."""

    def authenticate(self, request: Request) -> tuple[Install, Token]:
        public_id: Any = (request.parser_context or {}).get("kwargs", {}).get("public_id", "")
        authorization = request.META.get("HTTP_AUTHORIZATION", "")
        install, token = sessions.read(lambda: tokens.authenticate(public_id=public_id, authorization=authorization))
        if install is None or token is None:
            raise invalid_tokens.refusal(request, install, words="This URL and this token do not belong together.")
        return install, token

    def authenticate_header(self, request: Request) -> str:
        """Without it, DRF would answer 403."""
        return "Bearer"
