# SPDX-License-Identifier: Apache-2.0
"""What is known of lobes and not of every voxel: each is one piece, and the lungs have no holes."""

from __future__ import annotations

import numpy as np
import torch
from monai.data import MetaTensor
from numpy.typing import NDArray
from scipy import ndimage

from pdvnet_lung.lobes import LOBES
from volseg.transforms.entries import EachEntryd

__all__ = ["CleanLobesd", "clean_lobes"]


class CleanLobesd(EachEntryd):
    """Dictionary form of :func:`clean_lobes` for label maps ``(1, X, Y, Z)``."""

    def change(self, entry: MetaTensor) -> MetaTensor:
        clean = clean_lobes(entry.as_tensor()[0].cpu().numpy())
        return MetaTensor(torch.from_numpy(clean)[None].to(entry.device)).copy_meta_from(entry)


def clean_lobes(labels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Keep the largest piece of each lobe and fill the holes of the lungs.

    A smaller piece goes to the lobe that it touches most, or to the background where it touches none. A hole goes to
    the nearest lobe.

    Args:
        labels: lobes 0 to 5 ``(X, Y, Z)``.
    """
    box = ndimage.find_objects((labels > 0).astype(np.uint8))
    if not box:
        return labels.copy()
    out = labels.copy()
    inner = np.pad(labels[box[0]], 1)
    islands = np.zeros(inner.shape, bool)
    for lobe, part in enumerate(ndimage.find_objects(inner, max_label=len(LOBES)), start=1):
        if part is None:
            continue
        mask = inner[part] == lobe
        pieces, count = ndimage.label(mask)
        if count > 1:
            islands[part] |= mask & (pieces != np.bincount(pieces.ravel())[1:].argmax() + 1)
    if islands.any():
        _reassign(inner, islands)
    _fill_holes(inner)
    out[box[0]] = inner[1:-1, 1:-1, 1:-1]
    return out


def _reassign(labels: NDArray[np.uint8], islands: NDArray[np.bool_]) -> None:
    """Give each island to the lobe around it, in place; islands may touch each other."""
    labels[islands] = 0
    pieces, _ = ndimage.label(islands)
    for number, box in enumerate(ndimage.find_objects(pieces), start=1):
        wide = tuple(slice(max(0, s.start - 1), s.stop + 1) for s in box)
        island = pieces[wide] == number
        touched = np.bincount(labels[wide][ndimage.binary_dilation(island) & ~island], minlength=len(LOBES) + 1)
        touched[0] = 0
        if touched.any():
            labels[wide][island] = touched.argmax()


def _fill_holes(labels: NDArray[np.uint8]) -> None:
    """Fill what is enclosed by lobes, in place; the array has a background border."""
    background, count = ndimage.label(labels == 0)
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
