# SPDX-License-Identifier: Apache-2.0
"""Runs the command line of ``monai.bundle`` many times without paying for its imports each time.

A warm process imports MONAI once, without this repository on its path, and forks for every command: what runs in the
fork has the arguments, working directory, environment and module search path that ``python -m monai.bundle`` would
have, and leaves the way the interpreter leaves.
"""

from __future__ import annotations

import atexit
import gc
import json
import os
import runpy
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
NAME = "pdvnet_lung"
TIMEOUT_S = 240
WRITE = os.O_WRONLY | os.O_CREAT | os.O_TRUNC

# Where `make` installed the repository, the commands shall still not see it: editable installs are taken out.
NOT_INSTALLED = f"""import sys
sys.meta_path[:] = [f for f in sys.meta_path if not getattr(f, "__module__", "").startswith("__editable__")]
sys.path[:] = [p for p in sys.path if p.rstrip("/") != {str(ROOT)!r}]
"""
WARM_IMPORTS = (
    "ignite.engine, itk, matplotlib.pyplot, monai.bundle, monai.data, monai.engines, monai.handlers, monai.transforms, "
    "nibabel, scipy.ndimage, torch.utils.tensorboard"
)


class Runner:
    """Starts commands in forks of one warm process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "site").mkdir(parents=True)
        (folder / "site" / "sitecustomize.py").write_text(NOT_INSTALLED)
        self.environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONSAFEPATH")}
        self.environment |= {
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(folder / "site"),
            "PYTHONDONTWRITEBYTECODE": "1",
            "MPLBACKEND": "agg",
            "XDG_CACHE_HOME": str(folder / "cache"),
        }
        self.server = subprocess.Popen(
            [sys.executable, __file__],
            cwd=folder,
            env=self.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def bundle(self, *args: object, cwd: Path | None = None, env: dict[str, str] | None = None) -> Any:
        """``python -m monai.bundle ARGS``"""
        return self._run(["monai.bundle", *(str(a) for a in args)], "module", cwd, env)

    def python(self, code: str, *args: object, cwd: Path | None = None, env: dict[str, str] | None = None) -> Any:
        """``python script.py ARGS``"""
        script = self.folder / "script.py"
        script.write_text(code)
        return self._run([str(script), *(str(a) for a in args)], "path", cwd, env)

    def process(self, *args: object, cwd: Path | None = None, env: dict[str, str] | None = None) -> Any:
        """``python ARGS``, a process of its own."""
        return subprocess.run(
            [sys.executable, *(str(a) for a in args)],
            cwd=cwd or self.folder,
            env=self.environment | (env or {}),
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )

    def _run(
        self, argv: Sequence[str], kind: str, cwd: Path | None, env: dict[str, str] | None
    ) -> subprocess.CompletedProcess[str]:
        out, err = self.folder / "stdout.txt", self.folder / "stderr.txt"
        request = {"argv": argv, "kind": kind, "cwd": str(cwd or self.folder), "env": env or {}}
        assert self.server.stdin is not None
        assert self.server.stdout is not None
        self.server.stdin.write(json.dumps(request | {"out": str(out), "err": str(err)}) + "\n")
        self.server.stdin.flush()
        status = int(self.server.stdout.readline())
        return subprocess.CompletedProcess(argv, status, out.read_text(), err.read_text())

    def close(self) -> None:
        assert self.server.stdin is not None
        self.server.stdin.close()
        self.server.wait(timeout=30)


def serve() -> None:
    """Fork for every request on standard input; answer with the exit status."""
    for module in WARM_IMPORTS.split(", "):
        __import__(module)
    gc.collect()
    gc.freeze()
    search_path = sys.path[1:]  # without the folder of this file
    for line in sys.stdin:
        request = json.loads(line)
        child = os.fork()
        if not child:
            break
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
    else:
        return
    signal.alarm(TIMEOUT_S)
    os.chdir(request["cwd"])
    os.environ.update(request["env"])
    for number, path, mode in ((0, os.devnull, os.O_RDONLY), (1, request["out"], WRITE), (2, request["err"], WRITE)):
        os.dup2(os.open(path, mode, 0o644), number)
    added = [p for p in request["env"].get("PYTHONPATH", "").split(os.pathsep) if p]
    sys.argv = request["argv"]
    sys.path = [request["cwd"] if request["kind"] == "module" else str(Path(sys.argv[0]).parent), *added, *search_path]
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


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository."""
    return ROOT


@pytest.fixture(scope="session")
def bundle_dir() -> Path:
    return ROOT / "bundles" / NAME


@pytest.fixture(scope="session")
def configs(bundle_dir) -> Path:
    return bundle_dir / "configs"


@pytest.fixture(scope="session")
def runner(tmp_path_factory):
    runner = Runner(tmp_path_factory.mktemp("runner") / "unrelated")
    yield runner
    runner.close()


@pytest.fixture(scope="session")
def monai_bundle(runner):
    """``monai_bundle(*args, cwd=None, env=None)`` returns the completed process; by default in an unrelated folder."""
    return runner.bundle


@pytest.fixture(scope="session")
def phantom_overrides(tmp_path_factory) -> list[str]:
    """Arguments that make train.json and evaluate.json small, and phantoms shared by all tests."""
    from pdvnet_lung.data import datalist

    folder = tmp_path_factory.mktemp("phantoms") / "training"
    cases, shape = {"training": 2, "validation": 2, "test": 1}, (40, 48, 32)
    datalist(None, "training", str(folder), cases, shape)
    sizes = ["--phantom_cases", str(cases), "--phantom_shape", str(list(shape)), "--device", "cpu"]
    return ["--phantom_dir", str(folder), *sizes]


@pytest.fixture(scope="session")
def phantom(phantom_overrides) -> dict[str, Path]:
    """One tiny case: image and label."""
    folder = Path(phantom_overrides[1])
    return {kind: folder / f"{kind}s" / "test_0.nii.gz" for kind in ("image", "label")}


@pytest.fixture(scope="session")
def train_overrides(phantom_overrides) -> list[str]:
    return [*phantom_overrides, "--spatial_size", "[32, 40, 24]", "--max_epochs", "1"]


@pytest.fixture(scope="session")
def weights(tmp_path_factory) -> Path:
    """Weights of an untrained PDV-Net, for a grid of 32x40x24."""
    import torch
    from pdvnet_lung.network import PDVNet

    from volseg.weights import save_weights

    path = tmp_path_factory.mktemp("weights") / "model.pt"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        save_weights(path, PDVNet(), {"spatial_size": [32, 40, 24]})
    return path


if __name__ == "__main__":
    serve()
