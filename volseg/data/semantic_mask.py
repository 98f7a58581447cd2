# SPDX-License-Identifier: Apache-2.0
"""Volumes given where instance ids are needed, and are none: masks without instances, empty ones, images."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

__all__ = ["SEMANTIC_MASK", "is_semantic_mask", "label_warnings", "number_components"]

SEMANTIC_MASK = (
    "a semantic mask, not instances: all separate objects have one id; prepare_data.json --label_components True "
    "numbers connected components"
)

# of the voxels; mitochondria take less in any tissue, and an image is above 0 nearly everywhere
_MOST_LABELLED = 0.9

_NEIGHBOURS = ndimage.generate_binary_structure(3, 3)


def is_semantic_mask(labels: NDArray[Any]) -> bool:
    """Whether labels (D, H, W) are one value and background, and its voxels lie in several separate places."""
    values = np.unique(labels)
    return len(values[values != 0]) == 1 and ndimage.label(labels != 0, _NEIGHBOURS)[1] > 1


def label_warnings(labels: NDArray[Any]) -> list[str]:
    """What makes labels (D, H, W) unfit to learn from, or to be scored against."""
    labelled = np.count_nonzero(labels) / labels.size
    if labelled == 0:
        return ["no voxel is labelled; label the structure, or leave the case out"]
    if labelled > _MOST_LABELLED:
        return [f"{labelled:.0%} of the voxels are labelled; give instance ids with 0 around them, not an image"]
    return [SEMANTIC_MASK] if is_semantic_mask(labels) else []


def number_components(mask: NDArray[Any]) -> NDArray[np.int32]:
    """Ids (D, H, W) of what hangs together in a mask by faces, edges or corners; 5 bytes a voxel."""
    ids = np.empty(mask.shape, np.int32)
    ndimage.label(mask != 0, _NEIGHBOURS, output=ids)
    return ids
