# SPDX-License-Identifier: Apache-2.0
"""Write files whole or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from volseg.errors import UserError

__all__ = ["atomic_path", "check_folder", "write_json"]


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """A temporary path beside ``path``, with the same suffixes; renamed to it when the block ends without an error.

    Raises:
        UserError: the folder cannot be made or written to.
    """
    path = Path(path)
    temporary = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        temporary.replace(path)
    except OSError as error:
        raise UserError(
            f"{path}: cannot be written. Received: {error.strerror or error}. Check space and rights."
        ) from error
    finally:
        with suppress(OSError):  # a folder that is none: the error above says so
            temporary.unlink(missing_ok=True)


def check_folder(folder: str | Path) -> None:
    """Refuse, before hours of work, a folder for results that cannot be made or written to; makes none itself.

    Raises:
        UserError: a file is in its place or on the way to it, or rights are missing.
    """
    there = Path(folder).absolute()
    while not os.path.lexists(there):
        there = there.parent
    if not there.is_dir():
        raise UserError(f"{folder}: no folder for results. Received: a file, {there}. Choose another folder.")
    if not os.access(there, os.W_OK | os.X_OK):
        raise UserError(f"{folder}: cannot be written. Received: no right to write to {there}. Choose another folder.")


def write_json(path: str | Path, content: Any) -> None:
    """Write ``content`` as indented JSON, whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(content, indent=4) + "\n", encoding="utf-8")
