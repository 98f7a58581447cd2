# SPDX-License-Identifier: Apache-2.0
"""Check and unpack the archives that data sets are published in.

An archive comes from elsewhere, so nothing in it is trusted: only members that were asked for land on disk, under
the folder that was asked for, whole or not at all.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO

from tqdm import tqdm

from volseg.data.image_file import readable
from volseg.errors import UserError
from volseg.storage.files import atomic_folder

__all__ = ["check_md5", "unpack"]

_CHUNK_BYTES = 2**20
# RuntimeError: an encrypted member, or a compression that zipfile does not know
_ARCHIVE_ERRORS = (OSError, zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, RuntimeError)


@dataclass(frozen=True)
class _Member:
    name: str
    size_bytes: int
    is_plain: bool  # a file or a folder: no link, no device
    is_folder: bool
    open: Callable[[], IO[bytes] | None]


def check_md5(path: Path, md5: str) -> None:
    """See that a download is the published file.

    Args:
        path: the file.
        md5: the published checksum, 32 hexadecimal digits.

    Raises:
        UserError: the checksum differs, or the file cannot be read.
    """
    with readable(path, (OSError,)), path.open("rb") as file:
        found = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    if found != md5:
        raise UserError(
            f"{path}: is not the published file: its MD5 is {found}, must be {md5}; download it again or move it away"
        )


def unpack(archive: Path, folder: Path, wanted: re.Pattern[str], max_file_bytes: int) -> Path:
    """Unpack members of a ``.zip`` or ``.tar`` file into a new folder, whole or not at all.

    Args:
        archive: ends in ``.zip`` or ``.tar``.
        folder: absent or empty.
        wanted: matches the whole name of the members to unpack; its group ``path`` is the path under ``folder``.
        max_file_bytes: no member to unpack may be larger.

    Returns:
        ``folder``.

    Raises:
        UserError: a name is absolute or leads out of the archive, a member is a link or a device, two members have one
            path, a member is too large, none is wanted, the archive is damaged, or there is no space.
    """
    with readable(archive, _ARCHIVE_ERRORS), _members(archive) as members:
        plan = _plan(archive, members, wanted, max_file_bytes)
        with atomic_folder(folder) as temporary:
            for path, member in tqdm(plan.items(), desc=archive.name, unit="file"):
                target = temporary / path
                target.parent.mkdir(parents=True, exist_ok=True)
                source = member.open()
                assert source is not None  # only for links and folders, and _plan let none through
                with source, target.open("xb") as file:
                    shutil.copyfileobj(source, file, _CHUNK_BYTES)
    return folder


def _plan(
    archive: Path, members: Iterator[_Member], wanted: re.Pattern[str], max_file_bytes: int
) -> dict[str, _Member]:
    """Path under the folder to member, of those that are wanted; every member is looked at."""
    plan: dict[str, _Member] = {}
    for member in members:
        problem = _problem(member)
        match = wanted.fullmatch(member.name)
        if match and not member.is_folder and not problem:
            if match["path"] in plan:
                problem = f"holds {match['path']} twice"
            elif member.size_bytes > max_file_bytes:
                problem = f"is {member.size_bytes} bytes long, more than {max_file_bytes}"
            plan[match["path"]] = member
        if problem:
            raise UserError(
                f"{archive}: not unpacked, because member {member.name!r} {problem}; download the archive as published"
            )
    if not plan:
        raise UserError(
            f"{archive}: nothing to unpack: no member matches {wanted.pattern}; download the archive as published"
        )
    return plan


def _problem(member: _Member) -> str | None:
    path = PurePosixPath(member.name)
    if path.is_absolute() or re.match("[A-Za-z]:", member.name):
        return "has an absolute name"
    if ".." in path.parts or "\\" in member.name:
        return "has a name that leads elsewhere"
    return None if member.is_plain else "is a link or a device"


@contextmanager
def _members(archive: Path) -> Iterator[Iterator[_Member]]:
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive) as file:
            yield (_zip_member(file, info) for info in file.infolist())
    else:
        with tarfile.open(archive, "r:") as tar:
            yield (
                _Member(
                    info.name, info.size, info.isfile() or info.isdir(), info.isdir(), partial(tar.extractfile, info)
                )
                for info in tar
            )


def _zip_member(file: zipfile.ZipFile, info: zipfile.ZipInfo) -> _Member:
    kind = stat.S_IFMT(info.external_attr >> 16)  # 0 where the archive was made on a system without
    is_plain = kind in (0, stat.S_IFREG, stat.S_IFDIR)
    return _Member(info.filename, info.file_size, is_plain, info.is_dir(), partial(file.open, info))
