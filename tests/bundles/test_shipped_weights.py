# SPDX-License-Identifier: Apache-2.0
"""The weights in the repository are those that their records describe."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

WEIGHTS = sorted((Path(__file__).parents[2] / "bundles").glob("*/models/*.pt"))
TRACKED = [path for path in WEIGHTS if not path.stem.endswith("_released")]


@pytest.mark.parametrize("path", TRACKED, ids=lambda path: f"{path.parts[-3]}-{path.stem}")
def test_the_record_holds_the_sha256_of_the_weights(path):
    record = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    assert record["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
