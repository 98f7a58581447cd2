# SPDX-License-Identifier: Apache-2.0
"""Packages that only volumes of electron microscopy need: the extra ``em`` of this distribution."""

from __future__ import annotations

import importlib
from typing import Any

from volseg.errors import UserError

__all__ = ["optional_module"]


def optional_module(name: str) -> Any:
    """A module of the extra ``em``, imported at its first use.

    Raises:
        UserError: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise UserError(f"{name}: not installed. Received: {error}. Install it with: pip install {name}") from error
