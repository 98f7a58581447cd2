# SPDX-License-Identifier: Apache-2.0
"""Write folders whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from volseg.errors import UserError

__all__ = ["atomic_folder", "check_replaceable"]


def check_replaceable(path: Path, is_replaceable: Callable[[Path], bool]) -> None:
    """See that nothing stands at ``path``, or an empty folder, or one that may be replaced.

    Raises:
        UserError: something else does.
    """
    if path.exists() and not (path.is_dir() and (not any(path.iterdir()) or is_replaceable(path))):
        raise UserError(
            f"{path}: will not be replaced. Received: a name that is in use. "
            "Remove what stands there, or choose another."
        )


@contextmanager
def atomic_folder(path: str | Path, is_replaceable: Callable[[Path], bool]) -> Iterator[Path]:
    """A temporary folder beside ``path``; renamed to it when the block ends without an error, removed otherwise.

    Args:
        path: the folder to write.
        is_replaceable: whether a folder that stands at ``path`` may be replaced; an empty one always may.

    Raises:
        UserError: something else stands there, or the folder cannot be made or written to.
    """
    path = Path(path)
    temporary = path.with_name(f".{os.getpid()}.{path.name}")
    replaced = path.with_name(f".{os.getpid()}.replaced.{path.name}")
    try:
        check_replaceable(path, is_replaceable)
        temporary.mkdir(parents=True)
        yield temporary
        check_replaceable(path, is_replaceable)  # hours may have passed
        if path.exists():
            path.replace(replaced)
        temporary.replace(path)
        shutil.rmtree(replaced, ignore_errors=True)
    except OSError as error:
        raise UserError(
            f"{path}: cannot be written. Received: {error.strerror or error}. Check space and rights."
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
