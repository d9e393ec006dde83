"""The web process as it is really run: gunicorn from the project's own command line, with relays before its servers."""

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from django.db import connection

from lytics_sync.processes import Fleet, free_port
from lytics_sync.stack import Memory, Stack


class Relay:
    """A port that passes bytes on to a server, until it is told to cut every connection or to freeze."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self.target = (parts.hostname or "127.0.0.1", parts.port or 0)
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port: int = self.listener.getsockname()[1]
        self.url = url.replace(f":{parts.port}", f":{self.port}")
        self.is_cut = False
        self.flows = threading.Event()
        self.flows.set()
        self._sockets: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self.listener.accept()
                if self.is_cut:
                    near.close()
                    continue
                far = socket.create_connection(self.target)
                self._sockets += [near, far]
                for source, sink in ((near, far), (far, near)):
                    threading.Thread(target=self._pass_on, args=(source, sink), daemon=True).start()

    def _pass_on(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 16):
                self.flows.wait()
                sink.sendall(data)
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    @contextmanager
    def cut(self) -> Iterator[None]:
        """Whoever is connected is cut off, and whoever comes too."""
        self.is_cut = True
        for end in self._sockets:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        self._sockets.clear()
        yield
        self.is_cut = False

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Connections are made and nothing is ever answered."""
        self.flows.clear()
        yield
        self.flows.set()

    def close(self) -> None:
        self.flows.set()
        self.listener.close()


class Web:
    """gunicorn on loopback; ``database`` and ``broker`` are what it reaches its servers through."""

    BODY_LIMIT = 2_000_000

    def __init__(self, folder: Path) -> None:
        self.database = Relay(os.environ["DATABASE_URL"])
        self.broker = Relay(os.environ["REDIS_URL"])
        self.port = free_port()
        name = connection.settings_dict["NAME"]  # the test database, which pytest-django has made
        own = {
            "DATABASE_URL": self.database.url.rsplit("/", 1)[0] + f"/{name}",
            "REDIS_URL": self.broker.url,
            "WEBHOOK_BODY_LIMIT": str(self.BODY_LIMIT),
            "RETRY_AFTER_SECONDS": "17",
            "PORT": str(self.port),
        }
        self.fleet = Fleet(folder=folder, env={**os.environ, **own}, tell=print)
        memory = Memory(file=folder / "local.env", values={})
        self.log = folder / "log" / "web.log"
        self.fleet.start(Stack(folder=folder, port=self.port, host="127.0.0.1", memory=memory).web())

    def stop(self) -> None:
        self.fleet.stop()
        for relay in (self.database, self.broker):
            relay.close()

    def http(self, *, timeout: float = 30) -> HTTPConnection:
        return HTTPConnection("127.0.0.1", self.port, timeout=timeout)

    def call(self, method: str, path: str, body: Any = None, **headers: str) -> HTTPResponse:
        """One request on a connection of its own. A body that is an iterator goes in chunks."""
        caller = self.http()
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        caller.request(method, path, body=body, headers=sent, encode_chunked=hasattr(body, "__next__"))
        answer = caller.getresponse()
        answer.read = _kept(answer.read())  # type: ignore[method-assign]
        caller.close()
        return answer

    def raw(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=30)


def _kept(content: bytes) -> Any:
    return lambda: content
