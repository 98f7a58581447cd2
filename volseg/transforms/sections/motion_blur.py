# SPDX-License-Identifier: Apache-2.0
"""Blur single sections as if the sample moved (Res-UNet, arXiv 2104.07961, released code)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from monai.config import KeysCollection

from volseg.transforms.sections.grey_values import RandGreyValuesd

__all__ = ["RandMotionBlurd"]


class RandMotionBlurd(RandGreyValuesd):
    """Smear a few random sections along x or y, as if the sample had drifted during the scan.

    Each pixel becomes the mean of a line of pixels centred on it, as far as the line lies within the section. The
    sections are distinct and share one direction, x or y with equal probability.

    Args:
        keys: images ``(C, D, H, W)`` on one grid.
        num_sections: number of sections to blur, >= 1; a volume with fewer is blurred completely.
        line_length_pixels: length of the line, odd.
        prob: probability of a blur.

    Raises:
        ValueError: ``num_sections`` is less than 1, or the length is not odd and positive.
    """

    def __init__(
        self,
        keys: KeysCollection,
        num_sections: int = 2,
        line_length_pixels: int = 11,
        prob: float = 0.5,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, prob, allow_missing_keys)
        if num_sections < 1:
            raise ValueError(f"num_sections must be an integer >= 1, got {num_sections}")
        if line_length_pixels < 1 or line_length_pixels % 2 == 0:
            raise ValueError(f"line_length_pixels must be odd and positive, got {line_length_pixels}")
        self.num_sections = num_sections
        self.line_length_pixels = line_length_pixels
        self.sections: list[int] = []
        self.along_x = True

    def randomize(self, data: Sequence[int]) -> None:
        """Decide whether to blur and, if so, draw the sections and the direction; ``data`` is (D, H, W)."""
        super().randomize(None)
        if self._do_transform:
            self.sections = self.R.permutation(data[0])[: self.num_sections].tolist()
            self.along_x = self.R.rand() < 0.5

    def change(self, image: torch.Tensor) -> torch.Tensor:
        line = (1, self.line_length_pixels) if self.along_x else (self.line_length_pixels, 1)
        half = (line[0] // 2, line[1] // 2)
        sections = torch.tensor(self.sections, device=image.device)
        blurred = F.avg_pool2d(image.index_select(1, sections), line, 1, half, count_include_pad=False)
        return image.index_copy_(1, sections, blurred)
