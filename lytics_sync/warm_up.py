"""The warm-up of a web process, so that its first call is as quick as the next."""

import structlog
from django.db import connection
from django.urls import resolve

log = structlog.get_logger(__name__)

# The most seconds to wait for a database that doesn't respond.
SECONDS = 6.0


def rehearse_a_call() -> None:
    """Load the URLs, open this thread's connection and prepare its statements, if the database responds."""
    from audiences.receiving import backlog, ingest, tokens

    try:
        resolve("/webhooks/lytics/none", urlconf="lytics_sync.webhook_urls")
        tokens.authenticate(public_id="", authorization="")
        backlog.is_too_high(0)
        ingest.rehearse()
    except Exception as error:  # noqa: BLE001 — only the first call is slower then
        log.warning("not warmed up", reason=f"{type(error).__name__}: {error}")
        connection.close()
