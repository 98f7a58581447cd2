# SPDX-License-Identifier: Apache-2.0
"""The environment of MONAI Label: its own, because it needs older packages than the bundles' own."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from tools.environment import Environment, python_of, run
from tools.label import torchvision_operators

OPERATORS = Path(torchvision_operators.__file__)
MISSING_OPERATORS = "torchvision::"


def _mend_torchvision(folder: Path) -> None:
    python = str(python_of(folder))
    trial = subprocess.run([python, "-c", "import torchvision"], capture_output=True, text=True, check=False)
    if not trial.returncode:
        return
    if MISSING_OPERATORS in trial.stderr:
        site = next(folder.glob("lib/python3*/site-packages"))
        shutil.copyfile(OPERATORS, site / f"volseg_{OPERATORS.name}")
        name = f"volseg_{OPERATORS.stem}"
        (site / f"{name}.pth").write_text(f"import {name}; {name}.install()\n", encoding="utf-8")
        print("environment: torchvision's compiled operators do not fit this PyTorch; it runs without them", flush=True)
    run([python, "-c", "import torchvision"], "torchvision cannot be imported", "Install one that fits PyTorch.")


LABEL = Environment(
    command="label",
    program="MONAI Label",
    pythons=((3, 11), (3, 12)),
    size="4 GB (8 GB where PyTorch comes with CUDA)",
    constraints=Path(__file__).with_name("constraints.txt"),
    steps=(
        ("setuptools", "torch"),
        ("sam2",),
        ("monailabel", "dicomweb-client[gcp]", "zarr", "tifffile", "h5py", "imagecodecs"),
    ),
    variables={"SAM2_BUILD_CUDA": "0"},
    finish=_mend_torchvision,
    sources=(OPERATORS,),
)
