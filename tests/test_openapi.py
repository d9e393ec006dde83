"""docs/openapi.yaml is true: each documented response is produced and has the documented form."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from django.conf import settings as project
from django.db import OperationalError
from django.test import Client
from pytest_django.fixtures import Settings

from audiences import readiness
from audiences.insight import heartbeats
from audiences.models import Install
from audiences.receiving import ingest
from tests.messages import body, message

pytestmark = pytest.mark.django_db

ALERTS_LISTED = yaml.safe_load(Path(project.BASE_DIR / "docs" / "openapi.yaml").read_text(encoding="utf-8"))
TYPES = {"object": dict, "array": list, "string": str, "integer": int, "null": type(None)}
WEBHOOK = "/webhooks/lytics/{install}"


def check(value: Any, schema: dict[str, Any]) -> None:
    """As much of JSON Schema as the document uses."""
    if "$ref" in schema:
        schema = ALERTS_LISTED["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    kinds = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    assert isinstance(value, tuple(TYPES[kind] for kind in kinds)), (value, schema)
    assert value in schema.get("enum", [value])
    if isinstance(value, list):
        for item in value:
            check(item, schema["items"])
    if isinstance(value, dict):
        assert set(schema.get("required", [])) <= set(value)
        for name, inner in value.items():
            more = schema.get("properties", {}).get(name) or schema["additionalProperties"]
            assert more, f"{name} is not told of"
            check(inner, more)


def is_as_told(answer: Any, path: str, method: str) -> None:
    told = ALERTS_LISTED["paths"][path][method]["responses"][str(answer.status_code)]
    assert answer.headers["Content-Type"] == "application/json"
    check(json.loads(answer.content), told["content"]["application/json"]["schema"])
    for name, header in told.get("headers", {}).items():
        assert (name in answer.headers) >= header["required"]


@pytest.mark.parametrize("method", ["post", "put", "patch"])
def test_each_documented_answer_of_the_webhook_is_true(
    install: Install, method: str, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def send(token: str, *, method: str = method) -> Any:
        content = body(message(), "oops", message(who=["", "lee"]))
        path = f"/webhooks/lytics/{install.public_id}"
        return Client().generic(method.upper(), path, content, HTTP_AUTHORIZATION=token)

    def fail(*_: Any, **__: Any) -> None:
        raise OperationalError

    settings.BAD_TOKENS_PER_MINUTE = 1
    token = install.tokens.get().secret
    answers = [send(token), send("wrong"), send("wrong"), send(token, method="delete")]
    monkeypatch.setattr(ingest, "receive", fail)
    answers.append(send(token))
    assert [answer.status_code for answer in answers] == [200, 401, 429, 405, 503]
    assert {str(answer.status_code) for answer in answers} == set(ALERTS_LISTED["paths"][WEBHOOK][method]["responses"])
    for answer in answers:
        is_as_told(answer, WEBHOOK, method)


def test_each_documented_answer_of_the_health_urls_is_true(monkeypatch: pytest.MonkeyPatch) -> None:
    def ask(path: str, status: int) -> None:
        answer = Client().get(path)
        assert answer.status_code == status
        is_as_told(answer, path, "get")

    ask("/health/live", 200)
    ask("/health/ready", 200)
    monkeypatch.setattr(readiness, "problem", lambda: "not migrated")
    ask("/health/ready", 503)
    ask("/health/workers", 503)
    heartbeats.note("worker-1", worked_seconds_ago=1.0)
    ask("/health/workers", 200)


def test_each_documented_answer_of_the_metrics_is_true(db: None, settings: Settings) -> None:
    told = ALERTS_LISTED["paths"]["/metrics"]["get"]["responses"]
    for token, status in (("", 404), ("another token", 401), ("the token", 200)):
        settings.METRICS_TOKEN = token
        answer = Client(headers={"Authorization": "Bearer the token"}).get("/metrics")
        assert answer.status_code == status
        assert {answer["Content-Type"].partition(";")[0]} == set(told[str(status)]["content"])
        assert set(told[str(status)].get("headers", {})) <= set(answer.headers)
    assert set(told) == {"404", "401", "200"}


def test_there_is_nothing_else_below_health_and_the_version_is_ours() -> None:
    from lytics_sync.urls import urlpatterns

    routes = [str(getattr(one, "pattern", "")) for one in urlpatterns]
    assert {f"/{route}" for route in routes if route.startswith("health")} == {
        path for path in ALERTS_LISTED["paths"] if path.startswith("/health")
    }
    assert ALERTS_LISTED["info"]["version"] == project.VERSION
