"""For tests: a sandbox in a separate process, or on a thread of this process."""

import copy
import json
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

from sandbox.odp.account.changes import CHANGES, changes_of
from sandbox.odp.control import answer_control
from sandbox.odp.server import SandboxServer
from sandbox.odp.wire.request import Request
from sandbox.odp.world import DEFAULT_PRIVATE_KEY, Options, World

ROOT = Path(__file__).resolve().parents[2]


class ControlledSandbox:
    """Methods of a running sandbox, shared by both variants."""

    url: str = ""
    private_key: str = DEFAULT_PRIVATE_KEY

    @property
    def public_key(self) -> str:
        return self.private_key.partition(".")[0]

    def control(self, path: str, body: Any = None, *, method: str | None = None) -> Any:
        """Call a control under `/sandbox/`: POST with a body, otherwise GET."""
        return self._ask(path, body, method, {})

    def odp(self, method: str, path: str, body: Any = None, *, key: str | None = None) -> tuple[int, Any]:
        """Call an ODP endpoint; returns the status and the parsed body."""
        try:
            return self._call(path, body, method, {"x-api-key": self.private_key if key is None else key})
        except urllib.error.HTTPError as refusal:
            text = refusal.read().decode()
            return refusal.code, json.loads(text) if "json" in refusal.headers["Content-Type"] else text

    def _ask(self, path: str, body: Any, method: str | None, headers: dict[str, str]) -> Any:
        try:
            return self._call(path, body, method, headers)[1]
        except urllib.error.HTTPError as refusal:
            raise ValueError(f"{path}: {refusal.code} {refusal.read().decode()}") from None

    def _call(self, path: str, body: Any, method: str | None, headers: dict[str, str]) -> tuple[int, Any]:
        data = None if body is None else json.dumps(body).encode()
        method = method or ("GET" if data is None else "POST")
        request = urllib.request.Request(self.url + path, data, headers, method=method)  # noqa: S310 - our own URL
        request.add_header("Content-Type", "application/json")
        with urllib.request.urlopen(request, timeout=60) as reply:  # noqa: S310
            return reply.status, json.loads(reply.read())

    def fault(self, when: dict[str, Any], then: dict[str, Any]) -> int:
        return int(self.control("/sandbox/faults", {"when": when, "then": then})["id"])

    def clear_faults(self) -> None:
        self.control("/sandbox/faults", method="DELETE")

    def assume(self, **assumptions: Any) -> None:
        self.control("/sandbox/accounts", {"private_key": self.private_key, "assumptions": assumptions})

    def settings(self, **settings: Any) -> None:
        self.control("/sandbox/accounts", {"private_key": self.private_key, **settings})

    def requests(self, since: int = 0, *, bodies: bool = False) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.control(f"/sandbox/requests?since={since}&bodies={int(bodies)}")["requests"]
        return found

    def summary(self) -> dict[str, Any]:
        found: dict[str, Any] = self.control("/sandbox/summary")
        return found

    def customer(self, identifier: str) -> dict[str, Any]:
        found: dict[str, Any] = self.control(f"/sandbox/customers/{quote(identifier, safe='')}")
        return found

    def members(self, segment_id: str, by: str = "fs_user_id") -> list[str]:
        found: list[str] = self.control(f"/sandbox/memberships/{segment_id}?by={by}")["members"]
        return found

    def advance(self, seconds: float) -> None:
        self.control("/sandbox/clock", {"advance_seconds": seconds})

    def reset(self, *, keep_schema: bool = False) -> None:
        self.control("/sandbox/reset", {"keep_schema": keep_schema})


class RunningSandbox(ControlledSandbox):
    """A sandbox in a separate process, which ends with the `with` block or with this process."""

    def __init__(self, *flags: str, port: int = 0) -> None:
        self.flags = flags
        self.port = port
        self._process: subprocess.Popen[str] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def __enter__(self) -> Self:
        self.start()
        return self

    def start(self) -> None:
        if "--private-key" in self.flags:
            self.private_key = self.flags[self.flags.index("--private-key") + 1]
        command = [sys.executable, "-m", "sandbox.odp", "--port", str(self.port), "--until-stdin-closes", *self.flags]
        self._process = subprocess.Popen(  # noqa: S603 - our own module
            command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdout is not None
        line = self._process.stdout.readline().strip()
        if "http://" not in line:
            self.stop()
            raise RuntimeError("the sandbox did not start; it says why on stderr")
        self.url = line[line.index("http://") :]
        # Keep the port, so that clients reach the sandbox after a restart.
        self.port = int(self.url.rpartition(":")[2])

    def stop(self) -> None:
        """Send SIGTERM, and wait until the state is saved."""
        self._end(kill=False)

    def kill(self) -> None:
        """Send SIGKILL: nothing more is saved."""
        self._end(kill=True)

    def _end(self, *, kill: bool) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.kill() if kill else process.terminate()
        process.communicate(timeout=60)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


class ThreadedSandbox(ControlledSandbox):
    """A sandbox on a thread of this process. It starts faster, and tests can read `world`."""

    def __init__(self, options: Options | None = None) -> None:
        self.world = World(options or Options())
        self.private_key = self.world.options.private_key
        self.server = SandboxServer("127.0.0.1", 0)
        self.server.world = self.world
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self) -> Self:
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def _ask(self, path: str, body: Any, method: str | None, headers: dict[str, str]) -> Any:
        """The control's answer without a connection, which would take 2 ms of CPU. ODP's endpoints have one."""
        data = b"" if body is None else json.dumps(body).encode()
        request = Request.from_head(method or ("POST" if data else "GET"), path, headers)
        request.take_body(data)
        answer = answer_control(self.world, request)
        if answer.status != HTTPStatus.OK:
            raise ValueError(f"{path}: {answer.status} {answer.body.decode()}")
        return json.loads(answer.body)

    @contextmanager
    def undone(self) -> Iterator[None]:
        """At the end of the block, give each account the state that it had at the beginning. Requests stay recorded."""
        with self.world.lock:
            saved = [(account, copy.deepcopy([*changes_of(account)])) for account in self.world.accounts]
        try:
            yield
        finally:
            with self.world.lock:
                self.world.visibility.forget_all()
                for account, changes in saved:
                    account.forget_everything()
                    account.built_graphql = None  # the new schema may have the id and the version of the one before
                    for kind, payload in changes:
                        CHANGES[kind](account, payload, self.world.clock.now())

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.world.stop()
