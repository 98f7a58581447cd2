# SPDX-License-Identifier: Apache-2.0
"""The grey values of a volume that is too large to be read for them as a whole."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from resunet_mitoem.intensity import GREY_IN_COLORS, PERCENTILES, SAMPLE
from volseg.blockwise.grey_range import BYTES, GreyRange
from volseg.data.chunked_volume import ChunkedVolume

__all__ = ["find_grey_range"]

SAMPLED_CHUNKS = 256
PIECE_BYTES = 2**28  # of a chunk, which may be a shard of gigabytes


def find_grey_range(volume: ChunkedVolume) -> GreyRange:
    """The range that :class:`~resunet_mitoem.intensity.ScaleGreyValuesd` gives the whole volume.

    8-bit images are not read. Of others the percentiles are those of all voxels up to 2^24 of them; of larger volumes
    those of as many voxels of 256 chunks, drawn alike each time, of each at most 256 MB from its middle.

    Raises:
        UserError: the volume cannot be read.
    """
    if volume.dtype == np.uint8:
        return BYTES
    sample = _sample(volume)
    if _is_grey_in_colors(sample):
        return GreyRange(0.0, 255.0 * GREY_IN_COLORS)
    finite = sample.astype(np.float32)
    finite = finite[np.isfinite(finite)]
    low, high = np.percentile(finite, PERCENTILES).tolist() if finite.size else (0.0, 1.0)
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


def _is_grey_in_colors(sample: NDArray[np.generic]) -> bool:
    """Whether each value is a red, a green and a blue byte that are equal."""
    if sample.dtype.kind not in "ui" or sample.dtype.itemsize < 4 or not 0 < sample.max() <= 255 * GREY_IN_COLORS:
        return False
    return bool(sample.min() >= 0) and not bool((sample % GREY_IN_COLORS).any())
