# SPDX-License-Identifier: Apache-2.0
"""Change contrast, brightness and gamma of sections (Res-UNet, arXiv 2104.07961, released code)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from monai.config import KeysCollection

from volseg.transforms.sections.grey_values import RandGreyValuesd

__all__ = ["RandSectionGrayscaled"]


class RandSectionGrayscaled(RandGreyValuesd):
    """Change grey values ``v`` to ``clip(contrast * v + brightness, 0, 1) ** gamma``.

    Either each section has its own values, like sections imaged one by one, or all sections of a volume share them.

    Args:
        keys: images ``(C, D, H, W)`` with values in [0, 1], on one grid.
        contrast_width: contrast is uniform in an interval of this width around 1, 0.85 to 1.15 for 0.3.
        brightness_width: brightness is uniform in an interval of this width around 0.
        gamma_octaves: gamma is 2 to the power of a number uniform between minus and plus this value.
        per_section_prob: probability that each section has its own values.
        prob: probability of a change.
    """

    def __init__(
        self,
        keys: KeysCollection,
        contrast_width: float = 0.3,
        brightness_width: float = 0.3,
        gamma_octaves: float = 1.0,
        per_section_prob: float = 0.5,
        prob: float = 0.75,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, prob, allow_missing_keys)
        self.contrast_width = contrast_width
        self.brightness_width = brightness_width
        self.gamma_octaves = gamma_octaves
        self.per_section_prob = per_section_prob
        self.contrast = self.brightness = self.gamma = torch.zeros(0)

    def randomize(self, data: Sequence[int]) -> None:
        """Decide whether to change anything and, if so, draw the values, ``(D, 1, 1)`` or ``(1, 1, 1)``.

        ``data`` is (D, H, W).
        """
        super().randomize(None)
        if self._do_transform:
            count = data[0] if self.R.rand() < self.per_section_prob else 1
            draws = torch.from_numpy(self.R.uniform(-1, 1, size=(3, count, 1, 1))).float()
            self.contrast = 1 + draws[0] * self.contrast_width / 2
            self.brightness = draws[1] * self.brightness_width / 2
            self.gamma = 2 ** (draws[2] * self.gamma_octaves)

    def change(self, image: torch.Tensor) -> torch.Tensor:
        contrast, brightness, gamma = (t.to(image.device) for t in (self.contrast, self.brightness, self.gamma))
        return image.mul_(contrast).add_(brightness).clamp_(0, 1).pow_(gamma)
