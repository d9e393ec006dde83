"""The HTTP server of the sandbox Lytics API, with faults and switches under `/sandbox/`."""

import json
import os
import socket
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl

from sandbox.lytics.account import Row
from sandbox.lytics.api.endpoints import Api
from sandbox.odp.wire.answers import Answer, html, in_json
from sandbox.odp.wire.faults import Faults

PREFIX = "/sandbox/"


class LyticsServer(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, host: str, port: int, api: Api) -> None:
        self.api = api
        self.faults = Faults()
        super().__init__((host, port), Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: LyticsServer

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
        """Log nothing per request: paths name people."""

    def finish(self) -> None:
        self.server.api.account.close()
        super().finish()

    def serve(self) -> None:
        path, _, query = self.path.partition("?")
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if path.startswith(PREFIX):
            self._send(self._control(path.removeprefix(PREFIX), body))
            return
        fault = self.server.faults.strike(method=self.command, path=path, body=body, items=[])
        then = fault.then if fault else {}
        time.sleep(float(then.get("delay_seconds", 0)))
        if then.get("close") == "before":
            self._hang_up()
            return
        is_scripted = "status" in then or "html" in then
        if not is_scripted or then.get("apply"):
            answer = self._handled(path, query, body)
        if then.get("close"):
            self._hang_up()
        else:
            self._send(_scripted(then) if is_scripted else answer)

    do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = serve

    def _handled(self, path: str, query: str, body: bytes) -> Answer:
        headers = {name.lower(): value for name, value in self.headers.items()}
        return self.server.api.answer(self.command, path, dict(parse_qsl(query)), headers, body)

    def _control(self, name: str, body: bytes) -> Answer:
        if not self.client_address[0].startswith("127."):
            return in_json(403, {"error": "controls answer on the loopback address only"})
        try:
            return in_json(200, self._controlled(name, json.loads(body or b"{}")))
        except (ValueError, TypeError, KeyError, LookupError) as wrong:
            return in_json(400, {"error": str(wrong)})

    def _controlled(self, name: str, given: dict[str, Any]) -> Any:
        api = self.server.api
        match (self.command, name):
            case ("GET", "ready"):
                return {"ready": True, "pid": os.getpid()}
            case ("POST", "faults"):
                return {"id": self.server.faults.add({**given, "when": {"path": "/", **given.get("when", {})}}).number}
            case ("GET", "faults"):
                return {"faults": self.server.faults.all()}
            case ("DELETE", "faults"):
                self.server.faults.clear()
            case ("POST", "switches"):
                for switch, value in given.items():
                    api.switches.change(switch, value)
            case ("POST", "clock"):
                api.clock_ahead += float(given["advance_seconds"])
            case ("POST", "members"):
                self._move(given)
            case ("POST", "profiles"):
                api.account.change_profile(self._person(given), dict(given["set"]), str(given["field"]))
            case ("POST", "merge"):
                kept = self._person({**given, "identifier": given["into"]})
                api.account.merge_profiles(self._person(given), kept, str(given["field"]))
            case ("DELETE", "audiences"):
                api.account.delete_audience(self._audience(given)[0])
            case _:
                raise LookupError(f"no control {self.command} {PREFIX}{name}")
        return {}

    def _move(self, given: dict[str, Any]) -> None:
        """Change who is in an audience without an event, so that both ends differ."""
        api = self.server.api
        at = int(api.now() * 1_000_000_000)
        api.account.move(self._audience(given)[0], self._person(given), is_member=bool(given["member"]), at=at)

    def _person(self, given: dict[str, Any]) -> str:
        person = self.server.api.account.person(str(given.get("field", "_id")), str(given["identifier"]))
        if person is None:
            raise LookupError("no such person")
        return person[0]

    def _audience(self, given: dict[str, Any]) -> Row:
        row = self.server.api.account.audience(str(given["audience"]))
        if row is None:
            raise LookupError("no such audience")
        return row

    def _hang_up(self) -> None:
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def _send(self, answer: Answer) -> None:
        self.send_response(answer.status)
        self.send_header("Content-Type", answer.content_type)
        self.send_header("Content-Length", str(len(answer.body)))
        for name, value in answer.headers:
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(answer.body)


def _scripted(then: dict[str, Any]) -> Answer:
    status, body = int(then.get("status", 500)), then.get("body", {"message": "a fault of the sandbox"})
    headers = tuple((str(name), str(value)) for name, value in then.get("headers", {}).items())
    if then.get("html"):
        return Answer(status, html(status).body, "text/html", headers)
    if isinstance(body, str):
        return Answer(status, body.encode(), "text/plain", headers)
    return in_json(status, body, headers)
