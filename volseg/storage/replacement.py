# SPDX-License-Identifier: Apache-2.0
"""Put a new version of a folder in the place of an old one, at once."""

from __future__ import annotations

import ctypes
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from volseg.errors import UserError

__all__ = ["complete_replacement", "replacement"]

AT_FDCWD = -100
RENAME_EXCHANGE = 2


@contextmanager
def replacement(target: Path, keep: Sequence[str] = ()) -> Iterator[Path]:
    """An empty folder that takes the place of ``target`` when the block ends without an error.

    On Linux the two change places in one step. Where the system cannot, a kill between two steps may leave no
    ``target``; :func:`complete_replacement`, and the next call, put the old one back. One process at a time may
    replace a folder.

    Args:
        target: the folder to be made or replaced.
        keep: what moves from the old folder to the new one.

    Yields:
        the new folder, ``.NAME.staging/new`` beside ``target``.

    Raises:
        UserError: as :func:`complete_replacement`.
    """
    complete_replacement(target, keep)
    staging = _staging(target)
    new = staging / "new"
    new.mkdir(parents=True)
    try:
        yield new
        if not os.path.lexists(target):
            new.rename(target)
        elif not _exchange(new, target):
            target.rename(staging / "old")
            new.rename(target)
    finally:
        complete_replacement(target, keep)


def complete_replacement(target: Path, keep: Sequence[str] = ()) -> None:
    """Complete, or undo, a replacement that was killed; without one nothing happens.

    Raises:
        UserError: what would be kept is in both folders.
    """
    staging = _staging(target)
    old, new = staging / "old", staging / "new"
    if not os.path.lexists(target):
        # a new folder has nothing to keep: one that does is an old one that changed places
        for folder in (old, new):
            if os.path.lexists(folder) and (folder == old or any(os.path.lexists(folder / name) for name in keep)):
                folder.rename(target)
                break
    for folder in (old, new):
        if folder.is_symlink():  # what is behind a link was never part of the folder
            continue
        for name in keep:
            if not os.path.lexists(folder / name):
                continue
            if os.path.lexists(target / name):
                raise UserError(
                    f"{folder / name}: is left from a replacement that was interrupted, and {target / name} is new. "
                    "Received: two folders for one place. Move one of them away."
                )
            (folder / name).rename(target / name)
    if staging.exists():
        shutil.rmtree(staging)


def _staging(target: Path) -> Path:
    return target.with_name(f".{target.name}.staging")


def _exchange(one: Path, other: Path) -> bool:
    """Let two folders change places in one step; whether the system can."""
    if not sys.platform.startswith("linux"):
        return False
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)  # glibc 2.28 and newer
    if rename is None:
        return False
    return rename(AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), RENAME_EXCHANGE) == 0
