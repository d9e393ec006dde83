"""Reading settings from the environment: a few readers that fail loudly, and the local stack's own file.

A setting is looked for in the process environment first, then in ``$DATA_DIR/local.env``, which the local
runner writes (mode 0600) when it makes this checkout's secrets and starts the embedded servers. So
``python manage.py …`` in a second terminal talks to the stack that ``make run`` started.
"""

import json
import os
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from urllib.parse import urlsplit

from django.core.exceptions import ImproperlyConfigured

PROJECT_DIR = Path(__file__).resolve().parent.parent

# Former names of settings, and the current ones. A former name that was ignored would silently restore the default.
RENAMED = {
    "AFFIRM_AFTER_SECONDS": "RECONCILE_AFTER_SECONDS",
    "BRAKE_FIRST_SECONDS": "BACKOFF_FIRST_SECONDS",
    "BRAKE_LONGEST_SECONDS": "BACKOFF_LONGEST_SECONDS",
    "PROBE_SECONDS": "BACKOFF_FIXED_SECONDS",
}


def data_dir() -> Path:
    """Where the local stack keeps its data: ``DATA_DIR``, or ``.data`` in the checkout."""
    return Path(os.environ.get("DATA_DIR") or PROJECT_DIR / ".data").expanduser().absolute()


def damaged(what: str) -> str:
    """Tell a person that the local stack's own file is damaged."""
    return (
        f"{data_dir() / 'local.env'} is damaged: {what}. Only it has the encryption key and the passwords of the data"
        " beside it. Put it back from a backup, or start afresh with another DATA_DIR."
    )


@cache
def _local_file() -> dict[str, str]:
    try:
        text = (data_dir() / "local.env").read_text(encoding="utf-8")
    except OSError:  # no local stack here, or its file isn't readable: all settings come from the environment
        return {}
    except UnicodeDecodeError:
        raise ImproperlyConfigured(damaged("it is no text")) from None
    pairs = (line.split("=", 1) for line in text.splitlines() if "=" in line and not line.startswith("#"))
    return {name.strip(): value.strip() for name, value in pairs}


def refuse_former_names() -> None:
    """Raise ``ImproperlyConfigured`` when a setting has its former name, and name the current one."""
    found = [f"{old} is now {new}" for old, new in RENAMED.items() if os.environ.get(old) or _local_file().get(old)]
    if found:
        raise ImproperlyConfigured(f"Settings were renamed: {', '.join(found)}. Set them by their new names only.")


# A host name, an IP address or "*". A dot before a host name includes its subdomains.
_HOST = re.compile(r"\*|\.?[^\s/:\[\]@]+|\[[0-9A-Fa-f:.]+\]")


def text(name: str, default: str | None = None) -> str:
    """The setting ``name`` as text; without a default it must be there (``ImproperlyConfigured``)."""
    value = os.environ.get(name) or _local_file().get(name)
    if value:
        return value
    if default is None:
        raise ImproperlyConfigured(f"{name} is not set. `make run` sets it for a local stack; see .env.example.")
    return default


def url(name: str, default: str) -> str:
    """The setting ``name`` as an http or https URL, or empty if the default is (``ImproperlyConfigured`` otherwise).

    The refusal doesn't quote it: the URLs of some channels are secrets.
    """
    value = text(name, default)
    if value == default:
        return value
    try:
        parts = urlsplit(value)
        # ``port`` raises ``ValueError`` when it is no number or too large.
        is_usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        is_usable = False
    if not is_usable or any(character.isspace() for character in value):
        raise ImproperlyConfigured(f"{name} must be a URL that begins with https:// or http:// and names a host.")
    return value


def integer(name: str, default: int, *, least: int = 0, most: int | None = None) -> int:
    """The setting ``name`` as a whole number from ``least`` to ``most`` (``ImproperlyConfigured`` otherwise)."""
    value = text(name, str(default))
    try:
        read = int(value)
    except ValueError as error:
        raise ImproperlyConfigured(f"{name} must be a whole number, not {value!r}.") from error
    if read < least:
        raise ImproperlyConfigured(f"{name} must be {least} or more, not {value!r}.")
    if most is not None and read > most:
        raise ImproperlyConfigured(f"{name} must be {most} or less, not {value!r}.")
    return read


def number(name: str, default: float, *, is_positive: bool = False) -> float:
    """The setting ``name`` as a number, zero allowed (``ImproperlyConfigured`` otherwise). Its unit is in its name."""
    value = text(name, str(default))
    try:
        read = float(value)
    except ValueError as error:
        raise ImproperlyConfigured(f"{name} must be a number, not {value!r}.") from error
    if not 0 <= read < float("inf") or (is_positive and not read):
        raise ImproperlyConfigured(
            f"{name} must be {'more than zero' if is_positive else 'zero or more'}, not {value!r}."
        )
    return read


def positive(name: str, default: float) -> float:
    """The setting ``name`` as a number above zero (``ImproperlyConfigured`` otherwise). Its unit is in its name."""
    return number(name, default, is_positive=True)


def flag(name: str, default: bool) -> bool:
    """The setting ``name`` as yes or no (``ImproperlyConfigured`` for any other word)."""
    words = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}
    value = text(name, str(default)).lower()
    if value not in words:
        raise ImproperlyConfigured(f"{name} must be one of {', '.join(words)}, not {value!r}.")
    return words[value]


def json_object(name: str) -> dict[str, object] | None:
    """The setting ``name`` as a JSON object, or None when it isn't set (``ImproperlyConfigured`` for anything else)."""
    value = text(name, "{}")
    try:
        parsed = json.loads(value)
    except ValueError as error:
        raise ImproperlyConfigured(f"{name} must be a JSON object, not {value[:60]!r}.") from error
    if not isinstance(parsed, dict):
        raise ImproperlyConfigured(f"{name} must be a JSON object, not {value[:60]!r}.")
    return parsed or None


def one_of(name: str, choices: Sequence[str], default: str) -> str:
    """The setting ``name`` as one of ``choices`` (``ImproperlyConfigured`` for any other word)."""
    value = text(name, default).lower()
    if value not in choices:
        raise ImproperlyConfigured(f"{name} must be one of {', '.join(choices)}, not {value!r}.")
    return value


def hosts(name: str, default: str) -> list[str]:
    """The setting ``name`` as a list of host names (``ImproperlyConfigured`` otherwise).

    Django would accept a URL or a port, and then refuse each request.
    """
    for host in (found := words(name, default)):
        if not _HOST.fullmatch(host):
            raise ImproperlyConfigured(f"{name} must have host names only, without https:// and port, not {host!r}.")
    return found


def words(name: str, default: str = "") -> list[str]:
    """The setting ``name`` as a list, split at commas."""
    return [word.strip() for word in text(name, default).split(",") if word.strip()]
