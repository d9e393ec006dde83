"""`python -m sandbox.lytics.api`: answer as Lytics' API until a signal stops it."""

import argparse
import signal
import sqlite3
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from sandbox.lytics.account import Account
from sandbox.lytics.api.endpoints import Api
from sandbox.lytics.api.server import LyticsServer
from sandbox.lytics.api.switches import Switches

DEFAULT_TOKEN = "sandbox-lytics-token"  # noqa: S105 - of the sandbox


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m sandbox.lytics.api", description=__doc__)
    parser.add_argument("--port", type=int, default=8091, help="0 chooses a free port")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--state", type=Path, required=True, metavar="FILE", help="the file of the sender's --state")
    parser.add_argument("--token", default=DEFAULT_TOKEN, help="the API token")
    parser.add_argument("--assume", action="append", default=[], metavar="NAME=VALUE", help="a switch")
    return parser


def main(words: Sequence[str] | None = None) -> int:
    given = arguments().parse_args(words)
    switches, stop = Switches(), threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    try:
        for name, _, value in (text.partition("=") for text in given.assume):
            switches.change(name, value)
        server = LyticsServer(given.host, given.port, Api(Account(given.state), token=given.token, switches=switches))
    except (OSError, ValueError, OverflowError, sqlite3.Error) as problem:
        print(f"The sandbox can't start: {problem}", file=sys.stderr)
        return 1
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True).start()
    print(f"Sandbox Lytics API listening on http://{given.host}:{server.server_port}", flush=True)
    stop.wait()
    server.shutdown()
    server.server_close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
