# SPDX-License-Identifier: Apache-2.0
"""Overlap and volume of integer label maps, all read off one joint histogram of the two maps."""

from __future__ import annotations

import numpy as np

from volseg.errors import UserError

_CHUNK_VOXELS = 1 << 16  # two int64 buffers of 0.5 MB: they stay in the cache, and memory does not grow with the volume
_MM3_PER_ML = 1000.0


def confusion_counts(prediction: np.ndarray, truth: np.ndarray, num_classes: int) -> np.ndarray:
    """Count the voxels of every pair of labels.

    Args:
        prediction: label map (X, Y, Z) of any integer type or bool, values 0 to ``num_classes - 1``.
        truth: label map of the same shape, its type may differ.
        num_classes: number of labels, background included.

    Returns:
        ``counts`` (num_classes, num_classes), int64: ``counts[t, p]`` voxels have the label t in the truth and p in the
        prediction.

    Raises:
        UserError: if the shapes differ, a map is not of integers, or a value is outside the range.
    """
    prediction, truth = np.asarray(prediction), np.asarray(truth)
    for name, label_map in (("prediction", prediction), ("truth", truth)):
        if label_map.dtype.kind not in "biu":
            raise UserError(f"{name} must be an integer label map, got {label_map.dtype}")
    if prediction.shape != truth.shape:
        raise UserError(
            f"The prediction has the shape {prediction.shape}, the truth {truth.shape}; bring both to one grid."
        )
    counts = np.zeros(num_classes * num_classes, dtype=np.int64)
    if prediction.size == 0:
        return counts.reshape(num_classes, num_classes)
    # nditer walks both maps in memory order whatever their layout, and converts chunk by chunk.
    chunks = np.nditer(
        [prediction, truth],
        flags=["external_loop", "buffered"],
        op_dtypes=[np.int64, np.int64],
        casting="same_kind",
        order="K",
        buffersize=_CHUNK_VOXELS,
    )
    for predicted_labels, true_labels in chunks:
        _check_range("prediction", predicted_labels, num_classes)
        _check_range("truth", true_labels, num_classes)
        counts += np.bincount(true_labels * num_classes + predicted_labels, minlength=counts.size)
    return counts.reshape(num_classes, num_classes)


def dice_per_label(counts: np.ndarray) -> np.ndarray:
    """Dice coefficient 2 |P and T| / (|P| + |T|) of every label.

    Args:
        counts: result of :func:`confusion_counts`, (K, K).

    Returns:
        (K,) float64, background first. A label that is in neither map has NaN; one that is in one map only has 0.
    """
    sizes = counts.sum(axis=0) + counts.sum(axis=1)
    dice = np.full(len(counts), np.nan)
    np.divide(2.0 * np.diagonal(counts), sizes, out=dice, where=sizes > 0)
    return dice


def volumes_ml(counts: np.ndarray, voxel_volume_mm3: float) -> tuple[np.ndarray, np.ndarray]:
    """Volume in ml of every label in the prediction and in the truth, each (K,) float64, in this order."""
    voxel_volume_ml = voxel_volume_mm3 / _MM3_PER_ML
    return counts.sum(axis=0) * voxel_volume_ml, counts.sum(axis=1) * voxel_volume_ml


def _check_range(name: str, labels: np.ndarray, num_classes: int) -> None:
    lowest, highest = int(labels.min()), int(labels.max())
    if lowest < 0 or highest >= num_classes:
        wrong = lowest if lowest < 0 else highest
        raise UserError(f"{name} must hold labels from 0 to {num_classes - 1}, got {wrong}; map its labels first")
