"""System checks: constraints between settings. Each has an id, which docs/settings.md or a search finds."""

import os
from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from cryptography.fernet import Fernet
from django.conf import settings
from django.core.checks import CheckMessage, Error, Tags, register
from django.core.checks import Warning as Caution
from django.db import connections
from django.utils.timezone import now

from audiences import odp_hosts, quiet_hours, readiness
from outgoing import webhooks

if TYPE_CHECKING:
    from audiences.models import Install

# What a worker needs after an answer and before its lease ends, in seconds: the settle, and a busy machine.
SETTLE_SECONDS = 2.0


@register()
def deadline_within_lease(**kwargs: object) -> list[CheckMessage]:
    if settings.DELIVERY_DEADLINE_SECONDS + SETTLE_SECONDS <= settings.LEASE_SECONDS:
        return []
    return [
        Error(
            f"LEASE_SECONDS ({settings.LEASE_SECONDS:g}) must be at least two more than DELIVERY_DEADLINE_SECONDS"
            f" ({settings.DELIVERY_DEADLINE_SECONDS:g}).",
            hint="A request that outlives its lease could overtake the next one of the same audience.",
            id="audiences.E001",
        )
    ]


@register()
def encryption_keys_usable(**kwargs: object) -> list[CheckMessage]:
    errors: list[CheckMessage] = []
    if not settings.FIELD_ENCRYPTION_KEYS:
        errors.append(Error("FIELD_ENCRYPTION_KEYS is empty.", hint="See .env.example.", id="audiences.E002"))
    for position, key in enumerate(settings.FIELD_ENCRYPTION_KEYS, start=1):
        try:
            Fernet(key)
        except ValueError:
            errors.append(
                Error(
                    f"Key {position} of FIELD_ENCRYPTION_KEYS is no Fernet key.",
                    hint="32 random bytes in URL-safe base64, as Fernet.generate_key() makes them.",
                    id="audiences.E003",
                )
            )
    return errors


@register(deploy=True)
def public_url_is_https(**kwargs: object) -> list[CheckMessage]:
    if urlsplit(settings.PUBLIC_URL).scheme == "https" or odp_hosts.is_local(settings.PUBLIC_URL):
        return []
    words = f"PUBLIC_URL must start with https:// — Lytics calls nothing else — and is {settings.PUBLIC_URL}."
    return [Error(words, id="audiences.E005")]


@register(deploy=True)
def lytics_api_is_https(**kwargs: object) -> list[CheckMessage]:
    url = urlsplit(settings.LYTICS_API_URL)
    if (url.scheme == "https" and url.hostname) or odp_hosts.is_local(settings.LYTICS_API_URL):
        return []
    hint = "Each request carries the API token. http:// is for a sandbox only."
    return [
        Error(
            f"LYTICS_API_URL must start with https://, not {settings.LYTICS_API_URL}.", hint=hint, id="audiences.E014"
        )
    ]


@register()
def public_url_is_set_behind_a_proxy(**kwargs: object) -> list[CheckMessage]:
    """Its default names this machine, where any ODP host is allowed as in a trial."""
    if not settings.BEHIND_PROXY or not odp_hosts.is_local(settings.PUBLIC_URL):
        return []
    return [
        Error(
            "BEHIND_PROXY is on and PUBLIC_URL is not set.",
            hint="Set PUBLIC_URL to the https address that Lytics calls.",
            id="audiences.E013",
        )
    ]


# Characters below which a token can be guessed.
SHORTEST_METRICS_TOKEN = 16


@register()
def metrics_token_is_long(**kwargs: object) -> list[CheckMessage]:
    token: str = settings.METRICS_TOKEN
    hint = "Empty switches GET /metrics off. .env.example has a line that makes a token."
    if token and len(token) < SHORTEST_METRICS_TOKEN:
        return [
            Error(f"METRICS_TOKEN has fewer than {SHORTEST_METRICS_TOKEN} characters.", hint=hint, id="audiences.E015")
        ]
    if not token.isascii():  # it can't be compared with a header
        return [Error("METRICS_TOKEN must have ASCII characters only.", hint=hint, id="audiences.E023")]
    return []


@register()
def tracing_is_installed(**kwargs: object) -> list[CheckMessage]:
    if settings.OTEL_TRACES_EXPORTER == "none":
        return []
    try:
        import_module("audiences.span_export")
    except ImportError as error:
        words = f"OTEL_TRACES_EXPORTER is otlp, and the packages of requirements-tracing.lock are missing: {error}."
        hint = "pip install --require-hashes -r requirements-tracing.lock; for the image see docs/tracing.md."
        return [Error(words, hint=hint, id="audiences.E021")]
    wanted = os.environ.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or os.environ.get("OTEL_EXPORTER_OTLP_PROTOCOL")
    if wanted in (None, "", "http/protobuf"):
        return []
    words = f"Traces are sent by http/protobuf, and OTEL_EXPORTER_OTLP_PROTOCOL is {wanted}."
    return [Error(words, hint="A collector takes http/protobuf on port 4318.", id="audiences.E022")]


@register()
def backoff_grows(**kwargs: object) -> list[CheckMessage]:
    if settings.BACKOFF_FIRST_SECONDS <= settings.BACKOFF_LONGEST_SECONDS:
        return []
    first, longest = f"({settings.BACKOFF_FIRST_SECONDS:g})", f"({settings.BACKOFF_LONGEST_SECONDS:g})"
    words = f"BACKOFF_FIRST_SECONDS {first} must not exceed BACKOFF_LONGEST_SECONDS {longest}."
    return [Error(words, id="audiences.E006")]


@register(Tags.database)
def no_sandbox_in_production(*, databases: Sequence[str] | None = None, **kwargs: object) -> list[CheckMessage]:
    """``manage.py check --database default``: an install of a public service that sends to this machine."""
    if odp_hosts.is_local(settings.PUBLIC_URL):
        return []
    return [
        Caution(
            f"The install {install.name} sends to {install.odp_host}, which is this machine, but PUBLIC_URL is not.",
            hint="Empty its ODP host, or switch the install off.",
            id="audiences.W007",
        )
        for install in _installs_with_a_host(databases)
        if odp_hosts.is_local(install.odp_host)
    ]


@register(Tags.database)
def hosts_allowed(*, databases: Sequence[str] | None = None, **kwargs: object) -> list[CheckMessage]:
    """``manage.py check --database default``: an install whose ODP host is no longer in the allowed list.

    Hosts on this machine are reported by W007.
    """
    return [
        Error(f"The install {install.name} sends to {install.odp_host}. {problem}", id="audiences.E008")
        for install in _installs_with_a_host(databases)
        if not odp_hosts.is_local(install.odp_host) and (problem := odp_hosts.problem_of(install.odp_host))
    ]


@register(Tags.database)
def stored_secrets_open(*, databases: Sequence[str] | None = None, **kwargs: object) -> list[CheckMessage]:
    """``manage.py check --database default``: a valid key that isn't the one the data was written with."""
    tables = {"audiences_install", "audiences_token"}
    if not databases or not tables <= set(connections[databases[0]].introspection.table_names()):
        return []
    problem = readiness.encryption_problem()
    return [Error(f"{problem[0].upper()}{problem[1:]}.", hint=_OLD_KEY, id="audiences.E012")] if problem else []


_OLD_KEY = "Put back the key that it was written with, behind a newer one if there is one."


def _installs_with_a_host(databases: Sequence[str] | None) -> "list[Install]":
    """Empty when the check wasn't given a database, or when ``migrate`` hasn't created the table yet."""
    from audiences.models import Install

    table = Install._meta.db_table
    if not databases or table not in connections[databases[0]].introspection.table_names():
        return []
    # No column that may be new: migrate asks before it makes any.
    return list(Install.objects.using(databases[0]).filter(enabled=True).exclude(odp_host="").only("name", "odp_host"))


@register()
def alert_channels_usable(**kwargs: object) -> list[CheckMessage]:
    errors: list[CheckMessage] = []
    if settings.ALERT_WEBHOOK_URL:
        try:
            webhooks.key_of(settings.ALERT_WEBHOOK_SECRET)
        except ValueError as error:
            hint = "base64 of 24 to 64 random bytes after whsec_; see .env.example."
            errors.append(Error(f"ALERT_WEBHOOK_SECRET can't sign: {error}.", hint=hint, id="audiences.E016"))
    try:
        quiet_hours.end_of(settings.ALERT_QUIET_HOURS, now())
    except ValueError as error:
        errors.append(
            Error(f"ALERT_QUIET_HOURS can't be read: {settings.ALERT_QUIET_HOURS!r}; {error}.", id="audiences.E017")
        )
    if settings.EMAIL_USE_TLS and settings.EMAIL_USE_SSL:
        errors.append(Error("Only one of EMAIL_USE_TLS and EMAIL_USE_SSL can be on.", id="audiences.E018"))
    return errors


@register()
def log_outlives_its_history(**kwargs: object) -> list[CheckMessage]:
    """An event stays as long as its run, and a run as long as its delivery, so fewer days for events have no effect."""
    days = settings.EVENTS_KEEP_DAYS
    longest = max(settings.RUNS_KEEP_DAYS, settings.DELIVERIES_KEEP_DAYS)
    if not days or (settings.RUNS_KEEP_DAYS and settings.DELIVERIES_KEEP_DAYS and days >= longest):
        return []
    hint = "Set it to at least both of them. With 0 it keeps all events, and has to while one of them is 0."
    words = (
        f"EVENTS_KEEP_DAYS ({days}) is less than RUNS_KEEP_DAYS ({settings.RUNS_KEEP_DAYS}) or DELIVERIES_KEEP_DAYS"
        f" ({settings.DELIVERIES_KEEP_DAYS}), of which 0 is for ever."
    )
    return [Error(words, hint=hint, id="audiences.E020")]
