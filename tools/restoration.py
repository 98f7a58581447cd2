# SPDX-License-Identifier: Apache-2.0
"""What restoring noisy sections gains: on phantoms, whose sections are known as they were before they were spoilt."""

from __future__ import annotations

import csv
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from skimage.metrics import peak_signal_noise_ratio

from tools import REPOSITORY
from tools.bundle_run import describe_machine, run_bundle
from tools.results import HELD_OUT_SEED
from volseg.data.ome_zarr import create_ome_zarr
from volseg.data.open_volume import open_chunked_volume
from volseg.instances.average_precision import instance_average_precision
from volseg.phantoms.dataset import case_seeds
from volseg.phantoms.electron_microscopy import ElectronMicroscopy, electron_microscopy
from volseg.registry.manifest import sha256
from volseg.storage.files import write_json

BUNDLE = REPOSITORY / "bundles" / "resunet_mitoem"
PHANTOM_SHAPE = (32, 128, 128)
PHANTOM_BINNING = 4  # as in the bundle's phantoms
MISSING, NOISY = 2, 4  # sections of a phantom
SMOOTHING_PIXELS = 1.0  # standard deviation
METHODS = ("spoilt", "linear", "smoothed_linear", "network")
MEASURES = ("ap50", "ap75", "foreground_dice")


def restoration(phantoms: int = 6) -> None:
    """Spoil sections of held-out phantoms, restore them, write ``docs/results/restoration.json`` of ``resunet_mitoem``.

    For each spoilt section the PSNR against the section as it was: of the spoilt one, of linear interpolation between
    the nearest clean sections, of the same smoothed, and of what ``restore.json`` makes of the volume, whose noisy
    sections it finds itself. With ``models/model.pt`` also how well ``inference.json`` segments the clean, the spoilt
    and the restored volumes.

    Args:
        phantoms: how many.
    """
    numbers = case_seeds({"test": phantoms}, HELD_OUT_SEED)["test"]
    weights = BUNDLE / "models" / "interpolation.pt"
    segmentation_weights = BUNDLE / "models" / "model.pt"
    with tempfile.TemporaryDirectory() as temporary:
        folders = {name: Path(temporary) / name for name in ("clean", "spoilt", "restored")}
        pairs = []
        for index, number in enumerate(numbers):
            clean = electron_microscopy(number, PHANTOM_SHAPE, binning=PHANTOM_BINNING)
            spoilt = electron_microscopy(number, PHANTOM_SHAPE, MISSING, NOISY, PHANTOM_BINNING)
            pairs.append((clean, spoilt))
            for name, phantom in (("clean", clean), ("spoilt", spoilt)):
                with create_ome_zarr(
                    folders[name] / f"{index:02d}.ome.zarr", PHANTOM_SHAPE, np.uint8, phantom.voxel_size_nm
                ) as voxels:
                    voxels[:] = phantom.image
        run_bundle(BUNDLE, ["restore"], {"input": folders["spoilt"], "output_dir": folders["restored"]})
        results = {
            "command": f"python -m tools restoration --phantoms {phantoms}",
            "machine": describe_machine(),
            "data": f"{phantoms} held-out phantoms, seed {HELD_OUT_SEED}, {'x'.join(map(str, PHANTOM_SHAPE))} voxels, "
            f"{MISSING} sections of each missing and {NOISY} noisy",
            "weights": json.loads(weights.with_suffix(".json").read_text(encoding="utf-8")),
            "weights_sha256": sha256(weights),
            **_compare_sections(pairs, folders["restored"]),
        }
        if segmentation_weights.is_file():
            truths = [clean.label for clean, _ in pairs]
            results["segmentation"] = {
                "weights_sha256": sha256(segmentation_weights),
                **{
                    name: _score_instances(folder, Path(temporary) / f"{name}_instances", truths)
                    for name, folder in folders.items()
                },
            }
    write_json(BUNDLE / "docs" / "results" / "restoration.json", results)


def _compare_sections(
    pairs: Sequence[tuple[ElectronMicroscopy, ElectronMicroscopy]], restored_dir: Path
) -> dict[str, Any]:
    """PSNR of every spoilt section by every method, and how the search for noisy sections did."""
    sections: list[dict[str, Any]] = []
    found, false_alarms = 0, 0
    for index, (clean, spoilt) in enumerate(pairs):
        restored = open_chunked_volume(restored_dir / f"{index:02d}_restored.ome.zarr")[:]
        with (restored_dir / f"{index:02d}_sections.csv").open(encoding="utf-8") as file:
            noisy = {int(row["section"]) for row in csv.DictReader(file) if row["noisy"] == "1"}
        truly_noisy = {*spoilt.missing_sections, *spoilt.noisy_sections}
        found += len(noisy & truly_noisy)
        false_alarms += len(noisy - truly_noisy)
        for section in sorted(truly_noisy):
            linear = _interpolate_linearly(clean.image, section, truly_noisy)
            candidates = (
                spoilt.image[section],
                linear,
                gaussian_filter(linear, SMOOTHING_PIXELS),
                restored[section],
            )
            psnr = {
                method: round(float(peak_signal_noise_ratio(clean.image[section], image, data_range=255)), 3)
                for method, image in zip(METHODS, candidates, strict=True)
            }
            kind = "missing" if section in spoilt.missing_sections else "noisy"
            sections.append({"phantom": index, "section": section, "kind": kind, "psnr_db": psnr})
    return {
        "search": {"spoilt": len(sections), "found": found, "false_alarms": false_alarms},
        "psnr_db": {method: _summary([entry["psnr_db"][method] for entry in sections]) for method in METHODS},
        "sections": sections,
    }


def _interpolate_linearly(image: NDArray[np.uint8], section: int, noisy: set[int]) -> NDArray[np.float64]:
    """Between the nearest clean sections, by their distances."""
    before = max(i for i in range(section) if i not in noisy)
    after = min(i for i in range(section + 1, len(image)) if i not in noisy)
    weight = (section - before) / (after - before)
    return (1 - weight) * image[before].astype(np.float64) + weight * image[after]


def _score_instances(
    volumes_dir: Path, output_dir: Path, truths: Sequence[NDArray[Any]]
) -> dict[str, dict[str, float]]:
    """Segment the volumes of a folder, in the order of their names, and score the instances."""
    run_bundle(BUNDLE, ["inference"], {"input": volumes_dir, "output_dir": output_dir})
    cases = json.loads((output_dir / "statistics.json").read_text(encoding="utf-8"))
    scores: dict[str, list[float]] = {measure: [] for measure in MEASURES}
    for case, truth in zip(cases, truths, strict=True):
        found = open_chunked_volume(output_dir / case["instances"])[:]
        precision = instance_average_precision(found, truth)
        overlap = int(np.sum((found > 0) & (truth > 0)))
        dice = 2 * overlap / max(int(np.sum(found > 0) + np.sum(truth > 0)), 1)
        for measure, value in zip(MEASURES, (precision.ap50, precision.ap75, dice), strict=True):
            scores[measure].append(value)
    return {measure: _summary(values) for measure, values in scores.items()}


def _summary(values: Sequence[float]) -> dict[str, float]:
    return {"n": len(values), "mean": round(float(np.mean(values)), 4), "std": round(float(np.std(values)), 4)}
