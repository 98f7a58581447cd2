# SPDX-License-Identifier: Apache-2.0
"""Rotate and rescale sections in their plane (Res-UNet, arXiv 2104.07961)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from monai.config import KeysCollection

from volseg.transforms.sections.in_plane_resample import RandInPlaned, linear_positions, rotation_matrix

__all__ = ["RandInPlaneAffined"]


class RandInPlaneAffined(RandInPlaned):
    """Rescale all sections along y and x, then rotate them by any angle, both about their centre.

    A single resampling does both, so the image is blurred only once.

    The margin that a block needs grows with its size, see :meth:`margin_pixels`. It is 98 pixels for 256 by 256, for
    the corners at the smallest scale and 45 degrees. With a smaller margin, corners of some blocks contain a mirror
    image with matching labels.

    Args:
        keys: entries ``(1, D, H, W)`` on one grid.
        label_keys: entries among ``keys`` that hold instance ids.
        rotation_prob: probability of a rotation.
        rescale_prob: probability of a rescaling.
        scale_range: lengths are multiplied by a factor in this range, drawn separately for y and x.
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
        probability_of_any = 1 - (1 - rotation_prob) * (1 - rescale_prob)
        super().__init__(keys, label_keys, probability_of_any, allow_missing_keys)
        self.rotation_prob = rotation_prob
        self.rescale_prob = rescale_prob
        self.smallest_scale, self.largest_scale = scale_range

    def margin_pixels(self, size: Sequence[int]) -> tuple[int, int]:
        """Return the margin for the smallest scale, rotated so that the block's diagonal is upright."""
        halves = [(n - 1) / 2 for n in size]
        reach = [math.hypot(*halves)] * 2 if self.rotation_prob else halves
        scale = min(1.0, self.smallest_scale) if self.rescale_prob else 1.0
        margin_y, margin_x = (math.ceil(r / scale - half) for r, half in zip(reach, halves, strict=True))
        return margin_y, margin_x

    def randomize(self, data: Any) -> None:
        """Decide whether to rotate and to rescale and, if so, draw how; ``data`` is (D, H, W)."""
        rotate, rescale = self.R.rand(2) < (self.rotation_prob, self.rescale_prob)
        self._do_transform = bool(rotate or rescale)
        if not self._do_transform:
            return
        _, *size = data
        # maps pixels of the result to their source positions
        matrix = torch.eye(2, dtype=torch.float64)
        if rotate:
            matrix = rotation_matrix(self.R.uniform(0, 2 * math.pi))
        if rescale:
            matrix = matrix / torch.from_numpy(self.R.uniform(self.smallest_scale, self.largest_scale, size=(2, 1)))
        self.positions = linear_positions(matrix.to(self.device), size)
