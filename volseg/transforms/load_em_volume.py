# SPDX-License-Identifier: Apache-2.0
"""Load volumes in formats of electron microscopy, whole or only their centre."""

from __future__ import annotations

import logging
import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from monai.utils import ensure_tuple

from volseg.console.option_checks import memory_bytes
from volseg.data.open_volume import ChunkedVolume, open_chunked_volume
from volseg.data.resampling import ResampledVolume, network_shape
from volseg.data.semantic_mask import label_warnings
from volseg.data.volume_formats.voxel_size import checked_voxel_size
from volseg.errors import UserError

__all__ = ["LoadImageChunkedVolumed", "check_one_shape"]

# at the peak of an inference in memory, measured: image, probabilities and their weights in float32
BYTES_PER_VOXEL = 32

logger = logging.getLogger(__name__)


class LoadImageChunkedVolumed(MapTransform):
    """Load the paths in ``keys`` with :func:`volseg.data.open_volume.open_chunked_volume`.

    Each entry becomes a ``MetaTensor`` ``(1, D, H, W)`` of the file's type. Instance ids in ``label_keys`` become
    int32, or int64 for larger ids. The metadata holds ``filename_or_obj``, ``is_resampled`` and, where the file states
    it, ``voxel_size_nm`` (z, y, x).

    Args:
        keys: entries to load.
        label_keys: entries among ``keys`` that hold instance ids.
        largest_size: maximum size (D, H, W) to load, from the centre of the volume; None loads all, as a case is loaded
            whose images are resampled.
        network_voxel_size_nm: images of another voxel size are brought to this one (z, y, x), as
            :class:`volseg.data.resampling.ResampledVolume` does, and become float32; labels stay as they are.
        voxel_size_nm: of the images, in place of what files say; unknown ones are not resampled.

    Raises:
        UserError: a file cannot be read, a label does not hold integers, or shapes differ; an invalid voxel size; more
            voxels than memory holds.
    """

    def __init__(
        self,
        keys: KeysCollection,
        label_keys: KeysCollection = (),
        largest_size: Sequence[int] | None = None,
        network_voxel_size_nm: Sequence[float] | None = None,
        voxel_size_nm: Sequence[float] | None = None,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.label_keys = set(ensure_tuple(label_keys))
        self.largest_size = largest_size
        self.network_voxel_size_nm = checked_voxel_size(network_voxel_size_nm, "trained_voxel_size_nm")
        self.voxel_size_nm = checked_voxel_size(voxel_size_nm)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        volumes = {key: open_chunked_volume(d[key]) for key in self.key_iterator(d)}
        check_one_shape({str(d[key]): volume.shape for key, volume in volumes.items()})
        shapes = {
            key: shape_for_network(file, self.network_voxel_size_nm, self.voxel_size_nm)
            for key, file in volumes.items()
            if key not in self.label_keys
        }
        largest_size = self.largest_size if not any(shapes.values()) else None
        for key, file in volumes.items():
            shape = shapes.get(key)
            volume = file if shape is None else ResampledVolume(file, shape)
            sizes = [min(pair) for pair in zip(volume.shape, largest_size or volume.shape, strict=True)]
            _check_memory(str(d[key]), sizes)
            starts = [(n - size) // 2 for n, size in zip(volume.shape, sizes, strict=True)]
            z, y, x = (slice(start, start + size) for start, size in zip(starts, sizes, strict=True))
            voxels = volume[z, y, x]
            meta: dict[str, Any] = {"filename_or_obj": str(d[key]), "is_resampled": volume is not file}
            if file.voxel_size_nm is not None:  # batches cannot be made of None
                meta["voxel_size_nm"] = file.voxel_size_nm
            tensor = to_ids(voxels, str(d[key])) if key in self.label_keys else to_tensor(voxels)
            for warning in label_warnings(voxels) if key in self.label_keys else ():
                logger.warning("%s: %s", d[key], warning)
            d[key] = MetaTensor(tensor[None], meta=meta)
        return d


def _check_memory(path: str, shape: Sequence[int]) -> None:
    needed, memory = math.prod(shape) * BYTES_PER_VOXEL, memory_bytes()
    if needed > memory:
        raise UserError(
            f"{path}: {'x'.join(map(str, shape))} voxels, as the network sees them, need {needed / 1e9:.0f} GB or "
            f"more, and this machine has {memory / 1e9:.0f}; check the voxel size, or use inference_blockwise.json"
        )


def shape_for_network(
    volume: ChunkedVolume, network_voxel_size_nm: Sequence[float] | None, voxel_size_nm: Sequence[float] | None = None
) -> tuple[int, int, int] | None:
    """The shape (D, H, W) of a volume at a network's voxel size (z, y, x); None if it stays, or none is known.

    Args:
        volume: an image.
        network_voxel_size_nm: of the network.
        voxel_size_nm: of the volume, in place of what its file says.
    """
    size_nm = voxel_size_nm or volume.voxel_size_nm
    if size_nm is None or network_voxel_size_nm is None:
        return None
    return network_shape(volume.path, volume.shape, size_nm, network_voxel_size_nm)


def to_tensor(voxels: np.ndarray) -> torch.Tensor:
    """Return a tensor of the same shape and type; types that PyTorch barely supports become the next larger one."""
    larger = {"uint16": np.int32, "uint32": np.int64, "uint64": np.int64, "float16": np.float32}
    return torch.from_numpy(voxels.astype(larger.get(voxels.dtype.name, voxels.dtype), copy=False))


def to_ids(voxels: np.ndarray, name: str) -> torch.Tensor:
    """Return instance ids as int32, or int64 for larger ids.

    Raises:
        UserError: the voxels are not integers, negative, or too large for int64.
    """
    low, high = (voxels.min(), voxels.max()) if voxels.size else (0, 0)
    if voxels.dtype.kind not in "bui" or low < 0 or high > np.iinfo(np.int64).max:
        raise UserError(
            f"{name}: instance ids must be integers >= 0, got {voxels.dtype} from {low} to {high}; "
            "give the label volume, not an image"
        )
    return torch.from_numpy(voxels.astype(np.int32 if high <= np.iinfo(np.int32).max else np.int64))


def check_one_shape(shapes: Mapping[str, Sequence[int]]) -> None:
    """Check that the volumes of a case have one shape.

    Raises:
        UserError: names the first two volumes that differ.
    """
    first, shape = next(iter(shapes.items()), ("", ()))
    for name, other in shapes.items():
        if tuple(other) != tuple(shape):
            raise UserError(
                f"{name}: image and label must have one shape, got {tuple(other)}, and {tuple(shape)} in {first}; "
                "give the image and label of one volume"
            )
