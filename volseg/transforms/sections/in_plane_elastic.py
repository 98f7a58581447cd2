# SPDX-License-Identifier: Apache-2.0
"""Deform sections elastically in their plane (Res-UNet, arXiv 2104.07961)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from monai.config import KeysCollection

from volseg.transforms.sections.in_plane_resample import RandInPlaned, pixel_positions

__all__ = ["RandInPlaneElasticd"]


class RandInPlaneElasticd(RandInPlaned):
    """Deform all sections by the same smooth random displacements along y and x.

    The field is noise, uniform between -1 and 1, smoothed by a Gaussian and multiplied by ``alpha_pixels`` (Simard
    2003). Smoothing reduces it strongly: displacements have a standard deviation of
    ``alpha_pixels / (sqrt(12 pi) sigma_pixels)``, 0.65 pixels by default.

    Displacements hardly ever exceed six standard deviations, 4 pixels by default. Crop the block with that margin and
    cut it out afterwards.

    Args:
        keys: entries ``(1, D, H, W)`` on one grid.
        label_keys: entries among ``keys`` that hold instance ids.
        alpha_pixels: factor applied to the smoothed noise.
        sigma_pixels: standard deviation of the Gaussian.
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

    def margin_pixels(self, size: Sequence[int]) -> tuple[int, int]:
        """Return six standard deviations of the displacements, whatever the size."""
        standard_deviation = self.alpha_pixels / (math.sqrt(12 * math.pi) * self.sigma_pixels)
        margin = math.ceil(6 * standard_deviation)
        return margin, margin

    def randomize(self, data: Any) -> None:
        """Decide whether to deform and, if so, draw the field; ``data`` is (D, H, W)."""
        super().randomize(None)
        if not self._do_transform:
            return
        _, *size = data
        noise = self.R.uniform(-1, 1, (2, *size))
        # periodic noise is equally strong everywhere, whereas mirrored noise is stronger at the border
        smooth = _smooth_periodically(torch.from_numpy(noise).to(self.device), self.sigma_pixels)
        self.positions = pixel_positions(size, self.device) + self.alpha_pixels * smooth


def _smooth_periodically(noise: torch.Tensor, sigma_pixels: float) -> torch.Tensor:
    """Compute ``scipy.ndimage.gaussian_filter(noise, sigma_pixels, axes=(1, 2), mode="wrap")`` on any device."""
    # periodic convolution is a product of Fourier transforms, which are real for symmetric kernels
    along_y, along_x = (_gaussian(n, sigma_pixels).to(noise.device) for n in noise.shape[1:])
    transfer = torch.fft.fft(along_y).real[:, None] * torch.fft.rfft(along_x).real
    return torch.fft.irfft2(torch.fft.rfft2(noise) * transfer, s=noise.shape[1:])


def _gaussian(length: int, sigma_pixels: float) -> torch.Tensor:
    """Return a Gaussian around pixel 0 of a periodic axis, cut at four standard deviations, float64 ``(length,)``."""
    reach = int(4 * sigma_pixels + 0.5)
    distance = torch.arange(-reach, reach + 1)
    weights = torch.exp(-(distance.double() ** 2) / (2 * sigma_pixels**2))
    ring = torch.zeros(length, dtype=torch.float64)
    return ring.index_add_(0, distance % length, weights / weights.sum())
