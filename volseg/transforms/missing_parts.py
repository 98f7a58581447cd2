# SPDX-License-Identifier: Apache-2.0
"""Lost bands of sections, an augmentation of Res-UNet's training (arXiv 2104.07961, released code)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from monai.config import KeysCollection
from scipy.ndimage import distance_transform_cdt
from skimage.draw import line

from volseg.transforms.grey_values import RandGreyValuesd

__all__ = ["RandMissingPartsd"]


class RandMissingPartsd(RandGreyValuesd):
    """Fill a random straight band of some sections with the section's mean grey, as folds, cracks and dirt hide tissue.

    A band runs from one side of the section to the opposite one, along y or along x with equal probability, between
    two random pixels. Sections are taken in order: one is hit with ``section_prob``, and then the next
    ``intact_sections`` stay whole, so that neighbours tell what was there. Labels stay, and the network learns to
    bridge the gap. A call with ``randomize=False`` repeats the last draw.

    Args:
        keys: images ``(C, D, H, W)`` on one grid.
        half_width_pixels: the band holds all pixels within this city-block distance of the line, which is what as many
            dilations by a cross give. The default is meant for sections of 256 pixels and more.
        section_prob: probability of a band in a section.
        intact_sections: at least so many lie between two sections with bands.
        prob: probability that the volume gets any.
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
        # of each section that is hit: the ends (y, x) of its line
        self.lines: dict[int, tuple[tuple[int, int], tuple[int, int]]] = {}

    def randomize(self, data: Sequence[int]) -> None:
        """Draw whether to hide anything and, if so, the lines.

        Args:
            data: D, H, W of the image.
        """
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
        for section, (start, end) in self.lines.items():
            pixels = image[:, section]
            band = torch.from_numpy(self._band(pixels.shape[1:], start, end)).to(image.device)
            pixels[:] = torch.where(band, pixels.mean(dim=(1, 2), keepdim=True), pixels)
        return image

    def _band(self, size: Sequence[int], start: tuple[int, int], end: tuple[int, int]) -> np.ndarray:
        """Pixels of a section of H, W that lie near the line, bool ``(H, W)``."""
        off_line = np.ones(size, dtype=bool)
        off_line[line(*start, *end)] = False
        return distance_transform_cdt(off_line, metric="taxicab") <= self.half_width_pixels
