# SPDX-License-Identifier: Apache-2.0
"""Where converted networks are kept between two starts."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

__all__ = ["keep_newest", "model_cache"]


def model_cache(folder: Path | None = None) -> Path:
    """The folder itself, or ``$XDG_CACHE_HOME/volseg``, or ``~/.cache/volseg``."""
    return folder or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "volseg"


def keep_newest(folder: Path, entries: int) -> None:
    """Remove what was used longest ago, all files and folders but so many; an OSError where that cannot be done."""
    for entry in sorted(folder.iterdir(), key=lambda entry: entry.stat().st_mtime)[:-entries]:
        if entry.is_dir():
            shutil.rmtree(entry, ignore_errors=True)
        else:
            entry.unlink(missing_ok=True)
