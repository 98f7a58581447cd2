# SPDX-License-Identifier: Apache-2.0
"""How far the included weights carry on real electron microscopy."""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tools import REPOSITORY
from tools.bundle_run import describe_machine, run_bundle
from tools.results import training_course
from volseg.data.ome_zarr import create_ome_zarr
from volseg.data.open_volume import open_chunked_volume
from volseg.data.semantic_mask import number_components
from volseg.errors import UserError
from volseg.instances.average_precision import ALL_SIZES, average_precision_of_table
from volseg.instances.overlap_table import overlap_table
from volseg.registry.manifest import sha256
from volseg.storage.files import write_json

__all__ = ["real_em"]

VOXEL_SIZE_NM = [24, 10, 10]
BUNDLE = REPOSITORY / "bundles" / "resunet_mitoem"
CLAIMED_MEASURES = ("foreground_dice", "ap50")
# configs of inference and of fine-tuning, and weights, by name
NETWORKS = {
    "Res-UNet-R": (["inference"], ["train", "finetune"], "model.pt"),
    "Res-UNet-H": (["inference", "inference_h"], ["train", "train_h", "finetune"], "model_h.pt"),
}


def real_em(images: str, masks: str, trainings: Sequence[str] = (), fine_tuning: bool = True) -> None:
    """Score ``resunet_mitoem`` on real sections and write ``docs/results/real_em.json`` of the bundle.

    The released weights segment all sections. Then they go on learning from the first half of the sections but two,
    which validate, and segment the second half, as the released ones do for comparison. Two sections are too few to
    choose by: what was trained is scored, whether it would have been installed or not.

    Args:
        images: folder of sections, such as ``images`` of CDeep3M's ``mito_testsample``: voxels of 24x10x10 nm.
        masks: folder of masks of mitochondria (``labels``), above 0 inside; their connected components are the truth.
        trainings: output folders of the trainings that made the weights of Res-UNet-R and Res-UNet-H, for their
            learning curves; empty keeps what the results say of them.
        fine_tuning: ``False`` keeps what the results say of it.
    """
    if len(trainings) not in (0, len(NETWORKS)):
        raise UserError(f"trainings must be the folders of {' and '.join(NETWORKS)}, got {trainings}")
    file = BUNDLE / "docs" / "results" / "real_em.json"
    before = json.loads(file.read_text(encoding="utf-8"))
    mask = open_chunked_volume(masks)[:] > 0
    truth = number_components(mask)
    with tempfile.TemporaryDirectory() as temporary:
        scratch = Path(temporary)
        networks = {
            name: {
                "weights_sha256": sha256(BUNDLE / "models" / weights),
                **_segment(inference, {"input": Path(images).resolve()}, truth, scratch / name),
            }
            for name, (inference, _, weights) in NETWORKS.items()
        }
        trained = {
            name: {
                "weights": json.loads((BUNDLE / "models" / weights).with_suffix(".json").read_text(encoding="utf-8")),
                **training_course(Path(training) / "tensorboard"),
            }
            for (name, (_, _, weights)), training in zip(NETWORKS.items(), trainings, strict=False)
        }
        fine_tuned = (
            _fine_tune(open_chunked_volume(images)[:], mask, scratch) if fine_tuning else before.get("fine_tuning", {})
        )
    write_json(
        file,
        {
            "command": f"python -m tools real_em {Path(images).name} {Path(masks).name}",
            "shape": list(truth.shape),
            "voxel_size_nm": VOXEL_SIZE_NM,
            "volumes": 1,
            "true_instances": int(truth.max()),
            "grey_threshold_dice": _best_threshold_dice(open_chunked_volume(images)[:], truth > 0),
            # of models/model.pt
            "weights_sha256": networks["Res-UNet-R"]["weights_sha256"],
            "eval_metrics": {f"sbem_{measure}": networks["Res-UNet-R"][measure] for measure in CLAIMED_MEASURES},
            "training": trained or before.get("training", {}),
            "networks": networks,
            "fine_tuning": fine_tuned,
        },
    )


def _segment(configs: Sequence[str], overrides: Mapping[str, Any], truth: NDArray[Any], output: Path) -> dict[str, Any]:
    """Scores of what inference by the default command finds."""
    options = {"voxel_size_nm": VOXEL_SIZE_NM, "output_dir": output, "preview": False}
    run_bundle(BUNDLE, configs, {**overrides, **options})
    [case] = json.loads((output / "statistics.json").read_text(encoding="utf-8"))
    return _scores(open_chunked_volume(output / case["instances"])[:], truth)


def _fine_tune(image: NDArray[Any], mask: NDArray[np.bool_], scratch: Path) -> dict[str, Any]:
    """Train on the first half of sections (D, H, W), validate on the last two of it, and score on the second one."""
    half = len(image) // 2
    own = scratch / "own"
    parts = {"training": np.s_[: half - 2], "validation": np.s_[half - 2 : half], "test": np.s_[half:]}
    pairs = []
    for split, part in parts.items():
        for kind, voxels in (("image", image[part]), ("label", mask[part].astype(np.uint8))):
            with create_ome_zarr(own / f"{split}_{kind}.ome.zarr", voxels.shape, np.uint8, VOXEL_SIZE_NM) as array:
                array[:] = voxels
        pairs.append({"image": f"{split}_image.ome.zarr", "label": f"{split}_label.ome.zarr", "split": split})
    write_json(own / "pairs.json", pairs)
    dataset = {"source": "volumes", "input_dir": own, "dataset_dir": scratch / "data", "label_components": True}
    run_bundle(BUNDLE, ["prepare_data"], dataset)
    truth, test = number_components(mask[half:]), {"input": own / "test_image.ome.zarr"}
    networks = {}
    for name, (inference, training, weights) in NETWORKS.items():
        folder = scratch / f"{name} fine-tuned"
        shutil.copytree(BUNDLE / "models", folder / "models")
        started = time.perf_counter()
        given = {"dataset_dir": scratch / "data", "output_dir": folder / "train", "ckpt_dir": folder / "models"}
        run_bundle(BUNDLE, training, given)
        networks[name] = {
            "seconds": round(time.perf_counter() - started),
            "released": _segment(inference, test, truth, folder / "before"),
            "fine_tuned": _segment(inference, {**test, "weights": folder / "train" / weights}, truth, folder / "after"),
        }
    return {
        "training_sections": half - 2,
        "validation_sections": 2,
        "test_sections": len(image) - half,
        "machine": describe_machine(),
        "networks": networks,
    }


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
