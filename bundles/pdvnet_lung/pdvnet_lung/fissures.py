# SPDX-License-Identifier: Apache-2.0
"""Where fissures lie, how far predicted ones are from the true ones, and how sure the network is of them."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform
from monai.utils import convert_to_tensor
from numpy.typing import NDArray

from pdvnet_lung.lobes import LEFT, LOBES
from volseg.label_maps.case_report import label_measures
from volseg.label_maps.surface_distances import surface_distances
from volseg.transforms.native_argmax import class_argmax

__all__ = ["FissureEntropyd", "fissure_voxels", "lobe_measures"]

# lookup table: 0 neither, 1 left, 2 right
LUNG_OF_LOBE = np.array([0, *(1 if lobe in LEFT else 2 for lobe in LOBES)], np.uint8)


def lobe_measures(
    prediction: NDArray[np.uint8],
    truth: NDArray[np.uint8],
    affine: NDArray[np.float64],
    labels: Mapping[str, str],
    tolerance_mm: float = 3.0,
) -> dict[str, dict[str, float]]:
    """Score lobes as :func:`volseg.label_maps.case_report.label_measures` does, and their fissures.

    Args:
        prediction, truth: lobes ``(X, Y, Z)``.
        affine: voxel to RAS in mm.
        labels: code to name.
        tolerance_mm: of the surface Dice.

    Returns:
        For each lobe the measures of ``label_measures`` and ``fissure_distance_mm``: the mean distance between its
        predicted and true fissures, both directions pooled. It is infinite where one map has no fissure there, NaN
        where neither has.
    """
    measures = label_measures(prediction, truth, affine, labels, tolerance_mm)
    spacing_mm = nib.affines.voxel_sizes(affine).tolist()
    fissures = [np.where(fissure_voxels(lobes), lobes, 0) for lobes in (prediction, truth)]
    for value, name in LOBES.items():
        predicted, true = (lobes == value for lobes in fissures)
        distances = surface_distances(predicted, true, spacing_mm, tolerance_mm)
        measures[name]["fissure_distance_mm"] = distances.average_symmetric_mm
    return measures


class FissureEntropyd(MapTransform):
    """Note in the image's metadata how unsure the network is along fissures: ``quality``, ``fissure_entropy_bits``.

    It is the mean entropy of the class probabilities in the voxels of :func:`fissure_voxels`, on the network's grid:
    near 1 between two lobes that are equally likely, below where the network is sure. None without a fissure.

    Args:
        keys: logits ``(6, X, Y, Z)``.
        orig_key: the image.
    """

    def __init__(self, keys: KeysCollection, orig_key: str = "image", allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self.orig_key = orig_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            logits = convert_to_tensor(d[key], track_meta=False)
            fissures = fissure_voxels(class_argmax(logits).cpu().numpy())
            at_fissures = logits[:, torch.from_numpy(fissures).to(logits.device)].float()
            bits = torch.special.entr(at_fissures.softmax(0)).sum(0) / math.log(2)
            value = round(float(bits.mean()), 3) if len(bits) else None
            meta = d[self.orig_key].meta
            meta["quality"] = {**meta.get("quality", {}), "fissure_entropy_bits": value}
        return d


def fissure_voxels(lobes: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Voxels of lobes with a face neighbour in another lobe of the same lung, a mask ``(X, Y, Z)``."""
    lung = LUNG_OF_LOBE[lobes]
    found = np.zeros(lobes.shape, bool)
    for axis in range(lobes.ndim):
        lobe, side = (np.moveaxis(array, axis, 0) for array in (lobes, lung))
        border = (lobe[1:] != lobe[:-1]) & (side[1:] == side[:-1]) & (side[1:] > 0)
        view = np.moveaxis(found, axis, 0)
        view[1:] |= border
        view[:-1] |= border
    return found
