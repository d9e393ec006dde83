"""What the tests share: Hypothesis without a stopwatch, an install to receive for, and an ODP to deliver to."""

from collections.abc import Iterator

import pytest
from hypothesis import settings

from audiences import installs, refused
from audiences.api import strangers
from audiences.models import Install
from sandbox.odp.testing import ThreadedSandbox
from tests.delivering import sandbox

# A machine that is busy with something else is no bug.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")


@pytest.fixture(autouse=True)
def nobody_was_refused_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    """What this process counts of strangers belongs to one test; it goes to Redis only when a test sends it."""
    monkeypatch.setattr(refused, "_counter", refused._Counter(sends_by_itself=False))
    monkeypatch.setattr(strangers, "_this_minute", strangers._Minute())


@pytest.fixture
def install(db: None) -> Install:
    made = Install(name="Shop", odp_api_key="odp-key", odp_host="http://127.0.0.1:9")
    installs.create(made)
    return made


@pytest.fixture
def odp() -> Iterator[ThreadedSandbox]:
    with sandbox() as running:
        yield running
