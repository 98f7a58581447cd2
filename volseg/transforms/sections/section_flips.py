# SPDX-License-Identifier: Apache-2.0
"""Flip and transpose sections (Res-UNet, arXiv 2104.07961)."""

from __future__ import annotations

from typing import Any

import torch
from monai.config import KeysCollection

from volseg.transforms.sections.in_plane_resample import RandInPlaned

__all__ = ["RandSectionFlipsd"]


class RandSectionFlipsd(RandInPlaned):
    """Flip along z, y and x and transpose y and x, each by a separate draw.

    z is never transposed, because sections are thicker than pixels are wide. Non-square sections are not transposed
    either, because all blocks must keep one size. No margin is needed.

    Args:
        keys: entries ``(1, D, H, W)`` on one grid.
        label_keys: entries among ``keys`` that hold instance ids.
        prob: probability of each flip and of the transposition.
    """

    def __init__(
        self,
        keys: KeysCollection,
        label_keys: KeysCollection = (),
        prob: float = 0.5,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, label_keys, prob, allow_missing_keys)
        self.flipped_axes: list[int] = []
        self.transposed = False

    def randomize(self, data: Any) -> None:
        """Draw which axes to flip and whether to transpose; ``data`` is (D, H, W)."""
        _, H, W = data
        *flips, transpose = self.R.rand(4) < self.prob
        self.flipped_axes = [axis for axis, flip in enumerate(flips, start=1) if flip]
        self.transposed = bool(transpose) and H == W
        self._do_transform = bool(self.flipped_axes) or self.transposed

    def move(self, volume: torch.Tensor, nearest: bool) -> torch.Tensor:
        flipped = volume.flip(self.flipped_axes)
        return flipped.transpose(2, 3).contiguous() if self.transposed else flipped
