# SPDX-License-Identifier: Apache-2.0
"""The overlaps of two instance label maps, counted in one pass block by block and kept for the pairs that occur.

Every comparison of instances (sizes, intersections, unions) is read off this table. It grows with the number of pairs
that overlap, not with the volume and not with the product of the two counts of instances.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from volseg.data.volume_formats.base import VoxelArray
from volseg.errors import UserError

__all__ = ["ForegroundOverlap", "OverlapTable", "foreground_overlap", "overlap_table"]

_BLOCK_VOXELS = 1 << 25  # what is read at a time: 256 MB of 64-bit ids
_PIECE_VOXELS = 1 << 18  # what is counted at a time: 2 MB of 64-bit ids, which stay in the cache
_PENDING_PAIRS = 1 << 20  # rows of counts that wait to be summed: 24 MB
_MAX_ID = np.iinfo(np.int64).max


@dataclass(frozen=True)
class OverlapTable:
    """Sizes of the instances of two label maps and the voxels that every pair of them has in common.

    Attributes:
        prediction_ids: (P,) int64, ascending, without the background 0.
        prediction_sizes: (P,) int64, voxels of each.
        truth_ids: (G,) int64, ascending, without the background 0.
        truth_sizes: (G,) int64, voxels of each.
        pair_predictions: (N,) int64, positions in ``prediction_ids``; one entry for every pair that has voxels in
            common, ordered by prediction and then truth.
        pair_truths: (N,) int64, positions in ``truth_ids``.
        pair_voxels: (N,) int64, voxels in common, at least 1.
    """

    prediction_ids: np.ndarray
    prediction_sizes: np.ndarray
    truth_ids: np.ndarray
    truth_sizes: np.ndarray
    pair_predictions: np.ndarray
    pair_truths: np.ndarray
    pair_voxels: np.ndarray

    def pair_ious(self) -> np.ndarray:
        """Intersection over union of every pair, (N,) float64."""
        sizes = self.prediction_sizes[self.pair_predictions] + self.truth_sizes[self.pair_truths]
        return self.pair_voxels / (sizes - self.pair_voxels)

    def without_small_truth(self, min_size: int) -> OverlapTable:
        """The same table with the truth's instances below ``min_size`` voxels counted as background."""
        kept = self.truth_sizes >= min_size
        pairs = kept[self.pair_truths]
        positions = np.cumsum(kept) - 1
        return OverlapTable(
            prediction_ids=self.prediction_ids,
            prediction_sizes=self.prediction_sizes,
            truth_ids=self.truth_ids[kept],
            truth_sizes=self.truth_sizes[kept],
            pair_predictions=self.pair_predictions[pairs],
            pair_truths=positions[self.pair_truths[pairs]],
            pair_voxels=self.pair_voxels[pairs],
        )

    def foreground_overlap(self) -> ForegroundOverlap:
        """Overlap of all instances together, see :func:`foreground_overlap`."""
        both = int(self.pair_voxels.sum())
        sizes = int(self.prediction_sizes.sum()) + int(self.truth_sizes.sum())
        if sizes == 0:
            return ForegroundOverlap(math.nan, math.nan)
        return ForegroundOverlap(jaccard=both / (sizes - both), dice=2 * both / sizes)


class ForegroundOverlap(NamedTuple):
    """Overlap of two foregrounds, each from 0 to 1; NaN where both are empty.

    Attributes:
        jaccard: intersection over union.
        dice: twice the intersection over the sum of the sizes.
    """

    jaccard: float
    dice: float


def overlap_table(prediction: VoxelArray, truth: VoxelArray) -> OverlapTable:
    """Count the voxels of every instance and of every pair of instances.

    Args:
        prediction: instance ids (D, H, W) or (H, W), 0 is the background, of any integer type or bool. A NumPy array,
            or what is sliced like one and read when sliced (HDF5, Zarr); blocks follow its chunks.
        truth: ids of the same shape; its type and chunks may differ.

    Returns:
        The table. Beside it about 0.6 GB are needed at most, whatever the size of the volume.

    Raises:
        UserError: the shapes differ or have less than two axes, a map is not of integers, or an id is below 0 or above
            ``2**63 - 1``.
    """
    _check_arrays(prediction, truth)
    counts = [_NO_COUNTS]
    rows, rows_summed = 0, 0
    for block in _blocks(prediction, truth):
        predicted_ids, true_ids = (np.asarray(array[block]).reshape(-1) for array in (prediction, truth))
        for start in range(0, predicted_ids.size, _PIECE_VOXELS):
            piece = slice(start, start + _PIECE_VOXELS)
            counts.append(_count_piece(predicted_ids[piece], true_ids[piece]))
            rows += counts[-1].voxels.size
            # At the latest when they have doubled, so that memory follows the number of pairs at constant cost each.
            if rows > _PENDING_PAIRS + 2 * rows_summed:
                counts = [_sum_by_pair(_joined(counts))]
                rows = rows_summed = counts[0].voxels.size
    return _to_table(_sum_by_pair(_joined(counts)))


def foreground_overlap(prediction: VoxelArray, truth: VoxelArray) -> ForegroundOverlap:
    """Jaccard index and Dice coefficient of what is not background, whatever the ids.

    Args:
        prediction: instance ids as in :func:`overlap_table`.
        truth: ids of the same shape.

    Raises:
        UserError: as :func:`overlap_table`.
    """
    return overlap_table(prediction, truth).foreground_overlap()


class _PairCounts(NamedTuple):
    """Voxels by pair of ids, background included; a pair may occur several times."""

    prediction_ids: np.ndarray
    truth_ids: np.ndarray
    voxels: np.ndarray


_NO_COUNTS = _PairCounts(*(np.zeros(0, dtype=np.int64) for _ in range(3)))


def _check_arrays(prediction: VoxelArray, truth: VoxelArray) -> None:
    for name, array in (("prediction", prediction), ("truth", truth)):
        if np.dtype(array.dtype).kind not in "biu":
            raise UserError(f"{name} must hold integer ids, got {array.dtype}; convert it first")
    if tuple(prediction.shape) != tuple(truth.shape) or len(truth.shape) < 2:
        raise UserError(
            f"prediction and truth must have one shape (D, H, W) or (H, W), got {tuple(prediction.shape)} and "
            f"{tuple(truth.shape)}; bring both to one grid"
        )


def _blocks(prediction: VoxelArray, truth: VoxelArray) -> Iterator[tuple[slice, slice]]:
    """Parts of the first two axes that follow the chunks, so that none is unpacked more often than it must be."""
    chunks = [array_chunks for array in (prediction, truth) if (array_chunks := getattr(array, "chunks", None))]
    # The inner maximum is for arrays whose chunks vary in size.
    depth, height = (max((int(np.max(sizes[axis])) for sizes in chunks), default=1) for axis in (0, 1))
    planes, rows, *rest = truth.shape
    row_voxels = max(1, math.prod(rest))
    rows_at_most = _BLOCK_VOXELS // (depth * row_voxels)
    height = max(1, rows) if rows <= rows_at_most else _multiple(height, rows_at_most)
    depth = _multiple(depth, _BLOCK_VOXELS // max(1, rows * row_voxels))
    for z in range(0, planes, depth):
        for y in range(0, rows, height):
            yield slice(z, z + depth), slice(y, y + height)


def _multiple(unit: int, limit: int) -> int:
    """The largest multiple of a unit up to a limit, at least one unit."""
    return max(1, limit // unit) * unit


def _count_piece(predicted_ids: np.ndarray, true_ids: np.ndarray) -> _PairCounts:
    # Neighbours along a row mostly have the same pair of ids: only the starts of runs are looked at.
    changes = predicted_ids[1:] != predicted_ids[:-1]
    changes |= true_ids[1:] != true_ids[:-1]
    starts = np.concatenate(([0], np.flatnonzero(changes) + 1))
    runs = np.diff(starts, append=predicted_ids.size)
    predictions = _checked_ids("prediction", predicted_ids[starts])
    truths = _checked_ids("truth", true_ids[starts])
    return _sum_by_pair(_PairCounts(predictions, truths, runs))


def _checked_ids(name: str, ids: np.ndarray) -> np.ndarray:
    lowest, highest = int(ids.min()), int(ids.max())
    if lowest < 0 or highest > _MAX_ID:
        wrong = lowest if lowest < 0 else highest
        raise UserError(f"{name} must hold ids from 0 to 2**63 - 1, got {wrong}; renumber its instances")
    return ids.astype(np.int64)


def _joined(counts: list[_PairCounts]) -> _PairCounts:
    return _PairCounts(*(np.concatenate(columns) for columns in zip(*counts, strict=True)))


def _sum_by_pair(counts: _PairCounts) -> _PairCounts:
    """Each pair once, ordered by prediction and then truth."""
    predictions, truths, voxels = counts
    if voxels.size == 0:
        return counts
    width = int(truths.max()) + 1
    combinations = (int(predictions.max()) + 1) * width
    if combinations <= voxels.size:
        # Sums of whole numbers in float64 are exact up to 2**53.
        sums = np.bincount(predictions * width + truths, weights=voxels, minlength=combinations)
        found = np.flatnonzero(sums)
        return _PairCounts(found // width, found % width, sums[found].astype(np.int64))
    order = np.lexsort((truths, predictions))
    predictions, truths, voxels = predictions[order], truths[order], voxels[order]
    first = np.ones(voxels.size, dtype=bool)
    first[1:] = (predictions[1:] != predictions[:-1]) | (truths[1:] != truths[:-1])
    starts = np.flatnonzero(first)
    return _PairCounts(predictions[starts], truths[starts], np.add.reduceat(voxels, starts))


def _to_table(counts: _PairCounts) -> OverlapTable:
    prediction_ids, pair_predictions, prediction_sizes = _sizes(counts.prediction_ids, counts.voxels)
    truth_ids, pair_truths, truth_sizes = _sizes(counts.truth_ids, counts.voxels)
    both = (counts.prediction_ids > 0) & (counts.truth_ids > 0)
    return OverlapTable(
        prediction_ids=prediction_ids,
        prediction_sizes=prediction_sizes,
        truth_ids=truth_ids,
        truth_sizes=truth_sizes,
        pair_predictions=pair_predictions[both],
        pair_truths=pair_truths[both],
        pair_voxels=counts.voxels[both],
    )


def _sizes(ids: np.ndarray, voxels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Distinct ids above 0, the position of every entry among them (-1 for 0), and the sum of voxels of each."""
    distinct, positions = np.unique(ids, return_inverse=True)
    sizes = np.bincount(positions, weights=voxels, minlength=distinct.size).astype(np.int64)
    background = int(np.count_nonzero(distinct == 0))
    return distinct[background:], positions - background, sizes[background:]
