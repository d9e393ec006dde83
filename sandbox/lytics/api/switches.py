"""What the documentation of Lytics' API leaves open, each as a switch."""

from dataclasses import dataclass, fields
from typing import Any

CHOICES = {
    "error_style": ("documented", "v2", "api"),
    "missing_person": ("200", "404"),
    "old_scan": ("400", "404", "410", "end"),
    "auth_secrets": ("hidden", "shown"),
    "lifecycle_answer": ("job", "empty"),
}


@dataclass
class Switches:
    error_style: str = "documented"
    missing_person: str = "200"
    old_scan: str = "400"
    auth_secrets: str = "hidden"
    lifecycle_answer: str = "job"
    scan_token_seconds: float = 60.0
    requests_per_second: float = 0.0
    integrations_per_hour: float = 10.0
    active_exports: float = 200.0

    def change(self, name: str, value: Any) -> None:
        """Set one switch; ValueError for an unknown name or value."""
        if name not in {field.name for field in fields(self)}:
            raise ValueError(f"no switch {name!r}")
        if (choices := CHOICES.get(name)) and str(value) not in choices:
            raise ValueError(f"{name} is one of {', '.join(choices)}")
        setattr(self, name, str(value) if choices else float(value))
