"""A real Chromium without a window, and how to look through the shadow roots of a Bokeh page."""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.remote.webelement import WebElement

CHROMIUM, DRIVER = (shutil.which(name) for name in ("chromium", "chromedriver"))
needs_chromium = pytest.mark.skipif(
    CHROMIUM is None or DRIVER is None, reason="no chromium and chromedriver (Debian: chromium, chromium-driver)"
)

_FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)

#: Calls `visit` with every element, those in shadow roots included.
WALK = """
const walk = (root, visit) => {
  for (const element of root.querySelectorAll("*")) {
    visit(element)
    if (element.shadowRoot) walk(element.shadowRoot, visit)
  }
}
const inside = (name) => Bokeh.index.find_one_by_id(Bokeh.documents[0].get_model_by_name(name).id).shadow_el
"""


class Browser:
    """One window.

    Arguments:
        downloads: Where downloaded files go.
    """

    def __init__(self, downloads: Path) -> None:
        options = webdriver.ChromeOptions()
        options.binary_location = str(CHROMIUM)
        self._profile = tempfile.mkdtemp()
        for flag in (*_FLAGS, f"--user-data-dir={self._profile}"):
            options.add_argument(flag)
        options.add_experimental_option("prefs", {"download.default_directory": str(downloads)})
        options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
        self.driver = webdriver.Chrome(options=options, service=Service(str(DRIVER)))
        self.driver.set_script_timeout(60)

    def close(self) -> None:
        self.driver.quit()
        shutil.rmtree(self._profile, ignore_errors=True)

    def open(self, url: str, width: int = 1280, dark: bool = False) -> None:
        """Opens a page; what was requested and logged before is forgotten."""
        metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        theme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [theme]})
        for log in ("performance", "browser"):
            self.driver.get_log(log)
        self.driver.get(url)
        # Of a file that was open before, the driver may come back while it is still being read.
        until(lambda: self.driver.execute_script("return document.readyState") == "complete", "the whole page")

    def requests(self) -> list[str]:
        """Addresses that were asked for since the page was opened, data and blobs left out.

        The empty tab of the start may still be loading; what it asks for begins with `chrome:` or
        `chrome-`, as no page's may.
        """
        events = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        sent = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
        sockets = [e["params"]["url"] for e in events if e["method"] == "Network.webSocketCreated"]
        return [url for url in [*sent, *sockets] if not url.startswith(("data:", "blob:", "chrome:", "chrome-"))]

    def complaints(self) -> list[str]:
        """What the page wrote to its console as an error."""
        return [entry["message"] for entry in self.driver.get_log("browser") if entry["level"] == "SEVERE"]

    def overflow(self) -> int:
        """By how many pixels the page is wider than the window."""
        script = "return document.documentElement.scrollWidth - window.innerWidth"
        return int(self.driver.execute_script(script))

    def text(self) -> str:
        """All text that can be seen."""
        script = """
            const found = []
            walk(document, (element) => {
              if (!element.checkVisibility()) return
              for (const node of element.childNodes)
                if (node.nodeType === 3 && !["SCRIPT", "STYLE"].includes(element.tagName)) found.push(node.data.trim())
            })
            return found.filter((part) => part).join(" ")"""
        return str(self.driver.execute_script(WALK + script))

    def find(self, selector: str, within: str | None = None) -> WebElement:
        """The first visible element that matches, in any shadow root; `within`: below the Bokeh model of that name."""
        script = """
            const [selector, name] = arguments
            const top = name ? inside(name) : document
            let found = null
            walk(top, (e) => { if (!found && e.matches(selector) && e.checkVisibility()) found = e })
            return found"""
        found = until(lambda: self.driver.execute_script(WALK + script, selector, within), f"{selector} in {within}")
        assert isinstance(found, WebElement)
        return found

    def read(self, selector: str, within: str) -> str:
        """Text of the first element that matches below the Bokeh model of that name, empty if there is none."""
        script = """
            let found = ""
            walk(inside(arguments[1]), (e) => { if (!found && e.matches(arguments[0])) found = e.innerText })
            return found"""
        return str(self.driver.execute_script(WALK + script, selector, within))

    def pixels(self, name: str) -> str:
        """The picture of the Bokeh figure of that name, as it is on its canvases; waits until they have a size."""
        script = """
            const found = []
            walk(inside(arguments[0]), (e) => { if (e.tagName === "CANVAS") found.push(e.toDataURL()) })
            return found.join(" ")"""

        def drawn() -> str:
            found = str(self.driver.execute_script(WALK + script, name))
            return "" if "data:," in found else found  # a canvas without a size: its tab is not laid out yet

        return str(until(drawn, f"the picture of {name}"))


@contextmanager
def browser(downloads: Path) -> Iterator[Browser]:
    """A browser that is closed at the end."""
    window = Browser(downloads)
    try:
        yield window
    finally:
        window.close()


def until(condition: Callable[[], Any], what: str, seconds: float = 60.0) -> Any:
    """Waits until the condition holds; returns its value."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, f"waited {seconds:g} s for {what}"
        time.sleep(0.05)
    return found
