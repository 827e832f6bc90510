"""A headless chromium, driven by its own protocol over a websocket."""

import json
import shutil
import socket
import subprocess
import tempfile
import time
from itertools import count
from urllib.request import urlopen

from websockets.sync.client import connect

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class Browser:
    """One page. `faults` has what its scripts and its console complained of."""

    def __init__(self, address, size=(1100, 720)):
        self._address, self._size, self._numbers, self.faults = address, size, count(1), []

    def __enter__(self):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self._folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        options = [
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--hide-scrollbars",
            f"--user-data-dir={self._folder.name}",
        ]
        self._process = subprocess.Popen(
            [CHROMIUM, *options, f"--remote-debugging-port={port}", "about:blank"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        until = time.monotonic() + 60
        while True:
            try:
                with urlopen(f"http://127.0.0.1:{port}/json", timeout=20) as answer:
                    (page,) = [page for page in json.load(answer) if page["type"] == "page"]
                break
            except (OSError, ValueError):
                assert time.monotonic() < until, "chromium does not start"
                time.sleep(0.05)
        self._socket = connect(page["webSocketDebuggerUrl"], max_size=None, compression=None).__enter__()
        for domain in ("Runtime", "Log", "Page"):
            self.call(f"{domain}.enable")
        width, height = self._size
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        self.call("Page.navigate", url=self._address)
        return self

    def __exit__(self, *_):
        self._socket.close()
        self._process.terminate()
        self._process.wait(30)
        self._folder.cleanup()

    def call(self, method, **parameters):
        number = next(self._numbers)
        self._socket.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while True:
            said = json.loads(self._socket.recv(60))
            if said.get("id") == number:
                assert "error" not in said, said
                return said["result"]
            if said.get("method") in ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded"):
                self.faults.append(said)

    def run(self, code):
        """The value of an expression; None where it cannot be had, as on a page that is still loading."""
        return self.call("Runtime.evaluate", expression=code, returnByValue=True)["result"].get("value")

    def wait(self, code):
        """The value of an expression once it is true."""
        until = time.monotonic() + 30
        while not (value := self.run(code)):
            assert time.monotonic() < until, f"the page never came to: {code}"
            time.sleep(0.05)
        return value

    def press(self, place, to=None):
        """Press the mouse at x, y of the window, and let it go there or elsewhere."""
        for kind, (x, y) in (
            ("mouseMoved", place),
            ("mousePressed", place),
            ("mouseMoved", to or place),
            ("mouseReleased", to or place),
        ):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", buttons=1, clickCount=1)

    def escape(self):
        self.call("Input.dispatchKeyEvent", type="keyDown", key="Escape")
