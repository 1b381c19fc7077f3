"""Debian's chromium without a window, driven over its debugging pipe (CDP)."""

import base64
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path


class Page:
    """One tab; `requests` are the addresses it has fetched."""

    def __init__(self, to_browser, from_browser):
        self._out, self._in = to_browser, from_browser
        self._number, self.requests, self._session = 0, [], None
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        attached = self.send("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        self.send("Network.enable")
        self.send("Page.enable")

    def send(self, method, **params):
        """The result of one command; events that come before it are looked at."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        self._out.write(json.dumps(message).encode() + b"\0")
        self._out.flush()
        while True:
            got = json.loads(self._message())
            if got.get("method") == "Network.requestWillBeSent":
                self.requests.append(got["params"]["request"]["url"])
            if got.get("id") == self._number:
                assert "error" not in got, got["error"]
                return got["result"]

    def _message(self):
        out = b""
        while not out.endswith(b"\0"):
            byte = self._in.read(1)
            assert byte, "the browser went away"
            out += byte
        return out[:-1]

    def go(self, address, width=720, height=620):
        size = {"width": width, "height": height, "mobile": False}
        self.send("Emulation.setDeviceMetricsOverride", deviceScaleFactor=1.5, **size)
        self.send("Page.navigate", url=address)

    def value(self, expression):
        got = self.send("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in got, got
        return got["result"].get("value")

    def wait(self, expression, seconds=30):
        limit = time.monotonic() + seconds
        while not self.value(expression):
            assert time.monotonic() < limit, f"{expression} did not come true"
            time.sleep(0.05)

    def type(self, text):
        self.send("Input.insertText", text=text)

    def press_enter(self):
        key = {"key": "Enter", "code": "Enter", "windowsVirtualKeyCode": 13}
        self.send("Input.dispatchKeyEvent", type="keyDown", text="\r", **key)
        self.send("Input.dispatchKeyEvent", type="keyUp", **key)

    def picture(self):
        return base64.b64decode(self.send("Page.captureScreenshot")["data"])


# The pipe is known by its numbers. Copies first: 3 and 4 may be what is copied.
_AS_3_AND_4 = """
import os, sys
read, write = (os.dup(os.dup(int(n))) for n in sys.argv[1:3])
os.dup2(read, 3)
os.dup2(write, 4)
os.execv(sys.argv[3], sys.argv[3:])
"""


@contextmanager
def page(profile):
    """A tab of a browser with a profile of its own."""
    program = shutil.which("chromium")
    assert program, "no chromium; expected it: apt-get install -y chromium"
    (read, to_browser), (from_browser, write) = os.pipe(), os.pipe()
    command = [
        *(sys.executable, "-c", _AS_3_AND_4, str(read), str(write), program),
        *("--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe"),
        *("--disable-dev-shm-usage", "--disable-background-networking"),
        f"--user-data-dir={profile}",
    ]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(command, pass_fds=(read, write), **quiet)
    os.close(read)
    os.close(write)
    with open(to_browser, "wb") as out, open(from_browser, "rb") as into:
        try:
            yield Page(out, into)
        finally:
            process.terminate()
            process.wait(30)


def main(address, text, file):
    """A picture of a running service's page, once it has answered a text."""
    with tempfile.TemporaryDirectory() as profile, page(profile) as tab:
        tab.go(address)
        tab.wait("document.activeElement?.id === 'text' && !!adapters.length")
        tab.type(text)
        tab.press_enter()
        tab.wait("document.querySelectorAll('rect.bar').length > 0")
        Path(file).write_bytes(tab.picture())


if __name__ == "__main__":  # python tests/browser.py http://... "A text." FILE.png
    main(*sys.argv[1:])
