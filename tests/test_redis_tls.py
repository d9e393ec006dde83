"""With ``rediss://`` every Redis client, also Celery's, rejects a server with an untrusted certificate.

A TLS proxy runs before the Redis-compatible server of the tests; the clients run in a separate process with settings
from ``REDIS_URL``.
"""

import asyncio
import json
import os
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from django.conf import settings

from lytics_sync.env import PROJECT_DIR

Clients = dict[str, str]

ASK_ALL = """
import json
import django
django.setup()
from audiences import redis_client, wake
from workers.app import app

def celery():
    with app.connection_for_write() as connection:
        connection.connect()
        connection.default_channel.client.ping()

said = {}
clients = {"hints": wake._redis().ping, "counts": redis_client.client().ping, "celery": celery}
for name, ask in clients.items():
    try:
        ask()
        said[name] = "answered"
    except Exception as error:
        said[name] = f"{type(error).__name__}: {error}"
print(json.dumps(said))
"""
NAMES = {"hints", "counts", "celery"}


class Authority:
    """Signs certificates, and is known by the file ``path``."""

    def __init__(self, path: Path) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, path.stem)])
        self.path = path
        made = self._certificate(self._name, self._key.public_key(), x509.BasicConstraints(ca=True, path_length=0))
        path.write_bytes(made.public_bytes(Encoding.PEM))

    def server(self, subject: x509.GeneralName) -> ssl.SSLContext:
        """What a server called ``subject`` speaks TLS with."""
        key = ec.generate_private_key(ec.SECP256R1())
        made = self._certificate(x509.Name([]), key.public_key(), x509.SubjectAlternativeName([subject]))
        both = self.path.with_suffix(".server")
        both.write_bytes(
            key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()) + made.public_bytes(Encoding.PEM)
        )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(both)
        return context

    def _certificate(
        self, subject: x509.Name, key: ec.EllipticCurvePublicKey, extension: x509.ExtensionType
    ) -> x509.Certificate:
        today = datetime.now(UTC)
        builder = x509.CertificateBuilder(self._name, subject, key, x509.random_serial_number())
        builder = builder.not_valid_before(today - timedelta(days=1)).not_valid_after(today + timedelta(days=1))
        builder = builder.add_extension(extension, critical=True)
        # From Python 3.13 on, OpenSSL checks all that RFC 5280 asks for: which key signs, and that it may.
        signer = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        builder = builder.add_extension(signer, critical=False)
        builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        is_authority = isinstance(extension, x509.BasicConstraints)
        return builder.add_extension(_usage(signs=is_authority), critical=True).sign(self._key, SHA256())


def _usage(*, signs: bool) -> x509.KeyUsage:
    rest = dict.fromkeys(
        ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "encipher_only"), False
    )
    return x509.KeyUsage(digital_signature=not signs, key_cert_sign=signs, crl_sign=signs, decipher_only=False, **rest)


@contextmanager
def tls_before_redis(context: ssl.SSLContext) -> Iterator[int]:
    """The port of a listener that speaks TLS and passes on to the Redis-compatible server."""
    target, loop = urlsplit(settings.REDIS_URL), asyncio.new_event_loop()

    async def passed_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(1 << 16):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def joined(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection(target.hostname, target.port)
        await asyncio.gather(passed_on(reader, far_writer), passed_on(far_reader, writer))

    server = loop.run_until_complete(asyncio.start_server(joined, "127.0.0.1", 0, ssl=context))
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()


def ask(context: ssl.SSLContext, query: str) -> Clients:
    """What each client gets from a server with that certificate, by name."""
    with tls_before_redis(context) as port:
        password = urlsplit(settings.REDIS_URL).password
        url = f"rediss://:{password}@127.0.0.1:{port}/0{query}"
        env = {**os.environ, "REDIS_URL": url, "DJANGO_SETTINGS_MODULE": "lytics_sync.settings"}
        command = [sys.executable, "-c", ASK_ALL]
        done = subprocess.run(
            command, env=env, cwd=PROJECT_DIR, capture_output=True, text=True, check=False, timeout=120
        )
    assert done.returncode == 0, done.stderr
    said: Clients = json.loads(done.stdout.splitlines()[-1])
    assert said.keys() == NAMES
    return said


HERE = x509.IPAddress(ip_address("127.0.0.1"))


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "authority.pem")


@pytest.mark.parametrize("more", ["", "&ssl_cert_reqs=required"])
def test_every_client_talks_to_a_server_that_the_named_authority_vouches_for(authority: Authority, more: str) -> None:
    said = ask(authority.server(HERE), f"?ssl_ca_certs={authority.path}{more}")
    assert said == dict.fromkeys(NAMES, "answered")


def test_no_client_talks_to_a_server_of_another_authority(authority: Authority, tmp_path: Path) -> None:
    other = Authority(tmp_path / "other.pem")
    said = ask(other.server(HERE), f"?ssl_ca_certs={authority.path}")
    assert {name for name, answer in said.items() if "certificate verify failed" in answer} == NAMES, said


def test_no_client_talks_to_a_server_with_the_name_of_another(authority: Authority) -> None:
    said = ask(authority.server(x509.DNSName("other.example")), f"?ssl_ca_certs={authority.path}")
    assert {name for name, answer in said.items() if "mismatch" in answer} == NAMES, said


def test_the_certificate_authorities_of_the_system_are_the_default(authority: Authority) -> None:
    said = ask(authority.server(HERE), "")
    assert {name for name, answer in said.items() if "certificate verify failed" in answer} == NAMES, said


def test_verification_is_off_only_when_the_url_says_so(authority: Authority) -> None:
    said = ask(authority.server(HERE), "?ssl_cert_reqs=none")
    assert said == dict.fromkeys(NAMES, "answered")
