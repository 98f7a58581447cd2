# SPDX-License-Identifier: Apache-2.0
"""What tests of the registry share: zips of small bundles, a web server on loopback, processes of their own."""

from __future__ import annotations

import hashlib
import io
import json
import os
import sys
import threading
import traceback
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from PIL import Image

from volseg.registry.manifest import MANIFEST, Manifest
from volseg.registry.release import Release


def png(colour: tuple[int, int, int] = (40, 120, 90), size: tuple[int, int] = (31, 10)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, "PNG")
    return buffer.getvalue()


def bundle_contents(name: str, version: str, **metadata: object) -> dict[str, bytes]:
    """The few files that a publisher looks at."""
    metadata = {
        "version": version,
        "name": f"The {name}",
        "task": "Segmentation for tests",
        "eval_metrics": {"mean_dice": 0.9, "per_lobe": {"upper": 0.25}},
    } | metadata
    return {
        "LICENSE": b"Text.",
        "configs/metadata.json": json.dumps(metadata).encode(),
        "docs/README.md": b"# The card\n",
        "docs/figures/phantom.png": png(),
        "models/model.pt": f"weights of {version}".encode(),
    }


def write_zip(
    folder: Path, name: str, version: str, contents: dict[str, bytes] | None = None, **metadata: object
) -> Path:
    """NAME_vVERSION.zip as ``python -m tools pack`` writes it, of contents of the caller's or of small ones."""
    release = Release(name, version)
    contents = dict(contents or bundle_contents(name, version, **metadata))
    manifest = Manifest(
        release,
        "0" * 40,
        {"code": "Apache-2.0", "weights": "CC-BY-4.0"},
        {"numpy": "2.4.6"},
        {path: {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)} for path, data in contents.items()},
    )
    contents[MANIFEST] = json.dumps(manifest.as_json()).encode()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / release.zip_name
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for file in sorted(contents):
            archive.writestr(zipfile.ZipInfo(f"{name}/{file}"), contents[file])
    return path


def files_of(folder: Path) -> dict[str, bytes]:
    """The content of every file below a folder by its path, hidden ones left out."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.startswith(".")
    }


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def served(handler: Callable[..., SimpleHTTPRequestHandler]) -> Iterator[str]:
    """The address of a web server on loopback."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def served_folder(folder: Path) -> contextmanager[str]:
    return served(partial(QuietHandler, directory=str(folder)))


def fork(function: Callable[[], None]) -> int:
    """Start a process that calls a function and ends with status 0, or 1 where the function raises; its id."""
    sys.stdout.flush()
    sys.stderr.flush()
    process = os.fork()
    if process == 0:
        status = 1
        try:
            function()
            status = 0
        except BaseException:  # noqa: BLE001 - nothing of the tests' own process may run on in this one
            traceback.print_exc()
        finally:
            os._exit(status)
    return process


def ended(process: int) -> int:
    """Wait for a process; its exit status, or less than 0 the signal that killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
