# SPDX-License-Identifier: Apache-2.0
"""The grey values of a volume that is too large to be read for them as a whole."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from volseg.blockwise.grey_range import GreyRange
from volseg.data.blank import find_blank
from volseg.data.chunked_volume import ChunkedVolume
from volseg.errors import UserError

__all__ = ["PERCENTILES", "find_grey_range", "tissue_range"]

PERCENTILES = (0.1, 99.9)
SAMPLE = 2**24  # voxels that are sorted for the percentiles, about
SAMPLED_CHUNKS = 256
PIECE_BYTES = 2**28  # of a chunk, which may be a shard of gigabytes


def find_grey_range(volume: ChunkedVolume) -> GreyRange:
    """The grey values of a whole volume that become 0 and 1, the same for each part of it.

    They are the percentiles 0.1 and 99.9 of the tissue: of all voxels up to 2^24 of them; of larger volumes of as many
    voxels of 256 chunks, drawn alike each time, of each at most 256 MB from its middle. What
    :func:`volseg.data.blank.find_blank` finds is no tissue.

    Raises:
        UserError: the volume cannot be read, or its sections have no common scale of grey values.
    """
    if volume.not_grey:
        raise UserError(f"{volume.path}: {volume.not_grey}")
    low, high = tissue_range(_sample(volume))
    return GreyRange(*((high, low) if volume.is_inverted else (low, high)), finds_blank=True)


def tissue_range(tissue: NDArray[np.generic]) -> tuple[float, float]:
    """The percentiles of voxels (N,); 0 and 1 where there are none."""
    low, high = np.percentile(tissue.astype(np.float32), PERCENTILES).tolist() if tissue.size else (0.0, 1.0)
    return low, high


def _sample(volume: ChunkedVolume) -> NDArray[np.generic]:
    """Voxels of tissue (N,) of the whole volume, or of some of its chunks."""
    if math.prod(volume.shape) <= SAMPLE:
        voxels = volume[:]
        return voxels[~find_blank(voxels)]
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
        voxels = volume[z, y, x]
        parts.append(voxels[~find_blank(voxels)][::step].copy())  # a view would keep the whole piece
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
