"""Words of Python, such as the class of an exception, appear in logs and never on pages."""

import ast
from pathlib import Path
from typing import Any

import pytest

from audiences.delivery import provision
from audiences.models import Audience
from sandbox.odp.testing import ThreadedSandbox
from tests.delivering import drain_all, enter, make_audience, make_install

ROOT = Path(__file__).resolve().parents[1]
# Failing tasks are shown to the operator of the server, who has to find them in the log.
ALLOWED = {"audiences/insight/failures.py"}
SOURCES = sorted(file for package in ("audiences", "odp", "workers") for file in (ROOT / package).rglob("*.py"))


def is_log(call: ast.AST) -> bool:
    return (
        isinstance(call, ast.Call)
        and isinstance(call.func, ast.Attribute)
        and isinstance(call.func.value, ast.Name)
        and call.func.value.id == "log"
    )


def names_of_classes(tree: ast.AST) -> list[int]:
    """Lines that write the name of an object's class anywhere but in a log call."""
    found = []
    for node in ast.iter_child_nodes(tree):
        if is_log(node):
            continue
        if isinstance(node, ast.Attribute) and node.attr == "__name__" and isinstance(node.value, ast.Call):
            found.append(node.lineno)
        found += names_of_classes(node)
    return found


def test_only_logs_name_the_class_of_an_exception() -> None:
    found = {
        str(file.relative_to(ROOT)): lines
        for file in SOURCES
        if (lines := names_of_classes(ast.parse(file.read_text(encoding="utf-8"))))
    }
    assert found.keys() == ALLOWED, found


@pytest.mark.django_db
def test_an_error_without_a_message_is_shown_without_its_class(odp: ThreadedSandbox, monkeypatch: Any) -> None:
    def fail(_: Any) -> Any:
        raise KeyError

    audience = make_audience(make_install(odp), provisioned=False)
    enter(audience, "kim")
    monkeypatch.setattr(provision, "mechanism_for", fail)
    drain_all(audience.install)
    reason = Audience.objects.get().hold_reason
    assert "the log of the worker says more" in reason
    assert "KeyError" not in reason
