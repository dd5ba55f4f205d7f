"""A page in headless Chromium, by the protocol of its driver: what is shown, logged and asked of the network."""

import base64
import json
import shutil
import subprocess
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PROGRAMS = ("chromium", "chromedriver")


def missing() -> list[str]:
    """Programs that are not installed."""
    return [program for program in PROGRAMS if not shutil.which(program)]


class Browser:
    """One window of a browser."""

    def __init__(self, address: str) -> None:
        self._address = address
        arguments = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        chrome = {"binary": shutil.which("chromium"), "args": arguments, "perfLoggingPrefs": {"enableNetwork": True}}
        wanted = {"goog:chromeOptions": chrome, "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"}}
        self._session = ""
        made = self._ask("session", {"capabilities": {"alwaysMatch": wanted}})
        self._session = f"session/{made['sessionId']}/"

    def open(self, page: Path, *, width: int = 1400) -> None:
        """Open a file in a window of a width."""
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        self._devtools("Emulation.setDeviceMetricsOverride", size)
        self.complaints()
        self.requests()
        self._ask("url", {"url": page.resolve().as_uri()})

    def run(self, script: str, *arguments: Any) -> Any:
        """Run JavaScript in the page, and return what it returns."""
        return self._ask("execute/sync", {"script": script, "args": arguments})

    def complaints(self) -> list[str]:
        """Messages of the console since the page was opened."""
        return [entry["message"] for entry in self._log("browser")]

    def requests(self) -> list[str]:
        """Addresses that were asked for since the page was opened; data within the page are none."""
        events = [json.loads(entry["message"])["message"] for entry in self._log("performance")]
        sent = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
        return [url for url in sent if not url.startswith("data:")]

    def screenshot(self, path: Path) -> None:
        """Save a picture of the whole page."""
        size = self._devtools("Page.getLayoutMetrics", {})["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
        shot = self._devtools("Page.captureScreenshot", {"captureBeyondViewport": True, "clip": clip})
        path.write_bytes(base64.b64decode(shot["data"]))

    def close(self) -> None:
        """Close the window."""
        request = urllib.request.Request(f"{self._address}/{self._session.rstrip('/')}", method="DELETE")
        urllib.request.urlopen(request, timeout=60).close()

    def _devtools(self, command: str, parameters: dict) -> Any:
        return self._ask("goog/cdp/execute", {"cmd": command, "params": parameters})

    def _log(self, kind: str) -> list[dict]:
        return self._ask("se/log", {"type": kind})

    def _ask(self, what: str, content: dict) -> Any:
        body = json.dumps(content).encode()
        request = urllib.request.Request(f"{self._address}/{self._session}{what}", body)
        with urllib.request.urlopen(request, timeout=120) as answer:
            return json.load(answer)["value"]


@contextmanager
def browser() -> Iterator[Browser]:
    """Yield a browser of its own, which is ended afterwards."""
    driver = subprocess.Popen(
        [shutil.which("chromedriver"), "--port=0"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        words = next(line for line in driver.stdout if "successfully on port" in line)
        window = Browser(f"http://127.0.0.1:{words.strip().rstrip('.').rpartition(' ')[2]}")
        try:
            yield window
        finally:
            window.close()
    finally:
        driver.terminate()
        driver.wait()
        driver.stdout.close()
