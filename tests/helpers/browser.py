"""A page as a browser shows it, by headless Chromium: at a width, light or dark, with what its console said."""

import json
import re
import shutil
import subprocess
from html import escape, unescape
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--allow-file-access-from-files")
SECONDS = 120
DARK, LIGHT = 0, 1
"""Blink's numbers of `prefers-color-scheme`."""
FRAME = """<!doctype html><meta charset="utf-8"><pre></pre>
<iframe src="{page}" width="{width}" height="900" style="border: 0"></iframe>
<script>
const frame = document.querySelector("iframe");
frame.onload = () => {{
  const found = (function (view, page) {{ {script} }})(frame.contentWindow, frame.contentDocument);
  document.querySelector("pre").textContent = JSON.stringify(found);
}};
</script>"""


def measured(page: Path, folder: Path, script: str, *, width: int, scheme: int = LIGHT) -> tuple[Any, list[str]]:
    """What `script` (the body of a function of window `view` and document `page`) returns, and the console's lines.

    The page lies in a frame of `width` pixels; `folder` is for what the browser writes.
    """
    assert CHROMIUM is not None
    wrapper = folder / "frame.html"
    frame = FRAME.format(page=escape(page.absolute().as_uri()), width=width, script=script)
    wrapper.write_text(frame, encoding="utf-8")
    command = [CHROMIUM, *FLAGS, f"--user-data-dir={folder / 'profile'}", "--enable-logging=stderr"]
    command += [f"--blink-settings=preferredColorScheme={scheme}", "--virtual-time-budget=5000", "--dump-dom"]
    command.append(wrapper.absolute().as_uri())
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", timeout=SECONDS, check=True)
    written = re.search(r"<pre>(.*?)</pre>", done.stdout, re.DOTALL)
    assert written is not None and written[1], done.stderr
    return json.loads(unescape(written[1])), [line for line in done.stderr.splitlines() if ":CONSOLE" in line]
