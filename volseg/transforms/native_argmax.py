# SPDX-License-Identifier: Apache-2.0
"""From class scores on the network's grid to a label map in the geometry of the input file."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import Compose, MapTransform
from monai.transforms.utils import allow_missing_keys_mode, scale_affine
from monai.utils import convert_to_tensor

from volseg.transforms.grid_resize import GridResize, GridResized
from volseg.transforms.separable import linear_weights

__all__ = ["NativeArgmaxd", "interpolated_argmax"]

# native slices that are decided at a time: 6 classes of 512 x 512 x 16 floats take 100 MB
SLAB = 16


class NativeArgmaxd(MapTransform):
    """Undo a preprocessing that ends on a fixed grid, interpolating class probabilities before the decision.

    MONAI's usual order, argmax and then ``Invertd`` with nearest neighbours, rounds a lobe's outline to the coarse
    grid; interpolating first keeps sub-voxel outlines. The usual order exists because the probabilities of all classes
    do not fit into memory at native size: here they are interpolated and decided a few slices at a time.

    Args:
        keys: entries with logits ``(C, X', Y', Z')``; each becomes labels uint8 ``(1, X, Y, Z)`` on the native grid.
        transform: the preprocessing as applied to ``orig_key``; its last spatial step is ``GridResized``, and those
            before it only reorder voxels.
        orig_key: entry that carries the trace of that preprocessing.

    Raises:
        ValueError: ``orig_key`` was not rescaled by ``GridResized`` in the last spatial step.
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
            raise ValueError(f"the last spatial transform must be GridResized. Received: {resized['class']}")
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
    """The class that is most probable after linear interpolation of the probabilities to another grid.

    Args:
        logits: ``(C, X', Y', Z')``; probabilities are their softmax, in float32 whatever the network ran in.
        spatial_size: X, Y, Z of the result.

    Returns:
        labels uint8 ``(X, Y, Z)``.
    """
    along_x, along_y, along_z = (
        linear_weights(n, m).to(logits.device, torch.float32)
        for n, m in zip(logits.shape[1:], spatial_size, strict=True)
    )
    labels = torch.empty(tuple(spatial_size), dtype=torch.uint8, device=logits.device)
    for start in range(0, spatial_size[2], SLAB):
        weights = along_z[start : start + SLAB]  # (slab, Z')
        used = weights.any(dim=0).nonzero()
        first, last = int(used[0]), int(used[-1]) + 1
        slab = torch.softmax(logits[..., first:last].float(), dim=0) @ weights[:, first:last].T  # (C, X', Y', slab)
        if slab.shape[2] != spatial_size[1]:
            slab = torch.einsum("yj,cxjs->cxys", along_y, slab)
        if slab.shape[1] != spatial_size[0]:
            slab = torch.einsum("xi,ciys->cxys", along_x, slab)
        labels[..., start : start + SLAB] = _argmax(slab)
    return labels


def _argmax(classes: torch.Tensor) -> torch.Tensor:
    """``classes.argmax(0)`` as uint8, several times faster: PyTorch's own walks along the class axis."""
    best, labels = classes[0], torch.zeros_like(classes[0], dtype=torch.uint8)
    for value in range(1, len(classes)):
        labels.masked_fill_(classes[value] > best, value)
        best = torch.maximum(best, classes[value])
    return labels
