"""A real headless Chromium: playwright's own, or one that the machine has."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "microsoft-edge")


def browser_path() -> str | None:
    """An installed browser, None where there is none; CHROMIUM in the environment names another."""
    named = os.environ.get("CHROMIUM")
    return named or next((path for path in map(shutil.which, NAMES) if path), None)


@contextlib.contextmanager
def launched() -> Iterator:
    """A browser of playwright's; skips the test where no browser can be started."""
    sync = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: see requirements-test.txt")
    with sync.sync_playwright() as playwright:
        own = Path(playwright.chromium.executable_path)
        path = str(own) if own.exists() else browser_path()
        if path is None:
            pytest.skip(f"no browser: neither playwright's own ({own}) nor one of {', '.join(NAMES)} on the PATH")
        # Containers often run as root, where Chromium's sandbox refuses to start, and have a small /dev/shm.
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-dev-shm-usage"])
        yield browser
        browser.close()
