# SPDX-License-Identifier: Apache-2.0
"""Hash a case so that a cache notices changed files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from monai.data.utils import pickle_hashing

__all__ = ["case_hash"]


def case_hash(case: Mapping[str, str]) -> bytes:
    """Hash a case for ``PersistentDataset`` by its paths and the size and modification time of its files.

    MONAI's own hash uses only the paths: after an annotator corrects a label, training would keep using the old one.
    """
    found = {}
    for key, value in case.items():
        path = Path(str(value))
        status = path.stat() if path.exists() else None
        found[key] = (str(value), status and (status.st_size, status.st_mtime_ns))
    return pickle_hashing(found)
