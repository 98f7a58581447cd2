# SPDX-License-Identifier: Apache-2.0
"""Import statements in configs (``"$import os"``), read as MONAI reads them."""

from __future__ import annotations

import ast
from typing import Any

from monai.bundle.utils import EXPR_KEY

from tools.check.workflow import walk_values

# What MONAI puts into every expression's globals.
MONAI_DEFAULTS = {"monai": "monai", "torch": "torch", "np": "numpy", "numpy": "numpy"}


def parse_import(text: str) -> ast.Import | ast.ImportFrom | None:
    """The import statement in a config's string, ``None`` if it is none."""
    if not text.startswith(EXPR_KEY) or "import" not in text:
        return None
    try:
        body = ast.parse(text[len(EXPR_KEY) :]).body
    except (SyntaxError, ValueError):
        return None
    return body[0] if body and isinstance(body[0], ast.Import | ast.ImportFrom) else None


def imported_names(config: dict[str, Any]) -> dict[str, str]:
    """The names that expressions of a config can use, each with the dotted name it stands for.

    MONAI binds the first alias only, and ``import a.b`` under the name ``a.b``, which no expression can spell.
    """
    bound = dict(MONAI_DEFAULTS)
    for _, text in walk_values(config):
        statement = parse_import(text)
        if statement:
            alias = statement.names[0]
            prefix = f"{statement.module}." if isinstance(statement, ast.ImportFrom) else ""
            bound[alias.asname or alias.name] = f"{prefix}{alias.name}"
    return bound
