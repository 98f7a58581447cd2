# SPDX-License-Identifier: Apache-2.0
"""Volumes brought to another voxel size: means over areas where an axis shrinks, linear interpolation where it grows.

The two grids have one outline. A region is made from the voxels that it covers, always by the same sums, so that blocks
give what the whole volume gives.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from volseg.data.blank import read_with_blank
from volseg.data.open_volume import ChunkedVolume
from volseg.errors import UserError

__all__ = ["NearestVolume", "ResampledVolume", "nearest_voxels", "network_shape", "resampled", "source_region", "taps"]

logger = logging.getLogger(__name__)

Region = tuple[slice, slice, slice]

UNCHANGED = 1.1  # axes whose voxels differ by less keep them
LEAST_NM, MOST_NM = 0.1, 10_000.0  # of a voxel's edges
SLAB_VOXELS = 2**24  # of the source, that are resampled at once


def network_shape(
    path: object, shape: Sequence[int], voxel_size_nm: Sequence[float], network_nm: Sequence[float]
) -> tuple[int, int, int] | None:
    """The shape (D, H, W) that a volume has at a network's voxel size, logged; None where it stays as it is.

    Axes whose voxels differ by less than 10 % from the network's keep their number of voxels.

    Args:
        path: of the volume, for the log.
        shape: (D, H, W).
        voxel_size_nm: of the volume, along z, y, x.
        network_nm: of the network, along z, y, x.

    Raises:
        UserError: voxels of a size that no electron microscope makes.
    """
    if not all(LEAST_NM <= edge <= MOST_NM for edge in voxel_size_nm):
        size = "x".join(f"{edge:g}" for edge in voxel_size_nm)
        raise UserError(
            f"{path}: voxels of {size} nm (z, y, x), expected {LEAST_NM:g} to {MOST_NM:g} nm in electron microscopy; "
            "give --voxel_size_nm if the file is wrong, or --resample False"
        )
    depth, height, width = (
        n if abs(math.log(edge / wanted)) < math.log(UNCHANGED) else max(1, round(n * edge / wanted))
        for n, edge, wanted in zip(shape, voxel_size_nm, network_nm, strict=True)
    )
    if (depth, height, width) == tuple(shape):
        return None
    reached_nm = (edge * n / new for edge, n, new in zip(voxel_size_nm, shape, (depth, height, width), strict=True))
    before, after = ("x".join(f"{edge:.3g}" for edge in edges) for edges in (voxel_size_nm, reached_nm))
    sizes = "x".join(map(str, shape)), f"{depth}x{height}x{width}"
    logger.info("%s: resampled for the network from %s to %s nm, %s to %s voxels", path, before, after, *sizes)
    return depth, height, width


class ResampledVolume(ChunkedVolume):
    """A volume on another grid, float32, resampled as it is read; blank is NaN, and no part of the means.

    Memory while reading: the result, and about 14 bytes for each of up to 2^24 voxels of the source.

    Args:
        source: the volume.
        shape: (D, H, W) of the grid.
        voxels: of the source (D, H, W), in place of its own.
    """

    def __init__(self, source: ChunkedVolume, shape: Sequence[int], voxels: Any = None) -> None:
        chunks = [max(1, chunk * n // old) for chunk, n, old in zip(source.chunks, shape, source.shape, strict=True)]
        super().__init__(source.path, shape, np.float32, chunks, file_path=source.file_path)
        self.source, self.is_colored = source, source.is_colored
        self.is_inverted, self.not_grey = source.is_inverted, source.not_grey
        self._source: Any = source if voxels is None else voxels

    def _open(self) -> None:
        """The source opens itself."""

    def _read(self, block: Region) -> NDArray[np.float32]:
        z, *in_plane = block
        result = np.empty([along.stop - along.start for along in block], np.float32)
        if not result.size:
            return result
        _, y, x = source_region(self._source.shape, self.shape, block)
        section_voxels = (y.stop - y.start) * (x.stop - x.start) * self._source.shape[0] / self.shape[0]
        depth = max(1, int(SLAB_VOXELS / section_voxels))
        for start in range(z.start, z.stop, depth):
            slab = slice(start, min(start + depth, z.stop))
            result[slab.start - z.start : slab.stop - z.start] = self._resampled((slab, in_plane[0], in_plane[1]))
        return result

    def _resampled(self, region: Region) -> NDArray[np.float32]:
        source = source_region(self._source.shape, self.shape, region)
        grids = [along.start for along in source], self._source.shape, self.shape, region
        voxels, blank = read_with_blank(self._source, source)
        if not blank.any():
            return resampled(voxels, *grids)
        tissue = resampled(~blank, *grids)
        total = resampled(np.where(blank, voxels.dtype.type(0), voxels), *grids)
        return np.where(tissue < 0.5, np.float32(np.nan), total / np.maximum(tissue, 0.5))


class NearestVolume(ChunkedVolume):
    """Instance ids on another grid: of each voxel's centre, the id that lies there.

    Args:
        source: the volume.
        shape: (D, H, W) of the grid.
    """

    def __init__(self, source: ChunkedVolume, shape: Sequence[int]) -> None:
        chunks = [max(1, chunk * n // old) for chunk, n, old in zip(source.chunks, shape, source.shape, strict=True)]
        super().__init__(source.path, shape, source.dtype, chunks, file_path=source.file_path)
        self._source = source

    def _open(self) -> None:
        """The source opens itself."""

    def _read(self, block: Region) -> NDArray[Any]:
        indices = [nearest_voxels(*axis) for axis in zip(self._source.shape, self.shape, block, strict=True)]
        if not all(index.size for index in indices):
            return np.empty([index.size for index in indices], self.dtype)
        first = [int(index[0]) for index in indices]
        z, y, x = (slice(start, int(index[-1]) + 1) for start, index in zip(first, indices, strict=True))
        return self._source[z, y, x][np.ix_(*(i - start for i, start in zip(indices, first, strict=True)))]


def nearest_voxels(size: int, new_size: int, along: slice | None = None) -> NDArray[np.intp]:
    """Of new voxels, all or a slice of them, the old ones (N,) that their centres lie in."""
    new = np.arange(new_size) if along is None else np.arange(along.start, along.stop)
    return (2 * new + 1) * size // (2 * new_size)


def source_region(shape: Sequence[int], new_shape: Sequence[int], region: Region) -> Region:
    """The voxels, of a grid of ``shape``, that a region of a grid of ``new_shape`` is made from."""
    bounds = []
    for size, new_size, along in zip(shape, new_shape, region, strict=True):
        index, _ = taps(size, new_size, along)
        bounds.append(slice(int(index.min()), int(index.max()) + 1))
    return bounds[0], bounds[1], bounds[2]


def resampled(
    voxels: NDArray[Any], starts: Sequence[int], shape: Sequence[int], new_shape: Sequence[int], region: Region
) -> NDArray[np.float32]:
    """A region of the new grid, from at least the voxels that :func:`source_region` says.

    Args:
        voxels: numbers or bool (d, h, w).
        starts: z, y, x of the first of them.
        shape: (D, H, W) of the grid that they are of.
        new_shape: (D, H, W) of the new grid.
        region: slices along z, y, x.
    """
    # the axis that shrinks most first, which leaves less work for the others
    for axis in sorted(range(3), key=lambda axis: new_shape[axis] / shape[axis]):
        index, weights = taps(shape[axis], new_shape[axis], region[axis])
        along = tuple(-1 if axis == other else 1 for other in range(3))
        pairs = zip(index.T - starts[axis], weights.T, strict=True)
        voxels = sum(voxels.take(column, axis) * weight.reshape(along) for column, weight in pairs)
    return voxels.astype(np.float32, copy=False)


def taps(size: int, new_size: int, along: slice) -> tuple[NDArray[np.intp], NDArray[np.float32]]:
    """Of N new voxels the K old ones that each is made from, and their weights: (N, K) and (N, K)."""
    new, ratio = np.arange(along.start, along.stop)[:, None], size / new_size
    if new_size < size:
        index = np.floor(new * ratio).astype(np.intp) + np.arange(math.ceil(ratio) + 1)
        weights = (np.minimum((new + 1) * ratio, index + 1) - np.maximum(new * ratio, index)).clip(0) / ratio
    else:
        centre = ((new + 0.5) * ratio - 0.5).clip(0, size - 1)
        index = np.floor(centre).astype(np.intp) + np.arange(1 if size == new_size else 2)
        weights = 1 - np.abs(centre - index)
    return np.minimum(index, size - 1), weights.astype(np.float32)
