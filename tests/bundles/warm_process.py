# SPDX-License-Identifier: Apache-2.0
"""The warm process of the tests: imports its arguments once and forks for every command."""

from __future__ import annotations

import atexit
import gc
import json
import os
import runpy
import signal
import sys
import threading
from collections.abc import Sequence

TIMEOUT_S = 900  # only ends a hang
WRITE = os.O_WRONLY | os.O_CREAT | os.O_TRUNC


def serve(modules: Sequence[str]) -> None:
    """Import modules, then fork for every request on standard input; answer with the process id and the exit status."""
    for module in modules:
        __import__(module)
    gc.collect()
    gc.freeze()
    search_path = sys.path[1:]  # without the folder of this file
    for line in sys.stdin:
        request = json.loads(line)
        child = os.fork()
        if not child:
            break
        print(child, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
    else:
        return
    signal.alarm(TIMEOUT_S)
    # what one command compiles of volseg and its bundles is there for the next, away from the sources
    sys.dont_write_bytecode, sys.pycache_prefix = False, os.environ["XDG_CACHE_HOME"]
    os.chdir(request["cwd"])
    os.environ.update(request["env"])
    for number, path, mode in ((0, os.devnull, os.O_RDONLY), (1, request["out"], WRITE), (2, request["err"], WRITE)):
        os.dup2(os.open(path, mode, 0o644), number)
    added = [p for p in request["env"].get("PYTHONPATH", "").split(os.pathsep) if p]
    sys.argv = request["argv"]
    sys.path = [request["cwd"], *added, *search_path]
    leave(run(request["kind"]))


def run(kind: str) -> int:
    """The module or script in ``sys.argv``; the exit status that the interpreter would give."""
    try:
        if kind == "module":
            runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:  # noqa: BLE001
        sys.excepthook(*sys.exc_info())
        return 1
    return 0


def leave(status: int) -> None:
    """As at the end of the interpreter, without the seconds that it takes to clear the memory of imported modules."""
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    serve(sys.argv[1:])
