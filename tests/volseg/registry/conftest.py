# SPDX-License-Identifier: Apache-2.0
"""Fixtures: an empty registry, a web server of it, a folder for bundles."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.volseg.registry.misbehaving_server import MisbehavingServer
from volseg.registry import location


@pytest.fixture
def registry(tmp_path: Path) -> Path:
    folder = tmp_path / "registry"
    folder.mkdir()
    return folder


@pytest.fixture
def bundle_dir(tmp_path: Path) -> Path:
    return tmp_path / "bundles"


@pytest.fixture
def server(registry: Path) -> Iterator[MisbehavingServer]:
    with MisbehavingServer(registry) as opened:
        thread = threading.Thread(target=opened.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield opened
        opened.released.set()
        opened.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(location, "FIRST_WAIT_S", 0.001)
