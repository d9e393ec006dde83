"""Secrets at rest: encrypted with the newest key, readable with any of ``FIELD_ENCRYPTION_KEYS``."""

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from cryptography.fernet import Fernet, InvalidToken, MultiFernet
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.db import models


@lru_cache(maxsize=4)
def _ring(keys: Sequence[str]) -> MultiFernet:
    if not keys:
        raise ImproperlyConfigured("FIELD_ENCRYPTION_KEYS is empty; see .env.example.")
    return MultiFernet([Fernet(key) for key in keys])


def encrypt(clear: bytes) -> bytes:
    """``clear`` encrypted with the first of ``FIELD_ENCRYPTION_KEYS``."""
    return _ring(tuple(settings.FIELD_ENCRYPTION_KEYS)).encrypt(clear)


def decrypt(hidden: bytes) -> bytes:
    """What ``encrypt`` was given. Raises ``ImproperlyConfigured`` when none of the keys opens it."""
    try:
        return _ring(tuple(settings.FIELD_ENCRYPTION_KEYS)).decrypt(hidden)
    except InvalidToken as error:
        raise ImproperlyConfigured(
            "A stored secret opens with none of FIELD_ENCRYPTION_KEYS; put back the key it was written with."
        ) from error


if TYPE_CHECKING:
    _TextField = models.TextField[str, str]
else:
    _TextField = models.TextField  # Django's fields are generic for the type checker only


class EncryptedTextField(_TextField):
    """Text that PostgreSQL only ever sees encrypted. It can't be searched."""

    def get_prep_value(self, value: Any) -> Any:
        return encrypt(str(value).encode()).decode() if value else ""

    def from_db_value(self, value: str | None, expression: object, connection: object) -> str:
        return decrypt(value.encode()).decode() if value else ""
