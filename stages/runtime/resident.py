"""A process that stays on a GPU and runs one stage after another, in which what takes seconds to make is made once.

Kept from stage to stage are the device's context, compiled layers, and the frozen networks of CLIP and LPIPS as long
as their files are the same. Artifacts on the disk are the only truth: a stage reads all its inputs anew. After a stage
that failed or was stopped, and before one that would run under other settings or other code, another process takes its
place.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import socket
import sys
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from stages.runtime.process import follow_parent, run_module
from stages.runtime.wire import receive_request, send_code

DEVICES = ("cuda",)
"""Kinds of devices that have one. A fork is ready at once for a CPU's stages."""
CHANGED = 256
"""Stands for the exit code of a stage that was not begun: code that is loaded has changed."""
VISIBLE = "CUDA_VISIBLE_DEVICES"


def settings_of(request: bytes) -> str:
    """What a resident process must have been started under to run this stage; "" where a stage gets a fork of its own.

    The whole section `runtime` is part of it. Params that cannot be read are the stage's to complain about.
    """
    from ruamel.yaml import YAML, YAMLError

    asked = json.loads(request)
    try:
        text = Path(asked["cwd"], "params.yaml").read_text(encoding="utf-8")
        if not any(device in text for device in DEVICES):  # reading the whole of it takes a while
            return ""
        runtime = YAML(typ="safe", pure=True).load(text)["runtime"]
        if not str(runtime["device"]).startswith(DEVICES):
            return ""
        return json.dumps([asked["cwd"], asked["environ"].get(VISIBLE), runtime], sort_keys=True)
    except (OSError, ValueError, YAMLError, KeyError, TypeError):
        return ""


def run_request(request: bytes, files: list[int]) -> int:
    """Take the asker's output, folder and environment, and run the stage in this process: its exit code."""
    asked: dict[str, Any] = json.loads(request)
    code: Any = 1
    try:
        for target, file in enumerate(files):
            os.dup2(file, target)
            os.close(file)
        # Opened anew: those of the server remember another kind of file, and fail to seek in a pipe.
        sys.stdout, sys.stderr = (open(target, "w", buffering=1, closefd=False) for target in (1, 2))  # noqa: SIM115
        os.chdir(asked["cwd"])
        os.environ.clear()
        os.environ.update(asked["environ"])
        name, *arguments = asked["words"]
        run_module(name, arguments)
        code = 0
    except SystemExit as leaving:
        code = leaving.code
        if isinstance(code, str):
            print(code, file=sys.stderr)
            code = 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    return code or 0


def serve(channel: socket.socket, parent: int) -> NoReturn:
    """Run the stages that come through `channel`, one at a time, until it closes or a stage does not end well."""
    follow_parent(parent)
    own = [os.dup(target) for target in (0, 1, 2)]
    with suppress(EOFError, OSError):
        known = _sources()
        while True:
            request, files = receive_request(channel)
            if _changed(known):
                send_code(channel, CHANGED)
                break
            code = run_request(request, files)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            for target, file in enumerate(own):  # whoever reads the stage's output waits for its end
                os.dup2(file, target)
            if code == 0:
                _clean_up()
                known |= {path: state for path, state in _sources().items() if path not in known}
            send_code(channel, code)  # after one that failed the channel is closed
    os._exit(0)


def _sources() -> dict[str, tuple[int, int] | None]:
    """Time and size of every file from which a module of the project, or of its user, was loaded."""
    libraries = (sys.prefix, sys.base_prefix)
    paths = {getattr(module, "__file__", None) for module in list(sys.modules.values())}
    return {path: _state(path) for path in paths if path and not path.startswith(libraries)}


def _state(path: str) -> tuple[int, int] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size


def _changed(known: dict[str, tuple[int, int] | None]) -> bool:
    return any(_state(path) != state for path, state in known.items())


def _clean_up() -> None:
    """What a stage leaves behind and the next one must not find: its memory and its peaks."""
    gc.collect()
    with suppress(OSError):  # peak memory counts from here on
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
