"""Secrets at rest: encrypted with the newest key, readable with any of ``FIELD_ENCRYPTION_KEYS``."""

import io
import os
import time
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from cryptography.fernet import Fernet, InvalidToken, MultiFernet
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CBC
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.hmac import HMAC
from cryptography.hazmat.primitives.padding import PKCS7
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.db import models

# Bytes encrypted at a time, so that memory stays bounded for a long value.
PIECE = 1 << 20
UNREADABLE = "can't be decrypted with the present FIELD_ENCRYPTION_KEYS"
WRONG_KEY = "FIELD_ENCRYPTION_KEYS has no key that decrypts a stored secret. Add the key that encrypted it."


@lru_cache(maxsize=4)
def _ring(keys: Sequence[str]) -> MultiFernet:
    if not keys:
        raise ImproperlyConfigured("FIELD_ENCRYPTION_KEYS is empty; see .env.example.")
    return MultiFernet([Fernet(key) for key in keys])


def encrypt(clear: bytes) -> bytes:
    """``clear`` encrypted with the first of ``FIELD_ENCRYPTION_KEYS``."""
    if len(clear) > PIECE:
        return _in_pieces(settings.FIELD_ENCRYPTION_KEYS[0], clear)
    return _ring(tuple(settings.FIELD_ENCRYPTION_KEYS)).encrypt(clear)


def _in_pieces(key: str, clear: bytes) -> bytes:
    """What Fernet makes of ``clear``, with one copy in memory instead of its six: a parked body may be large."""
    both = urlsafe_b64decode(key)
    signing, encryption, iv = both[:16], both[16:], os.urandom(16)
    padder, encryptor = PKCS7(128).padder(), Cipher(AES(encryption), CBC(iv)).encryptor()
    signature = HMAC(signing, SHA256())
    token, rest = io.BytesIO(), b"\x80" + int(time.time()).to_bytes(8, "big") + iv
    signature.update(rest)
    view = memoryview(clear)
    for start in range(0, len(clear) + PIECE, PIECE):
        padded = padder.update(view[start : start + PIECE]) if start < len(clear) else padder.finalize()
        hidden = encryptor.update(padded)
        signature.update(hidden)
        rest += hidden
        whole = len(rest) - len(rest) % 3  # base64 is written in groups of three bytes until the end is known
        token.write(urlsafe_b64encode(rest[:whole]))
        rest = rest[whole:]
    token.write(urlsafe_b64encode(rest + encryptor.finalize() + signature.finalize()))
    return token.getvalue()


def decrypt(hidden: bytes) -> bytes:
    """Decrypt a value of ``encrypt``. Raises ``ImproperlyConfigured`` if no key decrypts it."""
    try:
        return _ring(tuple(settings.FIELD_ENCRYPTION_KEYS)).decrypt(hidden)
    except InvalidToken as error:
        raise ImproperlyConfigured(WRONG_KEY) from error


if TYPE_CHECKING:
    _TextField = models.TextField[str, str]
else:
    _TextField = models.TextField  # Django's fields are generic for the type checker only


class Unreadable(str):
    """A placeholder for a secret that no configured key decrypts. Saving it keeps the stored ciphertext."""

    __slots__ = ("hidden",)
    hidden: str

    def __new__(cls, hidden: str) -> "Unreadable":
        made = super().__new__(cls, UNREADABLE)
        made.hidden = hidden
        return made


def opened(secret: str) -> str:
    """A secret that is about to be used. Raises ``ImproperlyConfigured`` where a page would show ``UNREADABLE``."""
    if isinstance(secret, Unreadable):
        raise ImproperlyConfigured(WRONG_KEY)
    return secret


class EncryptedTextField(_TextField):
    """Text that is stored encrypted, and so can't be searched.

    A row loads even without the right key, so that pages still open; code that uses the secret calls ``opened``.
    """

    def get_prep_value(self, value: Any) -> Any:
        if isinstance(value, Unreadable):
            return value.hidden
        return encrypt(str(value).encode()).decode() if value else ""

    def from_db_value(self, value: str | None, expression: object, connection: object) -> str:
        if not value:
            return ""
        try:
            return decrypt(value.encode()).decode()
        except ImproperlyConfigured:
            return Unreadable(value)
