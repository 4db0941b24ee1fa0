"""A real headless Chromium, driven through its debugging pipe, for tests of what a page does."""

import contextlib
import fcntl
import json
import os
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--remote-debugging-pipe",
)
# Chromium reads commands from descriptor 3 and answers on 4, whatever the pipes are called here.
LAUNCH = (
    "import os, sys; os.dup2(int(sys.argv[1]), 3); os.dup2(int(sys.argv[2]), 4); "
    "os.execv(sys.argv[3], sys.argv[3:])"
)


def find_chromium() -> str | None:
    """Return the path of a Chromium or Chrome: ``$CHROME``, or else one on the path."""
    given = os.environ.get("CHROME")
    return next(filter(None, map(shutil.which, [given] if given else NAMES)), None)


class Browser:
    """One page in one browser process; use it as a context manager.

    Attributes:
        complaints: Uncaught exceptions, console errors and what the browser itself logs as an
            error, such as a violated content security policy, since the last ``open``.
    """

    def __init__(self, executable: str, profile: Path, *, seconds: float = 60):
        self.complaints: list[str] = []
        self._seconds = seconds
        self._count = 0
        self._scripted = True
        self._session: str | None = None
        self._events: list[dict[str, Any]] = []
        self._unread = b""
        commands, self._writing = os.pipe()
        self._reading, answers = os.pipe()
        # Descriptors above 9 cannot be in the way of the 3 and 4 that they become.
        theirs = [fcntl.fcntl(each, fcntl.F_DUPFD, 10) for each in (commands, answers)]
        launch = [sys.executable, "-E", "-S", "-c", LAUNCH, *map(str, theirs)]
        self._process = subprocess.Popen(
            [*launch, executable, *FLAGS, f"--user-data-dir={profile}", "about:blank"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=theirs,
        )
        for each in (commands, answers, *theirs):
            os.close(each)
        try:
            target = self.call("Target.createTarget", url="about:blank")["targetId"]
            attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
            self._session = attached["sessionId"]
            for domain in ("Page", "Runtime", "Log"):
                self.call(f"{domain}.enable")
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "Browser":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """End the process."""
        with contextlib.suppress(OSError, RuntimeError, TimeoutError):
            self._session = None
            self.call("Browser.close")
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._writing)
        os.close(self._reading)

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send one command of the DevTools protocol and wait for its answer."""
        self._count += 1
        message = {"id": self._count, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        unsent = json.dumps(message).encode() + b"\0"
        while unsent:
            unsent = unsent[os.write(self._writing, unsent) :]
        while (answer := self._receive()).get("id") != self._count:
            pass
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']}")
        return answer["result"]

    def _receive(self) -> dict[str, Any]:
        """Read one message; keep it if it is an event."""
        end = time.monotonic() + self._seconds
        while b"\0" not in self._unread:
            if not select.select([self._reading], [], [], max(0, end - time.monotonic()))[0]:
                raise TimeoutError(f"no answer from the browser in {self._seconds:g} seconds")
            received = os.read(self._reading, 1 << 16)
            if not received:
                raise RuntimeError("the browser ended")
            self._unread += received
        text, _, self._unread = self._unread.partition(b"\0")
        message = json.loads(text)
        self._notice(message)
        return message

    def _notice(self, message: dict[str, Any]) -> None:
        method, parameters = message.get("method"), message.get("params", {})
        if method is not None:
            self._events.append(message)
        if method == "Runtime.exceptionThrown":
            details = parameters["exceptionDetails"]
            said = details.get("exception", {}).get("description", details["text"])
            self.complaints.append(f"exception: {said}")
        elif method == "Runtime.consoleAPICalled" and parameters["type"] in ("error", "assert"):
            said = [str(each.get("value", each.get("description"))) for each in parameters["args"]]
            self.complaints.append(f"console: {' '.join(said)}")
        elif method == "Log.entryAdded" and parameters["entry"]["level"] == "error":
            self.complaints.append(f"log: {parameters['entry']['text']}")

    def open(self, path: Path) -> None:
        """Load a file and wait until it is whole; earlier complaints are forgotten."""
        self.complaints.clear()
        self._events.clear()
        self.call("Page.navigate", url=path.as_uri())
        while not any(event["method"] == "Page.loadEventFired" for event in self._events):
            self._receive()
        self.settle()

    def settle(self) -> None:
        """Wait for two drawn frames, after which observers have run; without scripts none do."""
        if self._scripted:
            self.evaluate(
                "new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))"
            )

    def evaluate(self, expression: str) -> Any:
        """Return the value of a JavaScript expression, awaited if it is a promise."""
        result = self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        if "exceptionDetails" in result:
            details = result["exceptionDetails"]
            raise RuntimeError(details.get("exception", {}).get("description", details["text"]))
        return result["result"].get("value")

    def resize(self, width: int, height: int = 800) -> None:
        """Set the size of the window, in CSS pixels."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )
        self.settle()

    def emulate(self, *, media: str = "", scheme: str = "light", script: bool = True) -> None:
        """Choose the medium (the screen or ``print``), the colour scheme, and if scripts run."""
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.call("Emulation.setEmulatedMedia", media=media, features=features)
        self.call("Emulation.setScriptExecutionDisabled", value=not script)
        self._scripted = script

    def press(self, key: str) -> None:
        """Press and release ``Tab``, ``Enter``, an arrow up or down, or the space bar."""
        codes = {"Tab": 9, "Enter": 13, "ArrowUp": 38, "ArrowDown": 40, " ": 32}
        code, text = codes[key], {"Enter": "\r", " ": " "}.get(key, "")
        known = {"key": key, "code": key, "windowsVirtualKeyCode": code}
        typed = {"type": "keyDown", "text": text} if text else {"type": "rawKeyDown"}
        self.call("Input.dispatchKeyEvent", **typed, **known)
        self.call("Input.dispatchKeyEvent", type="keyUp", **known)
