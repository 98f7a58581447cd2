# SPDX-License-Identifier: Apache-2.0
"""Reduce the resolution in a random cuboid: CutBlur (arXiv 2004.00448) as used to train Res-UNet (arXiv 2104.07961)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from monai.config import KeysCollection

from volseg.transforms.sections.grey_values import RandCuboidGreyValuesd

__all__ = ["RandCutBlurd"]


class RandCutBlurd(RandCuboidGreyValuesd):
    """Downsample the sections of a random cuboid and upsample them again, so that pixels become uniform blocks.

    Downsampling is linear with an antialiasing filter, upsampling takes the nearest neighbour; z is left unchanged.

    Args:
        keys: images ``(C, D, H, W)`` with values in [0, 1], on one grid.
        cuboid_fraction: see :class:`RandCuboidGreyValuesd`.
        downsampling_range: lowest and highest factor, >= 1; one real number between them is drawn for y and x.
        prob: probability of a blur.

    Raises:
        ValueError: a fraction or a factor is out of range.
    """

    def __init__(
        self,
        keys: KeysCollection,
        cuboid_fraction: float = 0.4,
        downsampling_range: Sequence[float] = (2.0, 8.0),
        prob: float = 0.5,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, cuboid_fraction, prob, allow_missing_keys)
        lowest, highest = downsampling_range
        if not 1 <= lowest <= highest:
            raise ValueError(f"downsampling_range must ascend from >= 1, got {tuple(downsampling_range)}")
        self.downsampling_range = (lowest, highest)
        self.downsampling = 1.0

    def randomize(self, data: Sequence[int]) -> None:
        """Decide whether to blur and, if so, draw the cuboid and the factor; ``data`` is (D, H, W)."""
        super().randomize(data)
        if self._do_transform:
            self.downsampling = self.R.uniform(*self.downsampling_range)

    def change(self, image: torch.Tensor) -> torch.Tensor:
        sections = image[:, *self.cuboid]  # (C, d, h, w), interpolated in 2-D with sections as channels
        full_size = sections.shape[2:]
        small_size = [max(1, round(n / self.downsampling)) for n in full_size]
        small = F.interpolate(sections, small_size, mode="bilinear", antialias=True)
        # the filter's weights sum to 1 only up to rounding
        sections[:] = F.interpolate(small.clamp_(0, 1), full_size, mode="nearest-exact")
        return image
