"""A small API of Lytics for tests: the members of one audience, and any answer that a test wants instead."""

import json
from collections.abc import Callable, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

PAGE = 2


class Lytics:
    """An API of Lytics that knows the members of one audience, and answers what a test wants otherwise."""

    def __init__(self) -> None:
        self.members: list[str] = []
        # The audience's size at each page of a scan, where it isn't the number of members.
        self.sizes: Sequence[int] = ()
        self.asked: list[str] = []
        self.answer: Callable[[str, dict[str, list[str]]], tuple[int, Any] | None] = lambda path, query: None
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                status, body = outer.reply(self.path)
                content = json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: Any) -> None:
                """Tests read no log of it."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def reply(self, target: str) -> tuple[int, Any]:
        self.asked.append(target)
        path, query = urlsplit(target).path, parse_qs(urlsplit(target).query)
        special = self.answer(path, query)
        if special is not None:
            return special
        if path.endswith("/scan"):
            start = int(query.get("start", ["0"])[0])
            page = self.members[start : start + PAGE]
            upcoming = str(start + PAGE) if start + PAGE < len(self.members) else ""
            total = self.sizes[start // PAGE] if self.sizes else len(self.members)
            return 200, {"data": [{"_id": who} for who in page], "total": total, "_next": upcoming}
        return 200, {"data": {"id": "segment-gold", "slug_name": "gold", "size": len(self.members)}}
