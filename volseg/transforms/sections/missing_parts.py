# SPDX-License-Identifier: Apache-2.0
"""Hide bands of sections (Res-UNet, arXiv 2104.07961, released code)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from monai.config import KeysCollection
from skimage.draw import line

from volseg.transforms.sections.grey_values import RandGreyValuesd

__all__ = ["RandMissingPartsd"]


class RandMissingPartsd(RandGreyValuesd):
    """Fill a random straight band of some sections with the section's mean grey, as if hidden by a fold, crack or dirt.

    A band connects random pixels on opposite sides of the section, along y or x with equal probability. Sections are
    visited in order: each is hit with ``section_prob``, and then the next ``intact_sections`` are skipped, so that
    neighbours show the hidden tissue. Labels do not change, so the network learns to bridge the gap.

    Args:
        keys: images ``(C, D, H, W)`` on one grid.
        half_width_pixels: the band contains all pixels within this city-block distance of its line, as after so many
            dilations by a cross. The default suits sections of 256 pixels and more.
        section_prob: probability of a band in a section.
        intact_sections: minimum number of sections between two with bands.
        prob: probability that the volume gets bands.
    """

    def __init__(
        self,
        keys: KeysCollection,
        half_width_pixels: int = 40,
        section_prob: float = 0.9,
        intact_sections: int = 2,
        prob: float = 0.9,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, prob, allow_missing_keys)
        self.half_width_pixels = half_width_pixels
        self.section_prob = section_prob
        self.intact_sections = intact_sections
        # section to the ends (y, x) of its line
        self.lines: dict[int, tuple[tuple[int, int], tuple[int, int]]] = {}

    def randomize(self, data: Sequence[int]) -> None:
        """Decide whether to hide anything and, if so, draw the lines; ``data`` is (D, H, W)."""
        super().randomize(None)
        self.lines = {}
        if not self._do_transform:
            return
        depth, height, width = data
        section = 0
        while section < depth:
            if self.R.rand() < self.section_prob:
                if self.R.rand() < 0.5:
                    self.lines[section] = (0, self.R.randint(width)), (height - 1, self.R.randint(width))
                else:
                    self.lines[section] = (self.R.randint(height), 0), (self.R.randint(height), width - 1)
                section += self.intact_sections
            section += 1

    def change(self, image: torch.Tensor) -> torch.Tensor:
        if self.lines:
            for section, band in zip(self.lines, self._bands(image.shape[2:], image.device), strict=True):
                pixels = image[:, section]
                pixels[:] = torch.where(band, pixels.mean(dim=(1, 2), keepdim=True), pixels)
        return image

    def _bands(self, size: Sequence[int], device: torch.device) -> torch.Tensor:
        """Return the pixels near the line of each section that is hit, bool ``(n, H, W)``."""
        distance = torch.full((len(self.lines), *size), sum(size), dtype=torch.int32)  # beyond any distance
        for section, (start, end) in zip(distance, self.lines.values(), strict=True):
            section[line(*start, *end)] = 0
        distance = distance.to(device)
        for axis in (1, 2):
            distance = _nearest_along(distance, axis)
        return distance <= self.half_width_pixels


def _nearest_along(distance: torch.Tensor, axis: int) -> torch.Tensor:
    """Return the minimum along an axis of a pixel's distance plus the steps to it.

    Applied to two axes this gives city-block distances, as ``scipy.ndimage.distance_transform_cdt``, on any device.
    """
    steps = torch.arange(distance.shape[axis], dtype=distance.dtype, device=distance.device)
    steps = steps.reshape([-1 if i == axis else 1 for i in range(distance.ndim)])
    before = (distance - steps).cummin(axis).values + steps
    after = (distance + steps).flip(axis).cummin(axis).values.flip(axis) - steps
    return torch.minimum(before, after)
