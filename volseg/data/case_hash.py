# SPDX-License-Identifier: Apache-2.0
"""What tells a cached case from the same files after they were changed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from monai.data.utils import pickle_hashing

__all__ = ["case_hash"]


def case_hash(case: Mapping[str, str]) -> bytes:
    """Hash of a case for ``PersistentDataset``: its paths and the size and time of change of what lies there.

    MONAI's own hash takes the paths alone: an annotator corrects a label, and the training goes on with the old one.
    """
    found = {}
    for key, value in case.items():
        path = Path(str(value))
        status = path.stat() if path.exists() else None
        found[key] = (str(value), status and (status.st_size, status.st_mtime_ns))
    return pickle_hashing(found)
