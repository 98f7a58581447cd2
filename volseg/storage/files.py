# SPDX-License-Identifier: Apache-2.0
"""Write files and folders whole or not at all.

What is being written lies in a staging folder beside its target, with a name and a lock of its own: processes that
write the same target never touch each other's work, and what a killed process left is recognised by its free lock.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from glob import escape
from pathlib import Path
from typing import Any
from uuid import uuid4

from filelock import FileLock, Timeout

from volseg.errors import UserError

# how gzip begins
GZIP = b"\x1f\x8b"
FILE_STAGING = ".unfinished"
FOLDER_STAGING = ".staging"
TOKEN_DIGITS = 12
LOCK = ".lock"
# by this process, until it ends
_claimed: dict[str, FileLock] = {}
AT_FDCWD = -100
RENAME_EXCHANGE = 2


@contextmanager
def writing(name: object) -> Iterator[None]:
    """Turn an ``OSError`` within the block into one line about ``name``, the file or folder that is written.

    Raises:
        UserError: the system refuses: no permission, no space and the like.
    """
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{name}: cannot be written: {error.strerror or error}; check the free space and permissions"
        ) from error


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path with the name of ``path``, and move it to ``path`` when the block ends without an error.

    Raises:
        UserError: the file or its folder cannot be written.
    """
    path = Path(path)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with _staging(path, FILE_STAGING) as staging:
            try:
                yield staging / path.name
                (staging / path.name).replace(path)
            finally:
                shutil.rmtree(staging, ignore_errors=True)


def remove_leftovers(folder: str | Path, below: bool = True) -> None:
    """Remove the unfinished files that killed processes left in a folder and, if told, in the folders below."""
    for staging in _abandoned(Path(folder), f"{'**/' if below else ''}.*{FILE_STAGING}"):
        shutil.rmtree(staging, ignore_errors=True)


@contextmanager
def atomic_folder(path: str | Path, is_replaceable: Callable[[Path], bool] = lambda folder: False) -> Iterator[Path]:
    """Yield an empty folder, and put it in the place of ``path`` when the block ends without an error.

    Args:
        path: the folder to write.
        is_replaceable: tells whether a folder that stands at ``path`` may be replaced; an empty one always may.

    Raises:
        UserError: something else stands there, or the folder cannot be written.
    """
    path = Path(path)
    with writing(path):
        check_replaceable(path, is_replaceable)
        with replacement(path) as new:
            yield new
            check_replaceable(path, is_replaceable)  # hours may have passed


def check_replaceable(path: Path, is_replaceable: Callable[[Path], bool] = lambda folder: False) -> None:
    """Check that nothing stands at ``path``, or an empty folder, or one that may be replaced.

    Raises:
        UserError: something else does.
    """
    if path.exists() and not (path.is_dir() and (not any(path.iterdir()) or is_replaceable(path))):
        raise UserError(f"{path}: exists and will not be replaced; move it away or choose another name")


@contextmanager
def replacement(target: Path, keep: Sequence[str] = ()) -> Iterator[Path]:
    """Yield an empty folder, and put it in the place of whatever is at ``target`` when the block ends without an error.

    On Linux the two change places in one step. Elsewhere a kill between two steps may leave no ``target``; the next
    call, or :func:`complete_replacement`, puts the old one back.

    Args:
        target: the folder to make or replace.
        keep: names in it that move from the old folder to the new one.

    Raises:
        OSError: it cannot be written.
        UserError: as :func:`complete_replacement`.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    complete_replacement(target, keep)
    with _staging(target, FOLDER_STAGING) as staging:
        new = staging / "new"
        try:
            new.mkdir()
            yield new
            _swap(new, target, staging / "old")
        finally:
            _complete(staging, target, keep)


def complete_replacement(target: Path, keep: Sequence[str] = ()) -> None:
    """Complete, or undo, a replacement that was killed; without one do nothing.

    Raises:
        UserError: what would be kept is in both folders.
    """
    for staging in _abandoned(target.parent, f".{escape(target.name)}.{'?' * TOKEN_DIGITS}{FOLDER_STAGING}"):
        _complete(staging, target, keep)


def _complete(staging: Path, target: Path, keep: Sequence[str]) -> None:
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
                    f"{folder / name}: is left from an interrupted replacement, but {target / name} exists too; "
                    "move one of them away"
                )
            (folder / name).rename(target / name)
    shutil.rmtree(staging, ignore_errors=True)


def _swap(new: Path, target: Path, old: Path) -> None:
    """Move ``new`` to ``target`` and what was there to ``new`` or ``old``, whatever other processes put there."""
    while True:
        try:
            new.rename(target)
            return
        except OSError:
            if not os.path.lexists(target):
                raise
        if _exchange(new, target):
            return
        with suppress(FileNotFoundError):  # another process has just moved it
            target.rename(old)


def _exchange(one: Path, other: Path) -> bool:
    """Let two paths change places in one step; return whether the system can."""
    if not sys.platform.startswith("linux"):
        return False
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)  # glibc 2.28 and newer
    if rename is None:
        return False
    return rename(AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), RENAME_EXCHANGE) == 0


@contextmanager
def _staging(target: Path, suffix: str) -> Iterator[Path]:
    """Yield a new folder beside ``target``, locked for this process, which has to empty it."""
    while True:
        staging = target.with_name(f".{target.name}.{uuid4().hex[:TOKEN_DIGITS]}{suffix}")
        staging.mkdir()
        lock = FileLock(staging / LOCK)
        with suppress(OSError):  # without locks nothing counts as abandoned
            lock.acquire()
        if staging.is_dir():  # else it was removed as abandoned before it was locked
            break
    with _released_at_the_end(staging, lock):
        yield staging


def _abandoned(folder: Path, pattern: str) -> Iterator[Path]:
    """The staging folders of processes that ended, each locked while it is dealt with."""
    for staging in folder.glob(pattern):
        if not staging.is_dir():
            continue
        lock = FileLock(staging / LOCK)
        try:
            lock.acquire(timeout=0)
        except OSError:  # held, or the storage has no locks
            continue
        with _released_at_the_end(staging, lock):
            yield staging


@contextmanager
def _released_at_the_end(staging: Path, lock: FileLock) -> Iterator[None]:
    try:
        yield
    finally:
        lock.release()
        with suppress(OSError):  # some network storages hold an empty folder until its lock is closed
            staging.rmdir()


@contextmanager
def only_process(lock: Path, message: str) -> Iterator[None]:
    """Exclude other processes from what a file locks; one that was killed excludes nobody.

    Raises:
        UserError: with ``message``, another one is at work.
    """
    try:
        held = FileLock(lock).acquire(timeout=0)
    except Timeout as error:
        raise UserError(message) from error
    with held:
        yield


def claim_folder(folder: str | Path) -> None:
    """Make this process the only one on this machine whose run writes to a folder, for as long as it lives.

    The lock lies in the temporary folder, so that nothing is created before there are results. A run that was killed
    excludes nobody; of the processes of one distributed training the first one claims the folder for all.

    Raises:
        UserError: another run writes there.
    """
    name = hashlib.sha256(os.fsencode(Path(folder).resolve())).hexdigest()[:32]
    if name in _claimed or os.environ.get("RANK", "0") != "0":
        return
    locks = Path(tempfile.gettempdir()) / f"volseg-{os.getuid()}"
    lock = FileLock(locks / f"{name}.lock")
    try:
        locks.mkdir(mode=0o700, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout as error:
        raise UserError(
            f"{folder}: another run writes its results there; wait for it to end, or choose another folder"
        ) from error
    except OSError:  # a temporary folder without locks: nobody can be told apart
        return
    _claimed[name] = lock


def check_folder(folder: str | Path) -> None:
    """Refuse, before hours of work, a folder for results that cannot be created or written to; create nothing.

    Raises:
        UserError: a file is in its place or on the way to it, or permissions are missing.
    """
    there = Path(folder).absolute()
    while not os.path.lexists(there):
        there = there.parent
    if not there.is_dir():
        raise UserError(f"{folder}: not a folder for results, because {there} is a file; choose another folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise UserError(f"{folder}: cannot be written: no permission to write to {there}; choose another folder")


def write_json(path: str | Path, content: Any) -> None:
    """Write ``content`` as indented JSON, whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(content, indent=4) + "\n", encoding="utf-8")
