"""The nginx snippet of docs/production.md in a real nginx: none of nginx's own responses makes Lytics drop a batch.

Skipped without nginx, which ``.ci/run`` installs.
"""

import re
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from django.conf import settings

from audiences.models import Event, Install
from audiences.operations import installs
from local.processes import free_port
from lytics_sync.env import PROJECT_DIR
from tests.certificates import self_signed
from tests.messages import body, message
from tests.nginx import Nginx, needs_nginx
from tests.web import Web, web_of_a_module

pytestmark = [pytest.mark.django_db(transaction=True), needs_nginx]
web = web_of_a_module(BEHIND_PROXY="1")


class Proxy(Nginx):
    """An nginx with the snippet of the page, in front of the service at this port."""

    def __init__(self, folder: Path, *, service: int, tls: str = "") -> None:
        super().__init__(folder, _of_the_page().replace("127.0.0.1:8000", f"127.0.0.1:{service}"), tls=tls)

    def status(self, head: list[str], content: bytes = b"") -> tuple[int, str]:
        with socket.create_connection(("127.0.0.1", self.port), timeout=20) as caller:
            caller.sendall("\r\n".join([*head, "", ""]).encode("latin-1") + content)
            answer = caller.recv(65536)
        return int(answer.split(b" ")[1]), answer.partition(b"\r\n\r\n")[0].decode("latin-1")


def _of_the_page() -> str:
    (found,) = re.findall(
        r"```nginx\n(.*?)```", (PROJECT_DIR / "docs" / "production.md").read_text(encoding="utf-8"), re.DOTALL
    )
    return str(found)


@pytest.fixture(scope="module")
def nginx(web: Web, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    running = Proxy(tmp_path_factory.mktemp("nginx"), service=web.port)
    yield running
    running.stop()


@pytest.fixture
def shop(db: None) -> Install:
    made = Install(name="Shop", odp_api_key="key", odp_host="http://127.0.0.1:9")
    installs.create(made)
    return made


def head(install: Install, *more: str, target: str = "") -> list[str]:
    (token,) = install.tokens.all()
    path = target or f"/webhooks/lytics/{install.public_id}"
    return [f"POST {path} HTTP/1.1", "Host: 127.0.0.1", f"Authorization: {installs.authorization(token)}", *more]


def test_a_call_goes_through(nginx: Proxy, shop: Install) -> None:
    call = body(message())
    status, answer = nginx.status(head(shop, f"Content-Length: {len(call)}"), call)
    assert status == 200
    assert "X-Receipt" in answer
    assert re.search(r"X-Request-ID: [0-9a-f]{32}", answer)
    assert Event.objects.count() == 1


def test_a_body_over_the_limit_reaches_the_service_which_asks_to_come_back(nginx: Proxy, shop: Install) -> None:
    large = b"[" + b" " * (Web.BODY_LIMIT + 1_000) + b"]"
    status, answer = nginx.status(head(shop, f"Content-Length: {len(large)}"), large)
    assert (status, "Retry-After" in answer) == (503, True)


def test_a_body_over_the_limit_of_nginx_itself_is_answered_503(nginx: Proxy, shop: Install) -> None:
    status, answer = nginx.status(head(shop, f"Content-Length: {100 << 20}"))
    assert (status, answer.endswith("Retry-After: 30")) == (503, True)
    status, answer = nginx.status(head(shop, "Transfer-Encoding: chunked"), b"%x\r\n[]" % (100 << 20))
    assert (status, answer.endswith("Retry-After: 30")) == (503, True)


@pytest.mark.parametrize(
    "odd",
    [
        "a blank in the query",
        "a long header",
        "a long URL",
        "a length that is no number",
        "two lengths",
        "no host",
        "a small method",
        "no HTTP",
        "another version",
        "a method that nginx refuses",
        "a path above the root",
        "NUL in the path",
        "broken percent signs",
        "a length and chunks",
        "an unknown coding",
    ],
)
def test_requests_that_nginx_rejects_are_answered_503(nginx: Proxy, shop: Install, odd: str) -> None:
    usual = head(shop, "Content-Length: 0")
    sent = {
        "a blank in the query": head(shop, "Content-Length: 0", target="/webhooks/lytics/x?source=lytics prod"),
        "a long header": [*usual, "X-Long: " + "x" * 60_000],
        "a long URL": head(shop, "Content-Length: 0", target="/webhooks/lytics/" + "x" * 60_000),
        "a length that is no number": head(shop, "Content-Length: many"),
        "two lengths": [*usual, "Content-Length: 5"],
        "no host": [line for line in usual if not line.startswith("Host")],
        "a small method": [usual[0].replace("POST", "post"), *usual[1:]],
        "no HTTP": ["nonsense"],
        "a method that nginx refuses": [usual[0].replace("POST", "TRACE"), *usual[1:]],
        "a path above the root": head(shop, "Content-Length: 0", target="/../webhooks/lytics/x"),
        "NUL in the path": head(shop, "Content-Length: 0", target="/webhooks/lytics/%00"),
        "broken percent signs": head(shop, "Content-Length: 0", target="/webhooks/lytics/%zz"),
        "a length and chunks": [*usual, "Transfer-Encoding: chunked"],
        "an unknown coding": head(shop, "Transfer-Encoding: br"),
        "another version": [usual[0].replace("HTTP/1.1", "HTTP/7"), *usual[1:]],
    }
    status, answer = nginx.status(sent[odd])
    assert (status, "Retry-After" in answer) == (503, True), answer


def test_an_unknown_path_is_answered_by_the_service(nginx: Proxy, shop: Install) -> None:
    assert nginx.status(head(shop, "Content-Length: 0", target="/webhook/lytics/x"))[0] == 401


def test_plain_http_to_the_tls_port_is_answered_503(tmp_path: Path, shop: Install) -> None:
    """nginx' own answer to http on the port of https is 400."""
    both = self_signed(tmp_path)
    running = Proxy(tmp_path, service=free_port(), tls=f" ssl; ssl_certificate {both}; ssl_certificate_key {both}")
    try:
        status, answer = running.status(head(shop, "Content-Length: 0"))
        assert (status, answer.endswith("Retry-After: 30")) == (503, True)
    finally:
        running.stop()


def test_the_constants_of_the_nginx_snippet_fit_the_default_settings() -> None:
    lines = _of_the_page()
    megabytes = settings.WEBHOOK_BODY_LIMIT / 1024 / 1024
    (body,) = re.findall(r"client_max_body_size (\d+)m;", lines)
    assert int(body) > megabytes
    (later,) = re.findall(r"Retry-After (\d+)", lines)
    assert int(later) == settings.RETRY_AFTER_SECONDS
    soon = {int(seconds) for seconds in re.findall(r"set \$seconds (\d+)", lines)}
    assert soon == set(range(1, settings.RETRY_SOON_SECONDS + 1))
    (answer,) = re.findall(r"proxy_read_timeout (\d+)s", lines)
    assert int(answer) > settings.DATABASE_WEB_SECONDS + megabytes


def test_a_service_that_is_down_asks_to_come_back(tmp_path: Path, shop: Install) -> None:
    running = Proxy(tmp_path, service=free_port())
    try:
        answers = [running.status(head(shop, "Content-Length: 0")) for _ in range(100)]
        assert {status for status, _ in answers} == {503}
        assert {int(answer.rpartition("Retry-After: ")[2]) for _, answer in answers} == {1, 2, 3}
    finally:
        running.stop()
