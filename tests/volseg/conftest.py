# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

CLAIM = """
import sys
from volseg.storage.files import claim_folder
claim_folder(sys.argv[1])
claim_folder(sys.argv[1])  # again by the same process
print("claimed", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def claimed_elsewhere(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], AbstractContextManager[None]]:
    """``with claimed_elsewhere(folder)``: another process, killed at the end, writes its results there."""
    monkeypatch.setattr("volseg.storage.files._claimed", {})

    @contextmanager
    def claimed(folder: Path) -> Iterator[None]:
        command = [sys.executable, "-c", CLAIM, str(folder)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
            assert other.stdout is not None
            assert other.stdout.readline() == "claimed\n"
            yield
            other.kill()

    return claimed
