# SPDX-License-Identifier: Apache-2.0
"""Load volumes in the formats of electron microscopy, whole or their middle."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from monai.utils import ensure_tuple

from volseg.data.chunked_volume import open_chunked_volume
from volseg.errors import UserError

__all__ = ["LoadChunkedVolumed", "check_one_shape"]


class LoadChunkedVolumed(MapTransform):
    """Load the entries of ``keys``, paths that :func:`volseg.data.chunked_volume.open_chunked_volume` takes.

    An entry becomes a ``MetaTensor`` ``(1, D, H, W)`` of the file's type, instance ids in ``label_keys`` int32 or,
    where that is too small, int64. Its meta data holds ``filename_or_obj`` and, where the file says it,
    ``voxel_size_nm`` (z, y, x).

    Args:
        keys: entries to load.
        label_keys: those of them that hold instance ids.
        largest_size: voxels (D, H, W) that are loaded at most, from the middle of the volume; None loads all.

    Raises:
        UserError: a file cannot be read, a label does not hold whole numbers, or shapes differ.
    """

    def __init__(
        self,
        keys: KeysCollection,
        label_keys: KeysCollection = (),
        largest_size: Sequence[int] | None = None,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.label_keys = set(ensure_tuple(label_keys))
        self.largest_size = largest_size

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        volumes = {key: open_chunked_volume(d[key]) for key in self.key_iterator(d)}
        check_one_shape({str(d[key]): volume.shape for key, volume in volumes.items()})
        for key, volume in volumes.items():
            sizes = volume.shape if self.largest_size is None else self.largest_size
            starts = [max(0, (n - size) // 2) for n, size in zip(volume.shape, sizes, strict=True)]
            z, y, x = (slice(start, start + size) for start, size in zip(starts, sizes, strict=True))
            voxels = volume[z, y, x]
            meta: dict[str, Any] = {"filename_or_obj": str(d[key])}
            if volume.voxel_size_nm is not None:  # batches cannot be made of None
                meta["voxel_size_nm"] = volume.voxel_size_nm
            tensor = to_ids(voxels, str(d[key])) if key in self.label_keys else to_tensor(voxels)
            d[key] = MetaTensor(tensor[None], meta=meta)
        return d


def to_tensor(voxels: np.ndarray) -> torch.Tensor:
    """A tensor of the same shape and type; of the types that PyTorch hardly computes with, the next larger one."""
    larger = {"uint16": np.int32, "uint32": np.int64, "uint64": np.int64, "float16": np.float32}
    return torch.from_numpy(voxels.astype(larger.get(voxels.dtype.name, voxels.dtype), copy=False))


def to_ids(voxels: np.ndarray, name: str) -> torch.Tensor:
    """Instance ids as int32, or int64 where they are larger.

    Raises:
        UserError: the voxels are not whole numbers, negative, or too large for int64.
    """
    low, high = (voxels.min(), voxels.max()) if voxels.size else (0, 0)
    if voxels.dtype.kind not in "bui" or low < 0 or high > np.iinfo(np.int64).max:
        raise UserError(
            f"{name}: instance ids are whole numbers from 0. Received: {voxels.dtype} from {low} to {high}. "
            "Give the label volume, not an image"
        )
    return torch.from_numpy(voxels.astype(np.int32 if high <= np.iinfo(np.int32).max else np.int64))


def check_one_shape(shapes: Mapping[str, Sequence[int]]) -> None:
    """See that volumes that belong together have one shape.

    Raises:
        UserError: they do not; it names the first two that differ.
    """
    first, shape = next(iter(shapes.items()), ("", ()))
    for name, other in shapes.items():
        if tuple(other) != tuple(shape):
            raise UserError(
                f"{name}: image and label differ in shape. Received: {tuple(other)}, and {tuple(shape)} in {first}. "
                "Give the pair of one volume"
            )
