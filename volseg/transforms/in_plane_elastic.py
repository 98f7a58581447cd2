# SPDX-License-Identifier: Apache-2.0
"""Elastic deformation of sections in their plane (augmentation of Res-UNet-R and Res-UNet-H, arXiv 2104.07961)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from monai.config import KeysCollection
from scipy.ndimage import gaussian_filter

from volseg.transforms.in_plane_resample import RandInPlaned, pixel_positions, resample_in_plane

__all__ = ["RandInPlaneElasticd"]


class RandInPlaneElasticd(RandInPlaned):
    """Deform all sections by one smooth random field of displacements along y and x.

    The field is noise, uniform between -1 and 1, smoothed by a Gaussian and multiplied by ``alpha_pixels`` (Simard
    2003). Smoothing leaves little of it: displacements have a standard deviation of
    ``alpha_pixels / (sqrt(12 pi) sigma_pixels)``, 0.65 pixels by default.

    They hardly ever exceed six standard deviations, 4 pixels by default: crop the block with that margin, and cut it
    out afterwards.

    Args:
        keys: entries ``(1, D, H, W)`` on one grid.
        label_keys: those of them that hold instance ids.
        alpha_pixels: factor of the smoothed noise.
        sigma_pixels: of the Gaussian.
        prob: probability of a deformation.
    """

    def __init__(
        self,
        keys: KeysCollection,
        label_keys: KeysCollection = (),
        alpha_pixels: float = 16.0,
        sigma_pixels: float = 4.0,
        prob: float = 0.75,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, label_keys, prob, allow_missing_keys)
        self.alpha_pixels = alpha_pixels
        self.sigma_pixels = sigma_pixels
        self.positions = torch.empty(2, 0, 0)

    def margin_pixels(self, size: Sequence[int]) -> tuple[int, int]:
        """Six standard deviations of the displacements, whatever the size."""
        standard_deviation = self.alpha_pixels / (math.sqrt(12 * math.pi) * self.sigma_pixels)
        margin = math.ceil(6 * standard_deviation)
        return margin, margin

    def randomize(self, data: Any) -> None:
        """Draw whether to deform and, if so, the field for a size (D, H, W)."""
        super().randomize(None)
        if not self._do_transform:
            return
        _, *size = data
        noise = self.R.uniform(-1, 1, (2, *size))
        # noise that goes on periodically is equally strong everywhere: a mirrored one is stronger at the border
        smooth = gaussian_filter(noise, self.sigma_pixels, axes=(1, 2), mode="wrap")
        self.positions = pixel_positions(size) + self.alpha_pixels * torch.from_numpy(smooth)

    def move(self, volume: torch.Tensor, nearest: bool) -> torch.Tensor:
        return resample_in_plane(volume, self.positions, nearest)
