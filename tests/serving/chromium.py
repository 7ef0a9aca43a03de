"""Headless Chromium, driven over the DevTools protocol."""

from __future__ import annotations

import base64
import contextlib
import itertools
import json
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from processes import PATIENCE
from websockets.sync.client import ClientConnection, connect

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream",
    "--remote-debugging-port=0",
)


class Tab:
    """A page in the browser.

    Parameters
    ----------
    connection : ClientConnection
        To its end of the protocol.
    downloads : path
        Where it saves what its user downloads.
    """

    def __init__(self, connection: ClientConnection, downloads: Path) -> None:
        self._connection, self._numbers = connection, itertools.count(1)
        self.errors: list[str] = []
        self.downloads = downloads
        for domain in ("Page", "Runtime", "Log", "DOM"):
            self.call(f"{domain}.enable")
        self.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(downloads))

    def call(self, method: str, **parameters: Any) -> Any:
        """Call a method of the protocol; what it gives."""
        number = next(self._numbers)
        self._connection.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while True:
            message = json.loads(self._connection.recv(PATIENCE))
            if message.get("id") == number:
                assert "error" not in message, (method, message["error"])
                return message["result"]
            self._note(message.get("method"), message.get("params", {}))

    def _note(self, event: str | None, told: dict[str, Any]) -> None:
        if event == "Runtime.exceptionThrown":
            self.errors.append(json.dumps(told["exceptionDetails"]))
        elif event == "Log.entryAdded" and told["entry"]["level"] in ("warning", "error"):
            self.errors.append(f"{told['entry']['text']} {told['entry'].get('url', '')}")
        elif event == "Runtime.consoleAPICalled" and told["type"] in ("warning", "error"):
            self.errors.append(json.dumps(told["args"]))

    def run(self, script: str) -> Any:
        """What an expression gives, evaluated as if the user had just clicked."""
        told = self.call(
            "Runtime.evaluate",
            expression=script,
            userGesture=True,
            awaitPromise=True,
            returnByValue=True,
        )
        assert "exceptionDetails" not in told, told["exceptionDetails"]
        return told["result"].get("value")

    def until(self, script: str) -> None:
        """Wait for an expression to be true."""
        end = time.monotonic() + PATIENCE
        while not self.run(script):
            assert time.monotonic() < end, (script, self.text("status"), self.errors)
            time.sleep(0.05)

    def go(self, url: str) -> None:
        """Open an address, with a blank page between so that a fragment alone is a new page."""
        self.call("Page.navigate", url="about:blank")
        self.call("Page.navigate", url=url)

    def text(self, name: str) -> str:
        """The words of an element."""
        return str(self.run(f"document.getElementById('{name}').textContent"))

    def click(self, name: str) -> None:
        self.run(f"document.getElementById('{name}').click()")

    def set(self, name: str, value: str) -> None:
        """Fill in a field, as its user would."""
        self.run(
            f"{{const field = document.getElementById('{name}'); field.value = {value!r};"
            "for (const type of ['input', 'change'])"
            "field.dispatchEvent(new Event(type, {bubbles: true}))}"
        )

    def choose(self, name: str, path: Path) -> None:
        """Choose a file."""
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector=f"#{name}")["nodeId"]
        self.call("DOM.setFileInputFiles", nodeId=node, files=[str(path)])

    def download(self, button: str, name: str) -> Path:
        """Click and wait for the file."""
        path = self.downloads / name
        path.unlink(missing_ok=True)
        self.click(button)
        end = time.monotonic() + PATIENCE
        while not path.exists() or not path.stat().st_size:  # an empty one holds its place
            assert time.monotonic() < end, f"{name} is not there"
            time.sleep(0.05)
        return path

    def screenshot(
        self, path: Path, width: int = 1100, height: int = 760, scheme: str = "light"
    ) -> None:
        """A picture of the whole page."""
        wanted = {"name": "prefers-color-scheme", "value": scheme}
        self.call("Emulation.setEmulatedMedia", features=[wanted])
        self.call("Emulation.setScrollbarsHidden", hidden=True)
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )
        self.run("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
        shot = self.call("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(shot["data"]))


@contextlib.contextmanager
def browsing(folder: Path) -> Iterator[Tab]:
    """A tab of a new browser, whose files are in a folder."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("chromium is not installed")
    process = subprocess.Popen(
        [chromium, *FLAGS, f"--user-data-dir={folder / 'profile'}", "about:blank"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        with connect(_tab(folder / "profile", process), max_size=None, proxy=None) as connection:
            yield Tab(connection, folder)
    finally:
        process.terminate()
        process.wait(PATIENCE)


def _tab(profile: Path, process: subprocess.Popen[bytes]) -> str:
    """Where the browser's first tab is reached, once there is one."""
    end, told = time.monotonic() + PATIENCE, profile / "DevToolsActivePort"
    while time.monotonic() < end:
        assert process.poll() is None, "Chromium has ended"
        with contextlib.suppress(OSError, ValueError, StopIteration):
            port = told.read_text().split()[0]
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list", timeout=5) as found:
                tabs = json.load(found)
            return str(next(t["webSocketDebuggerUrl"] for t in tabs if t["type"] == "page"))
        time.sleep(0.1)
    pytest.fail("Chromium does not answer")
