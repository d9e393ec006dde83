"""How every process writes its log: one line per event, as ``key=value`` pairs or as JSON (``LOG_FORMAT``).

Django's, gunicorn's and Celery's own lines go through the same formatter as ours, with a traceback wherever there is an
exception. No line holds a value from a database row: PostgreSQL's DETAIL, which quotes it, is cut off.
"""

import logging
import logging.config
import os
import re
import sys
import threading
import time
from functools import cache
from types import TracebackType
from typing import Any, cast

import structlog
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from gunicorn.glogging import Logger
from structlog.typing import EventDict, Processor, WrappedLogger

FORMATS: tuple[str, ...] = ("text", "json")
LEVELS: tuple[str, ...] = ("debug", "info", "warning", "error", "critical")
# Some libraries write a line for each failed try or call. One line per this many seconds is enough.
REPEAT_SECONDS = 60.0
REPEATING = (
    *("celery.beat", "celery.worker.consumer.consumer", "kombu.connection", "kombu.mixins"),
    # A host name that ALLOWED_HOSTS lacks. Anybody can cause such lines.
    "django.security.DisallowedHost",
    # A collector of traces that is slow or unreachable.
    *("opentelemetry.exporter.otlp.proto.http.trace_exporter", "opentelemetry.sdk._shared_internal"),
)

# PostgreSQL quotes rows behind these words, and rows hold customers' identifiers. A quoted value may span lines.
_QUOTES_A_ROW = re.compile(r"\s*(DETAIL|CONTEXT):")
_GOES_ON = re.compile(r"\s*$|\s*(File \"|Traceback |HINT:|The above exception|During handling)")
_FIRST = ("timestamp", "level", "logger", "event")


def without_rows(text: str) -> str:
    """``text`` without what PostgreSQL quotes from a row in an error."""
    kept, inside = [], False
    for line in text.split("\n"):
        if _QUOTES_A_ROW.match(line):
            inside = True
        elif inside and _GOES_ON.match(line):
            inside = False
        if not inside:
            kept.append(line)
    return "\n".join(kept)


def _without_rows(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    for name, value in event.items():
        if isinstance(value, str) and ("DETAIL:" in value or "CONTEXT:" in value):
            event[name] = without_rows(value)
    return event


_pairs = structlog.processors.LogfmtRenderer(key_order=_FIRST, drop_missing=True, bool_as_flag=False)


def _text(logger: WrappedLogger, method: str, event: EventDict) -> str:
    """``key=value`` pairs in one line; a traceback follows on separate lines."""
    traceback = event.pop("exception", None)
    line = _pairs(logger, method, {_key(name): value for name, value in event.items()})
    return f"{line}\n{traceback}" if traceback else line


@cache
def _key(name: str) -> str:
    return re.sub(r'[\s="]', "_", name)


_shared: list[Processor] = [
    structlog.contextvars.merge_contextvars,
    structlog.stdlib.add_log_level,
    structlog.stdlib.add_logger_name,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
]
_last: list[Processor] = [
    structlog.processors.format_exc_info,
    structlog.processors.StackInfoRenderer(),
    _without_rows,
]


class LineFormatter(structlog.stdlib.ProcessorFormatter):
    """The lines of all libraries in one format. Our own need nothing of ``ProcessorFormatter``, which copies each."""

    def __init__(self, renderer: Processor) -> None:
        self._own = [*_last, renderer]
        meta = structlog.stdlib.ProcessorFormatter.remove_processors_meta
        super().__init__(processors=[meta, *self._own], foreign_pre_chain=_shared)

    def format(self, record: logging.LogRecord) -> str:
        if "_logger" not in record.__dict__:  # structlog's wrap_for_formatter leaves it, with the event as a dict
            return super().format(record)
        event: Any = {**cast(dict[str, Any], record.msg)}
        for processor in self._own:
            event = processor(None, record.levelname.lower(), event)
        return str(event)


class NowAndThen(logging.Filter):
    """One short warning per ``REPEAT_SECONDS`` and kind of line, with a count of those left out."""

    def __init__(self) -> None:
        super().__init__()
        self._seen: dict[tuple[str, str], tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno < logging.WARNING:
            return True
        key = (record.name, str(record.msg))
        at, left_out = self._seen.get(key, (-REPEAT_SECONDS, 0))
        moment = time.monotonic()
        if moment - at < REPEAT_SECONDS:
            self._seen[key] = at, left_out + 1
            return False
        self._seen[key] = moment, 0
        # The traceback holds the library's own frames, which say nothing about why.
        record.msg, record.args = record.getMessage().split("\n")[0], None
        record.exc_info = record.exc_text = record.stack_info = None
        record.levelno, record.levelname = logging.WARNING, "WARNING"
        if left_out:
            record.msg += f" ({left_out} more lines like this one were left out)"
        return True


def config(*, form: str, level: str) -> dict[str, Any]:
    """For ``logging.config.dictConfig``: everything to stderr in one format."""
    renderer: Processor = structlog.processors.JSONRenderer(default=str) if form == "json" else _text
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {
            "line": {"()": LineFormatter, "renderer": renderer},
        },
        "filters": {"now_and_then": {"()": NowAndThen}},
        "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "line"}},
        "root": {"handlers": ["stderr"], "level": level.upper()},
        "loggers": {
            # Django's defaults write a second, plain line for each of these with DEBUG and under runserver.
            **{name: {"handlers": [], "propagate": True} for name in ("django", "django.server")},
            # Lines for every hint, several times a second. What matters of a delivery is in its own line.
            **{name: {"level": "WARNING"} for name in ("celery.app.trace", "celery.worker.strategy")},
            **{name: {"level": "WARNING", "filters": ["now_and_then"]} for name in REPEATING},
        },
    }


def begin(config: dict[str, Any]) -> None:
    """Configure logging: for ``LOGGING_CONFIG``, and for processes that log before Django does.

    Python writes warnings, and exceptions that nothing has caught, as plain text. They become log lines: warnings in
    both formats, exceptions in JSON; the text format has tracebacks on separate lines anyway.
    """
    logging.config.dictConfig(config)
    logging.captureWarnings(True)
    if settings.LOG_FORMAT == "json":
        sys.excepthook = _log_uncaught
        threading.excepthook = lambda failed: _log_uncaught(failed.exc_type, failed.exc_value, failed.exc_traceback)
        sys.unraisablehook = lambda failed: _log_uncaught(failed.exc_type, failed.exc_value, failed.exc_traceback)


def _log_uncaught(kind: type[BaseException], error: BaseException | None, traceback: TracebackType | None) -> None:
    if error is not None and not issubclass(kind, SystemExit):
        logging.getLogger(__name__).critical("uncaught exception", exc_info=(kind, error, traceback))


def configure_structlog() -> None:
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *_shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )


class GunicornLogger(Logger):  # type: ignore[misc] # gunicorn has no types
    """gunicorn's own lines in our format."""

    def setup(self, cfg: Any) -> None:
        super().setup(cfg)
        os.environ.setdefault("DJANGO_SETTINGS_MODULE", "lytics_sync.settings")
        try:
            begin(settings.LOGGING)
        except ImproperlyConfigured as error:
            # The first code in gunicorn that reads the settings.
            from audiences import start_checks  # not at the top: the settings import this module

            start_checks.refuse(str(error), code=1)
        for logger in (self.error_log, self.access_log):
            logger.handlers.clear()
            logger.propagate = True
