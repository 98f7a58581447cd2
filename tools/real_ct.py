# SPDX-License-Identifier: Apache-2.0
"""How far the shipped weights carry on a real CT."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np

from tools import REPOSITORY
from tools.bundle_command import run_bundle
from volseg.data.volume_reader import load_volume
from volseg.storage.files import write_json

__all__ = ["real_ct"]


def real_ct(ct: str, lungs: str) -> None:
    """Segment a CT with the weights of ``pdvnet_lung`` and write ``docs/results/real_ct.json`` of the bundle.

    Args:
        ct: a chest CT, such as ``ct-64.nrrd`` of the Chest Imaging Platform's test data.
        lungs: label map of both lungs on the same grid (``wholeLung-64.nrrd``), above 0 inside.
    """
    root = REPOSITORY / "bundles" / "pdvnet_lung"
    with tempfile.TemporaryDirectory() as scratch:
        run_bundle(root, ["inference"], {"input": Path(ct).resolve(), "output_dir": scratch})
        case = json.loads((Path(scratch) / "statistics.json").read_text(encoding="utf-8"))[0]
        found = load_volume(Path(scratch) / case.pop("segmentation")).numpy() > 0
    truth = load_volume(lungs).numpy() > 0
    case["image"] = Path(ct).name
    write_json(
        root / "docs" / "results" / "real_ct.json",
        {
            "command": f"python -m tools real_ct {Path(ct).name} {Path(lungs).name}",
            "lungs_dice": round(float(2 * np.sum(found & truth) / (found.sum() + truth.sum())), 3),
            "lungs_reference_ml": round(
                float(truth.sum() * abs(np.linalg.det(load_volume(lungs).affine[:3, :3])) / 1e3)
            ),
            **case,
        },
    )
