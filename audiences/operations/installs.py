"""Making an install, and what its owner pastes into Lytics."""

from django.conf import settings
from django.core.exceptions import ValidationError
from django.db import transaction
from django.urls import reverse

from audiences import naming
from audiences.encryption import UNREADABLE, Unreadable
from audiences.models import Install, Token
from audiences.receiving import tokens


def create(install: Install) -> Token:
    """Validate and store a new install together with its first token. Raises ``ValidationError``."""
    install.full_clean()
    if not naming.is_one_line(install.name):
        raise ValidationError({"name": [naming.NOT_ONE_LINE]})
    with transaction.atomic():
        install.save(force_insert=True)
        return tokens.create(install)


def switch(install_id: int, *, on: bool) -> bool:
    """Switch an install on or off. False when it was so already."""
    return bool(Install.objects.filter(pk=install_id, enabled=not on).update(enabled=on))


def change(install: Install, **columns: int) -> None:
    """Validate and store new values of settings. Raises ``ValidationError``."""
    for name, value in columns.items():
        setattr(install, name, value)
    install.full_clean()
    install.save(update_fields=list(columns))


def webhook_url(install: Install) -> str:
    return str(settings.PUBLIC_URL) + reverse("webhook", args=[install.public_id])


def authorization(token: Token) -> str:
    """The value of the ``Authorization`` header."""
    return f"Bearer {token.secret}" if not isinstance(token.secret, Unreadable) else f"The token {UNREADABLE}."
