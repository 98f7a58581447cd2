# SPDX-License-Identifier: Apache-2.0
"""Simulate misaligned sections (Res-UNet, arXiv 2104.07961)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from monai.config import KeysCollection

from volseg.transforms.sections.in_plane_resample import (
    RandInPlaned,
    linear_positions,
    pixel_positions,
    resample_in_plane,
    rotation_matrix,
)

__all__ = ["RandMisalignmentd"]


class RandMisalignmentd(RandInPlaned):
    """Shift or rotate one section, or that section and all following ones; the four cases are equally likely.

    A shift is an integer number of pixels along each axis, so the section stays as sharp as its neighbours. A rotation
    about the centre moves the corners of the section by at most the same distance. The first section never moves,
    because misalignment is relative to the previous section; a single section stays unchanged.

    Both reach ``max_shift_pixels`` beyond the block. Crop it with that margin and cut it out afterwards.

    Args:
        keys: entries ``(1, D, H, W)`` on one grid.
        label_keys: entries among ``keys`` that hold instance ids.
        max_shift_pixels: maximum shift along y and x.
        prob: probability of a misalignment.
    """

    def __init__(
        self,
        keys: KeysCollection,
        label_keys: KeysCollection = (),
        max_shift_pixels: int = 16,
        prob: float = 0.5,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, label_keys, prob, allow_missing_keys)
        self.max_shift_pixels = max_shift_pixels
        self.sections = slice(0, 0)
        self.is_shift = True

    def margin_pixels(self, size: Sequence[int]) -> tuple[int, int]:
        """Return the maximum shift, whatever the size."""
        return self.max_shift_pixels, self.max_shift_pixels

    def randomize(self, data: Any) -> None:
        """Draw which sections move and how; ``data`` is (D, H, W)."""
        super().randomize(None)
        D, *size = data
        self._do_transform = self._do_transform and D > 1
        if not self._do_transform:
            return
        first = self.R.randint(1, D)
        self.sections = slice(first, first + 1 if self.R.rand() < 0.5 else D)
        self.is_shift = bool(self.R.rand() < 0.5)
        if self.is_shift:
            shift = self.R.randint(-self.max_shift_pixels, self.max_shift_pixels + 1, size=2)
            moved_by = torch.from_numpy(shift).to(self.device).reshape(2, 1, 1)
            self.positions = pixel_positions(size, self.device) - moved_by
        else:
            # a corner at this radius moves along a chord, whose length is the maximum shift at the largest angle
            radius = math.hypot(*(n - 1 for n in size)) / 2
            largest = 2 * math.asin(min(1.0, self.max_shift_pixels / max(2 * radius, 1)))
            matrix = rotation_matrix(self.R.uniform(-largest, largest))
            self.positions = linear_positions(matrix.to(self.device), size)

    def move(self, volume: torch.Tensor, nearest: bool) -> torch.Tensor:
        moved = volume.clone()
        # integer shifts need no interpolation
        moved[:, self.sections] = resample_in_plane(
            volume[:, self.sections], self.positions, nearest=nearest or self.is_shift
        )
        return moved
