# SPDX-License-Identifier: Apache-2.0
"""Paths and URLs of any storage that fsspec knows."""

from __future__ import annotations

from urllib.parse import urlsplit
from urllib.request import url2pathname

import fsspec
from fsspec import AbstractFileSystem

from volseg.errors import UserError

__all__ = ["open_storage"]


def open_storage(name: str) -> tuple[AbstractFileSystem, str]:
    """The file system and folder of a path or URL, whether it exists or not.

    Raises:
        UserError: nothing here can open it.
    """
    if name.startswith("file://"):  # fsspec would take %20 for a part of the name
        name = url2pathname(urlsplit(name).path)
    try:
        return fsspec.core.url_to_fs(name)
    except (ValueError, ImportError, OSError) as error:
        raise UserError(f"{name}: cannot be opened: {error}; give a folder or another URL") from error
