"""Pages as headless Chromium shows them, by its DevTools protocol: at a width, light or dark, with their console."""

import json
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from websockets.sync.client import ClientConnection, connect

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--remote-debugging-port=0")
FILES = "--allow-file-access-from-files"
"""A site's pages lie on a server, where one of its scripts may start another."""
SECONDS = 120.0
DARK, LIGHT = "dark", "light"
"""Values of `prefers-color-scheme`."""
SPEAKING = ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded")


class Page:
    """One open page."""

    def __init__(self, connection: ClientConnection) -> None:
        self.connection, self.sent = connection, 0
        self.events: list[dict[str, Any]] = []

    @property
    def console(self) -> list[str]:
        """What its console has said, a line each."""
        return [json.dumps(event["params"]) for event in self.events if event["method"] in SPEAKING]

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One command and its answer; what happened meanwhile is kept."""
        self.sent += 1
        self.connection.send(json.dumps({"id": self.sent, "method": method, "params": parameters}))
        while (said := json.loads(self.connection.recv(SECONDS))).get("id") != self.sent:
            self.events.append(said)
        assert "error" not in said, said
        return dict(said["result"])

    def go(self, url: str) -> None:
        """Open a URL and wait until it has loaded."""
        self.events.clear()
        self.send("Page.navigate", url=url)
        while all(event["method"] != "Page.loadEventFired" for event in self.events):
            self.events.append(json.loads(self.connection.recv(SECONDS)))

    def run(self, script: str) -> Any:
        """What `script` returns, the body of a function of window `view` and document `page`."""
        call = f"(function (view, page) {{ {script} }})(window, document)"
        found = self.send("Runtime.evaluate", expression=call, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def until(self, *words: str) -> str:
        """The text that can be read on the page, once all of these words are in it."""
        end = time.monotonic() + SECONDS
        while lacking := [word for word in words if word not in (text := str(self.run("return page.body.innerText;")))]:
            assert time.monotonic() < end, f"no {lacking} in: {text}"
            time.sleep(0.2)
        return text


@contextmanager
def browser(folder: Path, *, width: int, scheme: str = LIGHT) -> Iterator[Page]:
    """A page of `width` pixels; `folder` is for what the browser writes."""
    assert CHROMIUM is not None
    profile = folder / "profile"
    quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen([CHROMIUM, *FLAGS, FILES, f"--user-data-dir={profile}", "about:blank"], **quiet)
    try:
        with connect(_socket(profile), max_size=None, compression=None) as connection:
            page = Page(connection)
            for domain in ("Page", "Runtime", "Log"):
                page.send(f"{domain}.enable")
            size = {"width": width, "height": 1600, "deviceScaleFactor": 1, "mobile": False}
            page.send("Emulation.setDeviceMetricsOverride", **size)
            page.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
            yield page
    finally:
        process.terminate()
        process.wait(SECONDS)


def _socket(profile: Path) -> str:
    """Where the one page of the browser that has this profile listens."""
    end = time.monotonic() + SECONDS
    while not (port := profile / "DevToolsActivePort").is_file() or "\n" not in port.read_text():
        assert time.monotonic() < end
        time.sleep(0.05)
    number = port.read_text().split("\n")[0]
    with urllib.request.urlopen(f"http://127.0.0.1:{number}/json/list", timeout=SECONDS) as answer:
        return str(next(item for item in json.load(answer) if item["type"] == "page")["webSocketDebuggerUrl"])


def measured(page: Path, folder: Path, script: str, *, width: int, scheme: str = LIGHT) -> tuple[Any, list[str]]:
    """What `script` returns on a page that is a file, and the console's lines."""
    with browser(folder, width=width, scheme=scheme) as shown:
        shown.go(page.absolute().as_uri())
        return shown.run(script), shown.console
