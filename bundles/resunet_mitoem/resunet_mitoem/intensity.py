# SPDX-License-Identifier: Apache-2.0
"""Grey values of electron microscopy as the network takes them, from 0 to 1."""

from __future__ import annotations

import logging
import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
from monai.config import KeysCollection
from monai.transforms import MapTransform
from monai.utils import convert_to_numpy, convert_to_tensor
from numpy.typing import NDArray

from volseg.blockwise.grey_range import BYTES, GreyRange
from volseg.data.chunked_volume import ChunkedVolume

__all__ = ["PERCENTILES", "ScaleGreyValuesd", "find_grey_range"]

logger = logging.getLogger(__name__)

PERCENTILES = (0.1, 99.9)
# about as many voxels at most are sorted for the percentiles
SAMPLE = 2**24
SAMPLED_CHUNKS = 256
PIECE_BYTES = 2**28  # of a chunk, which may be a shard of gigabytes
GREY_IN_COLORS = 0x010101


class ScaleGreyValuesd(MapTransform):
    """Divide 8-bit images by 255, as the paper's were; bring others from their percentiles 0.1 and 99.9 to 0 and 1.

    Images of 16 bits use an unknown part of their range, and floats have none. Values that are not finite become 0. The
    percentiles are those of the image that is given: of a crop, the crop's. Files in colour are read as ids of 24 bits:
    where all are shades of grey, they are 8-bit images.

    Args:
        keys: images ``(C, D, H, W)``; each becomes float32 with its meta data.
    """

    def __init__(self, keys: KeysCollection, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            image = convert_to_tensor(d[key], track_meta=True)
            # an odd step does not stay in a few columns, as rows mostly have even lengths
            grey_range = _grey_range(convert_to_numpy(image), step=-(-image.numel() // SAMPLE) | 1)
            name = image.meta.get("filename_or_obj", key)
            logger.debug("%s: grey values from %g to %g become 0 to 1", name, grey_range.low, grey_range.high)
            d[key] = grey_range(image)
        return d


def find_grey_range(volume: ChunkedVolume) -> GreyRange:
    """The range that :class:`ScaleGreyValuesd` gives the whole volume.

    8-bit images are not read. Of others the percentiles are those of all voxels up to 2^24 of them; of larger volumes
    those of as many voxels of 256 chunks, drawn alike each time, of each at most 256 MB from its middle.

    Raises:
        UserError: the volume cannot be read.
    """
    if volume.dtype == np.uint8:
        return BYTES
    return _grey_range(_sample(volume))


def _grey_range(voxels: NDArray[Any], step: int = 1) -> GreyRange:
    """The range of an image of any shape; percentiles are those of every few of its voxels that are finite."""
    if voxels.dtype == np.uint8:
        return BYTES
    if _is_grey_in_colors(voxels):
        return GreyRange(0.0, 255.0 * GREY_IN_COLORS)
    sample = voxels.ravel()[::step].astype(np.float32)
    sample = sample[np.isfinite(sample)]
    low, high = np.percentile(sample, PERCENTILES).tolist() if sample.size else (0.0, 1.0)
    return GreyRange(low, high)


def _sample(volume: ChunkedVolume) -> NDArray[np.generic]:
    """Voxels (N,) of the whole volume, or of some of its chunks."""
    if math.prod(volume.shape) <= SAMPLE:
        return volume[:].ravel()
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
        parts.append(volume[z, y, x].ravel()[::step].copy())  # a view would keep the whole piece
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


def _is_grey_in_colors(voxels: NDArray[Any]) -> bool:
    """Whether each value is a red, a green and a blue byte that are equal."""
    if voxels.dtype.kind not in "ui" or voxels.dtype.itemsize < 4 or not 0 < voxels.max() <= 255 * GREY_IN_COLORS:
        return False
    return bool(voxels.min() >= 0) and not bool((voxels % GREY_IN_COLORS).any())
