"""Responses, in the formats that ODP documents."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    body: bytes = b""
    content_type: str = "application/json"
    headers: tuple[tuple[str, str], ...] = ()


class Refused(Exception):
    def __init__(self, answer: Answer) -> None:
        super().__init__(answer.status)
        self.answer = answer


def in_json(status: int, body: Any, headers: tuple[tuple[str, str], ...] = ()) -> Answer:
    return Answer(status, json.dumps(body, separators=(",", ":")).encode(), headers=headers)


def titled(status: int, stamp: str, detail: Any = None) -> Answer:
    body = {"title": HTTPStatus(status).phrase, "status": status, "timestamp": stamp}
    return in_json(status, body if detail is None else body | {"detail": detail})


def accepted(stamp: str) -> Answer:
    return titled(202, stamp)


def bad_request(stamp: str, message: str) -> Answer:
    return titled(400, stamp, {"message": message})


def invalid_items(stamp: str, invalids: Sequence[dict[str, Any]]) -> Answer:
    return titled(400, stamp, {"invalids": list(invalids)})


def not_found(stamp: str, message: str) -> Answer:
    return titled(404, stamp, {"message": message})


def forbidden() -> Answer:
    # ODP gives the same response for a missing, a wrong and an insufficient key, without title and status.
    return in_json(403, {"message": "Forbidden"})


def too_many_requests(headers: tuple[tuple[str, str], ...] = ()) -> Answer:
    return in_json(429, {"message": "Too Many Requests"}, headers)


def html(status: int) -> Answer:
    """The error page of a proxy in front of ODP."""
    phrase = HTTPStatus(status).phrase
    page = f"<html><head><title>{status} {phrase}</title></head><body><h1>{status} {phrase}</h1></body></html>"
    return Answer(status, page.encode(), "text/html; charset=utf-8")
