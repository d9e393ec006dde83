"""Our settings of a webhook job, for Lytics' API and in words, and the differences of an existing job.

This module alone defines a correct job: ``connect`` creates jobs by it, and ``connect`` and the doctor compare by it.

The names of the settings, their defaults and the values of ``audience_events`` are documented. Optimizely recommends
the batch size, its seconds and the calls at once.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any
from urllib.parse import urlsplit

from lytics.api.reading import Fields, count, flag, storable, text, texts

BATCH_SIZE, BATCH_SECONDS, CALLS_AT_ONCE = 300, 3, 20
LYTICS_ID = "_id"
SEGMENT_EVENTS = "segment_events"
# The documented values that Lytics uses when a job doesn't have the setting.
_DEFAULTS = {"batch_size": 10, "batch_flush_duration": 5, "worker_count": 5}
# The statuses after which Lytics has to retry.
_RETRIED = {401, 405, 408, 429, *range(500, 600)}
# The most characters of a setting that are shown; a person compares them with Lytics' page.
SHOWN = 120


class Harm(IntEnum):
    """The effect of a different setting on the sync."""

    NONE = 0
    # Events arrive late or in many calls, or could be missing.
    RISK = 1
    # Events are lost, or members are wrong.
    LOSS = 2
    # No event arrives.
    SILENCE = 3


@dataclass(frozen=True)
class DifferentSetting:
    """A setting of the job that differs from ours."""

    label: str
    key: str
    ours: str
    theirs: str
    why: str
    harm: Harm

    @property
    def prevents_start(self) -> bool:
        return self.harm is Harm.SILENCE


@dataclass(frozen=True)
class WebhookSettings:
    """Our settings. ``holds_list``: the identifier field holds a list, so a new value in it has to trigger a call."""

    webhook_url: str
    identifier_field: str
    holds_list: bool = False
    needs_lytics_id: bool = False

    @property
    def export_fields(self) -> tuple[str, ...]:
        also = (LYTICS_ID,) if self.needs_lytics_id else ()
        return tuple(dict.fromkeys((self.identifier_field, *also, SEGMENT_EVENTS)))

    def config(self, segment_ids: Sequence[str]) -> dict[str, Any]:
        """The ``config`` of a new job. Enters and exits are Lytics' default, so no setting names them."""
        return {
            "webhook_url": self.webhook_url,
            "http_method": "POST",
            "segment_ids": list(segment_ids),
            "withbackfill": True,
            "user_fields": list(self.export_fields),
            **({"field_changes": [self.identifier_field]} if self.holds_list else {}),
            "batch_requests": True,
            "batch_size": BATCH_SIZE,
            "batch_flush_duration": BATCH_SECONDS,
            "worker_count": CALLS_AT_ONCE,
        }

    def in_words(self, audiences: str) -> list[tuple[str, str]]:
        """The labels of Lytics' Configuration page, with the value to enter for each."""
        is_lytics_id = self.identifier_field == LYTICS_ID
        triggers = "none" if is_lytics_id else f"{self.identifier_field} if it holds a list, otherwise none"
        exported = ("Lytics ID" if name == LYTICS_ID else name for name in self.export_fields)
        return [
            ("Webhook URL", self.webhook_url),
            ("HTTPMethod", "POST"),
            ("Audiences", audiences),
            ("Existing Users", "selected"),
            ("Audience Trigger Events", "Enters and Exits"),
            ("Export Fields", ", ".join(exported)),
            ("Fields to Trigger", self.identifier_field if self.holds_list else triggers),
            ("Batch Events", "selected"),
            ("Batch Size", str(BATCH_SIZE)),
            ("Batch Send Duration", str(BATCH_SECONDS)),
            ("Simultaneous Calls", str(CALLS_AT_ONCE)),
        ]

    def differences(self, config: Fields) -> list[DifferentSetting]:
        """Every setting of a job that differs from ours. Settings without an effect on the sync aren't compared."""
        return [
            DifferentSetting(rule.label, rule.key, rule.ours(self), _shown(config, rule.key), rule.why, harm)
            for rule in _RULES
            if (harm := rule.compare(self, config)) is not None
        ]


def is_same_url(one: str, other: str) -> bool:
    """Whether both URLs are the same, ignoring the case of the host, default ports and a final slash."""
    return _place(one) == _place(other)


def _place(url: str) -> tuple[str, str, str, str]:
    try:
        parts = urlsplit(url.strip())
        port = {"https": "443", "http": "80"}.get(parts.scheme)
        host = parts.netloc.lower().removesuffix(f":{port}")
    except ValueError:
        return (url, "", "", "")
    return (parts.scheme, host, parts.path.rstrip("/"), parts.query)


def _shown(config: Fields, key: str) -> str:
    if key not in config:
        return "not set"
    value = config[key]
    words = storable(value) if isinstance(value, str) else json.dumps(value, default=str)
    return f"{words[:SHOWN]}…" if len(words) > SHOWN else words


Compare = Callable[[WebhookSettings, Fields], Harm | None]


@dataclass(frozen=True)
class _Rule:
    """``compare`` returns the effect of a difference, or None when the job has our setting."""

    label: str
    key: str
    ours: Callable[[WebhookSettings], str]
    compare: Compare
    why: str


def _url(wanted: WebhookSettings, config: Fields) -> Harm | None:
    return None if is_same_url(text(config, "webhook_url"), wanted.webhook_url) else Harm.SILENCE


def _method(wanted: WebhookSettings, config: Fields) -> Harm | None:
    method = text(config, "http_method").upper() or "POST"
    if method == "POST":
        return None
    return Harm.NONE if method in ("PUT", "PATCH") else Harm.SILENCE


def _events(wanted: WebhookSettings, config: Fields) -> Harm | None:
    return Harm.LOSS if text(config, "audience_events").lower() in ("enters_only", "exits_only") else None


def _exported(wanted: WebhookSettings, config: Fields) -> Harm | None:
    """No chosen field means all of them. Whether ``segment_events`` comes without being chosen is unknown."""
    lacking = set(wanted.export_fields) - set(chosen := texts(config, "user_fields"))
    if not lacking:
        return None
    return Harm.LOSS if chosen and lacking != {SEGMENT_EVENTS} else Harm.RISK


def _triggers(wanted: WebhookSettings, config: Fields) -> Harm | None:
    is_missing = wanted.holds_list and wanted.identifier_field not in texts(config, "field_changes")
    return Harm.LOSS if is_missing else None


def _on(key: str) -> Compare:
    return lambda wanted, config: None if flag(config, key) else Harm.RISK


def _number(key: str, ours: int, *, is_most: bool = False) -> Compare:
    """Compare a number. With ``is_most``, numbers larger than ours are harmful, otherwise smaller numbers."""

    def compare(wanted: WebhookSettings, config: Fields) -> Harm | None:
        theirs = count(config, key) or _DEFAULTS[key]
        if theirs == ours:
            return None
        return Harm.RISK if (theirs > ours) == is_most else Harm.NONE

    return compare


def _is_set(config: Fields, key: str) -> bool:
    return config.get(key) not in (None, "", 0, "0", False, [], {}, "false")


def _empty(key: str) -> Compare:
    return lambda wanted, config: Harm.LOSS if _is_set(config, key) else None


def _not_retried(wanted: WebhookSettings, config: Fields) -> Harm | None:
    if not _is_set(config, "do_not_retry"):
        return None
    listed = config["do_not_retry"]
    parts = map(str, listed) if isinstance(listed, list) else str(listed).replace(",", " ").split()
    return Harm.LOSS if _RETRIED & {int(part) for part in parts if part.isdecimal() and len(part) == 3} else Harm.NONE


def _quiet(key: str) -> Compare:
    """A quiet window delays events, or drops them, which depends on another setting."""

    def compare(wanted: WebhookSettings, config: Fields) -> Harm | None:
        if not _is_set(config, key):
            return None
        return Harm.LOSS if flag(config, "drop_events_during_quiet_window") else Harm.RISK

    return compare


def _dropped(wanted: WebhookSettings, config: Fields) -> Harm | None:
    if not _is_set(config, "drop_events_during_quiet_window"):
        return None
    has_window = _is_set(config, "quiet_time_of_day") or _is_set(config, "quiet_period")
    return Harm.LOSS if has_window else Harm.NONE


def _always(words: str) -> Callable[[WebhookSettings], str]:
    return lambda wanted: words


_DROPS = "Lytics doesn't send what this setting delays or drops, and doesn't report it."
_RULES = (
    _Rule("Webhook URL", "webhook_url", lambda wanted: wanted.webhook_url, _url, "The calls don't come here."),
    _Rule("HTTPMethod", "http_method", _always("POST"), _method, "GET and DELETE are answered 405."),
    _Rule(
        "Audience Trigger Events",
        "audience_events",
        _always("Enters and Exits"),
        _events,
        "Enters or exits never arrive, so members are wrong.",
    ),
    _Rule("Existing Users", "withbackfill", _always("selected"), _on("withbackfill"), "Present members never arrive."),
    _Rule(
        "Export Fields",
        "user_fields",
        lambda wanted: ", ".join("Lytics ID (_id)" if name == LYTICS_ID else name for name in wanted.export_fields),
        _exported,
        "A message without the identifier or segment_events is parked; without any choice, calls hold whole profiles.",
    ),
    _Rule(
        "Fields to Trigger",
        "field_changes",
        lambda wanted: wanted.identifier_field,
        _triggers,
        "The identifier field holds a list, and a new value in it doesn't arrive.",
    ),
    _Rule("Batch Events", "batch_requests", _always("selected"), _on("batch_requests"), "Each event is a call."),
    _Rule(
        "Batch Size",
        "batch_size",
        _always(str(BATCH_SIZE)),
        _number("batch_size", BATCH_SIZE),
        "Small batches need more calls; 300 is recommended.",
    ),
    _Rule(
        "Batch Send Duration",
        "batch_flush_duration",
        _always(str(BATCH_SECONDS)),
        _number("batch_flush_duration", BATCH_SECONDS, is_most=True),
        "It is the delay in seconds of a batch that isn't full; 3 is recommended.",
    ),
    _Rule(
        "Simultaneous Calls",
        "worker_count",
        _always(str(CALLS_AT_ONCE)),
        _number("worker_count", CALLS_AT_ONCE),
        "Fewer calls at once are slower; 20 is recommended.",
    ),
    _Rule(
        "Do not retry for HTTP Status",
        "do_not_retry",
        _always("empty"),
        _not_retried,
        "After each of these statuses Lytics drops a whole batch.",
    ),
    _Rule("Template", "template_id", _always("none"), _empty("template_id"), "It replaces the layout that is read."),
    _Rule("User limit", "user_limit", _always("none"), _empty("user_limit"), _DROPS),
    _Rule("Quiet window", "quiet_time_of_day", _always("none"), _quiet("quiet_time_of_day"), _DROPS),
    _Rule("Length of the quiet window", "quiet_period", _always("none"), _quiet("quiet_period"), _DROPS),
    _Rule(
        "Drop events in the quiet window",
        "drop_events_during_quiet_window",
        _always("off"),
        _dropped,
        _DROPS,
    ),
)
# The labels of Lytics' page by key, for all settings that are compared.
LABELS = {rule.key: rule.label for rule in _RULES}
