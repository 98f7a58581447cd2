# SPDX-License-Identifier: Apache-2.0
"""Run MONAI Label's server until it is told to stop."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from volseg.errors import UserError

# importing everything and building three networks takes a quarter of that on two slow cores
START_LIMIT_S = 600
STOP_LIMIT_S = 10
POLL_S = 0.2


class LabelServer:
    """MONAI Label's server as a child process.

    Args:
        python: interpreter of the environment with MONAI Label.
        application: folder of the app, with the bundles in its model folder.
        studies: folder of the images.
        models: names of bundles.
        host: address to listen at.
        port: TCP port.
        configuration: further ``--conf`` entries.
    """

    def __init__(
        self,
        python: Path,
        application: Path,
        studies: Path,
        models: Sequence[str],
        host: str = "127.0.0.1",
        port: int = 8000,
        configuration: Mapping[str, str] | None = None,
    ) -> None:
        settings = {"models": ",".join(models), "zoo_source": "local", "sam2": "false", **(configuration or {})}
        entries = [part for key, value in settings.items() for part in ("--conf", key, value)]
        self.command = [
            str(python), "-m", "monailabel.main", "start_server", "--app", str(application), "--studies", str(studies),
            "--host", host, "--port", str(port), "--uvicorn_app", "label_server:app", *entries,
        ]  # fmt: skip
        # label_server lies in the folder of the app; the copies of volseg in the bundles are the same
        modules = [application, *(application / "model" / model for model in models)]
        self.environment = {
            **os.environ,
            "PATH": os.pathsep.join([str(python.parent), os.environ.get("PATH", os.defpath)]),
            "PYTHONPATH": os.pathsep.join(map(str, modules)),
        }
        self.folder = application
        self.address = f"http://{host}:{port}"
        self.process: subprocess.Popen[bytes] | None = None

    @contextmanager
    def running(self) -> Iterator[subprocess.Popen[bytes]]:
        """Start the server; when the block is entered it answers, and when it is left it has stopped.

        Raises:
            UserError: it ends before it answers.
        """
        # a session of its own: a training that runs in a process of its own is stopped with it
        process = subprocess.Popen(
            self.command, cwd=self.folder, env=self.environment, stdin=subprocess.DEVNULL, start_new_session=True
        )
        try:
            self._wait(process)
            yield process
        finally:
            _stop(process)

    def _wait(self, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + START_LIMIT_S
        while time.monotonic() < deadline:
            if process.poll() is not None:
                raise UserError(
                    f"label: MONAI Label's server did not start, its exit status is {process.returncode}; "
                    "the lines above say why"
                )
            try:
                with urllib.request.urlopen(f"{self.address}/info/", timeout=POLL_S * 50) as answer:
                    json.load(answer)
                return
            except (urllib.error.URLError, ConnectionError, TimeoutError):
                time.sleep(POLL_S)
        raise UserError(f"label: MONAI Label's server did not answer within {START_LIMIT_S} s")


def check_port(host: str, port: int) -> None:
    """See that a port is free.

    Raises:
        UserError: it is not, or there is no such address.
    """
    if not 1 <= port <= 65535:  # the system would take it modulo 65536
        raise UserError(f"label: port must be from 1 to 65535, got {port}")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            trial.bind(address)
    except OSError as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"label: cannot listen at {host}:{port}: {reason}; give another --port") from error


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Ask the server to stop, as Ctrl-C does; whatever is left of its processes after a while is killed."""
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(STOP_LIMIT_S)
        except subprocess.TimeoutExpired:
            print("label: a task still runs; it is stopped", flush=True)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
