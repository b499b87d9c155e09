"""The browser of these tests: found on the machine, driven by playwright, and watched.

Any installed Chromium will do. EVENTSTORE_TEST_BROWSER is a path to one, or `required`: then, and wherever CI
is set, a test fails where there is none, and is not skipped.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, Request, sync_playwright

__all__ = ["DESKTOP", "PHONE", "Watched", "launched"]

DESKTOP, PHONE = (1280, 800), (390, 844)
_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
_FLAGS = [
    "--no-sandbox",  # for root; the pages are our own
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    # The same pixels on every machine, and grey edges, which make smaller pictures.
    "--font-render-hinting=none",
    "--disable-lcd-text",
]
_TIMEOUT_MS = 30_000
# Told before any script of a page runs, so that nothing is missed.
_REPORT_VIOLATIONS = """
document.addEventListener('securitypolicyviolation', (e) =>
    console.error('CSP: ' + e.violatedDirective + ' stopped ' + (e.blockedURI || 'inline') + ' ' + e.sample));
"""


def find_browser() -> str:
    """The path of a browser; skips the test, or fails it, where there is none."""
    given = os.environ.get("EVENTSTORE_TEST_BROWSER", "")
    if given not in ("", "required"):
        if not Path(given).is_file():
            pytest.fail(f"EVENTSTORE_TEST_BROWSER: there is no {given}")
        return given
    for name in _NAMES:
        found = shutil.which(name)
        if found:
            return found
    reason = "no browser on this machine: install Debian's chromium, or set EVENTSTORE_TEST_BROWSER to one"
    if given == "required" or os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


@contextmanager
def launched() -> Iterator[Browser]:
    """The browser, without a window, and with nothing kept from before."""
    path = find_browser()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=_FLAGS)
        yield browser
        browser.close()


class Watched:
    """A person's browser: a page, its cookies, and all that must not happen in it. `complaints` are what the
    console said (errors, warnings, violations of the policy), dialogs, and requests to other hosts.

    `csp` False: the policy is not enforced, so that it is seen what the pages alone do."""

    def __init__(
        self,
        browser: Browser,
        origin: str,
        *,
        size: tuple[int, int] = DESKTOP,
        dark: bool = False,
        csp: bool = True,
    ) -> None:
        self.complaints: list[str] = []
        self._host = urlsplit(origin).netloc
        self.context: BrowserContext = browser.new_context(
            viewport={"width": size[0], "height": size[1]},
            color_scheme="dark" if dark else "light",
            reduced_motion="reduce",
            locale="en-GB",
            timezone_id="UTC",
            accept_downloads=True,
            bypass_csp=not csp,
        )
        self.context.set_default_timeout(_TIMEOUT_MS)
        self.context.add_init_script(_REPORT_VIOLATIONS)
        self.context.on("request", self._on_request)
        self.page: Page = self.context.new_page()
        self.page.on("console", self._on_console)
        self.page.on("pageerror", lambda error: self.complaints.append(f"page error: {error}"))
        self.page.on("dialog", self._on_dialog)

    def _on_request(self, request: Request) -> None:
        found = urlsplit(request.url)
        if found.scheme not in ("data", "blob") and found.netloc != self._host:
            self.complaints.append(f"asked another host: {request.url}")

    def _on_console(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.complaints.append(f"{message.type} on {self.page.url}: {message.text}")

    def _on_dialog(self, dialog: object) -> None:
        self.complaints.append(f"dialog on {self.page.url}: {dialog}")
        dialog.dismiss()  # type: ignore[attr-defined]

    def resize(self, size: tuple[int, int]) -> None:
        self.page.set_viewport_size({"width": size[0], "height": size[1]})

    def close(self) -> None:
        self.context.close()
