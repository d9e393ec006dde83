"""The sandbox of Lytics' API in a thread of the tests."""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Thread

from sandbox.lytics.account import Account
from sandbox.lytics.api.endpoints import Api
from sandbox.lytics.api.server import LyticsServer
from sandbox.lytics.api.switches import Switches

TOKEN = "sandbox-lytics-token"


@contextmanager
def serving(account: Account, *, token: str = TOKEN) -> Iterator[LyticsServer]:
    """A server of the account, for clients with the API token."""
    with LyticsServer("127.0.0.1", 0, Api(account, token=token, switches=Switches())) as running:
        Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield running
        running.shutdown()
