"""A real nginx for tests. They are skipped without one; the environment variable ``NGINX`` names another binary."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from local.processes import free_port, listens
from tests.threads import eventually

_BINARY = os.environ.get("NGINX") or shutil.which("nginx") or shutil.which("/usr/sbin/nginx")
needs_nginx = pytest.mark.skipif(_BINARY is None, reason="there is no nginx on PATH, and NGINX names none")

_CONFIG = """
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
        {lines}
    }}
}}
"""


class Nginx:
    """nginx as an ordinary process with all its files in one folder, which needs no root.

    ``lines`` are those of its server block, and ``tls`` the options after the port of a TLS server.
    """

    def __init__(self, folder: Path, lines: str, *, tls: str = "") -> None:
        assert _BINARY
        self.port = free_port()
        config = folder / "nginx.conf"
        user = "user root root;" if os.geteuid() == 0 else ""
        text = _CONFIG.format(folder=folder, port=self.port, user=user, lines=lines, tls=tls)
        config.write_text(text, encoding="utf-8")
        command = [_BINARY, "-p", str(folder), "-c", str(config), "-e", str(folder / "error.log")]
        self._process = subprocess.Popen(command)
        eventually(lambda: listens(self.port))

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait()
