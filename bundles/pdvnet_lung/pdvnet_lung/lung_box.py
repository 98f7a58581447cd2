# SPDX-License-Identifier: Apache-2.0
"""A coarse look at a CT that finds aerated lungs by thresholds, and the crop to their box."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import Crop, InvertibleTransform, MapTransform
from numpy.typing import NDArray
from scipy import ndimage

from volseg.transforms.grid_resize import area_average

__all__ = ["CropToLungsd", "FindLungsd", "coarse_lungs", "find_lungs", "lung_box"]

COARSE_MM = 4.0
TISSUE_HU = -400.0
# denser than room air, bowel gas or the foam of most tables; emphysema averages above it
EMPTY_HU = -945.0
MINIMUM_ML = 20.0
# a second piece counts as lung from this part of the largest on
MINIMUM_PART = 0.06
# half as wide as the widest windpipe
WINDPIPE_MM = 12.0
# what is seen of windpipe and main bronchi is at least as tall
AIRWAYS_MM = 40.0


class FindLungsd(MapTransform):
    """Add what a look at the HU finds: ``lungs``, a coarse mask uint8 ``(1, x, y, z)`` over the field of the CT, and
    ``aerated``, the bits ``(1, X, Y, ceil(Z / 8))`` of all voxels darker than half lung, half tissue.

    Args:
        keys: the CT in HU ``(1, X, Y, Z)`` along R, A, S.
    """

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        (key,) = self.key_iterator(d)
        d["lungs"] = coarse_lungs(d[key])[None]
        # as bits: in its full size a CT's mask takes as much memory as some steps of the network
        d["aerated"] = torch.from_numpy(np.packbits(d[key].as_tensor().numpy() < TISSUE_HU, axis=3))
        return d


class CropToLungsd(MapTransform, InvertibleTransform):
    """Crop a CT to the box around the lungs, so that neck, abdomen, arms and air do not shrink them on the grid.

    Where no lungs are found the volume stays whole.

    Args:
        keys: entries to crop ``(1, X, Y, Z)`` along R, A, S; the first is the CT in HU.
        margin_mm: around the lungs, as far as the volume reaches.
    """

    def __init__(self, keys: KeysCollection, margin_mm: float = 10.0, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self.margin_mm = margin_mm
        self.crop = Crop()

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        image: MetaTensor = d[self.keys[0]]
        lungs = d["lungs"][0] if "lungs" in d else coarse_lungs(image)
        box = lung_box(lungs, image.shape[1:], spacing_mm(image), self.margin_mm)
        for key in self.key_iterator(d):
            d[key] = self.crop(d[key], box or (slice(None),) * 3)
        return d

    def inverse(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            d[key] = self.crop.inverse(d[key])
        return d


def spacing_mm(image: MetaTensor) -> NDArray[np.float64]:
    """Voxel size along the stored axes."""
    return np.linalg.norm(np.asarray(image.affine)[:3, :3], axis=0)


def coarse_lungs(image: MetaTensor) -> torch.Tensor:
    """Mask uint8 ``(x, y, z)`` of aerated lung on cells of about ``COARSE_MM`` over a CT ``(1, X, Y, Z)`` in HU."""
    hu, spacing = image.as_tensor()[0], spacing_mm(image)
    step = np.maximum(1, np.floor(COARSE_MM / 2 / spacing)).astype(int)
    thin = hu[:: int(step[0]), :: int(step[1]), :: int(step[2])]
    size = np.maximum(1, np.round(np.array(thin.shape) * spacing * step / COARSE_MM)).astype(int)
    size = np.minimum(size, thin.shape)
    coarse = area_average(thin, [int(n) for n in size]).numpy()
    return torch.from_numpy(find_lungs(coarse, np.array(hu.shape) * spacing / size).astype(np.uint8))


def lung_box(
    lungs: torch.Tensor, shape: Sequence[int], spacing_mm: NDArray[np.float64], margin_mm: float
) -> tuple[slice, ...] | None:
    """Voxels of the box around the lungs in a volume of a shape ``(X, Y, Z)``; None where there are none.

    Args:
        lungs: mask ``(x, y, z)`` over that volume, on other cells.
        shape, spacing_mm: of the volume.
        margin_mm: around the lungs.
    """
    if not lungs.any():
        return None
    box = ndimage.find_objects(lungs.numpy())[0]
    margin = margin_mm / spacing_mm
    scale = np.array(shape) / lungs.shape
    return tuple(
        slice(max(0, int(np.floor(s.start * f - m))), min(n, int(np.ceil(s.stop * f + m))))
        for s, f, m, n in zip(box, scale, margin, shape, strict=True)
    )


def find_lungs(hu: NDArray[np.float32], spacing_mm: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Mask of aerated lung in a coarse CT ``(X, Y, Z)`` along R, A, S, without windpipe and main bronchi.

    Lung is darker than tissue, has tissue on three sides at least, and is not as empty as the air that reaches the
    sides of the volume or as gas in the bowel. So arms, table and clothes do not count, and a field of view may cut the
    lungs on one side.
    """
    air = hu < TISSUE_HU
    body = _largest(ndimage.binary_opening(~air))
    sides = np.zeros(hu.shape, np.uint8)
    for axis in (0, 1):
        sides += np.logical_or.accumulate(body, axis=axis)
        sides += np.flip(np.logical_or.accumulate(np.flip(body, axis), axis=axis), axis)
    candidate = air & ~_room_air(hu) & (sides >= 3)
    # partial volume makes a rim around everything
    core = ndimage.binary_erosion(candidate, border_value=1)
    pieces, count = ndimage.label(core)
    if not count:
        return core
    numbers = np.arange(1, count + 1)
    volume_ml = np.bincount(pieces.ravel())[1:] * float(np.prod(spacing_mm)) / 1000
    gas = ndimage.mean(hu, pieces, numbers) < EMPTY_HU
    lung_ml = np.where(gas, 0, volume_ml)
    main = int(lung_ml.argmax()) + 1
    if lung_ml[main - 1] < MINIMUM_ML:
        return np.zeros_like(core)
    bottom = np.flatnonzero((pieces == main).any(axis=(0, 1)))[0]
    height = np.array([c[2] for c in ndimage.center_of_mass(core, pieces, numbers)])
    # bowel lies below the lungs
    keep = (lung_ml >= MINIMUM_PART * lung_ml[main - 1]) & (height > bottom)
    kept = np.concatenate([[False], keep])[pieces]
    lungs = ndimage.binary_dilation(kept, iterations=2, mask=candidate)
    return _without_windpipe(lungs & ~_airways(hu, candidate, spacing_mm), spacing_mm)


def _airways(
    hu: NDArray[np.float32], candidate: NDArray[np.bool_], spacing_mm: NDArray[np.float64]
) -> NDArray[np.bool_]:
    """Windpipe and main bronchi with their rim: the highest of what is empty, tall and thin."""
    empty = candidate & (hu < EMPTY_HU)
    pieces, _ = ndimage.label(empty)
    half_width_mm = ndimage.distance_transform_edt(empty, sampling=spacing_mm)
    found, highest = np.zeros_like(candidate), 0
    for number, box in enumerate(ndimage.find_objects(pieces), start=1):
        tall = (box[2].stop - box[2].start) * spacing_mm[2] >= AIRWAYS_MM
        if tall and box[2].stop > highest:
            piece = pieces == number
            if half_width_mm[piece].max() <= WINDPIPE_MM:
                found, highest = piece, box[2].stop
    return ndimage.binary_dilation(found)


def _without_windpipe(lungs: NDArray[np.bool_], spacing_mm: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Without what rises above the lungs and is thinner than they are."""
    depth = ndimage.distance_transform_edt(lungs, sampling=spacing_mm)
    reach = min(WINDPIPE_MM, 0.6 * float(depth.max()))
    wide = np.flatnonzero((depth >= reach).any(axis=(0, 1)))
    top = int(wide[-1] + np.ceil(reach / spacing_mm[2]))
    lungs[:, :, top + 1 :] = False
    return lungs


def _largest(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    pieces, count = ndimage.label(mask)
    return pieces == 1 + np.bincount(pieces.ravel())[1:].argmax() if count else mask


def _room_air(hu: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Emptiness that reaches a side, the front or the back of the volume, with its rim."""
    pieces, _ = ndimage.label(hu < EMPTY_HU)
    border = np.concatenate([pieces[[0, -1]].ravel(), pieces[:, [0, -1]].ravel()])
    room = np.isin(pieces, np.unique(border[border > 0]))
    return ndimage.binary_dilation(room)
