"""A real browser, headless, that notices whatever a page asks for: Debian's Chromium, driven over WebDriver and DevTools.

All of its traffic, to this host too, goes through a proxy that answers nobody and keeps what it was asked.
"""

from __future__ import annotations

import json
import os
import shutil
import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service

# A container has no sandbox to nest in, and little /dev/shm; the rest keeps Chromium from calling home.
OPTIONS = (
    "--headless", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-default-apps",
    "--proxy-bypass-list=<-loopback>",
)


class _Asked(socketserver.ThreadingTCPServer):
    """The proxy: `lines` is the first line of each request, "GET http://... HTTP/1.1" or "CONNECT host:443 HTTP/1.1"."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.lines: list[str] = []


class _Handler(socketserver.StreamRequestHandler):
    timeout = 10

    def handle(self) -> None:
        assert isinstance(self.server, _Asked)
        self.server.lines.append(self.rfile.readline(4096).decode(errors="replace").strip())


class Browser:
    """One window. Every page is opened with what was said and asked before forgotten."""

    def __init__(self, driver: webdriver.Chrome, asked: _Asked) -> None:
        self.driver = driver
        self._asked = asked

    def open(self, path: Path, *, width: int = 1280, scheme: str = "light") -> None:
        """Show a file in a window that wide, to somebody who prefers that colour scheme."""
        self.driver.get_log("browser")  # type: ignore[no-untyped-call]
        self.driver.get_log("performance")  # type: ignore[no-untyped-call]
        self._asked.lines.clear()
        metrics = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": False}
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        self.driver.get(path.as_uri())

    def ask(self, expression: str) -> Any:
        """The value of a JavaScript expression, by the browser's debugger: the page's policy is not asked."""
        return self.driver.execute_script(f"return {expression}")

    def follow(self, link: str) -> None:
        """Click on what has that id, and give the page a moment for what comes of that."""
        self.driver.execute_async_script(f"document.getElementById('{link}').click(); setTimeout(arguments[0], 300)")

    def told(self) -> list[str]:
        """What the console says of the page: errors and warnings."""
        return [str(entry["message"]) for entry in self.driver.get_log("browser")]  # type: ignore[no-untyped-call]

    def requests(self) -> list[str]:
        """The address of everything that the page asked for, itself included, allowed or not."""
        entries = self.driver.get_log("performance")  # type: ignore[no-untyped-call]
        messages = [json.loads(entry["message"])["message"] for entry in entries]
        return [message["params"]["request"]["url"] for message in messages if message["method"] == "Network.requestWillBeSent"]

    def asked_for(self, word: str) -> list[str]:
        """What reached the network, of all that speaks of `word` (the browser has affairs of its own)."""
        return [line for line in self._asked.lines if word in line]


@contextmanager
def browser(folder: Path) -> Iterator[Browser]:
    """A browser whose every file is in `folder`. Skips where there is none."""
    paths = [shutil.which(name) for name in ("chromium", "chromedriver")]
    chromium, driver = paths
    if not chromium or not driver:
        pytest.skip("needs Debian's packages chromium and chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    environment = os.environ | {"TMPDIR": str(folder), "HOME": str(folder)}
    with _Asked() as asked:
        threading.Thread(target=asked.serve_forever, daemon=True).start()
        more = (f"--user-data-dir={folder / 'profile'}", f"--proxy-server=127.0.0.1:{asked.server_address[1]}")
        for option in (*OPTIONS, *more):
            options.add_argument(option)
        window = webdriver.Chrome(options=options, service=Service(driver, env=environment))
        try:
            window.set_page_load_timeout(60)
            yield Browser(window, asked)
        finally:
            window.quit()
            asked.shutdown()
