"""The system checks: what must hold between settings, refused by name when it doesn't."""

import sys

import pytest
from cryptography.fernet import Fernet
from django.core.checks import Tags, run_checks
from django.db import connection
from pytest_django.fixtures import Settings

from audiences.models import Install


def found(*, deploy: bool = False) -> set[str]:
    return {
        str(message.id)
        for message in run_checks(include_deployment_checks=deploy)
        if str(message.id).startswith("audiences")
    }


def test_the_defaults_pass() -> None:
    assert found(deploy=True) == set()


@pytest.mark.parametrize(
    ("exporter", "protocol", "codes"),
    [
        ("none", "grpc", set()),
        ("otlp", "", set()),
        ("otlp", "http/protobuf", set()),
        ("otlp", "grpc", {"audiences.E022"}),
        ("otlp", "http/json", {"audiences.E022"}),
    ],
)
@pytest.mark.parametrize("variable", ["OTEL_EXPORTER_OTLP_PROTOCOL", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"])
def test_traces_are_sent_by_http(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, variable: str, exporter: str, protocol: str, codes: set[str]
) -> None:
    settings.OTEL_TRACES_EXPORTER = exporter
    monkeypatch.setenv(variable, protocol)
    assert found() == codes


@pytest.mark.parametrize(("exporter", "codes"), [("none", set()), ("otlp", {"audiences.E021"})])
def test_traces_need_their_packages(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, exporter: str, codes: set[str]
) -> None:
    settings.OTEL_TRACES_EXPORTER = exporter
    monkeypatch.setitem(sys.modules, "audiences.span_export", None)
    assert found() == codes


@pytest.mark.parametrize(("deadline", "lease", "codes"), [(8, 10, set()), (8, 9.9, {"audiences.E001"})])
def test_a_request_must_end_before_its_lease(
    settings: Settings, deadline: float, lease: float, codes: set[str]
) -> None:
    settings.DELIVERY_DEADLINE_SECONDS, settings.LEASE_SECONDS = deadline, lease
    assert found() == codes


def test_without_a_key_nothing_can_be_encrypted(settings: Settings) -> None:
    settings.FIELD_ENCRYPTION_KEYS = []
    assert found() == {"audiences.E002"}


@pytest.mark.parametrize("key", ["short", "x" * 44, "é" * 32])
def test_an_invalid_key_is_reported_by_its_position(settings: Settings, key: str) -> None:
    settings.FIELD_ENCRYPTION_KEYS = [Fernet.generate_key().decode(), key]
    assert found() == {"audiences.E003"}
    assert "Key 2" in next(message.msg for message in run_checks() if message.id == "audiences.E003")


@pytest.mark.parametrize(
    ("url", "codes"),
    [
        ("https://sync.example.com", set()),
        ("http://127.0.0.1:8000", set()),
        ("http://localhost", set()),
        ("http://[::1]:8000", set()),
        ("http://sync.example.com", {"audiences.E005"}),
        ("sync.example.com", {"audiences.E005"}),
    ],
)
def test_lytics_calls_https_only(settings: Settings, url: str, codes: set[str]) -> None:
    settings.PUBLIC_URL = url
    assert found(deploy=True) == codes
    assert found() == set()


@pytest.mark.parametrize(("length", "codes"), [(0, set()), (15, {"audiences.E015"}), (16, set())])
def test_a_token_for_metrics_is_empty_or_long(settings: Settings, length: int, codes: set[str]) -> None:
    settings.METRICS_TOKEN = "x" * length
    assert found() == codes


@pytest.mark.parametrize(("token", "codes"), [("0123456789 abcdef", set()), ("0123456789äbcdef", {"audiences.E023"})])
def test_a_token_for_metrics_can_be_compared_with_a_header(settings: Settings, token: str, codes: set[str]) -> None:
    settings.METRICS_TOKEN = token
    assert found() == codes


@pytest.mark.parametrize(
    ("events", "runs", "deliveries", "codes"),
    [
        (0, 0, 0, set()),
        (90, 90, 90, set()),
        (89, 90, 1, {"audiences.E020"}),
        (89, 1, 90, {"audiences.E020"}),
        (90, 0, 90, {"audiences.E020"}),
        (90, 90, 0, {"audiences.E020"}),
    ],
)
def test_the_log_outlives_its_history(
    settings: Settings, events: int, runs: int, deliveries: int, codes: set[str]
) -> None:
    settings.EVENTS_KEEP_DAYS, settings.RUNS_KEEP_DAYS, settings.DELIVERIES_KEEP_DAYS = events, runs, deliveries
    assert found() == codes


@pytest.mark.parametrize(("first", "longest", "codes"), [(5, 5, set()), (5, 4.9, {"audiences.E006"})])
def test_the_backoff_grows(settings: Settings, first: float, longest: float, codes: set[str]) -> None:
    settings.BACKOFF_FIRST_SECONDS, settings.BACKOFF_LONGEST_SECONDS = first, longest
    assert found() == codes


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("public", "host", "enabled", "codes"),
    [
        ("https://sync.example.com", "http://127.0.0.1:8090", True, {"audiences.W007"}),
        ("https://sync.example.com", "http://127.0.0.1:8090", False, set()),
        ("https://sync.example.com", "https://api.zaius.com", True, set()),
        ("http://127.0.0.1:8000", "http://127.0.0.1:8090", True, set()),
    ],
)
def test_no_install_of_a_public_service_sends_to_a_sandbox(
    settings: Settings, public: str, host: str, enabled: bool, codes: set[str]
) -> None:
    settings.PUBLIC_URL = public
    Install.objects.create(name="Left over", odp_api_key="public.private", odp_host=host, enabled=enabled)
    messages = run_checks(databases=["default"])
    assert {message.id for message in messages if str(message.id).startswith("audiences")} == codes


@pytest.mark.django_db
def test_a_database_that_is_still_empty_is_checked_without_its_tables(settings: Settings) -> None:
    """``migrate`` runs these checks first, also on the very first start of a public service."""
    settings.PUBLIC_URL = "https://sync.example.com"
    with connection.cursor() as cursor:
        cursor.execute("ALTER TABLE audiences_install RENAME TO not_there_yet")
    assert run_checks(databases=["default"], tags=[Tags.database]) == []


@pytest.mark.parametrize(
    ("url", "codes"),
    [
        ("https://api.lytics.io", set()),
        ("http://127.0.0.1:8091", set()),
        ("http://api.lytics.io", {"audiences.E014"}),
        ("api.lytics.io", {"audiences.E014"}),
        ("https://", {"audiences.E014"}),
    ],
)
def test_a_lytics_api_without_encryption_is_an_error_in_production(
    settings: Settings, url: str, codes: set[str]
) -> None:
    settings.LYTICS_API_URL = url
    assert found(deploy=True) == codes
    assert found() == set(), "a sandbox of another machine can be tried"
