"""Reading settings from the environment: a few readers that fail loudly, and the local stack's own file.

A setting is looked for in the process environment first, then in ``$DATA_DIR/local.env``, which the local
runner writes (mode 0600) when it makes this checkout's secrets and starts the embedded servers. So
``python manage.py …`` in a second terminal talks to the stack that ``make run`` started.
"""

import json
import os
import re
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

from django.core.exceptions import ImproperlyConfigured

Number = TypeVar("Number", int, float)

PROJECT_DIR = Path(__file__).resolve().parent.parent

# Former names of settings, and the current ones. A former name that was ignored would silently restore the default.
RENAMED = {
    "AFFIRM_AFTER_SECONDS": "RECONCILE_AFTER_SECONDS",
    "BRAKE_FIRST_SECONDS": "BACKOFF_FIRST_SECONDS",
    "BRAKE_LONGEST_SECONDS": "BACKOFF_LONGEST_SECONDS",
    "PROBE_SECONDS": "BACKOFF_FIXED_SECONDS",
}


def in_environment(variable: str) -> str:
    """A variable of this process without white space at its ends; empty if it isn't set."""
    return os.environ.get(variable, "").strip()


def data_dir() -> Path:
    """Where the local stack keeps its data: ``DATA_DIR``, or ``.data`` in the checkout."""
    return Path(in_environment("DATA_DIR") or PROJECT_DIR / ".data").expanduser().absolute()


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
    found = [f"{old} is now {new}" for old, new in RENAMED.items() if in_environment(old) or _local_file().get(old)]
    if found:
        raise ImproperlyConfigured(f"Settings were renamed: {', '.join(found)}. Set them by their new names only.")


# A host name, an IP address or "*". A dot before a host name includes its subdomains.
_HOST = re.compile(r"""\*|\.?[^\s/:\[\]@?#,"']+|\[[0-9A-Fa-f:.]+\]""")
_IPV6 = re.compile(r"[0-9A-Fa-f:]*:[0-9A-Fa-f:.]*")
_ORIGIN = re.compile(r"https?://(\*\.)?([^\s/:\[\]@?#*]+|\[[0-9A-Fa-f:.]+\])(:(?P<port>[0-9]{1,5}))?")
_EMAIL = re.compile(r"([^<>]*<)?[^\s@<>]+@[^\s@<>]+>?")
# Characters of a wrong value that a refusal shows.
_SHOWN = 60


def _given(name: str) -> str:
    """The value without white space at its ends, such as a line end of the file that it came from; empty if not set."""
    value = in_environment(name) or _local_file().get(name, "")
    if len(value) > 1 and value[0] == value[-1] and value[0] in "\"'":
        raise ImproperlyConfigured(f"{name} must be without the quotation marks around it: they would be a part of it.")
    return value


def _refuse_invisible(name: str, value: str) -> None:
    """Raise ``ImproperlyConfigured`` for a line end, a control or zero-width character, or a byte that isn't UTF-8."""
    if not value.isprintable():
        raise ImproperlyConfigured(f"{name} must have no line end and no invisible character in it.")


def _shown(value: str) -> str:
    """The value as a refusal quotes it: not too long, and without the password of a URL."""
    value = re.sub(r"//\S*@", "//…@", value)
    return repr(value if len(value) <= _SHOWN else f"{value[:_SHOWN]}…")


def text(name: str, default: str | None = None) -> str:
    """The setting ``name`` as text in one line; without a default it must be there (``ImproperlyConfigured``)."""
    if value := _given(name):
        _refuse_invisible(name, value)
        return value
    if default is None:
        raise ImproperlyConfigured(f"{name} is not set. `make run` sets it for a local stack; see .env.example.")
    return default


def url(name: str, default: str, *, is_base: bool = False) -> str:
    """The setting ``name`` as an http or https URL, or empty if the default is (``ImproperlyConfigured`` otherwise).

    The refusal doesn't quote it: the URLs of some channels are secrets. A base, in front of paths, has no user name,
    query or fragment; it is returned without a slash at its end.
    """
    value = text(name, default)
    if value == default:
        return value
    try:
        parts = urlsplit(value)
        # ``port`` raises ``ValueError`` when it is no number or too large.
        is_usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
        is_usable = is_usable and not parts.netloc.endswith(":")
    except ValueError:
        is_usable = False
    if not is_usable or any(character.isspace() for character in value):
        raise ImproperlyConfigured(f"{name} must be a URL that begins with https:// or http:// and names a host.")
    if is_base and (parts.username is not None or "?" in value or "#" in value):
        raise ImproperlyConfigured(f"{name} must be a URL without user name, password, ? and #.")
    return value.rstrip("/") if is_base else value


def host_of(url: str) -> str:
    """The host that a URL names, as ``hosts`` reads it: IPv6 in brackets."""
    parts = urlsplit(url)
    return parts.netloc.removesuffix(f":{parts.port}")


def integer(name: str, default: int, *, least: int, most: int, zero: bool = False) -> int:
    """The setting ``name`` as a whole number in a range, or 0 with ``zero`` (``ImproperlyConfigured`` otherwise)."""
    return _in_range(name, text(name, str(default)), int, "a whole number", least, most, zero)


def number(name: str, default: float, *, least: float, most: float, zero: bool = False) -> float:
    """The setting ``name`` as a number in a range, or 0 with ``zero`` (``ImproperlyConfigured`` otherwise).

    Its unit is in its name. The range ends before a value with which something would spin, or stand still for ever.
    """
    return _in_range(name, text(name, str(default)), float, "a number", least, most, zero)


def _in_range(
    name: str, value: str, read: Callable[[str], Number], kind: str, least: Number, most: Number, zero: bool
) -> Number:
    try:
        found = read(value) if value.isascii() else None
    except ValueError:
        found = None
    if found is None or not (least <= found <= most or (zero and found == 0)):
        wanted = f"{'0 or ' if zero else ''}{kind} from {least} to {most}"
        raise ImproperlyConfigured(f"{name} must be {wanted}, not {_shown(value)}.")
    return found


def flag(name: str, default: bool) -> bool:
    """The setting ``name`` as yes or no (``ImproperlyConfigured`` for any other word)."""
    words = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}
    value = text(name, str(default)).lower()
    if value not in words:
        raise ImproperlyConfigured(f"{name} must be one of {', '.join(words)}, not {_shown(value)}.")
    return words[value]


def json_object(name: str) -> dict[str, object] | None:
    """The setting ``name`` as a JSON object, or None when it isn't set (``ImproperlyConfigured`` for anything else)."""
    value = _given(name) or "{}"
    try:
        parsed = json.loads(value)
    except (ValueError, RecursionError):
        parsed = None
    if not isinstance(parsed, dict):
        raise ImproperlyConfigured(f"{name} must be a JSON object, not {_shown(value)}.")
    return parsed or None


def one_of(name: str, choices: Sequence[str], default: str) -> str:
    """The setting ``name`` as one of ``choices`` (``ImproperlyConfigured`` for any other word)."""
    value = text(name, default).lower()
    if value not in choices:
        raise ImproperlyConfigured(f"{name} must be one of {', '.join(choices)}, not {_shown(value)}.")
    return value


def hosts(name: str, default: str) -> list[str]:
    """The setting ``name`` as a list of at least one host name (``ImproperlyConfigured`` otherwise).

    Django would accept a URL or a port, and then refuse each request.
    """
    if not (found := words(name, default)):
        raise ImproperlyConfigured(f"{name} must name at least one host.")
    for host in found:
        if not _HOST.fullmatch(host):
            raise ImproperlyConfigured(
                f"{name} must have host names only, without https:// and port, not {_shown(host)}."
            )
    return found


def exact_hosts(name: str) -> list[str]:
    """The setting ``name`` as a list of host names, as ``urlsplit`` reads them from a URL: in lower case, IPv6 without
    brackets (``ImproperlyConfigured`` otherwise). It is empty by default, and a wildcard is refused.
    """
    found = [host.removeprefix("[").removesuffix("]").lower() for host in words(name)]
    for host in found:
        if "*" in host or host.startswith(".") or not (_HOST.fullmatch(host) or _IPV6.fullmatch(host)):
            wanted = "whole host names only, without https://, port and *"
            raise ImproperlyConfigured(f"{name} must have {wanted}, not {_shown(host)}.")
    return found


def host(name: str, default: str) -> str:
    """The setting ``name`` as one host name or address (``ImproperlyConfigured`` otherwise)."""
    value = text(name, default)
    if "*" in value or not (_HOST.fullmatch(value) or _IPV6.fullmatch(value)):
        raise ImproperlyConfigured(f"{name} must be a host name, without port, not {_shown(value)}.")
    return value


def origins(name: str, default: str) -> list[str]:
    """The setting ``name`` as a list of origins, without a path (``ImproperlyConfigured`` otherwise).

    Browsers send no path in ``Origin``, so Django would never find a value with one.
    """
    found = [origin.rstrip("/") for origin in words(name, default)]
    for origin in found:
        match = _ORIGIN.fullmatch(origin)
        if not match or not 1 <= int(match["port"] or 1) <= 65_535:
            raise ImproperlyConfigured(
                f"{name} must have origins only, such as https://a.example.com, not {_shown(origin)}."
            )
    return found


def emails(name: str, default: str = "") -> list[str]:
    """The setting ``name`` as a list of e-mail addresses (``ImproperlyConfigured`` otherwise)."""
    for address in (found := words(name, default)):
        if not _EMAIL.fullmatch(address):
            raise ImproperlyConfigured(f"{name} must have e-mail addresses only, not {_shown(address)}.")
    return found


def email(name: str, default: str) -> str:
    """The setting ``name`` as one e-mail address (``ImproperlyConfigured`` otherwise)."""
    value = text(name, default)
    if not _EMAIL.fullmatch(value):
        raise ImproperlyConfigured(f"{name} must be an e-mail address, not {_shown(value)}.")
    return value


def words(name: str, default: str = "") -> list[str]:
    """The setting ``name`` as a list, split at commas; a line may end at a comma."""
    found = [word.strip() for word in (_given(name) or default).split(",") if word.strip()]
    for word in found:
        _refuse_invisible(name, word)
    return found
