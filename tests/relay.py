"""A relay before a server, for tests and the chaos runner: it passes bytes on, slowly if asked, or cuts, or freezes."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from urllib.parse import urlsplit


class Relay:
    """A TCP proxy that can be made slow, cut every connection, or freeze."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self.target = (parts.hostname or "127.0.0.1", parts.port or 0)
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port: int = self.listener.getsockname()[1]
        self.url = url.replace(f":{parts.port}", f":{self.port}")
        self.is_cut = False
        self.delay_seconds = 0.0
        self.flows = threading.Event()
        self.flows.set()
        self._sockets: set[socket.socket] = set()
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):  # closed: the relay is over
            while True:
                near, _ = self.listener.accept()
                self._join(near)

    def _join(self, near: socket.socket) -> None:
        """Connect ``near`` to the server; close it when the server can't be reached."""
        try:
            if self.is_cut:
                raise ConnectionError
            far = socket.create_connection(self.target)
        except OSError:
            near.close()
            return
        self._sockets |= {near, far}
        for source, sink in ((near, far), (far, near)):
            source.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=self._pass_on, args=(source, sink, self.flows), daemon=True).start()

    def _pass_on(self, source: socket.socket, sink: socket.socket, flows: threading.Event) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 16):
                flows.wait()
                time.sleep(self.delay_seconds)
                sink.sendall(data)
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        self._sockets.discard(source)
        # The other direction still reads from the sink, and closes it when it is through.
        source.close()

    def _cut(self) -> None:
        for end in list(self._sockets):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    @contextmanager
    def cut(self) -> Iterator[None]:
        """Cut off all existing and new connections."""
        self.is_cut = True
        self._cut()
        yield
        self.is_cut = False

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Connections are made and nothing is ever answered."""
        self.flows.clear()
        yield
        self.flows.set()

    @contextmanager
    def slow(self, seconds: float) -> Iterator[None]:
        """Delay each piece of data by ``seconds`` in both directions."""
        self.delay_seconds = seconds
        yield
        self.delay_seconds = 0.0

    def leave_half_open(self) -> None:
        """Existing connections receive no more data and aren't closed; new connections work."""
        self.flows.clear()
        self.flows = threading.Event()
        self.flows.set()

    def close(self) -> None:
        self.flows.set()
        self.listener.close()
        self._cut()
