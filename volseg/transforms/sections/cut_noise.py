# SPDX-License-Identifier: Apache-2.0
"""Add noise to a random cuboid (Res-UNet, arXiv 2104.07961, released code)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from monai.config import KeysCollection

from volseg.transforms.sections.grey_values import RandCuboidGreyValuesd

__all__ = ["RandCutNoised"]


class RandCutNoised(RandCuboidGreyValuesd):
    """Add uniform noise to a random cuboid of an image and clip the result to [0, 1].

    Each voxel has its own noise, which the channels and entries of a case share.

    Args:
        keys: images ``(C, D, H, W)`` with values in [0, 1], on one grid.
        cuboid_fraction: see :class:`RandCuboidGreyValuesd`.
        noise_amplitude: noise is uniform between minus and plus this value.
        prob: probability of noise.

    Raises:
        ValueError: the fraction is out of range.
    """

    def __init__(
        self,
        keys: KeysCollection,
        cuboid_fraction: float = 0.4,
        noise_amplitude: float = 0.3,
        prob: float = 0.75,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, cuboid_fraction, prob, allow_missing_keys)
        self.noise_amplitude = noise_amplitude
        self.noise = torch.zeros(0)

    def randomize(self, data: Sequence[int]) -> None:
        """Decide whether to add noise and, if so, draw the cuboid and its noise; ``data`` is (D, H, W)."""
        super().randomize(data)
        if self._do_transform:
            size = [side.stop - side.start for side in self.cuboid]
            noise = self.R.uniform(-self.noise_amplitude, self.noise_amplitude, size=size)
            self.noise = torch.from_numpy(noise).float()

    def change(self, image: torch.Tensor) -> torch.Tensor:
        image[:, *self.cuboid].add_(self.noise.to(image.device)).clamp_(0, 1)
        return image
