# SPDX-License-Identifier: Apache-2.0
"""How far the included weights carry on real electron microscopy."""

from __future__ import annotations

import hashlib
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tools import REPOSITORY
from tools.bundle_run import run_bundle
from volseg.data.open_volume import open_chunked_volume
from volseg.data.semantic_mask import number_components
from volseg.instances.average_precision import ALL_SIZES, average_precision_of_table
from volseg.instances.overlap_table import overlap_table
from volseg.storage.files import write_json

__all__ = ["real_em"]

VOXEL_SIZE_NM = [24, 10, 10]
# configs and weights by name
NETWORKS = {
    "Res-UNet-R": (["inference"], "model.pt"),
    "Res-UNet-H": (["inference", "inference_h"], "model_h.pt"),
}


def real_em(images: str, masks: str) -> None:
    """Segment sections with the weights of ``resunet_mitoem`` and write ``docs/results/real_em.json`` of the bundle.

    Args:
        images: folder of sections, such as ``images`` of CDeep3M's ``mito_testsample``: voxels of 24x10x10 nm.
        masks: folder of masks of mitochondria (``labels``), above 0 inside; their connected components are the truth.
    """
    root = REPOSITORY / "bundles" / "resunet_mitoem"
    truth = number_components(open_chunked_volume(masks)[:])
    networks = {}
    for name, (configs, weights) in NETWORKS.items():
        with tempfile.TemporaryDirectory() as scratch:
            options = {"voxel_size_nm": VOXEL_SIZE_NM, "output_dir": scratch, "preview": False}
            run_bundle(root, configs, {"input": Path(images).resolve(), **options})
            [case] = json.loads((Path(scratch) / "statistics.json").read_text(encoding="utf-8"))
            networks[name] = {
                "weights_sha256": hashlib.sha256((root / "models" / weights).read_bytes()).hexdigest(),
                **_scores(open_chunked_volume(Path(scratch) / case["instances"])[:], truth),
            }
    write_json(
        root / "docs" / "results" / "real_em.json",
        {
            "command": f"python -m tools real_em {Path(images).name} {Path(masks).name}",
            "shape": list(truth.shape),
            "voxel_size_nm": VOXEL_SIZE_NM,
            "volumes": 1,
            "true_instances": int(truth.max()),
            "grey_threshold_dice": _best_threshold_dice(open_chunked_volume(images)[:], truth > 0),
            "networks": networks,
        },
    )


def _scores(found: NDArray[Any], truth: NDArray[Any]) -> dict[str, Any]:
    table = overlap_table(found, truth)
    foreground, precision = table.foreground_overlap(), average_precision_of_table(table).by_size[ALL_SIZES]
    return {
        "foreground_dice": round(foreground.dice, 3),
        "foreground_jaccard": round(foreground.jaccard, 3),
        "ap50": round(precision.ap50, 3),
        "ap75": round(precision.ap75, 3),
        "instances": len(table.prediction_ids),
    }


def _best_threshold_dice(image: NDArray[Any], truth: NDArray[np.bool_]) -> float:
    """The Dice of the best mask of all pixels darker than one grey value, for 8 bits."""
    inside, everywhere = (np.cumsum(np.bincount(grey.ravel(), minlength=256)) for grey in (image[truth], image))
    return round(float(np.max(2 * inside / (everywhere + inside[-1]))), 3)
