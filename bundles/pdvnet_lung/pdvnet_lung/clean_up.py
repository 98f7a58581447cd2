# SPDX-License-Identifier: Apache-2.0
"""What is known of lobes and not of every voxel: they fill the lungs, each is one piece, and there are no holes."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from numpy.typing import NDArray
from scipy import ndimage

from pdvnet_lung.lobes import LOBES
from volseg.label_maps.surface_distances import bounding_box
from volseg.transforms.entries import EachEntryd
from volseg.transforms.native_argmax import interpolated_argmax

__all__ = ["CleanLobesd", "GrowLobesd", "TrimLobesd", "clean_lobes", "grow_lobes", "trim_lobes"]

# lung farther from every lobe is more likely bowel
REACH_MM = 40.0
# how far a blurred outline may lie outside the lungs
RIM_MM = 3.0


class GrowLobesd(MapTransform):
    """Grow lobes into aerated lung that the network missed: it goes to the nearest lobe.

    Args:
        keys: label maps ``(1, X, Y, Z)`` with their affine, in any orientation.
        lungs_key: mask ``(1, x, y, z)`` along R, A, S over the same field; see
            :class:`pdvnet_lung.lung_box.FindLungsd`.
    """

    def __init__(self, keys: KeysCollection, lungs_key: str = "lungs", allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self.lungs_key = lungs_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            grown, ras, spacing_mm = _editable(d[key])
            grow_lobes(ras, d[self.lungs_key][0].cpu(), spacing_mm)
            d[key] = grown
        return d


def _editable(labels: MetaTensor) -> tuple[MetaTensor, NDArray[np.uint8], NDArray[np.float64]]:
    """A copy of a label map ``(1, X, Y, Z)``, a view of it along R, A, S, and the voxel size along these."""
    copy = MetaTensor(labels.as_tensor().cpu().clone()).copy_meta_from(labels)
    affine = np.asarray(labels.affine, dtype=np.float64)
    orientation = nib.io_orientation(affine)
    ras = nib.apply_orientation(copy.as_tensor()[0].numpy(), orientation)
    return copy, ras, nib.affines.voxel_sizes(affine)[np.argsort(orientation[:, 0])]


def grow_lobes(labels: NDArray[np.uint8], lungs: torch.Tensor, spacing_mm: NDArray[np.float64]) -> None:
    """Give what is lung and no lobe to the nearest lobe up to ``REACH_MM`` away, in place.

    Args:
        labels: lobes 0 to 5 ``(X, Y, Z)``.
        lungs: mask ``(x, y, z)`` over the same field, on coarser cells; between them it is interpolated.
        spacing_mm: of the labels.
    """
    # the labels at the centres of the mask's cells
    middle = [((np.arange(n) + 0.5) * m / n).astype(int) for n, m in zip(lungs.shape, labels.shape, strict=True)]
    coarse = labels[np.ix_(*middle)]
    if not coarse.any():
        return
    distance, nearest = ndimage.distance_transform_edt(
        coarse == 0, sampling=spacing_mm * labels.shape / lungs.shape, return_indices=True
    )
    lobe = np.where(distance <= REACH_MM, coarse[tuple(nearest)], 0)
    sure = 20 * (lungs.float() - 0.5)
    inside = interpolated_argmax(torch.stack([-sure, sure]), labels.shape).numpy()
    cell = [((np.arange(m) + 0.5) * n / m).astype(int) for n, m in zip(lungs.shape, labels.shape, strict=True)]
    np.copyto(labels, lobe[np.ix_(*cell)], where=(inside > 0) & (labels == 0))


class TrimLobesd(MapTransform):
    """Take chest wall, diaphragm and heart out of the rim of the lobes: there lung is what is aerated.

    The network decides on a coarse grid, so the outlines of its lobes are blurred; those in the CT are not. Within the
    lungs, dense parts stay: vessels and disease.

    Args:
        keys: label maps ``(1, X, Y, Z)`` with their affine, in any orientation.
        aerated_key: bits along R, A, S on the same grid; see :class:`pdvnet_lung.lung_box.FindLungsd`.
    """

    def __init__(self, keys: KeysCollection, aerated_key: str = "aerated", allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self.aerated_key = aerated_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            trimmed, ras, spacing_mm = _editable(d[key])
            aerated = np.unpackbits(d[self.aerated_key][0].cpu().numpy(), axis=2, count=ras.shape[2])
            trim_lobes(ras, aerated, spacing_mm)
            d[key] = trimmed
        return d


def trim_lobes(labels: NDArray[np.uint8], aerated: NDArray[np.uint8], spacing_mm: NDArray[np.float64]) -> None:
    """Make background of what is not aerated within ``RIM_MM`` of the background, in place.

    Args:
        labels: lobes 0 to 5 ``(X, Y, Z)``.
        aerated: 0 or 1 ``(X, Y, Z)``.
        spacing_mm: of both.
    """
    box = bounding_box(labels > 0)
    if box is None:
        return
    box = tuple(slice(max(0, part.start - 1), part.stop + 1) for part in box)  # with the background around
    lobes, inner = labels[box], (labels[box] > 0).view(np.uint8)
    for axis, edge in enumerate(spacing_mm):
        # beyond the volume lungs may go on
        inner = ndimage.minimum_filter1d(inner, 2 * max(1, round(RIM_MM / edge)) + 1, axis, mode="nearest")
    lobes[(inner == 0) & (aerated[box] == 0)] = 0


class CleanLobesd(EachEntryd):
    """Dictionary form of :func:`clean_lobes` for label maps ``(1, X, Y, Z)``.

    Their metadata get the number of pieces in ``quality``, ``removed_pieces``.
    """

    def change(self, entry: MetaTensor) -> MetaTensor:
        clean, removed = clean_lobes(entry.as_tensor()[0].cpu().numpy())
        cleaned = MetaTensor(torch.from_numpy(clean)[None].to(entry.device)).copy_meta_from(entry)
        cleaned.meta["quality"] = {**entry.meta.get("quality", {}), "removed_pieces": removed}
        return cleaned


def clean_lobes(labels: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], int]:
    """Keep the largest piece of each lobe and fill the holes of the lungs.

    A smaller piece goes to the lobe that it touches most, or to the background where it touches none. A hole goes to
    the nearest lobe.

    Args:
        labels: lobes 0 to 5 ``(X, Y, Z)``.

    Returns:
        the labels, and the number of smaller pieces.
    """
    # SciPy is several times slower against the order in memory
    memory_order = np.argsort([-abs(step) for step in labels.strides])
    labels = labels.transpose(memory_order)
    out = labels.copy()
    box = bounding_box(labels > 0)
    if box is None:
        return out.transpose(np.argsort(memory_order)), 0
    inner = np.pad(labels[box], 1)
    islands = np.zeros(inner.shape, bool)
    found = [(lobe, part) for lobe, part in enumerate(ndimage.find_objects(inner), start=1) if part]
    with ThreadPoolExecutor(2) as pool:  # SciPy releases Python's lock
        smaller = list(pool.map(lambda lobe: _smaller_pieces(inner[lobe[1]] == lobe[0]), found))
    for (_, part), (mask, _) in zip(found, smaller, strict=True):
        islands[part] |= mask
    if removed := sum(count for _, count in smaller):
        _reassign(inner, islands)
    _fill_holes(inner)
    out[box] = inner[1:-1, 1:-1, 1:-1]
    return out.transpose(np.argsort(memory_order)), removed


def _pieces(mask: NDArray[np.bool_]) -> tuple[NDArray[Any], int]:
    """Number the pieces of a mask; small numbers take half the time."""
    try:
        return ndimage.label(mask, output=np.uint16)
    except RuntimeError:  # more than 65,535 of them
        return ndimage.label(mask)


def _smaller_pieces(mask: NDArray[np.bool_]) -> tuple[NDArray[np.bool_], int]:
    """The part of a mask that is not its largest piece, and the number of pieces in it."""
    pieces, count = _pieces(mask)
    return (mask & (pieces != np.bincount(pieces[mask]).argmax()) if count > 1 else np.zeros_like(mask)), count - 1


def _reassign(labels: NDArray[np.uint8], islands: NDArray[np.bool_]) -> None:
    """Give each island to the lobe around it, in place; islands may touch each other."""
    labels[islands] = 0
    pieces, _ = _pieces(islands)
    for number, box in enumerate(ndimage.find_objects(pieces), start=1):
        wide = tuple(slice(max(0, s.start - 1), s.stop + 1) for s in box)
        island = pieces[wide] == number
        touched = np.bincount(labels[wide][ndimage.binary_dilation(island) & ~island], minlength=len(LOBES) + 1)
        touched[0] = 0
        if touched.any():
            labels[wide][island] = touched.argmax()


def _fill_holes(labels: NDArray[np.uint8]) -> None:
    """Fill what is enclosed by lobes, in place; the array has a background border."""
    background, count = _pieces(labels == 0)
    if count < 2:
        return
    outside = background[0, 0, 0]
    for number, box in enumerate(ndimage.find_objects(background), start=1):
        if number == outside:
            continue
        wide = tuple(slice(s.start - 1, s.stop + 1) for s in box)
        hole = background[wide] == number
        nearest = ndimage.distance_transform_edt(labels[wide] == 0, return_distances=False, return_indices=True)
        labels[wide][hole] = labels[wide][tuple(nearest)][hole]
