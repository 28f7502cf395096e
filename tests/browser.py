"""A headless Chromium, driven by its DevTools protocol over a pipe.

For tests, and for .ci/check_site.py.

Standard library alone: messages are JSON, each ended by a zero byte; Chromium
reads them from its descriptor 3, and writes to 4.
"""

import base64
import contextlib
import json
import os
import select
import shutil
import subprocess
import time

CHROMIUM = next(
    filter(
        None,
        map(shutil.which, ("chromium", "chromium-browser", "google-chrome")),
    ),
    None,
)
MISSING = "needs a headless browser: chromium is not installed."


class Page:
    """A tab, and what it said.

    Attributes:
        console: str of each message of the console, and of each exception.
        requests: the URLs that were asked for, `data:` left out.
    """

    def __init__(self, reading, writing):
        self._reading, self._writing = reading, writing
        self._buffer, self._number, self._session = b"", 0, None
        self.console, self.requests = [], []
        target = self.call("Target.createTarget", url="about:blank")
        self._session = self.call(
            "Target.attachToTarget", targetId=target["targetId"], flatten=True
        )["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method, **parameters):
        """Sends a command, and gives its result."""
        self._number += 1
        message = {
            "id": self._number,
            "method": method,
            "params": parameters,
            **({"sessionId": self._session} if self._session else {}),
        }
        os.write(self._writing, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next(60)
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return answer["result"]

    def _next(self, seconds):
        """The next message, events being noted."""
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._reading], [], [], seconds)
            assert ready, "the browser says nothing"
            part = os.read(self._reading, 2**20)
            assert part, "the browser has ended"
            self._buffer += part
        line, _, self._buffer = self._buffer.partition(b"\0")
        message = json.loads(line)
        event = message.get("params", {})
        match message.get("method"):
            case "Runtime.consoleAPICalled":
                self.console.append(json.dumps(event["args"]))
            case "Runtime.exceptionThrown":
                self.console.append(json.dumps(event["exceptionDetails"]))
            case "Log.entryAdded":
                self.console.append(event["entry"]["text"])
            case "Network.requestWillBeSent":
                url = event["request"]["url"]
                if not url.startswith("data:"):
                    self.requests.append(url)
        return message

    def screen(self, width, height, dark=False):
        """What the page is shown on."""
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height,
            deviceScaleFactor=1, mobile=width < 500,
        )  # fmt: skip
        scheme = {"name": "prefers-color-scheme",
                  "value": "dark" if dark else "light"}  # fmt: skip
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def open(self, url):
        """Goes there from elsewhere, and waits for the script's start."""
        self.call("Page.navigate", url="about:blank")
        self.call("Page.navigate", url=url)
        self.wait("document.readyState === 'complete'")

    def evaluate(self, expression):
        """The value of an expression of JavaScript, a promise's too."""
        found = self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True,
            awaitPromise=True,
        )  # fmt: skip
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def wait(self, expression, seconds=30):
        """Waits until an expression holds."""
        end = time.monotonic() + seconds
        while not self.evaluate(f"Boolean({expression})"):
            assert time.monotonic() < end, (expression, self.console)
            time.sleep(0.05)

    def mouse(self, kind, x, y):
        """Moves, presses or releases the left button: `mouseMoved` etc."""
        self.call(
            "Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left",
            buttons=0 if kind == "mouseReleased" else 1, clickCount=1,
        )  # fmt: skip

    def key(self, key):
        """Presses and releases a key."""
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key)

    def screenshot(self, path):
        """Writes all of the page as a PNG."""
        found = self.call("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(found["data"]))


@contextlib.contextmanager
def opened(profile):
    """A `Page` of a new browser; `profile` is an empty folder for it."""
    to_browser, writing = os.pipe()
    reading, from_browser = os.pipe()
    command = [
        CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu",
        "--disable-dev-shm-usage", "--no-first-run", "--hide-scrollbars",
        "--disable-background-networking", "--disable-component-update",
        # Nothing but this machine is reached, whatever a page asks for.
        "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
        f"--user-data-dir={profile}", "--remote-debugging-pipe",
    ]  # fmt: skip
    # The shell gives the pipes the numbers that Chromium expects.
    shell = f'exec "$@" 3<&{to_browser} 4>&{from_browser}'
    process = subprocess.Popen(
        ["bash", "-c", shell, "bash", *command],
        pass_fds=(to_browser, from_browser),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(to_browser)
    os.close(from_browser)
    try:
        yield Page(reading, writing)
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        os.close(reading)
        os.close(writing)
