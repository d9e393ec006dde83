"""What web, workers and beat do before they begin: refuse settings that can't work, in one sentence."""

import json
import os
import sys
from datetime import UTC, datetime
from typing import NoReturn

import structlog
from django.core import checks
from django.core.exceptions import ImproperlyConfigured
from django.db import Error, connection

from audiences import readiness

log = structlog.get_logger(__name__)

# gunicorn starts a worker again and again unless it ends with this code.
REFUSED = 3


def check() -> None:
    """Exit when a system check finds an error. Say when a stored secret doesn't open: pages still have to be there."""
    try:
        errors = [found for found in checks.run_checks() if found.level >= checks.ERROR]
    except ImproperlyConfigured as error:
        refuse(str(error))
    if errors:
        refuse(" ".join(f"{found.msg} ({found.id})" for found in errors))
    try:
        problem = readiness.encryption_problem()
    except Error as error:
        log.warning("stored secrets not looked at", reason=type(error).__name__)
    else:
        if problem:
            log.error("a stored secret doesn't open", secret=problem)
    finally:
        connection.close()


def refuse(reason: str, *, code: int = REFUSED) -> NoReturn:
    """Write the reason in the log's format and exit. Logging isn't used: without valid settings it isn't configured."""
    line = f"Not started: {reason}"
    if os.environ.get("LOG_FORMAT", "").strip().lower() == "json":
        at = datetime.now(UTC).isoformat()
        line = json.dumps({"timestamp": at, "level": "critical", "logger": __name__, "event": line})
    # One write for the text and its line end, because the processes of a service share this file.
    sys.stderr.write(line + "\n")
    sys.stderr.flush()
    sys.exit(code)
