# SPDX-License-Identifier: Apache-2.0
"""Detect MONAI Label, where training continues from the installed weights on newly labelled images."""

from __future__ import annotations

import sys

__all__ = ["is_running"]

# config that MONAI Label writes for training on several GPUs, in processes that do not import MONAI Label
MULTI_GPU_CONFIG = "configs/monailabel_train.json"


def is_running() -> bool:
    """Return True in the processes of a MONAI Label server, its trainings included."""
    return "monailabel" in sys.modules or any(MULTI_GPU_CONFIG in argument for argument in sys.argv)
