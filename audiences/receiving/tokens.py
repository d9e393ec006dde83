"""Tokens that Lytics sends: made, compared through a digest, rotated two at a time."""

import hashlib
import hmac
import secrets
import time
from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Any, NamedTuple

import structlog
from django.db import Error, transaction
from django.db.models import Q
from django.utils.timezone import now

from audiences import sql
from audiences.encryption import Unreadable
from audiences.models import Install, Token

log = structlog.get_logger(__name__)

PREFIX = "lysync_"
# Seconds between updates of a token's last use: exact enough for a page, and most calls need no write.
USE_NOTED_EVERY = 60.0

_noted: dict[int, float] = {}

_INSTALL = (
    *("id", "public_id", "name", "enabled"),
    *("identifier_field", "allow_top_level_identifier", "forget_missing_identifiers"),
)


class Presented(NamedTuple):
    """An install, and one of its valid tokens, or None twice."""

    token_id: int | None
    digest: str | None
    install: Install


def _presented(row: Sequence[Any]) -> Presented:
    token_id, known, *install = row
    return Presented(token_id, known, Install.from_db("default", _INSTALL, install))


_FIND = sql.beside(__file__, install_columns=", ".join(f"install.{name}" for name in _INSTALL)).query(
    "install_with_tokens", _presented, prepared=True
)


class NoFreeSlotError(Exception):
    """Both tokens of the install are live; one has to be revoked first."""


def digest(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


def create(install: Install, *, name: str = "") -> Token:
    """Create a token of 256 random bits; at most two are valid at a time. Raises ``NoFreeSlotError``."""
    with transaction.atomic():
        Install.objects.select_for_update(no_key=True).get(pk=install.pk)
        install.tokens.filter(revoked_at=None, expires_at__lte=now()).update(revoked_at=now())
        taken = set(install.tokens.filter(revoked_at=None).values_list("slot", flat=True))
        free = next((slot for slot in (1, 2) if slot not in taken), None)
        if free is None:
            raise NoFreeSlotError("Two tokens are live already; revoke one of them first.")
        secret = PREFIX + secrets.token_urlsafe(32)
        return Token.objects.create(install=install, slot=free, name=name, digest=digest(secret), secret=secret)


def live(install: Install) -> list[Token]:
    """The install's valid tokens, newest first. Secrets are decrypted on access."""
    return live_of([install])[install.pk]


def live_of(installs: Collection[Install]) -> dict[int, list[Token]]:
    """The same for several installs, by install id, with one query."""
    usable = Q(expires_at=None) | Q(expires_at__gt=now())
    found: dict[int, list[Token]] = {install.pk: [] for install in installs}
    valid = Token.objects.filter(usable, install__in=list(found), revoked_at=None)
    for token in valid.order_by("-created_at").defer("secret"):
        found[token.install_id].append(token)
    return found


def revoke(token: Token, *, at: datetime | None = None) -> None:
    """End a token now, or at a chosen time."""
    Token.objects.filter(pk=token.pk, revoked_at=None).update(**({"expires_at": at} if at else {"revoked_at": now()}))


def authenticate(*, public_id: str, authorization: str) -> tuple[Install | None, Token | None]:
    """The install with that public id, and its valid token from the header, with or without ``Bearer``.

    Both have only the fields that receiving a call needs. The work is the same whether or not the install exists, so
    that the response time reveals nothing.
    """
    secret = presented(authorization)
    install: Install | None = None
    match: Token | None = None
    for row in _FIND.run(public_id=public_id).all():
        install = install or row.install
        if hmac.compare_digest(secret, row.digest or ""):
            match = Token.from_db("default", ["id", "install_id", "digest"], [row.token_id, install.pk, row.digest])
    return install, match


def presented(authorization: str) -> str:
    """The digest of the secret in the header."""
    return digest(_secret(authorization))


def _secret(authorization: str) -> str:
    """Header lines are typed by people: blanks around the token, and any case of the word before it, are fine."""
    words = authorization.split()
    return words[1] if len(words) == 2 and words[0].lower() == "bearer" else authorization.strip()


def note_use(token: Token, *, source: str | None) -> None:
    """Record that the token was used, at most once a minute and process. The call is stored, so no error is raised."""
    if time.monotonic() - _noted.get(token.pk, -USE_NOTED_EVERY) < USE_NOTED_EVERY:
        return
    _noted[token.pk] = time.monotonic()
    try:
        Token.objects.filter(pk=token.pk).update(last_used_at=now(), last_used_from=source)
    except Error as error:
        log.warning("use of a token not recorded", token=token.pk, reason=type(error).__name__)


def ending(token: Token) -> str:
    """The last four characters, by which people distinguish two tokens."""
    return "unreadable" if isinstance(token.secret, Unreadable) else f"…{token.secret[-4:]}"
