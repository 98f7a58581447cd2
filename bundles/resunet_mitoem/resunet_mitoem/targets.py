# SPDX-License-Identifier: Apache-2.0
"""Targets of the networks: mask and boundary of instances, made section by section from a label volume.

The order of the steps is: widen the boundaries of the whole label volume, crop and augment, then make the targets::

    label ─ widen_boundaries ─ crop, augmentation ─┬─ mask_target ────── channel 0
                                                   └─ boundary_target ── channel 1

Windows end at the border of a section, which gives the same as reflection: all that a mirrored window sees is in the
window already.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform
from monai.utils import convert_to_dst_type, convert_to_numpy

__all__ = ["MitochondriaTargetsd", "WidenBoundariesd", "boundary_target", "mask_target", "widen_boundaries"]


class WidenBoundariesd(MapTransform):
    """Widen the boundaries of label volumes ``(1, D, H, W)``; see :func:`widen_boundaries`. Type and metadata stay."""

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            widened = widen_boundaries(_instances(d[key]))
            d[key] = convert_to_dst_type(widened[None], d[key])[0]
        return d


class MitochondriaTargetsd(MapTransform):
    """Turn label volumes with widened boundaries into the float32 target of the networks.

    Args:
        keys: entries with instance labels ``(1, D, H, W)``, 0 background; each becomes ``(2, D, H, W)``, channel 0
            mask, channel 1 boundary.
        half_width: see :func:`boundary_target`.
        between_background: see :func:`boundary_target`.

    Raises:
        ValueError: a value of a label is not a whole number.
    """

    def __init__(
        self,
        keys: KeysCollection,
        half_width: int = 2,
        between_background: bool = True,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.half_width = half_width
        self.between_background = between_background

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            label = _instances(d[key])
            boundary = boundary_target(label, self.half_width, self.between_background)
            d[key] = torch.from_numpy(np.stack([mask_target(label), boundary], dtype=np.float32))
        return d


def widen_boundaries(label: np.ndarray) -> np.ndarray:
    """Part instances that touch: set to 0 each voxel whose 3x3 window in its section holds two or more of them.

    Args:
        label: instance labels ``(D, H, W)`` of an integer type, 0 background.

    Returns:
        a copy of the label, so changed.

    Raises:
        ValueError: the label is no integer array ``(D, H, W)``.
    """
    _check_label(label)
    widened = label.copy()
    for section, source in zip(widened, label, strict=True):
        section[_section_boundary(source, half_width=1, between_background=False)] = 0
    return widened


def mask_target(label: np.ndarray) -> np.ndarray:
    """Mask (uint8, 1 on instances) of a label ``(D, H, W)`` with widened boundaries."""
    return (label > 0).astype(np.uint8)


def boundary_target(label: np.ndarray, half_width: int = 2, between_background: bool = True) -> np.ndarray:
    """Boundary of instances: a band on both sides of their outlines within each section.

    Args:
        label: instance labels ``(D, H, W)`` of an integer type, 0 background, with widened boundaries.
        half_width: of the square window in which a voxel sees an instance and something else, in pixels. It is the
            width of the band on each side.
        between_background: whether the outline between an instance and background counts, or only that between
            two instances.

    Returns:
        boundary ``(D, H, W)``, uint8, 1 on the band.

    Raises:
        ValueError: the label is no integer array ``(D, H, W)``.

    Source: the option "4-2-1" of the released code, "4-2-0" without background.
    """
    _check_label(label)
    boundary = np.empty(label.shape, dtype=np.uint8)
    # one section at a time: it stays in the cache, and a volume of thousands of sections needs no copies of itself
    for section, source in zip(boundary, label, strict=True):
        section[:] = _section_boundary(source, half_width, between_background)
    return boundary


def _section_boundary(section: np.ndarray, half_width: int, between_background: bool) -> np.ndarray:
    """Where the window of a voxel of a section ``(H, W)`` holds an instance and something else."""
    highest = _window_extremum(np.maximum, section, half_width)
    if not between_background:
        # background must not be the minimum; an instance that has the type's highest value itself does no harm
        section = np.where(section > 0, section, np.iinfo(section.dtype).max)
    return (highest > 0) & (_window_extremum(np.minimum, section, half_width) < highest)


def _window_extremum(extremum: np.ufunc, section: np.ndarray, half_width: int) -> np.ndarray:
    """Running minimum or maximum of ``(H, W)``: one axis after the other is the square window."""
    # not scipy.ndimage: its filters compute in float64, which cannot tell 64-bit labels apart, and are slower
    for axis in (0, 1):
        source = np.moveaxis(section, axis, 0)
        result = source.copy(order="K")
        for shift in range(1, half_width + 1):
            extremum(result[:-shift], source[shift:], out=result[:-shift])
            extremum(result[shift:], source[:-shift], out=result[shift:])
        section = np.moveaxis(result, 0, axis)
    return section


def _instances(label: np.ndarray | torch.Tensor) -> np.ndarray:
    """Integer array ``(D, H, W)`` of a label ``(1, D, H, W)`` that transforms may have turned into floats."""
    array = convert_to_numpy(label)[0]
    if np.issubdtype(array.dtype, np.integer):
        return array
    instances = array.astype(np.int64)
    if (instances != array).any():
        raise ValueError(
            "Instance labels must be whole numbers. "
            f"Received: {float(array[instances != array][0])}. Interpolate labels with mode='nearest'."
        )
    return instances


def _check_label(label: np.ndarray) -> None:
    if label.ndim != 3 or not np.issubdtype(label.dtype, np.integer):
        raise ValueError(f"Labels must be an integer array (D, H, W). Received: {label.dtype} of shape {label.shape}.")
