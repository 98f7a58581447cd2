# SPDX-License-Identifier: Apache-2.0
"""Rotation and rescaling of sections in their plane (augmentation of Res-UNet-R and Res-UNet-H, arXiv 2104.07961)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from monai.config import KeysCollection

from volseg.transforms.sections.in_plane_resample import (
    RandInPlaned,
    linear_positions,
    resample_in_plane,
    rotation_matrix,
)

__all__ = ["RandInPlaneAffined"]


class RandInPlaneAffined(RandInPlaned):
    """Rescale all sections along y and x, then rotate them by any angle, both about their middle.

    One resampling does both, so that the image is blurred once.

    The margin that a block needs grows with it, see :meth:`margin_pixels`: 98 pixels for 256 by 256, which the block's
    corners take at the smallest scale and 45 degrees. With less, corners of some blocks hold a mirror image, with
    labels that fit it.

    Args:
        keys: entries ``(1, D, H, W)`` on one grid.
        label_keys: those of them that hold instance ids.
        rotation_prob: probability of a rotation.
        rescale_prob: probability of a rescaling.
        scale_range: lengths are multiplied by a number between these, drawn for y and x each.
    """

    def __init__(
        self,
        keys: KeysCollection,
        label_keys: KeysCollection = (),
        rotation_prob: float = 0.5,
        rescale_prob: float = 0.5,
        scale_range: tuple[float, float] = (0.8, 1.2),
        allow_missing_keys: bool = False,
    ) -> None:
        # of anything at all
        prob = 1 - (1 - rotation_prob) * (1 - rescale_prob)
        super().__init__(keys, label_keys, prob, allow_missing_keys)
        self.rotation_prob = rotation_prob
        self.rescale_prob = rescale_prob
        self.smallest_scale, self.largest_scale = scale_range
        self.positions = torch.empty(2, 0, 0)

    def margin_pixels(self, size: Sequence[int]) -> tuple[int, int]:
        """What a block of ``size`` (H, W) needs at the smallest scale, turned so that its diagonal is upright."""
        halves = [(n - 1) / 2 for n in size]
        reach = [math.hypot(*halves)] * 2 if self.rotation_prob else halves
        scale = min(1.0, self.smallest_scale) if self.rescale_prob else 1.0
        margin_y, margin_x = (math.ceil(r / scale - half) for r, half in zip(reach, halves, strict=True))
        return margin_y, margin_x

    def randomize(self, data: Any) -> None:
        """Draw for a size (D, H, W) whether to rotate and to rescale and, if so, how."""
        rotate, rescale = self.R.rand(2) < (self.rotation_prob, self.rescale_prob)
        self._do_transform = bool(rotate or rescale)
        if not self._do_transform:
            return
        _, *size = data
        # from the pixels of the result back to where they come from
        matrix = torch.eye(2, dtype=torch.float64)
        if rotate:
            matrix = rotation_matrix(self.R.uniform(0, 2 * math.pi))
        if rescale:
            matrix = matrix / torch.from_numpy(self.R.uniform(self.smallest_scale, self.largest_scale, size=(2, 1)))
        self.positions = linear_positions(matrix.to(self.device), size)

    def move(self, volume: torch.Tensor, nearest: bool) -> torch.Tensor:
        return resample_in_plane(volume, self.positions, nearest)
