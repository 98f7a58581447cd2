# SPDX-License-Identifier: Apache-2.0
"""Score the released weights of ``pdvnet_lung`` on chest CTs that are painted on real lobe maps."""

from __future__ import annotations

import csv
import json
import shutil
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from pdvnet_lung.painted import PaintedCT, lobe_maps, paint_clinical

from tools import REPOSITORY
from tools.bundle_run import describe_machine, run_bundle
from tools.results import training_course
from volseg.data.datalist import DATALIST_NAME
from volseg.label_maps.case_report import MEAN_LABEL
from volseg.registry.manifest import sha256
from volseg.storage.files import write_json

__all__ = ["painted_ct"]

CONFIGS = ["train", "train_painted", "evaluate"]
# how much farther than a chest CT a field of view reaches, below and above, in mm
FIELDS_OF_VIEW = {"chest": (0, 0), "neck": (0, 160), "chest_abdomen_pelvis": (420, 0), "whole_body": (900, 330)}
FIELD_CASES = 6  # whole bodies are large


def painted_ct(label_maps: str, training: str = "") -> None:
    """Score ``models/model.pt`` on the maps kept aside, and write ``docs/results/painted.json`` of ``pdvnet_lung``.

    Beside it: the mean lobe map in place of the network, and other fields of view of the same paintings.

    Args:
        label_maps: folder of lobe maps that ``prepare_data.json`` wrote.
        training: output folder of the training that made the weights, for its learning curve; empty keeps what the
            results say of it.
    """
    root = REPOSITORY / "bundles" / "pdvnet_lung"
    folder, weights = root / "docs" / "results", root / "models" / "model.pt"
    maps = str(Path(label_maps).resolve())
    if training:
        trained = {
            "weights": json.loads(weights.with_suffix(".json").read_text(encoding="utf-8")),
            **training_course(Path(training) / "tensorboard"),
        }
    else:
        trained = json.loads((folder / "painted.json").read_text(encoding="utf-8"))["training"]
    with tempfile.TemporaryDirectory() as temporary:
        scratch = Path(temporary)
        given = {"label_maps": maps, "painted_dir": scratch / "painted", "ckpt_dir": root / "models"}
        run_bundle(root, CONFIGS, {**given, "output_dir": scratch / "network"})
        run_bundle(root, [*CONFIGS, "evaluate_floor"], {**given, "output_dir": scratch / "floor"})
        _write_fields_of_view(scratch / "fields", maps)
        run_bundle(
            root, CONFIGS, {**given, "dataset_dir": scratch / "fields", "output_dir": scratch / "fields_of_view"}
        )
        shutil.copyfile(scratch / "network" / "per_case.csv", folder / "painted_per_case.csv")
        summary = _summary(scratch / "network")
        write_json(
            folder / "painted.json",
            {
                "command": "python -m tools painted_ct LABEL_MAPS",
                "eval_metrics": {"painted_mean_dice": round(summary[MEAN_LABEL]["dice"]["mean"], 3)},
                "training": trained,
                "weights_sha256": sha256(weights),
                "machine": describe_machine(),
                "summary": summary,
                "floor": _summary(scratch / "floor"),
                "fields_of_view": _by_field_of_view(scratch / "fields_of_view" / "per_case.csv"),
            },
        )


def _summary(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "summary.json").read_text(encoding="utf-8"))["labels"]


def _write_fields_of_view(folder: Path, label_maps: str) -> None:
    """Paint bodies, and cut every field of view from each, so that their chests are the same."""
    folder.mkdir()
    cases = []
    for case in lobe_maps(label_maps, "test")[:FIELD_CASES]:
        name = Path(case["lobe_map"]).name.removesuffix(".nii.gz")
        body = paint_clinical(case["lobe_map"], *FIELDS_OF_VIEW["whole_body"])
        for field in FIELDS_OF_VIEW:
            files = {key: f"{name}-{field}-{key}.nii.gz" for key in ("image", "label")}
            first, stop = _slices(body, field)
            affine = body.affine.copy()
            affine[2, 3] += first * affine[2, 2]
            for key, voxels in (("image", body.image), ("label", body.label)):
                nib.save(nib.Nifti1Image(voxels[:, :, first:stop], affine), folder / files[key])
            cases.append(files)
    write_json(folder / DATALIST_NAME, {"training": [], "validation": [], "test": cases})


def _slices(body: PaintedCT, field: str) -> tuple[int, int]:
    """Slices of a whole body that a field of view holds."""
    (below, above), (all_below, all_above) = FIELDS_OF_VIEW[field], FIELDS_OF_VIEW["whole_body"]
    thick = body.affine[2, 2]
    return round((all_below - below) / thick), body.image.shape[2] - round((all_above - above) / thick)


def _by_field_of_view(report: Path) -> dict[str, Any]:
    """Mean lobe Dice of every field of view, and how far it falls below that of the same chest alone."""
    dice: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    with report.open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            name, field, _ = row["case"].rsplit("-", 2)
            dice[field][name].append(float(row["dice"]))
    means = {field: {name: float(np.mean(lobes)) for name, lobes in cases.items()} for field, cases in dice.items()}
    return {
        field: {
            "n": len(means[field]),
            "dice": round(float(np.mean(list(means[field].values()))), 4),
            "largest_loss": round(max(means["chest"][name] - value for name, value in means[field].items()), 4),
        }
        for field in FIELDS_OF_VIEW
    }
