# SPDX-License-Identifier: Apache-2.0
"""Grey values of electron microscopy as the network takes them, from 0 to 1."""

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
from monai.utils import convert_to_numpy, convert_to_tensor
from numpy.typing import NDArray

from volseg.blockwise.grey_range import GreyRange
from volseg.data.blank import find_blank
from volseg.data.open_volume import ChunkedVolume, open_chunked_volume
from volseg.data.resampling import ResampledVolume
from volseg.data.volume_formats.tiff_stack import grey_from_ids
from volseg.errors import UserError
from volseg.inferers.sliding_window import BLANK_GREY

__all__ = ["PERCENTILES", "ScaleGreyValuesd", "find_grey_range", "tissue_range"]

logger = logging.getLogger(__name__)

PERCENTILES = (0.1, 99.9)
# about as many voxels at most are sorted for the percentiles
SAMPLE = 2**24
SAMPLED_CHUNKS = 256
PIECE_BYTES = 2**28  # of a chunk, which may be a shard of gigabytes


class ScaleGreyValuesd(MapTransform):
    """Bring images from the percentiles 0.1 and 99.9 of their tissue to 0 and 1, and clip them.

    So it makes no difference how grey values are shifted, scaled and stored. Of an image that was read from a file the
    percentiles are those of the whole file, of a crop too: see :func:`find_grey_range`.

    Args:
        keys: images ``(1, D, H, W)``; each becomes float32 with its meta data.
        blank: what becomes of voxels that :func:`volseg.data.blank.find_blank` finds; NaN tells them to
            :class:`~volseg.inferers.sliding_window.BlendedSlidingWindow`.

    Raises:
        UserError: what :func:`find_grey_range` raises.
    """

    def __init__(self, keys: KeysCollection, blank: float = BLANK_GREY, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self.blank = float(blank)
        self._ranges: dict[str, GreyRange] = {}

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            image = convert_to_tensor(d[key], track_meta=True)
            voxels = convert_to_numpy(image)
            blank = find_blank(voxels[0])
            path = image.meta.get("filename_or_obj")
            if path is None:
                grey_range = _range_of_voxels(voxels[0][~blank])
            else:
                shape = voxels.shape[1:] if image.meta.get("is_resampled") else image.meta.get("network_shape")
                grey_range = self._range_of_file(str(path), voxels[0], shape)
            values = grey_range(voxels)
            values[0][torch.from_numpy(blank)] = self.blank
            d[key] = MetaTensor(values.to(image.device), meta=image.meta, applied_operations=image.applied_operations)
        return d

    def _range_of_file(self, path: str, voxels: NDArray[Any], network_shape: Sequence[int] | None) -> GreyRange:
        """Found once: a training reads thousands of crops of a file. What has been read whole is not read again."""
        if path not in self._ranges:
            volume = open_chunked_volume(path)
            if network_shape is not None:
                volume = ResampledVolume(volume, network_shape)
            found = self._ranges[path] = find_grey_range(volume, voxels if voxels.shape == volume.shape else None)
            logger.debug("%s: grey values from %g to %g become 0 to 1", path, found.low, found.high)
        return self._ranges[path]


def _range_of_voxels(tissue: NDArray[Any]) -> GreyRange:
    # an odd step does not stay in a few columns, as rows mostly have even lengths
    return GreyRange(*tissue_range(tissue[:: -(-tissue.size // SAMPLE) | 1]))


def find_grey_range(volume: ChunkedVolume, voxels: NDArray[Any] | None = None) -> GreyRange:
    """The grey values of a whole volume that become 0 and 1, the same for each part of it.

    They are the percentiles 0.1 and 99.9 of the tissue: of all voxels up to 2^24 of them; of larger volumes of as many
    voxels of 256 chunks, drawn alike each time, of each at most 256 MB from its middle. What
    :func:`volseg.data.blank.find_blank` finds is no tissue.

    Args:
        volume: as the network sees it.
        voxels: all of it, if they have been read.

    Raises:
        UserError: the volume cannot be read, or its sections have no common scale of grey values.
    """
    if volume.not_grey:
        raise UserError(f"{volume.path}: {volume.not_grey}")
    if volume.is_colored:
        original = volume.source if isinstance(volume, ResampledVolume) else volume
        grey_from_ids(volume.path, _sample(original, None).astype(np.uint32))
    low, high = tissue_range(_sample(volume, voxels))
    return GreyRange(*((high, low) if volume.is_inverted else (low, high)), finds_blank=True)


def tissue_range(tissue: NDArray[np.generic]) -> tuple[float, float]:
    """The percentiles of voxels (N,); 0 and 1 where there are none."""
    low, high = np.percentile(tissue.astype(np.float32), PERCENTILES).tolist() if tissue.size else (0.0, 1.0)
    return low, high


def _sample(volume: ChunkedVolume, voxels: NDArray[Any] | None) -> NDArray[np.generic]:
    """Voxels of tissue (N,) of the whole volume, or of some of its chunks."""
    source = volume if voxels is None else voxels
    if math.prod(volume.shape) <= SAMPLE:
        whole = source[:]
        return whole[~find_blank(whole)]
    counts = [-(-n // chunk) for n, chunk in zip(volume.shape, volume.chunks, strict=True)]
    total = math.prod(counts)
    drawn = np.random.default_rng(0).choice(total, min(total, SAMPLED_CHUNKS), replace=False)
    piece = _bounded(volume.chunks, PIECE_BYTES // volume.dtype.itemsize)
    # an odd step does not stay in a few columns, as rows mostly have even lengths
    step = -(-math.prod(piece) * len(drawn) // SAMPLE) | 1
    parts = []
    for position in zip(*np.unravel_index(np.sort(drawn), counts), strict=True):
        z, y, x = (
            _middle(int(place) * chunk, min((int(place) + 1) * chunk, n), length)
            for place, chunk, n, length in zip(position, volume.chunks, volume.shape, piece, strict=True)
        )
        found = source[z, y, x]
        parts.append(found[~find_blank(found)][::step].copy())  # a view would keep the whole piece
    return np.concatenate(parts)


def _bounded(shape: Sequence[int], voxels: int) -> tuple[int, int, int]:
    """The largest part (D, H, W) of a shape that has so many voxels: of fewer sections, then of fewer rows."""
    depth, height, width = shape
    width = min(width, voxels)
    height = min(height, max(1, voxels // width))
    return min(depth, max(1, voxels // (height * width))), height, width


def _middle(start: int, stop: int, length: int) -> slice:
    """So many of the indices from ``start`` to ``stop``, or all if there are no more, from their middle."""
    first = start + max(0, stop - start - length) // 2
    return slice(first, min(stop, first + length))
