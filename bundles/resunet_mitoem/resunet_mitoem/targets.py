# SPDX-License-Identifier: Apache-2.0
"""Targets of the networks: mask and boundary of instances, made section by section from a label volume.

The order of the steps is: widen the boundaries of the whole label volume, crop and augment, then make the targets::

    label ─ widen_boundaries ─ crop, augmentation ─┬─ mask_target ────── channel 0
                                                   └─ boundary_target ── channel 1

Windows end at the border of a section, which gives the same as reflection: all that a mirrored window sees is in the
window already.

Arrays stay arrays and tensors stay tensors, on the device where they are: NumPy and PyTorch call what is needed here
alike.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import torch
from monai.config import KeysCollection
from monai.utils import convert_to_dst_type, convert_to_tensor

from volseg.transforms.entries import EachEntryd

__all__ = ["MitochondriaTargetsd", "WidenBoundariesd", "boundary_target", "mask_target", "widen_boundaries"]

Label = TypeVar("Label", np.ndarray, torch.Tensor)


class WidenBoundariesd(EachEntryd):
    """Widen the boundaries of label volumes ``(1, D, H, W)``; see :func:`widen_boundaries`. Type and metadata stay."""

    def change(self, entry: Any) -> Any:
        return convert_to_dst_type(widen_boundaries(_instances(entry))[None], entry)[0]


class MitochondriaTargetsd(EachEntryd):
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

    def change(self, entry: Any) -> torch.Tensor:
        label = _instances(entry)
        boundary = boundary_target(label, self.half_width, self.between_background)
        return torch.stack([torch.as_tensor(part).float() for part in (mask_target(label), boundary)])


def widen_boundaries(label: Label) -> Label:
    """Part instances that touch: set to 0 each voxel whose 3x3 window in its section holds two or more of them.

    Args:
        label: instance labels ``(D, H, W)`` of an integer type, 0 background.

    Returns:
        a copy of the label, so changed.

    Raises:
        ValueError: the label is no integer array ``(D, H, W)``.
    """
    _check_label(label)

    def widen(section: Label) -> Label:
        return _library(label).where(_boundary(section, half_width=1, between_background=False), 0, section)

    return _by_section(widen, label)


def mask_target(label: Label) -> Label:
    """Mask (uint8, 1 on instances) of a label ``(D, H, W)`` with widened boundaries."""
    return _as_bytes(label > 0)


def boundary_target(label: Label, half_width: int = 2, between_background: bool = True) -> Label:
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
    return _by_section(lambda section: _as_bytes(_boundary(section, half_width, between_background)), label)


def _library(label: np.ndarray | torch.Tensor) -> Any:
    return torch if isinstance(label, torch.Tensor) else np


def _as_bytes(is_one: Label) -> Label:
    return is_one.to(torch.uint8) if isinstance(is_one, torch.Tensor) else is_one.astype(np.uint8)


def _by_section(function: Callable[[Label], Label], label: Label) -> Label:
    """Apply a function to the sections of ``(D, H, W)``."""
    # one at a time stays in the processor's cache; a GPU has no use for that and pays for each call
    if isinstance(label, torch.Tensor) and label.device.type != "cpu":
        return function(label)
    return _library(label).stack([function(section) for section in label])


def _boundary(sections: Label, half_width: int, between_background: bool) -> Label:
    """Where the window of a voxel of sections ``(..., H, W)`` holds an instance and something else."""
    library = _library(sections)
    highest = _window_extremum(library.maximum, sections, half_width)
    if not between_background:
        # background must not be the minimum; an instance that has the type's highest value itself does no harm
        sections = library.where(sections > 0, sections, library.iinfo(sections.dtype).max)
    return (highest > 0) & (_window_extremum(library.minimum, sections, half_width) < highest)


def _window_extremum(extremum: Callable[..., Any], sections: Label, half_width: int) -> Label:
    """Running minimum or maximum of ``(..., H, W)``: one axis after the other is the square window."""
    # not scipy.ndimage: its filters compute in float64, which cannot tell 64-bit labels apart, and are slower
    library = _library(sections)
    for axis in (-2, -1):
        source = library.moveaxis(sections, axis, 0)
        result = library.asarray(source, copy=True)
        for shift in range(1, half_width + 1):
            extremum(result[:-shift], source[shift:], out=result[:-shift])
            extremum(result[shift:], source[:-shift], out=result[shift:])
        sections = library.moveaxis(result, 0, axis)
    return sections


def _instances(label: np.ndarray | torch.Tensor) -> Any:
    """Integers ``(D, H, W)`` of a label ``(1, D, H, W)`` that transforms may have turned into floats."""
    if isinstance(label, torch.Tensor):
        volume: Any = convert_to_tensor(label, track_meta=False)[0]
        if not volume.dtype.is_floating_point:
            return volume
        instances = volume.long()
    else:
        volume = label[0]
        if np.issubdtype(volume.dtype, np.integer):
            return volume
        instances = volume.astype(np.int64)
    if (instances != volume).any():
        raise ValueError(
            f"instance labels must be integers, got {float(volume[instances != volume][0])}; interpolate labels with "
            "mode='nearest'"
        )
    return instances


def _check_label(label: np.ndarray | torch.Tensor) -> None:
    if isinstance(label, torch.Tensor):
        is_integer = not label.dtype.is_floating_point and label.dtype != torch.bool
    else:
        is_integer = np.issubdtype(label.dtype, np.integer)
    if label.ndim != 3 or not is_integer:
        shape = tuple(label.shape)
        raise ValueError(f"labels must be an integer array (D, H, W), got {label.dtype} of shape {shape}")
