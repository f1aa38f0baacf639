"""A real headless Chromium: playwright's own, or one that the machine has."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator

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
        browser, reasons = None, []
        for path in (None, browser_path()):  # playwright's own first
            if browser is None and (path or not reasons):
                try:
                    # Containers often run as root, where Chromium's sandbox refuses to start, with a small /dev/shm.
                    options = ["--no-sandbox", "--disable-dev-shm-usage"]
                    browser = playwright.chromium.launch(executable_path=path, args=options)
                except sync.Error as error:
                    reasons.append(f"{path or 'the one of playwright'} ({str(error).strip().splitlines()[0]})")
        if browser is None:
            pytest.skip(f"no browser starts: {'; '.join(reasons)}; looked on the PATH for {', '.join(NAMES)}")
        yield browser
        browser.close()
