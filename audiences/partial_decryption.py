"""The beginning and the end of a long encrypted value, with never more of it in memory than a piece."""

from base64 import urlsafe_b64decode
from collections.abc import Callable
from typing import NamedTuple

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CBC
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.hmac import HMAC
from cryptography.hazmat.primitives.padding import PKCS7
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured

from audiences.encryption import PIECE, WRONG_KEY

# Of Fernet's format: version and time, initialisation vector, cipher text, signature. A block is also a vector's size.
STAMP, BLOCK, SIGNATURE = 9, 16, 32
# Clear bytes of each end; whole blocks.
PART = 512 * BLOCK

# ``read(start, length)`` gives that part of the stored value.
Read = Callable[[int, int], bytes]


class Ends(NamedTuple):
    first: bytes
    last: bytes
    size: int


def decrypt_ends(read: Read, stored: int) -> Ends:
    """Decrypt the beginning and the end of a value, reading its ``stored`` bytes in pieces; also returns its size.

    The signature covers the whole value and identifies the key. Raises ``ImproperlyConfigured`` when no key fits or the
    value is too short to have two ends.
    """
    keys = [urlsafe_b64decode(key) for key in settings.FIELD_ENCRYPTION_KEYS]
    macs = [HMAC(key[:16], SHA256()) for key in keys]
    head = tail = unsigned = b""
    size = 0
    for start in range(0, stored, PIECE):
        piece = urlsafe_b64decode(read(start, PIECE))  # PIECE is a multiple of 4 base64 characters
        size += len(piece)
        head = head or piece[: STAMP + BLOCK + PART]
        tail = (tail + piece)[-PART - BLOCK - SIGNATURE :]
        unsigned += piece
        for mac in macs:
            mac.update(unsigned[:-SIGNATURE])
        unsigned = unsigned[-SIGNATURE:]
    for key, mac in zip(keys, macs, strict=True):
        if size >= STAMP + 2 * (BLOCK + PART) + SIGNATURE and _is_signed(mac, unsigned):
            first = _decrypt(key[16:], head[STAMP:])
            unpadder = PKCS7(8 * BLOCK).unpadder()
            last = unpadder.update(_decrypt(key[16:], tail[:-SIGNATURE])) + unpadder.finalize()
            return Ends(first, last, size - STAMP - BLOCK - SIGNATURE - (PART - len(last)))
    raise ImproperlyConfigured(WRONG_KEY)


def _is_signed(mac: HMAC, signature: bytes) -> bool:
    try:
        mac.verify(signature)
    except InvalidSignature:
        return False
    return True


def _decrypt(key: bytes, hidden: bytes) -> bytes:
    """``hidden`` begins with the block before it: the vector, or cipher text."""
    decryptor = Cipher(AES(key), CBC(hidden[:BLOCK])).decryptor()
    return decryptor.update(hidden[BLOCK:]) + decryptor.finalize()
