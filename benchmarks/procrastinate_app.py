"""A peer that keeps order per key: Procrastinate, with a lock per audience. Installed by ``make bench`` alone."""

import os
import threading
from typing import Any

import procrastinate
import requests

app = procrastinate.App(connector=procrastinate.PsycopgConnector(conninfo=os.environ["PEER_DATABASE_URL"]))
_thread = threading.local()


@app.task(name="deliver", queue="bench")  # type: ignore[untyped-decorator, unused-ignore] # installed or not
def deliver(items: list[dict[str, Any]]) -> None:
    """A function that isn't async: it runs in a thread, as its docs have it for clients that block."""
    if not hasattr(_thread, "session"):
        _thread.session = requests.Session()
    answer = _thread.session.post(os.environ["BENCH_ODP_URL"] + "/v3/profiles", json=items, timeout=10)
    answer.raise_for_status()
