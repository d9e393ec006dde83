"""A request: its head, body and parsed items."""

import json
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from sandbox.odp.wire.answers import Refused, bad_request
from sandbox.odp.wire.faults import Fault
from sandbox.odp.wire.observer import Seen

NOT_JSON = object()


def _refuse_constant(name: str) -> float:
    """Refuse NaN and Infinity, which Python's parser accepts and JSON doesn't have."""
    raise ValueError(name)


@dataclass(slots=True)
class Request:
    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes = b""
    parsed: Any = NOT_JSON
    fault: Fault | None = None
    seen: Seen = field(init=False)
    # Values captured by the path's pattern, for example the segment's id.
    named: dict[str, str] = field(default_factory=dict)

    @classmethod
    def from_head(cls, method: str, target: str, headers: dict[str, str]) -> "Request":
        parts = urlsplit(target)
        query = dict(parse_qsl(parts.query, keep_blank_values=True))
        return cls(method, unquote(parts.path), query, {name.lower(): value for name, value in headers.items()})

    @property
    def key(self) -> str:
        return self.headers.get("x-api-key", "")

    def shown_headers(self) -> dict[str, str]:
        """The headers to record, without the secret half of the key."""
        public, dot, _ = self.key.partition(".")
        hidden = {"x-api-key": f"{public}.***"} if dot else {}
        return self.headers | hidden

    def take_body(self, body: bytes) -> None:
        self.body = body
        if body:
            try:
                self.parsed = json.loads(body, parse_constant=_refuse_constant)
            except (ValueError, RecursionError):
                self.parsed = NOT_JSON

    def require_json(self, stamp: str) -> Any:
        if self.parsed is NOT_JSON:
            raise Refused(bad_request(stamp, "The request body could not be parsed."))
        return self.parsed

    @property
    def items(self) -> list[Any]:
        if isinstance(self.parsed, list):
            return self.parsed
        return [self.parsed] if isinstance(self.parsed, dict) else []
