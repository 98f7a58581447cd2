# SPDX-License-Identifier: Apache-2.0
"""Import packages of the optional extra ``em``."""

from __future__ import annotations

import importlib
from typing import Any

from volseg.errors import UserError

__all__ = ["optional_module"]


def optional_module(name: str) -> Any:
    """Return a module of the extra ``em``, imported at its first use.

    Raises:
        UserError: the package is not installed.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise UserError(f"{name}: not installed, got {error}; run pip install {name}") from error
