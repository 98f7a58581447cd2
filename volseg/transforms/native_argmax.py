# SPDX-License-Identifier: Apache-2.0
"""Turn class scores on the network's grid into a label map in the geometry of the input file."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from itertools import product
from typing import Any

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import Compose, MapTransform
from monai.transforms.utils import allow_missing_keys_mode, scale_affine
from monai.utils import convert_to_tensor

from volseg.transforms.grid_resize import GridResize, GridResized, linear_weights

__all__ = ["NativeArgmaxd", "class_argmax", "interpolated_argmax"]

# native voxels per block: 6 classes of them as floats take 3 MB, which stay in a core's cache
BLOCK = (64, 64, 32)


class NativeArgmaxd(MapTransform):
    """Undo preprocessing that ends on a fixed grid, interpolating class probabilities before the argmax.

    The usual order in MONAI, argmax and then ``Invertd`` with nearest neighbours, rounds outlines to the coarse grid.
    Interpolating first keeps sub-voxel outlines. All class probabilities at native size would not fit into memory, so
    they are interpolated and decided block by block.

    Args:
        keys: entries with logits ``(C, X', Y', Z')``; each becomes labels uint8 ``(1, X, Y, Z)`` on the native grid.
        transform: the preprocessing applied to ``orig_key``. Its last spatial step is ``GridResized``; the earlier
            ones only reorder voxels or crop, and what they cropped becomes background.
        orig_key: entry that carries the trace of that preprocessing.

    Raises:
        ValueError: the last spatial step of ``orig_key`` was not ``GridResized``.
    """

    def __init__(
        self, keys: KeysCollection, transform: Compose, orig_key: str = "image", allow_missing_keys: bool = False
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.orig_key = orig_key
        self.before = Compose([t for t in transform.flatten().transforms if not isinstance(t, GridResized)])

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            d[key] = self._native_labels(convert_to_tensor(d[key], track_meta=False), d[self.orig_key])
        return d

    def _native_labels(self, logits: torch.Tensor, image: MetaTensor) -> MetaTensor:
        *before, resized = image.applied_operations or [{"class": None}]
        if resized["class"] != GridResize.__name__:
            raise ValueError(f"the last spatial transform must be GridResized, got {resized['class']}")
        size = resized["orig_size"]
        labels = MetaTensor(
            interpolated_argmax(logits, size)[None],
            meta={
                **image.meta,
                "affine": image.affine @ torch.as_tensor(scale_affine(logits.shape[1:], size)).to(image.affine),
            },
            applied_operations=before,
        )
        with allow_missing_keys_mode(self.before):
            return self.before.inverse({self.orig_key: labels})[self.orig_key]


def interpolated_argmax(logits: torch.Tensor, spatial_size: Sequence[int]) -> torch.Tensor:
    """Interpolate class probabilities linearly to another grid and return the most probable class.

    A block whose source voxels all have the same most probable class gets that class without interpolation, because
    interpolation preserves its lead. This decides most of a volume.

    Args:
        logits: ``(C, X', Y', Z')``; the softmax is computed in float32, whatever the network's precision.
        spatial_size: X, Y, Z of the result.

    Returns:
        labels uint8 ``(X, Y, Z)``.
    """
    probabilities = torch.softmax(logits.float(), dim=0)
    coarse = class_argmax(probabilities)
    labels = torch.empty(tuple(spatial_size), dtype=torch.uint8, device=logits.device)
    pieces = [_pieces(n, m, block) for n, m, block in zip(logits.shape[1:], spatial_size, BLOCK, strict=True)]
    for (to_x, from_x, along_x), (to_y, from_y, along_y), (to_z, from_z, along_z) in product(*pieces):
        classes = coarse[from_x, from_y, from_z]
        low, high = classes.aminmax()
        if low == high:
            labels[to_x, to_y, to_z] = low
            continue
        # start with the contiguous axis; the matrices have a few dozen rows
        block = probabilities[:, from_x, from_y, from_z] @ along_z.to(logits.device).T  # (C, x', y', z)
        block = along_y.to(logits.device) @ block
        block = (along_x.to(logits.device) @ block.flatten(2)).unflatten(2, block.shape[2:])
        labels[to_x, to_y, to_z] = class_argmax(block)
    return labels


def _pieces(size: int, new_size: int, block: int) -> list[tuple[slice, slice, torch.Tensor]]:
    """Return the blocks of an axis: target slice on the new grid, source slice on the old one, and weights."""
    weights = linear_weights(size, new_size).float()
    pieces = []
    for start in range(0, new_size, block):
        rows = weights[start : start + block]
        used = rows.any(dim=0).nonzero()
        source = slice(int(used[0]), int(used[-1]) + 1)
        pieces.append((slice(start, start + block), source, rows[:, source]))
    return pieces


def class_argmax(classes: torch.Tensor) -> torch.Tensor:
    """Return ``classes.argmax(0)`` as uint8, several times faster than PyTorch, which walks along the class axis."""
    best, labels = classes[0], torch.zeros_like(classes[0], dtype=torch.uint8)
    for value in range(1, len(classes)):
        labels.masked_fill_(classes[value] > best, value)
        best = torch.maximum(best, classes[value])
    return labels
