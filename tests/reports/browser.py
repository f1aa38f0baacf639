"""A real headless Chromium, playwright's own or one that the machine has, and pages that are watched in it."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

CONTRAST = (Path(__file__).parent / "contrast.js").read_text("utf-8")
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


class Watched:
    """A page, and what it complained of or asked for."""

    def __init__(self, browser: Any, file: Path, address: str = "", **options: Any) -> None:
        self.context = browser.new_context(**({"viewport": {"width": 1280, "height": 900}} | options))
        self.asked, self.complaints = [], []
        self.page = self.context.new_page()
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("dialog", lambda dialog: self.complaints.append("a dialog"))
        self.page.route("**/*", self._route)
        self.page.goto(file.as_uri() + address)

    def _route(self, route: Any) -> None:
        self.asked.append(route.request.url)
        if route.request.url.startswith("file:") and len(self.asked) == 1:
            route.continue_()
        else:
            route.abort()

    def __enter__(self) -> Any:
        return self.page

    def __exit__(self, kind: type | None, *_: object) -> None:
        asked = [url for url in self.asked if not url.startswith("data:")]
        self.context.close()
        if kind is None:
            assert self.complaints == []
            assert len(asked) == 1  # the page itself


def index(run: Path) -> Path:
    return run / "report" / "index.html"


def text(page: Any, selector: str) -> str:
    return page.locator(selector).first.text_content()
