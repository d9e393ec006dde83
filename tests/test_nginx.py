"""The nginx snippet of docs/production.md in a real nginx: none of nginx's own responses makes Lytics drop a batch.

Skipped without nginx, which ``.ci/run`` installs. ``NGINX`` names another binary.
"""

import os
import re
import shutil
import socket
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from django.conf import settings

from audiences.models import Event, Install
from audiences.operations import installs
from local.processes import free_port, listens
from lytics_sync.env import PROJECT_DIR
from tests.messages import body, message
from tests.threads import eventually
from tests.web import Web, web_of_a_module

NGINX = os.environ.get("NGINX") or shutil.which("nginx") or shutil.which("/usr/sbin/nginx")
pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.skipif(NGINX is None, reason="there is no nginx on PATH, and NGINX names none"),
]
web = web_of_a_module(BEHIND_PROXY="1")

CONFIG = """
daemon off;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
{user}
events {{}}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    server {{
        listen 127.0.0.1:{port}{tls};
        {snippet}
    }}
}}
"""


class Nginx:
    """nginx as an ordinary process with all its files in one folder; nothing of it needs root."""

    def __init__(self, folder: Path, *, service: int, tls: str = "") -> None:
        self.port = free_port()
        config = folder / "nginx.conf"
        user = "user root root;" if os.geteuid() == 0 else ""
        snippet = _of_the_page().replace("127.0.0.1:8000", f"127.0.0.1:{service}")
        config.write_text(
            CONFIG.format(folder=folder, port=self.port, user=user, snippet=snippet, tls=tls), encoding="utf-8"
        )
        assert NGINX
        command = [NGINX, "-p", str(folder), "-c", str(config), "-e", str(folder / "error.log")]
        self._process = subprocess.Popen(command)
        eventually(lambda: listens(self.port))

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait()

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
def nginx(web: Web, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nginx]:
    running = Nginx(tmp_path_factory.mktemp("nginx"), service=web.port)
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


def test_a_call_goes_through(nginx: Nginx, shop: Install) -> None:
    call = body(message())
    status, answer = nginx.status(head(shop, f"Content-Length: {len(call)}"), call)
    assert status == 200
    assert "X-Receipt" in answer
    assert re.search(r"X-Request-ID: [0-9a-f]{32}", answer)
    assert Event.objects.count() == 1


def test_a_body_over_the_limit_reaches_the_service_which_asks_to_come_back(nginx: Nginx, shop: Install) -> None:
    large = b"[" + b" " * (Web.BODY_LIMIT + 1_000) + b"]"
    status, answer = nginx.status(head(shop, f"Content-Length: {len(large)}"), large)
    assert (status, "Retry-After" in answer) == (503, True)


def test_a_body_over_the_limit_of_nginx_itself_is_answered_503(nginx: Nginx, shop: Install) -> None:
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
def test_requests_that_nginx_rejects_are_answered_503(nginx: Nginx, shop: Install, odd: str) -> None:
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


def test_an_unknown_path_is_answered_by_the_service(nginx: Nginx, shop: Install) -> None:
    assert nginx.status(head(shop, "Content-Length: 0", target="/webhook/lytics/x"))[0] == 401


def certificate(folder: Path) -> str:
    """The options after the port of a TLS server, with a self-signed certificate."""
    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test")])
    today = datetime.now(UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(today - timedelta(days=1))
        .not_valid_after(today + timedelta(days=1))
        .sign(key, SHA256())
    )
    plain = (Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (folder / "both.pem").write_bytes(key.private_bytes(*plain) + made.public_bytes(Encoding.PEM))
    return f" ssl; ssl_certificate {folder}/both.pem; ssl_certificate_key {folder}/both.pem"


def test_plain_http_to_the_tls_port_is_answered_503(tmp_path: Path, shop: Install) -> None:
    """nginx' own answer to http on the port of https is 400."""
    running = Nginx(tmp_path, service=free_port(), tls=certificate(tmp_path))
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
    running = Nginx(tmp_path, service=free_port())
    try:
        answers = [running.status(head(shop, "Content-Length: 0")) for _ in range(100)]
        assert {status for status, _ in answers} == {503}
        assert {int(answer.rpartition("Retry-After: ")[2]) for _, answer in answers} == {1, 2, 3}
    finally:
        running.stop()
