# SPDX-License-Identifier: Apache-2.0
"""How far the included weights of ``pdvnet_lung`` carry on real CTs."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from monai.data import MetaTensor
from monai.transforms import Orientation
from pdvnet_lung.lobes import LOBES, from_cip_codes
from pdvnet_lung.visible_fissures import visible_fissure_shares

from tools import REPOSITORY
from tools.bundle_run import run_bundle
from volseg.data.volume_reader import load_volume
from volseg.registry.manifest import sha256
from volseg.storage.files import write_json

__all__ = ["real_ct"]

BUNDLE = REPOSITORY / "bundles" / "pdvnet_lung"
# slices of the label map that belong to those of the CT
LABELLED = slice(60, 62)
# each of the two labelled slices is repeated to a slab of 60 mm
REPEATS = 60


def real_ct(ct: str, lungs: str, series: str, slices: str, slice_lobes: str) -> None:
    """Segment CTs with the weights of ``pdvnet_lung`` and write ``docs/results/real_ct.json`` of the bundle.

    All inputs are in the Chest Imaging Platform's repository, under ``Testing/Data/Input``.

    Args:
        ct: a chest CT, such as ``ct-64.nrrd``.
        lungs: label map of both lungs on the same grid (``wholeLung-64.nrrd``), above 0 inside.
        series: the same CT as a DICOM series (``ct-64Dicom``).
        slices: two neighbouring slices of another CT (``crop_ct_2slices.nrrd``).
        slice_lobes: their lobes, among others (``crop_ct_interactiveLobeSegmentation.nrrd``).
    """
    reference = load_volume(lungs)
    voxel_ml = abs(np.linalg.det(reference.affine[:3, :3])) / 1e3
    case, lobes = _segment_ct(ct, clean_lobes=True)
    _, raw = _segment_ct(ct, clean_lobes=False)
    _, of_series = _segment_ct(series, clean_lobes=True)
    inside = _along_ras(reference) > 0
    write_json(
        BUNDLE / "docs" / "results" / "real_ct.json",
        {
            "command": " ".join(
                ["python -m tools real_ct", *(Path(p).name for p in (ct, lungs, series, slices, slice_lobes))]
            ),
            "weights_sha256": sha256(BUNDLE / "models" / "model.pt"),
            "lungs_dice": _dice(lobes > 0, inside),
            "lungs_dice_without_clean_up": _dice(raw > 0, inside),
            "lungs_reference_ml": round(float(inside.sum() * voxel_ml)),
            "lowest_lobe_dice_with_the_series": min(_dice(lobes == n, of_series == n) for n in np.unique(lobes)[1:]),
            **case,
            "image": Path(ct).name,
            "labelled_slices": _labelled_slices(load_volume(slices), load_volume(slice_lobes)),
        },
    )


def _labelled_slices(ct: MetaTensor, labels: MetaTensor) -> dict[str, Any]:
    """Repeat each of two slices to a slab, for want of the slices above and below, and score its lobes."""
    hu = ct.numpy()[0].repeat(REPEATS, axis=2)
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "slab.nii.gz"
        nib.save(nib.Nifti1Image(hu.astype(np.int16), np.asarray(ct.affine)), path)
        _, found = _segment_ct(str(path), clean_lobes=True)
        slab = load_volume(path)
    truth = _along_ras(MetaTensor(from_cip_codes(labels.numpy()[:, :, :, LABELLED]), affine=ct.affine))
    truth = truth.repeat(REPEATS, axis=2)
    middle = np.zeros(truth.shape, bool)
    middle[:, :, REPEATS - 1 : REPEATS + 1] = True
    thin = np.s_[:, :, REPEATS - 6 : REPEATS + 6]
    grey = _along_ras(slab)[thin]
    shares = {
        name: visible_fissure_shares(grey, of[thin].astype(np.uint8), np.asarray(slab.affine))
        for name, of in (("reference", truth), ("found", found))
    }
    dice = {name: _dice((found == n) & middle, (truth == n) & middle) for n, name in LOBES.items()}
    return {
        "dice": dice,
        "mean_dice": round(float(np.mean(list(dice.values()))), 3),
        "visible_fissure_shares": {
            name: {key: round(value, 2) for key, value in values.items()} for name, values in shares.items()
        },
    }


def _segment_ct(ct: str, clean_lobes: bool) -> tuple[dict[str, Any], np.ndarray]:
    """The statistics of a CT and its lobes ``(X, Y, Z)`` along R, A, S."""
    with tempfile.TemporaryDirectory() as scratch:
        overrides = {"input": Path(ct).resolve(), "output_dir": scratch, "clean_lobes": clean_lobes}
        run_bundle(BUNDLE, ["inference"], overrides)
        [case] = json.loads((Path(scratch) / "statistics.json").read_text(encoding="utf-8"))
        lobes = _along_ras(load_volume(Path(scratch) / case.pop("segmentation")))
        case.pop("fingerprint")
        return case, lobes


def _along_ras(volume: MetaTensor) -> np.ndarray:
    return Orientation("RAS", labels=None)(volume).numpy()[0]


def _dice(one: np.ndarray, other: np.ndarray) -> float:
    return round(float(2 * np.sum(one & other) / (one.sum() + other.sum())), 3)
