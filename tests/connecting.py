"""What the tests of ``connect`` share: a sandbox Lytics API, an install with tokens, and what people do in Lytics."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pytest_django.fixtures import Settings

from audiences import lytics_account
from audiences.models import Install
from audiences.operations import installs
from audiences.receiving import tokens
from sandbox.lytics.account import Account
from sandbox.lytics.api.server import LyticsServer
from sandbox.lytics.stream import Plan, Stream
from tests.delivering import make_install
from tests.lytics_sandbox import TOKEN, serving
from tests.test_sandbox_lytics_api import EVERY_AUDIENCE, control

VIP, CART, THIRD, _ = EVERY_AUDIENCE


def tell_story(account: Account, field: str = "_id", **more: Any) -> None:
    plan = Plan(events=400, audiences=EVERY_AUDIENCE, seed=3, customers=90, identifier_field=field, **more)
    for _ in account.recorded(Stream(plan), field):
        pass


@contextmanager
def sandbox_lytics(folder: Path, settings: Settings) -> Iterator[LyticsServer]:
    """A sandbox Lytics API whose four audiences have members; this service calls it."""
    account = Account(folder / "lytics.sqlite3")
    tell_story(account)
    with serving(account) as running:
        settings.LYTICS_API_URL = running.url
        yield running


def make_shop() -> Install:
    """An install with a webhook token and a Lytics API token."""
    made = make_install()
    tokens.create(made)
    lytics_account.set_token(made, TOKEN)
    return made


def made_jobs(lytics: LyticsServer) -> list[dict[str, Any]]:
    return lytics.api.account.things("job")


def made_auths(lytics: LyticsServer) -> list[dict[str, Any]]:
    return lytics.api.account.things("auth")


def the_job(lytics: LyticsServer) -> dict[str, Any]:
    (job,) = made_jobs(lytics)
    return job


def edit(lytics: LyticsServer, job: dict[str, Any], *, config: dict[str, Any] | None = None, **fields: Any) -> None:
    """A person changes the job in Lytics."""
    changed = {**job, **fields, "config": {**job["config"], **(config or {})}}
    lytics.api.account.put("job", changed, made_at=lytics.api.now())


def add_job(lytics: LyticsServer, shop: Install, **fields: Any) -> dict[str, Any]:
    """A job that a person made by hand, with an authorization of their own."""
    auth = {"id": f"auth-{len(made_auths(lytics))}", "label": "my own", "type": "header_param_auth"}
    lytics.api.account.put("auth", auth, made_at=0)
    config = {"webhook_url": installs.webhook_url(shop), "segment_ids": [VIP.segment_id], "batch_size": 10}
    job: dict[str, Any] = {
        "id": f"job-{len(made_jobs(lytics))}",
        "name": "By hand",
        "workflow": "webhook_triggers",
        "status": "running",
    }
    job |= {"auth_ids": [auth["id"]], "config": config, "created": "2026-01-05T10:00:00Z", **fields}
    lytics.api.account.put("job", job, made_at=0)
    return job


def fault(lytics: LyticsServer, path: str, then: dict[str, Any], *, method: str = "POST", times: int = 1) -> None:
    control(lytics, "faults", {"when": {"path": path, "method": method, "times": times}, "then": then})
