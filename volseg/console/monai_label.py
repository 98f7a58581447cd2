# SPDX-License-Identifier: Apache-2.0
"""Detect MONAI Label, where training continues from the installed weights on newly labelled images."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from volseg.weights import recorded_values

__all__ = ["installed_values", "is_running"]

# config that MONAI Label writes for training on several GPUs, in processes that do not import MONAI Label
MULTI_GPU_CONFIG = "configs/monailabel_train.json"


def is_running() -> bool:
    """Return True in the processes of a MONAI Label server, its trainings included."""
    return "monailabel" in sys.modules or any(MULTI_GPU_CONFIG in argument for argument in sys.argv)


def installed_values(path: str | Path, defaults: Mapping[str, Any], keys: Iterable[str]) -> dict[str, Any]:
    """Return what the installed weights were trained with, in MONAI Label, where training continues from them.

    Args:
        path, defaults, keys: see :func:`volseg.weights.recorded_values`.

    Returns:
        the recorded values and ``trained_on``; nothing outside MONAI Label, where the recipe decides alone.

    Raises:
        UserError: the file beside the weights is not JSON or lacks a key.
    """
    if not is_running():
        return {}
    return {**recorded_values(path, defaults, keys), "trained_on": "labels of MONAI Label"}
