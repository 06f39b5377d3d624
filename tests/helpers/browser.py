"""A page in headless Chromium, driven over a pipe by the DevTools protocol: no package, no network, no port."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
KEYS = {" ": ("Space", 32), "Enter": ("Enter", 13), "Escape": ("Escape", 27), "Tab": ("Tab", 9), "Home": ("Home", 36),
        "End": ("End", 35), "ArrowLeft": ("ArrowLeft", 37), "ArrowUp": ("ArrowUp", 38),
        "ArrowRight": ("ArrowRight", 39), "ArrowDown": ("ArrowDown", 40)}  # fmt: skip
PATIENCE = 60


class Browser:
    """One page. `errors`: what the console and the scripts complained of; `requests`: every address asked for."""

    def __init__(self, into: int, out: int) -> None:
        self.into, self.out = into, out
        self.buffer = b""
        self.count, self.session = 0, ""
        self.errors: list[str] = []
        self.requests: list[str] = []

    def open(self, width: int, height: int, dark: bool) -> None:
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """The result of a command."""
        self.count += 1
        message = {"id": self.count, "method": method, "params": parameters}
        os.write(
            self.into, json.dumps(message | ({"sessionId": self.session} if self.session else {})).encode() + b"\0"
        )
        while True:
            answer = self.message()
            if answer.get("id") == self.count:
                assert "error" not in answer, answer["error"]
                return answer["result"]

    def message(self) -> dict[str, Any]:
        while b"\0" not in self.buffer:
            piece = os.read(self.out, 1 << 16)
            assert piece, "the browser has gone"
            self.buffer += piece
        first, _, self.buffer = self.buffer.partition(b"\0")
        found = json.loads(first)
        self.note(found.get("method"), found.get("params", {}))
        return found

    def note(self, method: str | None, about: dict[str, Any]) -> None:
        if method == "Network.requestWillBeSent":
            self.requests.append(about["request"]["url"])
        elif method == "Runtime.exceptionThrown":
            self.errors.append(json.dumps(about["exceptionDetails"])[:2000])
        elif method == "Log.entryAdded" and about["entry"]["level"] in ("error", "warning"):
            self.errors.append(about["entry"]["text"])
        elif method == "Runtime.consoleAPICalled" and about["type"] in ("error", "warning", "assert"):
            self.errors.append(str(about["args"]))

    def go(self, path: Path, after: str = "") -> None:
        """Open a file anew and wait until the page says that it is ready."""
        self.call("Page.navigate", url="about:blank")
        self.call("Page.navigate", url=path.as_uri() + after)
        self.wait("document.documentElement?.dataset.ready")

    def run(self, expression: str) -> Any:
        """What JavaScript makes of an expression."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def wait(self, expression: str) -> None:
        until = time.monotonic() + PATIENCE
        while not self.run(f"Boolean({expression})"):
            assert time.monotonic() < until, (expression, self.errors)
            time.sleep(0.02)

    def press(self, *keys: str) -> None:
        for key in keys:
            code, number = KEYS.get(key, (f"Key{key.upper()}" if key.isalpha() else "", ord(key.upper()[0])))
            text = {"text": "\r" if key == "Enter" else key} if len(key) == 1 or key == "Enter" else {}
            about = {"key": key, "code": code, "windowsVirtualKeyCode": number}
            self.call("Input.dispatchKeyEvent", type="keyDown", **about, **text)
            self.call("Input.dispatchKeyEvent", type="keyUp", **about)

    def click(self, selector: str) -> None:
        """Press the mouse in the middle of the first element that fits."""
        place = self.run(
            f"(e => {{ const b = e.getBoundingClientRect(); return [b.x + b.width / 2, b.y + b.height / 2]; }})"
            f"(document.querySelector({json.dumps(selector)}))"
        )
        self.click_at(*place)

    def click_at(self, x: float, y: float) -> None:
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)


@contextmanager
def browser(width: int = 1400, height: int = 900, dark: bool = False) -> Iterator[Browser]:
    """A page of this size, without a network."""
    assert CHROMIUM is not None
    (theirs, ours), (out, into) = os.pipe(), os.pipe()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        flags = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run",
                 "--disable-features=IsolateSandboxedIframes")  # fmt: skip
        command = (CHROMIUM, *flags, f"--user-data-dir={folder}", "--remote-debugging-pipe", "about:blank")
        shell = f'exec 3<&{theirs} 4>&{into}; exec "$@"'  # the protocol's descriptors are 3 and 4
        process = subprocess.Popen(
            ["bash", "-c", shell, "bash", *command], pass_fds=(theirs, into), stderr=subprocess.DEVNULL
        )
        os.close(theirs)
        os.close(into)
        try:
            page = Browser(ours, out)
            page.open(width, height, dark)
            yield page
        finally:
            process.terminate()
            process.wait(20)
            os.close(ours)
            os.close(out)
