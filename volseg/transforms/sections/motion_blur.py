# SPDX-License-Identifier: Apache-2.0
"""Motion blur of single sections, an augmentation of Res-UNet's training (arXiv 2104.07961, released code)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from monai.config import KeysCollection

from volseg.transforms.sections.grey_values import RandGreyValuesd

__all__ = ["RandMotionBlurd"]


class RandMotionBlurd(RandGreyValuesd):
    """Smear a few random sections along x or along y, as if the sample had drifted during the scan.

    Each pixel becomes the mean of a line of pixels centred on it; where the line leaves the section, of those within.
    The sections are distinct and share one direction, which is x or y with equal probability. A call with
    ``randomize=False`` repeats the last draw.

    Args:
        keys: images ``(C, D, H, W)`` on one grid.
        num_sections: sections to blur; all of a volume that has fewer.
        line_length_pixels: odd.
        prob: probability of a blur.

    Raises:
        ValueError: no sections, or a length that is not odd and positive.
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
            raise ValueError(f"num_sections must be 1 or more. Received: {num_sections}")
        if line_length_pixels < 1 or line_length_pixels % 2 == 0:
            raise ValueError(f"line_length_pixels must be odd and positive. Received: {line_length_pixels}")
        self.num_sections = num_sections
        self.line_length_pixels = line_length_pixels
        self.sections: list[int] = []
        self.along_x = True

    def randomize(self, data: Sequence[int]) -> None:
        """Draw whether to blur and, if so, the sections and the direction.

        Args:
            data: D, H, W of the image.
        """
        super().randomize(None)
        if self._do_transform:
            self.sections = self.R.permutation(data[0])[: self.num_sections].tolist()
            self.along_x = self.R.rand() < 0.5

    def change(self, image: torch.Tensor) -> torch.Tensor:
        sections = torch.tensor(self.sections, device=image.device)
        return image.index_copy_(1, sections, self._blur(image.index_select(1, sections)))

    def _blur(self, sections: torch.Tensor) -> torch.Tensor:
        """Blur all of ``(C, n, H, W)``."""
        line = (1, self.line_length_pixels) if self.along_x else (self.line_length_pixels, 1)
        half = (line[0] // 2, line[1] // 2)
        return F.avg_pool2d(sections, line, stride=1, padding=half, count_include_pad=False)
