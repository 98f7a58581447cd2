# SPDX-License-Identifier: Apache-2.0
"""The environment of NVFlare: its own, because NVFlare needs an older Flask than the bundles' MLflow."""

from __future__ import annotations

from pathlib import Path

from tools import REPOSITORY
from tools.environment import Environment

NVFLARE = Environment(
    command="federated",
    program="NVFlare's client for MONAI",
    pythons=((3, 11),),
    size="3 GB (7 GB where PyTorch comes with CUDA)",
    constraints=Path(__file__).with_name("constraints.txt"),
    steps=(("setuptools", "torch"), ("monai-nvflare", "--editable", f"{REPOSITORY}[em]")),
)
