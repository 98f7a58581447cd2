# SPDX-License-Identifier: Apache-2.0
"""Whether a config runs inside MONAI Label, which starts from the installed weights and trains on what was labelled."""

from __future__ import annotations

import sys

__all__ = ["is_running"]

# what MONAI Label calls the config that it writes for training on several GPUs, in processes without it
MULTI_GPU_CONFIG = "configs/monailabel_train.json"


def is_running() -> bool:
    """True in the processes of a MONAI Label server, those of its trainings included."""
    return "monailabel" in sys.modules or any(MULTI_GPU_CONFIG in argument for argument in sys.argv)
