"""The machine's own Chromium, driven by Playwright: nothing is downloaded, or written outside a folder of ours."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from playwright.sync_api import Browser, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome")
MISSING = "no Chromium on PATH; `apt-get install chromium` or CHROMIUM=/path/to/one mends that"
FLAGS = (
    # Containers have a small /dev/shm and no graphics card. Playwright itself adds --no-sandbox, which root needs, and
    # so does everybody in a container without user namespaces; only pages of ours are opened.
    *("--disable-dev-shm-usage", "--disable-gpu"),
    # Requests to other hosts fail, as on a machine without internet access.
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)


@cache
def find() -> str | None:
    """Where Chromium is: what ``CHROMIUM`` names, or the first on PATH that runs."""
    named = os.environ.get("CHROMIUM")
    return next((path for name in ([named] if named else NAMES) if (path := shutil.which(name)) and _runs(path)), None)


def _runs(path: str) -> bool:
    """Whether the command starts: Ubuntu's chromium-browser only prints where to get the real one."""
    return subprocess.run([path, "--version"], capture_output=True, timeout=60, check=False).returncode == 0


@contextmanager
def launched(path: str, *, home: Path) -> Iterator[Browser]:
    """A browser that takes ``home`` for the home directory."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=path, args=FLAGS, env={**os.environ, "HOME": str(home), **_below(home)}
        )
        yield browser
        browser.close()


def _below(home: Path) -> dict[str, str | float | bool]:
    return {f"XDG_{kind}_HOME": str(home / kind.lower()) for kind in ("CACHE", "CONFIG", "DATA", "STATE")}
